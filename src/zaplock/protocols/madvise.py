"""madvise: zap or fill pages, or change flags, under the weakest lock that will do.

DONTNEED and FREE zap with the VMA still in the tree, so a racing access finds a fresh zero page:
that is what makes them weaker than munmap. They hold the mmap_lock for read, from 6.17 on only the
VMA's lock where the range lies in one VMA; guards so from 6.19 on. Flag changes need the exclusive
lock.

Here is which advice is known, what refuses it, and under which lock it is served; what becomes of
the pages stands in `zap_range`, `reclaim_advice`, `guards`, `populate` and `collapse`.

Source: mm/madvise.c; per-VMA locks for MADV_DONTNEED a6fde7add78d (6.17).
"""

from __future__ import annotations

from errno import EACCES, EAGAIN, EFBIG, EINTR, EINVAL, ENOMEM, EPERM
from functools import cache
from typing import TYPE_CHECKING

from zaplock.advice import SINCE
from zaplock.linux_version import find
from zaplock.model import flags as f
from zaplock.model.flags import (
    PAGE_MASK,
    PAGE_SHIFT,
    VM_DONTCOPY,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_LOCKED,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_SEALED,
    VM_SPECIAL,
    VM_UFFD_FLAGS,
    VM_WRITE,
    page_align,
)
from zaplock.model.folio_sharing import SharedFolios
from zaplock.model.folios import split_anonymous, split_cached
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.step import Task, step
from zaplock.model.vma import Vma, find_vmas, read_vma, vma_of
from zaplock.protocols.collapse import collapse
from zaplock.protocols.guards import BEGINS_ANEW, MOST_BEGINNINGS, begins_anew, guard
from zaplock.protocols.ksm import UNMERGEABLE, unmerge_ksm_pages
from zaplock.protocols.locking import (
    lock_vma_under_rcu,
    mmap_write_lock_killable,
    mmap_write_unlock,
    vma_end_read,
)
from zaplock.protocols.mprotect import apply_to_range, modify_vma
from zaplock.protocols.populate import populate_strictly
from zaplock.protocols.punch import punch_hole
from zaplock.protocols.reclaim_advice import deactivate, free_lazily, page_out
from zaplock.protocols.teardown import tlb_finish_mmu
from zaplock.protocols.zap_range import gather_zap, zap_page_range_single

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, Design

FLAG_ADVICE: dict[int, tuple[int, int]] = {
    f.MADV_NORMAL: (0, f.VM_RAND_READ | f.VM_SEQ_READ),
    f.MADV_RANDOM: (f.VM_RAND_READ, f.VM_SEQ_READ),
    f.MADV_SEQUENTIAL: (f.VM_SEQ_READ, f.VM_RAND_READ),
    f.MADV_DONTFORK: (VM_DONTCOPY, 0),
    f.MADV_DOFORK: (0, VM_DONTCOPY),
    f.MADV_WIPEONFORK: (f.VM_WIPEONFORK, 0),
    f.MADV_KEEPONFORK: (0, f.VM_WIPEONFORK),
    f.MADV_DONTDUMP: (f.VM_DONTDUMP, 0),
    f.MADV_DODUMP: (0, f.VM_DONTDUMP),
    f.MADV_HUGEPAGE: (VM_HUGEPAGE, VM_NOHUGEPAGE),
    f.MADV_NOHUGEPAGE: (VM_NOHUGEPAGE, VM_HUGEPAGE),
    f.MADV_MERGEABLE: (f.VM_MERGEABLE, 0),
    f.MADV_UNMERGEABLE: (0, f.VM_MERGEABLE),
}
"""Advice that changes flags: (set, cleared)."""

MAX_OFFSET = (1 << 63) - 1
"""The last place in the largest file."""

DONTNEEDS = (f.MADV_DONTNEED, f.MADV_DONTNEED_LOCKED)
ZAPS = (*DONTNEEDS, f.MADV_FREE)
POPULATES = (f.MADV_POPULATE_READ, f.MADV_POPULATE_WRITE)
GUARDS = (f.MADV_GUARD_INSTALL, f.MADV_GUARD_REMOVE)
LOOKS = (f.MADV_WILLNEED, f.MADV_COLD, f.MADV_PAGEOUT, f.MADV_COLLAPSE, f.MADV_REMOVE)


