"""MADV_COLLAPSE: small pages of anonymous memory or of a file in memory become a huge one (6.1).

Of private anonymous memory here; each 2 MiB of a file are protocols.collapse_file.

Each aligned range of 2 MiB is looked at under the lock held for read, which is let go while the
huge page is allocated, and copied under the lock held for write. Whoever takes the lock again must
look for the VMA again. What has no page table yet is not collapsed; what has one is, however few of
its pages are there. Where there is no page table, but one of the level above, the call ends there
before 6.19 (`collapse_passes_holes`). A range that ends before the first 2 MiB that begins in it is
refused, until it counts as nothing to do (`collapses_nothing`). Before 6.18 one page at least must
be mapped so that it can be written to (`collapse_needs_writable`); where none is, the call goes on
behind these 2 MiB. It ends where a userfaultfd watches and a page is missing.

Source: mm/khugepaged.c madvise_collapse, hpage_collapse_scan_pmd, collapse_huge_page,
hugepage_vma_revalidate (6.1 and 6.18); the order of the last two: 366a4532d96f (6.17). Not covered:
huge pages that can't be had.
"""

from __future__ import annotations

from errno import EAGAIN, EBUSY, EINVAL
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    PAGE_SHIFT,
    PAGES_PER_PMD,
    PMD_SIZE,
    VM_ACCESS_FLAGS,
    VM_HUGETLB,
    VM_NOHUGEPAGE,
    VM_SPECIAL,
    VM_UFFD_FLAGS,
    VM_WRITE,
)
from zaplock.model.frames import alloc_frames, change_frames
from zaplock.model.mm import Pte
from zaplock.model.pagetable import RSS, install
from zaplock.model.rwsem import down_read, down_write, up_read
from zaplock.model.shared_folios import POLICIES
from zaplock.model.shared_huge import fits
from zaplock.model.step import Task, step
from zaplock.model.tlb import flush_tlb_range
from zaplock.model.violations import Invariant, Violation
from zaplock.model.vma import Vma, lookup, read_vma, vma_of
from zaplock.protocols.collapse_file import (
    BUSY,
    DONE,
    FAILED,
    FITS,
    PINNED,
    SKIPPED,
    collapse_file,
)
from zaplock.protocols.locking import mmap_write_unlock, vma_start_write

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

_ERRNO = {FAILED: -EINVAL, SKIPPED: -EINVAL, BUSY: -EBUSY, PINNED: -EAGAIN}


