"""mprotect: change what may be done with a range, VMA by VMA, under the exclusive lock.

The loop over VMAs with splits and merges (`apply_to_range`) also serves mlock and madvise, which
change flags in the same way (vma_modify).

Source: mm/mprotect.c do_mprotect_pkey, mprotect_fixup; mm/vma.c vma_modify.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from errno import EACCES, EINTR, EINVAL, ENOMEM, EPERM
from typing import TYPE_CHECKING, Any, NamedTuple

from zaplock.model.dirty import forget_dirty
from zaplock.model.flags import (
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PROT_EXEC,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_READ,
    PROT_WRITE,
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_NORESERVE,
    VM_PKEY_MASK,
    VM_PKEY_SHIFT,
    VM_SEALED,
    VM_SHARED,
    VM_STICKY,
    VM_UFFD_WP,
    VM_WRITE,
    page_align,
)
from zaplock.model.mm import Mm
from zaplock.model.page_copy import is_own
from zaplock.model.pagetable import protect
from zaplock.model.references import use_batches, watches_writes
from zaplock.model.shared_huge import IN_MEMORY, take_write
from zaplock.model.step import Task, step
from zaplock.model.tlb import flush_tlb_range
from zaplock.model.vma import (
    MergedMark,
    Vma,
    accepts,
    account_parts,
    can_merge,
    can_shift,
    change,
    find_vma,
    fits_limits,
    following,
    keep_mark,
    lookup,
    merge_around,
    merges_around,
    previous,
    read_vma,
    split,
    split_huge_entry,
    vma_of,
    write_vma,
)
from zaplock.protocols.address_locks import give, take
from zaplock.protocols.commit import commit, uncharge
from zaplock.protocols.locking import (
    assert_write_locked,
    mmap_write_lock_killable,
    mmap_write_unlock,
    start_write_merging,
    vma_start_write,
)
from zaplock.protocols.populate import populate_vma_page_range
from zaplock.protocols.rmap_changes import RmapChange
from zaplock.protocols.seals import seal_in_range
from zaplock.protocols.shortage import no_memory
from zaplock.protocols.split import cut_at, cut_at_edges
from zaplock.protocols.vm_flags import denies_write_exec, prot_flags

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

UNREFINED = 1
"""Result of a refined mprotect that has to be made under a hold of everything."""
KNOWN_PROT = PROT_READ | PROT_WRITE | PROT_EXEC | PROT_GROWSDOWN | PROT_GROWSUP | 8


async def mprotect(cx: Cx, start: int, length: int, prot: int, key: int = -1) -> int:
    """The mprotect system call: 0 or a negative errno; VMAs before the error stay changed.

    `key`: an allocated protection key that the VMAs get (pkey_mprotect), -1 to leave them theirs.
    What a key keeps from a thread is not in the model.
    """
    grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP)
    if grows == PROT_GROWSDOWN | PROT_GROWSUP or start & ~PAGE_MASK:
        return -EINVAL
    if not length:
        return 0
    end = start + page_align(length)
    if end <= start or end >= 1 << 64:
        return -ENOMEM
    if prot & ~KNOWN_PROT:
        return -EINVAL
    if cx.design.mmap is not None and not grows:
        return await mprotect_ranged(cx, start, end, prot, key)
    if cx.design.mprotect_refines and not grows and key < 0:
        result = await mprotect_refined(cx, start, end, prot)
        if result != UNREFINED:
            return result
    if await mmap_write_lock_killable(cx):
        return -EINTR
    result = await protect_range(cx, start, end, prot & ~grows, grows, key)
    await mmap_write_unlock(cx)
    return result


async def mprotect_ranged(cx: Cx, start: int, end: int, prot: int, key: int) -> int:
    """mprotect under a hold of its range, for designs whose mmap holds no more than its own."""
    if await take(cx, cx.mm, start, end, killable=True):
        return -EINTR
    result = -ENOMEM if await no_memory(cx) else await set_apart(cx.mm, start, end)
    if not result:
        result = await protect_range(cx, start, end, prot, 0, key)
    await give(cx, cx.mm, start, end)
    return result


async def mprotect_refined(cx: Cx, start: int, end: int, prot: int) -> int:
    """mprotect under a hold of its mapping and a page on both sides, where the tree stays as it is.

    It is looked up under a shared hold of everything, and once more under the other one (Kogan,
    Dice, Issa compare a number that every writer of the whole range counts up; looking again is the
    same, and less strict). UNREFINED, and nothing done, where a mapping comes or goes.
    """
    if await take(cx, cx.mm, write=False, killable=True):
        return -EINTR
    wanted = prot_flags(prot)
    found = await refined_range(cx.mm, start, end, wanted, cx.design.merges_untouched)
    await give(cx, cx.mm, write=False)
    if not found:
        return UNREFINED
    if await take(cx, cx.mm, *found, killable=True):
        return -EINTR
    result = UNREFINED
    if await refined_range(cx.mm, start, end, wanted, cx.design.merges_untouched) == found:
        result = await protect_range(cx, start, end, prot, 0, -1)
    await give(cx, cx.mm, *found)
    return result


@step
def refined_range(
    m: Machine, task: Task, mm: int, start: int, end: int, wanted: int, untouched: bool
) -> tuple[int, int] | None:
    """Return what an mprotect has to hold that moves one border, or none; None for any other."""
    m.spend("vma_find")
    space = m.mm(mm)
    handle = lookup(m, space, start)
    if not handle:
        return None
    vma = vma_of(m, task, handle)
    if not vma.start <= start < end <= vma.end:
        return None
    flags = (vma.flags & ~VM_ACCESS_FLAGS) | wanted
    if wanted & VM_WRITE and not flags & (VM_SHARED | VM_NORESERVE | VM_HUGETLB):
        flags |= VM_ACCOUNT
    part = change(vma, start=start, end=end, pgoff=vma.pgoff_of(start), flags=flags)

    def joins(neighbour: int, before: bool) -> bool:
        other = vma_of(m, task, neighbour) if neighbour else None
        if other is None or not (other.end == start if before else other.start == end):
            return False
        pair = (other, part) if before else (part, other)
        return can_merge(m, *pair) and (untouched or accepts(part, other))

    low, high = start == vma.start, end == vma.end
    left = low and joins(previous(space, start), True)
    right = high and joins(following(space, end), False)
    moves = (left or right) if low != high else low and high and not left and not right
    return (max(0, vma.start - PAGE_SIZE), vma.end + PAGE_SIZE) if moves else None


@step
def set_apart(m: Machine, task: Task, mm: int, start: int, end: int) -> int:
    """Split what reaches out of a range, so that the range's mappings are nobody else's."""
    return cut_at_edges(m, task, m.mm(mm), start, end, split)


async def protect_range(cx: Cx, start: int, end: int, prot: int, grows: int, key: int) -> int:
    """Change [start, end) under the exclusive lock."""
    first = await find_vma(cx.mm, start)
    if not first:
        return -ENOMEM
    vma = await read_vma(first)
    if grows & PROT_GROWSDOWN:
        if vma.start >= end or not vma.flags & VM_GROWSDOWN:
            return -ENOMEM if vma.start >= end else -EINVAL
        start = vma.start
    elif vma.start > start:
        return -ENOMEM
    elif grows:
        return -EINVAL
    if await seal_in_range(cx, start, end):
        return -EPERM
    at = start
    while at < end:
        handle = await find_vma(cx.mm, at)
        vma = await read_vma(handle) if handle else None  # type: ignore[assignment]
        if vma is None or vma.start > at:
            return -ENOMEM
        implies = cx.limits.implies_exec and prot & PROT_READ and vma.flags & VM_MAYEXEC
        wanted = prot_flags(prot) | (VM_EXEC if implies else 0)
        error = forbidden(vma, wanted, cx.design.mseal == "vma")
        gains = wanted & VM_EXEC and await denies_write_exec(cx.mm, vma.flags, wanted)
        error = -EACCES if gains else error
        if error:
            return error
        high = min(end, vma.end)
        error = await mprotect_fixup(cx, handle, at, high, wanted, key)
        if error:
            return error
        at = high
    return 0


def forbidden(vma: Vma, wanted: int, seals: bool) -> int:
    """Return the errno of what a VMA doesn't allow, 0 if it allows it."""
    if wanted & ~(vma.flags >> 4) & VM_ACCESS_FLAGS:
        return -EACCES
    return -EPERM if seals and vma.flags & VM_SEALED else 0


