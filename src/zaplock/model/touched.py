"""What populating calls note of the pages that they come by: used, and written to (FOLL_TOUCH).

A fault notes that of the page that it maps. Of what is mapped already, nobody would know.

Source: mm/gup.c (follow_page_pte), mm/huge_memory.c touch_pmd, mm/memory.c fault_dirty_shared_page.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import TYPE_CHECKING

from zaplock.model.dirty import follows_dirty, soil_file
from zaplock.model.flags import PAGE_SHIFT, PAGES_PER_PMD
from zaplock.model.frames import soil
from zaplock.model.mm import Mm, Pte
from zaplock.model.pagetable import ABSENT
from zaplock.model.references import follows, mark_accessed, use_entry
from zaplock.model.shared_huge import KIND as SHARED_HUGE
from zaplock.model.vma import Vma, change

if TYPE_CHECKING:
    from zaplock.model.machine import Machine


def soil_touched(
    m: Machine, space: Mm, first: int, last: int, before: list[tuple[int, int, Pte]], failed: bool
) -> None:
    """Let pages [first, last) be dirty whose entries let write, but are clean (FOLL_TOUCH).

    before: their entries before that; where one does not let write a fault makes it dirty. failed:
    only those up to the first that is not there.
    """
    there = come_by(space, first, last, failed)
    end = there[-1][1] if there else first
    for low, high, pte in before:
        if pte.kind in ("anon", "thp") and low < end and pte.writable and pte.clean:
            soil(m, low + pte.delta, min(high, end) + pte.delta)


def mark_touched(m: Machine, space: Mm, first: int, last: int, write: bool, failed: bool) -> None:
    """Note that pages [first, last) were used, small ones by a mark of the page (FOLL_TOUCH).

    failed: only those up to the first that is not there. Of a huge page the entry is, and that
    only if it is to be written to.
    """
    for low, high, pte in come_by(space, first, last, failed) if follows(m) else ():
        if pte.kind == "thp" and write:
            use_entry(space, low, pte)
        elif pte.kind in ("anon", "file", "shmem"):
            mark_accessed(m, low + pte.delta, high + pte.delta)


def come_by(space: Mm, first: int, last: int, failed: bool) -> list[tuple[int, int, Pte]]:
    """List the entries of pages [first, last); `failed`: up to the first that is not there."""
    there = space.ptes.overlapping(first, last)
    if not failed:
        return there
    return list(takewhile(lambda run: run[2].kind not in ABSENT, _adjoining(there, first)))


def _adjoining(runs: list[tuple[int, int, Pte]], at: int) -> Iterator[tuple[int, int, Pte]]:
    """Yield runs from `at` on up to the first gap."""
    for run in runs:
        if run[0] > at:
            return
        at = run[1]
        yield run


def makes_dirty(m: Machine, vma: Vma, vpn: int) -> bool:
    """Return whether a write to a page of a shared mapping makes a clean page dirty.

    A file system on a disk is told of every entry that becomes writable (page_mkwrite).
    """
    pte = m.mm(vma.mm).ptes.at(vpn)
    if pte is not None and pte.writable:
        return False
    page = vma.pgoff_of(vpn << PAGE_SHIFT)
    delta = m.page_cache(vma.file).at(page)
    return m.files[vma.file].kind == "disk" or delta is None or not m.dirty.at(page + delta)


def is_dirty(m: Machine, vma: Vma, vpn: int) -> bool:
    """Return whether the entry of a page of a file knows that it was written through."""
    pte = m.mm(vma.mm).ptes.at(vpn)
    return follows_dirty(m) and pte is not None and pte.writable and not pte.clean


def soil_huge_entry(m: Machine, space: Mm, vpn: int) -> bool:
    """Let a huge entry of a file that is clean and lets write be dirty; return whether it was so.

    The page is not told, as it is where small entries map it (touch_pmd).
    """
    pte = space.ptes.at(vpn)
    if not follows_dirty(m) or pte is None or pte.kind != SHARED_HUGE:
        return False
    if not (pte.writable and pte.clean):
        return False
    first = vpn - vpn % PAGES_PER_PMD
    space.ptes.set(first, first + PAGES_PER_PMD, change(pte, clean=False))
    return True


def mark_dirty(m: Machine, vma: Vma, vpn: int) -> None:
    """Note that a page of a shared mapping counts as written to (fault_dirty_shared_page)."""
    page = vma.pgoff_of(vpn << PAGE_SHIFT)
    delta = m.page_cache(vma.file).at(page)
    if delta is not None:
        soil_file(m, page + delta, page + delta + 1)
