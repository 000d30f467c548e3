"""mremap: shrink, grow in place, move; a shrink is an munmap and downgrades like one (4.20 on).

How the entries of a move go from one place to the other stands in `move_tables`.

The order of checks is that of 6.18; older kernels look at the same things in another order, so
where two of them fail they may name the other one. With `moves_many` (6.17) a move that keeps its
size may take a range of several VMAs, holes between them included.

Source: mm/mremap.c, mm/vma.c copy_vma.
"""

from __future__ import annotations

from errno import EAGAIN, EFAULT, EINTR, EINVAL, ENOMEM, EPERM
from typing import TYPE_CHECKING, NamedTuple

from zaplock.model.flags import (
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE_MASK,
    PAGE_SHIFT,
    PUD_SIZE,
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_MERGEABLE,
    VM_PFNMAP,
    VM_SEALED,
    VM_SHARED,
    VM_UFFD_FLAGS,
    page_align,
)
from zaplock.model.folios import keep_locked
from zaplock.model.step import Task, step
from zaplock.model.vma import (
    MergedMark,
    Vma,
    absorb,
    accepts,
    account,
    can_merge,
    change,
    device_of,
    find_vma,
    find_vmas,
    fits_limits,
    following,
    insert,
    keep_mark,
    lookup,
    merge_around,
    overlapping,
    read_vma,
    tombstones_over,
    vma_of,
    write_vma,
)
from zaplock.protocols.after_unlock import unmap_complete
from zaplock.protocols.commit import beyond_memory, commit
from zaplock.protocols.fault import is_mapped
from zaplock.protocols.ksm import unmerge_ksm_pages
from zaplock.protocols.locking import (
    mmap_write_lock_killable,
    start_write_merging,
    unlock_after_unmap,
    vma_start_write,
)
from zaplock.protocols.move_tables import move_back, move_page_tables, told_as_moved
from zaplock.protocols.placement import ZERO_DEVICE, get_unmapped_area, huge_flags
from zaplock.protocols.populate import mm_populate
from zaplock.protocols.shortage import no_memory
from zaplock.protocols.split import cut_at
from zaplock.protocols.teardown import read_counter, write_counter
from zaplock.protocols.tombstones import gave_way
from zaplock.protocols.vm_flags import mlock_fits

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents

KNOWN = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
_WORD = 1 << 64


class Request(NamedTuple):
    """What is asked for; lengths and addresses in bytes, lengths in whole pages."""

    address: int
    old_length: int
    new_length: int
    flags: int
    new_address: int

    @property
    def implies_move(self) -> bool:
        """Whether the flags ask for a move, and so for a new address."""
        return bool(self.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))


class MremapResult(NamedTuple):
    """The address or a negative errno, what do_munmap left of the lock, what to populate."""

    value: int
    unmapped: int = 0
    populate: tuple[int, int] | None = None


async def mremap(
    cx: Cx, address: int, old_length: int, new_length: int, flags: int = 0, new_address: int = 0
) -> int:
    """The mremap system call: the address, or a negative errno."""
    old, new = page_align(old_length) % _WORD, page_align(new_length) % _WORD
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


def mremap_arguments(cx: Cx, r: Request) -> int:
    """Check what needs no lock: 0 or -EINVAL (check_mremap_params)."""
    task_size = cx.limits.task_size
    if r.flags & ~KNOWN or r.address & ~PAGE_MASK or not 0 < r.new_length <= task_size:
        return -EINVAL
    if not r.implies_move:
        return 0
    if r.new_address > task_size - r.new_length or r.new_address & ~PAGE_MASK:
        return -EINVAL
    if not r.flags & MREMAP_MAYMOVE:
        return -EINVAL
    if r.flags & MREMAP_DONTUNMAP and r.old_length != r.new_length:
        return -EINVAL
    old_end, new_end = (r.address + r.old_length) % _WORD, r.new_address + r.new_length
    return -EINVAL if old_end > r.new_address and new_end > r.address else 0


def is_malformed(r: Request) -> bool:
    """Return whether a request is refused before anything is looked up, in every kernel."""
    if r.flags & ~KNOWN or r.address & ~PAGE_MASK or not r.new_length:
        return True
    if r.implies_move and not r.flags & MREMAP_MAYMOVE:
        return True
    return bool(r.flags & MREMAP_DONTUNMAP and r.old_length != r.new_length)


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


