"""What the kernel does to user memory in a read system call: it copies page by page, and faults.

A fault that fails ends the copy: what was copied counts, nothing copied is -EFAULT. Contents are
tags of whole pages, so addresses and offsets are those of pages.

Source: mm/shmem.c shmem_file_read_iter, mm/filemap.c filemap_read, drivers/char/mem.c.
"""

from __future__ import annotations

from errno import EFAULT, EINVAL
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT, PAGE_SIZE
from zaplock.model.step import Task, step
from zaplock.protocols.access import write_memory

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

MAX_RW_COUNT = 0x7FFF_F000
LARGEST_OFFSET = (1 << 63) - 1


async def pread(cx: Cx, file: int, address: int, length: int, offset: int) -> int:
    """The pread system call of a file in memory, on a disk or of /dev/zero: bytes or an errno."""
    if offset > LARGEST_OFFSET:
        return -EINVAL
    if address + length > cx.limits.task_size:
        return -EFAULT
    if offset + length > LARGEST_OFFSET:
        return -EINVAL
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
