"""munmap, mmap, faults and /proc/PID/cmdline that hold only the range they work on.

For designs whose locks have ranges (`protocols.address_locks`). What a slot or a page-table entry
would know by itself is looked up by address in each step, under the hold of that address: nothing
is kept over a step that another range's operation could split or merge. New mappings stay apart
from their neighbours, which others hold.

A page table that reaches out of the range goes when nothing is mapped by it any more and no mapping
needs it, in one step, as under the page-table lock.

Everything else (fork, mremap, brk, madvise, ...) holds all of the address space.
"""

from __future__ import annotations

from errno import EFAULT, EINTR, EINVAL, ENOMEM, EPERM
from signal import SIGSEGV
from typing import TYPE_CHECKING

from zaplock.model.fault_results import ALONE, FILE_WAITS, USERFAULT
from zaplock.model.flags import (
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_SHARED,
    page_align,
)
from zaplock.model.mm import Mm
from zaplock.model.page_copy import PageCopy, finish_copy
from zaplock.model.step import Task, step
from zaplock.model.tlb import gather_tables
from zaplock.model.vma import (
    Vma,
    anon_vma_prepare,
    lookup,
    overlapping,
    split_unlimited,
    vma_of,
)
from zaplock.protocols.address_locks import ROOT, give, take
from zaplock.protocols.after_unlock import unmap_complete
from zaplock.protocols.fault import (
    RETRY,
    access_error,
    alloc_fault_tables,
    fault_entry,
    fault_growing_stack,
    wait_for_file,
)
from zaplock.protocols.mmap import do_mmap, find_place
from zaplock.protocols.munmap import at_map_limit, munmap_addr_sanity
from zaplock.protocols.populate import mm_populate
from zaplock.protocols.proc import read_arg_bounds, remote_entry
from zaplock.protocols.seals import any_sealed
from zaplock.protocols.shortage import no_memory
from zaplock.protocols.split import cut_at_edges
from zaplock.protocols.table_walk import table_over
from zaplock.protocols.teardown import (
    Handles,
    begin_unmap,
    close_vmas,
    end_unmap,
    free_pgtables,
    leave_tree_and_books,
    tlb_finish_mmu,
    unmap_vmas,
    vm_unacct_memory,
)
from zaplock.protocols.userfaultfd import handle_userfault, userfaultfd_unmap_prep

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents

GROWS = 4
"""Result of a fault below a stack: all of the address space is needed."""


async def munmap_ranged(cx: Cx, start: int, length: int) -> int:
    """The munmap system call under a hold of its own range."""
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    end = start + page_align(length)
    events: UnmapEvents = []
    if await take(cx, cx.mm, start, end, killable=True):
        return -EINTR
    result = await do_munmap_ranged(cx, start, length, events)
    await give(cx, cx.mm, start, end)
    await unmap_complete(cx, events)
    return min(result, 0)


async def do_munmap_ranged(
    cx: Cx, start: int, length: int, events: UnmapEvents, _downgrade: bool = False
) -> int:
    """Unmap under a hold of at least this range that the caller has."""
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    end = start + page_align(length)
    if await any_sealed(cx.mm, start, end):
        return -EPERM
    if await is_inside_one(cx.mm, start, end) and await at_map_limit(cx):
        return -ENOMEM
    if await no_memory(cx):  # for splits and events: what was taken is not put back
        return -ENOMEM
    error, handles = await take_range(cx.mm, start, end)
    if error or not handles:
        return error
    if cx.design.uffd_unmap:
        events.extend(await userfaultfd_unmap_prep(handles, start, end))
    batch = await begin_unmap(cx.mm, start, end)
    await unmap_vmas(cx, batch, handles, start, end, False)
    await free_pgtables(cx, batch, handles, start, end, (start, end))
    await free_border_tables(cx.mm, batch, start, end)
    await tlb_finish_mmu(cx, batch)
    await end_unmap(cx.mm, batch)
    unaccounted = await close_vmas(handles)
    if unaccounted:
        await vm_unacct_memory(unaccounted)
    return 0


@step
def is_inside_one(m: Machine, task: Task, mm: int, start: int, end: int) -> bool:
    """Look whether one mapping reaches out of a range on both sides."""
    handles = overlapping(m, m.mm(mm), start, end)
    if len(handles) != 1:
        return False
    vma = vma_of(m, task, handles[0])
    return vma.start < start and end < vma.end


@step
def take_range(m: Machine, task: Task, mm: int, start: int, end: int) -> tuple[int, Handles]:
    """Take what is mapped in [start, end) out of the map and the books: 0 or an errno, and what."""
    m.spend("vma_find")
    space = m.mm(mm)
    if error := cut_at_edges(m, task, space, start, end, split_unlimited):
        return error, ()
    handles = tuple(overlapping(m, space, start, end))
    for handle in handles:
        leave_tree_and_books(m, task, handle)
    return 0, handles


@step
def free_border_tables(m: Machine, task: Task, mm: int, gather: int, start: int, end: int) -> None:
    """Unlink the page tables that reach out of [start, end) and that nobody needs any more."""
    space = m.mm(mm)
    for level in space.tables:
        shift = 9 * level
        for index in {start >> PAGE_SHIFT + shift, end - 1 >> PAGE_SHIFT + shift}:
            low, high = index << shift, index + 1 << shift
            below = [at for at in space.tables if at < level]
            needed = space.ptes.any_in(low, high) or any(
                space.tables[at].any_in(low >> 9 * at, high >> 9 * at) for at in below
            )
            if not needed and not overlapping(m, space, low << PAGE_SHIFT, high << PAGE_SHIFT):
                clear_one(m, space, gather, level, index)