async def mprotect_fixup(cx: Cx, handle: int, low: int, high: int, wanted: int, key: int) -> int:
    """Give [low, high) of a VMA its new access flags, and its key."""
    vma = await read_vma(handle)
    flags = (vma.flags & ~VM_ACCESS_FLAGS) | wanted
    if key >= 0:
        flags = flags & ~VM_PKEY_MASK | key << VM_PKEY_SHIFT
    if flags == vma.flags:
        return 0
    charged = await charge_writable(cx.mm, vma, flags, high - low)
    if charged < 0:
        return charged
    flags |= charged
    unwritten = not flags & VM_WRITE and vma.flags & VM_ACCOUNT
    untouched = cx.design.uncharges_untouched and not vma.file and not vma.anon_vma
    uncharged = unwritten and untouched
    if uncharged:
        flags &= ~VM_ACCOUNT
    part = await modify_vma(cx, handle, low, high, flags)
    if part < 0:
        await uncharge(charged, high - low)
        return part
    await change_protection(cx.mm, low, high, flags, vma.flags, cx.design.mprotect_lets_write)
    if uncharged:
        await uncharge(VM_ACCOUNT, high - low)
    if vma.flags & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED and flags & VM_WRITE:
        await populate_vma_page_range(cx, part, await read_vma(part), low, high)
    return 0