FOR_OTHERS = (f.MADV_WILLNEED, f.MADV_COLD, f.MADV_PAGEOUT, f.MADV_COLLAPSE)
"""What process_madvise may ask of another process, and before 6.13 of any."""


async def madvise(cx: Cx, start: int, length: int, advice: int) -> int:
    """The madvise system call: 0 or a negative errno; -ENOMEM also for holes, after the work."""
    aligned = page_align(length) % (1 << 64)
    end = start + aligned
    if (
        not is_known(cx.design, advice)
        or start & ~PAGE_MASK
        or (length and not aligned)
        or end >= 1 << 64
    ):
        return -EINVAL
    if end == start:
        return 0
    if advice in FLAG_ADVICE:
        return await advise_flags(cx, start, end, advice)
    if advice in POPULATES:
        return await advise_populate(cx, start, end, advice == f.MADV_POPULATE_WRITE)
    return await advise_pages(cx, start, end, advice)


def is_known(design: Design, advice: int) -> bool:
    """Return whether a design has such an advice: guards by its rule, all others by its release."""
    if advice in GUARDS:
        return design.guards
    return advice in known_advice(design.kernel)


@cache
def known_advice(kernel: str) -> frozenset[int]:
    """Return the advice but guards of a release; all there is, where the text names no release."""
    release, every = find(kernel), (*FLAG_ADVICE, *ZAPS, *POPULATES, *LOOKS)
    return frozenset(
        one for one in every if release is None or release.carries(SINCE.get(one, "4.9"))
    )


async def advise_flags(cx: Cx, start: int, end: int, advice: int) -> int:
    """Change the flags of a range under write."""
    if await mmap_write_lock_killable(cx):
        return -EINTR
    if await refused_beforehand(cx, start, end, advice):
        await mmap_write_unlock(cx)
        return -EPERM
    set_, cleared = FLAG_ADVICE[advice]

    async def visit(handle: int, vma: Vma, low: int, high: int) -> int:
        error = refused_by_seal(cx, vma, advice) or forbidden_advice(cx, vma, advice)
        flags = (vma.flags & ~cleared) | set_
        if advice == f.MADV_MERGEABLE and vma.flags & UNMERGEABLE:
            return 0
        if not error and advice == f.MADV_UNMERGEABLE:
            await unmerge_ksm_pages(vma, low, high, cx.design.unmerges_closed)
        if error or flags == vma.flags:
            return error
        modified = await modify_vma(cx, handle, low, high, flags)
        return -EAGAIN if modified == -ENOMEM else min(0, modified)

    error, holes = await apply_to_range(cx, start, end, visit)
    await mmap_write_unlock(cx)
    return error or (-ENOMEM if holes else 0)


DISCARDS = (
    f.MADV_FREE, f.MADV_DONTNEED, f.MADV_DONTNEED_LOCKED, f.MADV_REMOVE, f.MADV_DONTFORK,
    f.MADV_WIPEONFORK, f.MADV_GUARD_INSTALL,
)  # fmt: skip


def refused_by_seal(cx: Cx, vma: Vma, advice: int) -> int:
    """Return -EPERM where an advice would lose the content of a sealed mapping, else 0.

    What the caller could overwrite anyway, and files, may be discarded (can_madvise_modify).
    """
    if vma.name and not cx.design.seals_devices:
        return 0
    return -EPERM if cx.design.mseal == "vma" and is_kept_by_seal(vma, advice) else 0


def is_kept_by_seal(vma: Vma, advice: int) -> bool:
    """Return whether a seal keeps the content of a mapping from an advice."""
    sealed = vma.flags & VM_SEALED and advice in DISCARDS
    in_file = vma.file or vma.flags & VM_HUGETLB
    return bool(sealed and not in_file and not vma.flags & VM_WRITE)


