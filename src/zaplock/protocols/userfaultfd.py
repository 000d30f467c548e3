"""userfaultfd: a monitor that answers faults and is told when its ranges go.

A context is a number. `m.uffd_events[context]` is the queue of what its monitor has not read
yet: ("fault", address, tid) and ("unmap", start, end, tid). Who caused an unmap event waits until
the monitor has read it; who caused a fault waits until the monitor has answered it. The monitor
needs the mmap_lock for read to answer (UFFDIO_COPY), which is why the event must be delivered after
the unlock.

Sources: fs/userfaultfd.c; unmap events since 4.11 (897ab3e0c49e).
"""

from __future__ import annotations

from errno import EAGAIN, EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from zaplock.model.dirty import note_written
from zaplock.model.files import cached_frame, fill_cache
from zaplock.model.flags import (
    PAGE_SHIFT,
    PAGE_SIZE,
    VM_ACCESS_FLAGS,
    VM_HUGETLB,
    VM_SHARED,
    VM_UFFD_FLAGS,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
    VM_WRITE,
)
from zaplock.model.frames import alloc_frames, change_frames
from zaplock.model.mm import Pte
from zaplock.model.pagetable import HUGE, alloc_tables, install
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.step import Step, Task, WaitStep, step
from zaplock.model.vma import (
    Vma,
    anon_vma_prepare,
    change,
    lookup,
    overlapping,
    read_vma,
    vma_of,
)
from zaplock.protocols.locking import lock_vma_under_rcu, vma_end_read
from zaplock.protocols.table_walk import vma_lookup
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
            await uffdio_copy(cx, cx.mm, event[1], tag)
            await wake_fault(context, event[1], event[2])
        elif event[0] == "unmap":
            unmaps += 1
    await close_monitor(context)
    return unmaps


async def uffdio_copy(cx: Cx, mm: int, address: int, tag: int) -> int:
    """Put a page that holds `tag` at an address (UFFDIO_COPY), under the mmap_lock for read."""
    await down_read(("mmap_lock", mm))
    result = await mcopy_atomic(mm, address, tag)
    await up_read(("mmap_lock", mm))
    return result


@step
def mcopy_atomic(m: Machine, task: Task, mm: int, address: int, tag: int) -> int:
    """Find the registered VMA and map a filled page: 0, -ENOENT or -EEXIST."""
    space = m.mm(mm)
    handle = lookup(m, space, address)
    if not handle:
        return -ENOENT
    vma = vma_of(m, task, handle)
    if vma.start > address or not vma.flags & VM_UFFD_MISSING:
        return -ENOENT
    return fill_page(m, task, vma, address >> PAGE_SHIFT, Fill("copy", tag))


class Fill(NamedTuple):
    """What a monitor puts into pages, and by which rules of its kernel's.

    kind: "copy" (pages that hold `tag`), "zeros", "continue" (what the file has there) or "poison".
    protects: write-protected at once. finds_end: the end of a file is looked at with a page in hand
    (see `fill_page`). sizes_devices: a copy is held against a device's size, too, which is none.
    over: the kinds of markers in whose place a page may be put.
    """

    kind: Literal["copy", "zeros", "continue", "poison"]
    tag: int = 0
    protects: bool = False
    finds_end: bool = True
    sizes_devices: bool = True
    over: tuple[str, ...] = ()


