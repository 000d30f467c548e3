"""A write to a page that others may map: it is copied, or kept where nobody else has it.

A page is copied outside the page-table lock (wp_page_copy): what to copy is held first, and
`finish_copy` sets the new entry, if the old one is still there.

Sources: mm/memory.c (do_wp_page, wp_can_reuse_anon_folio), mm/huge_memory.c do_huge_pmd_wp_page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zaplock.model.anonymous_fault import map_new
from zaplock.model.flags import (
    PAGE_SHIFT,
    PAGES_PER_PMD,
    VM_SHARED,
)
from zaplock.model.folio_sharing import is_mapped_elsewhere, maps_of_folio
from zaplock.model.frames import Frame, change_frames, mark_forked
from zaplock.model.mm import Mm, Pte
from zaplock.model.pagetable import RSS, split_entries
from zaplock.model.step import Task
from zaplock.model.tlb import flush_tlb_range
from zaplock.model.vma import Vma, change

if TYPE_CHECKING:
    from zaplock.model.machine import Machine


class PageCopy(NamedTuple):
    """A copy-on-write fault in the middle: the entry that it found, and whose frame it holds."""

    pte: Pte
    frame: int


def large_to_copy(m: Machine, vma: Vma, first: int, last: int) -> list[tuple[int, Pte]]:
    """List the pages of huge pages that are their mm's own again after a fork, and not writable.

    From 6.15 on a write keeps such a page; from 5.9 to 6.14 any page of a huge page that small
    entries map was copied (09854ba94c6a). Not told: to 5.8 it was kept, too (reuse_swap_page).
    """
    if vma.flags & VM_SHARED:
        return []
    return [
        (pfn - pte.delta, pte)
        for low, high, pte in m.mm(vma.mm).ptes.overlapping(first, last)
        if pte.kind == "anon" and not pte.writable
        for start, end, frame in m.frames.overlapping(low + pte.delta, high + pte.delta)
        if frame.kind == "thp" and frame.maps == 1
        for pfn in range(start, end)
    ]


def begin_copy(m: Machine, task: Task, vpn: int, pte: Pte) -> PageCopy:
    """Hold the frame of a page that is to be copied."""
    pfn = vpn + pte.delta
    change_frames(m, task, pfn, pfn + 1, refs=1)
    return PageCopy(pte, pfn)


def copy_on_write(m: Machine, task: Task, space: Mm, vpn: int, pte: Pte) -> int | PageCopy:
    """Let an entry be written through whose page is nobody else's: 0; else say what to copy.

    Where a huge page can't be kept, small entries map it first, and one page of it is copied.
    """
    if keeps_page(m, space, vpn, pte):
        low, pages = entry_of(vpn, pte)
        space.ptes.set(low, low + pages, Pte(pte.kind, pte.delta, True, wp=pte.wp))
        mark_forked(m, low + pte.delta, low + pte.delta + pages, False)
        return 0
    if pte.kind == "thp":
        return copy_on_write(m, task, space, vpn, split_entry(m, space, vpn, pte))
    return begin_copy(m, task, vpn, pte)


def entry_of(vpn: int, pte: Pte) -> tuple[int, int]:
    """Return where the entry of a virtual page begins, and how many pages it maps."""
    pages = PAGES_PER_PMD if pte.kind == "thp" else 1
    return vpn & -pages, pages


def split_entry(m: Machine, space: Mm, vpn: int, pte: Pte) -> Pte:
    """Let small entries map what a huge one does, for reading only; return them."""
    low = vpn - vpn % PAGES_PER_PMD
    small = change(split_entries(m, low, pte), writable=False)
    space.ptes.set(low, low + PAGES_PER_PMD, small)
    return small


def keeps_page(m: Machine, space: Mm, vpn: int, pte: Pte) -> bool:
    """Return whether an entry that does not let write may do so, to the page that it maps.

    A huge entry may where nothing else maps any of its pages (do_huge_pmd_wp_page), a small one
    where nothing else maps its page. What a fork has shared of a huge page, and small entries map,
    is kept only if no other address space maps any of that huge page; and not if the page is all
    that is mapped of it, as then the huge page is given up. (wp_can_reuse_anon_folio,
    __wp_can_reuse_large_anon_folio; 6.15)
    """
    frame = m.frames.at(vpn + pte.delta)
    if pte.kind not in ("anon", "thp") or frame is None or not is_own(frame):
        return False
    if frame.kind != "thp":
        return True
    head = vpn + pte.delta & -PAGES_PER_PMD
    if pte.kind == "thp":
        pages = m.frames.overlapping(head, head + PAGES_PER_PMD)
        return all(page.maps == 1 for _, _, page in pages)
    if not frame.forked:
        return True
    is_alone = maps_of_folio(m, head, PAGES_PER_PMD) == 1
    return not is_alone and not is_mapped_elsewhere(m, space, head, PAGES_PER_PMD)


def is_own(frame: Frame) -> bool:
    """Return whether one entry maps a page, which isn't merged."""
    return frame.maps == 1 and frame.kind != "ksm"


def finish_copy(m: Machine, task: Task, vma: Vma, address: int, copy: PageCopy, tag: int) -> None:
    """Put a page with the copied content in the place of the old one, and let go of that.

    Where the entry has changed meanwhile, the fault is taken again and the copy was in vain.
    """
    space, vpn = m.mm(vma.mm), address >> PAGE_SHIFT
    m.spend("fault_cow")
    if space.ptes.at(vpn) == copy.pte:
        drop_mapping(m, task, space, vpn, copy.pte)
        map_new(m, task, space, vpn, tag)
    change_frames(m, task, copy.frame, copy.frame + 1, refs=-1)


def drop_mapping(m: Machine, task: Task, space: Mm, vpn: int, pte: Pte) -> None:
    """Take one entry out whose frame another entry is about to replace, flushing the page."""
    space.ptes.clear(vpn, vpn + 1)
    if pte.kind in RSS:
        space.add(RSS[pte.kind], -1)
    flush_tlb_range(m, space.mm, vpn, vpn + 1, False)
    change_frames(m, task, vpn + pte.delta, vpn + pte.delta + 1, refs=-1, maps=-1)