async def modify_vma(
    cx: Cx,
    handle: int,
    low: int,
    high: int,
    flags: int,
    uffd: int | None = None,
    anon_name: str | None = None,
    sets_all: bool = True,
    knows_offset: bool = True,
) -> int:
    """Give [low, high) of a VMA other flags: split it off, set them, merge; the handle or -ENOMEM.

    `uffd` is a userfaultfd context, `anon_name` a name, that the part gets too. `sets_all`: once
    they have merged, all flags are written, not only those that change (a soft-dirty mark before
    7.0 is then the part's own). `knows_offset`: what is asked of a neighbour is whether the part's
    page offset fits; else the whole VMA's, so that what begins within it merges with none but by
    chance.

    Merging comes last here, while Linux merges instead of splitting where it can; the map is the
    same, and the split's limit is asked only where no merge can save it.
    """
    vma = await read_vma(handle)
    if cx.design.vma_locks:
        await vma_start_write(handle)
    uffd = vma.uffd if uffd is None else uffd
    anon_name = vma.anon_name if anon_name is None else anon_name
    mark: MergedMark = "any"
    if not cx.design.merges_keep_mark:
        mark = "own" if sets_all else "neighbour"
    rules = Joining(cx.design.merges_untouched, cx.design.counted_grow, knows_offset, mark)
    if cx.design.merges:
        part = (low, high, flags, uffd, anon_name, rules)
        merged = await join_neighbour(vma.file, handle, *part)
        if merged:
            return merged
    if low > vma.start:
        new = await cut_at(cx, handle, vma, low, True)
        if new < 0:
            return new
    if high < vma.end:
        new = await cut_at(cx, handle, vma, high, False)
        if new < 0:
            return new
    await set_flags(handle, flags, uffd, anon_name)
    if not cx.design.merges or (low > vma.start and not knows_offset):
        return handle
    await start_write_merging(cx, handle, max(low, vma.start), min(high, vma.end))
    return await join_neighbours(vma.file, handle, rules.untouched, mark)


