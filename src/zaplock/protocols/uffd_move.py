"""userfaultfd: UFFDIO_MOVE takes pages of anonymous memory to where a userfaultfd watches (6.8).

A page that somebody else maps, too, can't go (EBUSY), nor one that a fork had shared and that
nobody has written to since. A huge page goes as one where it is asked for whole and its new place
has no page table; else its entry is split, and its folio with the first page that goes.

A page that is there loses the write protection of a userfaultfd as it goes, as with mremap; one in
swap keeps it (docs/findings/moved-out-of-swap-protected).

Source: mm/userfaultfd.c (move_pages, move_pages_huge_pmd, move_pages_ptes), fs/userfaultfd.c, both
of 6.12 on.
Not covered: huge pages of hugetlb are refused, as there.
"""

from __future__ import annotations

from errno import EAGAIN, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT
from typing import TYPE_CHECKING, NamedTuple

from zaplock.model.flags import (
    PAGE_SHIFT,
    PAGES_PER_PMD,
    VM_ACCESS_FLAGS,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKED,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_PKEY_MASK,
    VM_SHARED,
    VM_WRITE,
)
from zaplock.model.folios import split_folio
from zaplock.model.mm import Mm, Pte
from zaplock.model.pagetable import ABSENT, HUGE, alloc_tables, split_entries
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.step import Task, step
from zaplock.model.tlb import flush_tlb_range
from zaplock.model.vma import Vma, read_vma, vma_of
from zaplock.protocols.locking import lock_vma_under_rcu, vma_end_read
from zaplock.protocols.table_walk import vma_lookup
from zaplock.protocols.uffd_fill import UFFDIO_DONTWAKE, lock_to_fill, unlock_filled
from zaplock.protocols.uffd_range import is_range

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

ALLOW_SRC_HOLES = 2
_IMMOVABLE = VM_PFNMAP | VM_IO | VM_HUGETLB | VM_MIXEDMAP


class MoveRules(NamedTuple):
    """Whether what is not there is no error, and whether a split gives pages of zeros back."""

    holes: bool
    finds_zeros: bool


async def uffdio_move(cx: Cx, context: int, start: int, length: int, source: int, mode: int) -> int:
    """UFFDIO_MOVE from `source` to `start`; 0 or an errno, -EAGAIN where only a part has moved."""
    if not cx.design.uffd_move:
        return -EINVAL
    if not is_range(cx, start, length) or not is_range(cx, source, length):
        return -EINVAL
    if mode & ~(UFFDIO_DONTWAKE | ALLOW_SRC_HOLES):
        return -EINVAL
    target = await lock_to_fill(cx, start)
    if not target:
        return -ENOENT
    vma = await read_vma(target)
    origin = target
    if not vma.start <= source < vma.end:
        origin = await _lock_origin(cx, source)
    if not origin:  # it is looked for once more, under the mmap_lock
        await unlock_filled(cx, target)
        await down_read(cx.mmap_lock)
        await up_read(cx.mmap_lock)
        return -ENOENT
    by_rules = MoveRules(bool(mode & ALLOW_SRC_HOLES), cx.design.finds_zeros)
    moved = await move_pages(target, origin, context, start, source, length, by_rules)
    if origin != target and cx.design.vma_locks:
        await vma_end_read(origin)
    await unlock_filled(cx, target)
    return 0 if moved == length else -EAGAIN if moved > 0 else moved


async def _lock_origin(cx: Cx, source: int) -> int:
    """Lock the VMA at an address; under the mmap_lock, where VMAs have no locks, only find it."""
    if cx.design.vma_locks:
        return await lock_vma_under_rcu(cx.mm, source)
    return await vma_lookup(cx.mm, source)


@step
def move_pages(
    m: Machine,
    task: Task,
    target: int,
    origin: int,
    context: int,
    start: int,
    source: int,
    length: int,
    rules: MoveRules,
) -> int:
    """Move page after page, huge ones as one, up to the first that can't go.

    Returns bytes, or a negative errno.
    """
    into, out_of = vma_of(m, task, target), vma_of(m, task, origin)
    if source + length > out_of.end or start + length > into.end:
        return -EINVAL
    if not may_move(out_of, into) or into.uffd != context:
        return -EINVAL
    space = m.mm(into.mm)
    to, at, last = start >> PAGE_SHIFT, source >> PAGE_SHIFT, source + length >> PAGE_SHIFT
    offset = to - at
    while at < last:
        moved = move_next(m, task, space, at + offset, at, last, rules)
        if moved < 0:
            return (at << PAGE_SHIFT) - source or moved
        at += moved
    return length


