"""What a memory cgroup's limit does to a process: who goes beyond it is killed.

A page is charged to the group of whoever faults it in. Where the limit would be passed and nothing
can be reclaimed (no swap, nothing on a disk), the OOM killer ends the process of the group that has
most memory, by SIGKILL, in the middle of what it does. Here that is the one that fills its memory.

Source: mm/memcontrol.c try_charge_memcg, mem_cgroup_out_of_memory. Not covered: what the kernel
itself charges (page tables, VMAs), so how far exactly one comes; reclaim; memory.high, which only
makes slow; groups whose OOM killer is off (v1), where the kernel's own faults are -ENOMEM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.flags import (
    MADV_HUGEPAGE,
    MADV_POPULATE_WRITE,
    MAP_ANONYMOUS,
    MAP_POPULATE,
    MAP_PRIVATE,
    PAGE_SHIFT,
    PROT_READ,
    PROT_WRITE,
)
from zaplock.model.step import Task, step
from zaplock.protocols.madvise import madvise
from zaplock.protocols.mmap import mmap

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

BY_ADVICE, BY_MMAP, BY_HUGE_PAGES = 0, 1, 2
"""How memory is filled: MADV_POPULATE_WRITE, MAP_POPULATE, or the first after MADV_HUGEPAGE."""
SIGKILL = 9


async def fill_memory(cx: Cx, length: int, how: int, limit: int) -> int:
    """Map so many bytes and fill them: 0, or SIGKILL for a process that its group's limit ended.

    limit: pages that the group may charge (0: there is none).
    """
    flags = MAP_PRIVATE | MAP_ANONYMOUS
    if limit and await charged_pages() + (length >> PAGE_SHIFT) > limit:
        await mmap(cx, 0, length, PROT_READ | PROT_WRITE, flags, 0, 0)
        return SIGKILL
    flags |= MAP_POPULATE if how == BY_MMAP else 0
    address = await mmap(cx, 0, length, PROT_READ | PROT_WRITE, flags, 0, 0)
    if address > 0 and how == BY_HUGE_PAGES:
        await madvise(cx, address, length, MADV_HUGEPAGE)
    if address > 0 and how != BY_MMAP:
        await madvise(cx, address, length, MADV_POPULATE_WRITE)
    return 0


@step
def charged_pages(m: Machine, _task: Task) -> int:
    """Count the pages of memory that are in use."""
    return sum(end - low for low, (end, frame) in m.frames.data.items() if not frame.freed_by)
