"""remap_file_pages: since 4.0 an emulation by mmap over the old place, VMA by VMA.

It finds the VMA twice, first under read, then under write, and must look again in between.
Source: mm/mmap.c; mm/util.c in none of the versions here. Not modelled: the security hook.
"""

from __future__ import annotations

from errno import EINTR, EINVAL
from typing import TYPE_CHECKING

from zaplock.model.files import get_file, put_file
from zaplock.model.flags import (
    MAP_FIXED,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_POPULATE,
    MAP_SHARED,
    PAGE_MASK,
    PAGE_SHIFT,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    VM_EXEC,
    VM_HUGETLB,
    VM_LOCKED,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
)
from zaplock.model.step import Task, step
from zaplock.model.vma import (
    Vma,
    change,
    find_vma,
    find_vmas,
    merge_around,
    read_vma,
    vma_of,
)
from zaplock.protocols.locking import (
    mmap_read_lock_killable,
    mmap_read_unlock,
    mmap_write_lock_killable,
    mmap_write_unlock,
)
from zaplock.protocols.mempolicy import EVERY_POLICY
from zaplock.protocols.mmap import do_mmap
from zaplock.protocols.placement import huge_flags
from zaplock.protocols.populate import mm_populate
from zaplock.protocols.rmap_changes import RmapChange

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents

_WORD = 1 << 64


async def remap_file_pages(cx: Cx, start: int, size: int, prot: int, pgoff: int, flags: int) -> int:
    """The remap_file_pages system call: 0 or a negative errno."""
    start, size = start & PAGE_MASK, size & PAGE_MASK
    if prot or (start + size) % _WORD <= start or pgoff + (size >> PAGE_SHIFT) >= _WORD:
        return -EINVAL
    if await mmap_read_lock_killable(cx):
        return -EINTR
    before = await shared_vma_at(cx, start)
    await mmap_read_unlock(cx)
    if before is None:
        return -EINVAL
    if await mmap_write_lock_killable(cx):
        return -EINTR
    placed, populate, length, held = -EINVAL, False, size, 0
    vma = await shared_vma_at(cx, start)
    if vma is not None and is_same(before, vma) and await is_uniform(cx, vma, start + size):
        events: UnmapEvents = []
        held = vma.file
        await hold_file(held)  # mapping over the last mapping of it must not end it
        placed, populate = await do_mmap(
            cx, start, size, prot_of(vma), flags_of(vma, flags), vma.file, pgoff, events
        )
        if placed >= 0 and vma.ops:
            opened = await find_vma(cx.mm, placed)
            await join_as_opened(vma.file, opened, vma.ops, cx.design.counted_grow)
    await mmap_write_unlock(cx)
    if held:
        await release_file(held)
    if populate and placed >= 0:
        await mm_populate(cx, placed, placed + length)
    return min(placed, 0)


@step
def join_opened(m: Machine, task: Task, handle: int, ops: str, counted_grow: bool) -> int:
    """Let what was mapped be what it was opened as before, and join its neighbours so."""
    m.vmas.put(handle, change(vma_of(m, task, handle), ops=ops))
    return merge_around(m, task, handle, unopened=counted_grow)


join_as_opened = RmapChange(join_opened)


@step
def hold_file(m: Machine, _task: Task, file: int) -> None:
    """Use a file beyond what maps it."""
    get_file(m, file)


@step
def release_file(m: Machine, task: Task, file: int) -> None:
    """Use a file no longer."""
    put_file(m, task, file)


async def shared_vma_at(cx: Cx, address: int) -> Vma | None:
    """Return the shared VMA that covers an address, None if there is none."""
    handle = await find_vma(cx.mm, address)
    if not handle:
        return None
    vma = await read_vma(handle)
    return vma if vma.start <= address and vma.flags & VM_SHARED else None


def is_same(before: Vma, now: Vma) -> bool:
    """Return whether the VMA that was looked at under read is still the one."""
    return before.flags == now.flags and before.file == now.file


async def is_uniform(cx: Cx, first: Vma, end: int) -> bool:
    """Return whether VMAs of the same file and flags, policies aside, follow without a hole."""
    at = first.end
    if end <= at:
        return True
    for handle in await find_vmas(cx.mm, first.end, end):
        vma = await read_vma(handle)
        if vma.start != at or vma.file != first.file or vma.ops != first.ops:
            return False
        if (vma.flags ^ first.flags) & ~EVERY_POLICY:
            return False
        at = vma.end
    return at >= end


def prot_of(vma: Vma) -> int:
    """Return PROT_* for what a VMA allows."""
    return (
        (PROT_READ if vma.flags & VM_READ else 0)
        | (PROT_WRITE if vma.flags & VM_WRITE else 0)
        | (PROT_EXEC if vma.flags & VM_EXEC else 0)
    )


def flags_of(vma: Vma, flags: int) -> int:
    """Return MAP_* for mapping over a VMA."""
    locked = MAP_LOCKED if vma.flags & VM_LOCKED else 0
    huge = huge_flags(vma.huge_size) if vma.flags & VM_HUGETLB else 0
    return flags & MAP_NONBLOCK | MAP_SHARED | MAP_FIXED | MAP_POPULATE | locked | huge
