"""Holds: the intervals in which one task holds an mmap_lock, exclusive or shared.

A hold is read from one task's events on one mm:

    ACQUIRED(w)  RELEASED(w)                 one hold of that mode
    ACQUIRED(1)  ACQUIRED(0)  RELEASED(0)    a downgrade: an exclusive hold, then without a gap a
                                             shared one; no RELEASED(1) is written
    ACQUIRED(w, success 0)                   no hold: a failed trylock or a killed wait

Kernels before 5.16 write RELEASED after the real unlock, so the next owner's ACQUIRED may stand
before it: a hold ends no later than the first hold that it could not have stood beside.

A hold of which only one edge was seen (the recording, or a stretch between two gaps, began or ended
in its middle) is *incomplete*: it is known from or to that edge, and `hold_ns` is what was seen of
it. Views keep incomplete holds apart; blame uses them. Nothing is joined across a gap.

Not covered: a task that takes one lock for read twice without releasing it (Linux does not), and
`mmap_read_unlock_non_owner`, whose RELEASED another task may write: both count as `unmatched`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zaplock.trace.calls import Calls, call_columns, calls
from zaplock.trace.events import EventKind, Events
from zaplock.trace.gaps import Segments, segments
from zaplock.trace.intervals import (
    Array,
    Intervals,
    begun_before,
    found_so,
    hold_unseen,
    lock_lanes,
)
from zaplock.trace.lanes import Lanes, dense

HOLD = np.dtype(
    [
        ("mm", np.uint64),
        ("tid", np.int32),
        ("exclusive", np.bool_),
        ("start_ns", np.int64),
        ("hold_ns", np.int64),
        ("downgraded", np.bool_),
        ("complete", np.bool_),
        ("op", np.int16),
        ("address", np.uint64),
        ("length", np.int64),
        ("detail", np.int64),
        ("call", np.int32),
    ]
)
"""One row per column of `Holds`: its name and type."""


@dataclass(frozen=True, slots=True, repr=False)
class Holds(Intervals):
    """The holds of a recording as columns, sorted by `start_ns`.

    `downgraded` marks an exclusive hold that ended by a downgrade and the shared one that began by
    it. `unmatched` counts the lock events that fit no story although nothing was lost beside them.
    """

    DTYPE = HOLD
    LENGTH = "hold_ns"

    unmatched: int = 0

    def complete(self) -> Holds:
        """Return the holds of which both edges were seen."""
        return self.only(self.columns["complete"])

    def check(self) -> None:
        """Raise AssertionError unless the columns are typed, in order, and exclusion holds."""
        Intervals.check(self)
        alone = _clipped(self.columns) == self["hold_ns"]
        assert bool(alone.all()), "an exclusive hold stands beside another"


def holds(
    events: Events,
    *,
    cut: Segments | None = None,
    in_calls: Calls | None = None,
    rows: Lanes | None = None,
) -> Holds:
    """Find every hold of a recording.

    The keyword arguments are parts that a caller who has them already may hand in (`analysis`).
    """
    cut = cut or segments(events)
    in_calls = in_calls or calls(events, cut)
    rows = rows or lock_lanes(events, cut)
    edges, asked = _edges(events, rows)
    kind, write = events["kind"][edges.index], events["write"][edges.index]
    acquired = kind == EventKind.ACQUIRED
    starts, ends = edges.starts(), edges.ends()
    found = found_so(events, edges)

    same = ~ends
    next_acquired, next_write = np.roll(acquired, -1), np.roll(write, -1)
    # What a task was found to hold is a guess in its mode; what it does next says which it was.
    told = found & same & ~(next_acquired & np.roll(asked, -1))
    write = np.where(told, np.where(next_acquired, 1, next_write), write)
    released = acquired & same & ~next_acquired & (next_write == write)
    next_downgrades = next_acquired & (next_write == 0) & ~np.roll(asked, -1)
    downgrades = acquired & same & (write == 1) & next_downgrades
    begun_by = np.roll(downgrades, 1)
    open_end = acquired & ends
    open_start = ~acquired & starts
    used = np.roll(released, 1) | acquired & (released | downgrades | open_end) | open_start

    # An exclusive hold that began earlier and was turned into this shared one.
    turned = begun_before(events, edges, in_calls)[1]
    time_ns = events["time_ns"][edges.index]
    end_ns = np.where(open_end, cut.end_ns[edges.segment], np.roll(time_ns, -1))
    start_ns = np.where(open_start, cut.begin_ns[edges.segment], time_ns)
    end_ns = np.where(open_start, time_ns, end_ns)
    chosen = np.flatnonzero(released | downgrades | open_end | open_start)
    event = edges.index[chosen]
    call = in_calls.during(events["tid"][event], event)
    columns = {
        "mm": events["mm"][event],
        "tid": events["tid"][event],
        "exclusive": write[chosen] == 1,
        "start_ns": start_ns[chosen],
        "hold_ns": (end_ns - start_ns)[chosen],
        "downgraded": (downgrades | turned | begun_by & acquired)[chosen],
        "complete": ~(open_end | open_start | found)[chosen],
        **call_columns(in_calls, call),
        "call": call,
    }
    # By event, not by time: a hold that begins in the nanosecond in which another ends is later.
    opening = np.where(open_start, cut.first[edges.segment], edges.index)[chosen]
    before = np.flatnonzero(turned[chosen])
    if len(before):
        columns = {name: np.append(column, column[before]) for name, column in columns.items()}
        segment = edges.segment[chosen][before]
        opening = np.append(opening * 2, cut.first[segment] * 2 - 1)  # before the first of them
        columns["hold_ns"][-len(before) :] = columns["start_ns"][before] - cut.begin_ns[segment]
        columns["start_ns"][-len(before) :] = cut.begin_ns[segment]
        columns["exclusive"][-len(before) :] = True
        columns["complete"][-len(before) :] = False
    order = np.argsort(opening, kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    columns["hold_ns"] = _clipped(columns)
    return Holds(columns, in_calls.operations, events.tasks, int((~used).sum()))


def _edges(events: Events, rows: Lanes) -> tuple[Lanes, Array]:
    """Leave the rows that begin or end a hold; say which of them were asked for just before."""
    kind, write = events["kind"][rows.index], events["write"][rows.index]
    asked = np.zeros(len(rows), bool)
    asked[1:] = (kind[:-1] == EventKind.ASKED) & (write[:-1] == write[1:]) & ~rows.starts()[1:]
    success = events["success"][rows.index] != 0
    chosen = (kind == EventKind.RELEASED) | (kind == EventKind.ACQUIRED) & success
    chosen &= ~hold_unseen(events, rows)
    return rows.keep(chosen), asked[chosen]


def _clipped(columns: Mapping[str, Array]) -> Array:
    """End each hold where one begins that excludes it (kernels before 5.16, and torn clocks)."""
    mm, start_ns, hold_ns = columns["mm"], columns["start_ns"], columns["hold_ns"].copy()
    order = np.argsort(dense(mm)[0], kind="stable")
    by_mm, start, exclusive = mm[order], start_ns[order], columns["exclusive"][order]
    never = np.iinfo(np.int64).max
    position = np.arange(len(order))
    next_writer = np.where(exclusive, position, len(order))
    next_writer = np.minimum.accumulate(next_writer[::-1])[::-1]
    following = np.where(exclusive, position + 1, np.append(next_writer[1:], len(order)))
    there = following < len(order)
    rival = np.minimum(following, len(order) - 1)
    there &= by_mm[rival] == by_mm
    limit = np.where(there, start[rival], never)
    hold_ns[order] = np.minimum(hold_ns[order], limit - start)
    return hold_ns
