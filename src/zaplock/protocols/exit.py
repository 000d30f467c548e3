"""The end of an address space: exit_mmap, and those who help when memory is short.

The VMAs stay in the tree while exit_mmap zaps, so the lock has to keep the reapers out where page
tables go: since 6.0 it zaps under read and frees page tables under write (`exit_tables`); before,
exit_mmap first makes the reapers turn away and waits for one that is at it.

Sources: mm/mmap.c exit_mmap, mm/oom_kill.c __oom_reap_task_mm, process_mrelease (5.15).
"""

from __future__ import annotations

from errno import EINTR
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


async def exit_process(cx: Cx) -> int:
    """Give up one's share of the address space; the last one takes it down (mmput)."""
    if await drop_user(cx.mm) == 0:
        await exit_mmap(cx)
    return 0


@step
def drop_user(m: Machine, _task: Task, mm: int) -> int:
    """Count one user less; returns how many are left."""
    m.mm(mm).add("users", -1)
    return m.mm(mm).count("users")


async def exit_mmap(cx: Cx) -> None:
    """Take a whole address space down."""
    modern = cx.design.exit_tables == "write"
    if modern:
        await down_read(cx.mmap_lock)
    else:
        await keep_reapers_out(cx)
    handles = await find_vmas(cx.mm, 0, ALL)
    gather = await tlb_gather_mmu(cx.mm, 0, ALL >> PAGE_SHIFT)
    await unmap_vmas(cx, gather, handles, 0, ALL, False)
    if modern:
        await up_read(cx.mmap_lock)
        await set_oom_skip(cx.mm)
        await down_write(cx.mmap_lock)
    await free_everything(cx, gather, handles)
    await tlb_finish_mmu(cx, gather)
    await remove_all(cx.mm, handles)
    if modern:
        await up_write(cx.mmap_lock)


async def keep_reapers_out(cx: Cx) -> None:
    """To 5.19: from here on reapers turn away, and one that is at it is waited for."""
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
        account(m.mm(mm), vma.flags, vma.file, -vma.nr_pages)
        committed += vma.nr_pages if vma.flags & VM_ACCOUNT else 0
        m.mm(mm).add("locked_vm", -vma.nr_pages if vma.flags & VM_LOCKED else 0)
        remove(m, task, handle)
        unlink_rmap(m, task, handle)
        free(m, task, handle)
    m.commit(-committed)


async def oom_reap_task_mm(cx: Cx, mm: int) -> int:
    """The oom reaper: zap a victim's private memory under read, if the lock can be had at once."""
    if not await down_read_trylock(("mmap_lock", mm)):
        return 0
    reaped = await reap(cx, mm)
    await up_read(("mmap_lock", mm))
    return reaped


async def process_mrelease(cx: Cx, mm: int) -> int:
    """process_mrelease: as the oom reaper, but the caller waits for the lock."""
    if await down_read_killable(("mmap_lock", mm)):
        return -EINTR
    await reap(cx, mm)
    await up_read(("mmap_lock", mm))
    return 0


async def reap(cx: Cx, mm: int) -> int:
    """Zap what of an mm is private, VMA by VMA; 1 if there was anything to do."""
    if await is_oom_skip(mm):
        return 0
    for handle in await find_vmas(mm, 0, ALL):
        vma = await read_vma(handle)
        private = not vma.file or not vma.flags & VM_SHARED
        if vma.flags & (VM_HUGETLB | VM_PFNMAP) or not private:
            continue
        gather = await tlb_gather_mmu(mm, vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT)
        await unmap_page_range(cx, gather, vma.start, vma.end, mm)
        await tlb_finish_mmu(cx, gather)
    return 1


@step
def is_oom_skip(m: Machine, _task: Task, mm: int) -> bool:
    """Return whether exit_mmap has told reapers to keep away."""
    return bool(m.mm(mm).count("oom_skip"))
