"""What was already so when the recording began, as rows of the event stream.

A look at the tasks (`snapshot`) is made just after tracing came on. A task that was found waiting
for an mmap_lock, or having it, and of which no lock event came between the two, was so from the
beginning: it gets an ASKED or an ACQUIRED, marked `IN_PART`, at the earliest time from which on
that is known, and the OP_BEGIN of what it does. So holds, waits, blame and every view know of it.
Of a task that did have an event the events know better, and the look is dropped, but for the call
that it is in: of a call that takes the lock again and again (MADV_COLLAPSE) no event tells until it
ends, and none ever of a read of smaps. Such a task has the `mm`, and `does` nothing.

Since when a running holder has the lock nothing tells but those who wait for it: whoever waits for
an rwsem longer than 4 ms is handed it next (RWSEM_WAIT_TIMEOUT), and nobody who comes later gets it
before it. So those who have it now have had it since the first one went to sleep for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from zaplock.recorder.beginning import AGAIN_NS
from zaplock.recorder.decode import Columns, merged, nothing
from zaplock.system_calls import TRACED_NAMES
from zaplock.trace.events import EVENT, IN_PART, EventKind, FoundTask


def rows(
    found: Iterable[FoundTask],
    operations: list[str],
    asked: Collection[int] = (),
    calling: Mapping[int, int] | None = None,
) -> Columns:
    """Make the rows of those that wait for a known lock or have it; `operations` may grow.

    `asked` are tasks that are already known to have asked, and when: only their call is new.
    `calling` are tasks whose calls are recorded, and since when at least they are in the one that
    they were found in: they have it, whatever they do about a lock. A task that has an `mm` and
    `does` nothing is in a call about that mm since `since_ns`; of its lock events tell.
    """
    parts = []
    calling = calling or {}
    for task in found:
        in_lock = bool(task.does and task.mm)
        recorded = task.tid in calling and task.operation in TRACED_NAMES
        if not recorded and not task.mm:
            continue
        kind = EventKind.ASKED if task.does == "waits" else EventKind.ACQUIRED
        columns = {name: np.zeros(2, EVENT[name]) for name in EVENT.names or ()}
        since_told = in_lock or not recorded
        columns["time_ns"][:] = task.since_ns if since_told else calling[task.tid]
        columns["tid"][:] = task.tid
        columns["cpu"][:] = -1
        columns["result"][:] = IN_PART
        columns["kind"][:] = (EventKind.OP_BEGIN, kind)
        columns["op"][:] = (_number(task.operation, operations), -1)
        for name in ("address", "length", "detail"):
            columns[name][0] = getattr(task, name)
        columns["mm"][1] = task.mm
        columns["write"][1] = task.exclusive
        columns["success"][1] = kind == EventKind.ACQUIRED
        chosen = slice(not task.operation, 2 if in_lock and task.tid not in asked else 1)
        parts.append({name: column[chosen] for name, column in columns.items()})
    return merged(parts) if parts else nothing()


def _number(operation: str, operations: list[str]) -> int:
    if operation and operation not in operations:
        operations.append(operation)
    return operations.index(operation) if operation else -1


class Endings:
    """End the operations that no event will end, when their task comes for the lock anew.

    The calls of foreign tasks are not recorded, nor are a page fault or a read of /proc.
    """

    def __init__(self) -> None:
        self._open: dict[int, int] = {}
        self._released_ns: dict[int, int] = {}

    def expect(self, found: Iterable[FoundTask], recorded: set[int], operations: list[str]) -> None:
        """Note the tasks whose call has no end of its own; `recorded` are those whose calls are."""
        for task in found:
            known = task.operation in TRACED_NAMES and task.tid in recorded
            if task.mm and task.operation and not known:
                self._open[task.tid] = operations.index(task.operation)

    def added(self, columns: Columns) -> Columns:
        """Add an OP_END before such a task asks for a lock again, unless it does so at once."""
        if not self._open:
            return columns
        ends = []
        theirs = np.isin(columns["tid"], np.array(list(self._open), np.int32))
        for row in np.flatnonzero(theirs & (columns["kind"] <= EventKind.RELEASED)).tolist():
            tid, time_ns = int(columns["tid"][row]), int(columns["time_ns"][row])
            if columns["kind"][row] != EventKind.ASKED:
                self._released_ns[tid] = time_ns
            elif tid in self._open and time_ns - self._released_ns.get(tid, time_ns) > AGAIN_NS:
                end = {name: np.zeros(1, EVENT[name]) for name in EVENT.names or ()}
                end["time_ns"][:], end["tid"][:] = time_ns, tid
                end["kind"][:], end["op"][:] = EventKind.OP_END, self._open.pop(tid)
                end["cpu"][:] = columns["cpu"][row]
                ends.append(end)
        return merged([*ends, columns]) if ends else columns


def still_open(columns: Columns) -> Columns:
    """Return what is not over at the end of some events: who waits, who holds, who is in a call.

    For whoever forgets old events and must not forget what they began. A hold is marked `IN_PART`:
    of a downgraded one only its last part is left. Rows that were open before may stand in front.
    """
    kind = columns["kind"]
    locks = np.flatnonzero(kind <= EventKind.RELEASED)
    got = (kind == EventKind.ACQUIRED) & (columns["success"] != 0)
    open_locks = _last(columns, locks, ("mm", "tid"))
    open_locks = open_locks[(kind[open_locks] == EventKind.ASKED) | got[open_locks]]
    calls = np.flatnonzero((kind == EventKind.OP_BEGIN) | (kind == EventKind.OP_END))
    open_calls = _last(columns, calls, ("tid",))
    open_calls = open_calls[kind[open_calls] == EventKind.OP_BEGIN]
    left = np.sort(np.concatenate([open_locks, open_calls]))
    kept = {name: column[left].copy() for name, column in columns.items()}
    kept["result"][kept["kind"] != EventKind.ASKED] = IN_PART
    return kept


def _last(columns: Columns, chosen: NDArray[np.intp], keys: tuple[str, ...]) -> NDArray[np.intp]:
    """Return the last of the chosen rows of each key."""
    order = np.lexsort(tuple(columns[key][chosen] for key in keys))
    ordered = chosen[order]
    last = np.ones(len(ordered), bool)
    last[:-1] = False
    for key in keys:
        last[:-1] |= columns[key][ordered[1:]] != columns[key][ordered[:-1]]
    return ordered[last]
