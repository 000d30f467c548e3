"""mremap: shrink, grow in place, move; a shrink is an munmap and downgrades like one (4.20 on).

What may be asked for at all stands in `mremap_request`, how a mapping gets to its new place in
`move_vma`.

The order of checks is that of 6.18; older kernels look at the same things in another order, so
where two of them fail they may name the other one. With `moves_many` (6.17) a move that keeps its
size may take a range of several VMAs, holes between them included.

Source: mm/mremap.c.
"""

from __future__ import annotations

from errno import EAGAIN, EFAULT, EINTR, EINVAL, ENOMEM, EPERM
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE_MASK,
    PAGE_SHIFT,
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYSHARE,
    VM_PFNMAP,
    VM_SEALED,
    VM_SHARED,
    page_align,
)
from zaplock.model.step import Task, step
from zaplock.model.vma import (
    Vma,
    absorb,
    accepts,
    account,
    can_merge,
    change,
    find_vma,
    find_vmas,
    fits_limits,
    following,
    keep_mark,
    lookup,
    overlapping,
    read_vma,
    tombstones_over,
    vma_of,
    write_vma,
)
from zaplock.protocols.after_unlock import unmap_complete
from zaplock.protocols.commit import commit
from zaplock.protocols.fault import is_mapped
from zaplock.protocols.locking import (
    mmap_write_lock_killable,
    start_write_merging,
    unlock_after_unmap,
    vma_start_write,
)
from zaplock.protocols.move_vma import near_map_limit, set_new_address_and_move
from zaplock.protocols.mremap_request import (
    WORD,
    MremapResult,
    Request,
    align_hugetlb,
    is_aligned_for_hugetlb,
    is_malformed,
    mremap_arguments,
    populate_range,
)
from zaplock.protocols.populate import mm_populate
from zaplock.protocols.rmap_changes import RmapChange
from zaplock.protocols.shortage import no_memory
from zaplock.protocols.tombstones import gave_way
from zaplock.protocols.vm_flags import mlock_fits

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents


async def mremap(
    cx: Cx, address: int, old_length: int, new_length: int, flags: int = 0, new_address: int = 0
) -> int:
    """The mremap system call: the address, or a negative errno."""
    old, new = page_align(old_length) % WORD, page_align(new_length) % WORD
    request = Request(address, old, new, flags, new_address)
    if flags & MREMAP_DONTUNMAP and old_length != new_length and not cx.design.mremap_checks_first:
        return -EINVAL  # here to 6.16 before both are rounded to pages
    if cx.design.mremap_aligned_first and request.implies_move and new_address & ~PAGE_MASK:
        return -EINVAL
    error = mremap_arguments(cx, request)
    if error and not cx.design.mremap_checks_first and not is_malformed(request):
        if request.implies_move:
            return await refuse_after_look_up(cx, request, error)
    elif error:
        return error
    if request.implies_move and await near_map_limit(cx.mm, 5):
        return -ENOMEM
    events: UnmapEvents = []
    while True:
        if await mmap_write_lock_killable(cx):
            return -EINTR
        shrinks = new < old
        waited = await gave_way(cx, address, address + old, unmaps=shrinks)
        if not waited and flags & MREMAP_FIXED:
            waited = await gave_way(cx, new_address, new_address + new, unmaps=True)
        if not waited:
            result = await remap(cx, request, events)
            waited = await gave_way(cx) if result.value == -ENOMEM else 0
        if waited < 0:
            return waited
        if not waited:
            break
    await unlock_after_unmap(cx, result.unmapped)
    if result.populate:
        await mm_populate(cx, *result.populate)
    await unmap_complete(cx, events)
    return result.value


async def refuse_after_look_up(cx: Cx, r: Request, error: int) -> int:
    """Return -EFAULT where nothing is mapped, else what is wrong with the arguments (to 6.16)."""
    if await mmap_write_lock_killable(cx):
        return -EINTR
    mapped = await is_mapped(cx.mm, r.address)
    if mapped and cx.design.mseal != "no":
        vma = await read_vma(await find_vma(cx.mm, r.address))
        error = -EPERM if vma.flags & VM_SEALED else error
    await unlock_after_unmap(cx, 0)
    return error if mapped else -EFAULT


async def remap(cx: Cx, r: Request, events: UnmapEvents) -> MremapResult:
    """Remap under the exclusive lock."""
    if cx.design.moves_many and r.flags & MREMAP_FIXED and r.old_length == r.new_length:
        return await remap_move(cx, r, events)
    handle, vma = await vma_at(cx, r.address)
    if vma is None:
        return MremapResult(-EFAULT)
    r = align_hugetlb(vma, r)
    clears_first = r.flags & MREMAP_FIXED and not cx.design.mremap_checks_first
    if clears_first:
        if cx.design.mseal != "no" and vma.flags & VM_SEALED:
            return MremapResult(-EPERM)
        if vma.flags & VM_HUGETLB and not is_aligned_for_hugetlb(vma, r):
            return MremapResult(-EINVAL)
        handle, vma, error = await clear_for_move(cx, r, events)
        if vma is None:
            return MremapResult(error)
    error = await check_prep_vma(cx, vma, r)
    if error:
        return MremapResult(error)
    if clears_first:
        return await move_to(cx, handle, vma, r, events)
    if r.implies_move:
        return await mremap_to(cx, r, events)
    if r.new_length == r.old_length:
        return MremapResult(r.address)
    if r.new_length < r.old_length:
        return await shrink(cx, r, events)
    return await expand_vma(cx, handle, vma, r, events)


