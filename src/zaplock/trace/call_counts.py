"""How often each memory call was made, how long all of them took and on how many bytes.

Also of calls that took no mmap_lock: an allocator that gives 16 GB back in 3,908 madvise calls
under VMA locks holds up nobody's mmap_lock, and yet that is where the time goes. Times are from a
call's begin to its end, waits included. Page faults, exit and exit_group have no end in a
recording: they are counted only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from zaplock.trace.analysis import Analysis
from zaplock.trace.calls import NO_CALL
from zaplock.trace.event_kinds import PAGE_FAULT

ENDLESS: Final = (PAGE_FAULT, "exit", "exit_group")
LARGEST: Final = 1 << 47
"""User address space of x86-64 with 4 levels: no call works on more."""


@dataclass(frozen=True, slots=True)
class CallCount:
    """The calls of one operation by the threads of one process (`pid`).

    `total_ns` and `longest_ns` are None where no event tells the end; `length` is the sum of the
    bytes that were asked for, `without_lock` how many of the calls took no mmap_lock (None
    where no lock events tell).
    """

    operation: str
    pid: int
    count: int
    total_ns: int | None
    longest_ns: int | None
    length: int
    without_lock: int | None


def call_counts(analysis: Analysis) -> tuple[CallCount, ...]:
    """Count the calls of a recording by operation and process, most time first."""
    calls = analysis.calls
    if not len(calls):
        return ()
    tids, which = np.unique(calls.tid, return_inverse=True)
    tasks = analysis.events.tasks
    pids = np.array([tasks[tid].pid if tid in tasks else tid for tid in tids.tolist()], np.int64)
    width = len(calls.operations)
    key = pids[which] * width + calls.op
    groups, place = np.unique(key, return_inverse=True)
    took = calls.end_ns - calls.begin_ns
    longest = np.zeros(len(groups), np.int64)
    np.maximum.at(longest, place, took)
    locked = np.zeros(len(calls), bool)
    for table in (analysis.holds, analysis.waits):
        locked[table["call"][table["call"] != NO_CALL]] = True
    # bincount sums in floating point: exact up to 2**53, which is 104 days or 8 PiB.
    columns = (
        groups,
        np.bincount(place),
        np.bincount(place, weights=took),
        longest,
        np.bincount(place, weights=np.clip(calls.length, 0, LARGEST)),
        np.bincount(place, weights=~locked),
    )
    found = [
        _count(calls.operations, analysis.sees_locks, *row)
        for row in zip(*(column.tolist() for column in columns))
    ]
    return tuple(
        sorted(found, key=lambda one: (-(one.total_ns or 0), -one.count, one.operation, one.pid))
    )


def _count(
    operations: tuple[str, ...],
    sees_locks: bool,
    group: int,
    count: int,
    total: float,
    longest: int,
    length: float,
    without: float,
) -> CallCount:
    operation = operations[group % len(operations)]
    ends = operation not in ENDLESS
    return CallCount(
        operation,
        group // len(operations),
        count,
        int(total) if ends else None,
        longest if ends else None,
        int(length),
        int(without) if sees_locks else None,
    )
