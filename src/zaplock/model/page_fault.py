"""What a page fault puts into a page table, once its VMA has been found and checked.

`fault_page` is the part of handle_mm_fault that runs under the page-table lock. It looks at the
entry again, so two tasks that fault on one page agree. A page that has to be copied is copied
outside that lock (wp_page_copy): `fault_page` then returns what to copy, with a reference on it,
and `finish_copy` sets the new entry, if the old one is still there.

Source: mm/memory.c handle_pte_fault. What it maps is told by anonymous_fault, file_fault,
huge_fault and, of a write to what others may map, page_copy.
"""

from __future__ import annotations

from signal import SIGBUS, SIGSEGV
from typing import TYPE_CHECKING

from zaplock.model.anonymous_fault import (
    allows_huge_pages,
    huge_range,
    map_anonymous,
    populate_anonymous_run,
    replace_zero,
)
from zaplock.model.dirty import soil_file
from zaplock.model.fault_results import ALONE, MAJOR, ask_monitor
from zaplock.model.file_fault import map_around, map_file_page, maps_around, populate_file_run
from zaplock.model.files import cached_frame
from zaplock.model.flags import (
    EHWPOISON,
    PAGE_SHIFT,
    PAGES_PER_PMD,
    VM_HUGETLB,
    VM_PFNMAP,
    VM_SHARED,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
)
from zaplock.model.huge_fault import map_huge_page, write_huge_page
from zaplock.model.huge_pool import POOLED
from zaplock.model.mm import Mm, Pte
from zaplock.model.page_copy import PageCopy, copy_on_write, finish_copy
from zaplock.model.pagetable import UFFD_WP_MARKER, alloc_tables, unmap_huge
from zaplock.model.shared_huge import KIND as SHARED_HUGE
from zaplock.model.step import Task
from zaplock.model.swap import swap_in
from zaplock.model.violations import Invariant, Violation
from zaplock.model.vma import Vma, change

if TYPE_CHECKING:
    from zaplock.model.machine import Machine


