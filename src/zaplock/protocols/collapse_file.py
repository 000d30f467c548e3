"""MADV_COLLAPSE of a file in memory: its pages become a huge one in the page cache, then mapped.

Both without the mmap_lock first: the pages of 2 MiB are unmapped wherever they are, copied, and
replaced in the cache, holes filled; whoever faults meanwhile waits for a page. Where a mapping has
nothing of its own in these 2 MiB, its page table goes, so that its next fault can map the huge page
by one entry. Then this mapping does so at once, under the mmap_lock, held for read since 6.6
(`collapse_maps_shared`). To 6.5 only this mapping's page table goes (`collapse_retracts_all`), and
one that has none yet is not mapped. The end of the file is no bound. Where a hole would be filled
that a userfaultfd waits for, the pages stay small, though unmapped.

Source: mm/khugepaged.c hpage_collapse_scan_file, collapse_file, retract_page_tables,
collapse_pte_mapped_thp (6.18). Not covered: files of a file system (CONFIG_READ_ONLY_THP_FOR_FS).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.dirty import soil_file
from zaplock.model.file_fault import stays_writable
from zaplock.model.files import charge_pages, i_mmap_lock
from zaplock.model.flags import (
    PAGE_SHIFT,
    PAGE_SIZE,
    PAGES_PER_PMD,
    PMD_SIZE,
    PUD_SHIFT,
    VM_MAYBE_GUARD,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
)
from zaplock.model.frames import change_frames
from zaplock.model.pagetable import ABSENT, drop_entries
from zaplock.model.rwsem import (
    down_read,
    down_write,
    down_write_trylock,
    up_read,
    up_write,
)
from zaplock.model.shared_huge import (
    KIND,
    ORDER,
    collapsed_entry,
    fill_with_zeroes,
    fits,
    is_fallocated,
    map_huge,
    new_folio,
    order_at,
    unmap_pages,
)
from zaplock.model.step import Task, step
from zaplock.model.swap import is_swapped, swap_in_cached
from zaplock.model.tlb import flush_tlb_range
from zaplock.model.vma import lookup, vma_of

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.mm import Mm
    from zaplock.protocols.design import Cx

DONE, FITS, SKIPPED, FAILED, BUSY, PINNED = range(6)
"""What a collapse of 2 MiB comes to. After FAILED and BUSY the call ends."""


async def collapse_file(cx: Cx, file: int, pgoff: int, address: int) -> int:
    """Collapse the 2 MiB of a file from page `pgoff` on, mapped at `address`; no lock is held."""
    found = await replace_by_huge_page(file, pgoff)
    if found == FITS and not cx.design.collapse_retracts_all:
        return await map_in_its_place(cx, file, pgoff, address)
    if found == FITS:
        await down_read(i_mmap_lock(file))
        await retract_page_tables(file, pgoff, cx.design.guards)
        await up_read(i_mmap_lock(file))
    if found not in (FITS, DONE):
        return found
    shared = cx.design.collapse_maps_shared
    await (down_read if shared else down_write)(cx.mmap_lock)
    found = await map_collapsed(cx.mm, address, cx.design.collapse_makes_tables)
    await (up_read if shared else up_write)(cx.mmap_lock)
    return found


async def map_in_its_place(cx: Cx, file: int, pgoff: int, address: int) -> int:
    """Take only this mapping's page table away, and map what is now a huge page (to 6.5)."""
    await down_write(i_mmap_lock(file))
    if await down_write_trylock(cx.mmap_lock):
        found = await retract_own(cx.mm, file, pgoff, address)
        await up_write(cx.mmap_lock)
        await up_write(i_mmap_lock(file))
        return found
    await up_write(i_mmap_lock(file))
    await down_write(cx.mmap_lock)
    found = await map_collapsed(cx.mm, address, cx.design.collapse_makes_tables)
    await up_write(cx.mmap_lock)
    return found