class Joining(NamedTuple):
    """By which rules a changed part goes over to a neighbour.

    untouched: what was touched may join what never was. counted_grow: what counts itself may take
    a part over. knows_offset, mark: see `modify_vma`.
    """

    untouched: bool
    counted_grow: bool
    knows_offset: bool
    mark: MergedMark


def neighbour_to_join(
    m: Machine,
    task: Task,
    handle: int,
    low: int,
    high: int,
    flags: int,
    uffd: int,
    anon_name: str,
    rules: Joining,
) -> tuple[int, Vma] | None:
    """Return the neighbour that a changed part of a VMA goes over to, and the part; or None."""
    vma = vma_of(m, task, handle)
    space = m.mm(vma.mm)
    if (low > vma.start) == (high < vma.end):
        return None
    pgoff = vma.pgoff_of(low) if rules.knows_offset else vma.pgoff
    part = change(
        vma, start=low, end=high, pgoff=pgoff, flags=flags, uffd=uffd, anon_name=anon_name
    )
    neighbour = previous(space, vma.start) if low == vma.start else following(space, vma.end)
    if not neighbour:
        return None
    other = vma_of(m, task, neighbour)
    pair = (other, part) if low == vma.start else (part, other)
    if not (can_merge(m, *pair) or (rules.counted_grow and can_shift(m, *pair))):
        return None
    if not (rules.untouched or accepts(part, other)):
        return None
    return neighbour, part


def goes_over(m: Machine, task: Task, handle: int, *part: Any) -> bool:
    """Return whether `merge_with_neighbour` moves a border."""
    return neighbour_to_join(m, task, handle, *part) is not None


@step
def merge_with_neighbour(
    m: Machine,
    task: Task,
    handle: int,
    low: int,
    high: int,
    flags: int,
    uffd: int,
    anon_name: str,
    rules: Joining,
) -> int:
    """Move the border to a neighbour that the changed part fits to; its handle, or 0.

    Only a part at one end of the VMA can go over; a whole VMA merges after its flags are set.
    """
    found = neighbour_to_join(m, task, handle, low, high, flags, uffd, anon_name, rules)
    if found is None:
        return 0
    neighbour, part = found
    vma, other = vma_of(m, task, handle), vma_of(m, task, neighbour)
    space = m.mm(vma.mm)
    split_huge_entry(m, task, space, high if low == vma.start else low)
    donor = other if other.anon_vma else part
    links = {
        "anon_vma": donor.anon_vma,
        "shared_anon_vma": donor.shared_anon_vma,
        "flags": other.flags | flags & VM_STICKY,
    }
    if low == vma.start:
        write_vma(m, handle, change(vma, start=high, pgoff=vma.pgoff_of(high)))
        write_vma(m, neighbour, change(other, end=high, **links))
    else:
        write_vma(m, handle, change(vma, end=low))
        write_vma(m, neighbour, change(other, start=low, pgoff=part.pgoff, **links))
    if rules.mark != "any":
        keep_mark(m, task, neighbour, part if rules.mark == "own" else other)
    return neighbour


join_neighbour = RmapChange(merge_with_neighbour, goes_over)


@step
def set_flags(m: Machine, task: Task, handle: int, flags: int, uffd: int, anon_name: str) -> None:
    """Set the flags, the userfaultfd context and the name of a VMA in the tree."""
    vma = vma_of(m, task, handle)
    assert_write_locked(m, task, vma, "vm_flags of")
    if vma.flags != flags or vma.uffd != uffd or vma.anon_name != anon_name:
        m.vmas.put(handle, change(vma, flags=flags, uffd=uffd, anon_name=anon_name))


