"""What the kernel does with user memory in reads and writes: it copies page by page, and faults.

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

Source: mm/shmem.c shmem_file_read_iter, mm/filemap.c filemap_read, drivers/char/mem.c. What pins
pages to copy instead: protocols.pinned_access.
"""

from __future__ import annotations

from errno import EFAULT, EINVAL, EPERM
from typing import TYPE_CHECKING

from zaplock.model.dirty import soil_file
from zaplock.model.file_changes import begin_change, end_change, once_unlocked
from zaplock.model.files import END_OF_FILES, cached_frame, set_file_size
from zaplock.model.flags import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from zaplock.model.frames import TAG_SIZE, ZERO_PFN, read_frame, write_frame
from zaplock.model.references import mark_accessed
from zaplock.model.shared_folios import folio_page
from zaplock.model.shared_huge import is_fallocated, order_at
from zaplock.model.step import Task, step
from zaplock.protocols.fault import RETRY
from zaplock.protocols.gup import hold_page, put_page
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


def refused(cx: Cx, address: int, length: int, offset: int) -> int:
    """Check what both check before anything is copied, in this order: 0 or a negative errno."""
    if offset >= END_OF_FILES:
        return -EINVAL
    if address + length > cx.limits.task_size:
        return -EFAULT
    return -EINVAL if offset + length >= END_OF_FILES else 0


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
    await once_unlocked(begin_change, file)
    result = await write_pages(cx, file, address, length, offset)
    await end_change(file)
    return result


async def write_pages(cx: Cx, file: int, address: int, length: int, offset: int) -> int:
    """Copy user memory to a file whose lock is held: bytes or an errno."""
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
