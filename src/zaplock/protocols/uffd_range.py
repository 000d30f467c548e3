"""userfaultfd: which ranges a monitor watches (UFFDIO_REGISTER and _UNREGISTER).

Only anonymous memory and files in memory can be watched. Registering splits and merges VMAs like
any change of flags. Source: fs/userfaultfd.c, mm/userfaultfd.c (6.11 on). Not modelled: faults of
hugetlb.
"""

from __future__ import annotations

from errno import EBUSY, EINTR, EINVAL, ENOMEM, EPERM
from typing import TYPE_CHECKING, NamedTuple

from zaplock.model.dirty import forget_dirty
from zaplock.model.flags import (
    PAGE_MASK,
    PAGE_SHIFT,
    VM_DROPPABLE,
    VM_HUGETLB,
    VM_MAYWRITE,
    VM_UFFD_FLAGS,
    VM_UFFD_MINOR,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
)
from zaplock.model.pagetable import (
    ABSENT,
    UFFD_WP_MARKER,
    alloc_tables,
    drop_entries,
    split_huge_at,
)
from zaplock.model.shared_huge import KIND as SHARED_HUGE
from zaplock.model.shared_huge import take_write
from zaplock.model.step import Task, step
from zaplock.model.tlb import flush_tlb_range
from zaplock.model.vma import Vma, change, find_vma, overlapping, vma_of
from zaplock.protocols.locking import mmap_write_lock_killable, mmap_write_unlock
from zaplock.protocols.mprotect import apply_to_range, modify_vma

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

MODES = {1: VM_UFFD_MISSING, 2: VM_UFFD_WP, 4: VM_UFFD_MINOR}


async def register(
    cx: Cx, context: int, start: int, length: int, mode: int, watches_any: bool = False
) -> int:
    """UFFDIO_REGISTER: 0 or an errno; nothing is registered unless all of it can be.

    `watches_any`: where only writes are watched, every kind of memory will do
    (UFFD_FEATURE_WP_ASYNC, 6.7).
    """
    if not mode or mode & ~sum(MODES) or not is_range(cx, start, length):
        return -EINVAL
    wanted = sum(flag for bit, flag in MODES.items() if mode & bit)
    any_kind = watches_any and wanted == VM_UFFD_WP
    if await mmap_write_lock_killable(cx):
        return -EINTR

    async def visit(handle: int, vma: Vma, low: int, high: int) -> int:
        if vma.uffd == context and vma.flags & wanted == wanted:
            return 0
        flags = vma.flags & ~VM_UFFD_FLAGS | wanted
        return await watch(cx, handle, low, high, flags, context)

    design = cx.design
    rules = ToWatch(
        wanted, context, any_kind, design.watches_droppable, design.watches_attached_huge,
        keeps_wp=design.uffd_keeps_wp,
    )  # fmt: skip
    error = await refused(cx, start, start + length, rules)
    if not error:
        error, _ = await apply_to_range(cx, start, start + length, visit)
    await mmap_write_unlock(cx)
    return error


async def unregister(cx: Cx, start: int, length: int, watches_any: bool = False) -> int:
    """UFFDIO_UNREGISTER: 0 or -EINVAL; `watches_any` as for `register`."""
    if not is_range(cx, start, length):
        return -EINVAL
    if await mmap_write_lock_killable(cx):
        return -EINTR

    async def visit(handle: int, vma: Vma, low: int, high: int) -> int:
        if not vma.uffd:
            return 0
        if vma.flags & VM_UFFD_WP:
            await end_protection(handle, low, high)
        flags = vma.flags & ~VM_UFFD_FLAGS
        return await watch(cx, handle, low, high, flags, 0)

    design = cx.design
    rules = ToWatch(0, 0, watches_any, design.watches_droppable, design.watches_attached_huge)
    error = await refused(cx, start, start + length, rules)
    if not error:
        error, _ = await apply_to_range(cx, start, start + length, visit)
    await mmap_write_unlock(cx)
    return error


async def watch(cx: Cx, handle: int, low: int, high: int, flags: int, context: int) -> int:
    """Give a part of a VMA to a context, 0 for none; 0 or -ENOMEM."""
    parts = cx.design.uffd_merges_parts
    return min(0, await modify_vma(cx, handle, low, high, flags, context, knows_offset=parts))


