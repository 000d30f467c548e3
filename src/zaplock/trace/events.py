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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.event_kinds import HOLD_UNSEEN, IN_INTERRUPT, IN_PART, NO_OP, EventKind
from zaplock.trace.recorded_tasks import FoundTask, RecordedTask

__all__ = [
    "EVENT",
    "HOLD_UNSEEN",
    "IN_INTERRUPT",
    "IN_PART",
    "NO_OP",
    "EventKind",
    "Events",
    "FoundTask",
    "RecordedTask",
]


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
