"""From detached VMAs to returned pages: what every way of unmapping has in common.

unmap_region = gather, zap, out of the rmap, free page tables, flush, return. Who calls it holds the
mmap_lock for write, or for read after a downgrade; the code is the same, which is the point of the
RFC. Not modelled: lru_add_drain (pages on per-CPU lists) and mmu notifiers.

Sources: mm/mmap.c unmap_region, mm/memory.c unmap_vmas, unmap_single_vma, free_pgtables (4.9 to
6.18); the RFC's skip_vm_flags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.files import i_mmap_lock
from zaplock.model.flags import (
    PAGE_SHIFT,
    VM_ACCOUNT,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_PAT,
    VM_PFNMAP,
)
from zaplock.model.huge_fault import promise_again
from zaplock.model.mm import Counter
from zaplock.model.pagetable import free_tables, zap
from zaplock.model.rwsem import down_write, up_write
from zaplock.model.step import Task, step
from zaplock.model.tlb import (
    is_full,
    tlb_batch_pages_flush,
    tlb_begin_finish,
    tlb_end_finish,
    tlb_flush_mmu_tlbonly,
    tlb_gather_mmu,
)
from zaplock.model.vma import (
    Vma,
    account_parts,
    change,
    detach,
    following,
    free,
    previous,
    read_vma,
    unlink_rmap,
    vma_of,
)
from zaplock.protocols.locking import assert_write_locked
from zaplock.protocols.saved_vmas import close

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

Handles = tuple[int, ...]
Bounds = tuple[int, int]
"""floor and ceiling of the page-table freeing, as addresses; ceiling 0 is the top."""


async def unmap_region(
    cx: Cx, handles: Handles, start: int, end: int, bounds: Bounds, skip_vm_flags: bool = False
) -> None:
    """Zap the pages of detached VMAs in [start, end) and free their page tables."""
    gather = await begin_unmap(cx.mm, start, end)
    await unmap_vmas(cx, gather, handles, start, end, skip_vm_flags)
    await free_pgtables(cx, gather, handles, start, end, bounds)
    await tlb_finish_mmu(cx, gather)
    await end_unmap(cx.mm, gather)


@step
def begin_unmap(m: Machine, task: Task, mm: int, start: int, end: int) -> int:
    """tlb_gather_mmu and update_hiwater_rss; from here on the range is being torn down."""
    gather = tlb_gather_mmu.run(m, task, mm, start >> PAGE_SHIFT, end >> PAGE_SHIFT)
    space = m.mm(mm)
    space.raise_mark("hiwater_rss", space.rss)
    space.teardown.put(gather, (start, end))
    return gather


@step
def end_unmap(m: Machine, _task: Task, mm: int, gather: int) -> None:
    """The range is no longer torn down."""
    m.mm(mm).teardown.drop(gather)


async def unmap_vmas(
    cx: Cx, gather: int, handles: Handles, start: int, end: int, skip_vm_flags: bool
) -> None:
    """Zap every VMA's part of [start, end)."""
    for handle in handles:
        await unmap_single_vma(cx, gather, handle, start, end, skip_vm_flags)


async def unmap_single_vma(
    cx: Cx, gather: int, handle: int, start: int, end: int, skip_vm_flags: bool
) -> None:
    """Zap one VMA's part of [start, end); deal with its flags unless the caller did."""
    vma = await read_vma(handle)
    low, high = max(start, vma.start), min(end, vma.end)
    if low >= high:
        return
    if not skip_vm_flags:
        if vma.file:
            await uprobe_munmap(handle, low, high)
        if vma.flags & VM_PAT:
            await untrack_pfn(handle)
    if vma.flags & VM_HUGETLB:
        await unmap_hugepages(cx, gather, handle, vma, low, high, skip_vm_flags)
    else:
        munlocks = bool(vma.flags & VM_LOCKED) and not cx.design.munlock_pass
        await unmap_page_range(cx, gather, low, high, munlocks=munlocks)
    if vma.flags & VM_PFNMAP and cx.design.flush_before_rmap:
        await tlb_flush_mmu_tlbonly(gather)


async def unmap_hugepages(
    cx: Cx, gather: int, handle: int, vma: Vma, low: int, high: int, skip_vm_flags: bool
) -> None:
    """Zap a hugetlb VMA under its file's rmap lock.

    The final unmap also clears VM_MAYSHARE, so that a racing page-table share can't take the VMA
    for a partner (to 6.0; later the VMA's own hugetlb lock goes instead, 131a79b474e9). As posted,
    the RFC had the test the wrong way round.
    """
    final = not skip_vm_flags
    if cx.design.skip_vm_flags == "posted":
        final = skip_vm_flags
    if vma.file:
        await down_write(i_mmap_lock(vma.file))
    if vma.reserves and cx.design.zap_restores_reserve:
        await restore_reserve(vma, low, high)
    await unmap_page_range(cx, gather, low, high)
    if final and cx.design.clears_mayshare:
        await clear_mayshare(handle)
    if vma.file:
        await up_write(i_mmap_lock(vma.file))


