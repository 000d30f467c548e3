"""What the kernel does with user memory in reads and writes: it copies page by page, and faults.

process_vm_readv and _writev pin pages instead, as many as there are up to PINNED_AT_ONCE, under the
mmap_lock, and copy when it is released; a page that can't be had ends the call at the next round.

A fault that fails ends the copy: what was copied counts, nothing copied is -EFAULT. Contents are
tags of whole pages, so addresses and offsets are those of pages.

Nothing holds a user's page while the kernel copies to it: others may take it away, and a fault may
bring an empty one, at any byte. Where steps are small (a grain of one page) that may happen here
once in a page, between its tag and the rest, so a copy that ends amid a page has done TAG_SIZE
bytes of it. A file is asked for its size before each page: who cuts it ends the read there. (A file
on a disk is asked for some pages together, which is not covered.)

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

from zaplock.model.dirty import soil_file
from zaplock.model.files import cached_frame, set_file_size
from zaplock.model.flags import (
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PAGES_PER_PMD,
    PMD_SHIFT,
    PMD_SIZE,
    VM_SHARED,
    page_align,
)
from zaplock.model.frames import TAG_SIZE, ZERO_PFN, read_frame, soil, write_frame
from zaplock.model.pinned_pages import NOT_PINNED
from zaplock.model.references import mark_accessed, set_referenced
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.shared_folios import folio_page
from zaplock.model.shared_huge import is_fallocated, order_at
from zaplock.model.step import Task, step
from zaplock.model.vma import overlapping, vma_of
from zaplock.protocols.fault import RETRY
from zaplock.protocols.gup import follow_page, hold_page, put_page
from zaplock.protocols.populate import let_go_for_once, populate_in_hold
from zaplock.protocols.seals import sealed_against
from zaplock.protocols.user_access import (
    MUST_FAULT,
    load,
    read_memory,
    store,
    user_fault,
    write_memory,
)

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
    length, done = min(length, MAX_RW_COUNT), 0
    while done < length or not length:
        part, frame = await page_to_read(file, offset + done, length - done)
        if not part:
            break
        result = await copy_to_user(cx, address + done, frame, part)
        torn = not result and cx.grain == 1 and part > TAG_SIZE
        if torn and await write_memory(cx, address + done, 0, True, 0) < 0:
            done, result = done + TAG_SIZE, -EFAULT
        await put_page(frame)
        if result < 0:
            return done or -EFAULT
        done += part
    return done


@step
def page_to_read(m: Machine, task: Task, file: int, offset: int, left: int) -> tuple[int, int]:
    """Return how many bytes a read may take from a page of a file, and its frame, held.

    A file is asked for its size at each page, and one that ends before it gives none; /dev/zero
    never ends, and a hole is not filled by reading it. A page counts as used once it is looked
    up, also if nothing of it is read.
    """
    backing, pgoff = m.files[file], offset >> PAGE_SHIFT
    if backing.kind == "zero":
        return min(left, PAGE_SIZE), ZERO_PFN
    frame = ZERO_PFN
    if offset < backing.size and has_content(m, file, pgoff):
        frame = use_cached(m, task, file, pgoff)
    part = max(0, min(left, PAGE_SIZE, backing.size - offset))
    if part:
        hold_page(m, task, frame)
    return part, frame


def has_content(m: Machine, file: int, pgoff: int) -> bool:
    """Return whether a file has a page, and not one that is still to be filled with zeroes."""
    delta = m.page_cache(file).at(pgoff)
    return delta is not None and not is_fallocated(m, pgoff + delta)


def use_cached(m: Machine, task: Task, file: int, pgoff: int) -> int:
    """Return the frame of a page of a file, which counts as used from now on."""
    frame = cached_frame(m, task, file, pgoff)
    mark_accessed(m, frame, frame + 1)
    return frame


async def copy_to_user(cx: Cx, address: int, frame: int, count: int) -> int:
    """Copy so many bytes of a page that the kernel has to user memory: 0 or a signal, negative."""
    while await copied(cx.mm, address, frame, count) == MUST_FAULT:
        result = await user_fault(cx, address, True, True)
        if result not in (0, RETRY):
            return result
    return 0


@step
def copied(m: Machine, task: Task, mm: int, address: int, frame: int, count: int) -> int:
    """Copy what a page holds now to where user memory is there: 0, or MUST_FAULT."""
    return store.run(m, task, mm, address, read_frame(m, task, frame), count)


async def pwrite(cx: Cx, file: int, address: int, length: int, offset: int) -> int:
    """The pwrite system call to a file in memory or to /dev/zero: bytes or an errno."""
    if error := refused(cx, address, length, offset):
        return error
    length = min(length, MAX_RW_COUNT)
    if await takes_all(file):
        return length
    done, halved = 0, 0
    while done < length:
        left = await left_of_piece(file, offset + done, cx.design.write_piece, halved)
        until = min(length, done + left)
        if cx.design.prefaults_writes and not await fault_in(cx, address + done, until - done):
            return done or -EFAULT
        if await sealed_against(file, offset + until):
            return done or -EPERM
        await begin_write(file, offset + done >> PAGE_SHIFT, offset + until)
        tag = await load(cx.mm, address + done)
        if tag == MUST_FAULT:  # not there: nothing was copied, and only then it is faulted in
            await end_write(file, offset + done, 0, 0)
            wanted = min(until - done, await left_of_folio(file, offset + done))
            if not await fault_in(cx, address + done, wanted):
                return done or -EFAULT
            halved += 1
            continue
        part = min(PAGE_SIZE, length - done)
        await end_write(file, offset + done, tag, part)
        done += part
    return done


@step
def left_of_folio(m: Machine, _task: Task, file: int, offset: int) -> int:
    """Return how many bytes from an offset on are in the same folio of a file."""
    pgoff = offset >> PAGE_SHIFT
    size = PAGE_SIZE << order_at(m, pgoff + (m.page_cache(file).at(pgoff) or 0))
    return size - offset % size


@step
def left_of_piece(
    m: Machine, _task: Task, file: int, offset: int, write_piece: str, halved: int
) -> int:
    """Return how many bytes from an offset on a write to a file takes at once.

    write_piece: the design's, "as its files" where it hangs on whether the mount has huge pages.
    halved: how often nothing could be copied, after which pieces are half as large.
    """
    huge = m.files[file].huge if write_piece == "as its files" else write_piece == "huge page"
    piece = max(PMD_SIZE >> halved, PAGE_SIZE) if huge else PAGE_SIZE
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
def begin_write(m: Machine, task: Task, file: int, pgoff: int, write_end: int) -> None:
    """Let a page of a file be in its page cache, for a write that goes up to byte `write_end`.

    It counts as used, whatever is copied.
    """
    frame = folio_page(m, task, file, pgoff, write_end=write_end)
    mark_accessed(m, frame, frame + 1)


@step
def end_write(m: Machine, task: Task, file: int, offset: int, tag: int, count: int) -> None:
    """Put what was copied into a page of a file, which grows where it ends before that.

    The page counts as written to also where nothing was copied.
    """
    pgoff = offset >> PAGE_SHIFT
    frame = pgoff + (m.page_cache(file).at(pgoff) or 0)
    soil_file(m, frame, frame + 1)
    if count:
        write_frame(m, task, frame, tag, count)
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
        frames = await pin_pages(cx, at, at, until, tag is not None)
        await up_read(cx.mmap_lock)
        if not frames:
            return copied or -EFAULT
        for frame in frames:
            if tag is not None and copied < room:
                await write_pinned(frame, tag, room - copied)
            copied = min(room, copied + PAGE_SIZE)
            await put_page(frame)
        at += len(frames) * PAGE_SIZE
    return copied


async def register_buffer(cx: Cx, address: int, length: int, locked: int = 0) -> int:
    """Register a fixed buffer with an io_uring, and give it back: 0 or a negative errno.

    Its pages are pinned, to be written to for long (FOLL_LONGTERM): as far as they are mapped
    without the lock, then under it. What writes to must be told of can't be pinned so. (From 6.5
    on; before, files on a disk were refused otherwise. io_uring/rsrc.c, mm/gup.c.) RLIMIT_MEMLOCK
    counts for all that a user has locked so: `locked` pages, and this buffer.
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
        await note_pinned(frame)
        frames.append(frame)
    rest = start + len(frames) * PAGE_SIZE
    if rest < end:
        await down_read(cx.mmap_lock)
        frames += await pin_pages(cx, start, rest, until, True) if rest < until else []
        await up_read(cx.mmap_lock)
    is_whole = len(frames) == end - start >> PAGE_SHIFT
    fits = is_whole and await may_be_locked(frames, cx.limits.rlimit_memlock, locked)
    for frame in frames:
        await put_page(frame)
    return 0 if fits else -ENOMEM if is_whole else -EFAULT


