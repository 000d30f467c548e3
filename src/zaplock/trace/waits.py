"""Waits: from asking for an mmap_lock to having it, or to giving up.

A wait is read from one task's events on one mm: ASKED(w), then ACQUIRED(w). With `success` 0 the
task got nothing: after a real wait it was killed, at once it was a trylock that failed. The kernel
writes the same event for both, so an answer within `TRYLOCK_NS` counts as a trylock, which waits
for nobody, and is left out (`failed_trylocks` counts them).

A task that has asked and was not answered when the recording ended is still waiting: those waits
are the point of looking at a process that hangs, so they are kept, with the time seen so far.
A wait that was on when the recording began, or a stretch between two gaps, is `partial`: it took at
least as long as was seen of it. Either its ACQUIRED has no ASKED, or the task was found waiting
(`events.IN_PART`).

Nothing is joined across a gap. Every lock operation is a wait, if only for the 100 ns that its two
events are apart; `only(waits["wait_ns"] >= n)` leaves those that queued.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from zaplock.extras import needed
from zaplock.trace.calls import Calls, call_columns, calls
from zaplock.trace.events import EventKind, Events
from zaplock.trace.gaps import Segments, segments
from zaplock.trace.intervals import Intervals, begun_before, found_so, lock_lanes
from zaplock.trace.lanes import Lanes

if TYPE_CHECKING:
    import polars

TRYLOCK_NS = 10_000
"""A refusal that came sooner than this is a failed trylock: nobody is queued, killed and gone from
the queue in 10 us, and a trylock takes longer only where its task was preempted in the middle."""


class WaitOutcome(IntEnum):
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
        ("partial", np.bool_),
        ("op", np.int16),
        ("address", np.uint64),
        ("length", np.int64),
        ("detail", np.int64),
        ("call", np.int32),
    ]
)
"""One row per column of `Waits`: its name and type."""


@dataclass(frozen=True, slots=True, repr=False)
class Waits(Intervals):
    """The waits of a recording as columns, sorted by `start_ns`; `exclusive` is what was asked.

    A `partial` wait began at its `start_ns` or earlier: it took at least `wait_ns`.
    """

    DTYPE = WAIT
    LENGTH = "wait_ns"

    failed_trylocks: int = 0
    unmatched: int = 0

    def frame(self) -> polars.DataFrame:
        """Return a table with comm, mode, operation and outcome spelt out."""
        with needed("a frame"):
            import polars as pl

        names = {outcome.value: outcome.name.lower() for outcome in WaitOutcome}
        outcome = pl.col("outcome").replace_strict(names, return_dtype=pl.String)
        return Intervals.frame(self).with_columns(outcome)


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
    asked, ends = kind == EventKind.ASKED, rows.ends()
    found = found_so(events, rows) & asked
    next_write = np.roll(write, -1)
    # In which mode a task was found to wait is a guess; what it got says which it was.
    answers = (np.roll(kind, -1) == EventKind.ACQUIRED) & ((next_write == write) | found)
    answered = asked & ~ends & answers
    waiting = asked & ends & (cut.last[rows.segment] == len(events))
    unasked, _ = begun_before(events, rows, in_calls)
    success = np.roll(events["success"][rows.index], -1) != 0
    success = np.where(unasked, events["success"][rows.index] != 0, success)
    start_ns = np.where(unasked, cut.begin_ns[rows.segment], time_ns)
    end_ns = np.where(waiting, cut.end_ns[rows.segment], np.roll(time_ns, -1))
    end_ns = np.where(unasked, time_ns, end_ns)
    unasked &= end_ns > start_ns
    refused_at_once = answered & ~success & (end_ns - time_ns < TRYLOCK_NS)

    chosen = np.flatnonzero((answered & ~refused_at_once) | waiting | unasked)
    event = rows.index[chosen]
    call = in_calls.during(events["tid"][event], event)
    outcome = np.where(success, WaitOutcome.ACQUIRED, WaitOutcome.KILLED)
    outcome = np.where(waiting, WaitOutcome.WAITING, outcome)
    columns = {
        "mm": events["mm"][event],
        "tid": events["tid"][event],
        "exclusive": np.where(found & answered, next_write, write)[chosen] == 1,
        "start_ns": start_ns[chosen],
        "wait_ns": (end_ns - start_ns)[chosen],
        "outcome": outcome[chosen].astype(np.uint8),
        "partial": (found | unasked)[chosen],
        **call_columns(in_calls, call),
        "call": call,
    }
    event = np.where(unasked[chosen], cut.first[rows.segment[chosen]], event)
    order = np.argsort(event, kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    lost_answer = int((asked & ~ends & ~answers).sum())
    failed = int(refused_at_once.sum())
    return Waits(columns, in_calls.operations, events.tasks, failed, lost_answer)
