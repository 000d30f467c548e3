"""mincore: tell which pages are at hand, one byte each.

For private anonymous memory a page is there if it is mapped; for file mappings also if it is in the
page cache. Source: mm/mincore.c (5.2 on: only for files that the caller could write,
134fca9063ad).
"""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENOMEM
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, VM_HUGETLB, VM_SHARED, VM_WRITE
from zaplock.model.pagetable import ABSENT
from zaplock.model.shared_huge import is_fallocated
from zaplock.model.step import Task, step
from zaplock.model.vma import Vma, lookup, overlapping, vma_of
from zaplock.protocols.locking import mmap_read_lock, mmap_read_unlock

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

AT_ONCE = PAGE_SIZE  # pages that one hold of the lock looks at


async def mincore(
    cx: Cx, start: int, length: int, vector: int | None, looks: bool = True
) -> tuple[int, bytes]:
    """The mincore system call: (0 or a negative errno, what it wrote to the address `vector`).

    `vector` None: somewhere it can be written. Without `looks` only whether everything is mapped
    is asked, however much that is; what was written is empty then.
    """
    if start & ~PAGE_MASK:
        return -EINVAL, b""
    if length > cx.limits.task_size or start > cx.limits.task_size - length:
        return -ENOMEM, b""
    pages = (length + PAGE_SIZE - 1) >> PAGE_SHIFT
    if vector is not None and pages > cx.limits.task_size - vector:
        return -EFAULT, b""
    if not looks:
        return await is_mapped_throughout(cx, start, pages, vector)
    seen = b""
    while pages > 0:
        await mmap_read_lock(cx)
        by_page = cx.design.huge_cache_by_page
        part = await do_mincore(cx.mm, start, min(pages, AT_ONCE), by_page)
        await mmap_read_unlock(cx)
        if part is None:
            return -ENOMEM, seen
        if vector is not None and not await is_writable(cx.mm, vector + len(seen), len(part)):
            return -EFAULT, seen
        seen += part
        pages -= len(part)
        start += len(part) << PAGE_SHIFT
    return 0, seen


async def is_mapped_throughout(
    cx: Cx, start: int, pages: int, vector: int | None
) -> tuple[int, bytes]:
    """Tell what mincore returns, mapping by mapping."""
    done = 0
    while done < pages:
        await mmap_read_lock(cx)
        part = await pages_of_vma(cx.mm, start + (done << PAGE_SHIFT), pages - done)
        await mmap_read_unlock(cx)
        if not part:
            return -ENOMEM, b""
        if vector is not None and not await is_writable(cx.mm, vector + done, part):
            return -EFAULT, b""
        done += part
    return 0, b""


@step
def pages_of_vma(m: Machine, task: Task, mm: int, start: int, pages: int) -> int:
    """Return how many of so many pages the mapping at `start` has, 0 where there is none."""
    handle = lookup(m, m.mm(mm), start)
    vma = vma_of(m, task, handle) if handle else None
    if vma is None or vma.start > start:
        return 0
    return min(pages, vma.end - start >> PAGE_SHIFT)


@step
def is_writable(m: Machine, task: Task, mm: int, start: int, length: int) -> bool:
    """Return whether the kernel can write to a range of user memory; faults are passed over."""
    at, end = start, start + length
    for handle in overlapping(m, m.mm(mm), start, end):
        vma = vma_of(m, task, handle)
        if vma.start > at or not vma.flags & VM_WRITE:
            return False
        at = vma.end
    return at >= end


@step
def do_mincore(
    m: Machine, task: Task, mm: int, start: int, pages: int, by_page: bool
) -> bytes | None:
    """Look at up to `pages` pages of the VMA at `start`; None where nothing is mapped."""
    space = m.mm(mm)
    handle = lookup(m, space, start)
    if not handle:
        return None
    vma = vma_of(m, task, handle)
    if vma.start > start:
        return None
    first = start >> PAGE_SHIFT
    last = min(first + pages, vma.end >> PAGE_SHIFT)
    if vma.flags & VM_HUGETLB and not by_page:
        looked_for = (index_before_6_7(vma, vpn, first) for vpn in range(first, last))
    else:
        looked_for = (vma.pgoff_of(vpn << PAGE_SHIFT) for vpn in range(first, last))
    pairs = zip(range(first, last), looked_for, strict=True)
    return bytes(is_at_hand(m, vma, vpn, index) for vpn, index in pairs)


def index_before_6_7(vma: Vma, vpn: int, first: int) -> int:
    """Return which page of a file to 6.6 stands for one of a huge page.

    Huge pages were cached by their own numbers (linear_hugepage_index). The pages behind where a
    look begins, at `first` or where a huge page does, are taken for the huge ones that follow it.
    """
    small = vma.huge_size >> PAGE_SHIFT
    begin = max(first, vpn - vma.pgoff_of(vpn << PAGE_SHIFT) % small)
    number = vma.pgoff_of(begin << PAGE_SHIFT) // small + vpn - begin
    return number * small


def is_at_hand(m: Machine, vma: Vma, vpn: int, index: int) -> bool:
    """Return whether a page is mapped, or at least cached, as page `index` of its file.

    What is cached of huge pages of hugetlb is asked only where no page table is, whose entries
    would map them (walk_hugetlb_range).
    """
    space = m.mm(vma.mm)
    pte = space.ptes.at(vpn)
    if pte is not None and pte.kind not in ABSENT:
        return True
    table = vma.huge_level
    if (
        (vma.flags & VM_HUGETLB and space.tables[table].at(vpn >> 9 * table) is not None)
        or not vma.file
        or (m.files[vma.file].kind == "zero" and not vma.flags & VM_SHARED)
    ):
        return False
    delta = m.page_cache(vma.file).at(index)
    return delta is not None and not is_fallocated(m, index + delta)
