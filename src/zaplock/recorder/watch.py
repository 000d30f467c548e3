"""The always-on detector: nothing is recorded until somebody waits too long for the target's lock.

`lock:contention_begin` (5.19) is written by a task that queues for a lock, so it costs nothing
while nobody waits. The kernel filters it to the rwsem inside the target's mm_struct, whoever waits
for it. Here the waits that it tells are timed; as soon as one is too old, also before it has ended,
everything else is switched on, and what follows is a recording like any other.

A wait that was in the queue before the other events came on has no ASKED event; its
CONTENTION_BEGIN says the same (the lock, the mode, the task, the time), so its ASKED is made from
that. Where it was over before they came on, as on a busy machine, its ACQUIRED is made from its
CONTENTION_END. So the report shows the very wait that woke the recorder.

While it watches, the kernel tells the names of the target's own tasks alone; a stranger's is looked
up when it queues. So a machine that starts a thousand processes a second wakes nobody here.

Not seen: a writer that spins for the lock outside the queue (it does so while a writer that has
the lock is on a cpu); what a target does after an exec, since its lock is then another one (the
agent watches that anew). What the first holder had begun to do before it was noticed is not known;
a system call is known when it returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zaplock.recorder.buffers import Buffers
from zaplock.recorder.capture import Capture
from zaplock.recorder.decode import Columns, merged, nothing
from zaplock.recorder.filters import LOCK_WITHIN
from zaplock.recorder.flight_limits import Fired
from zaplock.recorder.initial_look import first_look
from zaplock.recorder.initial_rows import rows
from zaplock.recorder.naming import TaskNames
from zaplock.recorder.snapshot import look
from zaplock.recorder.stream import MARGIN_NS, Stream
from zaplock.trace.events import (
    EVENT,
    HOLD_UNSEEN,
    IN_PART,
    NO_OP,
    EventKind,
    FoundTask,
)

_IDLE_MS = 250
_LEAST_PAUSE_NS, _MOST_PAUSE_NS = 5_000_000, 50_000_000
MEMORY_NS = 10 * 10**9
"""So long who has ended is remembered, and a stranger who queued."""
_ALL = 1 << 62
_WRITE = 4
"""LCB_F_WRITE."""


class Queued(NamedTuple):
    """Since when who is in the queue, and whether it asks exclusively.

    Where it was `found` there it has waited longer than is known, or it spins.
    """

    since_ns: int
    tid: int
    exclusive: bool
    found: bool = False


class Lasted(NamedTuple):
    """How long a wait lasted, which it was, and whether it got the lock in the end."""

    lasted_ns: int
    queued: Queued
    got: bool

    @property
    def end(self) -> Queued:
        """Return it as it was when it left the queue."""
        return self.queued._replace(since_ns=self.queued.since_ns + self.lasted_ns)


class WatchedQueue:
    """Who is in the queue of the target's lock, by its contention events."""

    def __init__(self) -> None:
        self._inside: dict[int, Queued] = {}
        self.ended: list[Lasted] = []
        """The waits of which the last events told the end."""
        self._late_again: dict[Queued, int] = {}
        """How long the waits that were told already must last to be told again."""

    def begin_with(self, found: Iterable[FoundTask]) -> None:
        """Keep who is found waiting, also those of whom no event has told, and nobody else."""
        waiting = [task for task in found if task.does == "waits" and task.mm]
        new = {t.tid: Queued(t.since_ns, t.tid, t.exclusive, True) for t in waiting}
        self._inside = {tid: self._inside.get(tid, one) for tid, one in new.items()}
        self._forget_told()

    @property
    def found(self) -> set[int]:
        """Return the threads that were found there and are so still."""
        return {one.tid for one in self._inside.values() if one.found}

    def tell(self, now_ns: int) -> None:
        """Say that everybody knows of those who wait: they are late again after twice as long."""
        self._late_again = {one: 2 * (now_ns - one.since_ns) for one in self._inside.values()}

    def _patience_ns(self, one: Queued, limit_ns: int) -> int:
        """Return how long a wait must last to be told: who had just come when all was told, too."""
        return max(limit_ns, self._late_again.get(one, 0))

    def _forget_told(self) -> None:
        inside = set(self._inside.values())
        self._late_again = {one: ns for one, ns in self._late_again.items() if one in inside}

    def take(self, columns: Columns) -> list[Lasted]:
        """Follow the events, in order of time; return the waits that ended."""
        kinds = (columns["kind"] == EventKind.CONTENTION_BEGIN) | (
            columns["kind"] == EventKind.CONTENTION_END
        )
        ended = []
        for row in np.flatnonzero(kinds).tolist():
            tid, time_ns = int(columns["tid"][row]), int(columns["time_ns"][row])
            if columns["kind"][row] == EventKind.CONTENTION_BEGIN:
                exclusive = bool(int(columns["detail"][row]) & _WRITE)
                self._inside[tid] = Queued(time_ns, tid, exclusive)
            elif one := self._inside.pop(tid, None):
                ended.append(Lasted(time_ns - one.since_ns, one, int(columns["result"][row]) == 0))
        return ended

    def late(self, columns: Columns, known_ns: int, limit_ns: int, mm: int) -> Fired | None:
        """Take events; return the wait that lasted `limit_ns` by then, the longest, or None.

        known_ns: up to where the events are complete. A wait whose end is not among them lasts
        until then at least; it may be over since.
        """
        self.ended = self.take(columns) if len(columns["time_ns"]) else []
        lasting = [Lasted(known_ns - one.since_ns, one, False) for one in self._inside.values()]
        late = [
            one
            for one in (*self.ended, *lasting)
            if one.lasted_ns >= self._patience_ns(one.queued, limit_ns)
        ]
        self._forget_told()
        if not late:
            return None
        longest = max(late, key=lambda one: one.lasted_ns)
        queued = longest.queued
        return Fired("wait", queued.tid, mm, queued.since_ns, longest.lasted_ns, queued.exclusive)

    def confirms(self, fired: Fired, seen: Iterable[FoundTask]) -> bool:
        """Say whether a wait is one; `seen` are the tasks as they are now, of all processes.

        Who was only found waiting may have spun for the lock, which no event ends: if it is not
        seen waiting again, it is through, and forgotten.
        """
        if fired.tid not in self.found:
            return True
        if any(task.tid == fired.tid and task.does == "waits" for task in seen):
            return True
        self._inside.pop(fired.tid, None)
        return False

    def due_ns(self, limit_ns: int) -> int:
        """Return when the oldest wait is too old, if it stays; far off where nobody waits."""
        due = (one.since_ns + self._patience_ns(one, limit_ns) for one in self._inside.values())
        return min(due, default=_ALL)

    @property
    def waiting(self) -> set[int]:
        """The tasks that are in the queue."""
        return set(self._inside)

    def before(self, time_ns: int) -> list[Queued]:
        """List those who are in the queue since before an instant."""
        return sorted(one for one in self._inside.values() if one.since_ns < time_ns)


