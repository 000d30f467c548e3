"""A munmap that stalls nobody, by cutting: page tables leave the address space whole.

Under one exclusive hold the VMAs go, the page tables that lie whole inside the range are taken out
with one store each, what the range shares with outside tables (at most 511 entries at either end)
is zapped in place, and the TLBs are flushed. From then on the addresses are free: a new mapping may
stand there before the lock is given up, so mmap(MAP_FIXED) and mremap onto a mapping are served as
munmap is. The pages below the cut tables are zapped after the unlock, under no lock.

Whoever finds pages through their file and an address does not find those of a cut, and may find
somebody else's in their place: truncation and hole punching look under the page-table lock whether
the VMA was cut, and wait at the end until nothing cut maps the file (rmap.unmap_mapping_range).

Stands on 6.18. The idea of zapping a detached subtree is CortenMM's ("stray" tables); nothing of
its code is used. Not covered: reclaim and migration, which would merely fail on such pages.
"""

from __future__ import annotations

from errno import EINTR, EINVAL
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT, PAGES_PER_PMD, VM_ACCOUNT, VM_LOCKED, page_align
from zaplock.model.mm import CUT_SHIFT, Cut
from zaplock.model.pagetable import cut_out, zap, zap_cut
from zaplock.model.step import Task, step
from zaplock.model.tlb import (
    gather_tables,
    note_range,
    tlb_gather_mmu,
)
from zaplock.model.vma import account_parts, change, free, read_vma, remove, vma_of
from zaplock.protocols.locking import (
    assert_write_locked,
    mmap_write_lock_killable,
    unlock_after_unmap,
    vma_start_write,
)
from zaplock.protocols.munmap import (
    lookup_and_split,
    munmap_addr_sanity,
    prepare_events,
    settle_special_mapping,
    split_up_to_seal,
)
from zaplock.protocols.seals import any_sealed
from zaplock.protocols.teardown import (
    Handles,
    floor_and_ceiling,
    free_pgd_range,
    raise_mark,
    tlb_finish_mmu,
    unlink_file_vma,
    vm_unacct_memory,
)
from zaplock.protocols.tombstones import gave_way
from zaplock.protocols.userfaultfd import userfaultfd_unmap_complete

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents

CUT = -1
"""In the place of a context in a list of unmap events: a cut that is to be zapped first."""


async def vm_munmap_cut(cx: Cx, start: int, length: int) -> int:
    """The munmap system call: 0, or -EINVAL, -ENOMEM, -EPERM, or -EINTR before anything is done."""
    events: UnmapEvents = []
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    while True:
        if await mmap_write_lock_killable(cx):
            return -EINTR
        waited = await gave_way(cx, start, start + page_align(length), unmaps=True)
        if waited < 0:
            return waited
        if not waited:
            break
    result = await do_munmap_cut(cx, start, length, events, False)
    await unlock_after_unmap(cx, result)
    await unmap_complete(cx, events)
    return result


async def unmap_complete(cx: Cx, events: UnmapEvents) -> None:
    """Do what an unmap has left for after the unlock: zap cuts, then tell monitors."""
    for context, cut, _ in events:
        if context == CUT:
            await finish_cut(cx, cut)
    await userfaultfd_unmap_complete(cx, [event for event in events if event[0] != CUT])