def align_hugetlb(vma: Vma, r: Request) -> Request:
    """Round the lengths to huge pages where a mapping has such; the largest one to 0."""
    if not vma.flags & VM_HUGETLB:
        return r
    rounded = (
        (length + vma.huge_size - 1) & -vma.huge_size for length in (r.old_length, r.new_length)
    )
    old, new = (length % (1 << 64) for length in rounded)
    return r._replace(old_length=old, new_length=new)


def is_aligned_for_hugetlb(vma: Vma, r: Request) -> bool:
    """Return whether huge pages can be remapped so; they can't grow, for want of reservations."""
    unaligned = (r.address | r.new_address) % vma.huge_size
    return not unaligned and r.new_length <= r.old_length


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
    if vma.pgoff_of(r.address) + (r.new_length >> PAGE_SHIFT) >= _WORD:
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
    grown = await expand(handle, r.address, r.old_length, r.new_length, untouched, keeps_mark)
    if grown < 0:
        return MremapResult(grown)
    if grown:
        return MremapResult(r.address, 0, populate_range(vma, r, r.address))
    if not r.flags & MREMAP_MAYMOVE:
        return MremapResult(-ENOMEM)
    return await set_new_address_and_move(cx, handle, vma, r, events)


def populate_range(vma: Vma, r: Request, target: int) -> tuple[int, int] | None:
    """Return what a locked mapping has grown by, to be faulted in."""
    if not vma.flags & VM_LOCKED or r.new_length <= r.old_length:
        return None
    return target + r.old_length, target + r.new_length


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
    vma = vma_of(m, task, handle)
    space = m.mm(vma.mm)
    new_end = address + new_length
    if address + old_length != vma.end or new_end > space.limits.task_size:
        return 0
    if overlapping(m, space, vma.end, new_end) or tombstones_over(space, vma.end, new_end):
        return 0
    pages = new_end - vma.end >> PAGE_SHIFT
    if vma.flags & VM_ACCOUNT and commit(m, pages):
        return -ENOMEM
    account(space, vma.flags, vma.file, pages)
    if vma.flags & VM_LOCKED:
        space.add("locked_vm", pages)
    write_vma(m, handle, change(vma, end=new_end))
    merge_with_next(m, task, handle, untouched, keeps_mark)
    return 1


def merge_with_next(m: Machine, task: Task, handle: int, untouched: bool, keeps_mark: bool) -> None:
    """Merge a grown VMA with the one that it has come to touch, never with the one before it."""
    vma = vma_of(m, task, handle)
    behind = following(m.mm(vma.mm), vma.end)
    if not behind:
        return
    other = vma_of(m, task, behind)
    if can_merge(m, vma, other) and (untouched or accepts(vma, other)):
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


async def set_new_address_and_move(
    cx: Cx, handle: int, vma: Vma, r: Request, events: UnmapEvents, delta: int = 0
) -> MremapResult:
    """Find the new place (vrm_set_new_addr), then move there.

    `delta` is what was cut off before; where charges are forgotten it is still asked whether so
    much may be committed, and it is committed once more.
    """
    map_flags = MAP_FIXED if r.flags & MREMAP_FIXED else 0
    map_flags |= MAP_SHARED if vma.flags & VM_MAYSHARE else 0
    map_flags |= huge_flags(vma.huge_size) if vma.flags & VM_HUGETLB else 0
    hint = r.new_address if r.implies_move else 0
    pgoff = vma.pgoff_of(r.address)
    file = ZERO_DEVICE if device_of(vma.name) == "zero" else vma.file
    aligns = cx.design.aligns_for_huge_pages
    target = await get_unmapped_area(cx.mm, hint, r.new_length, map_flags, file, pgoff, aligns)
    if 0 <= target < cx.limits.mmap_min_addr:
        return MremapResult(-EPERM)  # a hint isn't rounded up here
    if target < 0:
        return MremapResult(target)
    if await near_map_limit(cx.mm, 3):
        return MremapResult(-ENOMEM)
    if vma.ops == "special" and (r.address, r.address + r.old_length) != (vma.start, vma.end):
        return MremapResult(-EINVAL)  # the kernel's own are not cut (vm_ops->may_split)
    forgotten = delta if vma.flags & VM_ACCOUNT and cx.design.mremap_forgets_charge else 0
    if forgotten and await is_too_much(forgotten):
        return MremapResult(-ENOMEM)
    result = await move(cx, handle, vma, r, target, events)
    if forgotten and result.value >= 0:
        await charge_cut(forgotten)
    return result


@step
def charge_cut(m: Machine, _task: Task, length: int) -> None:
    """Commit what has been cut off and given back; it is never given back again."""
    m.commit(length >> PAGE_SHIFT)
    m.forget_commitment(length >> PAGE_SHIFT)


