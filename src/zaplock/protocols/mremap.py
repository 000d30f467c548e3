"""mremap: shrink, grow in place, move; a shrink is an munmap and downgrades like one (4.20 on).

A move takes the entries out of the old place and puts them into the new one. Between the two the
TLB must be flushed before the page-table lock is dropped, or a truncation frees a page that the old
address still translates to (CVE-2018-18281, eb66ae030829, 4.19): rule `mremap_flush`.

Source: mm/mremap.c.
"""

from __future__ import annotations

from errno import EFAULT, EINTR, EINVAL, ENOMEM
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE_MASK,
    PAGE_SHIFT,
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_PFNMAP,
    VM_SHARED,
    page_align,
)
from zaplock.model.pagetable import alloc_tables, clear_present
from zaplock.model.step import Task, step
from zaplock.model.tlb import flush_tlb_range
from zaplock.model.vma import (
    Vma,
    account,
    change,
    find_vma,
    following,
    insert,
    merge_around,
    read_vma,
    vma_of,
    write_vma,
)
from zaplock.protocols.locking import (
    mmap_read_unlock,
    mmap_write_lock_killable,
    mmap_write_unlock,
    vma_start_write,
)
from zaplock.protocols.mmap import commit, get_unmapped_area, mlock_fits, start_with_gap
from zaplock.protocols.populate import mm_populate
from zaplock.protocols.userfaultfd import userfaultfd_unmap_complete

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents


async def mremap(
    cx: Cx, address: int, old_length: int, new_length: int, flags: int = 0, new_address: int = 0
) -> int:
    """The mremap system call: the address, or a negative errno."""
    old_length, new_length = page_align(old_length), page_align(new_length)
    error = mremap_arguments(cx, address, old_length, new_length, flags, new_address)
    if error:
        return error
    events: UnmapEvents = []
    if await mmap_write_lock_killable(cx):
        return -EINTR
    result, downgraded, populate = await remap(
        cx, address, old_length, new_length, flags, new_address, events
    )
    if downgraded:
        await mmap_read_unlock(cx)
    else:
        await mmap_write_unlock(cx)
    if populate:
        await mm_populate(cx, populate[0], populate[1])
    await userfaultfd_unmap_complete(cx, events)
    return result


def mremap_arguments(
    cx: Cx, address: int, old_length: int, new_length: int, flags: int, new_address: int
) -> int:
    """Check what needs no lock: 0 or -EINVAL."""
    if flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP) or address & ~PAGE_MASK:
        return -EINVAL
    if not new_length or new_length > cx.limits.task_size:
        return -EINVAL
    if not flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        return 0
    if not flags & MREMAP_MAYMOVE or (flags & MREMAP_DONTUNMAP and old_length != new_length):
        return -EINVAL
    if flags & MREMAP_FIXED:
        overlaps = address + old_length > new_address and new_address + new_length > address
        beyond = new_address > cx.limits.task_size - new_length
        if new_address & ~PAGE_MASK or beyond or overlaps:
            return -EINVAL
    return 0


async def remap(
    cx: Cx,
    address: int,
    old_length: int,
    new_length: int,
    flags: int,
    new_address: int,
    events: UnmapEvents,
) -> tuple[int, bool, tuple[int, int] | None]:
    """Remap under the exclusive lock: (address or errno, downgraded, range to populate)."""
    handle = await find_vma(cx.mm, address)
    vma = await read_vma(handle) if handle else None
    if vma is None or vma.start > address:
        return -EFAULT, False, None
    moves = flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)
    if not moves and new_length <= old_length:
        return await shrink(cx, address, old_length, new_length, events)
    error = remap_forbidden(vma, address, old_length, new_length, flags)
    if error:
        return error, False, None
    grow = max(0, new_length - old_length)
    error = await remap_limits(cx.mm, vma, grow, bool(flags & MREMAP_DONTUNMAP), new_length)
    if error:
        return error, False, None
    if not moves and await expand_in_place(cx, handle, address, old_length, new_length):
        locked = (address + old_length, address + new_length) if vma.flags & VM_LOCKED else None
        return address, False, locked
    if not flags & MREMAP_MAYMOVE:
        return -ENOMEM, False, None
    return await move(cx, handle, address, old_length, new_length, flags, new_address, events)


