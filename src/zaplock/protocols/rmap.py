"""The file's side: truncation finds the mappings of a file by its rmap, without any mmap_lock.

unmap_mapping_range holds the rmap's lock for read while it zaps; who takes a VMA out of the rmap
needs it for write. That is what keeps page tables alive under it.

Source: mm/memory.c unmap_mapping_pages, mm/truncate.c truncate_pagecache.
"""

from __future__ import annotations

from errno import EPERM
from typing import TYPE_CHECKING

from zaplock.model.file_changes import begin_change, end_change, once_unlocked
from zaplock.model.files import (
    END_OF_FILES,
    FileCut,
    i_mmap_lock,
    set_file_size,
    truncate_pagecache,
)
from zaplock.model.flags import PAGE_SHIFT, VM_UFFD_WP, page_align
from zaplock.model.pagetable import REARM
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.step import Step, Task, WaitStep, step
from zaplock.model.tlb import tlb_gather_mmu
from zaplock.model.vma import Vma, read_vma, vma_of
from zaplock.protocols.seals import sealed_size
from zaplock.protocols.teardown import (
    restore_reserve,
    tlb_finish_mmu,
    tlb_flush_mmu,
    unmap_page_range,
    zap_pte_range,
)

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


async def truncate(cx: Cx, file: int, size: int) -> int:
    """Cut a file at `size` bytes: unmap, drop the pages, unmap again what raced in between.

    Returns 0, or -EPERM where it is sealed against that.
    """
    cut = await once_unlocked(begin_cut, file, size)
    if cut is None:
        return -EPERM
    if cut.unmaps:
        await unmap_mapping_range(cx, file, page_align(size), END_OF_FILES)
    if cut.drops:
        await truncate_pagecache(file, size)
    if cut.unmaps:
        await unmap_mapping_range(cx, file, page_align(size), END_OF_FILES)
    if cut.unmaps or cut.drops:
        await end_change(file)
    return 0


@step
def begin_cut(m: Machine, task: Task, file: int, size: int) -> FileCut | None:
    """Change the size of a file unless it is sealed against that, and lock it to cut what goes."""
    if sealed_size.run(m, task, file, size):
        return None
    cut = set_file_size.run(m, task, file, size)
    if cut.unmaps or cut.drops:
        begin_change.run(m, task, file)
    return cut


MARKERS = ("guard",)


def watched_kinds(vma: Vma) -> tuple[str, ...]:
    """Return what a zap of a VMA spares for a userfaultfd, unless the VMA itself goes.

    In anonymous memory nothing (zap_install_uffd_wp_if_needed).
    """
    if not (vma.file and vma.uffd):
        return ()
    return ("uffd_wp", REARM) if vma.flags & VM_UFFD_WP else ("uffd_wp",)


async def unmap_mapping_range(
    cx: Cx, file: int, first: int, last: int, spares: tuple[str, ...] = MARKERS
) -> None:
    """Zap the pages of a file in bytes [first, last) wherever they are mapped.

    Entries of the kinds `spares` stay.
    """
    await down_read(i_mmap_lock(file))
    for handle in await mapping_vmas(file, first >> PAGE_SHIFT):
        vma = await read_vma(handle)
        low = max(vma.start, vma.start + first - (vma.pgoff << PAGE_SHIFT))
        high = min(vma.end, vma.start + last - (vma.pgoff << PAGE_SHIFT))
        if low < high:
            await zap_in(cx, vma, low, high, (*spares, *watched_kinds(vma)), handle)
    waits = cx.design.cuts and await cut_vmas(file)
    await up_read(i_mmap_lock(file))
    if waits:
        await no_cut_of(file)


async def zap_in(
    cx: Cx, vma: Vma, low: int, high: int, spares: tuple[str, ...], handle: int
) -> None:
    """Zap a part of another address space, as far as its VMA's page tables are not cut out."""
    gather = await tlb_gather_mmu(vma.mm, low >> PAGE_SHIFT, high >> PAGE_SHIFT)
    if vma.reserves and cx.design.zap_restores_reserve:
        await restore_reserve(vma, low, high)
    if cx.design.cuts:
        grain = (cx.grain << PAGE_SHIFT) or high - low
        for at in range(low, high, grain):
            if await zap_unless_cut(handle, gather, at, min(at + grain, high), spares):
                await tlb_flush_mmu(gather)
    else:
        await unmap_page_range(cx, gather, low, high, vma.mm, spares)
    await tlb_finish_mmu(cx, gather)


@step
def zap_unless_cut(
    m: Machine, task: Task, handle: int, gather: int, low: int, high: int, spares: tuple[str, ...]
) -> bool:
    """Clear entries under the page-table lock, where one sees whether the table was cut out.

    Whoever is at a cut VMA's addresses by then is somebody else. Returns whether the batch is full.
    """
    vma = vma_of(m, task, handle)
    return not vma.cut and zap_pte_range.run(m, task, vma.mm, gather, low, high, spares)


@step
def cut_vmas(m: Machine, task: Task, file: int) -> bool:
    """Return whether page tables that are cut out map pages of a file (protocols.cut_munmap)."""
    return not _none_is_cut(m, task, file)


def no_cut_of(file: int) -> Step[None]:
    """Wait until no page of a file is mapped by page tables that are cut out."""
    return WaitStep(_go_on, (file,), _none_is_cut, ("cut", file))


def _go_on(_m: Machine, _task: Task, _file: int) -> None:
    return None


def _none_is_cut(m: Machine, task: Task, file: int) -> bool:
    return not any(vma_of(m, task, handle).cut for handle in m.i_mmap(file))


@step
def mapping_vmas(m: Machine, task: Task, file: int, first: int) -> tuple[int, ...]:
    """List the VMAs that map a file from page offset `first` on."""
    handles = m.i_mmap(file)
    return tuple(
        handle
        for handle in handles
        if (vma := vma_of(m, task, handle)).pgoff + vma.nr_pages > first
    )
