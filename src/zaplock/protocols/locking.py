"""The mmap_lock and the per-VMA locks that end with it (include/linux/mmap_lock.h).

From 6.4 on a writer that is done ends all its VMA write locks at once by moving `lock_seq`, and a
downgrade does too: that is why a fault which then locks a VMA must look whether it is detached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.flags import VM_STICKY
from zaplock.model.rwsem import (
    down_read,
    down_read_killable,
    down_write,
    down_write_killable,
    downgrade_write,
    up_read,
    up_write,
)
from zaplock.model.step import TAKEN_ALONE, MarkStep, Step, Task, WaitStep, step
from zaplock.model.violations import Invariant, Violation
from zaplock.model.vma import FreedVma, Vma, change, following, lookup, previous, vma_of
from zaplock.protocols.address_locks import holds

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, Protocol


UNLOCKED = 2
"""What do_munmap returns when it has given the lock back itself."""

EXCLUDED = -2
"""A VMA's lock_seq that keeps readers out beyond the end of the exclusive hold."""


async def syscall(
    cx: Cx, name: str, work: Protocol, address: int = 0, length: int = 0, detail: int = 0
) -> int:
    """Run an operation as a system call that recordings show."""
    await MarkStep("op_begin", (name, address, length, detail))
    result = await work
    await MarkStep("op_end", (name, result))
    return result


async def mmap_write_lock_killable(cx: Cx) -> int:
    """Hold the mmap_lock for write; -EINTR on a fatal signal, where the kernel asks for one."""
    if cx.design.mmap_killable:
        return await down_write_killable(cx.mmap_lock)
    return await down_write(cx.mmap_lock)


async def mmap_read_lock_killable(cx: Cx) -> int:
    """Hold the mmap_lock for read; -EINTR on a fatal signal."""
    return await down_read_killable(cx.mmap_lock)


async def mmap_read_lock(cx: Cx) -> int:
    """Hold the mmap_lock for read, however long that takes."""
    return await down_read(cx.mmap_lock)


async def mmap_read_unlock(cx: Cx) -> None:
    """End the shared hold."""
    await up_read(cx.mmap_lock)


async def mmap_write_unlock(cx: Cx) -> None:
    """End the exclusive hold and with it all VMA write locks."""
    if cx.design.vma_locks:
        await vma_end_write_all(cx.mm)
    await up_write(cx.mmap_lock)


async def mmap_write_downgrade(cx: Cx) -> None:
    """Go on under read; all VMA write locks end."""
    if cx.design.vma_locks:
        await vma_end_write_all(cx.mm)
    await downgrade_write(cx.mmap_lock)


async def unlock_after_unmap(cx: Cx, result: int) -> None:
    """End what do_munmap has left of the hold: it returned 1 if it downgraded, or UNLOCKED."""
    if result == 1:
        await mmap_read_unlock(cx)
    elif result != UNLOCKED:
        await mmap_write_unlock(cx)


@step
def vma_end_write_all(m: Machine, _task: Task, mm: int) -> None:
    """End the write locks of all VMAs of an mm."""
    m.mm(mm).add("lock_seq", 1)
    m.wake(("vma_write", mm))


def _start_write(m: Machine, task: Task, handle: int) -> None:
    vma = vma_of(m, task, handle)
    seq = m.mm(vma.mm).count("lock_seq")
    if vma.lock_seq != seq:
        m.vmas.put(handle, change(vma, lock_seq=seq))


def _no_other_reader(m: Machine, task: Task, handle: int) -> bool:
    return not m.vma_readers.get(handle)


def vma_start_write(handle: int) -> Step[None]:
    """Write-lock a VMA: keep new readers out, and wait for those who are in it."""
    return WaitStep(
        _start_write, (handle,), _no_other_reader, _readers_of(handle), announce=_start_write
    )


def _readers_of(handle: int) -> tuple[str, int]:
    return "vma_readers", handle


def _start_write_alone(m: Machine, task: Task, handle: int) -> None:
    if m.vma_readers.data and not _no_other_reader(m, task, handle):
        raise Violation(
            Invariant.NO_DEADLOCK, f"{task} waits for {_readers_of(handle)}, and nobody reads on"
        )
    _start_write(m, task, handle)