async def collapse(cx: Cx, vma: Vma, low: int, high: int) -> int:
    """Collapse a part of a VMA, the lock held for read: 0 or an errno."""
    first, last = -(-low // PMD_SIZE) * PMD_SIZE, high & -PMD_SIZE
    start, end = -(-vma.start // PMD_SIZE) * PMD_SIZE, vma.end & -PMD_SIZE
    if start >= end or not await may_collapse(vma):
        return -EINVAL
    if cx.design.collapses_nothing and first >= last:
        return 0
    at, done, error = first, 0, -EINVAL
    while at < last:
        found = FITS if vma.file else await look(cx, at)
        let_go = found == FITS
        if let_go:
            await up_read(cx.mmap_lock)
            if vma.file:
                found = await collapse_file(cx, vma.file, vma.pgoff_of(at), at)
            else:
                found = await collapse_unlocked(cx, at)
            await down_read(cx.mmap_lock)
        error = _ERRNO.get(found, error)
        if found == BUSY and not cx.design.collapse_tells_of_watcher:
            error = -EINVAL
        if found in (FAILED, BUSY):
            break
        done += found == DONE
        at += PMD_SIZE
        if let_go and at < last:
            handle = await revalidate(cx.mm, at)
            if not handle:
                return -EINVAL
            vma = await read_vma(handle)
            last = min(last, vma.end & -PMD_SIZE)
    return 0 if done * PMD_SIZE == last - first else error


async def collapse_unlocked(cx: Cx, at: int) -> int:
    """Collapse 2 MiB, no lock held before and after: DONE or FAILED."""
    await down_read(cx.mmap_lock)  # the huge page was allocated meanwhile
    there = await revalidate(cx.mm, at) and await look(cx, at) == FITS
    await up_read(cx.mmap_lock)
    if not there:
        return FAILED
    await down_write(cx.mmap_lock)
    handle = await revalidate(cx.mm, at)
    if handle and cx.design.vma_locks and cx.design.collapse_locks_first:
        await vma_start_write(handle)
    there = bool(handle) and await look(cx, at) == FITS
    if there:
        if cx.design.vma_locks and not cx.design.collapse_locks_first:
            await vma_start_write(handle)
        await collapse_huge_page(cx.mm, at)
    await mmap_write_unlock(cx)
    return DONE if there else FAILED


@step
def may_collapse(m: Machine, _task: Task, vma: Vma) -> bool:
    """Return whether a VMA may have huge pages where they are asked for.

    Not where PR_SET_THP_DISABLE is on, and not only for what nobody has advised.
    """
    return can_collapse(m, vma) and m.mm(vma.mm).count("thp_disable") != 1


def can_collapse(m: Machine, vma: Vma) -> bool:
    """Return whether a VMA may have huge pages: of anonymous memory, or of a file in memory.

    In a file they must fit where it is mapped, and shmem_enabled must not be "deny".
    """
    if vma.flags & (VM_NOHUGEPAGE | VM_SPECIAL | VM_HUGETLB):
        return False
    if not vma.file:
        return bool(vma.anon_vma)
    file = m.files[vma.file]
    if POLICIES[m.globals.get("shmem", 0)] == "deny":
        return False
    return file.kind == "shmem" and not file.secret and fits(vma, vma.end - PMD_SIZE)


@step
def revalidate(m: Machine, task: Task, mm: int, address: int) -> int:
    """Find the VMA that has all of 2 MiB and may be collapsed; 0 if there is none any more."""
    handle = lookup(m, m.mm(mm), address)
    if not handle:
        return 0
    vma = vma_of(m, task, handle)
    covers = vma.start <= address and address + PMD_SIZE <= vma.end
    return handle if covers and can_collapse(m, vma) else 0


async def look(cx: Cx, address: int) -> int:
    """Tell what a collapse of 2 MiB comes to under the design's rules (scan_pmd)."""
    design = cx.design
    passes, writable = design.collapse_passes_holes, design.collapse_needs_writable
    return await scan_pmd(cx.mm, address, passes, writable)


@step
def scan_pmd(
    m: Machine, task: Task, mm: int, address: int, passes_holes: bool, needs_writable: bool
) -> int:
    """Tell whether 2 MiB can become a huge page: DONE, FITS, SKIPPED or FAILED."""
    space, first = m.mm(mm), address >> PAGE_SHIFT
    runs = space.ptes.overlapping(first, first + PAGES_PER_PMD)
    if runs and runs[0][2].kind in ("thp", "zero_thp"):
        return DONE
    if space.tables[1].at(first // PAGES_PER_PMD) is None:
        hole = space.tables[2].at(first // PAGES_PER_PMD // PAGES_PER_PMD) is None
        return SKIPPED if hole or passes_holes else FAILED
    handle = lookup(m, space, address)
    watched = bool(handle) and bool(vma_of(m, task, handle).flags & VM_UFFD_FLAGS)
    at, writable, marked = first, False, False
    for low, high, pte in runs:
        if watched and (low > at or pte.kind == "zero"):
            return BUSY  # before what comes behind it
        at = high
        if pte.kind == "zero":
            continue
        if pte.wp or pte.kind == "uffd_wp":
            return SKIPPED
        writable |= pte.writable
        marked |= pte.kind in ("guard", "poison")
    if watched and at < first + PAGES_PER_PMD:
        return BUSY
    if needs_writable and not writable:
        return SKIPPED
    return FAILED if marked else FITS


@step
def collapse_huge_page(m: Machine, task: Task, mm: int, address: int) -> None:
    """Copy 2 MiB into a huge page and map that instead; the page table is set aside."""
    space, first = m.mm(mm), address >> PAGE_SHIFT
    last = first + PAGES_PER_PMD
    if space.tables[1].at(first // PAGES_PER_PMD) is None:
        raise Violation(
            Invariant.USE_AFTER_FREE,
            f"{task} collapses the page table over {address:#x} that it has looked at, and which "
            "was freed since",
        )
    vma = vma_of(m, task, lookup(m, space, address))
    new = alloc_frames(m, task, "thp", PAGES_PER_PMD, align=PAGES_PER_PMD)
    runs = space.ptes.overlapping(first, last)
    for low, high, pte in runs:
        if pte.kind == "zero":
            continue
        for begin, end, tag in m.content.overlapping(low + pte.delta, high + pte.delta):
            shift = new - first - pte.delta
            m.content.set(begin + shift, end + shift, tag)
    space.ptes.clear(first, last)
    flush_tlb_range(m, mm, first, last, False)
    for low, high, pte in runs:
        if pte.kind in RSS:
            space.add(RSS[pte.kind], low - high)
        if pte.kind != "zero":
            change_frames(m, task, low + pte.delta, high + pte.delta, refs=-1, maps=-1)
    m.spend("fault_thp")
    writable, no_access = bool(vma.flags & VM_WRITE), not vma.flags & VM_ACCESS_FLAGS
    install(m, task, space, first, last, Pte("thp", new - first, writable, no_access))
