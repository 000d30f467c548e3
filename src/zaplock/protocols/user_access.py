"""What user code does: read and write memory, fault where it must, die where it may not.

So does the kernel with user memory, but its faults take the mmap_lock where those of user code take
a VMA's own: x86 looks for that only if the fault came from user mode (do_user_addr_fault).
"""

from __future__ import annotations

from errno import ENOMEM
from signal import SIGBUS
from typing import TYPE_CHECKING

from zaplock.model.dirty import note_written
from zaplock.model.flags import EHWPOISON, PAGE_SHIFT
from zaplock.model.frames import TAG_SIZE, read_frame, write_frame
from zaplock.model.pagetable import translate
from zaplock.model.step import MarkStep, Task, step
from zaplock.protocols.fault import RETRY, page_fault_mmap_lock

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

MUST_FAULT = -1000


@step
def load(m: Machine, task: Task, mm: int, address: int) -> int:
    """Read the tag of a page through the CPU's eyes, or MUST_FAULT."""
    frame = translate(m, task, m.mm(mm), address >> PAGE_SHIFT, False)
    return read_frame(m, task, frame) if frame else MUST_FAULT


@step
def store(m: Machine, task: Task, mm: int, address: int, tag: int, count: int = TAG_SIZE) -> int:
    """Write a tag, or its first `count` bytes, through the CPU's eyes: 0, or MUST_FAULT."""
    frame = translate(m, task, m.mm(mm), address >> PAGE_SHIFT, True)
    if not frame:
        return MUST_FAULT
    write_frame(m, task, frame, tag, count)
    written = m.frames.at(frame)
    if written is not None and written.kind in ("file", "shmem"):
        note_written(m, frame, frame + 1)
    return 0


async def read_memory(cx: Cx, address: int, in_kernel: bool = False) -> int:
    """Read a page's tag (0 for zeroes); -SIGSEGV or -SIGBUS where that kills user code."""
    while (seen := await load(cx.mm, address)) == MUST_FAULT:
        result = await user_fault(cx, address, False, in_kernel)
        if result not in (0, RETRY):
            return result
    return seen


async def write_memory(
    cx: Cx, address: int, tag: int, in_kernel: bool = False, count: int = TAG_SIZE
) -> int:
    """Write a tag into a page: 0; -SIGSEGV or -SIGBUS where that kills user code.

    `count`: only so many bytes of it, where these are fewer than it has.
    """
    less = (count,) if count < TAG_SIZE else ()
    while await store(cx.mm, address, tag, *less) == MUST_FAULT:
        result = await user_fault(cx, address, True, in_kernel)
        if result not in (0, RETRY):
            return result
    return 0


async def user_fault(cx: Cx, address: int, write: bool, in_kernel: bool = False) -> int:
    """Take a page fault on user memory, from user mode or in a system call."""
    await MarkStep("fault_begin", (address, int(write) << 1 | (0 if in_kernel else 4)))
    takes_mmap_lock = in_kernel and cx.design.vma_locks
    handle = page_fault_mmap_lock if takes_mmap_lock else cx.design.page_fault
    result = await handle(cx, address, write)
    await MarkStep("fault_end", (result,))
    if result == -EHWPOISON:
        return -SIGBUS
    # After pagefault_out_of_memory the access comes again.
    return RETRY if result == -ENOMEM else result
