"""Gather the events of another tool's trace, row by row, and make columns of them.

Rows are packed into columns as they come, so that an event takes as much memory as it does in a
recording, and numbers that no kernel has are refused. A trace that would not fit is refused before
its memory is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.errors import UserError
from zaplock.system_calls import TRACED_NAMES
from zaplock.trace.events import EVENT, NO_OP, EventKind, Events, RecordedTask
from zaplock.trace.tables import require_memory
from zaplock.trace.text_events import TOLD_BY_ITS_END, Row

_PACKED_AT = 1 << 15
_BYTES_AN_EVENT = 250
"""At its worst: the columns, their whole and their copy in order."""
_BOUNDS = {"time_ns": (0, (1 << 62) - 1), "tid": (0, (1 << 31) - 1), "cpu": (-1, (1 << 15) - 1)}
MOST_LOST = 1 << 48
"""Beyond any count of lost events."""
_LONGEST_NAME = 256
_EXITS = [TRACED_NAMES.index("exit"), TRACED_NAMES.index("exit_group")]


@dataclass(frozen=True, slots=True)
class ImportedTrace:
    """The events of another tool's trace; `kernel` is the release it tells, "" where it doesn't."""

    events: Events
    kernel: str = ""


@dataclass(slots=True)
class TraceBuilder:
    """Gathers rows in any order of time and the names of tasks; then makes events of them."""

    kernel: str = ""
    _comms: dict[int, str] = field(default_factory=dict)
    _pids: dict[int, int] = field(default_factory=dict)
    _rows: list[Row] = field(default_factory=list)
    _packed: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    _early: list[Row] = field(default_factory=list)
    """Losses that were told before any time."""
    _last_ns: int | None = None

    def add(self, row: Row) -> None:
        """Take a row. Raises ValueError where a number of it is none that a kernel has."""
        for column in _BOUNDS:
            if not _within(column, row.get(column, 0)):
                raise ValueError(f"{column} {row[column]}")
        if self._last_ns is None:
            self._rows += ({**lost, "time_ns": row["time_ns"]} for lost in self._early)
        self._last_ns = row["time_ns"]
        self._rows.append(row)
        if len(self._rows) >= _PACKED_AT:
            self._pack()

    def lost(self, *, cpu: int = -1, count: int) -> None:
        """Note that events are missing before here; `count` is -1 where nobody knows how many.

        Raises ValueError as `add` does.
        """
        if count >= MOST_LOST:
            raise ValueError(f"{count} events lost")
        row = {"kind": int(EventKind.LOST), "cpu": cpu, "length": count}
        if self._last_ns is None:
            self._early.append(row)
        else:
            self.add({**row, "time_ns": self._last_ns})

    def name(self, tid: int, comm: str) -> None:
        """Learn a thread's name."""
        self._comms[tid] = comm[:_LONGEST_NAME]

    def own(self, tid: int, pid: int) -> None:
        """Learn a thread's process."""
        if _within("tid", pid):
            self._pids[tid] = pid

    def _pack(self) -> None:
        self._packed.append({name: self._column(name) for name in EVENT.names or ()})
        self._rows.clear()
        total = sum(len(part["time_ns"]) for part in self._packed)
        require_memory(total * _BYTES_AN_EVENT, f"a trace of over {total:,} events")

    def _column(self, name: str) -> NDArray[Any]:
        default = NO_OP if name == "op" else 0
        numbers = [_fitting(name, row.get(name, default)) for row in self._rows]
        return np.array(numbers, dtype=EVENT[name])

    def finished(self) -> ImportedTrace:
        """Put everything in order of time. Raises UserError where the times are none."""
        self._pack()
        columns = {
            name: np.concatenate([part.pop(name) for part in self._packed])
            for name in EVENT.names or ()
        }
        if _are_differences(columns["time_ns"]):
            raise UserError(
                "these are no times but how long each event came after the one before (perf script "
                "--deltatime): write the text without that option"
            )
        order = np.argsort(columns["time_ns"], kind="stable")
        for name in columns:
            columns[name] = columns[name][order]
        again = _exits_told_twice(columns)
        if len(again):
            columns = {name: np.delete(column, again) for name, column in columns.items()}
        return ImportedTrace(Events(columns, TRACED_NAMES, self._tasks()), self.kernel)

    def _tasks(self) -> dict[int, RecordedTask]:
        tids = {tid for tid in self._comms.keys() | self._pids.keys() if _within("tid", tid)}
        return {tid: self._task(tid) for tid in sorted(tids)}

    def _task(self, tid: int) -> RecordedTask:
        pid, comm = self._pids.get(tid, tid), self._comms.get(tid, "")
        return RecordedTask(tid, comm, pid, self._comms.get(pid, comm))


def _are_differences(time_ns: NDArray[np.int64]) -> bool:
    """Say whether each time counts from the event before: from 0 on, and to and fro.

    A trace of several CPUs goes back where another's part begins, which is seldom.
    """
    back = int((time_ns[1:] < time_ns[:-1]).sum())
    return len(time_ns) > 1 and int(time_ns[0]) == 0 and back > len(time_ns) // 10


def _exits_told_twice(columns: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """List the ends of tasks that had called exit themselves; let the others be exits."""
    rows = np.flatnonzero((columns["kind"] == EventKind.OP_BEGIN) & np.isin(columns["op"], _EXITS))
    called: set[int] = set()
    again = []
    for row in rows.tolist():
        tid = int(columns["tid"][row])
        if columns["result"][row] != TOLD_BY_ITS_END:
            called.add(tid)
        elif tid in called:
            called.remove(tid)
            again.append(row)
        else:
            columns["result"][row] = 0
    return np.array(again, np.int64)


def _within(column: str, number: int) -> bool:
    least, most = _BOUNDS[column]
    return least <= number <= most


def _fitting(column: str, number: int) -> int:
    """Read 64 printed bits as the column's type has them: a program may pass any number."""
    number &= (1 << 64) - 1
    signed = EVENT[column].kind == "i"
    return number - (1 << 64) if signed and number >= 1 << 63 else number