@step
def end_protection(m: Machine, task: Task, handle: int, low: int, high: int) -> None:
    """Let pages be written to that the userfaultfd which goes has write-protected."""
    uffd_wp_range(m, task, vma_of(m, task, handle), low, high, False)


def uffd_wp_range(m: Machine, task: Task, vma: Vma, low: int, high: int, protects: bool) -> None:
    """Write-protect the entries of a part of a VMA, or no longer.

    In files, where a page that is not mapped may be there all the same, markers stand for what is
    empty, and page tables are made for them.
    """
    space, first, last = m.mm(vma.mm), low >> PAGE_SHIFT, high >> PAGE_SHIFT
    split_huge_at(m, task, space, first)
    split_huge_at(m, task, space, last)
    forget_dirty(m, space, first, last)
    for start, end, pte in space.ptes.overlapping(first, last):
        if protects and pte.kind == SHARED_HUGE:
            drop_entries(m, task, space, start, end, pte)
    if protects and vma.file:
        alloc_tables(m, task, space, first, last)
    at = first
    for start, end, pte in [*space.ptes.overlapping(first, last), (last, last, UFFD_WP_MARKER)]:
        if protects and vma.file and at < start:
            space.ptes.set(at, start, UFFD_WP_MARKER)
        at = end
        if pte.kind == "uffd_wp" and not protects:
            space.ptes.clear(start, end)
        if (pte.kind not in ABSENT or pte.kind == "swap") and pte.wp != protects:
            new = change(pte, writable=pte.writable and not protects, wp=protects)
            space.ptes.set(start, end, new)
    take_write(space, first, last)
    flush_tlb_range(m, vma.mm, first, last, False)


def is_range(cx: Cx, start: int, length: int) -> bool:
    """Return whether a range may be asked for at all (validate_range)."""
    if start & ~PAGE_MASK or length & ~PAGE_MASK or not length:
        return False
    if start < cx.limits.mmap_min_addr and not cx.design.uffd_below_minimum:
        return False
    size = cx.limits.task_size
    return start < size and length <= size - start


class ToWatch(NamedTuple):
    """What is to be watched, and by which rules of a kernel's.

    wanted: VM_UFFD_*, 0 for no longer. context: who watches. any_kind: of memory will do. droppable
    mappings can be watched. attached_huge: so can segments of huge pages. keeps_wp: what is watched
    for writes is so for good.
    """

    wanted: int
    context: int
    any_kind: bool
    droppable: bool
    attached_huge: bool
    keeps_wp: bool = False


async def refused(cx: Cx, start: int, end: int, rules: ToWatch) -> int:
    """Return -EINVAL, -EPERM or -EBUSY if a VMA of the range can't be watched, or there is none.

    Before 6.3 it is -ENOMEM where there is none above the range, either.
    """
    error = await refused_vmas(cx.mm, start, end, rules)
    if error is not None:
        return error
    missing = not await find_vma(cx.mm, start)
    return -ENOMEM if missing and cx.design.uffd_nothing_above == "ENOMEM" else -EINVAL


@step
def refused_vmas(
    m: Machine, task: Task, mm: int, start: int, end: int, rules: ToWatch
) -> int | None:
    """Return why the VMAs of a range can't be watched, 0 if they can; None if there is none."""
    wanted = rules.wanted
    handles = overlapping(m, m.mm(mm), start, end)
    for handle in handles:
        vma = vma_of(m, task, handle)
        in_memory = not vma.file or m.files[vma.file].kind in ("shmem", "hugetlb")
        if vma.ops and not (rules.attached_huge and vma.flags & VM_HUGETLB):
            in_memory = False  # a segment of System V shared memory, memfd_secret
        if vma.flags & VM_HUGETLB and handle == handles[0] and start % vma.huge_size:
            return -EINVAL
        if vma.flags & VM_DROPPABLE and not rules.droppable:
            return -EINVAL
        fillable = vma.file or vma.flags & VM_HUGETLB
        if not (in_memory or rules.any_kind) or (wanted & VM_UFFD_MINOR and not fillable):
            return -EINVAL
        if wanted and not vma.flags & VM_MAYWRITE:
            return -EPERM
        if vma.flags & VM_HUGETLB and wanted and end <= vma.end and end % vma.huge_size:
            return -EINVAL
        if wanted and vma.uffd not in (0, rules.context):
            return -EBUSY
        if rules.keeps_wp and wanted and vma.flags & VM_UFFD_WP and not wanted & VM_UFFD_WP:
            return -EBUSY
    return 0 if handles else None
