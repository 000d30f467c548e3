"""Fault in a range ahead of its use, under the mmap_lock for read.

MAP_POPULATE, MAP_LOCKED and mlock do it over a whole range in one shared hold, which is why a
writer waits so long beside them; MADV_POPULATE_* reports what went wrong.

Source: mm/gup.c __mm_populate, populate_vma_page_range, faultin_page_range.
"""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENOMEM
from signal import SIGBUS, SIGSEGV
from typing import TYPE_CHECKING

from zaplock.model.faulting import meets_huge_pages, populate_range
from zaplock.model.flags import (
    PAGE_SHIFT,
    VM_ACCESS_FLAGS,
    VM_IO,
    VM_LOCKONFAULT,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    page_align,
)
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.step import Task, step
from zaplock.model.vma import Vma, anon_vma_prepare, find_vma, found_vma, read_vma

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


async def mm_populate(cx: Cx, start: int, end: int, strict: bool = False) -> int:
    """Fault in [start, end) where something is mapped.

    An error ends a VMA's part, with `strict` (mlock) the whole walk, and is then returned.
    """
    if start >= end:
        return 0
    await down_read(cx.mmap_lock)
    result = 0
    at = start
    while at < end:
        handle = await find_vma(cx.mm, at)
        vma = await read_vma(handle) if handle else None
        if vma is None or vma.start >= end:
            break
        low, high = max(at, vma.start), min(end, vma.end)
        if not vma.flags & (VM_IO | VM_PFNMAP | VM_LOCKONFAULT):
            result = await populate_vma_page_range(cx, handle, vma, low, high)
            if result and strict:
                break
        at = high
    await up_read(cx.mmap_lock)
    return result if strict else 0


async def populate_vma_page_range(cx: Cx, handle: int, vma: Vma, low: int, high: int) -> int:
    """Fault in a part of a VMA, for writing where that is private and writable.

    Any access that a VMA allows will do (FOLL_FORCE): one that only writes is read here.
    """
    write = vma.flags & (VM_WRITE | VM_SHARED) == VM_WRITE
    if vma.flags & VM_LOCKONFAULT:
        return 0
    if not vma.flags & VM_ACCESS_FLAGS:
        return -EFAULT
    return await populate_pages(cx, handle, vma, low, high, write)


async def populate_pages(cx: Cx, handle: int, vma: Vma, low: int, high: int, write: bool) -> int:
    """Fault in [low, high) of a VMA in steps of the grain: 0, -EFAULT or -ENOMEM."""
    if write and not vma.flags & VM_SHARED and not vma.anon_vma:
        await anon_vma_prepare(handle)
    grain = (cx.grain << PAGE_SHIFT) or high - low
    for at in range(low, high, grain):
        made_dirty = 0
        if write and vma.flags & VM_SHARED and cx.design.vma_locks:
            made_dirty = await count_clean(handle, at, min(at + grain, high))
        error = await fault_range(handle, at, min(at + grain, high), write)
        for _ in range(made_dirty and made_dirty + 1):
            # balance_dirty_pages may take long (5.1 on); once more to tell the caller of it
            await up_read(cx.mmap_lock)
            await down_read(cx.mmap_lock)
        if error:
            return -EFAULT if error in (-SIGBUS, -SIGSEGV) else -ENOMEM
    return 0


@step
def count_clean(m: Machine, task: Task, handle: int, low: int, high: int) -> int:
    """Count the pages of a shared file mapping that a write would be the first to make dirty."""
    vma = found_vma(m, task, handle)
    cache, size, ptes = m.page_cache(vma.file), m.files[vma.file].size, m.mm(vma.mm).ptes
    shift = (vma.start >> PAGE_SHIFT) - vma.pgoff
    clean = 0
    for page in range(vma.pgoff_of(low), min(vma.pgoff_of(high), page_align(size) >> PAGE_SHIFT)):
        pte, delta = ptes.at(page + shift), cache.at(page)
        if pte is None or not pte.writable:
            clean += delta is None or not m.dirty.at(page + delta)
    return clean


@step
def fault_range(m: Machine, task: Task, handle: int, low: int, high: int, write: bool) -> int:
    """Fault in every page of [low, high): 0, or the first fault's signal, negative."""
    vma = found_vma(m, task, handle)
    first, last = low >> PAGE_SHIFT, high >> PAGE_SHIFT
    needs = not write and not vma.file and not vma.flags & VM_SHARED and not vma.anon_vma
    if needs and meets_huge_pages(m, vma, first, last):
        anon_vma_prepare.run(m, task, handle)
    return populate_range(m, task, vma, first, last, write)


async def populate_strictly(cx: Cx, start: int, end: int, write: bool) -> int:
    """Fault in [start, end) under a hold that the caller has; stop at the first error."""
    at = start
    while at < end:
        handle = await find_vma(cx.mm, at)
        vma = await read_vma(handle) if handle else None
        if vma is None or vma.start > at:
            return -ENOMEM
        if vma.flags & (VM_IO | VM_PFNMAP) or not vma.flags & (VM_WRITE if write else VM_READ):
            return -EINVAL
        high = min(end, vma.end)
        error = await populate_pages(cx, handle, vma, at, high, write)
        if error:
            return error
        at = high
    return 0
