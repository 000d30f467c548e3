"""madvise: zap or fill pages, or change flags, under the weakest lock that will do.

DONTNEED and FREE zap with the VMA still in the tree, so a racing access finds a fresh zero page:
that is what makes them weaker than munmap. They hold the mmap_lock for read, from 6.17 on only the
VMA's lock where the range lies in one VMA; guards so from 6.19 on. Flag changes need the exclusive
lock.

Source: mm/madvise.c; per-VMA locks for MADV_DONTNEED a6fde7add78d (6.17).
"""

from __future__ import annotations

from errno import EACCES, EAGAIN, EFBIG, EINTR, EINVAL, ENOMEM, EPERM
from functools import cache
from typing import TYPE_CHECKING

from zaplock.advice import SINCE
from zaplock.linux_version import find
from zaplock.model import flags as f
from zaplock.model.files import drop_clean, write_to_swap
from zaplock.model.flags import (
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PMD_SHIFT,
    VM_DONTCOPY,
    VM_DROPPABLE,
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
from zaplock.model.folios import split_partly_covered, split_partly_covered_cached
from zaplock.model.frames import clean, unback
from zaplock.model.mm import Mm, Pte
from zaplock.model.pagetable import alloc_tables, install, zap
from zaplock.model.references import age_entries, deactivate_pages, follows, read_only
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.step import Step, Task, step
from zaplock.model.swap import drop_swapped, kept_slot, swap_out
from zaplock.model.tlb import flush_tlb_range, gather_tables, tlb_gather_mmu
from zaplock.model.vma import Vma, anon_vma_prepare, change, find_vmas, read_vma, vma_of
from zaplock.protocols.collapse import collapse
from zaplock.protocols.huge_files import punch_huge_hole
from zaplock.protocols.ksm import UNMERGEABLE, unmerge_ksm_pages
from zaplock.protocols.locking import (
    lock_vma_under_rcu,
    mmap_write_lock_killable,
    mmap_write_unlock,
    vma_end_read,
)
from zaplock.protocols.mprotect import apply_to_range, modify_vma
from zaplock.protocols.populate import populate_strictly
from zaplock.protocols.rmap import MARKERS, punch_hole, watched_kinds
from zaplock.protocols.seals import sealed_against
from zaplock.protocols.teardown import tlb_finish_mmu, unmap_hugepages, unmap_page_range

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

ZAPS = (f.MADV_DONTNEED, f.MADV_DONTNEED_LOCKED, f.MADV_FREE)
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
            await unmerge_ksm_pages(vma, low, high)
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
    """Zap, guard or look at pages: under the VMA's lock alone where the design has that."""
    zaps_by_vma = cx.design.dontneed_lock == "vma" and advice in ZAPS
    guards_by_vma = cx.design.guard_lock == "vma" and advice in GUARDS
    if zaps_by_vma or guards_by_vma:
        handle = await lock_vma_under_rcu(cx.mm, start)
        if handle:
            vma = await read_vma(handle)
            if end <= vma.end and not vma.flags & VM_UFFD_FLAGS and not lacks_anon_vma(vma, advice):
                result = await advise_vma(cx, handle, vma, start, end, advice)
                await vma_end_read(handle)
                return result
            await vma_end_read(handle)
    await down_read(cx.mmap_lock)
    if await refused_beforehand(cx, start, end, advice):
        await up_read(cx.mmap_lock)
        return -EPERM

    async def visit(handle: int, vma: Vma, low: int, high: int) -> int:
        return await advise_vma(cx, handle, vma, low, high, advice)

    error, holes = await apply_to_range(cx, start, end, visit)
    await up_read(cx.mmap_lock)
    return error or (-ENOMEM if holes else 0)


def lacks_anon_vma(vma: Vma, advice: int) -> bool:
    """Return whether a guard needs an anon_vma first, which takes the mmap_lock."""
    private = not vma.file and not vma.flags & f.VM_SHARED
    return advice == f.MADV_GUARD_INSTALL and private and not vma.anon_vma


async def advise_vma(cx: Cx, handle: int, vma: Vma, low: int, high: int, advice: int) -> int:
    """Do what an advice asks of the pages of one VMA."""
    refused = refused_by_seal(cx, vma, advice)
    if refused:
        return refused
    if advice == f.MADV_FREE and (vma.file or vma.flags & (VM_LOCKED | VM_HUGETLB | VM_SPECIAL)):
        return -EINVAL
    if advice == f.MADV_FREE:
        await split_partly_covered(cx.mm, low, high, cx.design.finds_zeros, True)
        await mark_free(cx.mm, low, high, bool(vma.flags & VM_DROPPABLE))
        return 0
    if advice in (f.MADV_DONTNEED, f.MADV_DONTNEED_LOCKED):
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
        await zap_page_range_single(cx, handle, vma, low, high)
        return 0
    if advice == f.MADV_REMOVE:
        return await remove_pages(cx, vma, low, high)
    if advice in GUARDS:
        return await guard(cx, handle, vma, low, high, advice == f.MADV_GUARD_INSTALL)
    if advice == f.MADV_WILLNEED and (vma.name or (vma.file and await has_readahead(vma.file))):
        await up_read(cx.mmap_lock)  # while the file system reads ahead
        await down_read(cx.mmap_lock)
    if advice == f.MADV_COLLAPSE:
        return await collapse(cx, vma, low, high)
    if advice in (f.MADV_COLD, f.MADV_PAGEOUT):
        if vma.flags & (VM_LOCKED | VM_HUGETLB | VM_PFNMAP):
            return -EINVAL
        await split_partly_covered(cx.mm, low, high, cx.design.finds_zeros)
        if vma.file:
            await split_partly_covered_cached(cx.mm, low, high)
        if advice == f.MADV_PAGEOUT:
            await page_out(cx, vma, low, high)
        else:
            await deactivate(cx.mm, low, high)
    return 0


@step
def deactivate(m: Machine, _task: Task, mm: int, low: int, high: int) -> None:
    """Let the pages of a range that only this maps look as if nobody had used them."""
    if not follows(m):
        return
    for first, last, pte in m.mm(mm).ptes.overlapping(low >> PAGE_SHIFT, high >> PAGE_SHIFT):
        if pte.kind in _DEACTIVATED:
            for start, end, frame in m.frames.overlapping(first + pte.delta, last + pte.delta):
                if frame.maps == 1 and not frame.stays_locked:
                    deactivate_pages(m, m.mm(mm), start - pte.delta, end - pte.delta)


_DEACTIVATED = ("anon", "thp", "file", "shmem")


async def page_out(cx: Cx, vma: Vma, low: int, high: int) -> None:
    """MADV_PAGEOUT: what is mapped once goes to swap, as far as there is any.

    Pages of files in memory are taken from their mapping before reclaim finds that they can go
    nowhere; so they stay in the file without swap, and those that nobody has ever written to are
    dropped in any case. Anonymous memory it lets be without swap, but for what may be dropped, as
    what MADV_FREE was given for and nobody has written to since.
    Source: mm/madvise.c, mm/vmscan.c shrink_folio_list.
    """
    droppable = bool(vma.flags & VM_DROPPABLE)
    gather = await gather_zap(cx.mm, low, high)
    taken = await mapped_once(cx.mm, low, high, ("anon",) if droppable else IN_MEMORY)
    for start, end in taken:
        await unmap_page_range(cx, gather, start, end, spares=watched_kinds(vma))
        if not droppable:
            await drop_clean(vma.file, vma.pgoff_of(start), vma.pgoff_of(end))
    for start, end in () if droppable else await mapped_once(cx.mm, low, high, ("anon",), True):
        await unmap_page_range(cx, gather, start, end)
    await tlb_finish_mmu(cx, gather)
    for start, end in () if droppable else taken:
        await write_to_swap(vma.file, vma.pgoff_of(start), vma.pgoff_of(end))
    if not droppable:
        for start, end in await mapped_once(cx.mm, low, high, ("anon", "thp")):
            await unmap_to_swap(cx.mm, start, end)


IN_MEMORY = ("shmem", "shmem_thp")
"""Kinds of entries that map pages of files in memory."""


@step
def unmap_to_swap(m: Machine, task: Task, mm: int, low: int, high: int) -> None:
    """Let swap entries stand for anonymous pages that go there, before they are written out."""
    swap_out(m, task, m.mm(mm), low >> PAGE_SHIFT, high >> PAGE_SHIFT)


@step
def mapped_once(
    m: Machine,
    _task: Task,
    mm: int,
    low: int,
    high: int,
    kinds: tuple[str, ...],
    lazy: bool = False,
) -> tuple[tuple[int, int], ...]:
    """List the parts of a range that have pages of some kinds which only this maps, unlocked.

    lazy: only those that are lazily free.
    """
    found = []
    for first, last, pte in m.mm(mm).ptes.overlapping(low >> PAGE_SHIFT, high >> PAGE_SHIFT):
        if pte.kind in kinds and (pte.clean or not lazy):
            found += [
                (start - pte.delta << PAGE_SHIFT, end - pte.delta << PAGE_SHIFT)
                for start, end, frame in m.frames.overlapping(first + pte.delta, last + pte.delta)
                if frame.maps == 1 and frame.refs == pinned_by(pte) and not frame.stays_locked
                if not lazy or (frame.unbacked and not frame.dirty)
            ]
    return tuple(found)


def pinned_by(pte: Pte) -> int:
    """Return how many references a page has that one entry maps and nobody else uses."""
    return 2 if pte.kind in IN_MEMORY else 1  # its file's page cache


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
    if not error and await sealed_against(vma.file, 0):
        error = -EPERM
    if not error and vma.flags & VM_HUGETLB:
        await punch_huge_hole(cx, vma.file, vma.huge_size, first, last)
    elif not error:
        await punch_hole(cx, vma.file, first, last)
    await down_read(cx.mmap_lock)
    return error


async def guard(cx: Cx, handle: int, vma: Vma, low: int, high: int, install: bool) -> int:
    """MADV_GUARD_INSTALL and _REMOVE (6.13 on; for files 6.15): pages that nobody may touch.

    What has pages is zapped first. A fault may put a page into the range between the zap and the
    guards. Linux zaps again then, as often as it takes; here the second time is one step with the
    guards, so that it ends, also where Linux never does: a zap of what a userfaultfd has
    write-protected in a file leaves markers.
    """
    if vma.flags & (VM_SPECIAL | VM_HUGETLB) or (install and vma.flags & VM_LOCKED):
        return -EINVAL
    if not install:
        await remove_guards(cx.mm, low, high)
        return 0
    if not vma.file and not vma.flags & f.VM_SHARED:
        await anon_vma_prepare(handle)
    await mark_guarded(handle)
    if await install_guards(cx.mm, low, high):
        return 0
    gather = await gather_zap(cx.mm, low, high)
    await unmap_page_range(cx, gather, low, high)
    await tlb_finish_mmu(cx, gather)
    if not await install_guards(cx.mm, low, high):
        gather = await gather_zap(cx.mm, low, high)
        await zap_and_guard(cx.mm, gather, low, high)
        await tlb_finish_mmu(cx, gather)
    return 0


@step
def mark_guarded(m: Machine, task: Task, handle: int) -> None:
    """Note that a VMA may have guards; set atomically, so a shared hold is enough."""
    vma = vma_of(m, task, handle)
    m.vmas.put(handle, change(vma, flags=vma.flags | f.VM_MAYBE_GUARD))


@step
def install_guards(m: Machine, task: Task, mm: int, low: int, high: int) -> bool:
    """Put a guard marker into every entry of a range; False, and nothing, where a page is there."""
    space, first, last = m.mm(mm), low >> PAGE_SHIFT, high >> PAGE_SHIFT
    if any(pte.kind != "guard" for _, _, pte in space.ptes.overlapping(first, last)):
        return False
    alloc_tables(m, task, space, first, last)
    install(m, task, space, first, last, read_only(m, Pte("guard", 0)))
    return True


@step
def zap_and_guard(m: Machine, task: Task, mm: int, gather: int, low: int, high: int) -> None:
    """Clear a range and put guards into it at once."""
    zap(m, task, m.mm(mm), gather, low >> PAGE_SHIFT, high >> PAGE_SHIFT)
    install_guards.run(m, task, mm, low, high)


@step
def remove_guards(m: Machine, task: Task, mm: int, low: int, high: int) -> None:
    """Take the guard markers of a range away; pages stay."""
    ptes = m.mm(mm).ptes
    for first, last, pte in ptes.overlapping(low >> PAGE_SHIFT, high >> PAGE_SHIFT):
        if pte.kind == "guard":
            ptes.clear(first, last)


@step
def has_readahead(m: Machine, _task: Task, file: int) -> bool:
    """Return whether a file is not in memory anyway."""
    return m.files[file].kind != "shmem"


async def zap_page_range_single(cx: Cx, handle: int, vma: Vma, low: int, high: int) -> None:
    """Zap a part of a VMA that stays in the tree, flush, and return the pages."""
    gather = await gather_zap(cx.mm, low, high)
    if vma.flags & VM_HUGETLB:
        await unmap_hugepages(cx, gather, handle, vma, low, high, True)
    else:
        spares = (*MARKERS, *watched_kinds(vma))
        await unmap_page_range(cx, gather, low, high, None, spares)
        if cx.design.reclaims_tables:
            await reclaim_tables(cx.mm, gather, low, high)
    await tlb_finish_mmu(cx, gather)


@step
def reclaim_tables(m: Machine, task: Task, mm: int, gather: int, low: int, high: int) -> None:
    """Free the page tables that MADV_DONTNEED has emptied as a whole (PT_RECLAIM, 6.14)."""
    space = m.mm(mm)
    tables = space.tables[1]
    first, last = -(-low >> PMD_SHIFT), high >> PMD_SHIFT
    for start, end, generation in tables.overlapping(first, last):
        for index in range(start, end):
            if not space.ptes.any_in(index << 9, index + 1 << 9):
                gather_tables(m, gather, 1, (index, index + 1, generation))
                space.add("pgtables_bytes", -PAGE_SIZE)
                tables.clear(index, index + 1)


def gather_zap(mm: int, low: int, high: int) -> Step[int]:
    """Begin a gather over a range of addresses."""
    return tlb_gather_mmu(mm, low >> PAGE_SHIFT, high >> PAGE_SHIFT)


def drop_poison(space: Mm, first: int, last: int) -> None:
    """Take the poison of virtual pages [first, last) away."""
    for low, high, pte in space.ptes.overlapping(first, last):
        if pte.kind == "poison":
            space.ptes.clear(low, high)


@step
def mark_free(
    m: Machine, task: Task, mm: int, low: int, high: int, droppable: bool = False
) -> None:
    """Mark pages as lazily freeable: until memory is short they stay as they are.

    What is in swap has no such mark, and is dropped at once, as is poison. What stays locked in
    memory can't be marked any more; but if it was before it was locked, being clean again is enough
    (no PG_swapbacked). droppable: they may be freed from the beginning on.
    """
    drop_poison(m.mm(mm), low >> PAGE_SHIFT, high >> PAGE_SHIFT)
    drop_swapped(m, task, m.mm(mm), low >> PAGE_SHIFT, high >> PAGE_SHIFT)
    m.spend("protect_pte", m.mm(mm).ptes.total(low >> PAGE_SHIFT, high >> PAGE_SHIFT))
    for first, last, pte in m.mm(mm).ptes.overlapping(low >> PAGE_SHIFT, high >> PAGE_SHIFT):
        if pte.kind not in ("anon", "thp"):
            continue
        for start, end, frame in m.frames.overlapping(first + pte.delta, last + pte.delta):
            if (frame.dirty and frame.maps > 1) or kept_slot(m, frame):
                continue  # others find it in swap, too (folio_free_swap)
            clean(m, start, end)
            clean_entries(m, m.mm(mm), start - pte.delta, end - pte.delta)
            if frame.stays_locked and not frame.unbacked:
                continue  # clean, but on no list of what may be dropped (folio_mark_lazyfree)
            if not (frame.unbacked or droppable):
                m.aging.clear(start, end)
            m.globals.put("lazyfree", 1)
            asks = frame.maps > 1 and not frame.unbacked
            for low_pfn, high_pfn in locked_by_others(m, mm, start, end) if asks else ():
                unback(m, start, low_pfn)
                start = max(start, high_pfn)
            unback(m, start, end)


def clean_entries(m: Machine, space: Mm, first: int, last: int) -> None:
    """Make the entries of virtual pages [first, last) old and clean."""
    age_entries(m, space, first, last)
    for low, high, pte in space.ptes.overlapping(first, last):
        space.ptes.set(low, high, change(pte, clean=True))
    flush_tlb_range(m, space.mm, first, last, False)


def locked_by_others(m: Machine, mm: int, first: int, last: int) -> list[tuple[int, int]]:
    """List which of some frames another address space has locked in memory, in order."""
    found = []
    for space in m.mms.values():
        for start in space.tree.order if space.mm != mm else ():
            vma = m.vmas[space.tree.data[start]]
            if not isinstance(vma, Vma) or not vma.flags & VM_LOCKED:
                continue
            for low, high, pte in space.ptes.overlapping(
                start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT
            ):
                part = max(low + pte.delta, first), min(high + pte.delta, last)
                if pte.kind in ("anon", "thp") and part[0] < part[1]:
                    found.append(part)
    return sorted(found)
