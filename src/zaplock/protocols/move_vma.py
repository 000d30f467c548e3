"""mremap's move: a VMA's part gets a copy at its new place, its entries follow, the old one goes.

How the entries go over stands in `move_tables`. With MREMAP_DONTUNMAP the old mapping stays, empty.

Source: mm/mremap.c move_vma, vrm_set_new_addr, dontunmap_complete; mm/vma.c copy_vma.
"""

from __future__ import annotations

from errno import EINVAL, ENOMEM, EPERM
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    PAGE_SHIFT,
    PUD_SIZE,
    VM_ACCOUNT,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_MERGEABLE,
    VM_UFFD_FLAGS,
)
from zaplock.model.folios import keep_locked
from zaplock.model.step import Task, step
from zaplock.model.vma import (
    MergedMark,
    Vma,
    account,
    change,
    device_of,
    insert,
    lookup,
    merge_around,
    read_vma,
    vma_of,
)
from zaplock.protocols.commit import beyond_memory, commit
from zaplock.protocols.ksm import unmerge_ksm_pages
from zaplock.protocols.locking import start_write_merging, vma_start_write
from zaplock.protocols.move_tables import move_back, move_page_tables, told_as_moved
from zaplock.protocols.mremap_request import MremapResult, Request, populate_range
from zaplock.protocols.placement import ZERO_DEVICE, get_unmapped_area, huge_flags
from zaplock.protocols.rmap_changes import RmapChange
from zaplock.protocols.shortage import no_memory
from zaplock.protocols.split import cut_at
from zaplock.protocols.teardown import read_counter, write_counter

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents


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
    rules = parts, untouched, counts, mark, *(() if cx.design.counted_grow else (False,))
    new = await copy_of_file(vma.file, handle, r.address, target, r.new_length, *rules)
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
    counted_grow: bool = True,
) -> int:
    """Put a copy of a VMA's part at `target`, merged with its neighbours where it can be.

    Memory that was never faulted in takes the page offset of its new place; then the copy may even
    merge with what it is a copy of. `merges`: "with all" neighbours, "apart" from that, only
    "elsewhere", not beside it, or "with none". `counts_apart`: the anonymous pages of a file's
    private mapping, or of /dev/zero's, keep the offsets that they had. `mark`: whose soft-dirty
    mark stays. `counted_grow`: what counts itself may take the copy over.
    """
    vma = vma_of(m, task, handle)
    never_touched = not vma.file and not vma.anon_vma and not vma.flags & VM_HUGETLB
    pgoff = target >> PAGE_SHIFT if never_touched else vma.pgoff_of(address)
    has_file = vma.file or device_of(vma.name) == "zero"
    keeps_offsets = counts_apart and has_file and vma.anon_vma
    shift = vma.anon_shift + (address - target >> PAGE_SHIFT) if keeps_offsets else 0
    end = target + length
    new = change(vma, start=target, end=end, pgoff=pgoff, anon_shift=shift, lock_seq=-1)
    copy = insert(m, task, new)
    beside = target == vma.end or end == vma.start
    if merges != "with none" and (merges != "elsewhere" or not (beside and never_touched)):
        apart = handle if merges == "apart" else 0
        copy = merge_around(m, task, copy, apart, untouched, mark=mark, unopened=counted_grow)
    forget_monitor(m, task, copy)
    return copy


copy_of_file = RmapChange(copy_vma)


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
    account(space, vma.flags, length >> PAGE_SHIFT)
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