@dataclass(frozen=True, slots=True)
class Noticed:
    """What a watch noticed: the wait, the first events, and when the lock events were all on.

    `found` are the tasks as they were found then; `hidden` threads of ours.
    """

    fired: Fired
    first: Columns
    on_ns: int
    found: tuple[FoundTask, ...]
    hidden: tuple[int, ...]


def watch(
    capture: Capture,
    names: TaskNames,
    limit_ns: int,
    ended: Callable[[], bool],
    operations: list[str],
) -> Noticed | None:
    """Wait until a task has waited `limit_ns` for the target's lock, then switch everything on.

    Whoever waits already when the watch begins is found by a look at the tasks. `ended` is asked at
    least four times a second; None where it came first. `operations` are the recording's; what a
    look finds may be added to them.
    """
    stream, queue = Stream(capture.layouts, names), WatchedQueue()
    mm, tidied_ns = capture.target_mm or 0, time.monotonic_ns()
    queue.begin_with(first_look(capture).found(nothing()))
    while not ended():
        now_ns = time.monotonic_ns()
        columns = stream.feed(capture.buffers.drain(), now_ns)
        fired = queue.late(columns, now_ns - MARGIN_NS, limit_ns, mm)
        if now_ns - tidied_ns > MEMORY_NS:
            tidied_ns = now_ns
            names.forget(now_ns - MEMORY_NS)
            names.forget_others(capture.pids, queue.waiting)
        if fired and queue.confirms(fired, _seen(capture) if fired.tid in queue.found else ()):
            return noticed(capture, stream, {mm: queue}, fired, operations)
        rest(capture.buffers, queue.due_ns(limit_ns) + MARGIN_NS, limit_ns, _IDLE_MS)
    return None


