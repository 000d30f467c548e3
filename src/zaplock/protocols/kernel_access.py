"""What the kernel does with user memory in reads and writes: it copies page by page, and faults.

process_vm_readv and _writev pin pages instead, as many as there are up to PINNED_AT_ONCE, under the
mmap_lock, and copy when it is released; a page that can't be had ends the call at the next round.

A fault that fails ends the copy: what was copied counts, nothing copied is -EFAULT. Contents are
tags of whole pages, so addresses and offsets are those of pages.

A write gets the page of the file first, then reads user memory (665575cff098, 6.14); one that finds
nothing there leaves an empty page behind, and a file that ends where it was to go on. Where a file
may have huge pages, a write is taken in pieces as big as one (9aac777aaf94), and each is held
against the file's seals as a whole, though its pages are copied one by one.

Source: mm/shmem.c shmem_file_read_iter, mm/filemap.c filemap_read, drivers/char/mem.c,
mm/process_vm_access.c.
"""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENOMEM, EOVERFLOW, EPERM
from typing import TYPE_CHECKING

from zaplock.model import ksm
from zaplock.model.files import cached_frame, set_file_size
from zaplock.model.flags import (
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PAGES_PER_PMD,
    PMD_SIZE,
    VM_SHARED,
    VM_WRITE,
    page_align,
)
from zaplock.model.frames import Frame, mark_forked, soil, write_frame
from zaplock.model.mm import Pte
from zaplock.model.page_fault import begin_copy, finish_copy, is_own, split_entry
from zaplock.model.pagetable import MARKERS
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.step import Task, step
from zaplock.model.swap import kept_slot
from zaplock.model.vma import lookup, overlapping, vma_of
from zaplock.protocols.gup import follow_page, put_page
from zaplock.protocols.populate import populate_up_to
from zaplock.protocols.seals import sealed_against
from zaplock.protocols.user_access import MUST_FAULT, load, read_memory, write_memory

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

MAX_RW_COUNT = 0x7FFF_F000
PINNED_AT_ONCE = 1024  # pages
LARGEST_OFFSET = (1 << 63) - 1
MOST_REGISTERED, MOST_SINCE_7_2 = 1 << 30, 1 << 40  # bytes of a fixed buffer
POINTER_SIZE = 8
MOST_POINTERS = ((1 << 31) - 1) // POINTER_SIZE


def refused(cx: Cx, address: int, length: int, offset: int) -> int:
    """Check what both check before anything is copied, in this order: 0 or a negative errno."""
    if offset > LARGEST_OFFSET:
        return -EINVAL
    if address + length > cx.limits.task_size:
        return -EFAULT
    return -EINVAL if offset + length > LARGEST_OFFSET else 0


async def pread(cx: Cx, file: int, address: int, length: int, offset: int) -> int:
    """The pread system call of a file in memory, on a disk or of /dev/zero: bytes or an errno."""
    if error := refused(cx, address, length, offset):
        return error
    length = min(length, MAX_RW_COUNT)
    left = await bytes_from(file, length, offset)
    if not length:
        await look_at_page(file, offset)
    done = 0
    while done < left:
        tag = await file_tag_at(file, offset + done >> PAGE_SHIFT)
        if await write_memory(cx, address + done, tag, True) < 0:
            return done or -EFAULT
        done += min(PAGE_SIZE, left - done)
    return done


@step
def look_at_page(m: Machine, task: Task, file: int, offset: int) -> None:
    """Get the page that a read begins with, which is done before anybody asks how much is read."""
    pgoff = offset >> PAGE_SHIFT
    if offset < m.files[file].size and m.page_cache(file).at(pgoff) is not None:
        cached_frame(m, task, file, pgoff)


@step
def bytes_from(m: Machine, _task: Task, file: int, length: int, offset: int) -> int:
    """Return how many bytes a file has from `offset` on; /dev/zero never ends."""
    backing = m.files[file]
    return length if backing.kind == "zero" else max(0, min(length, backing.size - offset))


