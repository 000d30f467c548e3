"""The event stream: what the recorder reads from a kernel and what the timed engine emits.

Events are columns of equal length in the order of their time stamps. The three lock events have the
meaning of the kernel's own tracepoints (include/trace/events/mmap_lock.h, 5.11 and later), quirks
included: a downgrade is an ACQUIRED with `write` 0 by a task that holds the lock exclusively,
without an ASKED before it and without a RELEASED with `write` 1; an ACQUIRED with `success` 0 is a
failed trylock or a killed wait, not a hold. So a fact that is learned from one side holds on the
other, and every table, view and blame algorithm is written once.

Times are integer nanoseconds of the recording's clock (CLOCK_MONOTONIC on a real kernel, virtual
time in a simulation). `tid` is a thread id; `RecordedTask` names it and gives its process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class EventKind(IntEnum):
    """What happened. The columns that carry a meaning are named; the others are 0."""

    ASKED = 0  # mmap_lock_start_locking: mm, write
    ACQUIRED = 1  # mmap_lock_acquire_returned: mm, write, success
    RELEASED = 2  # mmap_lock_released: mm, write
    OP_BEGIN = 3  # a system call begins: op, address, length, detail
    OP_END = 4  # it returned: op, result
    FAULT_BEGIN = 5  # a page fault of a user access: address, detail (the error code)
    FAULT_END = 6
    SCHED_OUT = 7  # tid leaves its cpu: detail is prev_state (0 = preempted, still runnable)
    SCHED_IN = 8  # tid runs on cpu
    WAKEUP = 9  # somebody on cpu wakes tid: detail is who (0: not known)
    CONTENTION_BEGIN = 10  # lock:contention_begin: address (of the lock), detail (flags)
    CONTENTION_END = 11  # lock:contention_end: address, result
    # Events of cpu (-1: of all) are missing before this time: length says how many (-1: unknown),
    # detail since when (0: since that cpu's last event).
    LOST = 12


IN_INTERRUPT = 0x08 | 0x10 | 0x40
"""In an event's common_flags: TRACE_FLAG_HARDIRQ, _SOFTIRQ and _NMI (include/linux/trace_events.h).

Whoever is on the CPU then is not who did it: a timer that wakes a task interrupts another one.
"""

EVENT = np.dtype(
    [
        ("time_ns", np.int64),
        ("kind", np.uint8),
        ("write", np.uint8),
        ("success", np.uint8),
        ("cpu", np.int16),
        ("tid", np.int32),
        ("op", np.int16),
        ("mm", np.uint64),
        ("address", np.uint64),
        ("length", np.int64),
        ("detail", np.int64),
        ("result", np.int64),
    ]
)
"""One row per column: its name and type."""

NO_OP = -1
"""`op` of an event that is no system call."""

IN_PART = 1
"""`result` of an ASKED, ACQUIRED or OP_BEGIN that nobody saw happen: it was already so when the
recording began (`FoundTask`). Its time is the earliest at which it is known to have been so."""

HOLD_UNSEEN = 2
"""`result` of an ACQUIRED that only ends a wait: when the lock was let go of nobody saw, since the
lock events weren't on yet."""


@dataclass(frozen=True, slots=True)
class RecordedTask:
    """Who a thread id is: its name, its process and that process's name.

    `inside` are the numbers of the thread and of its process in their own PID namespace (a
    container's), (0, 0) where that is the recorder's or isn't known.
    """

    tid: int
    comm: str
    pid: int
    process: str = ""
    inside: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class FoundTask:
    """What a task was doing when somebody looked, before any event told of it.

    `stack` are the kernel functions it was in, innermost first; `state` is its letter in /proc.
    `does` is "waits" or "holds" (an mmap_lock: that of `mm`, 0 where it isn't known whose), or ""
    for anything else, which `operation` names. `since_ns` is the earliest time from which on it
    is known to have been so, 0 where only the look itself tells, at `time_ns`.
    """

    tid: int
    time_ns: int
    state: str
    wchan: str
    operation: str
    stack: tuple[str, ...]
    does: str = ""
    exclusive: bool = False
    mm: int = 0
    since_ns: int = 0
    address: int = 0
    length: int = 0
    detail: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Events:
    """The columns of a recording, all of length n, sorted by `time_ns` (ties in order of emission).

    `columns` maps each name of `EVENT` to its array. `op` is an index into `operations` (such as
    "munmap", "mmap", "madvise") or `NO_OP`. `address` and `length` of an operation are the range
    it works on, `detail` its third argument of interest (prot, advice, flags). `tasks` names the
    thread ids, `mms` the process id that owns an mm (where known). `found` is what was already so
    at the beginning.
    """

    columns: Mapping[str, NDArray[Any]]
    operations: tuple[str, ...]
    tasks: Mapping[int, RecordedTask] = field(default_factory=dict)
    mms: Mapping[int, int] = field(default_factory=dict)
    found: tuple[FoundTask, ...] = ()

    def __len__(self) -> int:
        return len(self.columns["time_ns"])

    def __repr__(self) -> str:
        return f"Events({len(self)} events of {len(self.tasks)} tasks)"

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def check(self) -> None:
        """Raise AssertionError unless every column is there, typed, equally long and in order."""
        assert set(self.columns) == set(EVENT.names or ()), set(self.columns)
        for name, column in self.columns.items():
            assert column.dtype == EVENT[name], (name, column.dtype)
            assert len(column) == len(self), (name, len(column), len(self))
        time_ns = self.columns["time_ns"]
        assert bool((time_ns[1:] >= time_ns[:-1]).all()), "events are not in order of time"
        assert int(self.columns["op"].max(initial=NO_OP)) < len(self.operations)
