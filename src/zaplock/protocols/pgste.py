"""KVM on s390 looks at a guest page's own bits, which lie beside its page-table entries.

It holds the mmap_lock for read and walks to the entry. To 5.15 it did not look whether a VMA covers
the address: harmless while munmap freed page tables under the exclusive lock, a use after free
since it frees them under read (dd2283f2605e, 4.20; mended by fe3d10024073, 5.16).

Source: arch/s390/mm/pgtable.c set_pgste_bits and its like.
"""

from __future__ import annotations

from errno import EFAULT
from typing import TYPE_CHECKING

from zaplock.model.rwsem import down_read, up_read
from zaplock.model.step import Task, step
from zaplock.protocols.table_walk import (
    FoundTable,
    entry_at,
    find_table,
    pte_offset_anywhere,
)

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


async def look_at_pgste(cx: Cx, address: int) -> int:
    """Look at the entry of a guest page: 1 if it maps something, 0 if not, or -EFAULT."""
    await down_read(cx.mmap_lock)
    if cx.design.pgste_finds_vma:
        table = await find_table(cx, cx.mm, address)
    else:
        table = await pte_offset_anywhere(cx.mm, address)
    result = await is_mapped_in(table, address) if table is not None else -EFAULT
    await up_read(cx.mmap_lock)
    return result


@step
def is_mapped_in(m: Machine, task: Task, table: FoundTable, address: int) -> int:
    """Return whether the entry of an address maps something."""
    return int(entry_at(m, task, table, address) is not None)
