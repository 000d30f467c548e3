"""What a memory cgroup's limit does to a process: who goes beyond it is killed.

A page is charged to the group of whoever faults it in. Where the limit would be passed and nothing
can be reclaimed (no swap, nothing on a disk), the OOM killer ends the process of the group that has
most memory, by SIGKILL, in the middle of what it does. Here that is the one that fills its memory.

Where a group may have so many pages in swap (memory.swap.max, or memory.memsw.limit_in_bytes),
that is how much more of its memory fits. With memory.oom.group (v2) all of its processes are killed
where one is.

Source: mm/memcontrol.c try_charge_memcg, mem_cgroup_out_of_memory, mem_cgroup_get_oom_group. Not
covered: what the kernel itself charges (page tables, VMAs), so how far exactly one comes; which
pages are reclaimed; memory.high, which only makes slow; groups whose OOM killer is off (v1), where
the kernel's own faults are -ENOMEM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.flags import (
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
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

BY_ADVICE, BY_MMAP, BY_HUGE_PAGES, BY_SMALL_PAGES = range(4)
"""How memory is filled: MADV_POPULATE_WRITE, MAP_POPULATE, or the first after MADV_HUGEPAGE or
MADV_NOHUGEPAGE."""
_SIZES = {BY_HUGE_PAGES: MADV_HUGEPAGE, BY_SMALL_PAGES: MADV_NOHUGEPAGE}
SIGKILL = 9


async def fill_memory(cx: Cx, length: int, how: int, limit: int) -> int:
    """Map so many bytes and fill them: 0, or SIGKILL for a process that its group's limit ended.

    limit: pages that the group may charge (0: there is none).
    """
    if limit and await charged_pages() + (length >> PAGE_SHIFT) > limit:
        return await outgrow(cx, length)
    return await fill(cx, length, how)


async def fill_group(cx: Cx, length: int, limit: int, kills_all: bool) -> int:
    """Fill a group of one's own beside a member that waits: how both end, as of fill_memory.

    limit: pages that the group may have, in memory and in swap. The member's signal is in the upper
    half of the result, 0 unless all are killed where one is. Small pages only: of huge ones the
    zeros are given back when they are split to be paged out (6.12), so that more fits.
    """
    if length >> PAGE_SHIFT <= limit:
        return await fill(cx, length, BY_SMALL_PAGES)
    killed = await outgrow(cx, length)
    return killed << 32 | killed if kills_all else killed


async def outgrow(cx: Cx, length: int) -> int:
    """Map so many bytes and be killed before they are filled."""
    await mmap(cx, 0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0, 0)
    return SIGKILL


async def fill(cx: Cx, length: int, how: int) -> int:
    """Map so many bytes and fill them: 0."""
    flags = MAP_PRIVATE | MAP_ANONYMOUS
    flags |= MAP_POPULATE if how == BY_MMAP else 0
    address = await mmap(cx, 0, length, PROT_READ | PROT_WRITE, flags, 0, 0)
    if address > 0 and how in _SIZES:
        await madvise(cx, address, length, _SIZES[how])
    if address > 0 and how != BY_MMAP:
        await madvise(cx, address, length, MADV_POPULATE_WRITE)
    return 0


@step
def charged_pages(m: Machine, _task: Task) -> int:
    """Count the pages of memory that are in use."""
    return sum(end - low for low, (end, frame) in m.frames.data.items() if not frame.freed_by)
