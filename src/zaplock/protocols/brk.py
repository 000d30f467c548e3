"""brk: the heap, which grows as anonymous memory and shrinks as an munmap.

From 4.20 on a shrinking brk downgrades too: `mm->brk` is written under write before, and put back
if the unmap fails (9bc8039e715d). With the rwsem of its time that cost brk1 of will-it-scale dear.
"""

from __future__ import annotations

from errno import EINTR
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    PAGE_SHIFT,
    PAGE_SIZE,
    VM_ACCOUNT,
    VM_EXEC,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_READ,
    VM_WRITE,
    page_align,
)
from zaplock.model.references import born_dirty
from zaplock.model.step import Task, step
from zaplock.model.vma import (
    Vma,
    absorb,
    account,
    can_merge,
    fits_limits,
    insert,
    lookup,
    previous,
    tombstones_over,
    vma_of,
)
from zaplock.protocols.after_unlock import unmap_complete
from zaplock.protocols.commit import commit
from zaplock.protocols.ksm import become_mergeable, mergeable_flags
from zaplock.protocols.locking import (
    mmap_write_lock_killable,
    mmap_write_unlock,
    unlock_after_unmap,
)
from zaplock.protocols.placement import start_with_gap
from zaplock.protocols.populate import mm_populate
from zaplock.protocols.shortage import no_memory
from zaplock.protocols.teardown import read_counter, write_counter
from zaplock.protocols.tombstones import gave_way
from zaplock.protocols.vm_flags import mlock_fits

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.mm import Mm
    from zaplock.protocols.design import Cx, UnmapEvents


async def brk(cx: Cx, wanted: int) -> int:
    """The brk system call: returns where the heap ends now (the old end where it can't move)."""
    events: UnmapEvents = []
    while True:
        if await mmap_write_lock_killable(cx):
            return -EINTR
        old = await read_counter(cx.mm, "brk")
        new_end, old_end = page_align(wanted) % (1 << 64), page_align(old)
        shrinks = wanted <= old or new_end == old_end
        waited = await gave_way(cx, new_end, old_end, unmaps=True) if shrinks else 0
        if not waited:
            if not await may_move_brk(cx.mm, wanted, new_end, old_end):
                await mmap_write_unlock(cx)
                return old
            if shrinks:
                return await shrink(cx, old, wanted, new_end, old_end, events)
            if not await no_memory(cx) and await grow(cx.mm, old_end, new_end, wanted):
                break
            waited = await gave_way(cx)
            if not waited:
                await mmap_write_unlock(cx)
                return old
        if waited < 0:
            return waited
    await mmap_write_unlock(cx)
    if await read_counter(cx.mm, "def_flags") & VM_LOCKED:
        await mm_populate(cx, old_end, new_end)
    return wanted


@step
def may_move_brk(m: Machine, task: Task, mm: int, wanted: int, new_end: int, old_end: int) -> bool:
    """Return whether the heap may end there: above its start, within RLIMIT_DATA.

    A heap that shrinks must have something mapped in what it gives up.
    """
    space = m.mm(mm)
    start, limit = space.count("start_brk"), space.limits.rlimit_data
    if wanted < start or (limit < 1 << 63 and wanted - start + space.count("data_length") > limit):
        return False
    if wanted > space.count("brk") or new_end == old_end:
        return True
    ahead = lookup(m, space, new_end)
    return bool(ahead) and vma_of(m, task, ahead).start < old_end


async def shrink(
    cx: Cx, old: int, wanted: int, new_end: int, old_end: int, events: UnmapEvents
) -> int:
    """Move the end down and unmap what is above; ends the hold."""
    await write_counter(cx.mm, "brk", wanted)
    result = 0
    if new_end < old_end:
        downgrade = cx.design.brk_downgrades
        result = await cx.design.do_munmap(cx, new_end, old_end - new_end, events, downgrade)
    if result < 0:
        await write_counter(cx.mm, "brk", old)
    await unlock_after_unmap(cx, result)
    await unmap_complete(cx, events)
    return old if result < 0 else wanted


@step
def grow(m: Machine, task: Task, mm: int, old_end: int, new_end: int, wanted: int) -> bool:
    """Map [old_end, new_end) as heap, unless a limit or a mapping is in the way."""
    space = m.mm(mm)
    length = (new_end - old_end) % (1 << 64)
    pages = length >> PAGE_SHIFT
    if tombstones_over(space, old_end, new_end + PAGE_SIZE):
        return False
    ahead = lookup(m, space, old_end)
    if ahead and start_with_gap(space, vma_of(m, task, ahead)) < new_end + (1 << PAGE_SHIFT):
        return False
    limits = space.limits
    if old_end + length > limits.task_size or space.count("map_count") > limits.max_map_count:
        return False
    flags = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_ACCOUNT
    flags |= space.count("def_flags") | (VM_EXEC if space.limits.implies_exec else 0)
    if not fits_limits(space, flags, pages):
        return False
    if flags & VM_LOCKED and not mlock_fits(space, length):
        return False
    if commit(m, pages):
        return False
    born = born_dirty(m, mergeable_flags(space, flags, ""))
    vma = Vma(mm, old_end, new_end, born, old_end >> PAGE_SHIFT)
    handle = insert(m, task, vma)
    account(space, flags, pages)
    if flags & VM_LOCKED:
        space.add("locked_vm", pages)
    if not merge_with_heap(m, task, space, handle):
        become_mergeable(m, space, handle, old_end, new_end)
    space.counters.put("brk", wanted)
    return True


def merge_with_heap(m: Machine, task: Task, space: Mm, handle: int) -> bool:
    """Let what the heap has grown by be one VMA with the heap, never with anything else.

    Returns whether it could be.
    """
    vma = vma_of(m, task, handle)
    before = previous(space, vma.start)
    if not before:
        return False
    heap = vma_of(m, task, before)
    merges = heap.end > space.count("start_brk") and can_merge(m, heap, vma)
    if merges:
        absorb(m, task, before, handle, paid=True)  # the heap grows, and is no second VMA before
    return merges