@step
def retract_own(m: Machine, task: Task, mm: int, file: int, pgoff: int, address: int) -> int:
    """Map a huge page of a file in the place of a page table, which goes with what is in it.

    Where there is none, the call goes on if the table above is missing, too, and else ends.
    """
    space, first = m.mm(mm), address >> PAGE_SHIFT
    handle = lookup(m, space, address)
    vma = vma_of(m, task, handle) if handle else None
    if (
        vma is None
        or vma.file != file
        or not vma.start <= address
        or vma.pgoff_of(address) != pgoff
    ):
        return FAILED
    if vma.anon_vma or not fits(vma, address):
        return FAILED
    run = space.ptes.at(first)
    if run is not None and run.kind == KIND:
        return DONE
    if space.tables[1].at(first // PAGES_PER_PMD) is None:
        return SKIPPED if space.tables[2].at(address >> PUD_SHIFT) is None else FAILED
    if vma.flags & VM_UFFD_WP:
        return SKIPPED
    retract(m, space, address)
    pfn = pgoff + (m.page_cache(file).at(pgoff) or 0)
    entry = collapsed_entry(m, stays_writable(m, vma, "shmem"))
    return DONE if map_huge(m, task, vma, first, pfn, entry) else FAILED


@step
def replace_by_huge_page(m: Machine, task: Task, file: int, first: int) -> int:
    """Copy the pages of 2 MiB of a file into a huge page, and cache that instead.

    DONE where one is cached. One step, since the pages are locked all the while.
    """
    last = first + PAGES_PER_PMD
    cached = m.page_cache(file).overlapping(first, last)
    for low, high, delta in cached:
        for _, _, frame in m.frames.overlapping(low + delta, high + delta):
            if frame.kind == "swap":
                continue
            if frame.order == ORDER:
                return DONE
            if frame.refs != frame.maps + 1:
                return PINNED
    if not cached:
        return FAILED
    size = -(-m.files[file].size >> PAGE_SHIFT)
    for low, high, delta in cached:
        for pgoff in range(low, high):
            if is_swapped(m, pgoff + delta):
                swap_in_cached(m, pgoff + delta)
            if is_fallocated(m, pgoff + delta):
                if pgoff >= size:  # that far nobody is given it
                    unmap_pages(m, task, file, first, pgoff)
                    return FAILED
                fill_with_zeroes(m, pgoff + delta)
    unmap_pages(m, task, file, first, last)
    missing = PAGES_PER_PMD - sum(high - low for low, high, _ in cached)
    if missing and is_waited_for(m, task, file, first, last):
        return BUSY
    charge_pages(m, file, missing)
    new = new_folio(m, task)
    for low, high, delta in cached:
        for begin, end, tag in m.content.overlapping(low + delta, high + delta):
            shift = new - first - delta
            m.content.set(begin + shift, end + shift, tag)
    m.page_cache(file).set(first, last, new - first)
    soil_file(m, new, new + PAGES_PER_PMD)
    for low, high, delta in cached:
        change_frames(m, task, low + delta, high + delta, refs=-1)
    m.spend("fault_thp")
    return FITS


def is_waited_for(m: Machine, task: Task, file: int, first: int, last: int) -> bool:
    """Return whether a userfaultfd waits for missing pages among some of a file, or the next one.

    That one, page `last`, Linux takes along: the tree that it asks has closed intervals.
    """
    for handle in m.i_mmap(file):
        vma = vma_of(m, task, handle)
        if vma.flags & VM_UFFD_MISSING and vma.pgoff <= last and first < vma.pgoff + vma.nr_pages:
            return True
    return False


@step
def retract_page_tables(m: Machine, task: Task, file: int, pgoff: int, guards: bool) -> None:
    """Take the page tables away that mapped what is now a huge page and have nothing else."""
    for handle in m.i_mmap(file):
        vma = vma_of(m, task, handle)
        address = vma.start + (pgoff - vma.pgoff << PAGE_SHIFT)
        if vma.anon_vma or vma.flags & VM_UFFD_WP or not fits(vma, address) or address % PMD_SIZE:
            continue
        if guards and vma.flags & VM_MAYBE_GUARD:
            continue
        retract(m, m.mm(vma.mm), address)


def retract(m: Machine, space: Mm, address: int) -> None:
    """Free the page table of 2 MiB with what markers are in it, if there is one."""
    first = address >> PAGE_SHIFT
    if space.tables[1].at(first // PAGES_PER_PMD) is None:
        return
    space.ptes.clear(first, first + PAGES_PER_PMD)
    space.tables[1].clear(first // PAGES_PER_PMD, first // PAGES_PER_PMD + 1)
    space.add("pgtables_bytes", -PAGE_SIZE)
    flush_tlb_range(m, space.mm, first, first + PAGES_PER_PMD, True)


@step
def map_collapsed(m: Machine, task: Task, mm: int, address: int, makes_tables: bool) -> int:
    """Map the huge page that a file has, in the place of a page table with its pages or nothing.

    makes_tables: also where the table above is missing.
    """
    space, first = m.mm(mm), address >> PAGE_SHIFT
    last = first + PAGES_PER_PMD
    handle = lookup(m, space, address)
    vma = vma_of(m, task, handle) if handle else None
    if vma is None or not vma.file or not vma.start <= address <= vma.end - PMD_SIZE:
        return FAILED
    runs = space.ptes.overlapping(first, last)
    if runs and runs[0][2].kind == KIND:
        return DONE
    if not fits(vma, address):
        return FAILED
    pgoff = vma.pgoff_of(address)
    delta = m.page_cache(vma.file).at(pgoff)
    if vma.flags & VM_UFFD_WP or delta is None or order_at(m, pgoff + delta) != ORDER:
        return SKIPPED
    if not makes_tables and space.tables[2].at(address >> PUD_SHIFT) is None:
        return SKIPPED
    shift = pgoff + delta - first
    for _, _, pte in runs:
        if pte.kind in ABSENT:
            return SKIPPED
        if pte.kind != "shmem" or pte.delta != shift:
            return FAILED
    for low, high, pte in runs:
        drop_entries(m, task, space, low, high, pte)
    retract(m, space, address)
    entry = collapsed_entry(m, stays_writable(m, vma, "shmem"))
    return DONE if map_huge(m, task, vma, first, first + shift, entry) else FAILED