@step
def is_too_much(m: Machine, _task: Task, length: int) -> bool:
    """Return whether heuristic overcommit refuses so many bytes at once."""
    return beyond_memory(m, length >> PAGE_SHIFT)


@step
def near_map_limit(m: Machine, _task: Task, mm: int, room: int) -> bool:
    """Return whether fewer than so many more VMAs may be made."""
    space = m.mm(mm)
    return space.count("map_count") >= space.limits.max_map_count - room


async def move(
    cx: Cx, handle: int, vma: Vma, r: Request, target: int, events: UnmapEvents
) -> MremapResult:
    """Move a part of a VMA to a place that is free (move_vma)."""
    keeps_old = bool(r.flags & MREMAP_DONTUNMAP)
    if cx.design.vma_locks:
        await vma_start_write(handle)
    leaks = cx.design.dontunmap_leaks_locked
    if keeps_old and not leaks and vma.flags & VM_LOCKED:
        handle = await split_off(cx, handle, vma, r)
        if handle < 0:
            return MremapResult(handle)
        vma = await read_vma(handle)
    if vma.flags & VM_MERGEABLE:
        closed_too = cx.design.unmerges_closed
        await unmerge_ksm_pages(vma, r.address, r.address + r.old_length, closed_too)
    if await charge_move(cx.mm, vma, r.new_length):
        return MremapResult(-ENOMEM)
    if await no_memory(cx):
        await uncharge_move(vma, r.new_length)
        return MremapResult(-ENOMEM)
    await start_write_merging(cx, handle, target, target + r.new_length)
    merges, untouched = leaks or not keeps_old, cx.design.merges_untouched
    parts = "with all" if merges else "apart" if cx.design.merges_anew else "elsewhere"
    if vma.uffd and cx.design.moves_watched_apart:
        parts = "with none"
    counts = cx.design.counts_anonymous_apart
    mark: MergedMark = "any" if cx.design.merges_keep_mark else "neighbour"
    new = await copy_vma(handle, r.address, target, r.new_length, parts, untouched, counts, mark)
    length, huge = min(r.old_length, r.new_length), bool(vma.flags & VM_HUGETLB)
    told = length
    if huge and (length >= 1 << 31 or vma.huge_size == PUD_SIZE):
        told = await told_as_moved(cx.mm, r.address, length, vma.huge_size)
    moved = min(told, await move_page_tables(cx, r.address, target, length, huge))
    hiwater_vm = await read_counter(cx.mm, "hiwater_vm")
    await account_copy(new, r.new_length)
    if moved < length:  # no memory for page tables
        await move_back(cx, r.address, target, moved)
        await cx.design.do_munmap(cx, target, r.new_length, events, False)
        await write_counter(cx.mm, "hiwater_vm", hiwater_vm)
        return MremapResult(-ENOMEM)
    if vma.reserves:
        await clear_reserve(handle)
    if keeps_old:
        resets, unaccounts = cx.design.dontunmap_resets_offset, cx.design.dontunmap_unaccounts
        await keep_empty(cx.mm, new, r.address, r.old_length, leaks, resets, unaccounts)
    elif r.old_length:
        await cx.design.do_munmap(cx, r.address, r.old_length, events, False)
    await write_counter(cx.mm, "hiwater_vm", hiwater_vm)
    return MremapResult(target, 0, populate_range(vma, r, target))


@step
def clear_reserve(m: Machine, task: Task, handle: int) -> None:
    """Take the reserve from a VMA: the part that has moved owns it (clear_vma_resv_huge_pages).

    The pages that were promised to the rest, and are not mapped, stay so with nobody to claim them.
    """
    m.vmas.put(handle, change(vma_of(m, task, handle), reserves=False))


async def split_off(cx: Cx, handle: int, vma: Vma, r: Request) -> int:
    """Split what is to be unlocked off its VMA; its handle, or -ENOMEM."""
    if r.address > vma.start:
        handle = await cut_at(cx, handle, vma, r.address, False)
    if handle > 0 and r.address + r.old_length < vma.end:
        new = await cut_at(cx, handle, vma, r.address + r.old_length, False)
        return new if new < 0 else handle
    return handle


@step
def charge_move(m: Machine, task: Task, mm: int, vma: Vma, new_length: int) -> int:
    """Charge the new place of an accounted mapping (its old one is given back by the unmap)."""
    return commit(m, new_length >> PAGE_SHIFT) if vma.flags & VM_ACCOUNT else 0