async def do_munmap_cut(
    cx: Cx, start: int, length: int, events: UnmapEvents, downgrade: bool = False
) -> int:
    """Free [start, start + length) under the exclusive hold that the caller keeps; zap later."""
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    end = start + page_align(length)
    if await any_sealed(cx.mm, start, end):
        return await split_up_to_seal(cx, start, end)
    found, handles = await lookup_and_split(cx, start, end)
    if found != 1:
        return found
    for handle in handles:
        await vma_start_write(handle)
    await prepare_events(cx, handles, start, end, events)
    bounds = await floor_and_ceiling(cx.mm, start, end)
    await detach_and_settle(cx.mm, handles)
    for handle in handles:
        await settle_special_mapping(cx, handle)
    batch = await tlb_gather_mmu(cx.mm, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
    await zap_borders(cx.mm, batch, start, end)
    cut = await cut_tables(cx.mm, batch, handles, start, end)
    await free_pgd_range(cx.mm, batch, start, end, bounds)
    await tlb_finish_mmu(cx, batch)
    events.append((CUT, cut, 0))
    return 0


async def finish_cut(cx: Cx, cut: int) -> None:
    """Zap what hangs below cut tables and free them, holding nothing."""
    taken = await read_cut(cx.mm, cut)
    batch = await tlb_gather_mmu(cx.mm, taken.first, taken.last)
    for first, last in await runs_of(cx.mm, cut):
        for at in range(first, last, cx.grain or last - first):
            await zap_cut_range(cx.mm, batch, cut, at, min(at + (cx.grain or last - first), last))
    await gather_cut_tables(batch, taken.tables)
    await tlb_finish_mmu(cx, batch)
    unaccounted = 0
    for handle in taken.handles:
        vma = await read_vma(handle)
        unaccounted += vma.nr_pages if vma.flags & VM_ACCOUNT else 0
        await unlink_file_vma(cx, handle)
        await close_cut_vma(handle)
    await forget_cut(cx.mm, cut)
    if unaccounted:
        await vm_unacct_memory(unaccounted)


@step
def detach_and_settle(m: Machine, task: Task, mm: int, handles: Handles) -> None:
    """Take VMAs out of the tree and the books; those of files are marked for who truncates them."""
    space = m.mm(mm)
    for handle in handles:
        vma = vma_of(m, task, handle)
        assert_write_locked(m, task, vma, "the tree at")
        m.spend("vma_detach")
        remove(m, task, handle)
        m.vmas.put(handle, change(vma_of(m, task, handle), cut=True))
        raise_mark(m, mm, "hiwater_vm", space.count("total_vm"))
        space.add("total_vm", -vma.nr_pages)
        account_parts(space, vma.flags, vma.file, -vma.nr_pages)
        if vma.flags & VM_LOCKED:
            space.add("locked_vm", -vma.nr_pages)


def whole_tables(start: int, end: int) -> tuple[int, int]:
    """Return the virtual pages of [start, end) that lie in page tables wholly inside it."""
    first, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
    low, high = -(-first // PAGES_PER_PMD) * PAGES_PER_PMD, last // PAGES_PER_PMD * PAGES_PER_PMD
    return (low, high) if low < high else (last, last)


@step
def zap_borders(m: Machine, task: Task, mm: int, batch: int, start: int, end: int) -> None:
    """Zap in place what lies in tables that reach out of the range: at most 511 entries a side."""
    first, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
    low, high = whole_tables(start, end)
    space = m.mm(mm)
    raise_mark(m, mm, "hiwater_rss", space.rss)
    zap(m, task, space, batch, first, low)
    zap(m, task, space, batch, high, last)


@step
def cut_tables(
    m: Machine, task: Task, mm: int, batch: int, handles: Handles, start: int, end: int
) -> int:
    """Take the tables wholly inside out of the address space; return the cut."""
    cut = m.new_handle(task, "cut")
    low, high = whole_tables(start, end)
    space = m.mm(mm)
    tables = cut_out(m, space, cut, low, high) if low < high else ()
    if tables:
        note_range(m, batch, low, high)
    space.cuts.put(cut, Cut(low, high, handles, tables))
    return cut


@step
def read_cut(m: Machine, _task: Task, mm: int, cut: int) -> Cut:
    """Return what was cut out."""
    return m.mm(mm).cuts[cut]


@step
def runs_of(m: Machine, _task: Task, mm: int, cut: int) -> tuple[tuple[int, int], ...]:
    """Return the runs of virtual pages that a cut still maps."""
    base, space = cut << CUT_SHIFT, m.mm(mm)
    taken = space.cuts[cut]
    runs = space.cut_ptes.overlapping(base + taken.first, base + taken.last)
    return tuple((low - base, high - base) for low, high, _ in runs)


@step
def zap_cut_range(
    m: Machine, task: Task, mm: int, batch: int, cut: int, first: int, last: int
) -> None:
    """Give up a part of the pages below cut tables."""
    zap_cut(m, task, m.mm(mm), batch, cut, first, last)


@step
def gather_cut_tables(
    m: Machine, _task: Task, batch: int, tables: tuple[tuple[int, int, int, int], ...]
) -> None:
    """Gather cut tables to be returned."""
    for level, first, last, generation in tables:
        gather_tables(m, batch, level, (first, last, generation))


@step
def close_cut_vma(m: Machine, task: Task, handle: int) -> None:
    """Close and free a VMA that is in no book any more; who waits to truncate looks again."""
    file = vma_of(m, task, handle).file
    free(m, task, handle)
    m.wake(("cut", file))


@step
def forget_cut(m: Machine, _task: Task, mm: int, cut: int) -> None:
    """Nothing is left of a cut."""
    m.mm(mm).cuts.drop(cut)