def fill_page(m: Machine, task: Task, vma: Vma, vpn: int, fill: Fill) -> int:
    """Fill a page of a watched VMA: 0 or a negative errno.

    In a private mapping that is a page of one's own or the zero page; in a shared one the file gets
    it (mfill_atomic_pte, shmem_mfill_atomic_pte). Beyond the end of a file there is none: -ENOMEM,
    or -EFAULT from a kernel that `finds_end` only when it has a page. UFFDIO_CONTINUE maps the page
    that the file has there: -EFAULT where it has none, and beyond its end -EFAULT or, from such a
    kernel, -EINVAL. Poison is put where nothing is at all, not even a marker.
    """
    space, pte = m.mm(vma.mm), m.mm(vma.mm).ptes.at(vpn)
    if pte is not None and pte.kind in HUGE:
        return -EEXIST
    alloc_tables(m, task, space, vpn, vpn + 1)
    pgoff = vma.pgoff_of(vpn << PAGE_SHIFT)
    size = m.files[vma.file].size if vma.file else 0
    in_file = vma.flags & VM_SHARED
    taken = pte is not None and pte.kind not in fill.over
    if fill.kind == "continue":
        return _continue_page(m, task, vma, vpn, pgoff, taken, fill)
    sized = vma.file or (vma.name and (fill.sizes_devices or fill.kind != "copy"))
    if sized and pgoff >= -(-size >> PAGE_SHIFT):  # a device has no size
        no_page = in_file and not fill.finds_end and fill.kind != "poison"
        return -ENOMEM if no_page else -EFAULT
    writable, closed = bool(vma.flags & VM_WRITE), not vma.flags & VM_ACCESS_FLAGS
    if fill.kind == "poison" or (fill.kind == "zeros" and not in_file):
        if pte is not None:
            return -EEXIST
        kind = "poison" if fill.kind == "poison" else "zero"
        install(m, task, space, vpn, vpn + 1, Pte(kind, 0, False, closed and kind == "zero"))
        return 0
    if taken or (in_file and m.page_cache(vma.file).at(pgoff) is not None):
        return -EEXIST
    if in_file:
        pfn = fill_cache(m, task, vma.file, pgoff, pgoff + 1)
        change_frames(m, task, pfn, pfn + 1, refs=1)
        note_written(m, pfn, pfn + 1)
    else:
        pfn = alloc_frames(m, task, "anon", 1)
    if fill.tag:
        m.content.set(pfn, pfn + 1, fill.tag)
    kind = "shmem" if in_file else "anon"
    pte = Pte(kind, pfn - vpn, writable and not fill.protects, closed, fill.protects)
    install(m, task, space, vpn, vpn + 1, pte)
    return 0


def _continue_page(
    m: Machine, task: Task, vma: Vma, vpn: int, pgoff: int, taken: bool, fill: Fill
) -> int:
    """Map a page of a file in memory, in a private mapping for reading only."""
    if pgoff >= -(-m.files[vma.file].size >> PAGE_SHIFT):
        return -EINVAL if fill.finds_end else -EFAULT
    if m.page_cache(vma.file).at(pgoff) is None:
        return -EFAULT
    pfn = cached_frame(m, task, vma.file, pgoff)
    if taken:
        return -EEXIST
    change_frames(m, task, pfn, pfn + 1, refs=1)
    note_written(m, pfn, pfn + 1)  # so reclaim writes it (mfill_atomic_install_pte)
    writable = vma.flags & (VM_WRITE | VM_SHARED) == VM_WRITE | VM_SHARED
    closed = not vma.flags & VM_ACCESS_FLAGS
    pte = Pte("shmem", pfn - vpn, writable and not fill.protects, closed, fill.protects)
    install(m, task, m.mm(vma.mm), vpn, vpn + 1, pte)
    return 0


UFFDIO_DONTWAKE, UFFDIO_WP = 1, 2


async def uffdio_copy_page(cx: Cx, start: int, tag: int, mode: int) -> int:
    """UFFDIO_COPY of a page that holds `tag`, as of 6.9; 0 or an errno."""
    return await _fill_range(cx, start, PAGE_SIZE, mode, UFFDIO_WP, Fill("copy", tag))


async def uffdio_zeropage(cx: Cx, start: int, length: int, mode: int) -> int:
    """UFFDIO_ZEROPAGE; 0 or an errno."""
    return await _fill_range(cx, start, length, mode, 0, Fill("zeros"))


