"""munmap, kernel by kernel: who holds the lock how while what is done.

All of them do the same: check, find and split, detach, zap, free page tables, account, free. They
differ in where the exclusive hold ends. Each function reads like the one of its kernel:

    do_munmap                 to 4.19: everything under write
    do_munmap_zap_rlock       the RFC, v6: special mappings dealt with, then under read
    do_munmap_4_20            4.20 to 6.0: under read when asked to (dd2283f2605e, 246c320a8cfe)
    do_mas_align_munmap       6.1 to 6.3: the maple tree; clearing it is the point of no return
    do_vmi_align_munmap       6.4 on: gather, clear, complete; VMAs write-locked one by one

The system call is `vm_munmap`, for the RFC `vm_munmap_zap_rlock`.
"""

from __future__ import annotations

from errno import EINTR, EINVAL, ENOMEM, EPERM
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    PAGE_MASK,
    VM_GROWSDOWN,
    VM_GROWSUP,
    VM_HUGETLB,
    VM_LOCKED,
    VM_PAT,
    VM_SEALED,
    page_align,
)
from zaplock.model.step import Task, step
from zaplock.model.vma import (
    find_vma,
    find_vmas,
    following,
    previous,
    read_vma,
    vma_of,
)
from zaplock.protocols.after_unlock import unmap_complete
from zaplock.protocols.arch_hooks import arch_unmap
from zaplock.protocols.locking import (
    mmap_read_unlock,
    mmap_write_downgrade,
    mmap_write_lock_killable,
    mmap_write_unlock,
    unlock_after_unmap,
    vma_start_write,
)
from zaplock.protocols.seals import any_sealed, seal_in_range
from zaplock.protocols.shortage import no_memory
from zaplock.protocols.split import cut_at
from zaplock.protocols.teardown import (
    Bounds,
    Handles,
    add_counter,
    clear_mayshare,
    detach_vmas_to_be_unmapped,
    floor_and_ceiling,
    munmap_mlock_vma,
    read_counter,
    remove_vma_list,
    unmap_region,
    untrack_pfn,
    uprobe_munmap,
)
from zaplock.protocols.tombstones import gave_way
from zaplock.protocols.userfaultfd import userfaultfd_unmap_complete, userfaultfd_unmap_prep

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents


def munmap_addr_sanity(cx: Cx, start: int, length: int) -> bool:
    """Return whether a range may be asked for at all; needs no lock."""
    task_size = cx.limits.task_size
    if start & ~PAGE_MASK or start > task_size or length > task_size - start:
        return False
    return page_align(length) != 0


async def vm_munmap(cx: Cx, start: int, length: int) -> int:
    """The munmap system call. -EINTR if killed while waiting for the lock.

    do_munmap says what it has left of the hold, and the unlock goes by that.
    """
    events: UnmapEvents = []
    end = start + page_align(length) if munmap_addr_sanity(cx, start, length) else start
    while True:
        if await mmap_write_lock_killable(cx):
            return -EINTR
        waited = await gave_way(cx, start, end, unmaps=True)
        if waited < 0:
            return waited
        if not waited:
            break
    lets_go = cx.design.munmap_downgrades or cx.design.tombstones or cx.design.lazy_flush
    result = await cx.design.do_munmap(cx, start, length, events, lets_go)
    await unlock_after_unmap(cx, result)
    await unmap_complete(cx, events)
    return min(result, 0)


async def munmap_lookup_vma(cx: Cx, start: int, end: int) -> tuple[int, Handles]:
    """Find the VMAs of [start, end) and split those that reach out of it.

    Returns (1, handles), (0, ()) where nothing is mapped, or an error and (). A split that would
    leave a hole in the middle needs room below max_map_count; the splits themselves may go one over
    it, since the unmap takes them away again.
    """
    first = await find_vma(cx.mm, start)
    if not first:
        return 0, ()
    vma = await read_vma(first)
    if vma.start >= end:
        return 0, ()
    if start > vma.start:
        if end < vma.end and await at_map_limit(cx):
            return -ENOMEM, ()
        new = await cut_at(cx, first, vma, start, True, limited=False)
        if new < 0:
            return new, ()
    last = await find_vma(cx.mm, end)
    if last:
        vma = await read_vma(last)
        if end > vma.start:
            new = await cut_at(cx, last, vma, end, True, limited=False)
            if new < 0:
                return new, ()
    return 1, await find_vmas(cx.mm, start, end)


async def do_munmap(
    cx: Cx, start: int, length: int, events: UnmapEvents, _downgrade: bool = False
) -> int:
    """4.9 and 4.18: all of it under write. Returns 0 or -EINVAL, -ENOMEM."""
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    end = start + page_align(length)
    found, handles = await munmap_lookup_vma(cx, start, end)
    if found != 1:
        return found
    if await prepare_events(cx, handles, start, end, events):
        return -ENOMEM
    bounds = await floor_and_ceiling(cx.mm, start, end)
    if await read_counter(cx.mm, "locked_vm"):
        await munmap_mlock_vma(cx, handles)
    await detach_vmas_to_be_unmapped(handles)
    await unmap_region(cx, handles, start, end, bounds)
    await arch_unmap(cx, start, end)
    await remove_vma_list(cx, handles)
    return 0


