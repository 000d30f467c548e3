"""Promises that are kept watch on along an operation, not in a state or at its end.

BoundedHold is a promise about time that the checker can state: who holds the mmap_lock, or what
stands in its place (protocols.address_locks), in either mode, neither waits for another task nor
works on a number of pages that has no bound. A protocol keeps it if no interleaving meets a wait
that is not over at once, a lock that somebody else has, or a step that walks over pages, while its
task holds the lock.

DiskApart: who holds the mmap_lock exclusively waits for nobody who waits for I/O.

ReturnMeansGone: what was dying in its range when an unmap first had the lock is gone when it
returns.

NoTrace: a call that fails leaves the map as it was when it had the lock. Only its own exclusive
hold is looked at, since others change the map before and after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zaplock.check.invariants import MapPicture, forbid_trace, picture_of
from zaplock.check.mutations import is_lock
from zaplock.check.scenarios import address_of
from zaplock.model.filters import Rule, Steps, filtered
from zaplock.model.machine import Machine
from zaplock.model.rwsem import Lock, LockStep, held, lock_name
from zaplock.model.spans import SpanStep
from zaplock.model.step import Step, Task, WaitStep, step
from zaplock.model.violations import Invariant, Violation
from zaplock.model.vma import tombstones_over
from zaplock.protocols.address_locks import exclusive_range, holds_more
from zaplock.protocols.design import Cx, Protocol
from zaplock.protocols.tombstones import dying_in

BY_PAGES = frozenset(
    {"zap_pte_range", "copy_ptes", "munlock_vma_pages_all", "move_ptes", "zap_cut_range"}
)
"""Steps whose work grows with the number of pages."""


class BoundedHold(Rule):
    """Watch a task's steps for what may take long while it holds its mmap_lock."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.holds = 0

    def __call__(self, step: Step[Any]) -> Steps:
        if self.holds and not holds_more(step, 0):
            if step.name in BY_PAGES:
                yield by_pages(step.name)
            elif isinstance(step, WaitStep):
                yield over_at_once(step.ready, str(step.channel[0]), step.args)
            elif isinstance(step, LockStep) and step.action == "down":
                yield free_at_once(step.lock, step.write)
        result = yield step
        self.holds += holds_more(step, result)
        return result


@step
def by_pages(_m: Machine, task: Task, name: str) -> None:
    """Report work on pages without a bound."""
    raise Violation(
        Invariant.BOUNDED_HOLD,
        f"{task} does {name} while it holds the mmap_lock",
    )


@step
def over_at_once(
    m: Machine, task: Task, ready: Callable[..., bool], awaited: str, args: tuple[Any, ...]
) -> None:
    """Report a wait that is not over yet."""
    if not ready(m, task, *args):
        raise Violation(
            Invariant.BOUNDED_HOLD, f"{task} waits for {awaited} while it holds the mmap_lock"
        )


@step
def free_at_once(m: Machine, task: Task, lock: Lock, write: bool) -> None:
    """Report a lock that somebody else has."""
    sem = m.locks.get(lock)
    if sem is None or held(sem, task.tid):
        return
    if sem.writer or (write and sem.readers):
        raise Violation(
            Invariant.BOUNDED_HOLD,
            f"{task} waits for {lock_name(lock)} while it holds the mmap_lock",
        )


class DiskApart(Rule):
    """Watch a task for waits, while it is the writer, for readers of a VMA who wait for I/O."""

    def __init__(self, task: Task, mmap_lock: Lock) -> None:
        self.task = task
        self.mmap_lock = mmap_lock

    def __call__(self, step: Step[Any]) -> Steps:
        if isinstance(step, WaitStep) and step.channel[0] == "vma_readers":
            yield no_reader_waits_for_io(self.mmap_lock, step.channel[1])
        return (yield step)


@step
def no_reader_waits_for_io(m: Machine, task: Task, mmap_lock: Lock, handle: int) -> None:
    """Report a reader of a VMA that waits for a page while a writer waits for it."""
    sem = m.locks.get(mmap_lock)
    if sem is None or sem.writer != task.tid:
        return
    for reader in m.vma_readers.get(handle, ()):
        if reader in m.waits_for_io:
            file, page = m.waits_for_io[reader]
            raise Violation(
                Invariant.DISK_APART,
                f"{task} holds the mmap_lock and waits for task {reader}, which waits for "
                f"page {page} of file {file} to be read",
            )


class ReturnMeansGone(Rule):
    """Remember what an unmap saw dying in [first, last) pages, and look for it when it returns."""

    def __init__(self, task: Task, first: int, last: int) -> None:
        self.task = task
        self.range = address_of(first), address_of(last)
        self.seen: tuple[int, ...] | None = None

    def __call__(self, step: Step[Any]) -> Steps:
        result = yield step
        if self.seen is None and is_lock(step, "down", write=True) and not result:
            self.seen = yield dying_in(self.task.mm, *self.range)
        return result

    def at_end(self) -> Steps:
        if self.seen:
            yield none_of_them_dies(self.seen, *self.range)


@step
def none_of_them_dies(m: Machine, task: Task, seen: tuple[int, ...], start: int, end: int) -> None:
    """Report a range that is still torn down although an unmap of it has returned."""
    dying = m.mm(task.mm).dying
    for at in tombstones_over(m.mm(task.mm), start, end):
        if dying[at][1] in seen:
            raise Violation(
                Invariant.RETURN_MEANS_GONE,
                f"{task} has returned from emptying it, but [{at:#x}, {dying[at][0]:#x}) "
                "is still being torn down",
            )


class NoTrace(Rule):
    """Take a picture of what the first exclusive hold is of, at its beginning and at its end."""

    def __init__(self, cx: Cx) -> None:
        self.cx = cx
        self.range = 0, 0
        self.before: MapPicture | None = None
        self.after: MapPicture | None = None

    def __call__(self, step: Step[Any]) -> Steps:
        held = exclusive_range(step, self.cx.mm)
        if held is None:
            return (yield step)
        waits = isinstance(step, SpanStep) or (isinstance(step, LockStep) and step.action == "down")
        if not waits and held == self.range and self.after is None:
            self.after = yield look_at_map(self.cx.mm, *held)
        result = yield step
        if waits and not result and self.before is None:
            self.range = held
            self.before = yield look_at_map(self.cx.mm, *held)
        return result


async def leaving_no_trace(protocol: Protocol, cx: Cx, wanted: int | None = None) -> int:
    """Run a call; if it fails, look whether it has left the map as it was.

    wanted: what it returns where it does not fail, None for anything that is not negative.
    """
    watch = NoTrace(cx)
    result: int = await filtered(protocol, watch)
    failed = result < 0 or (wanted is not None and result != wanted)
    if failed and watch.before is not None and watch.after is not None:
        await compare_maps(cx.mm, watch.before, watch.after)
    return result


@step
def look_at_map(m: Machine, _task: Task, mm: int, low: int, high: int) -> MapPicture:
    """Take a picture of a range of a map."""
    return picture_of(m, mm, low, high)


@step
def compare_maps(_m: Machine, task: Task, mm: int, before: MapPicture, after: MapPicture) -> None:
    """Report what a call that failed has changed."""
    try:
        forbid_trace(mm, before, after)
    except Violation as violation:
        raise Violation(
            violation.invariant, f"{task} returns an error, but {violation.message}"
        ) from None
