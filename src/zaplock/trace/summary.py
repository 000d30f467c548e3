"""A recording in figures: who held, who waited and who made others wait, by operation and task.

Everything a view prints comes from here, so that the terminal, the JSON and the HTML page agree.
Waits shorter than `QUEUED_NS` are lock operations that found the lock free; they are in no sum.
Blame is worked out for the longest waits, up to a limit; `explained_ns` of `waited_ns` says how
much of all waiting that covers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.analysis import Analysis
from zaplock.trace.blame import Explained
from zaplock.trace.call_counts import CallCount, call_counts
from zaplock.trace.events import NO_OP, RecordedTask
from zaplock.trace.holds import Holds
from zaplock.trace.waits import Waits

Array = NDArray[Any]

QUEUED_NS = 10_000
"""A lock operation that took longer than this stood in the queue (a free lock takes 0.1 to 1 us; a
task that is interrupted just then, some more)."""

NO_OPERATION = "(not recorded)"
"""The name of the operation of holds and waits outside of recorded system calls, whose task gave no
stack either."""


@dataclass(frozen=True, slots=True)
class Group:
    """What the tasks of one name did: in one operation, one thread or one process."""

    name: str
    holds: int = 0
    exclusive_ns: int = 0
    longest_exclusive_ns: int = 0
    shared_ns: int = 0
    longest_shared_ns: int = 0
    waits: int = 0
    waited_ns: int = 0
    longest_wait_ns: int = 0
    caused_ns: int = 0
    """How long others waited because of it."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many durations lie in [edges_ns[k], edges_ns[k + 1]), what is usual, what worst."""

    name: str
    edges_ns: tuple[int, ...]
    counts: tuple[int, ...]
    p50_ns: int
    p99_ns: int
    max_ns: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A recording, summed up. `explained` are the longest waits, the longest first."""

    analysis: Analysis
    explained: tuple[Explained, ...]
    queued: int
    waited_ns: int
    explained_ns: int
    by_operation: tuple[Group, ...]
    by_thread: tuple[Group, ...]
    by_process: tuple[Group, ...]
    histograms: tuple[Histogram, ...]
    calls: tuple[CallCount, ...]


def summarise(analysis: Analysis, *, explain: int = 5_000) -> Summary:
    """Sum up a recording, explaining its longest waits, up to `explain` of them."""
    waited = analysis.waits["wait_ns"]
    queued = np.flatnonzero(waited >= QUEUED_NS)
    longest = queued[np.argsort(-waited[queued], kind="stable")[:explain]]
    explained = tuple(analysis.explain_all(longest))
    rows = [
        *_hold_rows(analysis.holds),
        *_wait_rows(analysis.waits, queued),
        *_caused_rows(explained),
    ]
    operations = analysis.calls.operations
    tasks = analysis.events.tasks
    return Summary(
        analysis,
        explained,
        len(queued),
        int(waited[queued].sum()),
        int(waited[longest].sum()),
        _grouped(rows, lambda row: operation_name(operations, row.op)),
        _grouped(rows, lambda row: thread_name(tasks, row.tid)),
        _grouped(rows, lambda row: process_name(tasks, row.tid)),
        _histograms(analysis, queued),
        call_counts(analysis),
    )


def operation_name(operations: tuple[str, ...], op: int) -> str:
    """Name an operation, or say that there was none."""
    return NO_OPERATION if op == NO_OP else operations[op]


def thread_name(tasks: Mapping[int, RecordedTask], tid: int) -> str:
    """Name a thread as 'comm (tid 123)', or 'comm (tid 123, 7 in its container)'."""
    task = tasks.get(tid)
    if task is None or not task.comm:
        return f"tid {tid}"
    return f"{task.comm} (tid {tid}{_inside(task.inside[0])})"


def process_name(tasks: Mapping[int, RecordedTask], tid: int) -> str:
    """Name the process of a thread as 'name (pid 123)'; of a container's with its number there."""
    task = tasks.get(tid)
    if task is None:
        return f"process of tid {tid}"
    return f"{task.process or task.comm} (pid {task.pid}{_inside(task.inside[1])})"


def _inside(number: int) -> str:
    """Add the number that a task has for its own PID namespace, if it has another one."""
    return f", {number} in its container" if number else ""


@dataclass(frozen=True, slots=True)
class _Row:
    """A part of a group: all holds, all waits or all blame of one task in one operation."""

    tid: int
    op: int
    part: Group


