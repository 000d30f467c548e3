"""Cut a VMA in two: of a file's, under the lock of its rmap, which must not miss the new part.

Others see it: a walk of the rmap comes before or after. Source: mm/mmap.c __split_vma, vma_prepare.
"""

from __future__ import annotations

from errno import ENOMEM
from typing import TYPE_CHECKING

from zaplock.model.files import i_mmap_lock
from zaplock.model.rwsem import down_write, up_write
from zaplock.model.vma import Vma, split_vma, split_vma_unlimited
from zaplock.protocols.shortage import no_memory

if TYPE_CHECKING:
    from zaplock.protocols.design import Cx


async def cut_at(
    cx: Cx, handle: int, vma: Vma, address: int, new_below: bool, limited: bool = True
) -> int:
    """Cut a VMA in two; the new one's handle, -ENOMEM, or -EINVAL inside a huge page.

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