@step
def uncharge_move(m: Machine, _task: Task, vma: Vma, new_length: int) -> None:
    """Take back what was charged for a move that fails."""
    if vma.flags & VM_ACCOUNT:
        m.commit(-(new_length >> PAGE_SHIFT))


@step
def copy_vma(
    m: Machine,
    task: Task,
    handle: int,
    address: int,
    target: int,
    length: int,
    merges: str,
    untouched: bool,
    counts_apart: bool,
    mark: MergedMark,
) -> int:
    """Put a copy of a VMA's part at `target`, merged with its neighbours where it can be.

    Memory that was never faulted in takes the page offset of its new place; then the copy may even
    merge with what it is a copy of. `merges`: "with all" neighbours, "apart" from that, only
    "elsewhere", not beside it, or "with none". `counts_apart`: the anonymous pages of a file's
    private mapping keep the offsets that they had. `mark`: whose soft-dirty mark stays.
    """
    vma = vma_of(m, task, handle)
    never_touched = not vma.file and not vma.anon_vma and not vma.flags & VM_HUGETLB
    pgoff = target >> PAGE_SHIFT if never_touched else vma.pgoff_of(address)
    keeps_offsets = counts_apart and vma.file and vma.anon_vma
    shift = vma.anon_shift + (address - target >> PAGE_SHIFT) if keeps_offsets else 0
    end = target + length
    new = change(vma, start=target, end=end, pgoff=pgoff, anon_shift=shift, lock_seq=-1)
    copy = insert(m, task, new)
    beside = target == vma.end or end == vma.start
    if merges != "with none" and (merges != "elsewhere" or not (beside and never_touched)):
        apart = handle if merges == "apart" else 0
        copy = merge_around(m, task, copy, apart, untouched, mark=mark)
    forget_monitor(m, task, copy)
    return copy


def forget_monitor(m: Machine, task: Task, handle: int) -> None:
    """Take a moved VMA, with what it has merged into, from its userfaultfd monitor.

    Only a monitor that asked for UFFD_FEATURE_EVENT_REMAP would keep it; none here does.
    """
    vma = vma_of(m, task, handle)
    if vma.uffd:
        m.vmas.put(handle, change(vma, uffd=0, flags=vma.flags & ~VM_UFFD_FLAGS))


@step
def account_copy(m: Machine, task: Task, handle: int, length: int) -> None:
    """Count a copied mapping (vrm_stat_account)."""
    vma = vma_of(m, task, handle)
    space = m.mm(vma.mm)
    account(space, vma.flags, vma.file, length >> PAGE_SHIFT)
    if vma.flags & VM_LOCKED:
        space.add("locked_vm", length >> PAGE_SHIFT)


@step
def keep_empty(
    m: Machine,
    task: Task,
    mm: int,
    new: int,
    address: int,
    length: int,
    leaks: bool,
    resets: bool,
    unaccounts: bool,
) -> None:
    """MREMAP_DONTUNMAP: the old mapping stays, empty and unlocked (dontunmap_complete).

    To 7.2 locked_vm keeps counting it, though its VM_LOCKED is gone (`leaks`); so an address space
    that did this with locked memory ends with a locked_vm that is too high. `resets`: what lost its
    anon_vma gets the page offset of memory that was never touched. `unaccounts`: the mapping with
    all of it is no longer accounted, and nobody gives back what it was charged (6.15 to 6.17).
    """
    handle = lookup(m, m.mm(mm), address)
    vma = vma_of(m, task, handle)
    alone = handle != new and (vma.start, vma.end) == (address, address + length)
    anon_vma = 0 if alone else vma.anon_vma
    shared = vma.shared_anon_vma and not alone
    flags = vma.flags & ~VM_LOCKED_MASK
    if vma.flags & VM_LOCKED:
        if leaks:
            m.mm(mm).add("locked_vm_leaked", vma.nr_pages)
        else:
            m.mm(mm).add("locked_vm", -vma.nr_pages)
        keep_locked(m, m.mm(mm), vma.start, vma.end)
    if unaccounts and flags & VM_ACCOUNT:
        flags &= ~VM_ACCOUNT
        m.forget_commitment(vma.nr_pages)
    pgoff = vma.pgoff
    if resets and alone and not vma.file and not vma.name:  # /dev/zero has a file
        pgoff = vma.start >> PAGE_SHIFT
    shift = 0 if alone else vma.anon_shift
    kept = change(
        vma, flags=flags, pgoff=pgoff, anon_vma=anon_vma, shared_anon_vma=shared, anon_shift=shift
    )
    m.vmas.put(handle, kept)
