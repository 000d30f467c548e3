"""The pool of huge pages (hugetlb): how many nobody uses, and how many of these are promised.

A mapping reserves its pages when it is made, unless MAP_NORESERVE says not to; a fault that finds
one reserved takes it, another only what nobody was promised. Who owns a private mapping's reserve
is the VMA that mmap made, and what is split from it or moved; a forked child's copy owns none. A
zap gives a page of an owner's back as reserved (6.9 on), so what an owner has reserved is what it
has not mapped, and its close gives that back. An mremap that moves a part takes the ownership from
all of the old VMA: what it had reserved beyond the part is lost
(docs/findings/half-moved-huge-pages).

Sources: mm/hugetlb.c (hugetlb_reserve_pages, alloc_hugetlb_folio, hugetlb_vm_op_close,
clear_vma_resv_huge_pages), fs/hugetlbfs/inode.c (remove_inode_hugepages).

Not covered: reservations of files of hugetlbfs that have a name; kernels to 6.8, whose zap gives a
page back to all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.flags import PAGES_PER_PMD

if TYPE_CHECKING:
    from zaplock.model.machine import Machine


def unpromised(m: Machine) -> int | None:
    """Return how many huge pages nobody uses or was promised; None where there is no pool."""
    free: int | None = m.globals.get("hugetlb_free")
    return None if free is None else free - int(m.globals.get("hugetlb_reserved", 0))


def promise(m: Machine, pages: int) -> None:
    """Reserve so many huge pages; negative: no longer."""
    if pages:
        m.globals.put("hugetlb_reserved", m.globals.get("hugetlb_reserved", 0) + pages)


def take(m: Machine, reserved: bool) -> bool:
    """Take a huge page, one that was promised to who takes it or another; False if none is left."""
    left = unpromised(m) or 0
    if not reserved and left <= 0:
        return False
    m.globals.put("hugetlb_free", m.globals.get("hugetlb_free", 0) - 1)
    promise(m, -reserved)
    return True


def give_back(m: Machine, pages: int) -> None:
    """Count small pages that huge ones consist of back into the pool."""
    m.globals.put("hugetlb_free", m.globals.get("hugetlb_free", 0) + pages // PAGES_PER_PMD)
