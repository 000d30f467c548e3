"""A driver that remembers its VMA: an ioctl maps pages there, a shrinker takes some back.

As binder did. mmap saves the VMA, close() forgets it. Both users take the mmap_lock for read and
then go by what is saved; before 4.20 that kept a munmap out. Since then munmap is under read as
well when it tears the range down, and calls close() last: the saved VMA is out of the tree by then,
its page tables are gone, and soon it is freed (dd2283f2605e; binder: 015ac18be7de). A driver that
looks its VMA up by address is safe.

Sources: drivers/android/binder_alloc.c binder_update_page_range, binder_alloc_free_page.
"""

from __future__ import annotations

from errno import ESRCH
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT, VM_WRITE
from zaplock.model.mm import Pte
from zaplock.model.pagetable import alloc_tables, install
from zaplock.model.rwsem import down_read, down_read_trylock, up_read
from zaplock.model.step import Task, step
from zaplock.model.tlb import tlb_gather_mmu
from zaplock.model.vma import read_vma, vma_of
from zaplock.protocols.saved_vmas import saved_vma
from zaplock.protocols.table_walk import vma_lookup
from zaplock.protocols.teardown import tlb_finish_mmu, unmap_page_range

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

DEVICE_FRAME = 1 << 33
"""The first frame of what devices map."""


async def ioctl(cx: Cx, file: int, address: int, looks_up: bool) -> int:
    """Map a page for the user, under the mmap_lock for read: 0, or -ESRCH without a VMA.

    `looks_up`: find the VMA by its address, instead of going by the one that was saved.
    """
    await down_read(cx.mmap_lock)
    handle = await (vma_lookup(cx.mm, address) if looks_up else saved_vma(file))
    if handle:
        await insert_page(handle, address)
    await up_read(cx.mmap_lock)
    return 0 if handle else -ESRCH


async def shrink(cx: Cx, file: int) -> int:
    """Take a driver's pages back, if the mmap_lock can be had at once; return 1 if so."""
    if not await down_read_trylock(cx.mmap_lock):
        return 0
    handle = await saved_vma(file)
    if handle:
        vma = await read_vma(handle)
        first, last = vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT
        gather = await tlb_gather_mmu(cx.mm, first, last)
        await unmap_page_range(cx, gather, vma.start, vma.end)
        await tlb_finish_mmu(cx, gather)
    await up_read(cx.mmap_lock)
    return int(handle > 0)


@step
def insert_page(m: Machine, task: Task, handle: int, address: int) -> None:
    """Map a page of the device in a VMA (vm_insert_page), if nothing is there yet."""
    vma = vma_of(m, task, handle)
    space, vpn = m.mm(vma.mm), address >> PAGE_SHIFT
    alloc_tables(m, task, space, vpn, vpn + 1)
    if space.ptes.at(vpn) is None:
        delta = DEVICE_FRAME - (vma.start >> PAGE_SHIFT)
        install(m, task, space, vpn, vpn + 1, Pte("pfn", delta, bool(vma.flags & VM_WRITE)))