async def uffdio_continue(cx: Cx, start: int, length: int, mode: int) -> int:
    """UFFDIO_CONTINUE: map what a file in memory has already; 0 or an errno."""
    modes = UFFDIO_WP if cx.design.uffd_continues_protected else 0
    return await _fill_range(cx, start, length, mode, modes, Fill("continue"))


async def uffdio_poison(cx: Cx, start: int, length: int, mode: int) -> int:
    """UFFDIO_POISON: from now on whoever touches these pages dies; 0 or an errno."""
    if not cx.design.uffd_poison:
        return -EINVAL
    return await _fill_range(cx, start, length, mode, 0, Fill("poison"))


async def _fill_range(cx: Cx, start: int, length: int, mode: int, modes: int, fill: Fill) -> int:
    """Fill a range; `modes`: what may be asked for besides UFFDIO_DONTWAKE. 0 or an errno.

    From 6.9 on under the VMA's lock, or where it first needs an anon_vma, under the mmap_lock, and
    it gets that before anybody asks whether it is watched. Before, always under the mmap_lock, and
    only what can be filled gets one. Where only a part could be filled: -EAGAIN.
    """
    if not is_range(cx, start, length) or mode & ~(UFFDIO_DONTWAKE | modes):
        return -EINVAL
    first, fill = cx.design.uffd_prepares_first, fill._replace(protects=bool(mode & UFFDIO_WP))
    handle = await lock_vma_under_rcu(cx.mm, start) if first else 0
    if handle and lacks_anon_vma(await read_vma(handle)):
        await vma_end_read(handle)
        handle = 0
    by_vma = bool(handle)
    if not by_vma:
        await down_read(cx.mmap_lock)
        handle = await vma_lookup(cx.mm, start)
        lacks = handle and lacks_anon_vma(await read_vma(handle))
        if lacks and (first or not await unfillable(handle, start, length, fill)):
            await anon_vma_prepare(handle)
    by_rules = fill._replace(
        finds_end=cx.design.uffd_beyond_end == "EFAULT",
        sizes_devices=cx.design.uffd_sizes_devices,
        over=("poison", "uffd_wp", "guard")[: 3 if cx.design.uffd_fills_guards else 2],
    )
    filled = await fill_range(handle, start, length, by_rules) if handle else -ENOENT
    await (vma_end_read(handle) if by_vma else up_read(cx.mmap_lock))
    return 0 if filled == length else -EAGAIN if filled > 0 else filled


def lacks_anon_vma(vma: Vma) -> bool:
    """Return whether a private mapping has no anon_vma yet."""
    return not vma.flags & VM_SHARED and not vma.anon_vma


def refused_fill(m: Machine, vma: Vma, start: int, length: int, fill: Fill) -> int:
    """Return why nothing of a range can be filled, 0 where it can."""
    if start + length > vma.end or not vma.uffd:
        return -ENOENT
    if fill.protects and not vma.flags & VM_UFFD_WP:
        return -EINVAL
    if vma.flags & VM_HUGETLB and (fill.kind == "zeros" or (start | length) % vma.huge_size):
        return -EINVAL
    if fill.kind == "continue" and (not vma.file or m.files[vma.file].kind != "shmem"):
        return -EINVAL
    return 0


@step
def unfillable(m: Machine, task: Task, handle: int, start: int, length: int, fill: Fill) -> int:
    """Return the errno with which a fill of a range ends before it begins, or 0."""
    return refused_fill(m, vma_of(m, task, handle), start, length, fill)


@step
def fill_range(m: Machine, task: Task, handle: int, start: int, length: int, fill: Fill) -> int:
    """Fill pages of a watched VMA up to the first that can't be; bytes, or a negative errno."""
    vma = vma_of(m, task, handle)
    if error := refused_fill(m, vma, start, length, fill):
        return error
    for done in range(0, length, PAGE_SIZE):
        error = fill_page(m, task, vma, start + done >> PAGE_SHIFT, fill)
        if error:
            return done or error
    return length


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
