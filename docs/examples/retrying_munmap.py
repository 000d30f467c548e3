"""A munmap that never waits for the mmap_lock: it tries, and tries again.

    zaplock check munmap+fault --design docs/examples/retrying_munmap.py:PATIENT
    zaplock check munmap+munmap --design docs/examples/retrying_munmap.py:GIVING_WAY

The first is proved: whoever holds the lock goes on and gives it back, so the loop ends. In the
second each munmap takes a lock of its own before and gives way to the other for ever.
"""

from __future__ import annotations

from zaplock.author import (
    SHIPPED,
    Cx,
    LockClass,
    down_write,
    down_write_trylock,
    mmap_write_unlock,
    munmap_addr_sanity,
    page_align,
    replace,
    up_write,
)

UNMAPPER = LockClass("unmapper")
BASE = SHIPPED["linux-6.1"]


async def locked_munmap(cx: Cx, start: int, length: int) -> int:
    """Unmap under the lock that the caller holds, which goes back here."""
    events: list[tuple[int, int, int]] = []
    result = await cx.design.do_munmap(cx, start, page_align(length), events, False)
    await mmap_write_unlock(cx)
    return min(result, 0)


async def patient(cx: Cx, start: int, length: int) -> int:
    """Try the lock until it is free."""
    if not munmap_addr_sanity(cx, start, length):
        return -22
    while not await down_write_trylock(cx.mmap_lock):
        pass
    return await locked_munmap(cx, start, length)


async def giving_way(cx: Cx, start: int, length: int) -> int:
    """Take one's own lock, try the other's, and give one's own back if that is taken."""
    mine, other = UNMAPPER(cx.task.tid), UNMAPPER(3 - cx.task.tid)
    while True:
        await down_write(mine)
        if await down_write_trylock(other):
            break
        await up_write(mine)
    result = await patient(cx, start, length)
    await up_write(other)
    await up_write(mine)
    return result


PATIENT = replace(BASE, name="patient", summary="tries the lock until it has it", munmap=patient)
GIVING_WAY = replace(
    BASE, name="giving-way", summary="gives way to another munmap", munmap=giving_way
)