def may_move(out_of: Vma, into: Vma) -> bool:
    """Return whether pages of one VMA may move to another at all (validate_move_areas)."""
    alike = VM_ACCESS_FLAGS | VM_LOCKED | VM_PKEY_MASK
    if (out_of.flags ^ into.flags) & alike or not out_of.flags & VM_WRITE:
        return False
    if out_of.file or into.file:
        return False
    return not (out_of.flags | into.flags) & (_IMMOVABLE | VM_SHARED)


def move_next(
    m: Machine, task: Task, space: Mm, to: int, at: int, last: int, rules: MoveRules
) -> int:
    """Move what is at virtual page `at`, of [at, last): pages moved, or a negative errno.

    Page tables come as it goes on.
    """
    if space.tables[2].at(at >> 18) is None:
        if not rules.holes:
            return -ENOENT
        alloc_tables(m, task, space, at, at + 1, 2)
    alloc_tables(m, task, space, to, to + 1, 2)
    there, pte = space.ptes.at(to), space.ptes.at(at)
    if there is not None and there.kind in HUGE:
        return -EEXIST
    if pte is not None and pte.kind in HUGE:
        whole = not (at % PAGES_PER_PMD or to % PAGES_PER_PMD) and last - at >= PAGES_PER_PMD
        if pte.kind == "thp" and not may_leave(m, at + pte.delta):
            return -EBUSY
        if whole and space.tables[1].at(to // PAGES_PER_PMD) is None:
            return move_huge(m, space, to, at, pte)
        low = at - at % PAGES_PER_PMD
        space.ptes.set(low, low + PAGES_PER_PMD, split_entries(m, low, pte))
    if space.tables[1].at(at >> 9) is None and not rules.holes:
        return -ENOENT
    alloc_tables(m, task, space, at, at + 1)
    alloc_tables(m, task, space, to, to + 1)
    return move_page(m, task, space, to, at, rules) or 1


def may_leave(m: Machine, pfn: int) -> bool:
    """Return whether a page is one process's own and nobody holds it (PageAnonExclusive)."""
    frame = m.frames.at(pfn)
    if frame is None:
        return True
    return not frame.forked and frame.refs == 1 and frame.maps <= 1 and frame.kind != "ksm"


def move_huge(m: Machine, space: Mm, to: int, at: int, pte: Pte) -> int:
    """Move a huge page, or the huge zero page, with the page table that is set aside for it."""
    tables = space.tables[1]
    table = tables.at(at // PAGES_PER_PMD)
    tables.clear(at // PAGES_PER_PMD, at // PAGES_PER_PMD + 1)
    assert table is not None, "a huge page without a page table set aside"
    tables.set(to // PAGES_PER_PMD, to // PAGES_PER_PMD + 1, table)
    m.spend("copy_pte")
    space.ptes.clear(at, at + PAGES_PER_PMD)
    is_page = pte.kind == "thp"
    moved = Pte(pte.kind, pte.delta + at - to if is_page else 0, is_page)
    space.ptes.set(to, to + PAGES_PER_PMD, moved)
    flush_tlb_range(m, space.mm, at, at + PAGES_PER_PMD, False)
    return PAGES_PER_PMD


def move_page(m: Machine, task: Task, space: Mm, to: int, at: int, rules: MoveRules) -> int:
    """Move a page that a small entry maps: 0 or a negative errno."""
    if space.ptes.at(to) is not None:
        return -EEXIST
    pte = space.ptes.at(at)
    if pte is None:
        return 0 if rules.holes else -ENOENT
    if pte.kind in ABSENT and pte.kind != "swap":
        return -EFAULT
    if pte.kind == "anon" and is_in_folio(m, at + pte.delta):
        head = at + pte.delta & -PAGES_PER_PMD
        first = m.frames.at(head)
        if first is not None and first.forked:
            return -EBUSY  # the first page is asked for all of them, even if it is gone
        split_folio(m, task, space, head, rules.finds_zeros)
        pte = space.ptes.at(at) or pte
    if pte.kind != "zero" and not may_leave(m, at + pte.delta):
        return -EBUSY
    m.spend("copy_pte")
    space.ptes.clear(at, at + 1)
    delta = pte.delta + at - to
    moved = {
        "anon": Pte("anon", delta, True, old=pte.old, clean=pte.clean),
        "swap": Pte("swap", delta, wp=pte.wp), "zero": Pte("zero", 0),
    }  # fmt: skip
    space.ptes.set(to, to + 1, moved[pte.kind])
    flush_tlb_range(m, space.mm, at, at + 1, False)
    return 0


def is_in_folio(m: Machine, pfn: int) -> bool:
    """Return whether a page is part of a huge page that small entries map."""
    frame = m.frames.at(pfn)
    return frame is not None and frame.kind == "thp"
