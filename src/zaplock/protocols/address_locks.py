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
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Literal, TypeVar

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
    SpanDowngrade,
    SpanEnd,
    SpanStep,
    SpanTry,
    holds_range,
    lock_range,
    unlock_range,
)
from zaplock.model.step import Step, Task, step

T = TypeVar("T")

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, Design

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
    if not isinstance(step, LockStep | SpanStep | SpanEnd | SpanTry):
        return 0
    if step.lock[0] not in ADDRESS_LOCKS:
        return 0  # an author's own, say
    if isinstance(step, SpanStep):
        return int(not result)
    if isinstance(step, SpanTry):
        return int(bool(result))
    if isinstance(step, SpanEnd):
        return -1
    if step.action in ("down", "try"):
        return int(bool(result) == (step.action == "try"))
    return -int(step.action == "up")


def exclusive_range(step: Step[Any], mm: int) -> tuple[int, int] | None:
    """Return the addresses of `mm` whose exclusive hold a step begins or ends, None for others."""
    if isinstance(step, SpanStep | SpanEnd):
        _, start, end, write, _ = step.args
        return (start, end) if write and step.lock == ("mmap_lock", mm) else None
    if not isinstance(step, LockStep) or not (step.write or step.action == "downgrade"):
        return None
    kind, number = step.lock
    if kind == TABLE_LOCK and number >> 44 == mm:
        return mapped_by(number >> 40 & 15, number & (1 << 40) - 1)
    return (0, TOP) if step.lock == ("mmap_lock", mm) else None


def under(design: Design, protocol: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
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
        return SpanDowngrade(step.lock)
    if step.action == "up":
        return unlock_range(step.lock, write=step.write)
    if step.action == "try":
        return SpanTry(step.lock, step.write)
    return lock_range(step.lock, write=step.write, killable=step.killable)


def _all(step: LockStep) -> Step[int]:
    """Hold the whole range exclusively."""
    if step.action == "downgrade":
        return stay()
    if step.action == "up":
        return unlock_range(step.lock, piecewise=True)
    if step.action == "try":
        return SpanTry(step.lock, True)
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
