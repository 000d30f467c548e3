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

from zaplock.model.fault_results import ask_monitor
from zaplock.model.flags import (
    PAGE_SHIFT,
    PMD_SIZE,
    VM_MAYSHARE,
    VM_SHARED,
    VM_UFFD_MINOR,
    VM_UFFD_MISSING,
    VM_WRITE,
)
from zaplock.model.frames import alloc_frames, change_frames
from zaplock.model.huge_pool import KIND_OF, has_page, promise, take
from zaplock.model.mm import Pte
from zaplock.model.pagetable import RSS, install
from zaplock.model.step import Task
from zaplock.model.vma import Vma, change, subpool_of

if TYPE_CHECKING:
    from zaplock.model.machine import Machine


def map_huge_page(m: Machine, task: Task, vma: Vma, vpn: int, write: bool) -> int:
    """Map the huge page over virtual page `vpn`, where nothing is mapped: 0 or -SIGBUS."""
    space, pages = m.mm(vma.mm), vma.huge_size >> PAGE_SHIFT
    low = vpn - vpn % pages
    m.spend("fault_hugetlb", vma.huge_size // PMD_SIZE)
    pfn = huge_page_of_file(m, vma, low)
    own = pfn < 0 and not gives_to_file(vma)
    if pfn < 0 and is_beyond_file(m, vma, low):
        return -SIGBUS
    if is_waited_for(vma, pfn >= 0):
        return ask_monitor(m, vma)
    if own:
        share = subpool_of(m, vma)
        if not take(m, vma.huge_size, is_promised(vma, low), share, vma.reserves):
            return -SIGBUS
        spend_promise(m, vma, low)
        pfn = alloc_frames(m, task, KIND_OF[vma.huge_size], pages, subpool=share)
    elif pfn < 0:
        pfn = add_to_file(m, task, vma.file, number_of(vma, low))
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


def gives_to_file(vma: Vma) -> bool:
    """Return whether what a mapping's file lacks is made for the file.

    So it is also where a segment was attached for reading only, which nobody may write to.
    """
    return bool(vma.file and vma.flags & (VM_SHARED | VM_MAYSHARE))


def is_waited_for(vma: Vma, is_there: bool) -> bool:
    """Return whether a fault of a huge page is a monitor's: of a missing one, or one of a file."""
    return bool(vma.flags & (VM_UFFD_MINOR if is_there else VM_UFFD_MISSING))


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
    share = subpool_of(m, vma)
    owns = of_file and vma.reserves
    if not take(m, vma.huge_size, owns and is_promised(vma, low), share, owns):
        return -SIGBUS
    spend_promise(m, vma, low)
    held = m.content.overlapping(old, old + pages)
    space.ptes.clear(low, low + pages)
    space.add(RSS[pte.kind], -pages)
    change_frames(m, task, old, old + pages, refs=-1, maps=-1)
    new = alloc_frames(m, task, pte.kind, pages, subpool=share)
    for start, end, tag in held:
        m.content.set(start - old + new, end - old + new, tag)
    install(m, task, space, low, low + pages, Pte(pte.kind, new - low, True))
    return 0


def number_of(vma: Vma, low: int) -> int:
    """Return which huge page of a mapping's file, or of its own, virtual page `low` begins."""
    return vma.pgoff_of(low << PAGE_SHIFT) // (vma.huge_size >> PAGE_SHIFT)


def is_promised(vma: Vma, low: int) -> bool:
    """Return whether a page that isn't mapped yet is promised to a private mapping."""
    return vma.reserves and not (vma.spent and number_of(vma, low) in vma.spent)


def spend_promise(m: Machine, vma: Vma, low: int) -> None:
    """Note that a mapping has had what it was promised, where nothing gives that back."""
    if vma.spent is not None and is_promised(vma, low):
        handle = m.mm(vma.mm).tree[vma.start]
        now = m.vmas[handle]
        assert isinstance(now, Vma)
        assert now.spent is not None
        m.vmas.put(handle, change(now, spent=(*now.spent, number_of(vma, low))))


def huge_page_of_file(m: Machine, vma: Vma, low: int) -> int:
    """Return the first frame of the page that the file of a mapping has there, -1 for none."""
    if not vma.file:
        return -1
    pgoff = vma.pgoff_of(low << PAGE_SHIFT)
    delta = m.page_cache(vma.file).at(pgoff)
    return -1 if delta is None else pgoff + delta


def is_beyond_file(m: Machine, vma: Vma, low: int) -> bool:
    """Return whether the file of a mapping ends before a page, or in it."""
    if not vma.file:
        return False
    backing = m.files[vma.file]
    end = (vma.pgoff_of(low << PAGE_SHIFT) << PAGE_SHIFT) + backing.huge_size
    return end > backing.size


def own_huge_page(
    m: Machine, vma: Vma, address: int, write: bool, page_first: bool = False
) -> bool:
    """Return whether a fault in a private mapping sets out to make a page of the mapping's own.

    Where the file has one, it begins with getting a page for the copy; else what it needs beside
    it (an anon_vma) comes first, unless `page_first` (to 6.8).
    """
    low = (address & -vma.huge_size) >> PAGE_SHIFT
    if gives_to_file(vma) or is_waited_for(vma, huge_page_of_file(m, vma, low) >= 0):
        return False
    if huge_page_of_file(m, vma, low) < 0:
        if is_beyond_file(m, vma, low) or not page_first:
            return not is_beyond_file(m, vma, low)
        write = True
    share = subpool_of(m, vma)
    return write and has_page(m, vma.huge_size, is_promised(vma, low), share, vma.reserves)


def reaches_own_page(
    m: Machine, vma: Vma, low: int, high: int, write: bool, page_first: bool = False
) -> bool:
    """Return whether faults of bytes [low, high), one by one, come to a page of a mapping's own."""
    for address in range(low & -vma.huge_size, high, vma.huge_size):
        if own_huge_page(m, vma, address, write, page_first):
            return True
        if write or huge_page_of_file(m, vma, address >> PAGE_SHIFT) < 0:
            return False  # that is a SIGBUS
    return False


def promise_again(m: Machine, vma: Vma, low: int, high: int) -> None:
    """Promise the owner of a reserve its own huge pages in bytes [low, high), which are to go.

    So its mount's share stays as used as it is when they are given back.
    """
    own = 0
    for first, last, pte in m.mm(vma.mm).ptes.overlapping(low >> PAGE_SHIFT, high >> PAGE_SHIFT):
        for start, end, frame in m.frames.overlapping(first + pte.delta, last + pte.delta):
            if frame.refs != frame.maps:
                continue
            own += end - start
            if frame.subpool:
                m.frames.set(start, end, change(frame, subpool=0))
    promise(m, vma.huge_size, own // (vma.huge_size >> PAGE_SHIFT))


def add_to_file(m: Machine, task: Task, file: int, number: int) -> int:
    """Give a file its huge page `number`: the first frame, or -1 where pool or share has none."""
    backing = m.files[file]
    size, pages = backing.huge_size, backing.huge_size >> PAGE_SHIFT
    if not take(m, size, number in backing.promised, backing.subpool):
        return -1
    left = tuple(one for one in backing.promised if one != number)
    m.files.put(file, change(backing, promised=left))
    pfn = alloc_frames(m, task, KIND_OF[size], pages, subpool=backing.subpool)
    pgoff = number * pages
    m.page_cache(file).set(pgoff, pgoff + pages, pfn - pgoff)
    return pfn
