"""userfaultfd: a monitor that answers faults and is told when its ranges go.

A context is a number. `m.uffd_events[context]` is the queue of what its monitor has not read
yet: ("fault", address, tid) and ("unmap", start, end, tid). Who caused an unmap event waits until
the monitor has read it; who caused a fault waits until the monitor has answered it. The monitor
needs the mmap_lock for read to answer (UFFDIO_COPY; from 6.9 on only where a writer has the VMA, or
it has no anon_vma), which is why the event must be delivered after the unlock.

Sources: fs/userfaultfd.c; unmap events since 4.11 (897ab3e0c49e).
"""

from __future__ import annotations

from errno import EINVAL, ENOENT
from typing import TYPE_CHECKING, Any

from zaplock.model.flags import (
    PAGE_SHIFT,
    VM_UFFD_FLAGS,
    VM_UFFD_WP,
)
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.step import Step, Task, WaitStep, step
from zaplock.model.vma import (
    change,
    overlapping,
    vma_of,
)
from zaplock.protocols.uffd_fill import uffdio_copy_page
from zaplock.protocols.uffd_range import is_range, uffd_wp_range

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents

Event = tuple[Any, ...]


@step
def userfaultfd_unmap_prep(
    m: Machine, task: Task, handles: tuple[int, ...], start: int, end: int
) -> tuple[tuple[int, int, int], ...]:
    """List the (context, start, end) whose monitors are to be told of an unmap, one per context."""
    contexts: dict[int, None] = {}
    for handle in handles:
        vma = vma_of(m, task, handle)
        if vma.uffd and m.uffd_modes.get(vma.uffd) == "unmap":
            contexts[vma.uffd] = None
    m.spend("userfaultfd_event", len(contexts))
    return tuple((context, start, end) for context in contexts)


async def userfaultfd_unmap_complete(cx: Cx, events: UnmapEvents) -> None:
    """Tell each monitor, and wait until it has read so."""
    for context, start, end in events:
        await post_event(context, ("unmap", start, end, cx.task.tid))
        await event_read(context, ("unmap", start, end, cx.task.tid))


@step
def post_event(m: Machine, _task: Task, context: int, event: Event) -> None:
    """Queue an event for a monitor."""
    queue = m.uffd_events.get(context, ())
    m.uffd_events.put(context, (*queue, event))
    m.wake(("uffd", context))


def event_read(context: int, event: Event) -> Step[None]:
    """Wait until the monitor has read an event; over at once if there is no monitor any more."""
    return WaitStep(_nothing, (context, event), _is_read, ("uffd_read", context))


def _nothing(m: Machine, task: Task, context: int, event: Event) -> None:
    return None


def _is_read(m: Machine, task: Task, context: int, event: Event) -> bool:
    return event not in m.uffd_events.get(context, ())


def next_event(context: int) -> Step[Event]:
    """Wait for the next event of a context and take it from the queue (read() of the fd)."""
    return WaitStep(_take, (context,), _has_event, ("uffd", context), killable=True)


def _has_event(m: Machine, task: Task, context: int) -> bool:
    return bool(m.uffd_events.get(context))


def _take(m: Machine, task: Task, context: int) -> Event:
    queue = m.uffd_events.get(context, ())
    if not queue:
        return ("closed",)
    rest = queue[1:]
    if rest:
        m.uffd_events.put(context, rest)
    else:
        m.uffd_events.drop(context)
    if queue[0][0] == "fault":
        m.uffd_faults.put((queue[0][1], queue[0][2]), context)
    m.wake(("uffd_read", context))
    taken: Event = queue[0]
    return taken


@step
def close_monitor(m: Machine, _task: Task, context: int) -> None:
    """Close the userfaultfd: everybody who waits for its monitor goes on."""
    if context in m.uffd_events:
        m.uffd_events.drop(context)
    m.uffd_modes.put(context, "closed")
    m.wake(("uffd_read", context))


