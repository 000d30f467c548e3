"""Which pages were used of late: accessed bits of entries, and what the kernel notes of pages.

Soft-dirty bits, too: what was written to since 4 went to clear_refs (`Pte.soft_clean` says that it
was not), and mappings that are as a whole, since they are new (VM_SOFTDIRTY).

/proc/PID/clear_refs clears them for whole address spaces, and smaps counts as `Referenced` what has
either. An entry is old (`Pte.old`) from then on until a CPU uses it; it begins as young, but for
those that a fork gives to a child. A page is marked where the kernel looks at it on behalf of
somebody: populating, pinning, and the end of a young entry of a file's page. A second mark makes it
active, which takes the first one away (classic LRU lists; the multi-generational LRU keeps it).

Followed only where `globals["references"]` and `["soft_dirty"]` are set: nothing else depends
on them, and states that differ by them alone would be told apart.

Sources: fs/proc/task_mmu.c (clear_refs_pte_range, smaps_account), mm/swap.c folio_mark_accessed,
mm/memory.c (zap_present_folio_ptes, __copy_present_ptes), mm/madvise.c.
Not covered: what reclaim does to these bits, the idle-page bitmap, VM_RAND_READ and VM_SEQ_READ
(whose pages are not marked when they are unmapped), the multi-generational LRU.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from zaplock.model.dirty import unwritten
from zaplock.model.flags import PAGES_PER_PMD, VM_SOFTDIRTY
from zaplock.model.frames import whole_folios

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.mm import Mm, Pte

REFERENCED, ACTIVE = 1, 2
"""Bits of what is noted of a page (PG_referenced, PG_active)."""

_MAPPED = ("anon", "thp", "file", "shmem")


def follows(m: Machine) -> bool:
    """Return whether accessed bits are followed."""
    return bool(m.globals.get("references", 0))


def born_dirty(m: Machine, flags: int) -> int:
    """Return the flags of a new mapping: it is soft-dirty where the kernel tracks that."""
    return flags | VM_SOFTDIRTY if tracks_writes(m) else flags


def tracks_writes(m: Machine) -> bool:
    """Return whether soft-dirty bits are followed."""
    return bool(m.globals.get("soft_dirty", 0))


def watches_writes(m: Machine, flags: int) -> bool:
    """Return whether a mapping with these flags is told of writes (vma_soft_dirty_enabled)."""
    return tracks_writes(m) and not flags & VM_SOFTDIRTY


def read_only(m: Machine, pte: Pte) -> Pte:
    """Return an entry as a read makes it: nobody has written through it."""
    pte = unwritten(m, pte)
    return msgspec.structs.replace(pte, soft_clean=True) if tracks_writes(m) else pte


def clean_entries(m: Machine, space: Mm, first: int, last: int) -> None:
    """Let the entries of virtual pages [first, last) tell of the next write through them."""
    for low, high, pte in space.ptes.overlapping(first, last) if tracks_writes(m) else ():
        cleaned = msgspec.structs.replace(pte, writable=False, soft_clean=True)
        space.ptes.set(low, high, cleaned)


def soft_dirty(pte: Pte) -> Pte:
    """Return an entry that counts as written through."""
    return msgspec.structs.replace(pte, soft_clean=False) if pte.soft_clean else pte


def use_batches(m: Machine, space: Mm, first: int, last: int) -> None:
    """Let the small entries of a folio in [first, last) that are alike share their bits.

    All are young if one is, and dirty if one is, which makes them soft-dirty. That is what becomes
    of them where mprotect takes them out and puts them back together (rule `batches_entries`,
    modify_prot_start_ptes; mremap does so on arm64 only).
    """
    if not m.globals.get("batches", 0) or not any(
        pte.old or pte.clean or pte.soft_clean
        for _, _, pte in space.ptes.overlapping(first, last)
        if pte.kind in _BATCHED
    ):
        return
    batch: list[_Part] = []
    for run in (*_small_of_folios(m, space, first, last), None):
        if batch and (run is None or not _goes_on(batch[-1], run)):
            if sum(part.last - part.first for part in batch) > 1:
                _share_bits(space, batch)
            batch = []
        batch += [run] if run is not None else []


_BATCHED = ("anon", "shmem")


class _Part(NamedTuple):
    """Entries of virtual pages [first, last), which map pages of the folio at frame `head`."""

    first: int
    last: int
    pte: Pte
    head: int


def _share_bits(space: Mm, batch: list[_Part]) -> None:
    """Give the entries of a batch each other's bits."""
    old = all(part.pte.old for part in batch)
    clean = all(part.pte.clean for part in batch)
    begin, *others = batch
    told = not begin.pte.clean and begin.last - begin.first > 1  # by another one than the first
    told = told or not all(part.pte.clean for part in others)
    for part in batch:
        soft = part.pte.soft_clean and not told
        shared = msgspec.structs.replace(part.pte, old=old, clean=clean, soft_clean=soft)
        space.ptes.set(part.first, part.last, shared)


