"""MADV_COLLAPSE of private anonymous memory: small pages become a huge one, now (6.1).

Each aligned range of 2 MiB is looked at under the lock held for read and copied under the lock held
for write. What has no page table yet is not collapsed; what has one is, however few of its pages
are there. Files in memory are left out.

Source: mm/khugepaged.c madvise_collapse, hpage_collapse_scan_pmd, collapse_huge_page.
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    PAGE_SHIFT,
    PAGES_PER_PMD,
    PMD_SIZE,
    VM_HUGETLB,
    VM_NOHUGEPAGE,
    VM_SPECIAL,
    VM_WRITE,
)
from zaplock.model.frames import alloc_frames, change_frames
from zaplock.model.mm import Pte
from zaplock.model.pagetable import RSS, install
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.step import Task, step
from zaplock.model.tlb import flush_tlb_range
from zaplock.model.vma import Vma, lookup, vma_of
from zaplock.protocols.locking import mmap_write_lock_killable, mmap_write_unlock

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

DONE, FITS, FAILED = range(3)


async def collapse(cx: Cx, vma: Vma, low: int, high: int) -> int:
    """Collapse a part of a VMA, the lock held for read: 0 or -EINVAL."""
    first, last = -(-low // PMD_SIZE) * PMD_SIZE, high & -PMD_SIZE
    start, end = -(-vma.start // PMD_SIZE) * PMD_SIZE, vma.end & -PMD_SIZE
    refused = vma.flags & (VM_NOHUGEPAGE | VM_SPECIAL | VM_HUGETLB)
    if vma.file or not vma.anon_vma or refused or start >= end:
        return -EINVAL
    done = 0
    for at in range(first, last, PMD_SIZE):
        found = await scan_pmd(cx.mm, at)
        if found == FITS:
            await up_read(cx.mmap_lock)
            if await mmap_write_lock_killable(cx):
                return -EINVAL
            await collapse_huge_page(cx.mm, at)
            await mmap_write_unlock(cx)
            await down_read(cx.mmap_lock)
        if found == FAILED:
            return -EINVAL
        done += found in (DONE, FITS)
    return 0 if done * PMD_SIZE == last - first else -EINVAL


@step
def scan_pmd(m: Machine, task: Task, mm: int, address: int) -> int:
    """Tell whether 2 MiB can become a huge page: DONE, FITS, or FAILED (no table)."""
    space, first = m.mm(mm), address >> PAGE_SHIFT
    runs = space.ptes.overlapping(first, first + PAGES_PER_PMD)
    if runs and runs[0][2].kind in ("thp", "zero_thp"):
        return DONE
    if space.tables[1].at(first // PAGES_PER_PMD) is None:
        return FAILED
    markers = any(pte.kind in ("guard", "uffd_wp") for _, _, pte in runs)
    return FAILED if markers else FITS


@step
def collapse_huge_page(m: Machine, task: Task, mm: int, address: int) -> None:
    """Copy 2 MiB into a huge page and map that instead; the page table is set aside."""
    space, first = m.mm(mm), address >> PAGE_SHIFT
    last = first + PAGES_PER_PMD
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
    install(m, task, space, first, last, Pte("thp", new - first, bool(vma.flags & VM_WRITE)))