@step
def file_tag_at(m: Machine, task: Task, file: int, pgoff: int) -> int:
    """Return what a page of a file holds; a hole is not filled by reading it."""
    if m.page_cache(file).at(pgoff) is None:
        return 0
    return m.content.at(cached_frame(m, task, file, pgoff)) or 0


async def pwrite(cx: Cx, file: int, address: int, length: int, offset: int) -> int:
    """The pwrite system call to a file in memory or to /dev/zero: bytes or an errno."""
    if error := refused(cx, address, length, offset):
        return error
    length = min(length, MAX_RW_COUNT)
    if await takes_all(file):
        return length
    done = 0
    while done < length:
        until = min(length, done + left_of_piece(cx, offset + done))
        if cx.design.prefaults_writes and not await fault_in(cx, address + done, until - done):
            return done or -EFAULT
        if await sealed_against(file, offset + until):
            return done or -EPERM
        await begin_write(file, offset + done >> PAGE_SHIFT)
        tag = await load(cx.mm, address + done)
        if tag == MUST_FAULT:  # not there: nothing was copied, and only then it is faulted in
            await end_write(file, offset + done, 0, 0)
            if await read_memory(cx, address + done, True) < 0:
                return done or -EFAULT
            continue
        part = min(PAGE_SIZE, length - done)
        await end_write(file, offset + done, tag, part)
        done += part
    return done


def left_of_piece(cx: Cx, offset: int) -> int:
    """Return how many bytes from an offset on a write to a file takes at once."""
    piece = PMD_SIZE if cx.design.write_piece == "huge page" else PAGE_SIZE
    return piece - offset % piece


async def fault_in(cx: Cx, address: int, length: int) -> bool:
    """Read user memory page by page up to the first that can't be; False where that is the first.

    (fault_in_iov_iter_readable)
    """
    for page in range(address, address + length, PAGE_SIZE):
        if await read_memory(cx, page, True) < 0:
            return page != address
    return True


@step
def takes_all(m: Machine, _task: Task, file: int) -> bool:
    """Return whether what is written to a file goes nowhere, and so is never looked at."""
    return m.files[file].kind == "zero"


@step
def begin_write(m: Machine, task: Task, file: int, pgoff: int) -> None:
    """Let a page of a file be in its page cache."""
    cached_frame(m, task, file, pgoff)


@step
def end_write(m: Machine, task: Task, file: int, offset: int, tag: int, count: int) -> None:
    """Put what was copied into a page of a file, which grows where it ends before that.

    The page counts as written to also where nothing was copied.
    """
    pgoff = offset >> PAGE_SHIFT
    frame = pgoff + (m.page_cache(file).at(pgoff) or 0)
    m.dirty.set(frame, frame + 1, True)
    if count:
        m.content.set(frame, frame + 1, tag)
    if offset + count > m.files[file].size:
        set_file_size.run(m, task, file, offset + count)


async def process_vm(cx: Cx, address: int, length: int, tag: int | None, room: int) -> int:
    """Run process_vm_readv of one's own memory, or _writev of a tag to each page.

    Return the bytes that were copied or an errno. `address` is that of a page; `room` is how many
    bytes the other side has. What is read is not kept: it is what the pages hold.
    """
    if length >> 63:
        return -EINVAL
    end, at, copied = address + length, address, 0
    room = min(room, length)
    while copied < room:
        until = min(page_align(end), at + PINNED_AT_ONCE * PAGE_SIZE)
        await down_read(cx.mmap_lock)
        frames = await pin_pages(cx, at, until, tag is not None)
        await up_read(cx.mmap_lock)
        if not frames:
            return copied or -EFAULT
        for frame in frames:
            if tag is not None and copied < room:
                await write_pinned(frame, tag)
            copied = min(room, copied + PAGE_SIZE)
            await put_page(frame)
        at += len(frames) * PAGE_SIZE
    return copied


