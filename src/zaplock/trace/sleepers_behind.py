"""Who stands behind an address-space operation without waiting for the mmap_lock.

A thread may wait for something else that another thread has while that one is in a munmap (say) or
waits for the mmap_lock: an interpreter's lock, a mutex, an answer through a pipe. No lock event
tells of it. What tells is who woke it: a sleep that a thread ended which was in one recorded call
for most of that sleep, and came out of it just before: it has hardly run since, however long it had
to wait for a cpu.

Needs sched_waking, and with it the flags that say whether an interrupt woke the sleeper: a timer
that fires while a thread is in munmap was not set by that thread. Nor can a thread release a mutex
while it is in its munmap, so the call is over when the sleep is.

A waker that slept itself for most of that time, and was woken just before, is passed through: who
waits for a lock whose holder waits for another lock stands behind that one's holder. Not covered: a
thread that still sleeps at the end, since nobody has woken it; links of more than one process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.analysis import Analysis
from zaplock.trace.event_kinds import PAGE_FAULT
from zaplock.trace.events import EventKind

Array = NDArray[Any]

LEAST_NS = 10_000_000
"""Sleeps shorter than this are not looked at: nobody asks for their cause."""

AFTER_NS = 10_000_000
"""The waker came out of its call, and ran no longer than this before it woke the sleeper."""

_MOST = 2_000
_LINKS = 4
"""A chain of wake-ups is followed so far."""
_ENDS = frozenset({"exit", "exit_group"})


@dataclass(frozen=True, slots=True)
class Behind:
    """`tid` slept from `begin_ns` for `slept_ns` until `waker` woke it.

    The task of row `call` of the calls was in that for `inside_ns` of the sleep: the waker, or
    whoever woke the last of `through`, the wakers that slept themselves, the nearest first.
    `partial`: it slept when the recording began.
    """

    tid: int
    begin_ns: int
    slept_ns: int
    waker: int
    call: int
    inside_ns: int
    partial: bool
    through: tuple[int, ...] = ()


def behind(analysis: Analysis) -> list[Behind]:
    """List the sleeps that stood behind a call of their waker, the longest first.

    None where no lock events tell a sleep in the lock's queue from another.
    """
    if not analysis.sees_locks:
        return []
    sleeps = _sleeps(analysis)[:_MOST]
    of_task: dict[int, list[_Sleep]] = {}
    for sleep in sleeps:
        of_task.setdefault(sleep.tid, []).append(sleep)
    found = (_explained(analysis, sleep, of_task) for sleep in sleeps)
    return [one for one in found if one is not None]


class _Sleep(NamedTuple):
    slept_ns: int
    tid: int
    begin_ns: int
    waker: int
    partial: bool

    @property
    def end_ns(self) -> int:
        return self.begin_ns + self.slept_ns


def _sleeps(analysis: Analysis) -> list[_Sleep]:
    """List every long sleep that somebody ended, the longest first."""
    events = analysis.events
    kind = events["kind"]
    rows = np.flatnonzero((kind >= EventKind.SCHED_OUT) & (kind <= EventKind.WAKEUP))
    rows = rows[np.argsort(events["tid"][rows], kind="stable")]
    tid, time_ns, what = events["tid"][rows], events["time_ns"][rows], kind[rows]
    first = np.ones(len(rows), bool)
    first[1:] = tid[1:] != tid[:-1]
    out_before = ~first & (np.roll(what, 1) == EventKind.SCHED_OUT)
    out_before &= np.roll(events["detail"][rows], 1) != 0
    woken = (what == EventKind.WAKEUP) & (events["detail"][rows] > 0)
    since = {task.tid: task.since_ns for task in analysis.events.found if task.since_ns}
    before = woken & first
    begin_ns = np.where(before, analysis.recorded_ns, np.roll(time_ns, 1))
    for place in np.flatnonzero(before).tolist():
        begin_ns[place] = min(since.get(int(tid[place]), analysis.recorded_ns), begin_ns[place])
    chosen = np.flatnonzero(woken & (before | out_before) & (time_ns - begin_ns >= LEAST_NS))
    chosen = chosen[np.argsort(begin_ns[chosen] - time_ns[chosen], kind="stable")]
    return list(
        map(
            _Sleep,
            (time_ns - begin_ns)[chosen].tolist(),
            tid[chosen].tolist(),
            begin_ns[chosen].tolist(),
            events["detail"][rows][chosen].tolist(),
            before[chosen].tolist(),
        )
    )


def _explained(
    analysis: Analysis, sleep: _Sleep, of_task: dict[int, list[_Sleep]]
) -> Behind | None:
    """Find the call that lasted for most of a sleep, of its waker or of a sleeping waker's."""
    if _waited(analysis, sleep.tid, sleep.begin_ns):
        return None
    through: list[int] = []
    link: _Sleep | None = sleep
    while link is not None and len(through) < _LINKS:
        if link.waker == sleep.tid or not _one_process(analysis, link.tid, link.waker):
            return None
        just_ns = _just_before(analysis, link.waker, link.end_ns)
        found = _call_until(analysis, link.waker, sleep.begin_ns, just_ns, link.end_ns)
        if found is not None:
            call, inside_ns = found
            if 2 * inside_ns >= sleep.slept_ns:
                told = (sleep.tid, sleep.begin_ns, sleep.slept_ns, sleep.waker)
                return Behind(*told, call, inside_ns, sleep.partial, tuple(through))
        through.append(link.waker)
        ended = (one for one in of_task.get(link.waker, ()) if one.end_ns >= just_ns)
        link = _slept_until(ended, sleep.begin_ns, link.end_ns)
        if link is not None and 2 * (link.end_ns - sleep.begin_ns) < sleep.slept_ns:
            return None
    return None