def clear_one(m: Machine, space: Mm, gather: int, level: int, index: int) -> None:
    """Unlink one page table, if it is there."""
    run = space.tables[level].run_at(index)
    if run is not None:
        gather_tables(m, gather, level, (index, index + 1, run[2]))
        space.tables[level].clear(index, index + 1)
        if level < ROOT:
            space.add("pgtables_bytes", -PAGE_SIZE)


async def page_fault_ranged(cx: Cx, address: int, write: bool) -> int:
    """Handle a fault under a hold of its page alone, shared where the design has shared holds."""
    low = address & PAGE_MASK
    if await take(cx, cx.mm, low, low + PAGE_SIZE, False, cx.design.fault_killable):
        return -SIGSEGV
    result, vma = await fault_in_slot(cx, cx.mm, address, write)
    await give(cx, cx.mm, low, low + PAGE_SIZE, False)
    if result == GROWS:
        return await fault_growing_stack(cx, address, write)
    if result == USERFAULT and vma is not None:
        await handle_userfault(cx, vma.uffd, address)
        return RETRY
    if result in FILE_WAITS and vma is not None:
        await wait_for_file(vma, address, result)
        return RETRY
    return result


async def fault_in_slot(cx: Cx, mm: int, address: int, write: bool) -> tuple[int, Vma | None]:
    """Make a page accessible whose range the caller holds, if there is memory for that."""
    if await no_memory(cx):
        return -ENOMEM, None
    return await fault_slot(mm, address, write, cx.design.replaces_huge_zero)


@step
def fault_slot(
    m: Machine, task: Task, mm: int, address: int, write: bool, replaces_huge_zero: bool
) -> tuple[int, Vma | None]:
    """Make a page accessible whose range is held: the result, and what is mapped there."""
    m.spend("vma_find")
    handle = lookup(m, m.mm(mm), address)
    if not handle:
        return -SIGSEGV, None
    vma = vma_of(m, task, handle)
    if address < vma.start:
        return (GROWS if vma.flags & VM_GROWSDOWN else -SIGSEGV), None
    if access_error(vma, write):
        return -SIGSEGV, None
    seen = None
    if not vma.flags & VM_HUGETLB:
        while seen is None:
            seen = alloc_fault_tables.run(m, task, handle, address, write)
    if not vma.flags & VM_SHARED and (write or not vma.file):
        anon_vma_prepare.run(m, task, handle)
    rules = (replaces_huge_zero, True, False)
    result = fault_entry.run(m, task, handle, address, write, *rules, False, seen)
    if result == ALONE:
        result = fault_entry.run(m, task, handle, address, write, *rules, True, seen)
    if isinstance(result, PageCopy):
        found = vma_of(m, task, handle)
        finish_copy(m, task, found, address, result, m.content.at(result.frame) or 0)
        return 0, vma
    return result, vma


async def mmap_ranged(
    cx: Cx, address: int, length: int, prot: int, flags: int, file: int, offset: int
) -> int:
    """The mmap system call: look for a gap under no lock, hold it, and look again."""
    events: UnmapEvents = []
    size = page_align(length) % (1 << 64)
    pgoff = offset >> PAGE_SHIFT
    fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)
    if not size or (fixed and address & ~PAGE_MASK):
        return (await do_mmap(cx, address, length, prot, flags, file, pgoff, events))[0]
    while True:
        placed = address
        if not fixed:
            placed = await find_place(cx, address, size, flags, file, pgoff)
            if placed < 0:
                return placed
        if await take(cx, cx.mm, placed, placed + size, killable=True):
            return -EINTR
        if fixed or await is_free(cx.mm, placed, placed + size):
            break
        await give(cx, cx.mm, placed, placed + size)
    there = flags if fixed else flags | MAP_FIXED
    result, populate = await do_mmap(cx, placed, length, prot, there, file, pgoff, events)
    await give(cx, cx.mm, placed, placed + size)
    await unmap_complete(cx, events)
    if populate and result >= 0:
        await mm_populate(cx, result, result + size)
    return result


@step
def is_free(m: Machine, _task: Task, mm: int, start: int, end: int) -> bool:
    """Look again, now that it is held, whether nothing is mapped in a range."""
    return not overlapping(m, m.mm(mm), start, end)


async def proc_cmdline_ranged(cx: Cx, mm: int) -> int:
    """Read /proc/PID/cmdline under a hold of the page that the arguments are in.

    As in `fixup_user_fault` a page that has to be read is waited for under the hold.
    """
    address = await read_arg_bounds(mm)
    low = address & PAGE_MASK
    if await take(cx, mm, low, low + PAGE_SIZE, write=False, killable=True):
        return 0
    tag = await remote_slot(mm, address)
    if tag == -EFAULT:
        result, vma = await fault_in_slot(cx, mm, address, False)
        while result in FILE_WAITS and vma is not None:
            await wait_for_file(vma, address, result)
            result, vma = await fault_in_slot(cx, mm, address, False)
        tag = await remote_slot(mm, address)
    await give(cx, mm, low, low + PAGE_SIZE, write=False)
    return max(tag, 0)


@step
def remote_slot(m: Machine, task: Task, mm: int, address: int) -> int:
    """Return the tag of a mapped page whose range is held, -EFAULT where nothing is there."""
    handle = lookup(m, m.mm(mm), address)
    if not handle or vma_of(m, task, handle).start > address:
        return -EFAULT
    return remote_entry.run(m, task, table_over(m, mm, address, True), address)