async def shrink(
    cx: Cx, address: int, old_length: int, new_length: int, events: UnmapEvents
) -> tuple[int, bool, None]:
    """Unmap what is beyond the new length."""
    if new_length == old_length:
        return address, False, None
    result = await cx.design.do_munmap(
        cx, address + new_length, old_length - new_length, events, cx.design.mremap_downgrades
    )
    return (address if result >= 0 else result), result == 1, None


def remap_forbidden(vma: Vma, address: int, old_length: int, new_length: int, flags: int) -> int:
    """Return the errno for mappings that can't be remapped so, 0 if this one can."""
    if not old_length and not vma.flags & (VM_SHARED | VM_MAYSHARE):
        return -EINVAL
    if flags & MREMAP_DONTUNMAP and vma.flags & (VM_DONTEXPAND | VM_PFNMAP):
        return -EINVAL
    if old_length > vma.end - address:
        return -EFAULT
    if new_length > old_length and vma.flags & (VM_DONTEXPAND | VM_PFNMAP):
        return -EFAULT
    if vma.flags & VM_HUGETLB and new_length > old_length:
        return -EINVAL
    return 0


@step
def remap_limits(
    m: Machine, task: Task, mm: int, vma: Vma, grow: int, keeps_old: bool, new_length: int
) -> int:
    """Return 0, or -EAGAIN, -ENOMEM where a limit stands against a remap."""
    space = m.mm(mm)
    if vma.flags & VM_LOCKED and not mlock_fits(space, grow):
        return -11
    pages = (new_length if keeps_old else grow) >> PAGE_SHIFT
    if space.count("total_vm") + pages > space.limits.rlimit_as >> PAGE_SHIFT:
        return -ENOMEM
    return 0


async def expand_in_place(
    cx: Cx, handle: int, address: int, old_length: int, new_length: int
) -> bool:
    """Grow a VMA at its end if there is room behind it."""
    if cx.design.vma_locks:
        await vma_start_write(handle)
    return await expand(handle, address, old_length, new_length)


@step
def expand(
    m: Machine, task: Task, handle: int, address: int, old_length: int, new_length: int
) -> bool:
    """Move the end of a VMA from address + old_length on; False if it can't be there."""
    vma = vma_of(m, task, handle)
    space = m.mm(vma.mm)
    new_end = address + new_length
    if address + old_length != vma.end or new_end > space.limits.task_size:
        return False
    behind = following(space, vma.end)
    if behind and start_with_gap(space, vma_of(m, task, behind)) < new_end:
        return False
    pages = new_end - vma.end >> PAGE_SHIFT
    if vma.flags & VM_ACCOUNT and commit(m, pages):
        return False
    account(space, vma.flags, vma.file, pages)
    if vma.flags & VM_LOCKED:
        space.add("locked_vm", pages)
    write_vma(m, handle, change(vma, end=new_end))
    merge_around(m, task, handle)
    return True


async def move(
    cx: Cx,
    handle: int,
    address: int,
    old_length: int,
    new_length: int,
    flags: int,
    new_address: int,
    events: UnmapEvents,
) -> tuple[int, bool, tuple[int, int] | None]:
    """Move a part of a VMA to a place where it fits."""
    if await near_map_limit(cx.mm):
        return -ENOMEM, False, None
    if flags & MREMAP_FIXED:
        result = await cx.design.do_munmap(cx, new_address, new_length, events, False)
        if result < 0:
            return result, False, None
        target = new_address
    if old_length > new_length and not flags & MREMAP_DONTUNMAP:
        result = await cx.design.do_munmap(
            cx, address + new_length, old_length - new_length, events, False
        )
        if result < 0:
            return result, False, None
        old_length = new_length
    if not flags & MREMAP_FIXED:
        target = await get_unmapped_area(cx.mm, new_address, new_length, 0)
        if target < 0:
            return target, False, None
    handle = await find_vma(cx.mm, address)
    vma = await read_vma(handle)
    if cx.design.vma_locks:
        await vma_start_write(handle)
    if await charge_move(cx.mm, vma, old_length, new_length, bool(flags & MREMAP_DONTUNMAP)):
        return -ENOMEM, False, None
    new = await copy_vma(handle, address, target, new_length)
    await move_page_tables(cx, address, target, min(old_length, new_length))
    await finish_copy(new)
    if flags & MREMAP_DONTUNMAP:
        await keep_empty(handle, address, old_length)
    elif old_length:
        await cx.design.do_munmap(cx, address, old_length, events, False)
    locked = (target + old_length, target + new_length) if vma.flags & VM_LOCKED else None
    return target, False, locked if new_length > old_length else None