def _cells(tid: Array, op: Array, values: Array) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (tid, op, count, sum, max) of every pair of task and operation."""
    if not len(tid):
        return
    width = int(op.max()) + 2
    tids = np.unique(tid)
    key = np.searchsorted(tids, tid) * width + op + 1
    count = np.bincount(key)
    total = np.zeros(len(count), np.int64)
    longest = np.zeros(len(count), np.int64)
    # bincount sums in floating point, which is exact up to 2**53 ns: 104 days.
    total[:] = np.bincount(key, weights=values)
    np.maximum.at(longest, key, values)
    for cell in np.flatnonzero(count).tolist():
        who, what = int(tids[cell // width]), cell % width - 1
        yield who, what, int(count[cell]), int(total[cell]), int(longest[cell])


def _hold_rows(holds: Holds) -> Iterator[_Row]:
    for exclusive in (True, False):
        rows = holds["exclusive"] == exclusive
        cells = _cells(holds["tid"][rows], holds["op"][rows], holds["hold_ns"][rows])
        for tid, op, count, total, longest in cells:
            if exclusive:
                part = Group("", count, exclusive_ns=total, longest_exclusive_ns=longest)
            else:
                part = Group("", count, shared_ns=total, longest_shared_ns=longest)
            yield _Row(tid, op, part)


def _wait_rows(waits: Waits, queued: Array) -> Iterator[_Row]:
    cells = _cells(waits["tid"][queued], waits["op"][queued], waits["wait_ns"][queued])
    for tid, op, count, total, longest in cells:
        part = Group("", waits=count, waited_ns=total, longest_wait_ns=longest)
        yield _Row(tid, op, part)


def _caused_rows(explained: Sequence[Explained]) -> Iterator[_Row]:
    if not explained:
        return
    columns = (
        np.concatenate([getattr(found.shares, name) for found in explained])
        for name in ("tid", "op", "share_ns")
    )
    for tid, op, _, total, _ in _cells(*columns):
        yield _Row(tid, op, Group("", caused_ns=total))


def _grouped(rows: list[_Row], name: Callable[[_Row], str]) -> tuple[Group, ...]:
    """Add the parts of each name; who made others wait longest comes first."""
    groups: dict[str, Group] = {}
    for row in rows:
        key = name(row)
        groups[key] = _plus(groups.get(key, Group(key)), row.part)
    order = {
        key: (-group.caused_ns, -group.longest_exclusive_ns, -group.longest_shared_ns, key)
        for key, group in groups.items()
    }
    return tuple(groups[key] for key in sorted(groups, key=lambda key: order[key]))


def _plus(left: Group, right: Group) -> Group:
    return Group(
        left.name,
        left.holds + right.holds,
        left.exclusive_ns + right.exclusive_ns,
        max(left.longest_exclusive_ns, right.longest_exclusive_ns),
        left.shared_ns + right.shared_ns,
        max(left.longest_shared_ns, right.longest_shared_ns),
        left.waits + right.waits,
        left.waited_ns + right.waited_ns,
        max(left.longest_wait_ns, right.longest_wait_ns),
        left.caused_ns + right.caused_ns,
    )


def _histograms(analysis: Analysis, queued: Array) -> tuple[Histogram, ...]:
    holds = analysis.holds
    exclusive = holds["exclusive"]
    return (
        _histogram("exclusive holds", holds["hold_ns"][exclusive]),
        _histogram("shared holds", holds["hold_ns"][~exclusive]),
        _histogram("waits", analysis.waits["wait_ns"][queued]),
    )


EDGES_NS = np.array([0, *(n * 10**k for k in range(2, 13) for n in (1, 3))], np.int64)
"""100 ns, 300 ns, 1 us, 3 us and so on: nearly equal steps on a scale of ratios."""


def _histogram(name: str, values: Array) -> Histogram:
    if not len(values):
        return Histogram(name, (), (), 0, 0, 0)
    counts = np.bincount(np.searchsorted(EDGES_NS, values, side="right") - 1)
    first = int(np.flatnonzero(counts)[0])
    edges = tuple(EDGES_NS[first : len(counts) + 1].tolist())
    p50, p99 = np.percentile(values, [50, 99], method="inverted_cdf")
    counted = tuple(counts[first:].tolist())
    return Histogram(name, edges, counted, int(p50), int(p99), int(values.max()))
