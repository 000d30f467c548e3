"""The pools of huge pages (hugetlb): how many nobody uses, and how many of these are promised.

There is one of 2 MiB pages and one of 1 GiB pages, which share nothing: a mapping has pages of one
size, `huge_size` in bytes. A mapping reserves its pages when it is made, unless MAP_NORESERVE says
not to; a fault that finds one reserved takes it, another only what nobody was promised. Who owns a
private mapping's reserve is the VMA that mmap made, and what is split from it or moved; a forked
child's copy owns none. A zap gives a page of an owner's back as reserved (6.9 on), so what an owner
has reserved is what it has not mapped, and its close gives that back. An mremap that moves a part
takes the ownership from all of the old VMA: what it had reserved beyond the part is lost
(docs/findings/half-moved-huge-pages).

A shared mapping reserves for its file, and only those pages that the file neither has nor was
promised. What the file was promised it keeps when the mapping goes, until it is cut there or goes
itself; a punched hole takes only the pages that are there.

Sources (6.18): mm/hugetlb.c (hugetlb_reserve_pages, hugetlb_unreserve_pages, alloc_hugetlb_folio,
hugetlb_wp, hugetlb_vm_op_close, clear_vma_resv_huge_pages), fs/hugetlbfs/inode.c
(hugetlbfs_file_mmap, hugetlbfs_setattr, remove_inode_hugepages).

Not covered: kernels to 6.8, whose zap gives a page back to all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT, PMD_SIZE, PUD_SIZE

if TYPE_CHECKING:
    from zaplock.model.machine import Figure, Machine

KIND_OF: dict[int, str] = {PMD_SIZE: "hugetlb", PUD_SIZE: "gigantic"}
"""What the pages of a size are called, as entries and as frames."""
LEVEL_OF = {PMD_SIZE: 2, PUD_SIZE: 3}
"""The level of the page tables whose entries map pages of a size."""
SIZE_OF = {kind: size for size, kind in KIND_OF.items()}
POOLED = frozenset(SIZE_OF)
"""Kinds of entries, and of frames, that come from a pool."""
_FREE: dict[int, Figure] = {PMD_SIZE: "hugetlb_free", PUD_SIZE: "gigantic_free"}
_RESERVED: dict[int, Figure] = {PMD_SIZE: "hugetlb_reserved", PUD_SIZE: "gigantic_reserved"}


def unpromised(m: Machine, size: int) -> int | None:
    """Return how many pages of a size nobody uses or was promised; None where there is no pool."""
    free: int | None = m.globals.get(_FREE[size])
    return None if free is None else free - int(m.globals.get(_RESERVED[size], 0))


def promise(m: Machine, size: int, pages: int) -> None:
    """Reserve so many huge pages of a size in bytes; negative: no longer."""
    if pages:
        m.globals.put(_RESERVED[size], m.globals.get(_RESERVED[size], 0) + pages)


def take(m: Machine, size: int, reserved: bool) -> bool:
    """Take a huge page, one that was promised to who takes it or another; False if none is left."""
    left = unpromised(m, size) or 0
    if not reserved and left <= 0:
        return False
    m.globals.put(_FREE[size], m.globals.get(_FREE[size], 0) - 1)
    promise(m, size, -reserved)
    return True


def give_back(m: Machine, kind: str, pages: int) -> None:
    """Count small pages that huge ones of a kind consist of back into their pool."""
    size = SIZE_OF[kind]
    free = _FREE[size]
    m.globals.put(free, m.globals.get(free, 0) + (pages << PAGE_SHIFT) // size)
