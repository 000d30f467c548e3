"""mseal: from here on a mapping can't be changed, moved or taken away (6.10 on).

The whole range must be mapped, or nothing is sealed. Source: mm/mseal.c (6.17: merges by the common
vma_modify; before, it had its own loop with the same result).
"""

from __future__ import annotations

from errno import EINTR, EINVAL, ENOMEM, ENOSYS
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_MASK, VM_SEALED, page_align
from zaplock.model.step import Task, step
from zaplock.model.vma import Vma, overlapping, vma_of
from zaplock.protocols.locking import mmap_write_lock_killable, mmap_write_unlock
from zaplock.protocols.mprotect import apply_to_range, modify_vma

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

_WORD = 1 << 64


async def mseal(cx: Cx, start: int, length: int, flags: int) -> int:
    """The mseal system call: 0, -EINVAL, -ENOMEM for holes, -ENOSYS before 6.10."""
    if cx.design.mseal == "no":
        return -ENOSYS
    if flags or start & ~PAGE_MASK:
        return -EINVAL
    aligned = page_align(length) % _WORD
    if length and not aligned:
        return -EINVAL
    end = (start + aligned) % _WORD
    if end < start:
        return -EINVAL
    if end == start:
        return 0
    if await mmap_write_lock_killable(cx):
        return -EINTR
    result = -ENOMEM
    if await is_all_mapped(cx.mm, start, end):
        result = await seal_range(cx, start, end)
    await mmap_write_unlock(cx)
    return result


async def seal_range(cx: Cx, start: int, end: int) -> int:
    """Seal every VMA's part of a range that is mapped throughout."""

    async def visit(handle: int, vma: Vma, low: int, high: int) -> int:
        if vma.flags & VM_SEALED:
            return 0
        flags = vma.flags | VM_SEALED
        return min(0, await modify_vma(cx, handle, low, high, flags, sets_all=False))

    error, _ = await apply_to_range(cx, start, end, visit)
    return error


@step
def is_all_mapped(m: Machine, task: Task, mm: int, start: int, end: int) -> bool:
    """Return whether a range has no hole."""
    at = start
    for handle in overlapping(m, m.mm(mm), start, end):
        vma = vma_of(m, task, handle)
        if vma.start > at:
            return False
        at = vma.end
    return at >= end