async def refused_beforehand(cx: Cx, start: int, end: int, advice: int) -> bool:
    """Return whether a design that looks at the seals of the whole range first refuses an advice.

    Before 6.12 (can_modify_mm_madv).
    """
    return cx.design.mseal == "range" and await any_kept(cx.mm, start, end, advice)


@step
def any_kept(m: Machine, task: Task, mm: int, start: int, end: int, advice: int) -> bool:
    """Return whether a VMA of a range is sealed so that an advice must leave it alone."""
    handles = find_vmas.run(m, task, mm, start, end)
    return any(is_kept_by_seal(vma_of(m, task, handle), advice) for handle in handles)


def forbidden_advice(cx: Cx, vma: Vma, advice: int) -> int:
    """Return -EINVAL where a VMA can't take an advice that changes flags."""
    flags = vma.flags
    kept_from_children = VM_SPECIAL if cx.design.dofork_refuses_special else f.VM_IO
    refused = (
        (advice == f.MADV_DOFORK and flags & kept_from_children)
        or (advice == f.MADV_WIPEONFORK and (vma.file or vma.name or flags & f.VM_SHARED))
        or (advice == f.MADV_KEEPONFORK and flags & f.VM_DROPPABLE)
        or (advice == f.MADV_DODUMP and (flags & (VM_SPECIAL | f.VM_DROPPABLE)) and
            not flags & VM_HUGETLB)
    )  # fmt: skip
    return -EINVAL if refused else 0


async def advise_populate(cx: Cx, start: int, end: int, write: bool) -> int:
    """Fault a range in under read; to 6.8 what lies behind holes, too."""

    async def visit(_handle: int, _vma: Vma, low: int, high: int) -> int:
        return await populate_strictly(cx, low, high, write)

    await down_read(cx.mmap_lock)
    if cx.design.populates_over_holes:
        error, holes = await apply_to_range(cx, start, end, visit)
        result = error or (-ENOMEM if holes else 0)
    else:
        result = await populate_strictly(cx, start, end, write)
    await up_read(cx.mmap_lock)
    return result


async def advise_pages(cx: Cx, start: int, end: int, advice: int) -> int:
    """Zap, guard or look at pages: the whole call once more where it is to begin anew.

    A system call does so by restart_syscall, vector_madvise with the range that it has come to.
    """
    for begun in range(1, MOST_BEGINNINGS + 1):
        result = await advise_pages_once(cx, start, end, advice, begun == MOST_BEGINNINGS)
        if result != -BEGINS_ANEW:
            break
        if not await begins_anew():
            return -EINTR
    return result


async def advise_pages_once(cx: Cx, start: int, end: int, advice: int, is_last: bool) -> int:
    """Zap, guard or look at pages, of all VMAs flushed at once where the design does that.

    That is done under the mmap_lock; where the VMA's lock is enough, when it is let go already.
    """
    zaps_by_vma = cx.design.dontneed_lock == "vma" and advice in ZAPS
    guards_by_vma = cx.design.guard_lock == "vma" and advice in GUARDS
    flushes_once = (cx.design.dontneed_flushes_once and advice in DONTNEEDS) or (
        cx.design.free_flushes_once and advice == f.MADV_FREE
    )
    batch = 0
    if zaps_by_vma or guards_by_vma:
        batch = await gather_zap(cx.mm, start, end, False) if flushes_once else 0
        handle = await lock_vma_under_rcu(cx.mm, start)
        if handle:
            vma = await read_vma(handle)
            if end <= vma.end and not vma.flags & VM_UFFD_FLAGS and not lacks_anon_vma(vma, advice):
                result = await advise_vma(cx, handle, vma, start, end, advice, is_last, batch)
                await vma_end_read(handle)
                if batch:
                    await tlb_finish_mmu(cx, batch)
                return result
            await vma_end_read(handle)
    await down_read(cx.mmap_lock)
    if await refused_beforehand(cx, start, end, advice):
        await up_read(cx.mmap_lock)
        return -EPERM
    if flushes_once and not batch:
        batch = await gather_zap(cx.mm, start, end, False)

    async def visit(handle: int, vma: Vma, low: int, high: int) -> int:
        return await advise_vma(cx, handle, vma, low, high, advice, is_last, batch)

    error, holes = await apply_to_range(cx, start, end, visit)
    if batch:
        await tlb_finish_mmu(cx, batch)
    await up_read(cx.mmap_lock)
    return error or (-ENOMEM if holes else 0)


