"""Notice a long hold or wait while it happens: the trigger of the flight recorder.

For each thread and mm only the last lock event matters: the next one says how long it lasted
(ACQUIRED: that part of a hold, exclusive or shared; ASKED: a wait). What is still open at the end
of a batch is carried over, and fires as soon as it is old enough, before it has ended. After a loss
nothing is carried: a hold is not made up across a gap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zaplock.recorder.decode import Columns
from zaplock.recorder.flight_limits import Fired
from zaplock.trace.event_kinds import EventKind

_USED = ("time_ns", "kind", "write", "success", "tid", "mm")


class Trigger:
    """Look for holds of at least `hold_ns` and waits of at least `wait_ns` (0: not looked for)."""

    def __init__(self, *, hold_ns: int = 0, wait_ns: int = 0) -> None:
        self._limits = {EventKind.ACQUIRED: hold_ns, EventKind.ASKED: wait_ns}
        self._open: Columns | None = None

    def check(self, columns: Columns, now_ns: int) -> Fired | None:
        """Take the next events, in order; give the first thing that lasted too long, or None.

        `now_ns` is the time up to which the events are complete.
        """
        rows = np.flatnonzero(columns["kind"] <= EventKind.RELEASED)
        gaps = columns["time_ns"][columns["kind"] == EventKind.LOST]
        if len(gaps):
            rows = rows[columns["time_ns"][rows] >= gaps[-1]]
            self._open = None
        batch = self._with_open({name: columns[name][rows] for name in _USED})
        order = np.lexsort((batch["time_ns"], batch["mm"], batch["tid"]))
        batch = {name: column[order] for name, column in batch.items()}
        followed = np.zeros(len(order), np.bool_)
        followed[:-1] = (batch["tid"][1:] == batch["tid"][:-1]) & (
            batch["mm"][1:] == batch["mm"][:-1]
        )
        until = np.full(len(order), now_ns, np.int64)
        until[:-1][followed[:-1]] = batch["time_ns"][1:][followed[:-1]]
        runs = (batch["kind"] == EventKind.ASKED) | (
            (batch["kind"] == EventKind.ACQUIRED) & (batch["success"] == 1)
        )
        self._open = {name: column[runs & ~followed] for name, column in batch.items()}
        return self._first(batch, until - batch["time_ns"], runs)

    def _with_open(self, batch: Columns) -> Columns:
        if self._open is None:
            return batch
        return {name: np.concatenate([self._open[name], batch[name]]) for name in _USED}

    def _first(
        self, batch: Columns, lasted: NDArray[np.int64], runs: NDArray[np.bool_]
    ) -> Fired | None:
        late = np.zeros(len(lasted), np.bool_)
        for kind, limit in self._limits.items():
            if limit:
                late |= runs & (batch["kind"] == kind) & (lasted >= limit)
        rows = np.flatnonzero(late)
        if not len(rows):
            return None
        row = rows[np.argmin(batch["time_ns"][rows])]
        return Fired(
            "hold" if batch["kind"][row] == EventKind.ACQUIRED else "wait",
            int(batch["tid"][row]),
            int(batch["mm"][row]),
            int(batch["time_ns"][row]),
            int(lasted[row]),
            bool(batch["write"][row]),
        )
