"""The report in a terminal: the answer in sentences, then the tables it rests on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from zaplock.trace import summary as figures
from zaplock.trace.analysis import Analysis
from zaplock.trace.holds import Holds
from zaplock.trace.summary import Histogram, Summary, process_name
from zaplock.units import duration, size
from zaplock.views.found import found_lines, present_lines
from zaplock.views.headlines import headlines
from zaplock.views.live import now
from zaplock.views.report_json import longest
from zaplock.views.screen import Screen
from zaplock.views.slowness import WORTH_NS, of_culprit, split
from zaplock.views.stacks import of_wait, sentence
from zaplock.views.words import answer, chain, doing, heading, owner, wait_sentence, who

BAR = 40
"""Width of the longest bar of a histogram, in characters."""


def report_text(summary: Summary, *, top: int) -> RenderableType:
    """Lay out a whole report for `rich`."""
    analysis = summary.analysis
    return Group(
        Text(heading(analysis)),
        Text(),
        *(Text(line) for line in answer(summary)),
        *(Text(line) for line in headlines(analysis)),
        *(Text(line) for line in found_lines(analysis)),
        Text(),
        *_gaps(analysis, top),
        _longest_holds(analysis, top, exclusive=True),
        _longest_holds(analysis, top, exclusive=False),
        *_worst_waits(summary, top),
        _Groups("By operation", summary.by_operation, top),
        _Groups("By thread", summary.by_thread, top),
        _Groups("By process", summary.by_process, top),
        *_calls(summary, top),
        *(_histogram(histogram) for histogram in summary.histograms if histogram.counts),
    )


def live_screen(summary: Summary, *, top: int) -> RenderableType:
    """Lay out one screen of `zaplock top`: now, the worst waits, who made others wait."""
    return Group(
        Text(heading(summary.analysis), style="bold"),
        Text(),
        *(Text(line) for line in now(summary.analysis)),
        *(Text(line) for line in present_lines(summary.analysis)),
        *(Text(line) for line in headlines(summary.analysis)),
        Text(),
        *_worst_waits(summary, max(1, top // 2)),
        _Groups("By thread", summary.by_thread, top),
        _Groups("By operation", summary.by_operation, top),
    )


def console(*, stderr: bool = False) -> Screen:
    """Make a console that doesn't fold its tables when the output goes to a file or a pipe."""
    wide = Screen(stderr=stderr, highlight=False)
    return wide if wide.is_terminal else Screen(stderr=stderr, highlight=False, width=160)


