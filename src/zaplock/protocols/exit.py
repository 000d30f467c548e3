"""The end of an address space: exit_mm and exit_mmap, and those who help when memory is short.

Who leaves an address space takes its lock for read for a moment (exit_mm). The last one takes it
down. The VMAs stay in the tree meanwhile, so something has to keep the reapers out where page
tables go (`exit_lock`):

    users           to 4.13: a reaper counts as a user, so it is never there beside exit_mmap
    late-barrier    4.14 to 4.16: once the oom killer's victim has zapped, reapers turn away, and
                    one that is at it is waited for (212925802454)
    barrier         4.17 to 5.16: that comes first, and the victim reaps itself (27ae357fa82b)
    write           5.17 to 6.0: all of exit_mmap under write (64591e8605d6)
    read-write      6.1 on: zaps under read, frees page tables under write (bf3980c85212)

Others than the oom killer's victims take no lock at all in exit_mmap to 5.16. process_mrelease
(5.15) counts as a user to 5.16.

Sources: mm/mmap.c exit_mmap, kernel/exit.c exit_mm, mm/oom_kill.c __oom_reap_task_mm,
process_mrelease.
"""

from __future__ import annotations

from dataclasses import replace
from errno import EINTR, ESRCH
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT, VM_ACCOUNT, VM_HUGETLB, VM_LOCKED, VM_PFNMAP, VM_SHARED
from zaplock.model.rwsem import (
    down_read,
    down_read_killable,
    down_read_trylock,
    down_write,
    up_read,
    up_write,
)
from zaplock.model.step import Task, step
from zaplock.model.tlb import tlb_gather_mmu
from zaplock.model.vma import account, find_vmas, free, read_vma, remove, unlink_rmap, vma_of
from zaplock.protocols.saved_vmas import forget_vma
from zaplock.protocols.teardown import (
    Handles,
    free_pgd_range,
    tlb_finish_mmu,
    unlink_file_vma,
    unmap_page_range,
    unmap_vmas,
)

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

ALL = 1 << 63


BARRIERS = ("late-barrier", "barrier")


async def exit_process(cx: Cx) -> int:
    """Give up one's share of the address space; the last one takes it down."""
    await exit_mm(cx)
    await mmput(cx)
    return 0


async def exit_mm(cx: Cx) -> None:
    """Leave the address space, under read for a moment."""
    await down_read(cx.mmap_lock)
    await up_read(cx.mmap_lock)


async def mmput(cx: Cx) -> None:
    """Stop being a user of the address space; the last one takes it down."""
    if await drop_user(cx.mm) == 0:
        await exit_mmap(cx)


@step
def drop_user(m: Machine, _task: Task, mm: int) -> int:
    """Count one user less; returns how many are left."""
    m.mm(mm).add("users", -1)
    return m.mm(mm).count("users")


@step
def mmget_not_zero(m: Machine, _task: Task, mm: int) -> bool:
    """Become a user of an mm that has one still."""
    users = m.mm(mm).count("users")
    m.mm(mm).add("users", int(users > 0))
    return users > 0


async def exit_mmap(cx: Cx) -> None:
    """Take a whole address space down."""
    rule = cx.design.exit_lock
    victim = rule in BARRIERS and await is_oom_victim(cx.mm)
    if victim and rule == "barrier":
        await reap(cx, cx.mm)
        await keep_reapers_out(cx)
    if rule == "read-write":
        await down_read(cx.mmap_lock)
    elif rule == "write":
        await down_write(cx.mmap_lock)
    handles = await find_vmas(cx.mm, 0, ALL)
    gather = await tlb_gather_mmu(cx.mm, 0, ALL >> PAGE_SHIFT)
    await unmap_vmas(cx, gather, handles, 0, ALL, False)
    if victim and rule == "late-barrier":
        await keep_reapers_out(cx)
    if rule == "read-write":
        await up_read(cx.mmap_lock)
        await set_oom_skip(cx.mm)
        await down_write(cx.mmap_lock)
    await free_everything(cx, gather, handles)
    await tlb_finish_mmu(cx, gather)
    await remove_all(cx.mm, handles)
    if rule in ("write", "read-write"):
        await up_write(cx.mmap_lock)