async def vma_at(cx: Cx, address: int) -> tuple[int, Vma | None]:
    """Look an address up: the handle of the VMA that covers it and what it is, or (0, None)."""
    handle = await find_vma(cx.mm, address)
    vma = await read_vma(handle) if handle else None
    return (0, None) if vma is None or vma.start > address else (handle, vma)


async def clear_for_move(cx: Cx, r: Request, events: UnmapEvents) -> tuple[int, Vma | None, int]:
    """Unmap the new place and the old one's tail.

    Returns the VMA to be moved as it is then, or (0, None, errno), as where it was its own new
    place. To 6.16 this came before the mapping is looked at.
    """
    result, cuts = 0, r.old_length > r.new_length
    if r.flags & MREMAP_FIXED:
        result = await cx.design.do_munmap(cx, r.new_address, r.new_length, events, False)
        looks = cuts and cx.design.mremap_checks_first  # before the tail is cut, as well as behind
        if result >= 0 and looks and not await is_mapped(cx.mm, r.address):
            return 0, None, -EFAULT
    if result >= 0 and cuts:
        start, length = r.address + r.new_length, r.old_length - r.new_length
        result = await cx.design.do_munmap(cx, start, length, events, False)
    if result < 0:
        return 0, None, result
    handle, vma = await vma_at(cx, r.address)
    return handle, vma, -EFAULT


async def remap_move(cx: Cx, r: Request, events: UnmapEvents) -> MremapResult:
    """Move every VMA's part of a range, keeping the holes between them (6.17 on)."""
    end = r.address + r.old_length
    target, last_end, seen = r.new_address, 0, False
    value = -EFAULT
    handles = await find_vmas(cx.mm, r.address, end)
    for handle in handles:
        vma = await read_vma(handle)
        start = max(vma.start, r.address)
        length = min(vma.end, end) - start
        if not seen and r.address < vma.start:
            return MremapResult(-EFAULT)
        offset = vma.start - last_end if seen else 0
        last_end = vma.end
        if not await may_move_with_others(handle) and (seen or vma.end < end):
            return MremapResult(-EFAULT)
        part = align_hugetlb(vma, Request(start, length, length, r.flags, target + offset))
        error = await check_prep_vma(cx, vma, part)
        if error:
            return MremapResult(error)
        moved = await mremap_to(cx, part, events)
        if moved.value < 0:
            return moved
        value = value if seen else moved.value
        seen = True
        target = moved.value + length
    return MremapResult(value)


@step
def may_move_with_others(m: Machine, task: Task, handle: int) -> bool:
    """Return whether a VMA can be one of several: not watched, no driver's say in where it goes."""
    vma = vma_of(m, task, handle)
    if vma.flags & VM_HUGETLB:
        return not vma.uffd
    backing = m.files[vma.file] if vma.file else None
    return not (vma.uffd or vma.name) and not (
        backing and (backing.kind == "device" or backing.counts_mappings)
    )


async def check_prep_vma(cx: Cx, vma: Vma, r: Request) -> int:
    """Return the errno for a mapping that can't be remapped so, 0 if this one can."""
    if cx.design.mseal != "no" and vma.flags & VM_SEALED:
        return -EPERM
    if vma.flags & VM_HUGETLB and not is_aligned_for_hugetlb(vma, r):
        return -EINVAL
    if r.new_length <= r.old_length and not r.implies_move:
        return 0
    if not r.old_length and not vma.flags & (VM_SHARED | VM_MAYSHARE):
        return -EINVAL
    if r.flags & MREMAP_DONTUNMAP and vma.flags & (VM_DONTEXPAND | VM_PFNMAP):
        return -EINVAL
    if min(r.old_length, r.new_length) > vma.end - r.address:
        return -EFAULT
    if r.new_length <= r.old_length:
        return 0
    if vma.pgoff_of(r.address) + (r.new_length >> PAGE_SHIFT) >= WORD:
        return -EINVAL
    if vma.flags & (VM_DONTEXPAND | VM_PFNMAP):
        return -EFAULT
    if vma.flags & VM_HUGETLB:
        return -EINVAL
    return await growth_limits(cx.mm, vma, r.new_length - r.old_length)


@step
def growth_limits(m: Machine, task: Task, mm: int, vma: Vma, grow: int) -> int:
    """Return 0, or -EAGAIN, -ENOMEM where a limit stands against growing."""
    space = m.mm(mm)
    if vma.flags & VM_LOCKED and not mlock_fits(space, grow):
        return -EAGAIN
    return 0 if fits_limits(space, vma.flags, grow >> PAGE_SHIFT) else -ENOMEM


