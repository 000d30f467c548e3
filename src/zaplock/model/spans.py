"""Interval locks: holds of ranges of a key space, shared or exclusive.

Two holds conflict where they overlap and one of them is exclusive. Who has to wait stands behind
all that came before and conflict with it, and before nobody else: first come, first served among
those in conflict. Where a lock is many locks that are taken one by one (`piecewise`: slots from
left to right), who waits has what lies before the first conflict already, and is in nobody's way
behind it. A lock is named as any other, ("mmap_lock", mm); an author's own by its LockClass.

All three engines know it as a wait and a release (`take_span`, `end_span`). The exhaustive engine
has the queue under the fair rule, and lets any waiter be next under the other. In weak memory it
orders what is done under it as one lock does, also for ranges that are apart: the tree of ranges is
behind a spinlock.

Sources: the range locks of Bueso and Dufour for the mmap_lock (2017, 2018), Kogan, Dice and Issa,
"Scalable Range Locks for Scalable Address Spaces and Beyond" (EuroSys 2020, arXiv 2006.12144).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from zaplock.model import words
from zaplock.model.rwsem import Lock, lock_name
from zaplock.model.step import Step, Task, WaitStep
from zaplock.model.violations import Invariant, Violation

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

TOP = 1 << 63
"""Behind every address: [0, TOP) is all of a key space."""


class LockedSpan(msgspec.Struct, frozen=True):
    """A hold of [start, end), or the wish for one."""

    tid: int
    start: int
    end: int
    write: bool
    piecewise: bool = False

    def conflicts(self, other: LockedSpan) -> bool:
        """Return whether two tasks can't have these at once."""
        overlap = self.start < other.end and other.start < self.end
        return overlap and (self.write or other.write) and self.tid != other.tid

    def meets(self, held: tuple[LockedSpan, ...]) -> bool:
        """Return whether one of these is in its way."""
        return any(self.conflicts(span) for span in held)


class Spans(msgspec.Struct, frozen=True):
    """Who holds what of one lock, and who waits for what in the order in which they came."""

    held: tuple[LockedSpan, ...] = ()
    queue: tuple[LockedSpan, ...] = ()


NOTHING = Spans()


class SpanStep(WaitStep[int]):
    """Wait for a hold of a range; the result is 0, or -EINTR where `killable` and killed."""

    __slots__ = ("lock", "write")

    def __init__(
        self, lock: Lock, start: int, end: int, write: bool, killable: bool, piecewise: bool
    ) -> None:
        super().__init__(
            take_span, (lock, start, end, write, piecewise), _is_free, ("span", *lock), killable,
            announce=_queue_up, withdraw=_leave_queue,
        )  # fmt: skip
        self.lock = lock
        self.write = write

    def __repr__(self) -> str:
        lock, start, end, write, _ = self.args
        return f"lock_range({lock_name(lock)}, {range_of(start, end)}, {_mode(write)})"


class SpanEnd(Step[int]):
    """End the task's hold of exactly this range."""

    __slots__ = ("lock", "write")

    def __init__(self, lock: Lock, start: int, end: int, write: bool, piecewise: bool) -> None:
        super().__init__(end_span, (lock, start, end, write, piecewise))
        self.lock = lock
        self.write = write

    def __repr__(self) -> str:
        lock, start, end, write, _ = self.args
        return f"unlock_range({lock_name(lock)}, {range_of(start, end)}, {_mode(write)})"


class SpanTry(Step[int]):
    """Hold everything if nobody else has, or waits for, what conflicts with that: 1 if so."""

    __slots__ = ("lock", "write")

    def __init__(self, lock: Lock, write: bool) -> None:
        super().__init__(try_span, (lock, write))
        self.lock = lock
        self.write = write

    def __repr__(self) -> str:
        return f"try_range({lock_name(self.lock)}, all, {_mode(self.write)})"


class SpanDowngrade(Step[int]):
    """Turn an exclusive hold of everything into a shared one without a gap."""

    __slots__ = ("lock",)

    write = False
    """What is held then."""

    def __init__(self, lock: Lock) -> None:
        super().__init__(downgrade_span, (lock,))
        self.lock = lock

    def __repr__(self) -> str:
        return f"downgrade_range({lock_name(self.lock)}, all)"


SpanSteps = SpanStep | SpanEnd | SpanTry | SpanDowngrade


def range_of(start: int, end: int) -> str:
    """Write a range of keys."""
    return "all" if (start, end) == (0, TOP) else f"{start:#x}, {end:#x}"


def _mode(write: bool) -> str:
    return "W" if write else "R"