async def vm_munmap_zap_rlock(cx: Cx, start: int, length: int) -> int:
    """The RFC's system call: unlocks inside, then tells the monitors."""
    events: UnmapEvents = []
    result = await do_munmap_zap_rlock(cx, start, length, events)
    await userfaultfd_unmap_complete(cx, events)
    return result


async def do_munmap_zap_rlock(cx: Cx, start: int, length: int, events: UnmapEvents) -> int:
    """The RFC, v6: detach and deal with special mappings under write, zap under read."""
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    end = start + page_align(length)
    if await mmap_write_lock_killable(cx):
        return -EINTR
    result, handles = await munmap_lookup_vma(cx, start, end)
    if result == 1:
        result = await prepare_events(cx, handles, start, end, events)
        if not result:
            return await zap_rlock(cx, handles, start, end)
    await mmap_write_unlock(cx)
    return result


async def zap_rlock(cx: Cx, handles: Handles, start: int, end: int) -> int:
    """The part of do_munmap_zap_rlock from which there is no way back."""
    if await read_counter(cx.mm, "locked_vm"):
        await munmap_mlock_vma(cx, handles)
    await detach_vmas_to_be_unmapped(handles)
    for handle in handles:
        await settle_special_mapping(cx, handle)
    await mmap_write_downgrade(cx)
    bounds = await floor_and_ceiling(cx.mm, start, end)
    await unmap_region(cx, handles, start, end, bounds, True)
    await arch_unmap(cx, start, end)
    await remove_vma_list(cx, handles)
    await mmap_read_unlock(cx)
    return 0


async def settle_special_mapping(cx: Cx, handle: int) -> None:
    """Do under write what the zap would have to change flags for."""
    vma = await read_vma(handle)
    if vma.file:
        await uprobe_munmap(handle, vma.start, vma.end)
    if vma.flags & VM_PAT:
        await untrack_pfn(handle)
    if vma.flags & VM_HUGETLB and cx.design.clears_mayshare:
        await clear_mayshare(handle)


async def do_munmap_4_20(
    cx: Cx, start: int, length: int, events: UnmapEvents, downgrade: bool = False
) -> int:
    """4.20 to 6.0 (__do_munmap): as 4.18 up to the detach, then under read if asked.

    Returns 1 if so. From 5.8 on it stays under write beside a VMA that might grow into the range
    meanwhile; from 5.18 on pages are munlocked as their rmap goes, and only counted here.
    """
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    end = start + page_align(length)
    if cx.design.arch_unmap == "first":
        await arch_unmap(cx, start, end)
    found, handles = await munmap_lookup_vma(cx, start, end)
    if found != 1:
        return found
    if await prepare_events(cx, handles, start, end, events):
        return -ENOMEM
    if cx.design.munlock_pass and await read_counter(cx.mm, "locked_vm"):
        await munmap_mlock_vma(cx, handles)
    locked = 0 if cx.design.munlock_pass else await count_locked(handles)
    bounds = await floor_and_ceiling(cx.mm, start, end)
    await detach_vmas_to_be_unmapped(handles)
    if locked:
        await add_counter(cx.mm, "locked_vm", -locked)
    if downgrade and not cx.design.downgrade_beside_growable:
        downgrade = not await may_grow_into(cx.mm, start, end)
    if cx.design.arch_unmap == "detached":
        await arch_unmap(cx, start, end)
    return await zap_detached(cx, handles, start, end, bounds, downgrade)


async def do_mas_align_munmap(
    cx: Cx, start: int, length: int, events: UnmapEvents, downgrade: bool = False
) -> int:
    """6.1 to 6.3: move the VMAs to a side tree, clear the tree, then under read if asked.

    No munlock pass: pages are munlocked as their rmap goes.
    """
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    end = start + page_align(length)
    if cx.design.arch_unmap == "first":
        await arch_unmap(cx, start, end)
    found, handles = await lookup_and_split(cx, start, end)
    if found != 1:
        return found
    if await prepare_events(cx, handles, start, end, events) or await no_memory(cx):
        return -ENOMEM  # the second is for the tree's nodes
    locked = await count_locked(handles)
    bounds = await floor_and_ceiling(cx.mm, start, end)
    await detach_vmas_to_be_unmapped(handles)
    if locked:
        await add_counter(cx.mm, "locked_vm", -locked)
    if downgrade and not cx.design.downgrade_beside_growable:
        downgrade = not await may_grow_into(cx.mm, start, end)
    return await zap_detached(cx, handles, start, end, bounds, downgrade)


