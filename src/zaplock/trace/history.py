"""The history of one mmap_lock, laid out so that an instant is answered by binary search.

Then cut into stretches in which nothing changes: who has the lock, which writer asked first, who is
let in next. All of that is the same for whoever waits; who is in *its* way is blame's affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.holds import Holds
from zaplock.trace.waits import WaitOutcome, Waits

Array = NDArray[Any]

NOBODY = -1


@dataclass(frozen=True, slots=True)
class LockHistory:
    """When each row of holds and waits of one lock began and ended, in every order needed."""

    exclusive: Array
    exclusive_start: Array
    exclusive_end: Array
    shared: Array
    shared_start: Array
    shared_ends: Array
    shared_last: Array
    shared_last_end: Array
    writers: Array
    writer_start: Array
    writer_ends: Array
    writer_reach: Array
    entered: Array
    entered_start: Array
    entered_end: Array

    def edges(self, start: int, end: int) -> Array:
        """Return the instants in [start, end] between which nothing changes, both ends included."""
        parts = [np.array([start, end], np.int64)]
        for column in (
            self.exclusive_start,
            self.exclusive_end,
            self.shared_start,
            self.shared_ends,
            self.writer_start,
            self.writer_ends,
            self.entered_start,
            self.entered_end,
        ):
            first, last = np.searchsorted(column, [start, end])
            parts.append(column[first:last])
        edges = np.unique(np.concatenate(parts))
        return edges[np.searchsorted(edges, start) :]

    def exclusive_at(self, time_ns: Array) -> Array:
        """Return the exclusive hold at each instant, or NOBODY."""
        return _active(self.exclusive, self.exclusive_start, self.exclusive_end, time_ns)

    def shared_at(self, time_ns: Array) -> Array:
        """Return, of the shared holds at each instant, the one that ends last, or NOBODY."""
        return _active(self.shared_last, self.shared_start, self.shared_last_end, time_ns)

    def first_writer_at(self, time_ns: Array) -> Array:
        """Return, of the writers that wait at each instant, the one that asked first, or NOBODY."""
        if not len(self.writers):
            return np.full(len(time_ns), NOBODY)
        place = np.searchsorted(self.writer_reach, time_ns, side="right")
        found = np.minimum(place, len(self.writers) - 1)
        there = (place < len(self.writers)) & (self.writer_start[found] <= time_ns)
        return np.where(there, self.writers[found], NOBODY)

    def next_in_at(self, time_ns: Array) -> Array:
        """Return the wait that ends next after each instant by having the lock, or NOBODY."""
        if not len(self.entered):
            return np.full(len(time_ns), NOBODY)
        place = np.searchsorted(self.entered_end, time_ns, side="right")
        found = np.minimum(place, len(self.entered) - 1)
        return np.where(place < len(self.entered), self.entered[found], NOBODY)


@dataclass(frozen=True, slots=True)
class Stretches:
    """A part of a lock's history, cut where anything changes.

    In [edges[k], edges[k + 1]) the rows `exclusive` and `shared` hold the lock, `writer` is the
    writer that waits and asked first, `coming` the wait that ends next; each may be NOBODY.
    """

    edges: Array
    exclusive: Array
    shared: Array
    writer: Array
    coming: Array

    def covers(self, start_ns: int, end_ns: int) -> bool:
        """Say whether an interval lies in this part."""
        return bool(self.edges[0] <= start_ns and end_ns <= self.edges[-1])

    def between(self, start_ns: int, end_ns: int) -> Stretches:
        """Return the part in [start_ns, end_ns)."""
        first = max(int(np.searchsorted(self.edges, start_ns, side="right")) - 1, 0)
        last = int(np.searchsorted(self.edges, end_ns))
        edges = self.edges[first : last + 1].copy()
        edges[0], edges[-1] = start_ns, end_ns
        columns = (self.exclusive, self.shared, self.writer, self.coming)
        return Stretches(edges, *(column[first:last] for column in columns))

    def cut_at(self, time_ns: int) -> Stretches:
        """Cut one stretch more, where the instant lies inside of one."""
        place = int(np.searchsorted(self.edges, time_ns))
        if not 0 < place < len(self.edges) or self.edges[place] == time_ns:
            return self
        columns = (self.exclusive, self.shared, self.writer, self.coming)
        twice = (np.insert(column, place, column[place - 1]) for column in columns)
        return Stretches(np.insert(self.edges, place, time_ns), *twice)


def stretches(lock: LockHistory, start_ns: int, end_ns: int) -> Stretches:
    """Cut a part of a lock's history; an exclusive hold is one stretch, whoever comes meanwhile."""
    edges = lock.edges(start_ns, end_ns)
    begin = edges[:-1]
    exclusive = lock.exclusive_at(begin)
    new = np.ones(len(begin), bool)
    new[1:] = (exclusive[1:] != exclusive[:-1]) | (exclusive[1:] == NOBODY)
    begin = begin[new]
    return Stretches(
        np.append(begin, end_ns),
        exclusive[new],
        lock.shared_at(begin),
        lock.first_writer_at(begin),
        lock.next_in_at(begin),
    )


def _active(rows: Array, start: Array, end: Array, time_ns: Array) -> Array:
    if not len(rows):
        return np.full(len(time_ns), NOBODY)
    place = np.searchsorted(start, time_ns, side="right") - 1
    found = np.maximum(place, 0)
    return np.where((place >= 0) & (end[found] > time_ns), rows[found], NOBODY)


def history_of(holds: Holds, waits: Waits, hold_rows: Array, wait_rows: Array) -> LockHistory:
    """Lay out the history of the lock that these rows are about."""
    start, end = holds["start_ns"], holds.end_ns
    longer = hold_rows[holds["hold_ns"][hold_rows] > 0]
    exclusive = longer[holds["exclusive"][longer]]
    shared = longer[~holds["exclusive"][longer]]
    reach = np.maximum.accumulate(end[shared]) if len(shared) else end[shared]
    record = np.where(end[shared] == reach, np.arange(len(shared)), 0)
    last = np.maximum.accumulate(record) if len(record) else record
    writers = wait_rows[waits["exclusive"][wait_rows] & (waits["wait_ns"][wait_rows] > 0)]
    wait_end = waits.end_ns
    entered = wait_rows[waits["outcome"][wait_rows] == WaitOutcome.ACQUIRED]
    entered = entered[np.argsort(wait_end[entered], kind="stable")]
    return LockHistory(
        exclusive,
        start[exclusive],
        end[exclusive],
        shared,
        start[shared],
        np.sort(end[shared]),
        shared[last],
        reach,
        writers,
        waits["start_ns"][writers],
        np.sort(wait_end[writers]),
        np.maximum.accumulate(wait_end[writers]) if len(writers) else wait_end[writers],
        entered,
        np.sort(waits["start_ns"][entered]),
        wait_end[entered],
    )


def by_mm(mm: Array) -> dict[int, Array]:
    """Return the rows of each mm."""
    distinct = np.unique(mm)
    order = np.argsort(np.searchsorted(distinct, mm).astype(np.int32), kind="stable")
    cuts = np.searchsorted(mm[order], distinct[1:])
    return {int(key): rows for key, rows in zip(distinct, np.split(order, cuts))}