async def shrink(cx: Cx, r: Request, events: UnmapEvents) -> MremapResult:
    """Unmap what is beyond the new length."""
    start, length = r.address + r.new_length, r.old_length - r.new_length
    result = await cx.design.do_munmap(cx, start, length, events, cx.design.mremap_downgrades)
    return MremapResult(r.address if result >= 0 else result, result)


async def expand_vma(
    cx: Cx, handle: int, vma: Vma, r: Request, events: UnmapEvents
) -> MremapResult:
    """Grow in place if there is room behind, else move if that is allowed."""
    if cx.design.vma_locks:
        await vma_start_write(handle)
    await start_write_merging(cx, handle, vma.start, r.address + r.new_length)
    if await no_memory(cx):
        return MremapResult(-ENOMEM)
    untouched = cx.design.merges_untouched
    keeps_mark = cx.design.merges_keep_mark
    room = (r.address, r.old_length, r.new_length, untouched, keeps_mark)
    grown = await expand_file(vma.file, handle, *room)
    if grown < 0:
        return MremapResult(grown)
    if grown:
        return MremapResult(r.address, 0, populate_range(vma, r, r.address))
    if not r.flags & MREMAP_MAYMOVE:
        return MremapResult(-ENOMEM)
    return await set_new_address_and_move(cx, handle, vma, r, events)


@step
def expand(
    m: Machine,
    task: Task,
    handle: int,
    address: int,
    old_length: int,
    new_length: int,
    untouched: bool,
    keeps_mark: bool,
) -> int:
    """Move the end of a VMA on: 1, 0 where there is no room, -ENOMEM where it can't be charged."""
    if not has_room(m, task, handle, address, old_length, new_length):
        return 0
    vma = vma_of(m, task, handle)
    space, new_end = m.mm(vma.mm), address + new_length
    pages = new_end - vma.end >> PAGE_SHIFT
    if vma.flags & VM_ACCOUNT and commit(m, pages):
        return -ENOMEM
    account(space, vma.flags, pages)
    if vma.flags & VM_LOCKED:
        space.add("locked_vm", pages)
    write_vma(m, handle, change(vma, end=new_end))
    merge_with_next(m, task, handle, untouched, keeps_mark)
    return 1


def has_room(
    m: Machine,
    task: Task,
    handle: int,
    address: int,
    old_length: int,
    new_length: int,
    *_rules: bool,
) -> bool:
    """Return whether there is room behind a VMA for its end to move on."""
    vma = vma_of(m, task, handle)
    space, new_end = m.mm(vma.mm), address + new_length
    if address + old_length != vma.end or new_end > space.limits.task_size:
        return False
    taken = overlapping(m, space, vma.end, new_end) or tombstones_over(space, vma.end, new_end)
    return not taken


expand_file = RmapChange(expand, has_room)


def merge_with_next(m: Machine, task: Task, handle: int, untouched: bool, keeps_mark: bool) -> None:
    """Merge a grown VMA with the one that it has come to touch, never with the one before it.

    From 6.16 on, where that one has no anon_vma, nobody asks whether a fork has shared the grown
    one's (vma_merge_extend names no VMA that is_mergeable_anon_vma could ask).
    """
    vma = vma_of(m, task, handle)
    behind = following(m.mm(vma.mm), vma.end)
    if not behind:
        return
    other = vma_of(m, task, behind)
    asking = vma if other.anon_vma else change(vma, shared_anon_vma=False)
    if can_merge(m, asking, other) and (untouched or accepts(vma, other)):
        absorb(m, task, handle, behind)
        if not keeps_mark:
            keep_mark(m, task, handle, vma)


async def mremap_to(cx: Cx, r: Request, events: UnmapEvents) -> MremapResult:
    """Clear the new place, cut the old one, and move."""
    handle, vma, error = await clear_for_move(cx, r, events)
    if vma is None:
        return MremapResult(error)
    return await move_to(cx, handle, vma, r, events)


async def move_to(cx: Cx, handle: int, vma: Vma, r: Request, events: UnmapEvents) -> MremapResult:
    """Move what is left of a VMA to a place that is clear."""
    delta = max(0, r.old_length - r.new_length)
    r = r._replace(old_length=r.old_length - delta)
    if r.flags & MREMAP_DONTUNMAP and not await fits_twice(cx.mm, r.address, r.old_length):
        return MremapResult(-ENOMEM)
    return await set_new_address_and_move(cx, handle, vma, r, events, delta)


@step
def fits_twice(m: Machine, task: Task, mm: int, address: int, length: int) -> bool:
    """Return whether the limits allow the old mapping to stay beside the new one."""
    space = m.mm(mm)
    vma = vma_of(m, task, lookup(m, space, address))
    return fits_limits(space, vma.flags, length >> PAGE_SHIFT)