async def do_vmi_align_munmap(
    cx: Cx, start: int, length: int, events: UnmapEvents, downgrade: bool = False
) -> int:
    """6.4 on: vms_gather_munmap_vmas, clear the tree, vms_complete_munmap_vmas (so from 6.12).

    Each VMA is write-locked before it goes, so faults that read-lock it have ended.
    """
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    end = start + page_align(length)
    if cx.design.arch_unmap == "first":
        await arch_unmap(cx, start, end)
    found, handles = await vms_gather_munmap_vmas(cx, start, end, events)
    if found != 1:
        return found
    bounds = await floor_and_ceiling(cx.mm, start, end)
    locked = await count_locked(handles)
    await detach_vmas_to_be_unmapped(handles)
    if locked:
        await add_counter(cx.mm, "locked_vm", -locked)
    if downgrade and not cx.design.downgrade_beside_growable:
        downgrade = not await may_grow_into(cx.mm, start, end)
    return await zap_detached(cx, handles, start, end, bounds, downgrade)


async def zap_detached(
    cx: Cx, handles: Handles, start: int, end: int, bounds: Bounds, downgrade: bool
) -> int:
    """Downgrade if asked, then zap and free what nobody can find any more; 1 if downgraded."""
    if downgrade:
        await mmap_write_downgrade(cx)
        if cx.design.bounds_read == "after":
            bounds = await floor_and_ceiling(cx.mm, start, end)
    await unmap_region(cx, handles, start, end, bounds)
    await remove_vma_list(cx, handles)
    return 1 if downgrade else 0


async def vms_gather_munmap_vmas(
    cx: Cx, start: int, end: int, events: UnmapEvents, waits: bool = True
) -> tuple[int, Handles]:
    """Find, look for seals, split, and write-lock the VMAs of [start, end).

    Write-locking one waits for its readers; with `waits` False that is left to the caller.
    """
    if await seal_in_range(cx, start, end):
        return -EPERM, ()
    if cx.design.mseal == "vma" and await any_sealed(cx.mm, start, end):
        return await split_up_to_seal(cx, start, end), ()
    found, handles = await lookup_and_split(cx, start, end)
    if found != 1:
        return found, ()
    if waits:
        for handle in handles:
            await vma_start_write(handle)
    if await prepare_events(cx, handles, start, end, events) or await no_memory(cx):
        return -ENOMEM, ()  # the second is for the tree's nodes
    return 1, handles


async def split_up_to_seal(cx: Cx, start: int, end: int) -> int:
    """Return -EPERM; if the seal is not on the first VMA, that one has been split by then."""
    first = (await find_vmas(cx.mm, start, end))[0]
    vma = await read_vma(first)
    if start > vma.start:
        if end < vma.end and await at_map_limit(cx):
            return -ENOMEM
        if not vma.flags & VM_SEALED:
            await start_write(cx, first)
            new = await cut_at(cx, first, vma, start, False)
            if new < 0:
                return new
    return -EPERM


async def lookup_and_split(cx: Cx, start: int, end: int) -> tuple[int, Handles]:
    """Find the VMAs of [start, end) and split those that reach out of it (6.1 on).

    Under vma_locks a VMA is write-locked before it is split.
    """
    handles = await find_vmas(cx.mm, start, end)
    if not handles:
        return 0, ()
    first = await read_vma(handles[0])
    if start > first.start:
        if end < first.end and await at_map_limit(cx):
            return -ENOMEM, ()
        await start_write(cx, handles[0])
        new = await cut_at(cx, handles[0], first, start, False, limited=False)
        if new < 0:
            return new, ()
        handles = (new, *handles[1:])
    last = await read_vma(handles[-1])
    if end < last.end:
        await start_write(cx, handles[-1])
        new = await cut_at(cx, handles[-1], last, end, False, limited=False)
        if new < 0:
            return new, ()
    return 1, handles


async def at_map_limit(cx: Cx) -> bool:
    """Return whether the address space has as many VMAs as it may have."""
    return await read_counter(cx.mm, "map_count") >= cx.limits.max_map_count


async def start_write(cx: Cx, handle: int) -> None:
    """Write-lock a VMA where the design has VMA locks."""
    if cx.design.vma_locks:
        await vma_start_write(handle)


async def prepare_events(
    cx: Cx, handles: Handles, start: int, end: int, events: UnmapEvents
) -> int:
    """Collect the unmap events for userfaultfd monitors: 0 or -ENOMEM."""
    if not cx.design.uffd_unmap:
        return 0
    found = await userfaultfd_unmap_prep(handles, start, end)
    if found and await no_memory(cx):
        return -ENOMEM
    events.extend(found)
    return 0


@step
def may_grow_into(m: Machine, task: Task, mm: int, start: int, end: int) -> bool:
    """Return whether a neighbour of the hole could grow into it under read (246c320a8cfe)."""
    space = m.mm(mm)
    before, behind = previous(space, start), following(space, end)
    grows_up = before and vma_of(m, task, before).flags & VM_GROWSUP
    grows_down = behind and vma_of(m, task, behind).flags & VM_GROWSDOWN
    return bool(grows_up or grows_down)


@step
def count_locked(m: Machine, task: Task, handles: Handles) -> int:
    """Count the pages of the locked VMAs among these."""
    locked = 0
    for handle in handles:
        vma = vma_of(m, task, handle)
        if vma.flags & VM_LOCKED:
            locked += vma.nr_pages
    return locked