@step
def restore_reserve(m: Machine, _task: Task, vma: Vma, low: int, high: int) -> None:
    """Promise the owner of a reserve those of its pages again that a zap is to take (6.9)."""
    promise_again(m, vma, low, high)


async def unmap_page_range(
    cx: Cx,
    gather: int,
    low: int,
    high: int,
    mm: int | None = None,
    spares: tuple[str, ...] = (),
    *,
    munlocks: bool = False,
) -> None:
    """Clear the entries of [low, high), flushing in the middle when the batch is full.

    Entries of the kinds `spares` stay: guard markers outlive all but an unmap. From 5.18 on pages
    of a locked VMA are munlocked here, as their rmap goes (b109b87050df): `munlocks`.
    """
    mm = cx.mm if mm is None else mm
    grain = (cx.grain << PAGE_SHIFT) or high - low
    locked = (True,) if munlocks else ()  # said only where it is so: a schedule shows it
    for at in range(low, high, grain):
        full = await zap_pte_range(mm, gather, at, min(at + grain, high), spares, *locked)
        if full and at + grain < high:
            await tlb_flush_mmu(gather)


@step
def zap_pte_range(
    m: Machine,
    task: Task,
    mm: int,
    gather: int,
    low: int,
    high: int,
    spares: tuple[str, ...] = (),
    munlocks: bool = False,
) -> bool:
    """Clear entries under the page-table lock; returns whether the batch is full."""
    zapped = zap(m, task, m.mm(mm), gather, low >> PAGE_SHIFT, high >> PAGE_SHIFT, spares)
    if munlocks:
        m.spend("munlock_page", zapped)
    return zapped > 0 and is_full(m, gather)


async def tlb_flush_mmu(gather: int) -> None:
    """Flush, then return what was gathered so far."""
    await tlb_flush_mmu_tlbonly(gather)
    await tlb_batch_pages_flush(gather)


async def free_pgtables(
    cx: Cx, gather: int, handles: Handles, start: int, end: int, bounds: Bounds
) -> None:
    """Take the VMAs out of their rmap, then free the page tables between floor and ceiling."""
    for handle in handles:
        await unlink_file_vma(cx, handle)
    await free_pgd_range(cx.mm, gather, start, end, bounds)


async def unlink_file_vma(cx: Cx, handle: int) -> None:
    """Take a VMA out of its file's rmap, under that rmap's lock."""
    vma = await read_vma(handle)
    if vma.file:
        await down_write(i_mmap_lock(vma.file))
        await unlink_file(handle)
        await up_write(i_mmap_lock(vma.file))


@step
def unlink_file(m: Machine, task: Task, handle: int) -> None:
    """Take a VMA out of its file's rmap."""
    unlink_rmap(m, task, handle)


@step
def free_pgd_range(
    m: Machine, task: Task, mm: int, gather: int, start: int, end: int, bounds: Bounds
) -> None:
    """Unlink the page tables of [start, end) between floor and ceiling."""
    first, last = start >> PAGE_SHIFT, end >> PAGE_SHIFT
    floor, ceiling = bounds[0] >> PAGE_SHIFT, bounds[1] >> PAGE_SHIFT
    free_tables(m, task, m.mm(mm), gather, first, last, floor, ceiling)


@step
def floor_and_ceiling(m: Machine, task: Task, mm: int, start: int, end: int) -> Bounds:
    """Return (end of the VMA before, start of the VMA behind): what page tables others need."""
    space = m.mm(mm)
    before, behind = previous(space, start), following(space, end)
    floor = vma_of(m, task, before).end if before else 0
    return floor, vma_of(m, task, behind).start if behind else 0


async def tlb_finish_mmu(cx: Cx, gather: int) -> None:
    """Flush what was gathered, return it, and end the gather."""
    await tlb_begin_finish(gather, cx.design.nested_flush)
    await tlb_batch_pages_flush(gather)
    await tlb_end_finish(gather)


# Special mappings


@step
def uprobe_munmap(m: Machine, task: Task, handle: int, _start: int, _end: int) -> None:
    """Note that the probes of a range have to be looked for anew (MMF_RECALC_UPROBES)."""
    vma = vma_of(m, task, handle)
    if m.files[vma.file].uprobe >= 0:
        m.spend("uprobe")
        m.mm(vma.mm).counters.put("recalc_uprobes", 1)


@step
def untrack_pfn(m: Machine, task: Task, handle: int) -> None:
    """Give up the memory type of a PFN mapping (VM_PAT)."""
    vma = vma_of(m, task, handle)
    guard_flags(m, task, vma)
    m.vmas.put(handle, change(vma, flags=vma.flags & ~VM_PAT))


@step
def clear_mayshare(m: Machine, task: Task, handle: int) -> None:
    """Keep a hugetlb VMA from being taken as a partner for page-table sharing."""
    vma = vma_of(m, task, handle)
    guard_flags(m, task, vma)
    m.vmas.put(handle, change(vma, flags=vma.flags & ~VM_MAYSHARE))