async def handle_userfault(cx: Cx, context: int, address: int) -> None:
    """Ask the monitor for a page and wait until it has answered; no lock is held."""
    page = address >> PAGE_SHIFT << PAGE_SHIFT
    await post_event(context, ("fault", page, cx.task.tid))
    await fault_answered(context, page, cx.task.tid)


def fault_answered(context: int, page: int, tid: int) -> Step[None]:
    """Wait until the monitor has woken this fault."""
    return WaitStep(
        _nothing3, (context, page, tid), _answered, ("uffd_read", context), killable=True
    )


def _nothing3(m: Machine, task: Task, context: int, page: int, tid: int) -> None:
    return None


def _answered(m: Machine, task: Task, context: int, page: int, tid: int) -> bool:
    queued = ("fault", page, tid) in m.uffd_events.get(context, ())
    return not queued and (page, tid) not in m.uffd_faults


async def monitor(cx: Cx, context: int, tag: int, nr_events: int) -> int:
    """Be a monitor: answer faults with pages that hold `tag`, take note of unmaps.

    Ends after `nr_events` events; returns how many unmaps it was told of.
    """
    unmaps = 0
    for _ in range(nr_events):
        event = await next_event(context)
        if event[0] == "fault":
            await uffdio_copy_page(cx, event[1], tag, 0)
            await wake_fault(context, event[1], event[2])
        elif event[0] == "unmap":
            unmaps += 1
    await close_monitor(context)
    return unmaps


UFFDIO_WRITEPROTECT_MODE_WP, UFFDIO_WRITEPROTECT_MODE_DONTWAKE = 1, 2


async def uffdio_writeprotect(cx: Cx, start: int, length: int, mode: int) -> int:
    """UFFDIO_WRITEPROTECT: let writes to pages fault, or no longer; 0 or an errno.

    -ENOENT at the first mapping whose writes nobody watches; what came before it is done. Before
    6.3 the whole range has to lie in one mapping.
    """
    both = UFFDIO_WRITEPROTECT_MODE_WP | UFFDIO_WRITEPROTECT_MODE_DONTWAKE
    if not is_range(cx, start, length) or not 0 <= mode < both:
        return -EINVAL
    await down_read(cx.mmap_lock)
    protects = bool(mode & UFFDIO_WRITEPROTECT_MODE_WP)
    across = cx.design.uffd_protects_across
    result = await mwriteprotect_range(cx.mm, start, start + length, protects, across)
    await up_read(cx.mmap_lock)
    return result


@step
def mwriteprotect_range(
    m: Machine, task: Task, mm: int, start: int, end: int, protects: bool, across: bool
) -> int:
    """Write-protect what is mapped in a range, or no longer: 0 or -ENOENT.

    across: the range may cover several mappings, and what is no mapping's.
    """
    handles = overlapping(m, m.mm(mm), start, end)
    if handles and not across:
        vma = vma_of(m, task, handles[0])
        if start < vma.start or end > vma.end:
            return -ENOENT
    for handle in handles:
        vma = vma_of(m, task, handle)
        if not vma.flags & VM_UFFD_WP:
            return -ENOENT
        uffd_wp_range(m, task, vma, max(start, vma.start), min(end, vma.end), protects)
    return 0 if handles else -ENOENT


@step
def wake_fault(m: Machine, _task: Task, context: int, page: int, tid: int) -> None:
    """Let the task go on that waits for an answer (UFFDIO_WAKE)."""
    if (page, tid) in m.uffd_faults:
        m.uffd_faults.drop((page, tid))
    m.wake(("uffd_read", context))


@step
def set_uffd(m: Machine, task: Task, handle: int, context: int, flags: int) -> None:
    """Register a VMA with a context (or, with 0, unregister it)."""
    vma = vma_of(m, task, handle)
    m.vmas.put(handle, change(vma, uffd=context, flags=(vma.flags & ~VM_UFFD_FLAGS) | flags))


def open_userfaultfd(m: Machine, context: int, tells_unmaps: bool) -> None:
    """Make a context before a run starts."""
    m.uffd_modes.put(context, "unmap" if tells_unmaps else "none")
