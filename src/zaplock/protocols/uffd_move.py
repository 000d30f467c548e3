"""userfaultfd: UFFDIO_MOVE takes pages of anonymous memory to where a userfaultfd watches (6.8).

A page that somebody else maps, too, can't go (EBUSY), nor one that a fork had shared and that
nobody has written to since. Not modelled: huge pages.

Source: mm/userfaultfd.c move_pages, fs/userfaultfd.c (6.12 on).
"""

from __future__ import annotations

from errno import EAGAIN, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    PAGE_SHIFT,
    PAGE_SIZE,
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
from zaplock.model.mm import Mm, Pte
from zaplock.model.pagetable import ABSENT, HUGE, alloc_tables
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.step import Task, step
from zaplock.model.tlb import flush_tlb_range
from zaplock.model.violations import Invariant, Violation
from zaplock.model.vma import Vma, anon_vma_prepare, read_vma, vma_of
from zaplock.protocols.locking import lock_vma_under_rcu, vma_end_read, vma_start_read
from zaplock.protocols.table_walk import vma_lookup
from zaplock.protocols.uffd_range import is_range
from zaplock.protocols.userfaultfd import UFFDIO_DONTWAKE, lacks_anon_vma

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

ALLOW_SRC_HOLES = 2
_IMMOVABLE = VM_PFNMAP | VM_IO | VM_HUGETLB | VM_MIXEDMAP


async def uffdio_move(cx: Cx, context: int, start: int, length: int, source: int, mode: int) -> int:
    """UFFDIO_MOVE from `source` to `start`; 0 or an errno, -EAGAIN where only a part has moved."""
    if not cx.design.uffd_move:
        return -EINVAL
    if not is_range(cx, start, length) or not is_range(cx, source, length):
        return -EINVAL
    if mode & ~(UFFDIO_DONTWAKE | ALLOW_SRC_HOLES):
        return -EINVAL
    target = await _lock_target(cx, start)
    if not target:
        return -ENOENT
    vma = await read_vma(target)
    origin = target
    if not vma.start <= source < vma.end:
        origin = await lock_vma_under_rcu(cx.mm, source)
    if not origin:  # it is looked for once more, under the mmap_lock
        await vma_end_read(target)
        await down_read(cx.mmap_lock)
        await up_read(cx.mmap_lock)
        return -ENOENT
    holes = bool(mode & ALLOW_SRC_HOLES)
    moved = await move_pages(target, origin, context, start, source, length, holes)
    if origin != target:
        await vma_end_read(origin)
    await vma_end_read(target)
    return 0 if moved == length else -EAGAIN if moved > 0 else moved


async def _lock_target(cx: Cx, start: int) -> int:
    """Lock the VMA at an address, which gets an anon_vma first (uffd_lock_vma); 0 for none."""
    handle = await lock_vma_under_rcu(cx.mm, start)
    if handle and not lacks_anon_vma(await read_vma(handle)):
        return handle
    if handle:
        await vma_end_read(handle)
    await down_read(cx.mmap_lock)
    handle = await vma_lookup(cx.mm, start)
    if handle:
        if lacks_anon_vma(await read_vma(handle)):
            await anon_vma_prepare(handle)
        await vma_start_read(handle)
    await up_read(cx.mmap_lock)
    return handle


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
    holes: bool,
) -> int:
    """Move page after page up to the first that can't go; bytes, or a negative errno."""
    into, out_of = vma_of(m, task, target), vma_of(m, task, origin)
    if source + length > out_of.end or start + length > into.end:
        return -EINVAL
    if not may_move(out_of, into) or into.uffd != context:
        return -EINVAL
    space = m.mm(into.mm)
    for done in range(0, length, PAGE_SIZE):
        error = move_page(
            m, task, space, start + done >> PAGE_SHIFT, source + done >> PAGE_SHIFT, holes
        )
        if error:
            return done or error
    return length


def may_move(out_of: Vma, into: Vma) -> bool:
    """Return whether pages of one VMA may move to another at all (validate_move_areas)."""
    alike = VM_ACCESS_FLAGS | VM_LOCKED | VM_PKEY_MASK
    if (out_of.flags ^ into.flags) & alike or not out_of.flags & VM_WRITE:
        return False
    if out_of.file or into.file:
        return False
    return not (out_of.flags | into.flags) & (_IMMOVABLE | VM_SHARED)


def move_page(m: Machine, task: Task, space: Mm, to: int, at: int, holes: bool) -> int:
    """Move the page at virtual page `at`: 0 or a negative errno. Page tables come as it goes on."""
    if space.tables[2].at(at >> 18) is None:
        if not holes:
            return -ENOENT
        alloc_tables(m, task, space, at, at + 1, 2)
    alloc_tables(m, task, space, to, to + 1, 2)
    there, pte = space.ptes.at(to), space.ptes.at(at)
    if there is not None and there.kind in HUGE:
        return -EEXIST
    if pte is not None and pte.kind in HUGE:
        raise Violation(Invariant.BOOKS_BALANCE, "UFFDIO_MOVE of huge pages is not modelled")
    if space.tables[1].at(at >> 9) is None and not holes:
        return -ENOENT
    alloc_tables(m, task, space, at, at + 1)
    alloc_tables(m, task, space, to, to + 1)
    if there is not None:
        return -EEXIST
    if pte is None:
        return 0 if holes else -ENOENT
    if pte.kind in ABSENT and pte.kind != "swap":
        return -EFAULT
    frame = m.frames.at(at + pte.delta) if pte.kind != "zero" else None
    if frame is not None and (
        frame.forked or frame.refs != 1 or frame.maps > 1 or frame.kind == "ksm"
    ):
        return -EBUSY
    m.spend("copy_pte")
    space.ptes.clear(at, at + 1)
    delta = pte.delta + at - to
    moved = {
        "anon": Pte("anon", delta, True, old=pte.old), "swap": Pte("swap", delta, wp=pte.wp),
        "zero": Pte("zero", 0),
    }  # fmt: skip
    space.ptes.set(to, to + 1, moved[pte.kind])
    flush_tlb_range(m, space.mm, at, at + 1, False)
    return 0
