"""Readers of /proc/PID: foreign processes that need the target's mmap_lock.

`ps` reads cmdline. 4.9 takes the lock for read three times, uninterruptibly: for the bounds of the
arguments, for their last byte (has the process written over them?) and for their page; it is the
reader in the RFC's own hung-task report. From 4.18 on (88aa7cc688d4) twice, since 5.3 killably
(1e426fe28261). The arguments lie in one page here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from errno import EFAULT, EINTR
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT
from zaplock.model.frames import read_frame
from zaplock.model.rwsem import Lock, down_read, down_read_killable, up_read
from zaplock.model.step import Task, step
from zaplock.model.vma import find_vma, lookup, read_vma, vma_of
from zaplock.protocols.fault import fixup_user_fault
from zaplock.protocols.locking import vma_end_read, vma_start_read

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


async def proc_pid_cmdline_read(cx: Cx, mm: int) -> int:
    """To 4.17: the lock for the bounds, too."""
    lock: Lock = ("mmap_lock", mm)
    await down_read(lock)
    arguments = await read_arg_bounds(mm)
    await up_read(lock)
    return await read_arguments(cx, mm, arguments)


async def proc_pid_cmdline(cx: Cx, mm: int) -> int:
    """4.18 on: the bounds have a lock of their own."""
    return await read_arguments(cx, mm, await read_arg_bounds(mm))


async def read_arguments(cx: Cx, mm: int, address: int) -> int:
    """Read the last byte of the arguments, then their page, each under a hold of its own."""
    if await __access_remote_vm(cx, mm, address) < 0:
        return 0
    return await access_remote_vm(cx, mm, address)


@step
def read_arg_bounds(m: Machine, _task: Task, mm: int) -> int:
    """Return mm->arg_start; charges the reader's own work."""
    m.spend("proc_read")
    return m.mm(mm).count("arg_start")


async def access_remote_vm(cx: Cx, mm: int, address: int) -> int:
    """Read a page of another process: its tag; 0 where nothing is there or we were killed."""
    tag = await __access_remote_vm(cx, mm, address)
    return max(tag, 0)


async def __access_remote_vm(cx: Cx, mm: int, address: int) -> int:
    """The same, but -EINTR where we were killed and -EFAULT where nothing is there."""
    lock: Lock = ("mmap_lock", mm)
    waits = down_read_killable if cx.design.cmdline_killable else down_read
    if await waits(lock):
        return -EINTR
    tag = await remote_page(mm, address)
    if tag < 0 and not await fixup_user_fault(cx, mm, address, False):
        tag = await remote_page(mm, address)
    await up_read(lock)
    return tag


@step
def remote_page(m: Machine, task: Task, mm: int, address: int) -> int:
    """Return a page's tag through the page tables (no TLB of ours is filled); -EFAULT if absent."""
    m.spend("gup_page")
    space = m.mm(mm)
    pte = space.ptes.at(address >> PAGE_SHIFT)
    if pte is None or pte.kind in ("guard", "uffd_wp"):
        return -EFAULT
    if pte.kind in ("zero", "zero_thp", "pfn"):
        return 0
    return read_frame(m, task, (address >> PAGE_SHIFT) + pte.delta)


async def proc_pid_maps(cx: Cx, mm: int) -> int:
    """Read /proc/PID/maps: count the VMAs, under the mmap_lock or VMA by VMA."""
    if cx.design.maps_lock == "vma":
        return await walk_maps_by_vma(mm)
    lock: Lock = ("mmap_lock", mm)
    await down_read_killable(lock)
    shown = await count_vmas(mm)
    await up_read(lock)
    return shown


async def walk_maps_by_vma(mm: int) -> int:
    """6.17 on: lock each VMA in turn and show it."""
    return await walk_by_vma(mm, one_vma)


async def one_vma(_mm: int, _handle: int) -> int:
    """Count a VMA that is shown."""
    return 1


async def walk_by_vma(mm: int, visit: Callable[[int, int], Awaitable[int]]) -> int:
    """Visit each VMA under its own lock; where that fails, under the mmap_lock. Sums the results.

    `visit(mm, handle)` may read the VMA and its page tables.
    """
    total, at = 0, 0
    while handle := await find_vma(mm, at):
        if await lock_found_vma(mm, at, handle):
            vma = await read_vma(handle)
            total += await visit(mm, handle)
            await vma_end_read(handle)
        else:
            await down_read_killable(("mmap_lock", mm))
            handle = await find_vma(mm, at)
            vma = await read_vma(handle) if handle else None  # type: ignore[assignment]
            total += await visit(mm, handle) if handle else 0
            await up_read(("mmap_lock", mm))
            if vma is None:
                break
        at = vma.end
    return total


async def lock_found_vma(mm: int, at: int, handle: int) -> bool:
    """Read-lock a VMA that was found without a lock, if it is still the next (lock_next_vma)."""
    if not await vma_start_read(handle):
        return False
    if await is_still_next(mm, at, handle):
        return True
    await vma_end_read(handle)
    return False


@step
def is_still_next(m: Machine, _task: Task, mm: int, at: int, handle: int) -> bool:
    """Look whether a VMA that is locked now is the first in the tree from an address on.

    It may have been split meanwhile, and be the upper part: then the lower one would be lost.
    """
    return lookup(m, m.mm(mm), at) == handle


async def proc_pid_smaps(cx: Cx, mm: int) -> int:
    """Read /proc/PID/smaps: the pages resident, under the mmap_lock or VMA by VMA."""
    if cx.design.smaps_lock == "vma":
        return await walk_by_vma(mm, smap_one)
    lock: Lock = ("mmap_lock", mm)
    await down_read_killable(lock)
    resident = 0
    handle = await find_vma(mm, 0)
    while handle:
        resident += await smap_one(mm, handle)
        vma = await read_vma(handle)
        handle = await find_vma(mm, vma.end)
    await up_read(lock)
    return resident


@step
def count_vmas(m: Machine, _task: Task, mm: int) -> int:
    """Count the VMAs in the tree."""
    m.spend("proc_read")
    return len(m.mm(mm).tree)


@step
def smap_one(m: Machine, task: Task, mm: int, handle: int) -> int:
    """Walk the page tables of a VMA: how many pages are resident."""
    vma = vma_of(m, task, handle)
    m.spend("proc_read")
    return m.mm(mm).ptes.total(vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT)