def lock_range(
    lock: Lock,
    start: int = 0,
    end: int = TOP,
    write: bool = True,
    killable: bool = False,
    piecewise: bool = False,
) -> SpanStep:
    """Wait until no conflicting hold is left, and hold [start, end)."""
    return SpanStep(lock, start, end, write, killable, piecewise)


def unlock_range(
    lock: Lock, start: int = 0, end: int = TOP, write: bool = True, piecewise: bool = False
) -> SpanEnd:
    """Give [start, end) back, as it was taken."""
    return SpanEnd(lock, start, end, write, piecewise)


def spans_of(m: Machine, lock: Lock) -> Spans:
    """Return the state of an interval lock."""
    found: Spans = m.spans.get(lock, NOTHING)
    return found


def _has(wish: LockedSpan, held: tuple[LockedSpan, ...]) -> LockedSpan:
    """Return what a waiter keeps others from: all that it wants, or what it has of it so far."""
    if not wish.piecewise:
        return wish
    borders = [span.start for span in held if wish.conflicts(span)]
    return msgspec.structs.replace(wish, end=min([wish.end, *borders]))


def _is_free(
    m: Machine, task: Task, lock: Lock, start: int, end: int, write: bool, _piecewise: bool
) -> bool:
    wish, spans = LockedSpan(task.tid, start, end, write), spans_of(m, lock)
    if wish.meets(spans.held):
        return False
    for waiter in spans.queue:
        if waiter.tid == task.tid:
            return True
        if wish.conflicts(_has(waiter, spans.held)):
            return False
    return True


def take_span(
    m: Machine, task: Task, lock: Lock, start: int, end: int, write: bool, piecewise: bool = False
) -> int:
    """Hold a range that is free: one word of all, or of its own where it is taken piecewise."""
    spans = spans_of(m, lock)
    held = (*spans.held, LockedSpan(task.tid, start, end, write))
    queue = tuple(span for span in spans.queue if span.tid != task.tid)
    m.spend("lock")
    m.touch(task, *lock, start if piecewise else 0)
    m.spans.put(lock, Spans(tuple(sorted(held, key=_order)), queue))
    words.lock_taken(m, task.tid, lock)
    return 0


def _order(span: LockedSpan) -> tuple[int, int, int, bool]:
    return span.tid, span.start, span.end, span.write


def _queue_up(
    m: Machine, task: Task, lock: Lock, start: int, end: int, write: bool, piecewise: bool
) -> None:
    spans, wish = spans_of(m, lock), LockedSpan(task.tid, start, end, write, piecewise)
    m.spans.put(lock, Spans(spans.held, (*spans.queue, wish)))


def _leave_queue(m: Machine, task: Task, lock: Lock, *_wish: int) -> None:
    spans = spans_of(m, lock)
    queue = tuple(span for span in spans.queue if span.tid != task.tid)
    m.spans.put(lock, Spans(spans.held, queue))
    m.wake(("span", *lock))


def end_span(
    m: Machine, task: Task, lock: Lock, start: int, end: int, write: bool, piecewise: bool = False
) -> int:
    """Give a range back; one that the task does not hold so is a violation."""
    hold, spans = LockedSpan(task.tid, start, end, write), spans_of(m, lock)
    held = list(spans.held)
    if hold not in held:
        raise Violation(
            Invariant.LOCK_MODE,
            f"{task} gives {range_of(start, end)} of {lock_name(lock)} back "
            "and does not hold it so",
        )
    held.remove(hold)
    words.lock_left(m, task.tid, lock)
    m.spend("unlock")
    m.touch(task, *lock, start if piecewise else 0)
    if held or spans.queue:
        m.spans.put(lock, Spans(tuple(held), spans.queue))
    else:
        m.spans.drop(lock)
    m.wake(("span", *lock))
    return 0


def try_span(m: Machine, task: Task, lock: Lock, write: bool) -> int:
    """Hold everything if nobody else has any of it in a way that conflicts: 1 if so."""
    spans = spans_of(m, lock)
    others = [one for one in (*spans.held, *spans.queue) if one.tid != task.tid]
    if others and (write or any(one.write for one in others)):
        return 0
    take_span(m, task, lock, 0, TOP, write)
    return 1


def downgrade_span(m: Machine, task: Task, lock: Lock) -> int:
    """Turn an exclusive hold of everything into a shared one without a gap."""
    end_span(m, task, lock, 0, TOP, True)
    take_span(m, task, lock, 0, TOP, False)
    return 0


def holds_range(m: Machine, task: Task, lock: Lock, start: int, end: int) -> bool:
    """Return whether a task holds all of [start, end) exclusively, by one hold."""
    return any(
        span.tid == task.tid and span.write and span.start <= start and end <= span.end
        for span in spans_of(m, lock).held
    )
