"""What was already so when the recording began, as rows of the event stream.

A look at the tasks (`snapshot`) is made just after tracing came on. A task that was found waiting
for an mmap_lock, or having it, and of which no lock event came between the two, was so from the
beginning: it gets an ASKED or an ACQUIRED, marked `IN_PART`, at the earliest time from which on
that is known, and the OP_BEGIN of what it does. So holds, waits, blame and every view know of it.
Of a task that did have an event the events know better, and the look is dropped, but for the call
that it is in: of a call that takes the lock again and again (MADV_COLLAPSE) no event tells until it
ends.

Since when a running holder has the lock nothing tells but those who wait for it: whoever waits for
an rwsem longer than 4 ms is handed it next (RWSEM_WAIT_TIMEOUT), and nobody who comes later gets it
before it. So those who have it now have had it since the first one went to sleep for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zaplock.recorder.decode import Columns, merged, nothing
from zaplock.recorder.snapshot import Seen, TaskSnapshot
from zaplock.system_calls import TRACED_NAMES
from zaplock.trace.events import EVENT, IN_PART, EventKind, FoundTask


@dataclass(frozen=True, slots=True)
class Beginning:
    """A look, and when tracing had come on before it (CLOCK_MONOTONIC).

    `mms` are the address spaces of the processes, as far as they are known. `asked_ns` is when a
    read of ours asked for the lock of one of them and was kept waiting, by mm. `hidden` are threads
    of ours that nobody wants to hear of.
    """

    look: TaskSnapshot
    on_ns: int
    mms: Mapping[int, int]
    asked_ns: Mapping[int, int]
    hidden: tuple[int, ...] = ()

    @property
    def looked_ns(self) -> int:
        """When the last task was looked at."""
        return max((one.task.time_ns for one in self.look.seen), default=self.on_ns)

    def found(self, events: Columns) -> tuple[FoundTask, ...]:
        """Return what was so at the beginning; `events` are those until the look was over."""
        told = _first_ns(events, events["kind"] <= EventKind.RELEASED)
        kept = [self._placed(one) for one in self.look.seen if not _before(one.task, told)]
        since = self._waited_for(kept)
        return tuple(self._since(task, since) for task in kept)

    def in_calls(self, events: Columns) -> tuple[FoundTask, ...]:
        """Return the tasks of whose lock `events` know better, but not of the call they are in."""
        kind = events["kind"]
        locks = _first_ns(events, kind <= EventKind.RELEASED)
        calls = _first_ns(events, (kind == EventKind.OP_BEGIN) | (kind == EventKind.OP_END))
        return tuple(
            replace(task, does="", exclusive=False)
            for task in (one.task for one in self.look.seen)
            if _before(task, locks) and not _before(task, calls)
        )

    def at_present(self) -> tuple[FoundTask, ...]:
        """Return the tasks as they were seen, for a look while a recording goes on."""
        return tuple(self._placed(one) for one in self.look.seen)

    def _placed(self, one: Seen) -> FoundTask:
        mm = self.mms.get(one.subject, 0) if one.task.does else 0
        return replace(one.task, mm=mm)

    def _waited_for(self, tasks: Iterable[FoundTask]) -> dict[int, int]:
        """Return since when somebody waits for each mm's lock."""
        since = dict(self.asked_ns)
        for task in tasks:
            if task.does == "waits" and task.since_ns:
                since[task.mm] = min(task.since_ns, since.get(task.mm, task.since_ns))
        return since

    def _since(self, task: FoundTask, since: Mapping[int, int]) -> FoundTask:
        if not task.does:
            return task
        first_ns = task.since_ns or (since.get(task.mm, 0) if task.does == "holds" else 0)
        return replace(task, since_ns=min(first_ns or self.on_ns, self.on_ns))


def _first_ns(events: Columns, chosen: NDArray[np.bool_]) -> dict[int, int]:
    """Say when each task had its first event of those chosen, which are in order of time."""
    first = dict[int, int]()
    for tid, time_ns in zip(events["tid"][chosen].tolist(), events["time_ns"][chosen].tolist()):
        first.setdefault(tid, time_ns)
    return first


def _before(task: FoundTask, told: Mapping[int, int]) -> bool:
    """Say whether an event had told of a task before it was looked at."""
    return told.get(task.tid, task.time_ns) < task.time_ns


def rows(
    found: Iterable[FoundTask],
    operations: list[str],
    asked: Collection[int] = (),
    calling: Mapping[int, int] | None = None,
) -> Columns:
    """Make the rows of those that wait for a known lock or have it; `operations` may grow.

    `asked` are tasks that are already known to have asked, and when: only their call is new.
    `calling` are tasks whose calls are recorded, and since when at least they are in the one that
    they were found in: they have it, whatever they do about a lock.
    """
    parts = []
    calling = calling or {}
    for task in found:
        in_lock = bool(task.does and task.mm)
        if not in_lock and (task.tid not in calling or task.operation not in TRACED_NAMES):
            continue
        kind = EventKind.ASKED if task.does == "waits" else EventKind.ACQUIRED
        columns = {name: np.zeros(2, EVENT[name]) for name in EVENT.names or ()}
        columns["time_ns"][:] = task.since_ns if in_lock else calling[task.tid]
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


AGAIN_NS = 1_000_000
"""Who asks for the lock so soon after letting go of it goes on with the same (a reader of smaps
gives way to a writer now and then)."""


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
            if task.does and task.mm and task.operation and not known:
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
