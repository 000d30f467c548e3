"""Page faults that hold no lock of the address space: look up, then look again where it counts.

The VMA is found under RCU and may be gone, or another one, by the time that the entry is set. So it
is looked at once more under the page-table lock, in the instant in which the entry is written: that
is the whole safety argument. Whatever is not the simple case (a page that is there already and has
to be copied, a first write without an anon_vma, a growing stack, huge pages, userfaultfd, a page
that has to be read) is done under the mmap_lock, as before.

RCU's delay of freeing is not told by itself: what was freed can be looked at, and says so.
"""

from __future__ import annotations

from signal import SIGSEGV
from typing import TYPE_CHECKING

from zaplock.model.anonymous_fault import allows_huge_pages
from zaplock.model.fault_results import ALONE
from zaplock.model.flags import PAGE_SHIFT, VM_HUGETLB, VM_PFNMAP, VM_SHARED
from zaplock.model.page_fault import fault_page
from zaplock.model.pagetable import alloc_tables
from zaplock.model.step import Task, step
from zaplock.model.vma import FreedVma, Vma
from zaplock.protocols.fault import access_error, page_fault_mmap_lock
from zaplock.protocols.locking import find_vma_rcu

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

MISSED = 5
"""Result of a try without a lock that has to be made with it."""


async def page_fault_bonsai(cx: Cx, address: int, write: bool) -> int:
    """Handle a fault under RCU: is the VMA in the tree still, in the instant of the fill?"""
    return await _without_lock(cx, address, write, False)


async def page_fault_speculative(cx: Cx, address: int, write: bool) -> int:
    """The same, if the VMA is as it was found and no writer is at work on the address space."""
    return await _without_lock(cx, address, write, True)


async def _without_lock(cx: Cx, address: int, write: bool, unchanged: bool) -> int:
    handle = await find_vma_rcu(cx.mm, address)
    if handle:
        seen = await look_at_vma(handle)
        result = await fill_if_still(handle, seen if unchanged else None, address, write)
        if result != MISSED:
            return result
    return await page_fault_mmap_lock(cx, address, write)


@step
def look_at_vma(m: Machine, _task: Task, handle: int) -> Vma | FreedVma:
    """Read a VMA that may be gone."""
    return m.vmas[handle]


@step
def fill_if_still(
    m: Machine, task: Task, handle: int, seen: Vma | FreedVma | None, address: int, write: bool
) -> int:
    """Under the page-table lock: look at the VMA again, and set an entry that is empty."""
    vma = m.vmas[handle]
    if isinstance(vma, FreedVma) or not vma.attached or not vma.start <= address < vma.end:
        return MISSED
    if seen is not None:
        sem = m.locks.get(("mmap_lock", vma.mm))
        if vma != seen or (sem is not None and sem.writer):
            return MISSED
    if access_error(vma, write):
        return -SIGSEGV
    return fill(m, task, vma, address, write)


def fill(m: Machine, task: Task, vma: Vma, address: int, write: bool) -> int:
    """Set an empty entry of a plain mapping, or say that this is not such a case."""
    vpn, space = address >> PAGE_SHIFT, m.mm(vma.mm)
    special = vma.uffd or vma.flags & (VM_HUGETLB | VM_PFNMAP) or allows_huge_pages(m, vma)
    lacks_anon_vma = not vma.flags & VM_SHARED and not vma.anon_vma
    if special or lacks_anon_vma or space.ptes.at(vpn) is not None:
        return MISSED
    if not vma.file:
        alloc_tables(m, task, space, vpn, vpn + 1)
    result = fault_page(m, task, vma, address, write)
    if result == ALONE:
        result = fault_page(m, task, vma, address, write, alone=True)
    return MISSED if result else 0