async def register_buffer(cx: Cx, address: int, length: int) -> int:
    """Register a fixed buffer with an io_uring, and give it back: 0 or a negative errno.

    Its pages are pinned, to be written to for long (FOLL_LONGTERM): as far as they are mapped
    without the lock, then under it. What writes to must be told of can't be pinned so. (From 6.5
    on; before, files on a disk were refused otherwise. io_uring/rsrc.c, mm/gup.c.) What a user may
    lock in all is not asked.
    """
    if length >> 63:
        return -EINVAL
    if not address and not length:
        return 0  # an empty place
    error = refused_buffer(cx, address, length)
    if error:
        return error
    start, end = address & PAGE_MASK, page_align(address + length)
    until = await first_not_to_be_pinned(cx.mm, start, end)
    frames: list[int] = []
    while start + len(frames) * PAGE_SIZE < until:
        frame = await follow_page(cx.mm, start + len(frames) * PAGE_SIZE, True)
        if not frame:
            break
        frames.append(frame)
    rest = start + len(frames) * PAGE_SIZE
    if rest < end:
        await down_read(cx.mmap_lock)
        frames += await pin_pages(cx, rest, until, True, (*frames,)) if rest < until else []
        await up_read(cx.mmap_lock)
    for frame in frames:
        await put_page(frame)
    return 0 if len(frames) == end - start >> PAGE_SHIFT else -EFAULT


def refused_buffer(cx: Cx, address: int, length: int) -> int:
    """Check the range of a fixed buffer: 0 or a negative errno.

    1 GiB at most, and from 7.2 on (`registers_terabytes`) 1 TiB less a page, for which an array of
    pointers has to be allocated: one larger than all memory is -ENOMEM. Smaller ones that can't be
    had are not covered. (io_uring/rsrc.c, io_pin_pages)
    """
    if not address or not length:
        return -EFAULT
    most, beyond = MOST_REGISTERED, -EFAULT
    if cx.design.registers_terabytes:
        most, beyond = MOST_SINCE_7_2, -EINVAL
    if length > most:
        return beyond
    end = address + length + PAGE_SIZE - 1
    pages = (end >> PAGE_SHIFT) - (address >> PAGE_SHIFT)
    if end >> 64 or pages > MOST_POINTERS:
        return -EOVERFLOW
    if page_align(pages * POINTER_SIZE) >> PAGE_SHIFT > cx.limits.overcommit_pages:
        return -ENOMEM
    return -EFAULT if address + length > cx.limits.task_size else 0


@step
def first_not_to_be_pinned(m: Machine, task: Task, mm: int, start: int, end: int) -> int:
    """Return where in a range the first mapping begins that tracks who dirties its file."""
    for handle in overlapping(m, m.mm(mm), start, end):
        vma = vma_of(m, task, handle)
        if vma.flags & VM_SHARED and m.files[vma.file].kind == "disk":
            return max(start, vma.start)
    return end


async def pin_pages(
    cx: Cx, start: int, end: int, write: bool, held: tuple[int, ...] = ()
) -> list[int]:
    """Pin the pages of a range up to the first that can't be had, under the caller's hold.

    `held`: frames before it that are pinned already.
    """
    if write and cx.design.reuses_large:
        await copy_beside_pinned(cx.mm, start, end, held)
    walked = await populate_up_to(cx, start, end, write)
    frames: list[int] = []
    for page in range(start, walked.at, PAGE_SIZE):
        if not write and cx.design.pins_unshare:
            await unshare_page(cx.mm, page, not cx.design.reuses_large)
        frame = await follow_page(cx.mm, page, write)
        if not frame:
            break
        frames.append(frame)
    return frames


