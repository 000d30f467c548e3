"""Zap a part of a VMA that stays in the tree, as MADV_DONTNEED does.

Source: mm/memory.c zap_page_range_single; mm/pt_reclaim.c (6.14).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, VM_HUGETLB
from zaplock.model.step import Step, Task, step
from zaplock.model.tlb import gather_tables, tlb_gather_mmu, update_hiwater_rss
from zaplock.model.vma import Vma
from zaplock.protocols.rmap import MARKERS, watched_kinds
from zaplock.protocols.teardown import tlb_finish_mmu, unmap_hugepages, unmap_page_range

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


async def zap_page_range_single(
    cx: Cx, handle: int, vma: Vma, low: int, high: int, batch: int = 0
) -> None:
    """Zap a part of a VMA that stays in the tree.

    batch: the gather that its caller finishes; 0, and of huge pages in any case: one of its own.
    """
    own = not batch or vma.flags & VM_HUGETLB
    gather = await gather_zap(cx.mm, low, high) if own else batch
    if not own:
        await update_hiwater_rss(cx.mm)
    if vma.flags & VM_HUGETLB:
        await unmap_hugepages(cx, gather, handle, vma, low, high, True)
    else:
        spares = (*MARKERS, *watched_kinds(vma))
        await unmap_page_range(cx, gather, low, high, None, spares)
        if cx.design.reclaims_tables:
            await reclaim_tables(cx.mm, gather, low, high)
    if own:
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


def gather_zap(mm: int, low: int, high: int, notes_peak: bool = True) -> Step[int]:
    """Begin a gather over a range of addresses."""
    said = () if notes_peak else (False,)
    return tlb_gather_mmu(mm, low >> PAGE_SHIFT, high >> PAGE_SHIFT, *said)
