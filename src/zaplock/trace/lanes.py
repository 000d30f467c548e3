"""Lay the events of each task side by side: the common ground of holds, waits and calls.

Which event answers which is a question of one task (and one mm): its ASKED, then its ACQUIRED, then
its RELEASED. Sorting the events into *lanes*, one per (mm, tid), turns that question into "what is
the next row of my lane", which numpy answers for ten million events at once. A lane never crosses a
gap: the same task after a gap is another lane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.events import Events
from zaplock.trace.gaps import IN_GAP, Segments

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Lanes:
    """Events sorted by lane, then by order of emission.

    `index` is the position of each row's event in the recording, `lane` its lane (dense, rising),
    `segment` its segment.
    """

    index: Array
    lane: Array
    segment: Array

    def __len__(self) -> int:
        return len(self.index)

    def keep(self, chosen: Array) -> Lanes:
        """Return the chosen rows (a mask), still in order."""
        return Lanes(self.index[chosen], self.lane[chosen], self.segment[chosen])

    def starts(self) -> Array:
        """Say of each row whether it is the first of its lane."""
        starts = np.ones(len(self), bool)
        starts[1:] = self.lane[1:] != self.lane[:-1]
        return starts

    def ends(self) -> Array:
        """Say of each row whether it is the last of its lane."""
        ends = np.ones(len(self), bool)
        ends[:-1] = self.lane[1:] != self.lane[:-1]
        return ends


def dense(values: Array) -> tuple[Array, int]:
    """Number the distinct values 0, 1, ... in rising order; return the numbers and how many."""
    if not len(values) or bool((values == values[0]).all()):  # as of one process, or one thread
        return np.zeros(len(values), np.uint8), min(len(values), 1)
    distinct = np.unique(values)
    codes = np.searchsorted(distinct, values)
    return codes.astype(np.min_scalar_type(max(len(distinct) - 1, 0))), len(distinct)


def _combine(left: tuple[Array, int], right: tuple[Array, int]) -> tuple[Array, int]:
    """Number the distinct pairs; small numbers sort by radix, ten times as fast."""
    if left[1] <= 1:
        return right
    if right[1] <= 1:
        return left
    size = left[1] * right[1]
    if size <= 1 << 16:
        return (left[0].astype(np.uint16) * right[1] + right[0]).astype(np.uint16), size
    return dense(left[0].astype(np.int64) * right[1] + right[0])


def lanes(events: Events, segments: Segments, chosen: Array, *, by_mm: bool) -> Lanes:
    """Sort the chosen events (a mask) into lanes by (mm, tid), or by tid alone.

    Events inside a gap are left out.
    """
    index = np.flatnonzero(chosen).astype(np.int32)
    segment = segments.of(index)
    if segments.gaps:
        index, segment = index[segment != IN_GAP], segment[segment != IN_GAP]
    key = dense(events["tid"][index])
    if by_mm:
        key = _combine(dense(events["mm"][index]), key)
    if segments.gaps:
        key = _combine(key, dense(segment))
    order = np.argsort(key[0], kind="stable").astype(np.int32)
    return Lanes(index[order], key[0][order], segment[order])
