"""When a task slept, when it was woken, and how long it was on a cpu.

From sched_switch, and the first of sched_waking and sched_wakeup. With a pid filter, kernels leave
out switches from idle to the task, so a SCHED_IN may be missing: any event of a task (but its
WAKEUP, which another task writes) shows it running.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.events import EventKind, Events
from zaplock.trace.lanes import dense

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Nap:
    """One sleep: from `begin_ns` until woken at `woken_ns`, running again at `ran_ns`.

    `waker` is the task that woke it, 0 where it was none or isn't known.
    """

    begin_ns: int
    woken_ns: int
    ran_ns: int
    waker: int = 0


@dataclass(frozen=True, slots=True)
class Sleeps:
    """The events of each task by themselves; `order` are event indices sorted by (tid, time)."""

    events: Events
    order: Array
    tid: Array

    def _rows(self, tid: int) -> Array:
        first, last = np.searchsorted(self.tid, [tid, tid + 1])
        rows: Array = self.order[first:last]
        return rows

    def _between(self, rows: Array, start_ns: int, end_ns: int) -> tuple[int, int]:
        """Say which of a task's rows are in [start_ns, end_ns), without a look at all of them."""
        time_ns = self.events["time_ns"]
        first = bisect_left(rows, start_ns, key=time_ns.__getitem__)
        return first, bisect_left(rows, end_ns, key=time_ns.__getitem__)

    def story(self, tid: int, start_ns: int, end_ns: int) -> list[tuple[int, int, int]]:
        """List (kind, time_ns, detail) of a task's events inside (start_ns, end_ns)."""
        rows, time_ns = self._rows(tid), self.events["time_ns"]
        first = bisect_right(rows, start_ns, key=time_ns.__getitem__)
        inside = rows[first : bisect_left(rows, end_ns, key=time_ns.__getitem__)]
        columns = (self.events[name][inside].tolist() for name in ("kind", "time_ns", "detail"))
        return list(zip(*columns))

    def naps(self, tid: int, start_ns: int, end_ns: int) -> list[Nap]:
        """Return the sleeps that a task began in [start_ns, end_ns)."""
        rows = self._rows(tid)
        kind, time_ns = self.events["kind"], self.events["time_ns"]
        first, last = self._between(rows, start_ns, end_ns)
        slept = kind[rows[first:last]] == EventKind.SCHED_OUT
        slept &= self.events["detail"][rows[first:last]] != 0
        out = first + np.flatnonzero(slept)
        out = out[out + 1 < len(rows)]
        woken = ran = rows[out + 1]
        at = out + 1
        for _ in range(2):  # a sleep ends with two WAKEUPs at most
            at = np.where(kind[ran] == EventKind.WAKEUP, np.minimum(at + 1, len(rows) - 1), at)
            ran = rows[at]
        waker = np.where(kind[woken] == EventKind.WAKEUP, self.events["detail"][woken], 0)
        instants = (time_ns[place].tolist() for place in (rows[out], woken, ran))
        return list(map(Nap, *instants, np.maximum(waker, 0).tolist()))

    def queued_ns(self, tid: int, start_ns: int, end_ns: int) -> int:
        """Return until when a waiter may have joined the queue, who asked at `start_ns`.

        A task that is preempted between asking and queueing lets others go first. The recorded
        contention says when it queued; else it was before it slept, and after the last time that
        it was preempted before. `start_ns` where no event tells of a delay.
        """
        rows = self._rows(tid)
        time_ns, kind = self.events["time_ns"], self.events["kind"]
        first, last = self._between(rows, start_ns, end_ns)
        inside = rows[first:last]
        queued = inside[kind[inside] == EventKind.CONTENTION_BEGIN]
        if len(queued):
            return int(time_ns[queued[0]])
        out = inside[kind[inside] == EventKind.SCHED_OUT]
        slept = np.flatnonzero(self.events["detail"][out] != 0)
        preempted = out[: slept[0]] if len(slept) else out[:0]
        if not len(preempted):
            return start_ns
        ran = inside[(inside > preempted[-1]) & (kind[inside] != EventKind.WAKEUP)]
        return int(time_ns[ran[0]])

    def running_ns(self, tid: int, start_ns: int, end_ns: int) -> int:
        """Return how much of [start_ns, end_ns) a task was on a cpu."""
        rows = self._rows(tid)
        kind, time_ns = self.events["kind"], self.events["time_ns"]
        first = bisect_right(rows, start_ns, key=time_ns.__getitem__)
        inside = rows[first : bisect_right(rows, end_ns, key=time_ns.__getitem__)]
        inside = inside[kind[inside] != EventKind.WAKEUP]
        before = first - 1
        while before >= 0 and kind[rows[before]] == EventKind.WAKEUP:
            before -= 1
        ran = before < 0 or kind[rows[before]] != EventKind.SCHED_OUT
        begin = np.clip(np.append(start_ns, time_ns[inside]), start_ns, end_ns)
        span = np.diff(np.append(begin, end_ns))
        return int(span[np.append(ran, kind[inside] != EventKind.SCHED_OUT)].sum())

    def ran_since(self, tid: int, end_ns: int, cpu_ns: int) -> int:
        """Return the instant from which a task was on a cpu for `cpu_ns` until `end_ns`.

        A task is taken to run where no event tells that it doesn't: before its first event, too.
        """
        rows = self._rows(tid)
        rows = rows[self.events["kind"][rows] != EventKind.WAKEUP]
        rows = rows[: np.searchsorted(self.events["time_ns"][rows], end_ns)][::-1]
        time_ns = self.events["time_ns"][rows]
        span = np.append(end_ns, time_ns[:-1])[: len(rows)] - time_ns
        ran = np.cumsum(np.where(self.events["kind"][rows] == EventKind.SCHED_OUT, 0, span))
        place = int(np.searchsorted(ran, cpu_ns))
        if place < len(rows):
            return int(time_ns[place]) + int(ran[place]) - cpu_ns
        begin_ns, before = (int(time_ns[-1]), int(ran[-1])) if len(rows) else (end_ns, 0)
        return begin_ns - (cpu_ns - before)


def sleeps(events: Events) -> Sleeps | None:
    """Sort the events by task; None for a recording without scheduling or contention."""
    kind = events["kind"]
    if not bool(((kind == EventKind.SCHED_OUT) | (kind == EventKind.CONTENTION_BEGIN)).any()):
        return None
    order = np.argsort(dense(events["tid"])[0], kind="stable").astype(np.int32)
    return Sleeps(events, order, events["tid"][order])
