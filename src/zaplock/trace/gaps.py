"""Where events are missing, and the stretches between in which every event is known.

A LOST event says that events of one cpu are missing between that cpu's last event and itself, or
since the time that it names (`detail`). A
task may have run on any cpu, so nothing that reaches over such a gap can be trusted to be one hold
or one wait: between the gaps the recording is cut into *segments*, and the state machines of
`holds`, `waits` and `calls` never join events of two segments. Events that other cpus wrote inside
a gap belong to no segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.events import EVENT, HOLD_UNSEEN, IN_PART, EventKind, Events

IN_GAP = -1
"""The segment of an event inside a gap."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Events of `cpu` are missing in [start_ns, end_ns]; `count` of them, -1 where unknown."""

    cpu: int
    start_ns: int
    end_ns: int
    count: int


@dataclass(frozen=True, slots=True)
class Segments:
    """The gaps of a recording, and the segments between them.

    Segment k holds the events with index in [first[k], last[k]); it is known from `begin_ns[k]` to
    `end_ns[k]`. Without gaps there is one segment: the whole recording.
    """

    gaps: tuple[Gap, ...]
    first: NDArray[Any]
    last: NDArray[Any]
    begin_ns: NDArray[Any]
    end_ns: NDArray[Any]

    @property
    def lost_events(self) -> int:
        """Sum the missing events; a gap of unknown size counts as one."""
        return sum(max(gap.count, 1) for gap in self.gaps)

    def of(self, index: NDArray[Any]) -> NDArray[Any]:
        """Return the segment of each event index, `IN_GAP` for those inside a gap."""
        if not self.gaps:
            return np.zeros(len(index), np.int32)
        segment = np.searchsorted(self.first, index, side="right").astype(np.int32) - 1
        inside = (segment < 0) | (index >= self.last[np.maximum(segment, 0)])
        segment[inside] = IN_GAP
        return segment


def _gap_ranges(events: Events) -> list[tuple[int, int]]:
    """Return [index of the cpu's last event before, index of LOST] of every LOST event."""
    lost = np.flatnonzero(events["kind"] == EventKind.LOST)
    cpus = events["cpu"]
    since_ns = events["detail"][lost]
    named = since_ns > 0
    starts = np.searchsorted(events["time_ns"], since_ns[named], side="right") - 1
    ends = lost[named]
    ranges = [(min(start, end - 1), end) for start, end in zip(starts.tolist(), ends.tolist())]
    lost = lost[~named]
    for cpu in sorted(set(cpus[lost].tolist())):
        on_cpu = np.flatnonzero(cpus == cpu)
        for end in lost[cpus[lost] == cpu]:
            before = int(np.searchsorted(on_cpu, end)) - 1
            ranges.append((int(on_cpu[before]) if before >= 0 else -1, int(end)))
    return sorted(ranges)


def _merge(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in ranges:
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _first_known(events: Events) -> int:
    """Return the time of the first event that no watch writes and no look at the tasks gave."""
    kind = events["kind"]
    watched = (kind == EventKind.ASKED) | (kind >= EventKind.CONTENTION_BEGIN)
    watched |= (kind <= EventKind.OP_BEGIN) & (events["result"] == IN_PART)
    watched |= (kind == EventKind.ACQUIRED) & (events["result"] == HOLD_UNSEEN)
    known = np.flatnonzero(~watched)
    return int(events["time_ns"][known[0]]) if len(known) else 1 << 62


def segments(events: Events, span: tuple[int, int] | None = None) -> Segments:
    """Cut a recording at its gaps.

    `span` is when the recording began and ended, where that is known: before its first event and
    after its last one nothing happened, which is as good as an event to whoever waits or holds.
    A watch knows of waits that are older than the recording (an ASKED, contention), and a look at
    the tasks of what they were doing when it began (`IN_PART`); neither tells what else there was
    before, so they don't move its beginning.
    """
    ranges = _gap_ranges(events)
    time_ns = events["time_ns"]

    def at(index: int) -> int:
        return int(time_ns[max(index, 0)]) if len(events) else 0

    gaps = tuple(
        Gap(
            int(events["cpu"][end]),
            int(events["detail"][end]) or at(start),
            at(end),
            int(events["length"][end]),
        )
        for start, end in ranges
    )
    merged = _merge(ranges)
    whole = (at(0), at(len(events) - 1))
    if span is not None:
        whole = (min(_first_known(events), span[0]), max(whole[1], span[1]))
    first = [0, *(end for _, end in merged)]
    last = [*(start + 1 for start, _ in merged), len(events)]
    begin_ns = [whole[0], *(at(end) for _, end in merged)]
    end_ns = [*(at(start) if start >= 0 else whole[0] for start, _ in merged), whole[1]]
    return Segments(
        gaps,
        np.array(first, np.int64),
        np.array(last, np.int64),
        np.array(begin_ns, np.int64),
        np.array(end_ns, np.int64),
    )


def losses(holes: Sequence[tuple[int, int]]) -> dict[str, NDArray[Any]]:
    """Make LOST events, of all CPUs and of no known number, for the times [since, until] in ns."""
    columns = {name: np.zeros(len(holes), EVENT[name]) for name in EVENT.names or ()}
    columns["kind"][:] = EventKind.LOST
    columns["cpu"][:] = columns["op"][:] = columns["length"][:] = -1
    columns["detail"][:] = [max(1, since_ns) for since_ns, _ in holes]
    columns["time_ns"][:] = [until_ns for _, until_ns in holes]
    return columns


def untold_losses(counted: int, told: int, at_ns: int) -> dict[str, NDArray[Any]]:
    """Make a LOST event of what the kernel counted as lost and no page told: it was at the end."""
    columns = losses([(0, at_ns)] if counted > told else [])
    columns["detail"][:] = 0  # since when is not known
    columns["length"][:] = counted - told
    return columns
