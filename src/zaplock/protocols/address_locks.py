"""What stands in the mmap_lock's place in other systems and in papers, by `Design.locking`.

| locking     | a range of the address space is held by                                           |
|-------------|-----------------------------------------------------------------------------------|
| "rwsem"     | the mmap_lock, as in Linux (a protocol takes it by itself)                        |
| "exclusive" | the mmap_lock, always for write: one big lock                                     |
| "ranges"    | an interval lock; an operation that knows no range takes all of it, in its mode   |
| "slots"     | an interval lock, always exclusive: the locks of all slots of the range           |
| "tables-rw" | page-table pages: shared from the root down, the lowest that covers all for write |
| "tables"    | page-table pages: that one, found without a lock, and all below it                |

`take` and `give` hold a range in the design's way. Linux's own protocols know the mmap_lock only:
under another kind they run through a filter (`under`) that puts a hold of everything in its place.

With "tables" the locks of a subtree are an interval lock over what the covering page maps: two
aligned page-table pages either lie one in the other or map nothing in common, so who holds one
excludes whom it would exclude by locking all below, one after the other. That a page found without
a lock may have been cut out by then (`stray`, and look again) is not told, since it is found anew
by its address here.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Literal

from zaplock.model.flags import PAGE_SHIFT
from zaplock.model.rwsem import (
    Lock,
    LockStep,
    down_read,
    down_write,
    down_write_killable,
    down_write_trylock,
    held,
    up_read,
    up_write,
)
from zaplock.model.spans import (
    TOP,
    SpanEnd,
    SpanStep,
    end_span,
    holds_range,
    lock_range,
    spans_of,
    take_span,
    unlock_range,
)
from zaplock.model.step import Step, Task, step

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, Design, Protocol

Locking = Literal["rwsem", "exclusive", "ranges", "slots", "tables-rw", "tables"]
Steps = Generator[Step[Any], Any, Any]

TABLE_BITS = 9
ROOT = 4
TABLE_LOCK = "pt_page"
"""The class of the locks of page-table pages."""
ADDRESS_LOCKS = ("mmap_lock", TABLE_LOCK)


def table_lock(mm: int, level: int, index: int) -> Lock:
    """Name the lock of a page-table page: which table of its level, 1 the lowest."""
    return (TABLE_LOCK, (mm << 44) + (level << 40) + index)


def covering(start: int, end: int) -> tuple[int, int]:
    """Return (level, index) of the lowest page-table page that maps all of [start, end)."""
    first, last = start >> PAGE_SHIFT, end - 1 >> PAGE_SHIFT
    for level in range(1, ROOT):
        shift = TABLE_BITS * level
        if first >> shift == last >> shift:
            return level, first >> shift
    return ROOT, 0


def mapped_by(level: int, index: int) -> tuple[int, int]:
    """Return the addresses that a page-table page maps; all of them for the root."""
    if level == ROOT:
        return 0, TOP
    shift = TABLE_BITS * level + PAGE_SHIFT
    return index << shift, index + 1 << shift


def path_to(mm: int, start: int, end: int) -> list[Lock]:
    """List the locks from the root down to the page-table page that covers a range."""
    lowest, _ = covering(start, end)
    vpn = start >> PAGE_SHIFT
    levels = range(ROOT, lowest - 1, -1)
    indices = [0 if level == ROOT else vpn >> TABLE_BITS * level for level in levels]
    return [table_lock(mm, level, index) for level, index in zip(levels, indices)]


async def take(
    cx: Cx, mm: int, start: int = 0, end: int = TOP, write: bool = True, killable: bool = False
) -> int:
    """Hold [start, end) of an address space; 0, or -EINTR."""
    locking = cx.design.locking
    lock: Lock = ("mmap_lock", mm)
    if locking == "exclusive":
        return await (down_write_killable(lock) if killable else down_write(lock))
    if locking == "tables-rw":
        *above, lowest = path_to(mm, start, end)
        for each in above:
            await down_read(each)
        await down_write(lowest)
        return 0
    if locking == "tables":
        start, end = mapped_by(*covering(start, end))
    piecewise = locking in ("slots", "tables")
    return await lock_range(lock, start, end, write or piecewise, killable, piecewise)


async def give(cx: Cx, mm: int, start: int = 0, end: int = TOP, write: bool = True) -> None:
    """Give back what `take` with the same arguments took."""
    locking = cx.design.locking
    lock: Lock = ("mmap_lock", mm)
    if locking == "exclusive":
        await up_write(lock)
    elif locking == "tables-rw":
        *above, lowest = path_to(mm, start, end)
        await up_write(lowest)
        for each in reversed(above):
            await up_read(each)
    else:
        if locking == "tables":
            start, end = mapped_by(*covering(start, end))
        piecewise = locking in ("slots", "tables")
        await unlock_range(lock, start, end, write or piecewise, piecewise)


def holds(m: Machine, task: Task, mm: int, start: int, end: int) -> bool:
    """Return whether a task holds all of [start, end) exclusively, by whatever locks."""
    lock: Lock = ("mmap_lock", mm)
    sem = m.locks.get(lock)
    if sem is not None and held(sem, task.tid) == "write":
        return True
    if holds_range(m, task, lock, start, end):
        return True
    tables = [m.locks.get(each) for each in path_to(mm, start, end)]
    return any(table is not None and table.writer == task.tid for table in tables)


def holds_more(step: Step[Any], result: Any) -> int:
    """Return 1 where a step has begun a hold of an address space, -1 where it has ended one."""
    if isinstance(step, SpanStep):
        return int(not result)
    if isinstance(step, SpanEnd):
        return -1
    if not isinstance(step, LockStep) or step.lock[0] not in ADDRESS_LOCKS:
        return 0
    if step.action in ("down", "try"):
        return int(bool(result) == (step.action == "try"))
    return -int(step.action == "up")


def under(design: Design, protocol: Protocol) -> Protocol:
    """Let a protocol run under a design's locks, where those aren't Linux's."""
    if design.locking == "rwsem":
        return protocol
    return _relocked(protocol, _PLACES[design.locking])


