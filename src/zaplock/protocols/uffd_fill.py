"""userfaultfd: what its monitor fills (UFFDIO_COPY, _ZEROPAGE, _CONTINUE, _POISON).

Before 6.9 the mmap_lock is held for read meanwhile. From 6.9 on it is the lock of the one VMA that
is filled, and only that: who has to find it under the mmap_lock gives that back before the first
page (`lock_to_fill`). Pages come one by one, each under the page-table lock. So one may come while
somebody holds the mmap_lock for write who has not yet write-locked the VMA: UFFDIO_UNREGISTER takes
the write protection away first and locks then, and what is filled with write protection in between
stays so, though nobody watches any more.

Source: mm/userfaultfd.c (mfill_atomic, uffd_mfill_lock; 867a43a34ff8).
"""

from __future__ import annotations

from errno import EAGAIN, EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM
from typing import TYPE_CHECKING, Literal, NamedTuple

from zaplock.model.dirty import note_written
from zaplock.model.files import cached_frame, fill_cache
from zaplock.model.flags import (
    PAGE_SHIFT,
    PAGE_SIZE,
    VM_ACCESS_FLAGS,
    VM_HUGETLB,
    VM_SHARED,
    VM_UFFD_WP,
    VM_WRITE,
)
from zaplock.model.frames import alloc_frames, change_frames
from zaplock.model.mm import Pte
from zaplock.model.pagetable import HUGE, alloc_tables, install
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.step import Task, step
from zaplock.model.vma import Vma, anon_vma_prepare, read_vma, vma_of
from zaplock.protocols.locking import lock_vma_under_rcu, vma_end_read, vma_start_read_locked
from zaplock.protocols.table_walk import vma_lookup
from zaplock.protocols.uffd_range import is_range

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


class Fill(NamedTuple):
    """What a monitor puts into pages, and by which rules of its kernel's.

    kind: "copy" (pages that hold `tag`), "zeros", "continue" (what the file has there) or "poison".
    protects: write-protected at once. finds_end: the end of a file is looked at with a page in hand
    (see `fill_page`). sizes_devices: a copy is held against a device's size, too, which is none.
    over: the kinds of markers in whose place a page may be put.
    """

    kind: Literal["copy", "zeros", "continue", "poison"]
    tag: int = 0
    protects: bool = False
    finds_end: bool = True
    sizes_devices: bool = True
    over: tuple[str, ...] = ()


def fill_page(m: Machine, task: Task, vma: Vma, vpn: int, fill: Fill) -> int:
    """Fill a page of a watched VMA: 0 or a negative errno.

    In a private mapping that is a page of one's own or the zero page; in a shared one the file gets
    it (mfill_atomic_pte, shmem_mfill_atomic_pte). Beyond the end of a file there is none: -ENOMEM,
    or -EFAULT from a kernel that `finds_end` only when it has a page. UFFDIO_CONTINUE maps the page
    that the file has there: -EFAULT where it has none, and beyond its end -EFAULT or, from such a
    kernel, -EINVAL. Poison is put where nothing is at all, not even a marker.
    """
    space, pte = m.mm(vma.mm), m.mm(vma.mm).ptes.at(vpn)
    if pte is not None and pte.kind in HUGE:
        return -EEXIST
    alloc_tables(m, task, space, vpn, vpn + 1)
    pgoff = vma.pgoff_of(vpn << PAGE_SHIFT)
    size = m.files[vma.file].size if vma.file else 0
    in_file = vma.flags & VM_SHARED
    taken = pte is not None and pte.kind not in fill.over
    if fill.kind == "continue":
        return _continue_page(m, task, vma, vpn, pgoff, taken, fill)
    sized = vma.file or (vma.name and (fill.sizes_devices or fill.kind != "copy"))
    if sized and pgoff >= -(-size >> PAGE_SHIFT):  # a device has no size
        no_page = in_file and not fill.finds_end and fill.kind != "poison"
        return -ENOMEM if no_page else -EFAULT
    writable, closed = bool(vma.flags & VM_WRITE), not vma.flags & VM_ACCESS_FLAGS
    if fill.kind == "poison" or (fill.kind == "zeros" and not in_file):
        if pte is not None:
            return -EEXIST
        kind = "poison" if fill.kind == "poison" else "zero"
        install(m, task, space, vpn, vpn + 1, Pte(kind, 0, False, closed and kind == "zero"))
        return 0
    if taken or (in_file and m.page_cache(vma.file).at(pgoff) is not None):
        return -EEXIST
    if in_file:
        pfn = fill_cache(m, task, vma.file, pgoff, pgoff + 1)
        change_frames(m, task, pfn, pfn + 1, refs=1)
        note_written(m, pfn, pfn + 1)
    else:
        pfn = alloc_frames(m, task, "anon", 1)
    if fill.tag:
        m.content.set(pfn, pfn + 1, fill.tag)
    kind = "shmem" if in_file else "anon"
    pte = Pte(kind, pfn - vpn, writable and not fill.protects, closed, fill.protects)
    install(m, task, space, vpn, vpn + 1, pte)
    return 0


