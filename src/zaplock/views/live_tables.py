"""The tables of `zaplock top` as rows that can be sorted, found again and asked about.

A row is found again in the next screen by its key: the same wait, hold, thread or operation. What
it is sorted by are plain values beside its cells, so that 900 us comes before 1 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from zaplock.trace.analysis import Analysis
from zaplock.trace.blame import Explained
from zaplock.trace.summary import (
    NO_OPERATION,
    QUEUED_NS,
    Group,
    Summary,
    process_name,
    thread_name,
)
from zaplock.trace.waits import WaitOutcome
from zaplock.units import duration
from zaplock.views.grid import Column, figure, words
from zaplock.views.live import holding_now
from zaplock.views.report_json import longest
from zaplock.views.sentences import chain, doing, hold_sentence, owner, wait_sentence, who
from zaplock.views.slow_holds import of_culprit, why_slow

MOST_ROWS = 200
"""A table has so many rows, the longest or heaviest."""

BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII_BLOCKS = " .:-=+*#%"

Value = int | str


@dataclass(frozen=True, slots=True)
class LiveRow:
    """A row: `key` names it from screen to screen, `place` is its row in this analysis, or -1."""

    key: str
    cells: tuple[str, ...]
    values: tuple[Value, ...]
    place: int = -1


@dataclass(frozen=True, slots=True)
class LiveTable:
    """One of the tables; its first column is what it is sorted by if nothing else is said."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[LiveRow, ...]

    def sorted(self, column: int, *, down: bool) -> LiveTable:
        """Order the rows by a column's values."""
        rows = sorted(self.rows, key=lambda row: row.values[column], reverse=down)
        return replace(self, rows=tuple(rows))

    def matching(self, text: str) -> LiveTable:
        """Leave the rows in which each word of a text stands somewhere."""
        asked = text.lower().split()
        rows = [row for row in self.rows if _has(row, asked)]
        return replace(self, rows=tuple(rows))


def _has(row: LiveRow, asked: Sequence[str]) -> bool:
    said = " ".join(row.cells).lower()
    return all(word in said for word in asked)


def live_tables(summary: Summary) -> tuple[LiveTable, ...]:
    """Make all the tables of one screen."""
    return (
        _waits(summary),
        _holds(summary.analysis),
        _groups("threads", summary.by_thread),
        _groups("operations", summary.by_operation),
        _groups("processes", summary.by_process),
    )


WAITS = (
    figure("waited"),
    words("now"),
    words("task"),
    words("operation", rank=1),
    words("behind", rank=2),
    words("lock of", rank=4),
    figure("at", rank=3),
)


def _waits(summary: Summary) -> LiveTable:
    """List the longest waits of the window, over or not."""
    analysis = summary.analysis
    waits = analysis.waits
    explained = {found.wait: found for found in summary.explained}
    queued = np.flatnonzero(waits["wait_ns"] >= QUEUED_NS)
    rows = []
    for place in longest(waits["wait_ns"][queued], MOST_ROWS):
        row = int(queued[place])
        start_ns, tid = int(waits["start_ns"][row]), int(waits["tid"][row])
        going = int(waits["outcome"][row]) == WaitOutcome.WAITING
        cells = (
            duration(int(waits["wait_ns"][row])),
            "waits" if going else "",
            who(analysis, tid),
            doing(waits, row),
            _culprit(explained.get(row)),
            owner(analysis, int(waits["mm"][row])),
            _at(analysis, start_ns),
        )
        values = (int(waits["wait_ns"][row]), *cells[1:6], start_ns)
        rows.append(LiveRow(f"{tid} {start_ns}", cells, values, row))
    return LiveTable("waits", WAITS, tuple(rows))


def _culprit(found: Explained | None) -> str:
    if found is None or found.culprit is None:
        return ""
    blame = found.culprit
    return f"{blame.comm} (tid {blame.tid})" if blame.comm else f"tid {blame.tid}"


HOLDS = (
    figure("held"),
    words("now"),
    words("task"),
    words("operation", rank=1),
    words("mode"),
    words("lock of", rank=3),
    figure("at", rank=2),
)


def _holds(analysis: Analysis) -> LiveTable:
    """List the longest holds of the window, over or not."""
    holds, going = analysis.holds, set(holding_now(analysis))
    chosen = dict.fromkeys([*going, *longest(holds["hold_ns"], MOST_ROWS)])
    rows = []
    for row in map(int, chosen):
        start_ns, tid = int(holds["start_ns"][row]), int(holds["tid"][row])
        cells = (
            duration(int(holds["hold_ns"][row])),
            "holds" if row in going else "",
            who(analysis, tid),
            doing(holds, row),
            "exclusive" if holds["exclusive"][row] else "shared",
            owner(analysis, int(holds["mm"][row])),
            _at(analysis, start_ns),
        )
        values = (int(holds["hold_ns"][row]), *cells[1:6], start_ns)
        rows.append(LiveRow(f"{tid} {start_ns}", cells, values, row))
    return LiveTable("holds", HOLDS, tuple(rows))