@types.coroutine
def _relocked(inner: Any, place: Callable[[LockStep], Step[int]]) -> Steps:
    result: Any = None
    while True:
        try:
            step = inner.send(result)
        except StopIteration as end:
            return end.value
        if isinstance(step, LockStep) and step.lock[0] == "mmap_lock":
            step = place(step)
        result = yield step


def _always_write(step: LockStep) -> Step[int]:
    """Hold the mmap_lock for write, whatever was asked for; a downgrade does nothing."""
    return _exclusively(step, step.lock)


def _exclusively(step: LockStep, lock: Lock) -> Step[int]:
    if step.action == "up":
        return up_write(lock)
    if step.action == "try":
        return down_write_trylock(lock)
    if step.action == "downgrade":
        return stay()
    return down_write_killable(lock) if step.killable else down_write(lock)


def _root(step: LockStep) -> Step[int]:
    """Hold the root page table for write."""
    return _exclusively(step, table_lock(step.lock[1], ROOT, 0))


def _all_in_its_mode(step: LockStep) -> Step[int]:
    """Hold the whole range, shared or exclusively."""
    if step.action == "downgrade":
        return downgrade_range(step.lock)
    if step.action == "up":
        return unlock_range(step.lock, write=step.write)
    if step.action == "try":
        return try_range(step.lock, step.write)
    return lock_range(step.lock, write=step.write, killable=step.killable)


def _all(step: LockStep) -> Step[int]:
    """Hold the whole range exclusively."""
    if step.action == "downgrade":
        return stay()
    if step.action == "up":
        return unlock_range(step.lock, piecewise=True)
    if step.action == "try":
        return try_range(step.lock, True)
    return lock_range(step.lock, killable=step.killable, piecewise=True)


_PLACES: dict[str, Callable[[LockStep], Step[int]]] = {
    "exclusive": _always_write,
    "ranges": _all_in_its_mode,
    "slots": _all,
    "tables": _all,
    "tables-rw": _root,
}


@step
def stay(_m: Machine, _task: Task) -> int:
    """Do nothing: who holds exclusively goes on so."""
    return 0


@step
def try_range(m: Machine, task: Task, lock: Lock, write: bool) -> int:
    """Hold the whole range if nobody else has any of it in a way that conflicts: 1 if so."""
    spans = spans_of(m, lock)
    others = [one for one in (*spans.held, *spans.queue) if one.tid != task.tid]
    if others and (write or any(one.write for one in others)):
        return 0
    take_span(m, task, lock, 0, TOP, write)
    return 1


@step
def downgrade_range(m: Machine, task: Task, lock: Lock) -> int:
    """Turn an exclusive hold of everything into a shared one without a gap."""
    end_span(m, task, lock, 0, TOP, True)
    take_span(m, task, lock, 0, TOP, False)
    return 0
