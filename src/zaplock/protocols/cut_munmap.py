"""A munmap that stalls nobody, by cutting: page tables leave the address space whole.

Under one exclusive hold the VMAs go, the page tables that lie whole inside the range are taken out
with one store each, what the range shares with outside tables (at most 511 entries at either end)
is zapped in place, and the TLBs are flushed. From then on the addresses are free: a new mapping may
stand there before the lock is given up, so mmap(MAP_FIXED) and mremap onto a mapping are served as
munmap is. The pages below the cut tables are zapped after the unlock, under no lock.

Whoever finds pages through their file and an address does not find those of a cut, and may find
somebody else's in their place: truncation and hole punching look under the page-table lock whether
the VMA was cut, and wait at the end until nothing cut maps the file (rmap.unmap_mapping_range).

Stands on 6.18. The idea of zapping a detached subtree is CortenMM's ("stray" tables); nothing of
its code is used. Not covered: reclaim and migration, which would merely fail on such pages.
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT, PAGES_PER_PMD, page_align
from zaplock.model.mm import Cut
from zaplock.model.pagetable import cut_out, zap
from zaplock.model.step import Task, step
from zaplock.model.tlb import note_range, tlb_gather_mmu
from zaplock.model.vma import change
from zaplock.protocols.after_unlock import CUT
from zaplock.protocols.munmap import (
    munmap_addr_sanity,
    settle_special_mapping,
    vms_gather_munmap_vmas,
)
from zaplock.protocols.teardown import (
    Handles,
    floor_and_ceiling,
    free_pgd_range,
    leave_tree_and_books,
    tlb_finish_mmu,
)

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents


async def do_munmap_cut(
    cx: Cx, start: int, length: int, events: UnmapEvents, downgrade: bool = False
) -> int:
    """Free [start, start + length) under the exclusive hold that the caller keeps; zap later."""
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    end = start + page_align(length)
    found, handles = await vms_gather_munmap_vmas(cx, start, end, events)
    if found != 1:
        return found
    bounds = await floor_and_ceiling(cx.mm, start, end)
    await detach_and_settle(handles)
    for handle in handles:
        await settle_special_mapping(cx, handle)
    batch = await tlb_gather_mmu(cx.mm, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
    await zap_borders(cx.mm, batch, start, end)
    cut = await cut_tables(cx.mm, batch, handles, start, end)
    await free_pgd_range(cx.mm, batch, start, end, bounds)
    await tlb_finish_mmu(cx, batch)
    events.append((CUT, cut, 0))
    return 0


@step
def detach_and_settle(m: Machine, task: Task, handles: Handles) -> None:
    """Take VMAs out of the tree and the books; those of files are marked for who truncates them."""
    for handle in handles:
        m.vmas.put(handle, change(leave_tree_and_books(m, task, handle), cut=True))


def whole_tables(start: int, end: int) -> tuple[int, int]:
    """Return the virtual pages of [start, end) that lie in page tables wholly inside it."""
    first, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
    low, high = -(-first // PAGES_PER_PMD) * PAGES_PER_PMD, last // PAGES_PER_PMD * PAGES_PER_PMD
    return (low, high) if low < high else (last, last)


@step
def zap_borders(m: Machine, task: Task, mm: int, batch: int, start: int, end: int) -> None:
    """Zap in place what lies in tables that reach out of the range: at most 511 entries a side."""
    first, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
    low, high = whole_tables(start, end)
    space = m.mm(mm)
    space.raise_mark("hiwater_rss", space.rss)
    zap(m, task, space, batch, first, low)
    zap(m, task, space, batch, high, last)


@step
def cut_tables(
    m: Machine, task: Task, mm: int, batch: int, handles: Handles, start: int, end: int
) -> int:
    """Take the tables wholly inside out of the address space; return the cut."""
    cut = m.new_handle(task, "cut")
    low, high = whole_tables(start, end)
    space = m.mm(mm)
    tables = cut_out(m, space, cut, low, high) if low < high else ()
    if tables:
        note_range(m, batch, low, high)
    space.cuts.put(cut, Cut(low, high, handles, tables))
    return cut