@step
def note_pinned(m: Machine, _task: Task, frame: int) -> None:
    """Note that a page was used, as pinning without the lock does."""
    set_referenced(m, frame)


@step
def may_be_locked(m: Machine, _task: Task, frames: list[int], limit: int, locked: int) -> bool:
    """Return whether a user who has `locked` pages may lock more: of huge ones all counts, once.

    Source: io_uring/rsrc.c io_buffer_account_pin. `limit` is RLIMIT_MEMLOCK, in bytes.
    """
    huge = {
        frame >> PMD_SHIFT - PAGE_SHIFT
        for frame in frames
        if (found := m.frames.at(frame)) is not None and found.kind == "thp"
    }
    small = sum(1 for frame in frames if frame >> PMD_SHIFT - PAGE_SHIFT not in huge)
    return locked + small + len(huge) * PAGES_PER_PMD <= limit >> PAGE_SHIFT


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


async def pin_pages(cx: Cx, first: int, start: int, end: int, write: bool) -> list[int]:
    """Pin the pages of a range up to the first that can't be had, under the caller's hold.

    `first`: where what the same call has pinned begins. Each page is pinned as soon as it is there,
    and stays so where the hold is let go for another one; one that was taken away before that is
    faulted in again (__get_user_pages).
    """
    pinned_from = first if write or cx.design.pins_unshare else NOT_PINNED
    step_length = (cx.grain << PAGE_SHIFT) or end - start
    frames: list[int] = []
    at = start
    while at < end:
        until = min(end, at + step_length)
        walked = await populate_in_hold(cx, at, until, write, pinned_from)
        if walked.error and cx.grain:
            break
        while at < walked.at and (frame := await follow_page(cx.mm, at, write)):
            frames.append(frame)
            at += PAGE_SIZE
        if walked.error or (at < walked.at and not cx.grain):
            break
        if walked.let_go:
            await let_go_for_once(cx)
    return frames


@step
def write_pinned(m: Machine, task: Task, frame: int, tag: int, count: int) -> None:
    """Write a tag to a pinned page through the kernel's own mapping; a file's page gets dirty."""
    write_frame(m, task, frame, tag, count)
    written = m.frames.at(frame)
    if written is not None and written.kind in ("file", "shmem"):
        soil_file(m, frame, frame + 1)
    else:
        soil(m, frame, frame + 1)