async def keep_reapers_out(cx: Cx) -> None:
    """From here on reapers turn away, and one that is at it is waited for."""
    await set_oom_skip(cx.mm)
    await down_write(cx.mmap_lock)
    await up_write(cx.mmap_lock)


async def free_everything(cx: Cx, gather: int, handles: Handles) -> None:
    """Take all VMAs out of their rmaps and free all page tables."""
    for handle in handles:
        await unlink_file_vma(cx, handle)
    await free_pgd_range(cx.mm, gather, 0, ALL, (0, 0))


@step
def set_oom_skip(m: Machine, _task: Task, mm: int) -> None:
    """Tell reapers that there is nothing left for them (MMF_OOM_SKIP)."""
    m.mm(mm).counters.put("oom_skip", 1)


@step
def remove_all(m: Machine, task: Task, mm: int, handles: Handles) -> None:
    """Free the VMAs and give back what was committed."""
    committed = 0
    for handle in handles:
        vma = vma_of(m, task, handle)
        account(m.mm(mm), vma.flags, -vma.nr_pages)
        committed += vma.nr_pages if vma.flags & VM_ACCOUNT else 0
        m.mm(mm).add("locked_vm", -vma.nr_pages if vma.flags & VM_LOCKED else 0)
        forget_vma(m, vma, handle)
        remove(m, task, handle)
        unlink_rmap(m, task, handle)
        free(m, task, handle)
    m.commit(-committed)


@step
def mark_oom_victim(m: Machine, _task: Task, mm: int) -> bool:
    """Choose an address space for the oom killer's victim; False if nobody uses it any more."""
    if m.mm(mm).count("users") <= 0:
        return False
    m.mm(mm).counters.put("oom_victim", 1)
    return True


@step
def is_oom_victim(m: Machine, _task: Task, mm: int) -> bool:
    """Return whether the oom killer has chosen this address space."""
    return bool(m.mm(mm).count("oom_victim"))


async def oom_reap_task_mm(cx: Cx, mm: int) -> int:
    """The oom reaper: zap a victim's private memory under read, if the lock can be had at once."""
    rule = cx.design.exit_lock
    if rule in BARRIERS and not await mark_oom_victim(mm):
        return 0
    if not await down_read_trylock(("mmap_lock", mm)):
        return 0
    if rule == "users" and not await mmget_not_zero(mm):
        await up_read(("mmap_lock", mm))
        return 0
    reaped = await reap(cx, mm)
    await up_read(("mmap_lock", mm))
    if rule == "users":
        await mmput(user_of(cx, mm))
    return reaped


async def process_mrelease(cx: Cx, mm: int) -> int:
    """process_mrelease: as the oom reaper, but the caller waits for the lock."""
    counts = cx.design.exit_lock in ("users", *BARRIERS)
    if counts and not await mmget_not_zero(mm):
        return -ESRCH
    killed = await down_read_killable(("mmap_lock", mm))
    if not killed:
        await reap(cx, mm)
        await up_read(("mmap_lock", mm))
    if counts:
        await mmput(user_of(cx, mm))
    return -EINTR if killed else 0


def user_of(cx: Cx, mm: int) -> Cx:
    """Return the world of somebody who acts for another address space."""
    return replace(cx, task=Task(cx.task.tid, mm, cx.task.name, cx.task.cpu))


async def reap(cx: Cx, mm: int) -> int:
    """Zap what of an mm is private, VMA by VMA; 1 if there was anything to do.

    To 5.17 not what is locked, since that would have to be munlocked.
    """
    if await is_oom_skip(mm):
        return 0
    for handle in await find_vmas(mm, 0, ALL):
        vma = await read_vma(handle)
        private = not vma.file or not vma.flags & VM_SHARED
        if vma.flags & (VM_HUGETLB | VM_PFNMAP) or not private:
            continue
        if vma.flags & VM_LOCKED and cx.design.munlock_pass:
            continue
        gather = await tlb_gather_mmu(mm, vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT)
        await unmap_page_range(cx, gather, vma.start, vma.end, mm)
        await tlb_finish_mmu(cx, gather)
    return 1


@step
def is_oom_skip(m: Machine, _task: Task, mm: int) -> bool:
    """Return whether exit_mmap has told reapers to keep away."""
    return bool(m.mm(mm).count("oom_skip"))