TAKEN_ALONE[vma_start_write] = _start_write_alone


async def start_write_merging(cx: Cx, handle: int, start: int, end: int) -> None:
    """Write-lock a VMA and the neighbours of [start, end) that it may merge with (vma_prepare).

    One of them is freed by the merge, so nobody may be in it.
    """
    if cx.design.vma_locks:
        for merging in await merging_neighbours(handle, start, end):
            await vma_start_write(merging)


@step
def merging_neighbours(
    m: Machine, task: Task, handle: int, start: int, end: int
) -> tuple[int, ...]:
    """Name the neighbours of a range that are like a VMA, and the VMA itself if there are any."""
    vma = vma_of(m, task, handle)
    space = m.mm(vma.mm)
    left, right = previous(space, start), following(space, end)
    alike = [
        other
        for other, border in ((left, start), (right, end))
        if other and other != handle and _is_like(vma, vma_of(m, task, other), border)
    ]
    return (*alike, handle) if alike else ()


def _is_like(vma: Vma, other: Vma, border: int) -> bool:
    touches = border in (other.start, other.end)
    return touches and other.file == vma.file and not (vma.flags ^ other.flags) & ~VM_STICKY


@step
def vma_start_read(m: Machine, task: Task, handle: int) -> bool:
    """Try to read-lock a VMA that was found without any lock.

    False if a writer has it. A VMA that was freed meanwhile can't be locked either: its memory is
    typesafe, and its count says that it is gone (6.15 on; before, RCU freed it later).
    """
    m.touch(task, "vma", handle)
    vma = m.vmas[handle]
    if isinstance(vma, FreedVma) or vma.lock_seq in (EXCLUDED, m.mm(vma.mm).count("lock_seq")):
        return False
    _enter(m, task, handle)
    return True


@step
def vma_start_read_locked(m: Machine, task: Task, handle: int) -> None:
    """Read-lock a VMA under the mmap_lock: nobody has it for write then, so this does not fail."""
    m.touch(task, "vma", handle)
    _enter(m, task, handle)


def _enter(m: Machine, task: Task, handle: int) -> None:
    m.vma_readers.put(handle, tuple(sorted((*m.vma_readers.get(handle, ()), task.tid))))


@step
def vma_end_read(m: Machine, task: Task, handle: int) -> None:
    """Give a VMA's read lock back."""
    m.touch(task, "vma", handle)
    readers = list(m.vma_readers[handle])
    readers.remove(task.tid)
    if readers:
        m.vma_readers.put(handle, tuple(readers))
    else:
        m.vma_readers.drop(handle)
        m.wake(("vma_readers", handle))


@step
def find_vma_rcu(m: Machine, _task: Task, mm: int, address: int) -> int:
    """Find a VMA in the tree without any lock; it may go at once."""
    m.spend("vma_find")
    handle = lookup(m, m.mm(mm), address)
    if not handle:
        return 0
    vma = m.vmas[handle]
    return handle if isinstance(vma, Vma) and vma.start <= address else 0


@step
def still_covers(m: Machine, _task: Task, handle: int, address: int) -> bool:
    """Look again, now that the VMA is locked: is it in the tree, does it cover the address?"""
    vma = m.vmas[handle]
    return isinstance(vma, Vma) and vma.attached and vma.start <= address < vma.end


async def lock_vma_under_rcu(mm: int, address: int) -> int:
    """Find and read-lock the VMA of an address without the mmap_lock; 0: use the mmap_lock.

    Source: mm/mmap_lock.c (mm/memory.c in 6.4 to 6.14), 5e31275cc997.
    """
    handle = await find_vma_rcu(mm, address)
    if not handle or not await vma_start_read(handle):
        return 0
    if await still_covers(handle, address):
        return handle
    await vma_end_read(handle)
    return 0


def assert_write_locked(m: Machine, task: Task, vma: Vma, what: str) -> None:
    """Report a change of what only a writer may change: `what` ("vm_flags of") a VMA."""
    if not holds(m, task, vma.mm, vma.start, vma.end):
        raise Violation(
            Invariant.PRIVATE_UNDER_READ,
            f"{task} changes {what} {vma} without holding the mmap_lock for write",
        )
