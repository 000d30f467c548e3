"""System V shared memory as mappings: shmat and shmdt.

A segment is a file in memory that has no other name. Its mappings count themselves when they are
opened and closed, so two of them never become one (vm_ops->close); and what they are is hidden
behind operations of their own: no userfaultfd watches them, and none moves with others (mremap).

Source: ipc/shm.c do_shmat, ksys_shmdt.
"""

from __future__ import annotations

from errno import EINTR, EINVAL
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    MAP_FIXED,
    MAP_HUGETLB,
    MAP_SHARED,
    PAGE_MASK,
    PAGE_SHIFT,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    VM_MAYWRITE,
    VM_SHARED,
    page_align,
)
from zaplock.model.step import Task, step
from zaplock.model.vma import change, is_attached, lookup, opened_as, overlapping, vma_of
from zaplock.protocols.locking import mmap_write_lock_killable, mmap_write_unlock
from zaplock.protocols.mmap import do_mmap
from zaplock.protocols.placement import huge_flags
from zaplock.protocols.populate import mm_populate
from zaplock.protocols.userfaultfd import userfaultfd_unmap_complete

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents

SHM_RDONLY, SHM_RND, SHM_REMAP, SHM_EXEC = 0o10000, 0o20000, 0o40000, 0o100000
SHMLBA = 4096


async def shmat(cx: Cx, file: int, address: int, flags: int) -> int:
    """The shmat system call on the segment `file`: where it is now, or a negative errno."""
    map_flags = MAP_SHARED | (MAP_FIXED if address else 0)
    if address:
        if address % SHMLBA:
            if not flags & SHM_RND:
                return -EINVAL
            address -= address % SHMLBA
            if not address and flags & SHM_REMAP:
                return -EINVAL
    elif flags & SHM_REMAP:
        return -EINVAL
    prot = PROT_READ | (0 if flags & SHM_RDONLY else PROT_WRITE)
    prot |= PROT_EXEC if flags & SHM_EXEC else 0
    size, huge = await size_of(file)
    map_flags |= huge
    events: UnmapEvents = []
    if await mmap_write_lock_killable(cx):
        return -EINTR
    result, populates = -EINVAL, False
    end = address + page_align(size)
    must_be_free = bool(address) and not flags & SHM_REMAP
    if not must_be_free or (end < 1 << 64 and not await is_taken(cx.mm, address, end)):
        result, populates = await do_mmap(cx, address, size, prot, map_flags, file, 0, events)
        if result >= 0:
            await open_attached(cx.mm, result)
        if flags & SHM_RDONLY and result >= 0:
            await forbid_writing(cx.mm, result)
    await mmap_write_unlock(cx)
    await userfaultfd_unmap_complete(cx, events)
    if populates:
        await mm_populate(cx, result, result + page_align(size))
    return result


@step
def open_attached(m: Machine, task: Task, mm: int, address: int) -> None:
    """Tell a new mapping from those that other calls have attached: each opens the segment anew."""
    handle = lookup(m, m.mm(mm), address)
    vma = vma_of(m, task, handle)
    m.vmas.put(handle, change(vma, ops=opened_as(m.new_handle(task, "file"))))


@step
def forbid_writing(m: Machine, task: Task, mm: int, address: int) -> None:
    """Make a mapping that of a file opened for reading only: never to be written, nor shared."""
    handle = lookup(m, m.mm(mm), address)
    vma = vma_of(m, task, handle)
    m.vmas.put(handle, change(vma, flags=vma.flags & ~(VM_SHARED | VM_MAYWRITE)))


async def shmdt(cx: Cx, address: int) -> int:
    """The shmdt system call: detach what is left of the segment that was attached at `address`."""
    if address & ~PAGE_MASK:
        return -EINVAL
    events: UnmapEvents = []
    if await mmap_write_lock_killable(cx):
        return -EINTR
    parts = await attached_at(cx.mm, address)
    for start, end in parts:
        await cx.design.do_munmap(cx, start, end - start, events, False)
    await mmap_write_unlock(cx)
    await userfaultfd_unmap_complete(cx, events)
    return 0 if parts else -EINVAL


@step
def size_of(m: Machine, _task: Task, file: int) -> tuple[int, int]:
    """Return how long a segment is, in bytes, and which huge pages it is of (MAP_*), 0 for none."""
    backing = m.files[file]
    huge = MAP_HUGETLB | huge_flags(backing.huge_size) if backing.kind == "hugetlb" else 0
    return backing.size, huge


@step
def is_taken(m: Machine, _task: Task, mm: int, start: int, end: int) -> bool:
    """Return whether something is mapped in a range."""
    return bool(overlapping(m, m.mm(mm), start, end))


@step
def attached_at(m: Machine, task: Task, mm: int, address: int) -> tuple[tuple[int, int], ...]:
    """List the mappings of one segment that stand where attaching it at `address` put them.

    The first of them decides which segment is meant, wherever it lies above the address, and goes
    whole, though it may be longer than that. Of the others those are meant that the same shmat has
    made: each opens the segment anew.
    """
    space = m.mm(mm)
    parts: list[tuple[int, int]] = []
    opened, limit = "", 1 << 63
    for handle in overlapping(m, space, address, limit):
        vma = vma_of(m, task, handle)
        if vma.start >= limit:
            break
        if not is_attached(vma):
            continue
        if vma.start - address >> PAGE_SHIFT != vma.pgoff or vma.start < address:
            continue
        is_first = not opened
        if is_first:
            opened, limit = vma.ops, address + page_align(m.files[vma.file].size)
        if is_first or (vma.ops == opened and vma.end <= limit):
            parts.append((vma.start, vma.end))
    return tuple(parts)