def guard_flags(m: Machine, task: Task, vma: Vma) -> None:
    """vm_flags of a VMA that others can find change only under the exclusive lock.

    exit_mmap needs none for it: nobody uses the address space any more.
    """
    if vma.attached and m.mm(vma.mm).count("users") > 0:
        assert_write_locked(m, task, vma, "vm_flags of")


@step
def munlock_vma_pages_all(m: Machine, task: Task, handle: int) -> None:
    """Munlock every page of a VMA before it goes."""
    vma = vma_of(m, task, handle)
    pages = m.mm(vma.mm).ptes.total(vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT)
    m.spend("munlock_page", pages)
    guard_flags(m, task, vma)
    m.vmas.put(handle, change(vma, flags=vma.flags & ~VM_LOCKED_MASK))


async def munmap_mlock_vma(cx: Cx, handles: Handles) -> None:
    """Take the locked VMAs out of locked_vm and munlock their pages, under write."""
    for handle in handles:
        vma = await read_vma(handle)
        if vma.flags & VM_LOCKED:
            await add_counter(cx.mm, "locked_vm", -vma.nr_pages)
            await munlock_vma_pages_all(handle)


@step
def add_counter(m: Machine, _task: Task, mm: int, counter: Counter, amount: int) -> None:
    """Change a counter of the mm."""
    m.mm(mm).add(counter, amount)


@step
def read_counter(m: Machine, _task: Task, mm: int, counter: Counter) -> int:
    """Read a counter of the mm."""
    return m.mm(mm).count(counter)


@step
def write_counter(m: Machine, _task: Task, mm: int, counter: Counter, value: int) -> None:
    """Write a counter of the mm."""
    m.mm(mm).counters.put(counter, value)


@step
def detach_vmas_to_be_unmapped(m: Machine, task: Task, handles: Handles) -> None:
    """Take VMAs out of the tree: from here on nobody can find them."""
    for handle in handles:
        vma = vma_of(m, task, handle)
        assert_write_locked(m, task, vma, "the tree at")
        m.spend("vma_detach")
        detach(m, handle, vma)


def leave_tree_and_books(m: Machine, task: Task, handle: int) -> Vma:
    """Take a VMA out of the tree and out of every counter at once; return what it is now."""
    vma = vma_of(m, task, handle)
    assert_write_locked(m, task, vma, "the tree at")
    m.spend("vma_detach")
    left = detach(m, handle, vma)
    space = m.mm(vma.mm)
    space.raise_mark("hiwater_vm", space.count("total_vm"))
    space.add("total_vm", -vma.nr_pages)
    account_parts(space, vma.flags, -vma.nr_pages)
    if vma.flags & VM_LOCKED:
        space.add("locked_vm", -vma.nr_pages)
    return left


async def remove_vma_list(cx: Cx, handles: Handles) -> None:
    """Account for the VMAs that are gone and free them.

    total_vm is read and written in two steps, as the plain C of the kernel does it: under a shared
    hold nothing keeps a growing stack from adding to it in between (to 6.4).
    """
    unaccounted = 0
    for handle in handles:
        vma = await read_vma(handle)
        await raise_hiwater_vm(cx.mm)
        if cx.grain:
            total_vm = await read_counter(cx.mm, "total_vm")
            await write_counter(cx.mm, "total_vm", total_vm - vma.nr_pages)
        else:
            await add_counter(cx.mm, "total_vm", -vma.nr_pages)
        if vma.flags & VM_ACCOUNT:
            unaccounted += vma.nr_pages
        await close(vma, handle)
        await remove_vma(handle)
    if unaccounted:
        await vm_unacct_memory(unaccounted)


async def close_vmas(handles: Handles) -> int:
    """Close and free VMAs that are in no book any more; return the pages to give back."""
    unaccounted = 0
    for handle in handles:
        vma = await read_vma(handle)
        unaccounted += vma.nr_pages if vma.flags & VM_ACCOUNT else 0
        await close(vma, handle)
        await close_vma(handle)
    return unaccounted


@step
def close_vma(m: Machine, task: Task, handle: int) -> None:
    """Free a VMA that is in no book any more; who waits to truncate what is cut looks again."""
    vma = vma_of(m, task, handle)
    free(m, task, handle)
    if vma.cut:
        m.wake(("cut", vma.file))


@step
def raise_hiwater_vm(m: Machine, _task: Task, mm: int) -> None:
    """Keep the high-water mark of total_vm before it falls."""
    space = m.mm(mm)
    space.raise_mark("hiwater_vm", space.count("total_vm"))


@step
def remove_vma(m: Machine, task: Task, handle: int) -> None:
    """Close and free a VMA."""
    vma = vma_of(m, task, handle)
    account_parts(m.mm(vma.mm), vma.flags, -vma.nr_pages)
    free(m, task, handle)


@step
def vm_unacct_memory(m: Machine, _task: Task, pages: int) -> None:
    """Give committed memory back."""
    m.commit(-pages)