@step
def near_map_limit(m: Machine, _task: Task, mm: int) -> bool:
    """Return whether a move could need more VMAs than there may be."""
    space = m.mm(mm)
    return space.count("map_count") >= space.limits.max_map_count - 3


@step
def charge_move(
    m: Machine, task: Task, mm: int, vma: Vma, old_length: int, new_length: int, keeps_old: bool
) -> int:
    """Charge the new place of an accounted mapping (its old one is given back by the unmap)."""
    return commit(m, new_length >> PAGE_SHIFT) if vma.flags & VM_ACCOUNT else 0


@step
def copy_vma(m: Machine, task: Task, handle: int, address: int, target: int, length: int) -> int:
    """Put a copy of a VMA's part at `target`; counted, not yet merged."""
    vma = vma_of(m, task, handle)
    space = m.mm(vma.mm)
    pgoff = vma.pgoff_of(address)
    if not vma.file and not vma.anon_vma:
        pgoff = target >> PAGE_SHIFT
    new = change(vma, start=target, end=target + length, pgoff=pgoff, lock_seq=-1)
    account(space, vma.flags, vma.file, length >> PAGE_SHIFT)
    if vma.flags & VM_LOCKED:
        space.add("locked_vm", length >> PAGE_SHIFT)
    return insert(m, task, new)


async def move_page_tables(cx: Cx, address: int, target: int, length: int) -> None:
    """Move the entries of a range, with the flush where the kernel has it."""
    grain = (cx.grain << PAGE_SHIFT) or length or 1
    for at in range(0, length, grain):
        part = min(grain, length - at)
        inside = cx.design.mremap_flush == "inside"
        await move_ptes(cx.mm, address + at, target + at, part, inside)
    if length and cx.design.mremap_flush == "outside":
        await flush_moved(cx.mm, address, length)


@step
def move_ptes(
    m: Machine, task: Task, mm: int, old: int, new: int, length: int, flush: bool
) -> None:
    """Move entries under both page-table locks."""
    space = m.mm(mm)
    shift = new - old >> PAGE_SHIFT
    first, last = old >> PAGE_SHIFT, old + length >> PAGE_SHIFT
    runs = clear_present(m, task, space, first, last)
    for low, high, pte in runs:
        m.spend("copy_pte", high - low)
        lowest = 2 if pte.kind == "hugetlb" else 1
        alloc_tables(m, task, space, low + shift, high + shift, lowest)
        moved = change(pte, delta=pte.delta - shift) if pte.delta else pte
        space.ptes.set(low + shift, high + shift, moved)
    if runs and flush:
        flush_tlb_range(m, mm, first, last, False)


@step
def flush_moved(m: Machine, _task: Task, mm: int, old: int, length: int) -> None:
    """Flush the old place only after the page-table locks were dropped (to 4.18)."""
    flush_tlb_range(m, mm, old >> PAGE_SHIFT, old + length >> PAGE_SHIFT, False)


@step
def finish_copy(m: Machine, task: Task, handle: int) -> int:
    """Merge the copy with its neighbours where it can be."""
    return merge_around(m, task, handle)


@step
def keep_empty(m: Machine, task: Task, handle: int, address: int, length: int) -> None:
    """MREMAP_DONTUNMAP: the old mapping stays, empty and unlocked."""
    vma = vma_of(m, task, handle)
    if vma.flags & VM_LOCKED:
        m.mm(vma.mm).add("locked_vm", -vma.nr_pages)
    anon_vma = 0 if (vma.start, vma.end) == (address, address + length) else vma.anon_vma
    m.vmas.put(handle, change(vma, flags=vma.flags & ~VM_LOCKED_MASK, anon_vma=anon_vma))