def _continue_page(
    m: Machine, task: Task, vma: Vma, vpn: int, pgoff: int, taken: bool, fill: Fill
) -> int:
    """Map a page of a file in memory, in a private mapping for reading only."""
    if pgoff >= -(-m.files[vma.file].size >> PAGE_SHIFT):
        return -EINVAL if fill.finds_end else -EFAULT
    if m.page_cache(vma.file).at(pgoff) is None:
        return -EFAULT
    pfn = cached_frame(m, task, vma.file, pgoff)
    if taken:
        return -EEXIST
    change_frames(m, task, pfn, pfn + 1, refs=1)
    note_written(m, pfn, pfn + 1)  # so reclaim writes it (mfill_atomic_install_pte)
    writable = vma.flags & (VM_WRITE | VM_SHARED) == VM_WRITE | VM_SHARED
    closed = not vma.flags & VM_ACCESS_FLAGS
    pte = Pte("shmem", pfn - vpn, writable and not fill.protects, closed, fill.protects)
    install(m, task, m.mm(vma.mm), vpn, vpn + 1, pte)
    return 0


UFFDIO_DONTWAKE, UFFDIO_WP = 1, 2


async def uffdio_copy_page(cx: Cx, start: int, tag: int, mode: int) -> int:
    """UFFDIO_COPY of a page that holds `tag`; 0 or an errno."""
    return await _fill_range(cx, start, PAGE_SIZE, mode, UFFDIO_WP, Fill("copy", tag))


async def uffdio_zeropage(cx: Cx, start: int, length: int, mode: int) -> int:
    """UFFDIO_ZEROPAGE; 0 or an errno."""
    return await _fill_range(cx, start, length, mode, 0, Fill("zeros"))


async def uffdio_continue(cx: Cx, start: int, length: int, mode: int) -> int:
    """UFFDIO_CONTINUE: map what a file in memory has already; 0 or an errno."""
    modes = UFFDIO_WP if cx.design.uffd_continues_protected else 0
    return await _fill_range(cx, start, length, mode, modes, Fill("continue"))


async def uffdio_poison(cx: Cx, start: int, length: int, mode: int) -> int:
    """UFFDIO_POISON: from now on whoever touches these pages dies; 0 or an errno."""
    if not cx.design.uffd_poison:
        return -EINVAL
    return await _fill_range(cx, start, length, mode, 0, Fill("poison"))


async def _fill_range(cx: Cx, start: int, length: int, mode: int, modes: int, fill: Fill) -> int:
    """Fill a range; `modes`: what may be asked for besides UFFDIO_DONTWAKE. 0 or an errno.

    From 6.9 on under the VMA's lock, and the VMA gets an anon_vma before anybody asks whether it is
    watched. Before, under the mmap_lock, and only what can be filled gets one. Where only a part
    could be filled: -EAGAIN.
    """
    if not is_range(cx, start, length) or mode & ~(UFFDIO_DONTWAKE | modes):
        return -EINVAL
    fill = fill._replace(
        protects=bool(mode & UFFDIO_WP),
        finds_end=cx.design.uffd_beyond_end == "EFAULT",
        sizes_devices=cx.design.uffd_sizes_devices,
        over=("poison", "uffd_wp", "guard")[: 3 if cx.design.uffd_fills_guards else 2],
    )
    if cx.design.uffd_prepares_first:
        handle = await lock_to_fill(cx, start)
        if not handle:
            return -ENOENT
        filled = await fill_pages(cx, handle, start, length, fill)
        await unlock_filled(cx, handle)
    else:
        await down_read(cx.mmap_lock)
        filled = await fill_under_mmap_lock(cx, start, length, fill)
        await up_read(cx.mmap_lock)
    return 0 if filled == length else -EAGAIN if filled > 0 else filled


