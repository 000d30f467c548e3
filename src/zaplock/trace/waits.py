"""Waits: from asking for an mmap_lock to having it, or to giving up.

A wait is read from one task's events on one mm: ASKED(w), then ACQUIRED(w). With `success` 0 the
task got nothing: after a real wait it was killed, at once it was a trylock that failed. The kernel
writes the same event for both, so an answer within `TRYLOCK_NS` counts as a trylock, which waits
for nobody, and is left out (`failed_trylocks` counts them).

A task that has asked and was not answered when the recording ended is still waiting: those waits
are the point of looking at a process that hangs, so they are kept, with the time seen so far.
Nothing is joined across a gap. Every lock operation is a wait, if only for the 100 ns that its two
events are apart; `only(waits["wait_ns"] >= n)` leaves those that queued.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.calls import Calls, call_columns, calls
from zaplock.trace.events import Events, Kind, Task
from zaplock.trace.gaps import Segments, segments
from zaplock.trace.holds import lock_frame, lock_lanes
from zaplock.trace.lanes import Lanes

if TYPE_CHECKING:
    import polars

Array = NDArray[Any]

TRYLOCK_NS = 10_000
"""A refusal that came sooner than this is a failed trylock: nobody is queued, killed and gone from
the queue in 10 us, and a trylock takes longer only where its task was preempted in the middle."""


class Outcome(IntEnum):
    """How a wait ended."""

    ACQUIRED = 0
    KILLED = 1  # a fatal signal ended it (down_read_killable, down_write_killable)
    WAITING = 2  # the recording ended first


WAIT = np.dtype(
    [
        ("mm", np.uint64),
        ("tid", np.int32),
        ("exclusive", np.bool_),
        ("start_ns", np.int64),
        ("wait_ns", np.int64),
        ("outcome", np.uint8),
        ("op", np.int16),
        ("address", np.uint64),
        ("length", np.int64),
        ("detail", np.int64),
        ("call", np.int32),
    ]
)
"""One row per column of `Waits`: its name and type."""


@dataclass(frozen=True, slots=True)
class Waits:
    """The waits of a recording as columns, sorted by `start_ns`; `exclusive` is what was asked."""

    columns: Mapping[str, Array]
    operations: tuple[str, ...]
    tasks: Mapping[int, Task]
    failed_trylocks: int = 0
    unmatched: int = 0

    def __len__(self) -> int:
        return len(self.columns["mm"])

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    @property
    def end_ns(self) -> Array:
        """When each wait ended."""
        end: Array = self.columns["start_ns"] + self.columns["wait_ns"]
        return end

    def only(self, chosen: Array) -> Waits:
        """Return the chosen waits (a mask, or row numbers in the wanted order)."""
        columns = {name: column[chosen] for name, column in self.columns.items()}
        return Waits(columns, self.operations, self.tasks, self.failed_trylocks, self.unmatched)

    def longest(self, count: int) -> Waits:
        """Return the `count` longest waits, longest first, of equals the earlier first."""
        return self.only(np.argsort(-self.columns["wait_ns"], kind="stable")[:count])

    def frame(self) -> polars.DataFrame:
        """Return a table with comm, mode, operation and outcome spelt out."""
        import polars as pl

        names = {outcome.value: outcome.name.lower() for outcome in Outcome}
        frame = lock_frame(self.columns, self.operations, self.tasks)
        return frame.with_columns(pl.col("outcome").replace_strict(names, return_dtype=pl.String))

    def check(self) -> None:
        """Raise AssertionError unless the columns are typed and in order."""
        for name in WAIT.names or ():
            assert self.columns[name].dtype == WAIT[name], (name, self.columns[name].dtype)
            assert len(self.columns[name]) == len(self), name
        assert bool((self["wait_ns"] >= 0).all()), "a wait of negative length"
        assert bool((np.diff(self["start_ns"]) >= 0).all()), "waits are not in order"


def waits(
    events: Events,
    *,
    cut: Segments | None = None,
    in_calls: Calls | None = None,
    rows: Lanes | None = None,
) -> Waits:
    """Find every wait of a recording.

    The keyword arguments are parts that a caller who has them already may hand in (`analysis`).
    """
    cut = cut or segments(events)
    in_calls = in_calls or calls(events, cut)
    rows = rows or lock_lanes(events, cut)
    kind, write = events["kind"][rows.index], events["write"][rows.index]
    time_ns = events["time_ns"][rows.index]
    asked, ends = kind == Kind.ASKED, rows.ends()
    answers = (np.roll(kind, -1) == Kind.ACQUIRED) & (np.roll(write, -1) == write)
    answered = asked & ~ends & answers
    waiting = asked & ends & (cut.last[rows.segment] == len(events))
    success = np.roll(events["success"][rows.index], -1) != 0
    end_ns = np.where(waiting, cut.end_ns[rows.segment], np.roll(time_ns, -1))
    refused_at_once = answered & ~success & (end_ns - time_ns < TRYLOCK_NS)

    chosen = np.flatnonzero((answered & ~refused_at_once) | waiting)
    event = rows.index[chosen]
    call = in_calls.during(events["tid"][event], event)
    outcome = np.where(success, Outcome.ACQUIRED, Outcome.KILLED)
    outcome = np.where(waiting, Outcome.WAITING, outcome)
    columns = {
        "mm": events["mm"][event],
        "tid": events["tid"][event],
        "exclusive": write[chosen] == 1,
        "start_ns": time_ns[chosen],
        "wait_ns": (end_ns - time_ns)[chosen],
        "outcome": outcome[chosen].astype(np.uint8),
        **call_columns(in_calls, call),
        "call": call,
    }
    order = np.argsort(event, kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    lost_answer = int((asked & ~ends & ~answers).sum())
    failed = int(refused_at_once.sum())
    return Waits(columns, in_calls.operations, events.tasks, failed, lost_answer)