@step
def merge(m: Machine, task: Task, handle: int, untouched: bool, mark: MergedMark) -> int:
    """Merge a VMA with its neighbours where it can be; return what it is now."""
    return merge_around(m, task, handle, 0, untouched, mark=mark)


join_neighbours = RmapChange(
    merge, lambda m, task, handle, untouched, _mark: merges_around(m, task, handle, untouched)
)


@step
def charge_writable(m: Machine, task: Task, mm: int, vma: Vma, flags: int, length: int) -> int:
    """Charge a private mapping that becomes writable: VM_ACCOUNT, 0, or -ENOMEM."""
    space = m.mm(mm)
    pages = length >> PAGE_SHIFT
    if flags & VM_WRITE:
        if not fits_limits(space, flags, pages) and fits_limits(space, vma.flags, pages):
            return -ENOMEM
        if not vma.flags & (VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE):
            return commit(m, pages) or VM_ACCOUNT
    return 0


@step
def change_protection(
    m: Machine, _task: Task, mm: int, low: int, high: int, flags: int, old_flags: int, lets: bool
) -> None:
    """Take write permission from the entries where needed, flush, and move the counters.

    Or give it: see `let_write`, and `lets`.
    """
    space = m.mm(mm)
    accessible = bool(flags & VM_ACCESS_FLAGS)
    use_batches(m, space, low >> PAGE_SHIFT, high >> PAGE_SHIFT)
    forget_dirty(m, space, low >> PAGE_SHIFT, high >> PAGE_SHIFT)
    if not flags & VM_WRITE or not old_flags & VM_ACCESS_FLAGS:
        writable = bool(flags & VM_WRITE)
        protect(m, space, low >> PAGE_SHIFT, high >> PAGE_SHIFT, writable, accessible)
        flush_tlb_range(m, mm, low >> PAGE_SHIFT, high >> PAGE_SHIFT, False)
    if flags & VM_WRITE and (flags & VM_SHARED or lets):
        let_write(m, space, low >> PAGE_SHIFT, high >> PAGE_SHIFT, flags)
    pages = high - low >> PAGE_SHIFT
    account_parts(space, old_flags, -pages)
    account_parts(space, flags, pages)


def let_write(m: Machine, space: Mm, first: int, last: int, flags: int) -> None:
    """Make entries writable that need no fault for it: the first write is nobody's business.

    Those of shared memory, unless a userfaultfd waits for writes; and of private memory (6.0) the
    pages that nobody else has, nor had since they were last written to (can_change_pte_writable).
    Not told: huge pages, and what an entry has made dirty of a file on a disk.
    """
    if flags & (VM_SHARED | VM_UFFD_WP) == VM_SHARED | VM_UFFD_WP:
        take_write(space, first, last)
        return
    kinds = IN_MEMORY if flags & VM_SHARED else ("anon",)
    for low, high, pte in space.ptes.overlapping(first, last):
        if pte.kind not in kinds or pte.writable or pte.no_access or pte.wp:
            continue
        if pte.soft_clean and watches_writes(m, flags):
            continue
        for start, end, frame in m.frames.overlapping(low + pte.delta, high + pte.delta):
            if flags & VM_SHARED or (is_own(frame) and not frame.forked):
                space.ptes.set(start - pte.delta, end - pte.delta, change(pte, writable=True))


async def apply_to_range(
    cx: Cx, start: int, end: int, visit: Callable[[int, Vma, int, int], Coroutine[Any, Any, int]]
) -> tuple[int, bool]:
    """Visit every VMA's part of [start, end): (the first error, whether there were holes)."""
    holes = False
    at = start
    while at < end:
        handle = await find_vma(cx.mm, at)
        vma = await read_vma(handle) if handle else None
        if vma is None or vma.start >= end:
            return 0, True
        holes = holes or vma.start > at
        low, high = max(at, vma.start), min(end, vma.end)
        error = await visit(handle, vma, low, high)
        if error:
            return error, holes
        at = high
    return 0, holes