async def lock_to_fill(cx: Cx, start: int) -> int:
    """Lock the VMA at an address, which gets an anon_vma first (uffd_lock_vma); 0 for none.

    Who does not get it at once looks it up under the mmap_lock, and gives that back with the VMA
    locked. Where VMAs have no locks the mmap_lock stays held (uffd_mfill_lock without
    CONFIG_PER_VMA_LOCK).
    """
    if cx.design.vma_locks:
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
        if not cx.design.vma_locks:
            return handle
        await vma_start_read_locked(handle)
    await up_read(cx.mmap_lock)
    return handle


async def unlock_filled(cx: Cx, handle: int) -> None:
    """Give back what `lock_to_fill` has locked (uffd_mfill_unlock)."""
    if cx.design.vma_locks:
        await vma_end_read(handle)
    else:
        await up_read(cx.mmap_lock)


async def fill_under_mmap_lock(cx: Cx, start: int, length: int, fill: Fill) -> int:
    """Fill a range to 6.8, where it lies in one watched VMA; bytes, or a negative errno."""
    handle = await vma_lookup(cx.mm, start)
    if not handle:
        return -ENOENT
    lacks = lacks_anon_vma(await read_vma(handle))
    if lacks and not await unfillable(handle, start, length, fill):
        await anon_vma_prepare(handle)
    return await fill_pages(cx, handle, start, length, fill)


def lacks_anon_vma(vma: Vma) -> bool:
    """Return whether a private mapping has no anon_vma yet."""
    return not vma.flags & VM_SHARED and not vma.anon_vma


async def fill_pages(cx: Cx, handle: int, start: int, length: int, fill: Fill) -> int:
    """Fill page after page up to the first that can't be; bytes, or a negative errno."""
    grain = (cx.grain << PAGE_SHIFT) or length
    for done in range(0, length, grain):
        part = done, min(done + grain, length)
        filled = await fill_range(handle, start, length, part, fill)
        if filled != part[1] - part[0]:
            return done + filled if filled > 0 else done or filled
    return length


def refused_fill(m: Machine, vma: Vma, start: int, length: int, fill: Fill) -> int:
    """Return why nothing of a range can be filled, 0 where it can."""
    if start + length > vma.end or not vma.uffd:
        return -ENOENT
    if fill.protects and not vma.flags & VM_UFFD_WP:
        return -EINVAL
    if vma.flags & VM_HUGETLB and (fill.kind == "zeros" or (start | length) % vma.huge_size):
        return -EINVAL
    if fill.kind == "continue" and (not vma.file or m.files[vma.file].kind != "shmem"):
        return -EINVAL
    return 0


@step
def unfillable(m: Machine, task: Task, handle: int, start: int, length: int, fill: Fill) -> int:
    """Return the errno with which a fill of a range ends before it begins, or 0."""
    return refused_fill(m, vma_of(m, task, handle), start, length, fill)


@step
def fill_range(
    m: Machine,
    task: Task,
    handle: int,
    start: int,
    length: int,
    part: tuple[int, int],
    fill: Fill,
) -> int:
    """Fill a part of a range, if all of it can be, up to the first page that can't.

    Returns bytes, or a negative errno.
    """
    vma, (first, last) = vma_of(m, task, handle), part
    if error := refused_fill(m, vma, start, length, fill):
        return error
    for done in range(first, last, PAGE_SIZE):
        error = fill_page(m, task, vma, start + done >> PAGE_SHIFT, fill)
        if error:
            return done - first or error
    return last - first
