"""What the kernel does with user memory in reads and writes: it copies page by page, and faults.

A fault that fails ends the copy: what was copied counts, nothing copied is -EFAULT. Contents are
tags of whole pages, so addresses and offsets are those of pages.

A write gets the page of the file first, then reads user memory (665575cff098, 6.14); one that finds
nothing there leaves an empty page behind, and a file that ends where it was to go on.

Source: mm/shmem.c shmem_file_read_iter, mm/filemap.c filemap_read, drivers/char/mem.c.
"""

from __future__ import annotations

from errno import EFAULT, EINVAL
from typing import TYPE_CHECKING

from zaplock.model.files import fill_cache, set_file_size
from zaplock.model.flags import PAGE_SHIFT, PAGE_SIZE
from zaplock.model.step import Task, step
from zaplock.protocols.access import MUST_FAULT, load, read_memory, write_memory

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

MAX_RW_COUNT = 0x7FFF_F000
LARGEST_OFFSET = (1 << 63) - 1


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
    done = 0
    while done < left:
        tag = await file_tag_at(file, offset + done >> PAGE_SHIFT)
        if await write_memory(cx, address + done, tag) < 0:
            return done or -EFAULT
        done += min(PAGE_SIZE, left - done)
    return done


@step
def bytes_from(m: Machine, _task: Task, file: int, length: int, offset: int) -> int:
    """Return how many bytes a file has from `offset` on; /dev/zero never ends."""
    backing = m.files[file]
    return length if backing.kind == "zero" else max(0, min(length, backing.size - offset))


@step
def file_tag_at(m: Machine, _task: Task, file: int, pgoff: int) -> int:
    """Return what a page of a file holds; a hole is not filled by reading it."""
    delta = m.page_cache(file).at(pgoff)
    return 0 if delta is None else m.content.at(pgoff + delta) or 0


async def pwrite(cx: Cx, file: int, address: int, length: int, offset: int) -> int:
    """The pwrite system call to a file in memory or to /dev/zero: bytes or an errno."""
    if error := refused(cx, address, length, offset):
        return error
    length = min(length, MAX_RW_COUNT)
    if await takes_all(file):
        return length
    done = 0
    while done < length:
        if cx.design.prefaults_writes and await read_memory(cx, address + done) < 0:
            return done or -EFAULT
        await begin_write(file, offset + done >> PAGE_SHIFT)
        tag = await load(cx.mm, address + done)
        if tag == MUST_FAULT:  # not there: nothing was copied, and only then it is faulted in
            await end_write(file, offset + done, 0, 0)
            if await read_memory(cx, address + done) < 0:
                return done or -EFAULT
            continue
        part = min(PAGE_SIZE, length - done)
        await end_write(file, offset + done, tag, part)
        done += part
    return done


@step
def takes_all(m: Machine, _task: Task, file: int) -> bool:
    """Return whether what is written to a file goes nowhere, and so is never looked at."""
    return m.files[file].kind == "zero"


@step
def begin_write(m: Machine, task: Task, file: int, pgoff: int) -> None:
    """Let a page of a file be in its page cache."""
    if m.page_cache(file).at(pgoff) is None:
        fill_cache(m, task, file, pgoff, pgoff + 1)


@step
def end_write(m: Machine, task: Task, file: int, offset: int, tag: int, count: int) -> None:
    """Put what was copied into a page of a file, which grows where it ends before that."""
    if count:
        pgoff = offset >> PAGE_SHIFT
        frame = pgoff + (m.page_cache(file).at(pgoff) or 0)
        m.content.set(frame, frame + 1, tag)
        m.dirty.set(frame, frame + 1, True)
    if offset + count > m.files[file].size:
        set_file_size.run(m, task, file, offset + count)
