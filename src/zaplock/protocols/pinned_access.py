"""What the kernel does with user memory that it pins: process_vm_readv, _writev, fixed buffers.

process_vm_readv and _writev pin pages, as many as there are up to PINNED_AT_ONCE, under the
mmap_lock, and copy when it is released; a page that can't be had ends the call at the next round.
What was copied counts, nothing copied is -EFAULT. Contents are tags of whole pages.

Source: mm/process_vm_access.c, io_uring/rsrc.c, mm/gup.c.
"""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENOMEM, EOVERFLOW
from typing import TYPE_CHECKING

from zaplock.model.dirty import soil_file
from zaplock.model.flags import (
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PAGES_PER_PMD,
    PMD_SHIFT,
    VM_SHARED,
    page_align,
)
from zaplock.model.frames import soil, write_frame
from zaplock.model.pinned_pages import NOT_PINNED
from zaplock.model.references import set_referenced
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.step import Task, step
from zaplock.model.vma import overlapping, vma_of
from zaplock.protocols.gup import follow_page, put_page
from zaplock.protocols.populate import let_go_for_once, populate_in_hold

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

PINNED_AT_ONCE = 1024  # pages
MOST_REGISTERED, MOST_SINCE_7_2 = 1 << 30, 1 << 40  # bytes of a fixed buffer
POINTER_SIZE = 8
MOST_POINTERS = ((1 << 31) - 1) // POINTER_SIZE


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
    at, tried = start, -1
    while at < end:
        until = min(end, at + step_length)
        again = at == tried
        walked = await populate_in_hold(cx, at, until, write, pinned_from, False, again)
        if walked.error and cx.grain:
            break
        while at < walked.at and (frame := await follow_page(cx.mm, at, write)):
            frames.append(frame)
            at += PAGE_SIZE
        if walked.error or (at < walked.at and not cx.grain):
            break
        if walked.let_go:
            await let_go_for_once(cx, walked.punched)
            tried = at
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
