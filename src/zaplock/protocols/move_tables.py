"""Move the entries of page tables from one place to another, and flush where that is due.

Between taking entries out and dropping the page-table lock the TLB must be flushed, or a truncation
frees a page that the old address still translates to (CVE-2018-18281, eb66ae030829, 4.19): rule
`mremap_flush`.

Source: mm/mremap.c move_page_tables, move_ptes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    PAGE_SHIFT,
    PAGE_SIZE,
    PAGES_PER_PMD,
    PMD_SIZE,
    PUD_SIZE,
)
from zaplock.model.huge_pool import LEVEL_OF
from zaplock.model.pagetable import (
    HUGE,
    alloc_tables,
    clear_present,
    lowest_above,
    split_entries,
    unmap_huge,
)
from zaplock.model.references import soft_dirty
from zaplock.model.shared_huge import KIND as SHARED_HUGE
from zaplock.model.step import Task, step
from zaplock.model.tlb import flush_tlb_range
from zaplock.model.vma import Vma, change, lookup, overlapping
from zaplock.protocols.shortage import no_memory

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.mm import Mm, Pte
    from zaplock.protocols.design import Cx


async def move_page_tables(cx: Cx, address: int, target: int, length: int, huge: bool) -> int:
    """Move the entries of a range, with the flush where the kernel has it; return how much was.

    `huge`: of hugetlb, which goes entry by entry and makes tables only for those that are there.
    """
    if not huge:
        await alloc_moved_tables(cx.mm, address, target, length, cx.design.realigns_moves)
    return await move_entries(cx, address, target, length, True)


@step
def told_as_moved(m: Machine, _task: Task, mm: int, old: int, length: int, huge_size: int) -> int:
    """Return how much of huge pages of hugetlb a kernel takes for moved when all is (to 6.18).

    move_hugetlb_page_tables returns an int, so of 4 GiB or more the upper half is lost, and what it
    skips because no page table is there may count beyond the end. What is told as less than the
    length fails the move with ENOMEM, and only so much is moved back
    (docs/findings/four-gigabytes-moved).
    """
    space, end, at = m.mm(mm), old + length, old
    level = LEVEL_OF[huge_size]
    extent = PAGE_SIZE << 9 * level  # of a table of entries
    while at < end:
        if space.tables[level].at(at // extent) is None:
            at |= extent - huge_size
        at += huge_size
    told = length + at - end & (1 << 32) - 1
    return told if told < 1 << 31 else 1 << 63


async def move_back(cx: Cx, address: int, target: int, length: int) -> None:
    """Take back the entries of a move that has failed; their page tables are still there."""
    await move_entries(cx, target, address, length, False)


async def move_entries(cx: Cx, source: int, target: int, length: int, allocates: bool) -> int:
    """Move entries in steps of the grain, and flush; return how far page tables were to be had."""
    grain = (cx.grain << PAGE_SHIFT) or length or 1
    for at in range(0, length, grain):
        part = min(grain, length - at)
        if allocates and await no_memory(cx):
            length = at
            break
        inside = cx.design.mremap_flush == "inside"
        await move_ptes(cx.mm, source + at, target + at, part, inside)
    if length and cx.design.mremap_flush == "outside":
        await flush_moved(cx.mm, source, length)
    return length


@step
def alloc_moved_tables(
    m: Machine, task: Task, mm: int, old: int, new: int, length: int, realigns: bool
) -> None:
    """Let page tables exist at the new place wherever the old one has some, used or not.

    A table that the range covers as a whole goes along, if its new place is free and nobody watches
    the mapping (which could not be told of it). A huge page of a file that does not move whole is
    mapped no more.
    """
    space = m.mm(mm)
    end = old + length
    address = old
    if realigns and length and may_realign(m, space, old, new, length):
        old, new = old & -PMD_SIZE, new & -PMD_SIZE
    while old < end:
        extent = extent_of(PUD_SIZE, old, new, end)
        if space.tables[2].at(old >> 30) is not None:
            vpn = new >> PAGE_SHIFT
            alloc_tables(m, task, space, vpn, vpn + 1, 3)
            if (
                extent == PUD_SIZE
                and space.tables[2].at(new >> 30) is None
                and not is_watched(m, space, address)
            ):
                move_tables(m, task, space, old, new)
                old, new = old + extent, new + extent
                continue
            extent = extent_of(PMD_SIZE, old, new, end)
            if space.tables[1].at(old >> 21) is not None:
                free = space.tables[1].at(new >> 21) is None
                if extent == PMD_SIZE and free and not is_watched(m, space, address):
                    move_table(m, task, space, old, new)
                alloc_tables(m, task, space, vpn, vpn + 1)
            elif is_huge_of_file(space, old):
                alloc_tables(m, task, space, vpn, vpn + 1, 2)
                if extent != PMD_SIZE:
                    unmap_huge(m, task, space, (old & -PMD_SIZE) >> PAGE_SHIFT)
        old, new = old + extent, new + extent


def is_huge_of_file(space: Mm, address: int) -> bool:
    """Return whether one entry, without a page table, maps a huge page of a file in memory."""
    pte = space.ptes.at(address >> PAGE_SHIFT)
    return pte is not None and pte.kind == SHARED_HUGE


def is_watched(m: Machine, space: Mm, address: int) -> bool:
    """Return whether a userfaultfd monitor watches the mapping at an address."""
    handle = lookup(m, space, address)
    vma = m.vmas[handle] if handle else None
    return isinstance(vma, Vma) and bool(vma.uffd)


def may_realign(m: Machine, space: Mm, old: int, new: int, length: int) -> bool:
    """Return whether a move may begin at the page table's first entry (try_realign_addr, 6.7).

    So the whole table can go along, where both mappings begin at the same place in it, nothing lies
    before them in it, and the move reaches its end.
    """
    inside = old % PMD_SIZE
    if not inside or inside != new % PMD_SIZE or length < PMD_SIZE - inside:
        return False
    for address in (old, new):
        handle = lookup(m, space, address)
        vma = m.vmas[handle] if handle else None
        if not isinstance(vma, Vma) or vma.start != address:
            return False
        if overlapping(m, space, address & -PMD_SIZE, address):
            return False
    return True


def move_tables(m: Machine, task: Task, space: Mm, old: int, new: int) -> None:
    """Take the tables of a whole gigabyte along, the upper one and all below (move_normal_pud)."""
    shift = (new >> 21) - (old >> 21)
    tables = space.tables[1].overlapping(old >> 21, old + PUD_SIZE >> 21)
    space.tables[1].clear(old >> 21, old + PUD_SIZE >> 21)
    space.tables[2].clear(old >> 30, (old >> 30) + 1)
    generation = m.new_handle(task, "table")
    space.tables[2].set(new >> 30, (new >> 30) + 1, generation)
    for low, high, _ in tables:
        space.tables[1].set(low + shift, high + shift, generation)


def move_table(m: Machine, task: Task, space: Mm, old: int, new: int) -> None:
    """Take a whole page table along instead of its entries (move_normal_pmd, move_huge_pmd)."""
    space.tables[1].clear(old >> 21, (old >> 21) + 1)
    space.add("pgtables_bytes", -PAGE_SIZE)


def extent_of(size: int, old: int, new: int, end: int) -> int:
    """Return how far one table serves both places (get_extent)."""
    return min(size - old % size, size - new % size, end - old)


@step
def move_ptes(
    m: Machine, task: Task, mm: int, old: int, new: int, length: int, flush: bool
) -> None:
    """Move entries under both page-table locks.

    Write protection by a userfaultfd, which does not come along, is left behind (since 6.14).
    """
    space = m.mm(mm)
    shift = new - old >> PAGE_SHIFT
    first, last = old >> PAGE_SHIFT, old + length >> PAGE_SHIFT
    loses_wp = is_watched(m, space, old)
    runs = clear_present(m, task, space, first, last)
    if shift % PAGES_PER_PMD:
        runs = [(low, high, split_entries(m, low, pte)) for low, high, pte in runs]
    for low, high, pte in by_table(runs):
        m.spend("copy_pte", high - low)
        if loses_wp and pte.kind == "uffd_wp":
            continue
        alloc_tables(m, task, space, low + shift, high + shift, lowest_above(pte))
        moved = change(pte, delta=pte.delta - shift) if pte.delta else pte
        moved = change(moved, wp=False) if loses_wp and moved.wp else moved
        stays_in_table = pte.kind not in HUGE and space.tables[1].at(low // PAGES_PER_PMD) is None
        moved = moved if stays_in_table else soft_dirty(moved)
        space.ptes.set(low + shift, high + shift, moved)
    if runs and flush:
        flush_tlb_range(m, mm, first, last, False)


def by_table(runs: list[tuple[int, int, Pte]]) -> Iterator[tuple[int, int, Pte]]:
    """Cut runs of entries where a page table ends, if it may matter which of them goes along."""
    for low, high, pte in runs:
        cuts = [low, high]
        if pte.soft_clean:
            cuts[1:1] = range(low - low % PAGES_PER_PMD + PAGES_PER_PMD, high, PAGES_PER_PMD)
        for start, end in pairwise(cuts):
            yield start, end, pte


@step
def flush_moved(m: Machine, _task: Task, mm: int, old: int, length: int) -> None:
    """Flush the old place only after the page-table locks were dropped (to 4.18)."""
    flush_tlb_range(m, mm, old >> PAGE_SHIFT, old + length >> PAGE_SHIFT, False)
