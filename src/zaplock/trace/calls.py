"""The operations that tasks were in: system calls, and page faults outside of any.

An OP_BEGIN lasts until its task's next OP_END (or OP_BEGIN, where the end was never written, as
for exit). A call that was under way when the recording or a segment began is known by its OP_END
alone: its name, not its size. An madvise has its advice in its name (`madvise`). A fault counts
where its task is in no call; x86 writes no event at a fault's end, so it lasts until the task's
next event of either kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.advice import ADVICE
from zaplock.trace.event_kinds import NO_OP, PAGE_FAULT, EventKind
from zaplock.trace.events import Events
from zaplock.trace.gaps import Segments
from zaplock.trace.lanes import lanes
from zaplock.trace.madvise import ADVISING, NOT_SEEN, POPULATES, advised

Array = NDArray[Any]

NO_CALL = -1
"""The call of a lock event whose task was in none that was recorded."""


@dataclass(frozen=True, slots=True)
class Calls:
    """All calls, sorted by (tid, first); `op` indexes `operations`.

    Call k covers the events of `tid[k]` with index in [first[k], last[k]); `begin_ns` and `end_ns`
    are when it was seen to begin and end (clipped to its segment).
    """

    operations: tuple[str, ...]
    tid: Array
    op: Array
    first: Array
    last: Array
    begin_ns: Array
    end_ns: Array
    address: Array
    length: Array
    detail: Array

    def __len__(self) -> int:
        return len(self.tid)

    def during(self, tid: Array, index: Array) -> Array:
        """Return the call that each (tid, event index) falls into, or `NO_CALL`."""
        if not len(self):
            return np.full(len(tid), NO_CALL, np.int32)
        call = np.searchsorted(_key(self.tid, self.first), _key(tid, index), side="right") - 1
        found = np.maximum(call, 0)
        inside = (call >= 0) & (self.tid[found] == tid) & (index < self.last[found])
        return np.where(inside, call, NO_CALL).astype(np.int32)


def _key(tid: Array, index: Array) -> Array:
    return (tid.astype(np.int64) << 32) | index.astype(np.int64)


def calls(events: Events, segments: Segments) -> Calls:
    """Pair the begins and ends of operations and faults."""
    kind = events["kind"]
    rows = lanes(
        events, segments, (kind >= EventKind.OP_BEGIN) & (kind <= EventKind.FAULT_END), by_mm=False
    )
    what = kind[rows.index]
    starts, ends = rows.starts(), rows.ends()
    # A fault inside a call is that call's affair: its begin and end must not cut the call in two.
    is_op = what <= EventKind.OP_END
    last_op = np.maximum.accumulate(np.where(is_op | starts, np.arange(len(rows)), 0))
    in_call = what[last_op] == EventKind.OP_BEGIN
    rows = rows.keep(is_op | ~in_call)
    what = kind[rows.index]
    starts, ends = rows.starts(), rows.ends()

    begins = (what == EventKind.OP_BEGIN) | (what == EventKind.FAULT_BEGIN)
    cut = (what == EventKind.OP_END) & starts
    chosen = begins | cut
    following = np.append(rows.index[1:], 0)
    edge = rows.segment
    last = np.where(ends, segments.last[edge], following)
    first = np.where(cut, segments.first[edge], rows.index)
    last = np.where(cut, rows.index, last)
    time_ns = events["time_ns"]
    at_end = np.where(
        ends & ~cut, segments.end_ns[edge], time_ns[np.minimum(last, len(events) - 1)]
    )
    fault = what == EventKind.FAULT_BEGIN
    operations, fault_op = _with_fault(events.operations)
    event = rows.index[chosen]
    known = ~cut[chosen]
    table = Calls(
        operations,
        events["tid"][event],
        np.where(fault[chosen], fault_op, events["op"][event]).astype(np.int16),
        first[chosen].astype(np.int64),
        last[chosen].astype(np.int64),
        np.where(cut, segments.begin_ns[edge], time_ns[rows.index])[chosen],
        at_end[chosen],
        np.where(known, events["address"][event], 0).astype(np.uint64),
        np.where(known, events["length"][event], 0),
        np.where(known, events["detail"][event], 0),
    )
    return _sorted(_with_advice(table, known))


def _with_advice(table: Calls, known: Array) -> Calls:
    """Give every kind of advice that occurs an operation of its own."""
    operations, op = list(table.operations), table.op.copy()
    for call in ADVISING:
        places = _places(table.operations, call)
        if not places:
            continue
        advised_rows = known & np.isin(table.op, places)
        rows = np.flatnonzero(advised_rows & (table.detail != NOT_SEEN))
        advice = np.where(np.isin(table.detail[rows], [*ADVICE, POPULATES]), table.detail[rows], -1)
        for number in np.unique(advice).tolist():
            name = advised(call, number)
            if name not in operations:
                operations.append(name)
            op[rows[advice == number]] = operations.index(name)
    return replace(table, operations=tuple(operations), op=op)


def _places(operations: tuple[str, ...], name: str) -> list[int]:
    return [place for place, known in enumerate(operations) if known == name]


def _with_fault(operations: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    if PAGE_FAULT in operations:
        return operations, operations.index(PAGE_FAULT)
    return (*operations, PAGE_FAULT), len(operations)


def _sorted(table: Calls) -> Calls:
    order = np.argsort(_key(table.tid, table.first), kind="stable")
    columns = {
        name: getattr(table, name)[order] for name in table.__slots__ if name != "operations"
    }
    return Calls(table.operations, **columns)


def call_columns(calls: Calls, call: Array) -> dict[str, Array]:
    """Return op, address, length and detail of each call number, empty for `NO_CALL`."""
    if not len(calls):
        zero = np.zeros(len(call), np.int64)
        op = np.full(len(call), NO_OP, np.int16)
        return {"op": op, "address": zero.astype(np.uint64), "length": zero, "detail": zero}
    inside = call != NO_CALL
    return {
        "op": np.where(inside, calls.op[call], NO_OP).astype(np.int16),
        "address": np.where(inside, calls.address[call], 0).astype(np.uint64),
        "length": np.where(inside, calls.length[call], 0),
        "detail": np.where(inside, calls.detail[call], 0),
    }
