"""Readers of /proc/PID: foreign processes that need the target's mmap_lock.

`ps` reads cmdline. 4.9 takes the lock for read three times, uninterruptibly: for the bounds of the
arguments, for their last byte (has the process written over them?) and for their page; it is the
reader in the RFC's own hung-task report. From 4.18 on (88aa7cc688d4) twice, since 5.3 killably
(1e426fe28261). The arguments lie in one page here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from errno import EFAULT, EINTR
from functools import partial
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, VM_READ
from zaplock.model.frames import read_frame
from zaplock.model.pagetable import ABSENT
from zaplock.model.rwsem import Lock, down_read, down_read_killable, up_read
from zaplock.model.step import Task, step
from zaplock.model.vma import find_vma, lookup, read_vma
from zaplock.protocols.fault import fixup_user_fault
from zaplock.protocols.locking import lock_vma_under_rcu, vma_end_read, vma_start_read
from zaplock.protocols.table_walk import (
    FoundTable,
    entry_at,
    find_table,
    is_in_place,
    pte_offset,
)

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


async def proc_pid_environ(cx: Cx, mm: int) -> int:
    """Read /proc/PID/environ: the page behind the arguments' bounds, which it lies in here, once.

    To 4.17 the lock is taken for the bounds as well, as for cmdline (88aa7cc688d4).
    """
    if cx.design.proc_cmdline is proc_pid_cmdline_read:
        lock: Lock = ("mmap_lock", mm)
        await down_read(lock)
        address = await read_arg_bounds(mm)
        await up_read(lock)
    else:
        address = await read_arg_bounds(mm)
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
    if cx.design.remote_lock != "mmap":
        tags = await pages_under_vma_lock(cx, mm, address, address + PAGE_SIZE)
        if tags:
            return tags[0]
    lock: Lock = ("mmap_lock", mm)
    waits = down_read_killable if cx.design.cmdline_killable else down_read
    if await waits(lock):
        return -EINTR
    tag = await remote_page(cx, mm, address)
    while tag < 0 and not await fixup_user_fault(cx, mm, address, False):
        tag = await remote_page(cx, mm, address)
    await up_read(lock)
    return tag


async def pages_under_vma_lock(cx: Cx, mm: int, start: int, end: int) -> tuple[int, ...]:
    """Read the pages of [start, end) that are there, in a row, under the lock of start's VMA alone.

    Returns their tags, none where the VMA can't be locked or read, or, under "one-vma", where the
    range does not end in it.
    """
    handle = await lock_vma_under_rcu(mm, start)
    if not handle:
        return ()
    vma = await read_vma(handle)
    tags: tuple[int, ...] = ()
    if vma.flags & VM_READ and (end <= vma.end or cx.design.remote_lock == "vma"):
        for at in range(start, min(end, vma.end), PAGE_SIZE):
            tag = await remote_entry(await pte_offset(handle, at, True), at)
            if tag < 0:
                break
            tags += (tag,)
    await vma_end_read(handle)
    return tags


async def read_remote(cx: Cx, mm: int, start: int, end: int) -> int:
    """Read [start, end) of another process in one call: how many pages were there in a row.

    Under the mmap_lock, or, where the design locks VMAs, under one after the other while that goes.
    """
    at = start
    while cx.design.remote_lock != "mmap" and at < end:
        seen = await pages_under_vma_lock(cx, mm, at, end)
        at += len(seen) * PAGE_SIZE
        if not seen:
            break
    lock: Lock = ("mmap_lock", mm)
    if at < end and not await down_read_killable(lock):
        while at < end and await remote_page(cx, mm, at) >= 0:
            at += PAGE_SIZE
        await up_read(lock)
    return at - start >> PAGE_SHIFT


async def remote_page(cx: Cx, mm: int, address: int) -> int:
    """Return a page's tag through the page tables (no TLB of ours is filled); -EFAULT if absent."""
    table = await find_table(cx, mm, address)
    return await remote_entry(table, address) if table is not None else -EFAULT


@step
def remote_entry(m: Machine, task: Task, table: FoundTable, address: int) -> int:
    """Return the tag of what an entry maps; -EFAULT if it maps nothing."""
    m.spend("gup_page")
    pte = entry_at(m, task, table, address)
    if pte is None or pte.kind in ABSENT:
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
        return await walk_by_vma(mm, partial(smap_one, cx))
    lock: Lock = ("mmap_lock", mm)
    await down_read_killable(lock)
    resident = 0
    handle = await find_vma(mm, 0)
    while handle:
        resident += await smap_one(cx, mm, handle)
        vma = await read_vma(handle)
        handle = await find_vma(mm, vma.end)
    await up_read(lock)
    return resident


async def proc_pid_smaps_rollup(cx: Cx, mm: int) -> int:
    """Read /proc/PID/smaps_rollup: the pages resident, under one hold of the mmap_lock.

    From 5.10 on (ff9f47f6f00c) the hold is given up between two VMAs when somebody waits.
    """
    lock: Lock = ("mmap_lock", mm)
    if await down_read_killable(lock):
        return -EINTR
    resident = 0
    handle = await find_vma(mm, 0)
    while handle:
        resident += await smap_one(cx, mm, handle)
        vma = await read_vma(handle)
        if cx.design.rollup_lets_go and await has_waiters(lock):
            await up_read(lock)
            if await down_read_killable(lock):
                return -EINTR
        handle = await find_vma(mm, vma.end)
    await up_read(lock)
    return resident


@step
def has_waiters(m: Machine, _task: Task, lock: Lock) -> bool:
    """Look whether anybody waits for a lock (mmap_lock_is_contended)."""
    sem = m.locks.get(lock)
    return sem is not None and bool(sem.queue)


@step
def count_vmas(m: Machine, _task: Task, mm: int) -> int:
    """Count the VMAs in the tree."""
    m.spend("proc_read")
    return len(m.mm(mm).tree)


async def smap_one(cx: Cx, mm: int, handle: int) -> int:
    """Walk the page tables of a VMA: how many pages are resident.

    Table by table, where others are let run between any two pages; else all at once.
    """
    vma = await read_vma(handle)
    if cx.grain != 1:
        return await count_resident(mm, vma.start, vma.end)
    resident = 0
    for low in range(vma.start & -PMD_SIZE, vma.end, PMD_SIZE):
        start, end = max(low, vma.start), min(low + PMD_SIZE, vma.end)
        table = await pte_offset(handle, start, cx.design.reclaims_tables)
        resident += await count_in_table(table, start, end)
    return resident


@step
def count_resident(m: Machine, _task: Task, mm: int, start: int, end: int) -> int:
    """Count the pages of a VMA that are resident.

    A page counts as one that get_user_pages looks up; others have seen 85 ns a page (4.475 s for
    200 GB of smaps_rollup, ncabatoff/process-exporter#246).
    """
    m.spend("proc_read")
    pages = m.mm(mm).ptes.total(start >> PAGE_SHIFT, end >> PAGE_SHIFT)
    m.spend("gup_page", pages)
    return pages


@step
def count_in_table(m: Machine, task: Task, table: FoundTable, start: int, end: int) -> int:
    """Count the pages of one page table that are resident, under its lock."""
    m.spend("proc_read")
    if not is_in_place(m, task, table, start):
        return 0
    return m.mm(table.mm).ptes.total(start >> PAGE_SHIFT, end >> PAGE_SHIFT)