@step
def copy_beside_pinned(
    m: Machine, task: Task, mm: int, start: int, end: int, held: tuple[int, ...]
) -> None:
    """Copy the pages of huge pages of which another page is pinned when they are faulted in.

    A write keeps such a page, after a fork that nobody else uses any more, only while nobody but
    page tables holds the huge page (wp_can_reuse_anon_folio, 6.15); pages are pinned one by one.
    `held`: frames that are pinned already.
    """
    space, at, pinned = m.mm(mm), start, {frame & -PAGES_PER_PMD for frame in held}
    for handle in overlapping(m, space, start, end):
        vma = vma_of(m, task, handle)
        if vma.start > at or not vma.flags & VM_WRITE:
            return
        first, at = max(start, vma.start) >> PAGE_SHIFT, vma.end
        for low, high, pte in space.ptes.overlapping(first, min(end, vma.end) >> PAGE_SHIFT):
            if pte.kind in MARKERS:
                return
            for pfn, frame in _of_huge_pages(m, low, high, pte):
                if pfn & -PAGES_PER_PMD in pinned and not pte.writable and frame.maps == 1:
                    vpn, tag = pfn - pte.delta, m.content.at(pfn) or 0
                    copy = begin_copy(m, task, vpn, pte)
                    finish_copy(m, task, vma, vpn << PAGE_SHIFT, copy, tag)
                pinned.add(pfn & -PAGES_PER_PMD)


def _of_huge_pages(m: Machine, low: int, high: int, pte: Pte) -> list[tuple[int, Frame]]:
    """List the pages of huge pages that small entries [low, high) map."""
    if pte.kind != "anon":
        return []
    return [
        (pfn, frame)
        for start, end, frame in m.frames.overlapping(low + pte.delta, high + pte.delta)
        if frame.kind == "thp"
        for pfn in range(start, end)
    ]


@step
def unshare_page(m: Machine, task: Task, mm: int, address: int, copies_large: bool) -> None:
    """Give an address a page of its own where it shares one, which is not pinned to be read.

    So is a merged one, and one that a fork has shared; if nobody else maps it any more it is one's
    own as it is; but for a page of a huge one while another page of that is pinned, or always where
    it `copies_large`. (gup_must_unshare, do_wp_page)
    """
    space, vpn = m.mm(mm), address >> PAGE_SHIFT
    pte = space.ptes.at(vpn)
    if pte is None or pte.kind not in ("anon", "thp"):
        return
    frame = m.frames.at(vpn + pte.delta)
    assert frame is not None
    if frame.kind == "ksm":
        handle = lookup(m, space, address)
        ksm.unmerge(m, task, vma_of(m, task, handle), vpn, vpn + 1, closed_too=True)
    elif (
        frame.forked
        and is_own(frame)
        and not (
            pte.kind == "anon"
            and frame.kind == "thp"
            and (copies_large or is_pinned(m, vpn + pte.delta))
        )
    ):
        pages = PAGES_PER_PMD if pte.kind == "thp" else 1
        first = vpn - vpn % pages + pte.delta
        if frame.slot and not kept_slot(m, frame):
            soil(m, first, first + 1)  # who keeps it takes it out of the swap cache
        mark_forked(m, first, first + pages, False)
    elif frame.forked:
        if pte.kind == "thp":
            pte = split_entry(m, space, vpn, pte)
        ksm.give_copy(m, task, space, vpn, pte, False)


def is_pinned(m: Machine, pfn: int) -> bool:
    """Return whether more than page tables refers to a huge page, one of whose frames is `pfn`."""
    head = pfn & -PAGES_PER_PMD
    held = m.frames.overlapping(head, head + PAGES_PER_PMD)
    return any(frame.refs > frame.maps for _, _, frame in held)


@step
def write_pinned(m: Machine, task: Task, frame: int, tag: int) -> None:
    """Write a tag to a pinned page through the kernel's own mapping; a file's page gets dirty."""
    write_frame(m, task, frame, tag)
    written = m.frames.at(frame)
    if written is not None and written.kind in ("file", "shmem"):
        m.dirty.set(frame, frame + 1, True)
    else:
        soil(m, frame, frame + 1)