def _small_of_folios(m: Machine, space: Mm, first: int, last: int) -> list[_Part]:
    """List small entries of folios, cut where a folio or a page table ends."""
    found = []
    for low, high, pte in space.ptes.overlapping(first, last):
        if pte.kind not in _BATCHED:
            continue
        for start, end, frame in m.frames.overlapping(low + pte.delta, high + pte.delta):
            pages = PAGES_PER_PMD if frame.kind == "thp" else 1 << frame.order
            if pages == 1:
                continue
            tables = range(start + (pte.delta - start) % PAGES_PER_PMD, end, PAGES_PER_PMD)
            folios = range(start + -start % pages, end, pages)
            found += [
                _Part(low_pfn - pte.delta, high_pfn - pte.delta, pte, low_pfn & -pages)
                for low_pfn, high_pfn in pairwise(sorted({start, end, *tables, *folios}))
            ]
    return found


def _goes_on(part: _Part, after: _Part) -> bool:
    """Return whether entries go on with others: they are alike but for their bits."""
    pte, other = part.pte, after.pte
    alike = msgspec.structs.replace(pte, old=other.old, clean=other.clean) == other
    one_folio = part.last == after.first and part.head == after.head
    return alike and one_folio and after.first % PAGES_PER_PMD != 0


def use_entry(space: Mm, vpn: int, pte: Pte) -> None:
    """Let the entry of a page be young: a CPU has used it."""
    pages = PAGES_PER_PMD if pte.kind == "thp" else 1
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
    first, last = whole_folios(m, first, last)
    for low, high, noted in m.aging.overlapping(first, last):
        m.aging.set(low, high, noted & ~REFERENCED)


def mark_accessed(m: Machine, first: int, last: int) -> None:
    """Note that the frames in [first, last) were used (folio_mark_accessed).

    A huge page is marked as a whole, once for each of its pages.
    """
    for low, high, frame in m.frames.overlapping(first, last) if follows(m) else ():
        if frame.kind != "thp":
            _mark_once(m, low, high)
            continue
        for head in range(low - low % PAGES_PER_PMD, high, PAGES_PER_PMD):
            pages = min(high, head + PAGES_PER_PMD) - max(low, head)
            for _ in range(min(pages, len(_NEXT) - 1)):
                _mark_once(m, head, head + PAGES_PER_PMD)


def set_referenced(m: Machine, pfn: int) -> None:
    """Note that a frame was used, without making it active (folio_set_referenced)."""
    if not follows(m):
        return
    first, last = whole_folios(m, pfn, pfn + 1)
    noted = m.aging.at(pfn) or 0
    m.aging.set(first, last, noted | REFERENCED)


def _mark_once(m: Machine, first: int, last: int) -> None:
    at = first
    for low, high, noted in [*m.aging.overlapping(first, last), (last, last, 0)]:
        if at < low:
            m.aging.set(at, low, REFERENCED)
        if low < high:
            m.aging.set(low, high, _NEXT[noted])
        at = high


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
