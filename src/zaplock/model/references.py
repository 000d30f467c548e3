"""Which pages were used of late: accessed bits of entries, and what the kernel notes of pages.

/proc/PID/clear_refs clears both for whole address spaces, and smaps counts as `Referenced` what has
either. An entry is old (`Pte.old`) from then on until a CPU uses it; it begins as young, but for
those that a fork gives to a child. A page is marked where the kernel looks at it on behalf of
somebody: populating, pinning, and the end of a young entry of a file's page. A second mark makes it
active, which takes the first one away (classic LRU lists; the multi-generational LRU keeps it).

Followed only where `globals["references"]` is set: nothing else depends on them, and states that
differ by them alone would be told apart.

Sources: fs/proc/task_mmu.c (clear_refs_pte_range, smaps_account), mm/swap.c folio_mark_accessed,
mm/memory.c (zap_present_folio_ptes, __copy_present_ptes), mm/madvise.c.
Not covered: what reclaim does to these bits, the idle-page bitmap, VM_RAND_READ and VM_SEQ_READ
(whose pages are not marked when they are unmapped), the multi-generational LRU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from zaplock.model.flags import PAGES_PER_PMD

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.mm import Mm, Pte

REFERENCED, ACTIVE = 1, 2
"""Bits of what is noted of a page (PG_referenced, PG_active)."""

_MAPPED = ("anon", "thp", "file", "shmem")
_HUGE = ("thp",)


def follows(m: Machine) -> bool:
    """Return whether accessed bits are followed."""
    return bool(m.globals.get("references", 0))


def use_entry(space: Mm, vpn: int, pte: Pte) -> None:
    """Let the entry of a page be young: a CPU has used it."""
    pages = PAGES_PER_PMD if pte.kind in _HUGE else 1
    first = vpn - vpn % pages
    space.ptes.set(first, first + pages, msgspec.structs.replace(pte, old=False))


def aged(m: Machine, pte: Pte) -> Pte:
    """Return an entry that is like another one, but old, if it maps pages that count."""
    if not follows(m) or pte.old or pte.kind not in _MAPPED:
        return pte
    return msgspec.structs.replace(pte, old=True)


def forget_entries(m: Machine, space: Mm, first: int, last: int) -> None:
    """Make the entries of virtual pages [first, last) old, and forget the marks of their pages."""
    for low, high, pte in space.ptes.overlapping(first, last):
        if pte.kind not in _MAPPED:
            continue
        space.ptes.set(low, high, aged(m, pte))
        forget_marks(m, low + pte.delta, high + pte.delta)


def age_entries(m: Machine, space: Mm, first: int, last: int) -> None:
    """Make the entries of virtual pages [first, last) old."""
    for low, high, pte in space.ptes.overlapping(first, last) if follows(m) else ():
        space.ptes.set(low, high, aged(m, pte))


def deactivate_pages(m: Machine, space: Mm, first: int, last: int) -> None:
    """Let the pages of a range be neither used nor active (MADV_COLD)."""
    forget_entries(m, space, first, last)
    for low, high, pte in space.ptes.overlapping(first, last):
        m.aging.clear(low + pte.delta, high + pte.delta)


def forget_marks(m: Machine, first: int, last: int) -> None:
    """Let the frames in [first, last) be marked as used no more; active ones stay that."""
    first, last = _whole_folios(m, first, last)
    for low, high, noted in m.aging.overlapping(first, last):
        m.aging.set(low, high, noted & ~REFERENCED)


def mark_accessed(m: Machine, first: int, last: int) -> None:
    """Note that the frames in [first, last) were used (folio_mark_accessed)."""
    if not follows(m):
        return
    first, last = _whole_folios(m, first, last)
    at = first
    for low, high, noted in [*m.aging.overlapping(first, last), (last, last, 0)]:
        if at < low:
            m.aging.set(at, low, REFERENCED)
        if low < high:
            m.aging.set(low, high, _NEXT[noted])
        at = high


def _whole_folios(m: Machine, first: int, last: int) -> tuple[int, int]:
    """Widen a run of frames to all of the huge pages in which it begins and ends."""
    low, high = m.frames.at(first), m.frames.at(last - 1)
    if low is not None and low.kind == "thp":
        first -= first % PAGES_PER_PMD
    if high is not None and high.kind == "thp":
        last = -(-last // PAGES_PER_PMD) * PAGES_PER_PMD
    return first, last


_NEXT = {
    0: REFERENCED,
    REFERENCED: ACTIVE,
    ACTIVE: ACTIVE | REFERENCED,
    ACTIVE | REFERENCED: ACTIVE | REFERENCED,
}


def count_referenced(m: Machine, low: int, high: int, pte: Pte) -> int:
    """Count the pages of entries [low, high) that are used: the entries or what they map."""
    if not pte.old:
        return high - low
    return sum(
        end - start
        for start, end, noted in m.aging.overlapping(low + pte.delta, high + pte.delta)
        if noted & REFERENCED
    )