def lacks_anon_vma(vma: Vma, advice: int) -> bool:
    """Return whether a guard needs an anon_vma first, which takes the mmap_lock."""
    private = not vma.file and not vma.flags & f.VM_SHARED
    return advice == f.MADV_GUARD_INSTALL and private and not vma.anon_vma


async def advise_vma(
    cx: Cx, handle: int, vma: Vma, low: int, high: int, advice: int, is_last: bool, batch: int
) -> int:
    """Do what an advice asks of the pages of one VMA.

    is_last: see `guard`. batch: see `zap_page_range_single`.
    """
    refused = refused_by_seal(cx, vma, advice)
    if refused:
        return refused
    if advice == f.MADV_FREE and (vma.file or vma.flags & (VM_LOCKED | VM_HUGETLB | VM_SPECIAL)):
        return -EINVAL
    if advice == f.MADV_FREE:
        await free_lazily(cx, vma, low, high, batch)
        return 0
    if advice in DONTNEEDS:
        forbidden = VM_PFNMAP
        if advice == f.MADV_DONTNEED:
            forbidden |= VM_LOCKED
        if vma.flags & forbidden:
            return -EINVAL
        if vma.flags & VM_HUGETLB:
            if low % vma.huge_size:
                return -EINVAL
            high -= high % vma.huge_size
            if low >= high:
                return 0
        await zap_page_range_single(cx, handle, vma, low, high, batch)
        return 0
    if advice == f.MADV_REMOVE:
        return await remove_pages(cx, vma, low, high)
    if advice in GUARDS:
        installs = advice == f.MADV_GUARD_INSTALL
        return await guard(cx, handle, vma, low, high, installs, is_last)
    if advice == f.MADV_WILLNEED and (vma.name or (vma.file and await has_readahead(vma.file))):
        await up_read(cx.mmap_lock)  # while the file system reads ahead
        await down_read(cx.mmap_lock)
    if advice == f.MADV_COLLAPSE:
        return await collapse(cx, vma, low, high)
    if advice in (f.MADV_COLD, f.MADV_PAGEOUT):
        if vma.flags & (VM_LOCKED | VM_HUGETLB | VM_PFNMAP):
            return -EINVAL
        d = cx.design
        shared = SharedFolios(d.cold_sharing, d.cold_sharing, d.advice_splits_whole)
        await split_anonymous(cx.mm, low, high, d.finds_zeros, shared, False)
        if vma.file:
            await split_cached(cx.mm, low, high, shared)
        if advice == f.MADV_PAGEOUT:
            await page_out(cx, vma, low, high)
        else:
            await deactivate(cx.mm, low, high)
    return 0


async def remove_pages(cx: Cx, vma: Vma, low: int, high: int) -> int:
    """MADV_REMOVE: punch a hole into the file, without the lock meanwhile."""
    if vma.flags & VM_LOCKED or not (vma.file or vma.name):
        return -EINVAL
    if not vma.file or vma.flags & (f.VM_SHARED | f.VM_MAYWRITE) != f.VM_SHARED | f.VM_MAYWRITE:
        return -EACCES
    first = (vma.pgoff << PAGE_SHIFT) + low - vma.start
    last = first + high - low
    await up_read(cx.mmap_lock)
    error = -EINVAL if first > MAX_OFFSET else -EFBIG if last > MAX_OFFSET else 0
    if not error:
        huge_size = vma.huge_size if vma.flags & VM_HUGETLB else 0
        error = await punch_hole(cx, vma.file, first, last, huge_size)
    await down_read(cx.mmap_lock)
    return error


@step
def has_readahead(m: Machine, _task: Task, file: int) -> bool:
    """Return whether a file is not in memory anyway."""
    return m.files[file].kind != "shmem"
