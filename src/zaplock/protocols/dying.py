"""A munmap that stalls nobody, by tombstones: the zap runs under no lock of the address space.

Under one short exclusive hold the VMAs go out of the tree, a tombstone takes their place (the gap
search sees it as occupied, a look-up as a hole) and the books are settled. Then, holding nothing:
wait for those who still read-lock one of the VMAs, zap, flush, leave the rmap, free the page tables
whose whole span lies inside, close. A second exclusive hold frees the page tables that the range
shares with what is outside it, and takes the tombstone away.

Who needs a dying range (a second munmap, MAP_FIXED, mremap onto it, a growing heap or stack, an
mmap that finds no other gap) waits for it holding nothing. It neither fails nor returns early.

Nothing here waits, or works on a number of pages without a bound, under the exclusive lock: a VMA
that has to be split is drained of its readers before (`tombstones.gave_way`).

Stands on 6.18. The split into gather and complete is vms_gather_munmap_vmas and
vms_complete_munmap_vmas (6.12); keeping VMA readers out without waiting for them is half of
__vma_start_write. Not covered: hugetlb page-table sharing, and drivers whose close() wants the
mmap_lock.
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT, page_align
from zaplock.model.rwsem import down_write
from zaplock.model.step import Task, step
from zaplock.model.tlb import tlb_gather_mmu
from zaplock.model.vma import change, following, lookup, previous, vma_of
from zaplock.protocols.locking import UNLOCKED, mmap_write_unlock
from zaplock.protocols.munmap import (
    do_vmi_align_munmap,
    munmap_addr_sanity,
    vm_munmap,
    vms_gather_munmap_vmas,
)
from zaplock.protocols.teardown import (
    Bounds,
    Handles,
    close_vmas,
    free_pgd_range,
    leave_tree_and_books,
    tlb_finish_mmu,
    unmap_region,
    vm_unacct_memory,
)
from zaplock.protocols.tombstones import readers_gone

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents

TOP = 1 << 63
CHUNK = 64
"""VMAs that vm_munmap_chunked takes under one hold."""


async def do_munmap_dying(
    cx: Cx, start: int, length: int, events: UnmapEvents, downgrade: bool = False
) -> int:
    """Unmap under the exclusive lock that the caller has (after gave_way); UNLOCKED if asked.

    Without `downgrade` the caller needs the range at once and under this hold: zaps as 6.18 does.
    """
    if not downgrade:
        return await do_vmi_align_munmap(cx, start, length, events, False)
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    end = start + page_align(length)
    found, handles = await vms_gather_munmap_vmas(cx, start, end, events, False)
    if found != 1:
        return found
    await bury(cx.mm, handles, start, end)
    await mmap_write_unlock(cx)
    unaccounted = await digest(cx, handles, start, end)
    await down_write(cx.mmap_lock)
    await erase(cx, start, end)
    if unaccounted:
        await vm_unacct_memory(unaccounted)
    await mmap_write_unlock(cx)
    return UNLOCKED


async def vm_munmap_chunked(cx: Cx, start: int, length: int) -> int:
    """munmap of a range CHUNK VMAs at a time, an exclusive hold each.

    Bounds the hold, which otherwise grows with the number of VMAs. It costs what munmap promises: a
    piece that fails (a sealed VMA, a split at the limit of VMAs) leaves those before it unmapped,
    and others may map in between.
    """
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    end = start + page_align(length)
    at = start
    while at < end:
        until = await end_of_chunk(cx.mm, at, end)
        result = await vm_munmap(cx, at, until - at)
        if result < 0:
            return result
        at = until
    return 0


@step
def end_of_chunk(m: Machine, task: Task, mm: int, start: int, end: int) -> int:
    """Return where CHUNK VMAs of [start, end) end, under no lock: no more than a wish."""
    space = m.mm(mm)
    at = start
    for _ in range(CHUNK):
        handle = lookup(m, space, at)
        if not handle or vma_of(m, task, handle).end >= end:
            return end
        at = vma_of(m, task, handle).end
    return at


async def digest(cx: Cx, handles: Handles, start: int, end: int) -> int:
    """Zap and free what nobody can find any more, holding nothing; return pages to give back."""
    for handle in handles:
        await readers_gone(handle)
    await unmap_region(cx, handles, start, end, (start, end))
    return await close_vmas(handles)


async def erase(cx: Cx, start: int, end: int) -> None:
    """Under write: free the page tables shared with the outside, and take the tombstone away."""
    bounds = await bounds_beside_tombstones(cx.mm, start, end)
    batch = await gather_tables_of(cx.mm, start, end)
    await free_pgd_range(cx.mm, batch, start, end, bounds)
    await tlb_finish_mmu(cx, batch)
    await take_tombstone(cx.mm, start)


@step
def bury(m: Machine, task: Task, mm: int, handles: Handles, start: int, end: int) -> None:
    """Put a tombstone over [start, end) in the place of its VMAs, and settle the books.

    Readers that are inside a VMA go on until they leave it; new ones see that it is detached.
    """
    for handle in handles:
        leaving = m.vma_readers.get(handle, ())
        m.vmas.put(handle, change(leave_tree_and_books(m, task, handle), leaving=leaving))
    m.mm(mm).dying.put(start, (end, m.new_handle(task, "tombstone")))


@step
def gather_tables_of(m: Machine, task: Task, mm: int, start: int, end: int) -> int:
    """Begin a gather for page tables alone."""
    return tlb_gather_mmu.run(m, task, mm, start >> PAGE_SHIFT, end >> PAGE_SHIFT)


@step
def bounds_beside_tombstones(m: Machine, task: Task, mm: int, start: int, end: int) -> Bounds:
    """Return floor and ceiling of the page-table freeing: VMAs and other tombstones both count."""
    space = m.mm(mm)
    before, behind = previous(space, start), following(space, end)
    floor = vma_of(m, task, before).end if before else 0
    ceiling = vma_of(m, task, behind).start if behind else 0
    left, right = space.dying.before(start), space.dying.at_or_after(end)
    if left is not None:
        floor = max(floor, space.dying[left][0])
    if right is not None:
        ceiling = min(ceiling or TOP, right)
    return floor, ceiling


@step
def take_tombstone(m: Machine, _task: Task, mm: int, start: int) -> None:
    """Give the addresses back; whoever waits for them looks again."""
    m.mm(mm).dying.drop(start)
    m.wake(("dying", mm))