def _call_until(
    analysis: Analysis, tid: int, since_ns: int, just_ns: int, end_ns: int
) -> tuple[int, int] | None:
    """Return the call of a task that ended in [just_ns, end_ns], and its time since `since_ns`."""
    calls = analysis.calls
    first, last = np.searchsorted(calls.tid, [tid, tid + 1])
    rows = np.arange(first, last)
    rows = rows[(calls.end_ns[rows] <= end_ns) & (calls.end_ns[rows] >= just_ns)]
    if not len(rows):
        return None
    inside = calls.end_ns[rows] - np.maximum(calls.begin_ns[rows], since_ns)
    best = int(np.argmax(inside))
    name = calls.operations[int(calls.op[rows[best]])]
    if name in _ENDS or name == PAGE_FAULT:
        return None
    return int(rows[best]), int(inside[best])


def _slept_until(sleeps: Iterable[_Sleep], since_ns: int, end_ns: int) -> _Sleep | None:
    """Return the sleep that ended before an instant and covers most of the time since another."""
    for one in sleeps:
        covered = one.end_ns - max(one.begin_ns, since_ns)
        if one.end_ns <= end_ns and 2 * covered >= end_ns - since_ns:
            return one
    return None


def _just_before(analysis: Analysis, tid: int, end_ns: int) -> int:
    """Return since when a task has run for AFTER_NS up to an instant."""
    told = analysis.judge.tasks_sleeps
    return end_ns - AFTER_NS if told is None else told.ran_since(tid, end_ns, AFTER_NS)


def _one_process(analysis: Analysis, tid: int, other: int) -> bool:
    task, another = analysis.events.tasks.get(tid), analysis.events.tasks.get(other)
    return task is not None and another is not None and task.pid == another.pid


def _waited(analysis: Analysis, tid: int, begin_ns: int) -> bool:
    """Say whether the sleep was a wait for the mmap_lock, which is explained better elsewhere."""
    waits = analysis.waits
    own = waits["tid"] == tid
    during = (waits["start_ns"] <= begin_ns) & (waits.end_ns > begin_ns)
    return bool((own & during).any())