def _at(analysis: Analysis, time_ns: int) -> str:
    """Say when something began, by how long that is ago."""
    return f"-{duration(max(0, int(analysis.segments.end_ns[-1]) - time_ns))}"


FIGURES = (
    ("made others wait", 0, "caused_ns"),
    ("waited", 0, "waited_ns"),
    ("longest wait", 1, "longest_wait_ns"),
    ("longest exclusive", 2, "longest_exclusive_ns"),
    ("longest shared", 3, "longest_shared_ns"),
    ("holds", 4, "holds"),
)


def _groups(name: str, groups: Sequence[Group]) -> LiveTable:
    columns = (*(figure(head, rank) for head, rank, _ in FIGURES), words(name.removesuffix("s")))
    columns = (columns[0], columns[-1], *columns[1:-1])
    rows = []
    for group in groups[:MOST_ROWS]:
        values = [int(getattr(group, field)) for *_, field in FIGURES]
        cells = [duration(value) if value else "-" for value in values[:-1]] + [f"{values[-1]:,}"]
        rows.append(
            LiveRow(
                group.name,
                (cells[0], group.name, *cells[1:]),
                (values[0], group.name, *values[1:]),
            )
        )
    return LiveTable(name, columns, tuple(rows))


def about(summary: Summary, table: LiveTable, row: LiveRow) -> Iterator[str]:
    """Tell the story of a row: the chain of a wait, why a hold was slow, each with its stack."""
    analysis = summary.analysis
    if table.name == "waits":
        yield from _of_wait(analysis, row.place)
    elif table.name == "holds":
        yield from _of_hold(analysis, row.place)
    else:
        yield from _of_group(summary, table.name, row.key)


def _of_wait(analysis: Analysis, row: int) -> Iterator[str]:
    yield f"{wait_sentence(analysis, row)}:"
    found = analysis.explain(row)
    yield from (f"    {line}" for line in chain(analysis, found))
    yield from of_culprit(analysis, found)
    if stack := analysis.wait_stack(row):
        yield "the waiter's stack, innermost function first:"
        yield from _frames(stack.kernel, stack.user)
    if found.culprit and (stack := analysis.blamed_stack(found.culprit)):
        yield f"the stack of {_culprit(found)}:"
        yield from _frames(stack.kernel, stack.user)


def _of_hold(analysis: Analysis, row: int) -> Iterator[str]:
    so_far = row in holding_now(analysis)
    yield f"{hold_sentence(analysis, row, so_far=so_far)}."
    yield from (f"    {line}" for line in why_slow(analysis, row))
    if stack := analysis.hold_stack(row):
        yield "its stack, innermost function first:"
        yield from _frames(stack.kernel, stack.user)


def _frames(kernel: Sequence[str], user: Sequence[str]) -> Iterator[str]:
    yield from (f"    {frame} (kernel)" for frame in kernel)
    yield from (f"    {frame}" for frame in user)


def _of_group(summary: Summary, name: str, key: str) -> Iterator[str]:
    """Tell the worst wait that a thread, an operation or a process had or was the cause of."""
    analysis = summary.analysis
    for found in summary.explained:
        tid = int(analysis.waits["tid"][found.wait])
        roles = [(tid, doing(analysis.waits, found.wait))]
        if found.culprit:
            roles.append((found.culprit.tid, found.culprit.operation))
        if any(_is(summary, name, key, *role) for role in roles):
            yield from _of_wait(analysis, found.wait)
            return
    yield f"{key} neither waited nor made others wait."


def _is(summary: Summary, name: str, key: str, tid: int, operation: str) -> bool:
    if name == "operations":
        return (operation.partition(" of ")[0] or NO_OPERATION) == key
    tasks = summary.analysis.events.tasks
    return (thread_name if name == "threads" else process_name)(tasks, tid) == key


def waiting(analysis: Analysis, bins: int) -> list[float]:
    """Return how many tasks waited on average in each of `bins` equal parts of the recording."""
    waits = analysis.waits
    edges = np.linspace(analysis.recorded_ns, int(analysis.segments.end_ns[-1]), bins + 1)
    queued = waits["wait_ns"] >= QUEUED_NS
    start, span = waits["start_ns"][queued], waits["wait_ns"][queued]
    so_far = [float(np.clip(edge - start, 0, span).sum()) for edge in edges]
    part_ns = max(1.0, float(edges[-1] - edges[0]) / bins)
    return [(after - before) / part_ns for before, after in pairwise(so_far)]


def spark(values: Sequence[float], *, blocks: str = BLOCKS) -> str:
    """Draw values as a line of blocks from nothing to the greatest; what is not nothing is seen.

    >>> spark([0, 0.1, 2, 4])
    ' ▁▄█'
    """
    most = max(values, default=0.0)
    steps = len(blocks) - 1
    level = partial(_level, most=most, steps=steps)
    return "".join(blocks[level(value)] for value in values)


def _level(value: float, *, most: float, steps: int) -> int:
    return 0 if value <= 0 else max(1, round(value / most * steps))
