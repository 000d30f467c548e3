"""Who stands behind an address-space operation without waiting for the mmap_lock.

A thread may wait for something else that another thread has while that one is in a munmap (say) or
waits for the mmap_lock: an interpreter's lock, a mutex, an answer through a pipe. No lock event
tells of it. What tells is who woke it: a sleep that a thread ended which was in one recorded call
for most of that sleep, and came out of it just before.

Needs sched_waking, and with it the flags that say whether an interrupt woke the sleeper: a timer
that fires while a thread is in munmap was not set by that thread. Nor can a thread release a mutex
while it is in its munmap, so the call is over when the sleep is. Not covered: a thread that still
sleeps at the end, since nobody has woken it; a waker that something else woke first (a longer chain
of wake-ups).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.analysis import Analysis
from zaplock.trace.calls import PAGE_FAULT
from zaplock.trace.events import EventKind

Array = NDArray[Any]

LEAST_NS = 10_000_000
"""Sleeps shorter than this are not looked at: nobody asks for their cause."""

AFTER_NS = 10_000_000
"""The waker came out of its call no longer than this before it woke the sleeper."""

_MOST = 2_000
_ENDS = frozenset({"exit", "exit_group"})


@dataclass(frozen=True, slots=True)
class Behind:
    """`tid` slept from `begin_ns` for `slept_ns` until `waker` woke it.

    The waker was in row `call` of the calls for `inside_ns` of that. `partial`: it slept when the
    recording began.
    """

    tid: int
    begin_ns: int
    slept_ns: int
    waker: int
    call: int
    inside_ns: int
    partial: bool


def behind(analysis: Analysis) -> list[Behind]:
    """List the sleeps that stood behind a call of their waker, the longest first.

    None where no lock events tell a sleep in the lock's queue from another.
    """
    if not analysis.sees_locks:
        return []
    sleeps = _sleeps(analysis)
    found = (_explained(analysis, *sleep) for sleep in sleeps[:_MOST])
    return [one for one in found if one is not None]


def _sleeps(analysis: Analysis) -> list[tuple[int, int, int, int, bool]]:
    """List (ns slept, tid, begin, waker, partial) of every long sleep that somebody ended."""
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
        zip(
            (time_ns - begin_ns)[chosen].tolist(),
            tid[chosen].tolist(),
            begin_ns[chosen].tolist(),
            events["detail"][rows][chosen].tolist(),
            before[chosen].tolist(),
        )
    )


def _explained(
    analysis: Analysis, slept_ns: int, tid: int, begin_ns: int, waker: int, partial: bool
) -> Behind | None:
    """Find the call of the waker that lasted for most of the sleep."""
    end_ns = begin_ns + slept_ns
    if waker == tid or not _one_process(analysis, tid, waker) or _waited(analysis, tid, begin_ns):
        return None
    calls = analysis.calls
    first, last = np.searchsorted(calls.tid, [waker, waker + 1])
    rows = np.arange(first, last)
    rows = rows[(calls.end_ns[rows] <= end_ns) & (calls.end_ns[rows] >= end_ns - AFTER_NS)]
    if not len(rows):
        return None
    inside = calls.end_ns[rows] - np.maximum(calls.begin_ns[rows], begin_ns)
    best = int(np.argmax(inside))
    call, inside_ns = int(rows[best]), int(inside[best])
    name = calls.operations[int(calls.op[call])]
    if 2 * inside_ns < slept_ns or name in _ENDS or name == PAGE_FAULT:
        return None
    return Behind(tid, begin_ns, slept_ns, waker, call, inside_ns, partial)


def _one_process(analysis: Analysis, tid: int, other: int) -> bool:
    task, another = analysis.events.tasks.get(tid), analysis.events.tasks.get(other)
    return task is not None and another is not None and task.pid == another.pid


def _waited(analysis: Analysis, tid: int, begin_ns: int) -> bool:
    """Say whether the sleep was a wait for the mmap_lock, which is explained better elsewhere."""
    waits = analysis.waits
    own = waits["tid"] == tid
    during = (waits["start_ns"] <= begin_ns) & (waits.end_ns > begin_ns)
    return bool((own & during).any())
