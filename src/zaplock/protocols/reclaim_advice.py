"""What reclaim is told of pages: that they can go first (COLD), now (PAGEOUT), or unwritten (FREE).

Source: mm/madvise.c madvise_cold_or_pageout_pte_range, madvise_free_pte_range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.files import drop_clean, write_to_swap
from zaplock.model.flags import PAGE_SHIFT, PAGES_PER_PMD, VM_DROPPABLE, VM_LOCKED
from zaplock.model.folio_sharing import SharedFolios, is_shared, maps_of_folio
from zaplock.model.folios import by_page_table, split_anonymous, to_split
from zaplock.model.frames import Frame, clean, unback
from zaplock.model.mm import Mm, Pte
from zaplock.model.references import age_entries, deactivate_pages, follows
from zaplock.model.shared_huge import IN_MEMORY
from zaplock.model.step import Task, step
from zaplock.model.swap import drop_swapped, kept_slot, swap_out
from zaplock.model.tlb import gather_pages
from zaplock.model.vma import Vma, change
from zaplock.protocols.rmap import watched_kinds
from zaplock.protocols.teardown import tlb_finish_mmu, unmap_page_range
from zaplock.protocols.zap_range import gather_zap

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


@step
def deactivate(m: Machine, _task: Task, mm: int, low: int, high: int) -> None:
    """Let the pages of a range that only this maps look as if nobody had used them."""
    if not follows(m):
        return
    for first, last, pte in m.mm(mm).ptes.overlapping(low >> PAGE_SHIFT, high >> PAGE_SHIFT):
        if pte.kind in _DEACTIVATED:
            for start, end, frame in m.frames.overlapping(first + pte.delta, last + pte.delta):
                if frame.maps == 1 and not frame.stays_locked:
                    deactivate_pages(m, m.mm(mm), start - pte.delta, end - pte.delta)


_DEACTIVATED = ("anon", "thp", "file", "shmem")


async def page_out(cx: Cx, vma: Vma, low: int, high: int) -> None:
    """MADV_PAGEOUT: what is mapped once goes to swap, as far as there is any.

    Pages of files in memory are taken from their mapping before reclaim finds that they can go
    nowhere; so they stay in the file without swap, and those that nobody has ever written to are
    dropped in any case. Anonymous memory it lets be without swap, but for what may be dropped, as
    what MADV_FREE was given for and nobody has written to since.
    Source: mm/madvise.c, mm/vmscan.c shrink_folio_list.
    """
    droppable = bool(vma.flags & VM_DROPPABLE)
    gather = await gather_zap(cx.mm, low, high)
    taken = await mapped_once(cx.mm, low, high, ("anon",) if droppable else IN_MEMORY)
    for start, end in taken:
        await unmap_page_range(cx, gather, start, end, spares=watched_kinds(vma))
        if not droppable:
            await drop_clean(vma.file, vma.pgoff_of(start), vma.pgoff_of(end))
    for start, end in () if droppable else await mapped_once(cx.mm, low, high, ("anon",), True):
        await unmap_page_range(cx, gather, start, end)
    await tlb_finish_mmu(cx, gather)
    for start, end in () if droppable else taken:
        await write_to_swap(vma.file, vma.pgoff_of(start), vma.pgoff_of(end))
    if not droppable:
        for start, end in await mapped_once(cx.mm, low, high, ("anon", "thp")):
            await unmap_to_swap(cx.mm, start, end)


@step
def unmap_to_swap(m: Machine, task: Task, mm: int, low: int, high: int) -> None:
    """Let swap entries stand for anonymous pages that go there, before they are written out."""
    swap_out(m, task, m.mm(mm), low >> PAGE_SHIFT, high >> PAGE_SHIFT)


@step
def mapped_once(
    m: Machine,
    _task: Task,
    mm: int,
    low: int,
    high: int,
    kinds: tuple[str, ...],
    lazy: bool = False,
) -> tuple[tuple[int, int], ...]:
    """List the parts of a range that have pages of some kinds which only this maps, unlocked.

    lazy: only those that are lazily free.
    """
    found = []
    for first, last, pte in m.mm(mm).ptes.overlapping(low >> PAGE_SHIFT, high >> PAGE_SHIFT):
        if pte.kind in kinds and (pte.clean or not lazy):
            found += [
                (start - pte.delta << PAGE_SHIFT, end - pte.delta << PAGE_SHIFT)
                for start, end, frame in m.frames.overlapping(first + pte.delta, last + pte.delta)
                if frame.maps == 1 and frame.refs == pinned_by(pte) and not frame.stays_locked
                if not lazy or (frame.unbacked and not frame.dirty)
            ]
    return tuple(found)


def pinned_by(pte: Pte) -> int:
    """Return how many references a page has that one entry maps and nobody else uses."""
    return 2 if pte.kind in IN_MEMORY else 1  # its file's page cache


def drop_poison(space: Mm, first: int, last: int) -> None:
    """Take the poison of virtual pages [first, last) away."""
    for low, high, pte in space.ptes.overlapping(first, last):
        if pte.kind == "poison":
            space.ptes.clear(low, high)


async def free_lazily(cx: Cx, vma: Vma, low: int, high: int, batch: int) -> None:
    """MADV_FREE of a part of a VMA: the CPUs are told behind all of it that the pages are clean.

    Until then one that has written to a page writes on and marks nothing: what it writes may be
    dropped with the page. batch: the gather that the caller finishes; 0: one of its own.
    """
    d = cx.design
    shared = SharedFolios(d.free_sharing, d.free_huge_sharing, d.advice_splits_whole)
    gather = batch or await gather_zap(cx.mm, low, high)
    has_huge = await split_anonymous(cx.mm, low, high, d.finds_zeros, shared, True)
    grain = (cx.grain << PAGE_SHIFT if not has_huge else 0) or high - low
    for at in range(low, high, grain):
        until, droppable = min(at + grain, high), bool(vma.flags & VM_DROPPABLE)
        await mark_free(cx.mm, gather, at, until, droppable, shared)
    if not batch:
        await tlb_finish_mmu(cx, gather)


@step
def mark_free(
    m: Machine,
    task: Task,
    mm: int,
    gather: int,
    low: int,
    high: int,
    droppable: bool,
    shared: SharedFolios,
) -> None:
    """Mark pages as lazily freeable: until memory is short they stay as they are.

    What is in swap has no such mark, and is dropped at once, as is poison. What stays locked in
    memory can't be marked any more; but if it was before it was locked, being clean again is enough
    (no PG_swapbacked). droppable: they may be freed from the beginning on.
    """
    drop_poison(m.mm(mm), low >> PAGE_SHIFT, high >> PAGE_SHIFT)
    drop_swapped(m, task, m.mm(mm), low >> PAGE_SHIFT, high >> PAGE_SHIFT)
    m.spend("protect_pte", m.mm(mm).ptes.total(low >> PAGE_SHIFT, high >> PAGE_SHIFT))
    first, last = low >> PAGE_SHIFT, high >> PAGE_SHIFT
    looked_at = [
        part
        for part_low, part_high in by_page_table(first, last)
        for part in not_passed_over(m, m.mm(mm), part_low, part_high, shared)
    ]
    for start, end, delta, frame in looked_at:
        if (frame.dirty and frame.maps > 1) or kept_slot(m, frame):
            continue  # others find it in swap, too (folio_free_swap)
        clean(m, start, end)
        clean_entries(m, m.mm(mm), gather, start - delta, end - delta)
        if frame.stays_locked and not frame.unbacked:
            continue  # clean, but on no list of what may be dropped (folio_mark_lazyfree)
        if not (frame.unbacked or droppable):
            m.aging.clear(start, end)
        m.globals.put("lazyfree", 1)
        asks = frame.maps > 1 and not frame.unbacked
        for low_pfn, high_pfn in locked_by_others(m, mm, start, end) if asks else ():
            unback(m, start, low_pfn)
            start = max(start, high_pfn)
        unback(m, start, end)


def not_passed_over(
    m: Machine, space: Mm, first: int, last: int, shared: SharedFolios
) -> list[tuple[int, int, int, Frame]]:
    """List the anonymous frames of pages [first, last) of one page table that MADV_FREE looks at.

    With each run the entries' delta. Of huge pages there are those left that are to be marked as a
    whole, and those that others map, too; at the first of these it may end (`SharedFolios`). Where
    small entries map a dirty one as a whole it is passed over, too, if others map a page of it.
    """
    kept = to_split(m, space, first, last, shared.splits_whole)
    found: list[tuple[int, int, int, Frame]] = []
    for low, high, pte in space.ptes.overlapping(first, last):
        if pte.kind not in ("anon", "thp"):
            continue
        for start, end, frame in m.frames.overlapping(low + pte.delta, high + pte.delta):
            if frame.kind != "thp":
                found.append((start, end, pte.delta, frame))
                continue
            for head in range(start & -PAGES_PER_PMD, end, PAGES_PER_PMD):
                if head not in kept and not _lets_be(m, space, head, pte, shared):
                    part = max(start, head), min(end, head + PAGES_PER_PMD)
                    found.append((*part, pte.delta, frame))
                elif shared.splits_whole and pte.kind == "anon":
                    return found
    return found


def _lets_be(m: Machine, space: Mm, head: int, pte: Pte, shared: SharedFolios) -> bool:
    """Return whether MADV_FREE lets a huge page be that its range covers, as others map it, too."""
    if pte.kind == "thp":
        return is_shared(m, space, head, PAGES_PER_PMD, head, shared.huge)
    runs = m.frames.overlapping(head, head + PAGES_PER_PMD)
    dirty = any(frame.dirty for _, _, frame in runs)
    return dirty and maps_of_folio(m, head, PAGES_PER_PMD) != PAGES_PER_PMD


def clean_entries(m: Machine, space: Mm, gather: int, first: int, last: int) -> None:
    """Make the entries of virtual pages [first, last) old and clean, and remember what was not."""
    for low, high, pte in space.ptes.overlapping(first, last):
        if not pte.clean:
            space.ptes.set(low, high, change(pte, clean=True))
        if not (pte.clean and pte.old):
            gather_pages(m, gather, low, high, False, pte.delta)
    age_entries(m, space, first, last)


def locked_by_others(m: Machine, mm: int, first: int, last: int) -> list[tuple[int, int]]:
    """List which of some frames another address space has locked in memory, in order."""
    found = []
    for space in m.mms.values():
        for start in space.tree.order if space.mm != mm else ():
            vma = m.vmas[space.tree.data[start]]
            if not isinstance(vma, Vma) or not vma.flags & VM_LOCKED:
                continue
            for low, high, pte in space.ptes.overlapping(
                start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT
            ):
                part = max(low + pte.delta, first), min(high + pte.delta, last)
                if pte.kind in ("anon", "thp") and part[0] < part[1]:
                    found.append(part)
    return sorted(found)