def _table(columns: Iterable[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        name, right = column.removeprefix(">"), column.startswith(">")
        table.add_column(name, justify="right" if right else "left", no_wrap=right)
    return table


def _row(table: Table, *cells: str) -> None:
    """Add a row of plain text: a task may be called "[/]", which rich would take for markup."""
    table.add_row(*(Text(cell) for cell in cells))


def _titled(title: str, table: Table) -> RenderableType:
    """Put a title above a table (rich would fold its own titles to the width of the table)."""
    return Group(Text(title, style="bold"), table, Text())


def _gaps(analysis: Analysis, top: int) -> list[RenderableType]:
    """List the longest gaps, where there are any."""
    gaps = sorted(analysis.segments.gaps, key=lambda gap: gap.start_ns - gap.end_ns)
    if not gaps:
        return []
    table = _table((">gap of", ">at", ">cpu", ">events"))
    for gap in gaps[:top]:
        count = f"{gap.count:,}" if gap.count >= 0 else "unknown"
        span = duration(gap.end_ns - gap.start_ns)
        _row(table, span, _at(analysis, gap.start_ns), str(gap.cpu), count)
    return [_titled("Missing events, the longest gaps", table)]


def _longest_holds(analysis: Analysis, top: int, *, exclusive: bool) -> RenderableType:
    rows = np.flatnonzero(analysis.holds["exclusive"] == exclusive)
    holds = analysis.holds.only(rows)
    name = "exclusive" if exclusive else "shared"
    table = _table((">held", ">at", "task", "operation", "lock of", "remark"))
    shown = longest(holds["hold_ns"], top)
    for row in shown:
        _row(
            table,
            duration(int(holds["hold_ns"][row])),
            _at(analysis, int(holds["start_ns"][row])),
            who(analysis, int(holds["tid"][row])),
            doing(holds, row),
            owner(analysis, int(holds["mm"][row])),
            _remark(holds, row),
        )
    found = [int(rows[row]) for row in shown]
    more = [*_times_of(analysis, found), *_stacks_of(analysis, found)]
    return Group(_titled(f"Longest {name} holds", table), *more)


def _times_of(analysis: Analysis, rows: list[int]) -> list[RenderableType]:
    """Say where the time of long holds went, where that is known."""
    lines = []
    for row in rows:
        spent = analysis.hold_time(row)
        if spent.whole_ns >= WORTH_NS and spent.unknown_ns < spent.whole_ns:
            lines.append(Text(f"{duration(spent.whole_ns)}: {split(spent)}"))
    return [Text("Where their time went", style="bold"), *lines, Text()] if lines else []


def _stacks_of(analysis: Analysis, rows: list[int]) -> list[RenderableType]:
    """Say where the holds of a table were, each place once."""
    places: dict[str, list[str]] = {}
    for row in rows:
        if stack := analysis.hold_stack(row):
            held = duration(int(analysis.holds["hold_ns"][row]))
            places.setdefault(sentence(stack), []).append(held)
    if not places:
        return []
    lines = [Text(f"{', '.join(held)} {place}") for place, held in places.items()]
    return [Text("Their stacks, innermost function first", style="bold"), *lines, Text()]


def _remark(holds: Holds, row: int) -> str:
    remarks = []
    if holds["downgraded"][row]:
        remarks.append("ended by downgrade" if holds["exclusive"][row] else "after downgrade")
    if not holds["complete"][row]:
        remarks.append("seen in part")
    return ", ".join(remarks)


def _calls(summary: Summary, top: int) -> list[RenderableType]:
    """List the calls in which most time was spent, with or without an mmap_lock."""
    counts = summary.calls
    if not counts:
        return []
    table = _table(("", ">calls", ">in all", ">longest", ">bytes", ">without mmap_lock", "process"))
    for one in counts[:top]:
        _row(
            table,
            one.operation,
            f"{one.count:,}",
            "" if one.total_ns is None else duration(one.total_ns),
            "" if one.longest_ns is None else duration(one.longest_ns),
            size(one.length) if one.length else "",
            f"{one.without_lock:,}",
            process_name(summary.analysis.events.tasks, one.pid),
        )
    if len(counts) > top:
        _row(table, f"... and {len(counts) - top:,} more (--top)")
    return [_titled("Time in calls", table)]


def _at(analysis: Analysis, time_ns: int) -> str:
    return f"{(time_ns - analysis.begin_ns) / 1e9:.6f} s"


def _worst_waits(summary: Summary, top: int) -> list[RenderableType]:
    analysis = summary.analysis
    if not summary.explained:
        return []
    lines: list[RenderableType] = [Text("Worst waits and their chains", style="bold")]
    for found in summary.explained[:top]:
        at = _at(analysis, int(analysis.waits["start_ns"][found.wait]))
        lines.append(Text(f"at {at}: {wait_sentence(analysis, found.wait)}:"))
        lines += [Text(f"    {line}") for line in chain(analysis, found)]
        lines += [Text(line) for line in of_culprit(analysis, found)]
        lines += [Text(line) for line in of_wait(analysis, found)]
    if summary.explained_ns < summary.waited_ns:
        lines.append(
            Text(
                f"(blame is worked out for the {len(summary.explained):,} longest waits, "
                f"{duration(summary.explained_ns)} of {duration(summary.waited_ns)})"
            )
        )
    return [*lines, Text()]


@dataclass(frozen=True, slots=True)
class _Groups:
    """A table of groups that leaves columns out where the terminal is narrow."""

    title: str
    groups: tuple[figures.Group, ...]
    top: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        brief = options.max_width < WIDE
        columns = BRIEF if brief else FULL
        table = _table(("", *(f">{name}" for name, _ in columns)))
        table.columns[0].min_width = 16
        for group in self.groups[: self.top]:
            _row(table, group.name, *(_value(group, field) for _, field in columns))
        if len(self.groups) > self.top:
            _row(table, f"... and {len(self.groups) - self.top:,} more (--top)")
        yield _titled(self.title, table)


WIDE = 118
"""From this width on a terminal has room for all columns."""

FULL = (
    ("made others wait", "caused_ns"),
    ("waited", "waited_ns"),
    ("longest wait", "longest_wait_ns"),
    ("holds", "holds"),
    ("exclusive", "exclusive_ns"),
    ("longest", "longest_exclusive_ns"),
    ("shared", "shared_ns"),
    ("longest", "longest_shared_ns"),
)
BRIEF = (
    ("caused", "caused_ns"),
    ("waited", "waited_ns"),
    ("exclusive", "longest_exclusive_ns"),
    ("shared", "longest_shared_ns"),
)
"""Of the holds the longest, which says more than their sum."""


def _value(group: figures.Group, field: str) -> str:
    value = int(getattr(group, field))
    if field == "holds":
        return f"{value:,}"
    return duration(value) if value else "-"


def _histogram(histogram: Histogram) -> RenderableType:
    most = max(histogram.counts)
    title = (
        f"{histogram.name.capitalize()}: {sum(histogram.counts):,}, half within "
        f"{duration(histogram.p50_ns)}, 99 % within {duration(histogram.p99_ns)}, "
        f"the longest {duration(histogram.max_ns)}"
    )
    lines = [Text(title, style="bold")]
    edges = histogram.edges_ns
    for low, high, count in zip(edges, (*edges[1:], None), histogram.counts):
        until = f"to {duration(high)}" if high else "and more"
        bar = "#" * -(-count * BAR // most)
        lines.append(Text(f"  {duration(low):>6} {until:<9} {count:>11,}  {bar}"))
    return Group(*lines, Text())
