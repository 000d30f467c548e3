"""A munmap of one's own: the VMAs leave the tree under write, everything else comes later.

zaplock check munmap-reuse --design docs/examples/own_munmap.py:HASTY
zaplock check --all --design docs/examples/own_munmap.py:MENDED
zaplock compare 8G --no-measure --design docs/examples/own_munmap.py:MENDED
"""

from errno import EINTR, EINVAL

from zaplock.author import (
    SHIPPED,
    Cx,
    add_counter,
    count_locked,
    detach_vmas_to_be_unmapped,
    floor_and_ceiling,
    lookup_and_split,
    mmap_read_unlock,
    mmap_write_downgrade,
    mmap_write_lock_killable,
    mmap_write_unlock,
    munmap_addr_sanity,
    page_align,
    prepare_events,
    remove_vma_list,
    replace,
    unmap_region,
    userfaultfd_unmap_complete,
)


async def own_munmap(cx: Cx, start: int, length: int, keep_reading: bool) -> int:
    """Detach under write. Then zap: under no lock at all, or for read."""
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    if await mmap_write_lock_killable(cx):
        return -EINTR
    end = start + page_align(length)
    events: list[tuple[int, int, int]] = []
    found, handles = await lookup_and_split(cx, start, end)
    if found != 1:
        await mmap_write_unlock(cx)
        return found
    await prepare_events(cx, handles, start, end, events)
    locked = await count_locked(handles)
    bounds = await floor_and_ceiling(cx.mm, start, end)
    await detach_vmas_to_be_unmapped(handles)
    await add_counter(cx.mm, "locked_vm", -locked)
    if keep_reading:
        await mmap_write_downgrade(cx)
    else:  # nobody can find the VMAs any more, so what is the lock still good for?
        await mmap_write_unlock(cx)
    await unmap_region(cx, handles, start, end, bounds)
    await remove_vma_list(cx, handles)
    if keep_reading:
        await mmap_read_unlock(cx)
    await userfaultfd_unmap_complete(cx, events)
    return 0


HASTY = replace(
    SHIPPED["linux-6.1"],
    name="hasty",
    summary="zaps with no lock at all",
    munmap=lambda cx, start, length: own_munmap(cx, start, length, keep_reading=False),
)
MENDED = replace(
    HASTY,
    name="mended",
    summary="zaps under read",
    munmap=lambda cx, start, length: own_munmap(cx, start, length, keep_reading=True),
)
