"""Writes to /proc/PID/clear_refs: the whole address space walked under the exclusive lock.

1, 2 and 3 clear the accessed bits of all memory, of anonymous memory and of files
(model.references), 4 the soft-dirty bits, 5 the peak of resident memory. All of them take the lock
for write (rule `clear_refs_lock`), and from 6.6 on each VMA that is walked is locked as well
(`walks_lock_vmas`).

Source: fs/proc/task_mmu.c clear_refs_write, clear_refs_test_walk. Not covered: soft-dirty bits
themselves, which shared memory and files have as well.
"""

from __future__ import annotations

from errno import EINTR, EINVAL
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT, VM_HUGETLB, VM_PFNMAP, VM_SOFTDIRTY
from zaplock.model.references import clean_entries, follows, forget_entries
from zaplock.model.rwsem import down_read_killable, up_read
from zaplock.model.step import Task, step
from zaplock.model.vma import Vma, change, find_vmas, read_vma, vma_of
from zaplock.protocols.locking import mmap_write_lock_killable, mmap_write_unlock, vma_start_write

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

ALL, ANONYMOUS, MAPPED, SOFT_DIRTY, PEAK = 1, 2, 3, 4, 5
REFERENCED_BITS = (ALL, ANONYMOUS, MAPPED)


async def clear_refs(cx: Cx, kind: int) -> int:
    """Write a number to one's own clear_refs: how many bytes were written, -EINVAL or -EINTR."""
    if not ALL <= kind <= PEAK:
        return -EINVAL
    writes = cx.design.clear_refs_lock == "write" or kind == PEAK
    if await (mmap_write_lock_killable(cx) if writes else down_read_killable(cx.mmap_lock)):
        return -EINTR
    for handle in await find_vmas(cx.mm, 0, 1 << 63) if kind == SOFT_DIRTY else ():
        await clear_soft_dirty(handle)
    for handle in await find_vmas(cx.mm, 0, 1 << 63) if kind != PEAK else ():
        vma = await read_vma(handle)
        if walks(vma, kind):
            if cx.design.walks_lock_vmas:
                await vma_start_write(handle)
            if kind in REFERENCED_BITS:
                await clear_young(vma)
            else:
                await clear_written(vma)
    if kind == PEAK:
        await forget_peak(cx.mm)
    await (mmap_write_unlock(cx) if writes else up_read(cx.mmap_lock))
    return len(str(kind))


def walks(vma: Vma, kind: int) -> bool:
    """Return whether a VMA is walked: by whether it has a file, not by what its pages are."""
    if vma.flags & VM_PFNMAP:
        return False
    return kind not in (ANONYMOUS, MAPPED) or (kind == MAPPED) == bool(vma.file or vma.name)


@step
def forget_peak(m: Machine, _task: Task, mm: int) -> None:
    """Let the peak of resident memory be what is resident now."""
    if m.globals.get("peaks", 0):
        m.mm(mm).counters.put("hiwater_rss", m.mm(mm).rss)


@step
def clear_soft_dirty(m: Machine, task: Task, handle: int) -> None:
    """Let a VMA be soft-dirty no more."""
    vma = vma_of(m, task, handle)
    if vma.flags & VM_SOFTDIRTY:
        m.vmas.put(handle, change(vma, flags=vma.flags & ~VM_SOFTDIRTY))


@step
def clear_written(m: Machine, _task: Task, vma: Vma) -> None:
    """Let the entries of a VMA be soft-dirty no more: the next write to them faults."""
    m.spend("protect_pte", m.mm(vma.mm).ptes.total(vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT))
    if not vma.flags & VM_HUGETLB:
        clean_entries(m, m.mm(vma.mm), vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT)


@step
def clear_young(m: Machine, _task: Task, vma: Vma) -> None:
    """Let the entries of a VMA be old. Huge pages of hugetlb are not walked."""
    m.spend("protect_pte", m.mm(vma.mm).ptes.total(vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT))
    if follows(m) and not vma.flags & VM_HUGETLB:
        forget_entries(m, m.mm(vma.mm), vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT)
