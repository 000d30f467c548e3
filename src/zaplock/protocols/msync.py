"""msync: write shared file pages back, VMA by VMA; the lock is dropped around every wait for I/O.

In the model writing back takes no time and changes nothing that a program can see, so what is left
are the rules: which ranges and flags are refused, and that holes are reported only after the work.

Source: mm/msync.c (unchanged from 4.9 to 6.18 in these respects).
"""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENOMEM
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_MASK, VM_LOCKED, VM_SHARED, page_align
from zaplock.model.vma import find_vma, read_vma
from zaplock.protocols.locking import mmap_read_lock, mmap_read_unlock

if TYPE_CHECKING:
    from zaplock.protocols.design import Cx

MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4
_WORD = 1 << 64


async def msync(cx: Cx, start: int, length: int, flags: int) -> int:
    """The msync system call: 0, -EINVAL, -ENOMEM for holes (after the work), -EBUSY."""
    if flags & ~(MS_ASYNC | MS_INVALIDATE | MS_SYNC) or start & ~PAGE_MASK:
        return -EINVAL
    if flags & MS_ASYNC and flags & MS_SYNC:
        return -EINVAL
    end = (start + page_align(length)) % _WORD
    if end < start:
        return -ENOMEM
    if end == start:
        return 0
    await mmap_read_lock(cx)
    result, held = await sync_range(cx, start, end, flags)
    if held:
        await mmap_read_unlock(cx)
    return result


async def sync_range(cx: Cx, start: int, end: int, flags: int) -> tuple[int, bool]:
    """Walk [start, end): (0 or a negative errno, whether the lock is still held)."""
    holes = 0
    while True:
        handle = await find_vma(cx.mm, start)
        if not handle:
            return -ENOMEM, True
        vma = await read_vma(handle)
        if start < vma.start:
            if flags == MS_ASYNC or vma.start >= end:
                return -ENOMEM, True
            holes = -ENOMEM
        if flags & MS_INVALIDATE and vma.flags & VM_LOCKED:
            return -EBUSY, True
        start = vma.end
        if flags & MS_SYNC and vma.file and vma.flags & VM_SHARED:
            await mmap_read_unlock(cx)
            if start >= end:
                return holes, False
            await mmap_read_lock(cx)
        elif start >= end:
            return holes, True
