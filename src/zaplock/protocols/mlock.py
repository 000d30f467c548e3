"""mlock, mlock2, munlock, mlockall, munlockall: flags under write, then pages under read.

Source: mm/mlock.c.
"""

from __future__ import annotations

from errno import EINTR, EINVAL, ENOMEM, EPERM
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    PAGE_SHIFT,
    PAGE_SIZE,
    VM_DROPPABLE,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_LOCKONFAULT,
    VM_SPECIAL,
    page_align,
)
from zaplock.model.folios import unlock
from zaplock.model.step import Task, step
from zaplock.model.vma import Vma, overlapping, vma_of
from zaplock.protocols.locking import mmap_write_lock_killable, mmap_write_unlock
from zaplock.protocols.mprotect import apply_to_range, modify_vma
from zaplock.protocols.populate import mm_populate
from zaplock.protocols.teardown import add_counter, write_counter

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

WHOLE = 1 << 64


async def mlock(cx: Cx, start: int, length: int, flags: int = 0) -> int:
    """The mlock and mlock2 system calls: 0 or a negative errno."""
    if flags & ~MLOCK_ONFAULT:
        return -EINVAL
    vm_flags = VM_LOCKED | (VM_LOCKONFAULT if flags & MLOCK_ONFAULT else 0)
    if not cx.limits.can_ipc_lock and not cx.limits.rlimit_memlock:
        return -EPERM
    low, high = whole_pages(start, length)
    if await mmap_write_lock_killable(cx):
        return -EINTR
    fits = await lock_fits(cx.mm, low, high)
    result = await apply_vma_lock_flags(cx, low, high, vm_flags) if fits else -ENOMEM
    await mmap_write_unlock(cx)
    if result:
        return result
    error = await mm_populate(cx, low, high, True)
    return ENOMEM_FOR.get(error, error)


ENOMEM_FOR = {-14: -ENOMEM, -12: -11}
"""What mlock makes of a populate error (__mlock_posix_error_return)."""


async def munlock(cx: Cx, start: int, length: int) -> int:
    """The munlock system call: 0 or a negative errno."""
    low, high = whole_pages(start, length)
    if await mmap_write_lock_killable(cx):
        return -EINTR
    result = await apply_vma_lock_flags(cx, low, high, 0)
    await mmap_write_unlock(cx)
    return result


def whole_pages(start: int, length: int) -> tuple[int, int]:
    """Widen a range to whole pages."""
    low = start & -PAGE_SIZE
    return low, low + page_align((length + start - low) % WHOLE) % WHOLE


async def mlockall(cx: Cx, flags: int) -> int:
    """The mlockall system call: 0 or a negative errno."""
    if not flags or flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags == MCL_ONFAULT:
        return -EINVAL
    if not cx.limits.can_ipc_lock and not cx.limits.rlimit_memlock:
        return -EPERM
    if await mmap_write_lock_killable(cx):
        return -EINTR
    result = 0
    if await all_fits(cx.mm, bool(flags & MCL_CURRENT)):
        result = await apply_mlockall_flags(cx, flags)
    else:
        result = -ENOMEM
    await mmap_write_unlock(cx)
    if not result and flags & MCL_CURRENT:
        await mm_populate(cx, 0, cx.limits.task_size)
    return result


async def munlockall(cx: Cx) -> int:
    """The munlockall system call."""
    if await mmap_write_lock_killable(cx):
        return -EINTR
    result = await apply_mlockall_flags(cx, 0)
    await mmap_write_unlock(cx)
    return result


async def apply_mlockall_flags(cx: Cx, flags: int) -> int:
    """Set def_flags, then the flags of every VMA; errors of single VMAs don't end it."""
    on_fault = VM_LOCKONFAULT if flags & MCL_ONFAULT else 0
    await write_counter(cx.mm, "def_flags", VM_LOCKED | on_fault if flags & MCL_FUTURE else 0)
    if flags and not flags & MCL_CURRENT:
        return 0
    vm_flags = VM_LOCKED | on_fault if flags & MCL_CURRENT else 0

    async def visit(handle: int, vma: Vma, low: int, high: int) -> int:
        await mlock_fixup(cx, handle, vma, low, high, vm_flags)
        return 0

    await apply_to_range(cx, 0, cx.limits.task_size, visit)
    return 0


async def apply_vma_lock_flags(cx: Cx, start: int, end: int, vm_flags: int) -> int:
    """Set the lock flags of [start, end): 0, -EINVAL for a wrap, -ENOMEM for holes."""
    if end < start or end >= WHOLE:
        return -EINVAL
    if end == start:
        return 0
    hole_at = start

    async def visit(handle: int, vma: Vma, low: int, high: int) -> int:
        nonlocal hole_at
        if low != hole_at:
            return -ENOMEM
        hole_at = high
        return await mlock_fixup(cx, handle, vma, low, high, vm_flags)

    error, holes = await apply_to_range(cx, start, end, visit)
    return error or (-ENOMEM if holes else 0)


async def mlock_fixup(cx: Cx, handle: int, vma: Vma, low: int, high: int, lock_flags: int) -> int:
    """Give a part of a VMA its lock flags and count them."""
    flags = (vma.flags & ~VM_LOCKED_MASK) | lock_flags
    fixed = vma.flags & (VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE) or vma.ops == "secret"
    if flags == vma.flags or fixed:
        return 0
    part = await modify_vma(cx, handle, low, high, flags)
    if part < 0:
        return part
    was, now = bool(vma.flags & VM_LOCKED), bool(flags & VM_LOCKED)
    if was != now:
        pages = high - low >> PAGE_SHIFT
        await add_counter(cx.mm, "locked_vm", pages if now else -pages)
    await walk_locked_pages(cx.mm, low, high, now)
    return 0


@step
def walk_locked_pages(m: Machine, _task: Task, mm: int, low: int, high: int, lock: bool) -> None:
    """Walk the resident pages of a range to mlock or munlock them."""
    pages = m.mm(mm).ptes.total(low >> PAGE_SHIFT, high >> PAGE_SHIFT)
    m.spend("mlock_page" if lock else "munlock_page", pages)
    if not lock:
        unlock(m, m.mm(mm), low, high)


@step
def lock_fits(m: Machine, task: Task, mm: int, low: int, high: int) -> bool:
    """Return whether RLIMIT_MEMLOCK allows a range, counting only what isn't locked yet."""
    space = m.mm(mm)
    if space.limits.can_ipc_lock:
        return True
    wanted = high - low >> PAGE_SHIFT
    limit = space.limits.rlimit_memlock >> PAGE_SHIFT
    if space.count("locked_vm") + wanted > limit:
        for handle in overlapping(m, space, low, high):
            vma = vma_of(m, task, handle)
            if vma.flags & VM_LOCKED:
                wanted -= min(high, vma.end) - max(low, vma.start) >> PAGE_SHIFT
    return space.count("locked_vm") + wanted <= limit


@step
def all_fits(m: Machine, _task: Task, mm: int, current: bool) -> bool:
    """Return whether RLIMIT_MEMLOCK allows locking the whole address space."""
    space = m.mm(mm)
    limit = space.limits.rlimit_memlock >> PAGE_SHIFT
    return not current or space.limits.can_ipc_lock or space.count("total_vm") <= limit
