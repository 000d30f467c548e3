"""Buffers that a driver has registered: pinned pages that munmap must not take away.

A lock class, a counter, two operations, two invariants, a design, a scenario and a mutation of
one's own (docs/authors.md tells how they came about):

    cd docs/examples
    zaplock check registered_buffers.py:REGISTERING --design registered_buffers.py:REFUSING
    zaplock check registered_buffers.py:REGISTERING \
        --design registered_buffers.py:REFUSING/registered_buffers.py:NO_LOCK
"""

from errno import EBUSY
from typing import NamedTuple

from zaplock.author import (
    BASE_PAGE,
    SHIPPED,
    Cx,
    InitialMapping,
    LockClass,
    Machine,
    Mutation,
    OwnCells,
    OwnInvariant,
    OwnOperation,
    Scenario,
    SkipLock,
    TaskSpec,
    address_of,
    down_read,
    down_write,
    get_user_pages,
    page_of,
    put_page,
    replace,
    step,
    up_read,
    up_write,
)


class Buffer(NamedTuple):
    """A registered buffer: its mm, its first page and the frames that are pinned."""

    mm: int
    page: int
    frames: tuple[int, ...]


BUFFER_LOCK = LockClass("buffer_lock")
BUFFERS: OwnCells[int, Buffer | None] = OwnCells("buffers", None)
"""By the id of the task that has registered it."""
REGISTERED: OwnCells[int, int] = OwnCells("registered_vm", 0)
"""Pages, by mm: what a limit would be asked about."""


async def register(cx: Cx, page: int, pages: int) -> int:
    """Pin the pages and enter the buffer, under the lock of the buffers."""
    await down_write(BUFFER_LOCK(cx.mm))
    result, frames = 0, ()
    for at in range(page, page + pages):
        frame = await get_user_pages(cx, cx.mm, address_of(at), True)
        if frame < 0:
            result = frame
            break
        frames = (*frames, frame)
    if result:
        for frame in frames:
            await put_page(frame)
    else:
        await BUFFERS.write(cx.task.tid, Buffer(cx.mm, page, frames))
        await REGISTERED.add(cx.mm, pages)
    await up_write(BUFFER_LOCK(cx.mm))
    return result


async def unregister(cx: Cx) -> int:
    """Give the buffer of this task back, if it has one."""
    await down_write(BUFFER_LOCK(cx.mm))
    buffer = await BUFFERS.read(cx.task.tid)
    if buffer is not None:
        await BUFFERS.write(cx.task.tid, None)
        await REGISTERED.add(cx.mm, -len(buffer.frames))
        for frame in buffer.frames:
            await put_page(frame)
    await up_write(BUFFER_LOCK(cx.mm))
    return 0


@step
def is_registered(m: Machine, _task: object, mm: int, start: int, length: int) -> bool:
    """Look whether a buffer overlaps [start, start + length)."""
    first, last = page_of(start), page_of(start + length)
    return any(
        buffer.mm == mm and buffer.page < last and first < buffer.page + len(buffer.frames)
        for buffer in registered(m)
    )


def registered(m: Machine) -> list[Buffer]:
    """List the buffers that are registered now."""
    found = [BUFFERS.get(m, tid) for tid in BUFFERS.of(m)]
    return [buffer for buffer in found if buffer is not None]


async def munmap_unless_registered(cx: Cx, start: int, length: int) -> int:
    """Unmap as Linux does, but -EBUSY where a buffer is registered."""
    await down_read(BUFFER_LOCK(cx.mm))
    if await is_registered(cx.mm, start, length):
        result = -EBUSY
    else:
        result = await SHIPPED["linux-6.18"].munmap(cx, start, length)
    await up_read(BUFFER_LOCK(cx.mm))
    return result


def unmapped(m: Machine) -> str | None:
    """Say which page of a registered buffer is not mapped, or is another one by now."""
    for buffer in registered(m):
        for page, frame in enumerate(buffer.frames, buffer.page):
            pte = m.mm(buffer.mm).ptes.at(BASE_PAGE + page)
            if pte is None or BASE_PAGE + page + pte.delta != frame:
                return f"page {page} is registered, and not mapped any more"
    return None


def counted_wrong(m: Machine, _results: object) -> str | None:
    """Compare the counter with the buffers."""
    pages = sum(len(buffer.frames) for buffer in registered(m))
    counted = REGISTERED.get(m, 1)
    return None if counted == pages else f"registered_vm is {counted}, and {pages} pages are"


REFUSING = replace(
    SHIPPED["linux-6.18"],
    name="refusing",
    summary="munmap fails where a buffer is registered",
    munmap=munmap_unless_registered,
)
REGISTER = OwnOperation(
    name="register", run=register, arguments=("page", "pages"), summary="register a buffer"
)
UNREGISTER = OwnOperation(
    name="unregister", run=unregister, arguments=(), summary="give the buffer back"
)
STAYS_MAPPED = OwnInvariant(
    name="BUFFER_STAYS_MAPPED",
    says="the pages of a registered buffer stay where they are",
    always=unmapped,
    sometimes=lambda m: len(registered(m)) > 0,
)
IS_COUNTED = OwnInvariant(
    name="BUFFERS_ARE_COUNTED",
    says="registered_vm is the number of registered pages",
    at_end=counted_wrong,
)
REGISTERING = Scenario(
    summary="a buffer is registered while another thread unmaps the range",
    map=[InitialMapping((0, 4), populated=(0, 1))],
    task=[
        TaskSpec(["register 0 2 -> 0 EFAULT", "unregister -> 0"], name="driver"),
        TaskSpec(["munmap 0 4 -> 0 EBUSY"], name="munmap"),
    ],
    operations=(REGISTER, UNREGISTER),
    invariants=(STAYS_MAPPED, IS_COUNTED),
)
NO_LOCK = Mutation(
    name="no-buffer-lock",
    summary="munmap looks for buffers without their lock",
    rule=lambda: SkipLock("buffer_lock", write=False),
)
