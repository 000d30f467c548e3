"""Huge pages of anonymous memory as folios: mapped by small entries, they still are one.

A page-table entry of a huge page can be split alone (split_huge_at); the folio is split when only a
part of it is advised. From 6.12 on that finds pages which hold nothing but zeros: they are given
back, and the zero page is mapped in their place, where the VMA is not locked.

Sources: mm/madvise.c (madvise_cold_or_pageout_pte_range, madvise_free_pte_range),
mm/huge_memory.c, mm/migrate.c (try_to_map_unused_to_zeropage).

Not covered: folios of other sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from zaplock.model.dirty import follows_dirty
from zaplock.model.files import split_folio as split_folio_of_file
from zaplock.model.flags import PAGE_SHIFT, PAGES_PER_PMD, VM_LOCKED
from zaplock.model.folio_sharing import SharedFolios, is_shared
from zaplock.model.frames import Frame, change_frames, soil
from zaplock.model.mm import Pte
from zaplock.model.pagetable import small_entry
from zaplock.model.shared_huge import IN_MEMORY
from zaplock.model.shared_huge import KIND as SHARED_HUGE
from zaplock.model.step import Task, step
from zaplock.model.tlb import flush_tlb_range, note_peak
from zaplock.model.vma import Vma, change, overlapping, vma_of

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.mm import Mm


@step
def split_anonymous(
    m: Machine,
    task: Task,
    mm: int,
    low: int,
    high: int,
    finds_zeros: bool,
    shared: SharedFolios,
    frees: bool,
) -> bool:
    """Split the huge pages of anonymous memory in [low, high) that an advice splits; are some left?

    They are split in the order of their addresses: that decides which peak the later ones find.

    `frees`: that is for MADV_FREE, which notes the peak of resident memory first.
    """
    space = m.mm(mm)
    if frees:
        note_peak(m, space)
    for first, last in by_page_table(low >> PAGE_SHIFT, high >> PAGE_SHIFT):
        for head, (page, huge) in to_split(m, space, first, last, shared.splits_whole).items():
            sharing = shared.huge if huge else shared.small
            if not is_shared(m, space, head, PAGES_PER_PMD, page, sharing):
                split_folio(m, task, space, head, finds_zeros)
            elif shared.splits_whole:
                break
    return any(
        frame.kind == "thp"
        for start, end, pte in space.ptes.overlapping(low >> PAGE_SHIFT, high >> PAGE_SHIFT)
        for _, _, frame in m.frames.overlapping(start + pte.delta, end + pte.delta)
    )


def by_page_table(first: int, last: int) -> Iterator[tuple[int, int]]:
    """Cut virtual pages [first, last) where a page table ends."""
    while first < last:
        end = min(last, (first // PAGES_PER_PMD + 1) * PAGES_PER_PMD)
        yield first, end
        first = end


@step
def split_cached(
    m: Machine, task: Task, mm: int, low: int, high: int, shared: SharedFolios
) -> None:
    """Split the folios of files in memory in [low, high) that an advice splits.

    The walk looks at one page table at a time, so what lies across two is mapped in parts.
    """
    space, first, last = m.mm(mm), low >> PAGE_SHIFT, high >> PAGE_SHIFT
    for handle in overlapping(m, space, low, high):
        vma = vma_of(m, task, handle)
        while vma.file:
            page = _first_to_split(m, vma, space, first, last, shared)
            if page is None:
                break
            split_folio_of_file(m, task, vma.file, page)


def _first_to_split(
    m: Machine, vma: Vma, space: Mm, first: int, last: int, shared: SharedFolios
) -> int | None:
    """Return the first page of a file that is in a folio which is to be split."""
    low, high = max(first, vma.start >> PAGE_SHIFT), min(last, vma.end >> PAGE_SHIFT)
    ended = 0  # where a page table ends that a shared page has ended the walk of
    for start, end, pte in space.ptes.overlapping(low, high):
        if pte.kind not in IN_MEMORY:
            continue
        huge = pte.kind == SHARED_HUGE
        sharing, spares_whole = (
            (shared.huge, True) if huge else (shared.small, not shared.splits_whole)
        )
        for page, head, pages in _large_folios(m, start, end, pte.delta):
            whole = head - pte.delta, head - pte.delta + pages
            if page < ended or (
                spares_whole and _is_all_mapped(space, whole, low, high, pte.delta)
            ):
                continue
            if not is_shared(m, space, head, pages, page + pte.delta, sharing):
                return vma.pgoff_of(page << PAGE_SHIFT)
            if shared.splits_whole:
                ended = (page // PAGES_PER_PMD + 1) * PAGES_PER_PMD
    return None


def _large_folios(m: Machine, start: int, end: int, delta: int) -> Iterator[tuple[int, int, int]]:
    """Yield the folios that virtual pages [start, end) map, but for those of one page.

    Of each the first virtual page there, its first frame, and how many pages it has.
    """
    for low, high, frame in m.frames.overlapping(start + delta, end + delta):
        pages = 1 << frame.order
        for head in range(low & -pages, high, pages) if frame.order else ():
            yield max(head, low) - delta, head, pages


def _is_all_mapped(space: Mm, pages: tuple[int, int], low: int, high: int, delta: int) -> bool:
    """Return whether one page table maps all pages of a folio, and all are in [low, high)."""
    first, last = pages
    if not (low <= first and last <= high):
        return False
    mapped = space.ptes.overlapping(first, last)
    in_one_table = first // PAGES_PER_PMD == (last - 1) // PAGES_PER_PMD
    return in_one_table and last - first == sum(
        end - start for start, end, pte in mapped if pte.delta == delta
    )


def to_split(
    m: Machine, space: Mm, first: int, last: int, splits_whole: bool
) -> dict[int, tuple[int, bool]]:
    """Return the huge pages that an advice for virtual pages [first, last) splits, if they may be.

    They come in the order of their addresses, by their first frames; with each the first frame of
    it there, and whether a huge entry maps it. The range is one of one page table. splits_whole:
    see `SharedFolios`.
    """
    runs: list[tuple[int, int, int, bool]] = []
    for low, high, pte in space.ptes.overlapping(first, last):
        if pte.kind not in ("thp", "anon"):
            continue
        here = (low, pte.delta, pte.kind == "thp")
        if runs and runs[-1][1:] == here:
            low = runs.pop()[0]
        runs.append((low, high, pte.delta, here[2]))
    found = dict[int, tuple[int, bool]]()
    for low, high, delta, huge in runs:
        for start, end, frame in m.frames.overlapping(low + delta, high + delta):
            for head in range(start & -PAGES_PER_PMD, end, PAGES_PER_PMD):
                whole = low + delta <= head and head + PAGES_PER_PMD <= high + delta
                if frame.kind == "thp" and (not whole or (splits_whole and not huge)):
                    found.setdefault(head, (max(head, low + delta), huge))
    return found


def split_folio(m: Machine, task: Task, space: Mm, head: int, finds_zeros: bool) -> None:
    """Make 512 pages of a huge page, mapped one by one.

    What small entries map already is unmapped meanwhile, so the peak is noted (try_to_migrate_one).
    """
    tail = head + PAGES_PER_PMD
    mapped = [
        (max(start, head - pte.delta), min(end, tail - pte.delta), pte)
        for start, (end, pte) in space.ptes.data.items()
        if pte.kind in ("thp", "anon") and start + pte.delta < tail and head < end + pte.delta
    ]
    if follows_dirty(m) and not all(pte.clean for _, _, pte in mapped):
        soil(m, head, tail)
    for low, high, frame in m.frames.overlapping(head, tail):
        if not frame.freed_by:
            finds_zeros = finds_zeros and not frame.stays_locked
            small = Frame("anon", frame.refs, frame.maps, forked=frame.forked, dirty=frame.dirty)
            m.frames.set(low, high, small)
    if any(pte.kind == "anon" for _, _, pte in mapped):
        note_peak(m, space)
    for low, high, pte in mapped:
        space.ptes.set(low, high, small_entry(pte))
        if finds_zeros:
            for start, end in _zeros(m, task, space, low, high, pte.delta):
                _map_zero_page(m, task, space, start, end, pte)


def keep_locked(m: Machine, space: Mm, low: int, high: int) -> None:
    """Note that the pages of a range stay locked in memory though their VMA is unlocked.

    A huge page that small entries map does not: splitting its entry in a locked VMA has unlocked
    it.
    """
    _mark_locked(m, space, low, high, True, ("thp",))
    for start, end, pte in space.ptes.overlapping(low >> PAGE_SHIFT, high >> PAGE_SHIFT):
        if pte.kind in ("anon", "file", *IN_MEMORY):
            for at, to, frame in m.frames.overlapping(start + pte.delta, end + pte.delta):
                if frame.kind == pte.kind or pte.kind == SHARED_HUGE:
                    m.frames.set(at, to, change(frame, stays_locked=True))


def unlock(m: Machine, space: Mm, low: int, high: int) -> None:
    """Note that the huge pages with a page in a range are no longer locked in memory.

    Small pages are until they are freed: each lock of theirs is counted, and one is never undone.
    """
    _mark_locked(m, space, low, high, False, ("thp", "anon"))


def _mark_locked(
    m: Machine, space: Mm, low: int, high: int, locked: bool, kinds: tuple[str, ...]
) -> None:
    for start, end, pte in space.ptes.overlapping(low >> PAGE_SHIFT, high >> PAGE_SHIFT):
        if pte.kind not in kinds:
            continue
        first = start + pte.delta & -PAGES_PER_PMD
        last = -(-(end + pte.delta) // PAGES_PER_PMD) * PAGES_PER_PMD
        for at, to, frame in m.frames.overlapping(first, last):
            if frame.kind == "thp" and not frame.freed_by and frame.stays_locked != locked:
                m.frames.set(at, to, change(frame, stays_locked=locked))


def _zeros(
    m: Machine, task: Task, space: Mm, low: int, high: int, delta: int
) -> list[tuple[int, int]]:
    """List the runs of pages that hold zeros and lie in no locked VMA."""
    found = []
    for handle in overlapping(m, space, low << PAGE_SHIFT, high << PAGE_SHIFT):
        vma = vma_of(m, task, handle)
        if vma.flags & VM_LOCKED:
            continue
        at = max(low, vma.start >> PAGE_SHIFT)
        end = min(high, vma.end >> PAGE_SHIFT)
        for start, stop, _ in m.content.overlapping(at + delta, end + delta):
            if at + delta < start:
                found.append((at, start - delta))
            at = stop - delta
        if at < end:
            found.append((at, end))
    return found


def _map_zero_page(m: Machine, task: Task, space: Mm, low: int, high: int, pte: Pte) -> None:
    space.ptes.set(
        low, high, Pte("zero", 0, False, pte.no_access, pte.wp, soft_clean=pte.soft_clean)
    )
    space.add("rss_anon", low - high)
    flush_tlb_range(m, space.mm, low, high, False)
    change_frames(m, task, low + pte.delta, high + pte.delta, refs=-1, maps=-1)