def rest(buffers: Buffers, due_ns: int, limit_ns: int, idle_ms: int) -> None:
    """Sleep until a wait is due or somebody queues, at most `idle_ms`.

    Whoever has just queued is not due before `limit_ns`: most of it is slept as well, so that a
    busy lock doesn't keep the detector busy.
    """
    now_ns = time.monotonic_ns()
    due_ns = min(due_ns, now_ns + idle_ms * 1_000_000)
    if due_ns > now_ns:
        buffers.wait((due_ns - now_ns) // 1_000_000 + 1)
    pause_ns = max(_LEAST_PAUSE_NS, min(_MOST_PAUSE_NS, limit_ns * 3 // 4))
    if (left_ns := min(due_ns - time.monotonic_ns(), pause_ns)) > 0:
        time.sleep(left_ns / 1e9)


def _seen(capture: Capture) -> list[FoundTask]:
    return [one.task for one in look(capture.pids).seen]


def noticed(
    capture: Capture,
    stream: Stream,
    queues: Mapping[int, WatchedQueue],
    fired: Fired,
    operations: list[str],
) -> Noticed:
    """Switch everything on, and see what is so: `queues` are those of each address space's lock."""
    on_ns = capture.widen()
    beginning = replace(first_look(capture), on_ns=on_ns)
    first = stream.feed(capture.buffers.drain(), _ALL)
    found = beginning.found(first)
    calls = tuple(task for task in beginning.in_calls(first) if task.mm)
    looked = {task.tid for task in found if task.does == "waits" and task.mm}
    made, asked = [], list[int]()
    by_lock = of_locks(first, queues) if len(queues) > 1 else dict.fromkeys(queues, first)
    for mm, queue in queues.items():
        queued = by_lock.get(mm, nothing())
        waiting, over = _queued_before(on_ns, queue, queued, looked)
        made.append(_made(waiting, over, first, mm))
        found = _held_after(found, over, mm)
        asked += [one.tid for one in waiting]
    found = (*found, *calls)
    first = merged([*made, rows(found, operations, asked=asked), first])
    return Noticed(fired, first, on_ns, found, beginning.hidden)


def _queued_before(
    on_ns: int, queue: WatchedQueue, events: Columns, looked: set[int]
) -> tuple[list[Queued], list[Lasted]]:
    """Take the first events; list who was in the queue at an instant, and whose wait was over.

    `looked` are the tasks that a look found waiting.
    """
    dark = int(np.searchsorted(events["time_ns"], on_ns))
    early = queue.take(_chosen(events, slice(dark)))
    over = [*queue.ended, *early]
    waiting = [one for one in queue.before(on_ns) if not (one.found and one.tid in looked)]
    queue.ended = [*early, *queue.take(_chosen(events, slice(dark, None)))]
    return waiting, over


def _made(waiting: list[Queued], over: list[Lasted], first: Columns, mm: int) -> Columns:
    """Make the lock events of these waits of which the first events tell nothing."""
    begun = [*(one.queued for one in over), *waiting]
    begun = [one for one in begun if _last(first, mm, one) != EventKind.ASKED]
    asked = _lock_events(EventKind.ASKED, begun, mm)
    asked["result"][:] = [IN_PART * one.found for one in begun]
    ended = [one for one in over if _next(first, mm, one.end) != EventKind.ACQUIRED]
    acquired = _lock_events(EventKind.ACQUIRED, [one.end for one in ended], mm)
    acquired["success"][:], acquired["result"][:] = [one.got for one in ended], HOLD_UNSEEN
    return merged([asked, acquired])


def _last(events: Columns, mm: int, at: Queued) -> int | None:
    """Return the kind of a task's last lock event until an instant."""
    rows = _lock_rows(events, mm, at.tid) & (events["time_ns"] <= at.since_ns)
    return int(events["kind"][rows][-1]) if rows.any() else None


def _next(events: Columns, mm: int, at: Queued) -> int | None:
    """Return the kind of a task's first lock event from an instant on."""
    rows = _lock_rows(events, mm, at.tid) & (events["time_ns"] >= at.since_ns)
    return int(events["kind"][rows][0]) if rows.any() else None


def _lock_rows(events: Columns, mm: int, tid: int) -> NDArray[np.bool_]:
    rows: NDArray[np.bool_] = (events["kind"] <= EventKind.RELEASED) & (events["tid"] == tid)
    return rows & (events["mm"] == mm) if mm else rows


def _held_after(
    found: tuple[FoundTask, ...], over: Iterable[Lasted], mm: int
) -> tuple[FoundTask, ...]:
    """Let nobody have the lock before its own wait for it was `over`."""
    since = {one.end.tid: one.end.since_ns for one in over}
    return tuple(
        replace(task, since_ns=max(task.since_ns, since[task.tid]))
        if task.does == "holds" and task.mm == mm and task.tid in since
        else task
        for task in found
    )


def _chosen(columns: Columns, chosen: slice | NDArray[np.bool_]) -> Columns:
    return {name: column[chosen] for name, column in columns.items()}


def of_locks(columns: Columns, mms: Iterable[int]) -> dict[int, Columns]:
    """Give the events that name a lock by its address, of each address space that has some."""
    if not len(columns["time_ns"]):
        return {}
    known = np.array(sorted(mms), np.uint64)
    place = np.searchsorted(known, columns["address"], side="right") - 1
    inside = (place >= 0) & (columns["address"] - known[place] < LOCK_WITHIN)
    return {
        int(known[one]): _chosen(columns, inside & (place == one))
        for one in np.unique(place[inside]).tolist()
    }


def _lock_events(kind: EventKind, queued: list[Queued], mm: int) -> Columns:
    columns = {name: np.zeros(len(queued), EVENT[name]) for name in EVENT.names or ()}
    columns["time_ns"][:] = [one.since_ns for one in queued]
    columns["tid"][:] = [one.tid for one in queued]
    columns["write"][:] = [one.exclusive for one in queued]
    columns["kind"][:] = kind
    columns["cpu"][:] = -1
    columns["op"][:] = NO_OP
    columns["mm"][:] = mm
    return columns
