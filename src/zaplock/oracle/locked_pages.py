"""Pages of files that somebody has locked when a fault maps what is around its page.

Linux passes over a page that is locked (next_uptodate_folio), and tries no second time. Locked is a
page while a fault of it goes on, while it is read, dropped or filled, and while another fault maps
it around its own page, under the lock of another page table.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from zaplock.model.flags import PAGE_SHIFT
from zaplock.model.machine import Machine
from zaplock.model.shared_huge import IN_MEMORY
from zaplock.model.step import Task, step
from zaplock.model.vma import vma_of
from zaplock.oracle import ring
from zaplock.oracle.ops import Op, Snapshot
from zaplock.oracle.world import MM

FilePage = tuple[int, int]
"""A file, and which of its pages."""
MOST_LOCKED = 3
_LOCKS_NONE = frozenset({
    "munmap", "mprotect", "munlock", "munlockall", "mseal", "msync", "uffd_register",
    "uffd_unregister", "uffd_writeprotect",
})  # fmt: skip
"""What has no page of a file locked at any moment."""


def locks_pages(op: Op) -> bool:
    """Return whether an operation may have a page of a file locked."""
    return op.name not in _LOCKS_NONE


@step
def lock_pages(m: Machine, _task: Task, pages: Sequence[FilePage], locks: bool) -> None:
    """Have pages of files locked, or no longer."""
    for page in pages:
        if locks:
            m.locked_pages.put(page, True)
        else:
            m.locked_pages.drop(page)


def present_pages(after: Snapshot) -> set[int]:
    """Return the addresses of the pages that are mapped."""
    return {
        at
        for start, stop, categories in struct.iter_unpack("<3Q", after.regions)
        if categories & ring.PRESENT
        for at in range(start, stop, ring.PAGE)
    }


def file_pages(m: Machine, task: Task) -> dict[int, FilePage]:
    """Return which pages of files in memory are mapped, by their addresses."""
    found, space = {}, m.mm(MM)
    for handle in space.tree.data.values():
        vma = vma_of(m, task, handle)
        low, high = vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT
        for first, last, pte in space.ptes.overlapping(low, high) if vma.file else ():
            if pte.kind in IN_MEMORY:
                for vpn in range(max(first, low), min(last, high)):
                    found[vpn << PAGE_SHIFT] = vma.file, vma.pgoff_of(vpn << PAGE_SHIFT)
    return found
