"""What a page fault does in a mapping of huge pages (hugetlb), of 2 MiB or 1 GiB each.

A shared mapping maps what its file has, and gives the file what it lacks. A private one maps what
its file has for reading only, copies it for a write, and has pages of its own where the file has
none; those are nobody's but the mapping's, and a child's after a fork. Where a pool is empty, the
access is a SIGBUS.

Sources (6.18): mm/hugetlb.c (hugetlb_no_page, hugetlb_wp, alloc_hugetlb_folio). Not covered: an
owner that takes its page away from a child when the pool is empty (unmap_ref_private), which needs
both to run.
"""

from __future__ import annotations

from signal import SIGBUS
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT, PMD_SIZE, VM_SHARED, VM_WRITE
from zaplock.model.frames import alloc_frames, change_frames
from zaplock.model.huge_pool import KIND_OF, take
from zaplock.model.mm import Mm, Pte
from zaplock.model.pagetable import RSS, install
from zaplock.model.step import Task
from zaplock.model.vma import Vma, change

if TYPE_CHECKING:
    from zaplock.model.machine import Machine


def map_huge_page(m: Machine, task: Task, vma: Vma, vpn: int, write: bool) -> int:
    """Map the huge page over virtual page `vpn`, where nothing is mapped: 0 or -SIGBUS."""
    space, pages = m.mm(vma.mm), vma.huge_size >> PAGE_SHIFT
    low = vpn - vpn % pages
    m.spend("fault_hugetlb", vma.huge_size // PMD_SIZE)
    pfn = huge_page_of_file(m, vma, low)
    own = pfn < 0 and not (vma.file and vma.flags & VM_SHARED)
    if pfn < 0 and is_beyond_file(m, vma, low):
        return -SIGBUS
    if pfn < 0 and own:
        if not take(m, vma.huge_size, vma.reserves):
            return -SIGBUS
        pfn = alloc_frames(m, task, KIND_OF[vma.huge_size], pages)
    elif pfn < 0:
        pfn = _add_to_file(m, task, vma, low)
        if pfn < 0:
            return -SIGBUS
    if not own:
        change_frames(m, task, pfn, pfn + pages, refs=1)
    writable = bool(vma.flags & VM_WRITE) and (own or bool(vma.flags & VM_SHARED))
    pte = Pte(KIND_OF[vma.huge_size], pfn - low, writable)
    install(m, task, space, low, low + pages, pte)
    if write and not writable:
        return write_huge_page(m, task, vma, vpn, pte)
    return 0


def write_huge_page(m: Machine, task: Task, vma: Vma, vpn: int, pte: Pte) -> int:
    """Let a mapped huge page be written to, copied where it is not the mapping's own."""
    space, pages = m.mm(vma.mm), vma.huge_size >> PAGE_SHIFT
    low = vpn - vpn % pages
    old = low + pte.delta
    frame = m.frames.at(old)
    assert frame is not None
    if vma.flags & VM_SHARED or frame.refs == frame.maps == 1:
        space.ptes.set(low, low + pages, change(pte, writable=True))
        return 0
    of_file = frame.refs > frame.maps  # else its own was promised before the fork, and taken
    if not take(m, vma.huge_size, vma.reserves and of_file):
        return -SIGBUS
    held = m.content.overlapping(old, old + pages)
    space.ptes.clear(low, low + pages)
    space.add(RSS[pte.kind], -pages)
    change_frames(m, task, old, old + pages, refs=-1, maps=-1)
    new = alloc_frames(m, task, pte.kind, pages)
    for start, end, tag in held:
        m.content.set(start - old + new, end - old + new, tag)
    install(m, task, space, low, low + pages, Pte(pte.kind, new - low, True))
    return 0


def huge_page_of_file(m: Machine, vma: Vma, low: int) -> int:
    """Return the first frame of the page that the file of a mapping has there, -1 for none."""
    if not vma.file:
        return -1
    pgoff = vma.pgoff_of(low << PAGE_SHIFT)
    delta = m.page_cache(vma.file).at(pgoff)
    return -1 if delta is None else pgoff + delta


def is_beyond_file(m: Machine, vma: Vma, low: int) -> bool:
    """Return whether the file of a mapping ends before a page."""
    return (
        bool(vma.file) and vma.pgoff_of(low << PAGE_SHIFT) << PAGE_SHIFT >= m.files[vma.file].size
    )


def own_huge_page(m: Machine, vma: Vma, address: int, write: bool) -> bool:
    """Return whether a fault in a private mapping makes a huge page of the mapping's own."""
    low = (address & -vma.huge_size) >> PAGE_SHIFT
    return write if huge_page_of_file(m, vma, low) >= 0 else not is_beyond_file(m, vma, low)


def reaches_own_page(m: Machine, vma: Vma, low: int, high: int, write: bool) -> bool:
    """Return whether faults of bytes [low, high), one by one, come to a page of a mapping's own."""
    for address in range(low & -vma.huge_size, high, vma.huge_size):
        if own_huge_page(m, vma, address, write):
            return True
        if huge_page_of_file(m, vma, address >> PAGE_SHIFT) < 0:
            return False  # that is a SIGBUS
    return False


def own_pages(m: Machine, space: Mm, low: int, high: int, size: int) -> int:
    """Count the huge pages mapped in bytes [low, high) that no file has."""
    return sum(
        end - start
        for first, last, pte in space.ptes.overlapping(low >> PAGE_SHIFT, high >> PAGE_SHIFT)
        for start, end, frame in m.frames.overlapping(first + pte.delta, last + pte.delta)
        if frame.refs == frame.maps
    ) // (size >> PAGE_SHIFT)


def _add_to_file(m: Machine, task: Task, vma: Vma, low: int) -> int:
    """Give the file of a mapping a page: its first frame, or -1 where the pool has none."""
    pgoff, pages = vma.pgoff_of(low << PAGE_SHIFT), vma.huge_size >> PAGE_SHIFT
    file, number = m.files[vma.file], pgoff // pages
    if not take(m, vma.huge_size, number in file.promised):
        return -1
    left = tuple(one for one in file.promised if one != number)
    m.files.put(vma.file, change(file, promised=left))
    pfn = alloc_frames(m, task, KIND_OF[vma.huge_size], pages)
    m.page_cache(vma.file).set(pgoff, pgoff + pages, pfn - pgoff)
    return pfn
