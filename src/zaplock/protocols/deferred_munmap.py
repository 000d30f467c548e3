"""munmap that leaves to after the unlock what needs no lock: closing and freeing the mappings.

The pages are unmapped under the exclusive lock, as in Linux to 4.19; what is deferred is the last
reference to objects and files, which may take long. FreeBSD queues unlinked entries on the thread
(vm_map_process_deferred), XNU moves them to a zap list (vm_map_zap_dispose).
"""

from __future__ import annotations

from errno import EINVAL, ENOMEM, EPERM
from typing import TYPE_CHECKING

from zaplock.model.flags import page_align
from zaplock.model.step import Task, step
from zaplock.protocols.locking import UNLOCKED, mmap_write_unlock
from zaplock.protocols.munmap import lookup_and_split, munmap_addr_sanity, prepare_events
from zaplock.protocols.seals import any_sealed
from zaplock.protocols.teardown import (
    Handles,
    close_vmas,
    floor_and_ceiling,
    leave_tree_and_books,
    unmap_region,
    vm_unacct_memory,
)

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents


async def do_munmap_deferred(
    cx: Cx, start: int, length: int, events: UnmapEvents, downgrade: bool = False
) -> int:
    """Unmap under the exclusive lock that the caller has; UNLOCKED if it may be given back here."""
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    end = start + page_align(length)
    if await any_sealed(cx.mm, start, end):
        return -EPERM
    found, handles = await lookup_and_split(cx, start, end)
    if found != 1:
        return found
    if await prepare_events(cx, handles, start, end, events):
        return -ENOMEM
    bounds = await floor_and_ceiling(cx.mm, start, end)
    await unlink_entries(handles)
    await unmap_region(cx, handles, start, end, bounds)
    if downgrade:
        await mmap_write_unlock(cx)
    unaccounted = await close_vmas(handles)
    if unaccounted:
        await vm_unacct_memory(unaccounted)
    return UNLOCKED if downgrade else 0


@step
def unlink_entries(m: Machine, task: Task, handles: Handles) -> None:
    """Take entries out of the map and out of its books."""
    for handle in handles:
        leave_tree_and_books(m, task, handle)