def fault_page(
    m: Machine, task: Task, vma: Vma, address: int, write: bool, alone: bool = False
) -> int | PageCopy:
    """Make `address` accessible; 0, a signal, another result of faults, or what to copy first.

    alone: go on after ALONE.
    """
    space = m.mm(vma.mm)
    vpn = address >> PAGE_SHIFT
    if not alone:
        m.spend("fault_minor")
    m.touch(task, "page table", vma.mm, vpn // PAGES_PER_PMD)
    pte = space.ptes.at(vpn)
    if pte is None:
        return _missing(m, task, vma, space, vpn, write, alone)
    if pte.kind == "uffd_wp":
        return _behind_marker(m, task, vma, space, vpn, write, alone)
    return _present(m, task, vma, space, vpn, pte, write)


def _missing(
    m: Machine, task: Task, vma: Vma, space: Mm, vpn: int, write: bool, alone: bool
) -> int | PageCopy:
    if vma.flags & VM_UFFD_MISSING and not vma.flags & VM_PFNMAP and not vma.file:
        return ask_monitor(m, vma)
    if vma.flags & VM_HUGETLB:
        return map_huge_page(m, task, vma, vpn, write)
    if vma.file:
        if not (write or alone) and maps_around(m, vma):
            return map_around(m, task, vma, space, vpn)
        return map_file_page(m, task, vma, space, vpn, write)
    if vma.flags & VM_PFNMAP:
        return -SIGBUS
    return map_anonymous(m, task, vma, space, vpn, write)


def _behind_marker(
    m: Machine, task: Task, vma: Vma, space: Mm, vpn: int, write: bool, alone: bool
) -> int | PageCopy:
    """Map a page whose place is write-protected: so is the page (pte_marker_handle_uffd_wp).

    A write faults again then. Where nobody watches writes any more the marker just goes.
    """
    space.ptes.clear(vpn, vpn + 1)
    result = _missing(m, task, vma, space, vpn, write, alone)
    if vma.flags & VM_UFFD_WP:
        mapped = space.ptes.at(vpn)
        kept = change(mapped, writable=False, wp=True) if mapped else UFFD_WP_MARKER
        space.ptes.set(vpn, vpn + 1, kept)
    return result


def _present(
    m: Machine, task: Task, vma: Vma, space: Mm, vpn: int, pte: Pte, write: bool
) -> int | PageCopy:
    if pte.kind == "guard":
        return -SIGSEGV
    if pte.kind == "poison":
        return -EHWPOISON
    if pte.kind == "swap":
        m.spend("fault_anon")
        swap_in(m, task, space, vpn, pte, vma.flags, write)
        mapped = space.ptes.at(vpn)
        return _present(m, task, vma, space, vpn, mapped, True) if mapped and write else 0
    if not write or pte.writable:
        return 0
    if pte.wp and vma.flags & VM_UFFD_WP:
        return ask_monitor(m, vma)
    if pte.kind in ("zero", "zero_thp"):
        return replace_zero(m, task, space, vpn, pte)
    if pte.kind in POOLED:
        return write_huge_page(m, task, vma, vpn, pte)
    if pte.kind == SHARED_HUGE:  # what is written to is not mapped so, and faults once more
        unmap_huge(m, task, space, vpn - vpn % PAGES_PER_PMD)
        return _missing(m, task, vma, space, vpn, write, True)
    if vma.flags & VM_SHARED:
        space.ptes.set(vpn, vpn + 1, Pte(pte.kind, pte.delta, True, wp=pte.wp))
        soil_file(m, vpn + pte.delta, vpn + pte.delta + 1)
        return 0
    return copy_on_write(m, task, space, vpn, pte)


def fault_at_once(
    m: Machine, task: Task, vma: Vma, address: int, write: bool, alone: bool = False
) -> int:
    """Do a whole fault with nobody in between, copying included; return what `fault_page` does.

    What it has to read comes at once: nothing of the populating calls is told of I/O. alone: go on
    with a fault that has mapped what is cached around its page.
    """
    result = fault_page(m, task, vma, address, write, alone)
    if result == ALONE:
        result = fault_page(m, task, vma, address, write, alone=True)
    if result == MAJOR:
        cached_frame(m, task, vma.file, vma.pgoff_of(address))
        result = fault_page(m, task, vma, address, write)
    if isinstance(result, PageCopy):
        finish_copy(m, task, vma, address, result, m.content.at(result.frame) or 0)
        return 0
    return result


def populate_range(
    m: Machine, task: Task, vma: Vma, first: int, last: int, write: bool, alone: bool = False
) -> int:
    """Fault in virtual pages [first, last) of a VMA at once, as a loop of faults would.

    For ranges of anonymous memory without huge pages, and of a file that has none of these pages
    yet, this is one run, whatever its length; others go page by page. Returns 0 or the first
    fault's error.
    """
    space = m.mm(vma.mm)
    lowest = vma.huge_level if vma.flags & VM_HUGETLB else 2 if vma.file else 1
    plain = not vma.file and not vma.flags & (VM_HUGETLB | VM_UFFD_MISSING | VM_PFNMAP)
    grain = PAGES_PER_PMD if plain and allows_huge_pages(m, vma) else last
    vpn = first
    while vpn < last:
        may_be_huge = not vma.file and huge_range(m, vma, space, vpn) is not None
        end = min(last, (vpn // grain + 1) * grain)
        if plain and not may_be_huge and not space.ptes.any_in(vpn, end):
            alloc_tables(m, task, space, vpn, end)
            populate_anonymous_run(m, task, space, vpn, end, write)
            vpn = end
            continue
        if not alone and (come_to := populate_file_run(m, task, vma, vpn, last, write)) > vpn:
            vpn = come_to
            continue
        alloc_tables(m, task, space, vpn, vpn + 1, 2 if may_be_huge else lowest)
        result = fault_at_once(m, task, vma, vpn << PAGE_SHIFT, write, alone)
        if result:
            return result
        run = space.ptes.run_at(vpn)
        if run is None:
            raise Violation(Invariant.BOOKS_BALANCE, f"a fault at page {vpn:#x} mapped nothing")
        if write and run[2].wp and not run[2].writable:  # mapped now, and a write is still watched
            result = fault_at_once(m, task, vma, vpn << PAGE_SHIFT, write, alone)
            if result:
                return result
        vpn = run[1] if not write or run[2].writable else vpn + 1
    return 0
