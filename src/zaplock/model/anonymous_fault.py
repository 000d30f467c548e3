"""Which pages a fault of anonymous memory maps: zero pages, pages of one's own, and huge ones.

Sources: mm/memory.c do_anonymous_page, mm/huge_memory.c do_huge_pmd_anonymous_page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.flags import (
    PAGE_SHIFT,
    PAGES_PER_PMD,
    PMD_SIZE,
    VM_HUGEPAGE,
    VM_NOHUGEPAGE,
    VM_SPECIAL,
)
from zaplock.model.frames import alloc_frames
from zaplock.model.mm import Mm, Pte, pte_of
from zaplock.model.pagetable import alloc_tables, install
from zaplock.model.references import read_only
from zaplock.model.step import Task
from zaplock.model.vma import Vma

if TYPE_CHECKING:
    from zaplock.model.machine import Machine


def map_anonymous(m: Machine, task: Task, vma: Vma, space: Mm, vpn: int, write: bool) -> int:
    """Map a page, or a huge one, where nothing is: a zero page if it is only read. Returns 0."""
    huge = huge_range(m, vma, space, vpn)
    if huge is not None:
        alloc_tables(m, task, space, huge, huge + 1)  # set aside for the case of a split
        if write:
            _map_huge(m, task, space, huge)
        else:
            install(m, task, space, huge, huge + PAGES_PER_PMD, read_only(m, Pte("zero_thp", 0)))
        return 0
    if write:
        m.spend("fault_anon")
        map_new(m, task, space, vpn)
    else:
        m.spend("fault_zero")
        install(m, task, space, vpn, vpn + 1, read_only(m, Pte("zero", 0)))
    return 0


def replace_zero(m: Machine, task: Task, space: Mm, vpn: int, pte: Pte) -> int:
    """Replace the zero page by a page of one's own; a huge zero page by a huge page."""
    if pte.kind == "zero_thp":
        low = vpn - vpn % PAGES_PER_PMD
        space.ptes.clear(low, low + PAGES_PER_PMD)
        _map_huge(m, task, space, low)
        return 0
    space.ptes.clear(vpn, vpn + 1)
    m.spend("fault_cow")
    map_new(m, task, space, vpn)
    return 0


def huge_range(m: Machine, vma: Vma, space: Mm, vpn: int) -> int | None:
    """Return the first page of the huge page that a fault may map here, or None."""
    if not allows_huge_pages(m, vma):
        return None
    low = vpn - vpn % PAGES_PER_PMD
    start = low << PAGE_SHIFT
    if start < vma.start or start + PMD_SIZE > vma.end:
        return None
    if space.tables[1].at(low // PAGES_PER_PMD) is not None:
        return None  # a page table is in the place, with or without entries
    return None if space.ptes.any_in(low, low + PAGES_PER_PMD) else low


def allows_huge_pages(m: Machine, vma: Vma) -> bool:
    """Return whether the policy lets faults of a VMA map huge pages."""
    policy = m.globals.get("thp", 1)  # 0 never, 1 madvise, 2 always
    if not policy or vma.flags & (VM_NOHUGEPAGE | VM_SPECIAL):
        return False
    if policy == 1 and not vma.flags & VM_HUGEPAGE:
        return False
    disabled = m.mm(vma.mm).count("thp_disable")  # 2: but where it is advised
    return not disabled or (disabled == 2 and bool(vma.flags & VM_HUGEPAGE))


def meets_huge_pages(m: Machine, vma: Vma, first: int, last: int) -> bool:
    """Return whether faults of virtual pages [first, last) may map a huge page somewhere."""
    if not allows_huge_pages(m, vma):
        return False
    starts = (first, *range(-(-first // PAGES_PER_PMD) * PAGES_PER_PMD, last, PAGES_PER_PMD))
    return any(huge_range(m, vma, m.mm(vma.mm), vpn) is not None for vpn in starts)


def _map_huge(m: Machine, task: Task, space: Mm, low: int) -> None:
    m.spend("fault_thp")
    pfn = alloc_frames(m, task, "thp", PAGES_PER_PMD, align=PAGES_PER_PMD)
    install(m, task, space, low, low + PAGES_PER_PMD, Pte("thp", pfn - low, True))


def populate_anonymous_run(
    m: Machine, task: Task, space: Mm, first: int, last: int, write: bool
) -> None:
    """Map virtual pages [first, last), where nothing is yet and no huge page fits, all at once."""
    if write:
        pfn = alloc_frames(m, task, "anon", last - first)
        m.spend("populate_anon", last - first)
        install(m, task, space, first, last, Pte("anon", pfn - first, True))
    else:
        m.spend("fault_zero", last - first)
        install(m, task, space, first, last, read_only(m, Pte("zero", 0)))


def map_new(m: Machine, task: Task, space: Mm, vpn: int, tag: int = 0) -> None:
    """Map a new page of one's own that holds `tag`, and may be written to."""
    pfn = alloc_frames(m, task, "anon", 1)
    if tag:
        m.content.set(pfn, pfn + 1, tag)
    install(m, task, space, vpn, vpn + 1, pte_of("anon", pfn - vpn, True))
