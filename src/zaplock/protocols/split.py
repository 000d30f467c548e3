"""Cut a VMA in two: of a file's, under the lock of its rmap, which must not miss the new part.

Others see it: a walk of the rmap comes before or after. Source: mm/mmap.c __split_vma, vma_prepare.
"""

from __future__ import annotations

from errno import ENOMEM
from typing import TYPE_CHECKING

from zaplock.model.files import i_mmap_lock
from zaplock.model.rwsem import down_write, up_write
from zaplock.model.vma import Vma, lookup, split_vma, split_vma_unlimited, vma_of
from zaplock.protocols.shortage import no_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from zaplock.model.machine import Machine
    from zaplock.model.mm import Mm
    from zaplock.model.step import Task
    from zaplock.protocols.design import Cx


def cut_at_edges(
    m: Machine,
    task: Task,
    space: Mm,
    start: int,
    end: int,
    cut: Callable[[Machine, Task, int, int, bool], int],
) -> int:
    """Cut in one step what reaches out of a range: 0, or the errno of a cut that can't be made."""
    for edge in (start, end):
        handle = lookup(m, space, edge)
        if handle and vma_of(m, task, handle).start < edge:
            new = cut(m, task, handle, edge, False)
            if new < 0:
                return new
    return 0


async def cut_at(
    cx: Cx, handle: int, vma: Vma, address: int, new_below: bool, limited: bool = True
) -> int:
    """Cut a VMA in two; the new one's handle, -ENOMEM, or -EINVAL where it can't be cut.

    `limited`: not where there are max_map_count VMAs already.
    """
    if await no_memory(cx):
        return -ENOMEM
    cut = split_vma if limited else split_vma_unlimited
    if not vma.file:
        return await cut(handle, address, new_below)
    await down_write(i_mmap_lock(vma.file))
    new = await cut(handle, address, new_below)
    await up_write(i_mmap_lock(vma.file))
    return new
