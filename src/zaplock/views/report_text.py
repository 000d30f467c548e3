"""The report in a terminal: the answer in sentences, then the tables it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from zaplock.trace import summary as figures
from zaplock.trace.analysis import Analysis
from zaplock.trace.holds import Holds
from zaplock.trace.summary import Histogram, Summary, process_name
from zaplock.units import duration, size
from zaplock.views.console import Said
from zaplock.views.grid import Grid, beyond, figure, words
from zaplock.views.headlines import headlines
from zaplock.views.initial_state import found_lines, present_lines
from zaplock.views.live import now
from zaplock.views.report_json import longest
from zaplock.views.sentences import (
    LONG_WAIT_NS,
    answer,
    chain,
    doing,
    heading,
    owner,
    wait_sentence,
    who,
)
from zaplock.views.slow_holds import WORTH_NS, of_culprit, split
from zaplock.views.stacks import of_wait, sentence

BAR = 40
"""Width of the longest bar of a histogram, in characters."""


def report_text(summary: Summary, *, top: int, made: str = "") -> RenderableType:
    """Lay out a whole report for `rich`; `made` says when and where it was recorded."""
    analysis = summary.analysis
    return Group(
        Said(heading(analysis)),
        *([Said(made)] if made else []),
        Text(),
        *(Said(line) for line in answer(summary)),
        *(Said(line) for line in headlines(analysis)),
        *(Said(line) for line in found_lines(analysis)),
        Text(),
        *_gaps(analysis, top),
        _longest_holds(analysis, top, exclusive=True),
        _longest_holds(analysis, top, exclusive=False),
        *_worst_waits(summary, top),
        *_groups("By operation", summary.by_operation, top),
        *_groups("By thread", summary.by_thread, top),
        *_groups("By process", summary.by_process, top),
        *_calls(summary, top),
        *(_histogram(histogram) for histogram in summary.histograms if histogram.counts),
    )


def live_screen(summary: Summary, *, top: int, of_all: bool = False) -> RenderableType:
    """Lay out one screen of `zaplock top`: now, the worst waits, who made others wait.

    `of_all`: it is about more than one lock.
    """
    return Group(
        Said(heading(summary.analysis), style="bold"),
        Text(),
        *(Said(line) for line in now(summary.analysis, of_all=of_all)),
        *(Said(line) for line in present_lines(summary.analysis)),
        *(Said(line) for line in headlines(summary.analysis)),
        Text(),
        *_worst_waits(summary, max(1, top // 2)),
        *_groups("By thread", summary.by_thread, top),
        *_groups("By operation", summary.by_operation, top),
    )


def _titled(table: Grid) -> list[RenderableType]:
    """Put a blank line below a table; nothing where it has no row."""
    return [table, Text()] if table.rows else []


def _gaps(analysis: Analysis, top: int) -> list[RenderableType]:
    """List the longest gaps, where there are any."""
    gaps = sorted(analysis.segments.gaps, key=lambda gap: gap.start_ns - gap.end_ns)
    if not gaps:
        return []
    columns = (figure("gap of"), figure("at"), figure("cpu", rank=1), figure("events"))
    rows = [
        (
            duration(gap.end_ns - gap.start_ns),
            _at(analysis, gap.start_ns),
            str(gap.cpu),
            f"{gap.count:,}" if gap.count >= 0 else "unknown",
        )
        for gap in gaps[:top]
    ]
    return _titled(Grid(columns, rows, "Missing events, the longest gaps"))


HOLDS = (
    figure("held"),
    figure("at", rank=3),
    words("task"),
    words("operation"),
    words("lock of", rank=2),
    words("remark", rank=1),
)


def _longest_holds(analysis: Analysis, top: int, *, exclusive: bool) -> RenderableType:
    rows = np.flatnonzero(analysis.holds["exclusive"] == exclusive)
    holds = analysis.holds.only(rows)
    name = "exclusive" if exclusive else "shared"
    shown = longest(holds["hold_ns"], top)
    cells = [
        (
            duration(int(holds["hold_ns"][row])),
            _at(analysis, int(holds["start_ns"][row])),
            who(analysis, int(holds["tid"][row])),
            doing(holds, row),
            owner(analysis, int(holds["mm"][row])),
            _remark(holds, row),
        )
        for row in shown
    ]
    found = [int(rows[row]) for row in shown]
    more = [*_times_of(analysis, found), *_stacks_of(analysis, found)]
    return Group(*_titled(Grid(HOLDS, cells, f"Longest {name} holds")), *more)


def _times_of(analysis: Analysis, rows: list[int]) -> list[RenderableType]:
    """Say where the time of long holds went, where that is known."""
    lines = []
    for row in rows:
        spent = analysis.hold_time(row)
        if spent.whole_ns >= WORTH_NS and spent.unknown_ns < spent.whole_ns:
            lines.append(Said(f"{duration(spent.whole_ns)}: {split(spent)}"))
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
    lines = [Said(f"{', '.join(held)} {place}") for place, held in places.items()]
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
    rows = [
        (
            one.operation,
            f"{one.count:,}",
            "" if one.total_ns is None else duration(one.total_ns),
            "" if one.longest_ns is None else duration(one.longest_ns),
            size(one.length) if one.length else "",
            "not known" if one.without_lock is None else f"{one.without_lock:,}",
            process_name(summary.analysis.events.tasks, one.pid),
        )
        for one in counts[:top]
    ]
    return _titled(Grid(CALLS, rows, "Time in calls", beyond(len(counts) - top)))


CALLS = (
    words("call"),
    figure("calls"),
    figure("in all"),
    figure("longest", rank=1),
    figure("bytes", rank=3),
    figure("without mmap_lock", rank=4),
    words("process", rank=2),
)


def _at(analysis: Analysis, time_ns: int) -> str:
    return f"{(time_ns - analysis.begin_ns) / 1e9:.6f} s"


def _worst_waits(summary: Summary, top: int) -> list[RenderableType]:
    analysis = summary.analysis
    if not summary.explained:
        return []
    lines: list[RenderableType] = [Text("Worst waits and their chains", style="bold")]
    for found in summary.explained[:top]:
        at = _at(analysis, int(analysis.waits["start_ns"][found.wait]))
        lines.append(Said(f"at {at}: {wait_sentence(analysis, found.wait)}:"))
        lines += [Said(f"    {line}") for line in chain(analysis, found)]
        lines += [Said(line) for line in of_culprit(analysis, found)]
        lines += [Said(line) for line in of_wait(analysis, found)]
    if summary.explained_ns < summary.waited_ns:
        lines.append(
            Said(
                f"(blame is worked out for the {len(summary.explained):,} longest waits, "
                f"{duration(summary.explained_ns)} of {duration(summary.waited_ns)})"
            )
        )
    return [*lines, Text()]


GROUP = (
    ("made others wait", 0, "caused_ns"),
    ("waited", 0, "waited_ns"),
    ("longest wait", 2, "longest_wait_ns"),
    ("holds", 4, "holds"),
    ("exclusive in all", 3, "exclusive_ns"),
    ("longest exclusive", 1, "longest_exclusive_ns"),
    ("shared in all", 3, "shared_ns"),
    ("longest shared", 1, "longest_shared_ns"),
)
"""The columns of a table of groups: of the holds the longest says more than their sum."""


def _groups(title: str, groups: tuple[figures.Group, ...], top: int) -> list[RenderableType]:
    return _titled(group_table(title, groups, top))


def group_table(title: str, groups: tuple[figures.Group, ...], top: int) -> Grid:
    """Draw groups; those that could hardly make anybody wait are only counted, where others can."""
    told = [group for group in groups if _is_told(group)] or list(groups)
    columns = (words(title.removeprefix("By ")), *(figure(name, rank) for name, rank, _ in GROUP))
    rows = [(group.name, *(_value(group, field) for *_, field in GROUP)) for group in told[:top]]
    idle = len(groups) - len(told)
    others = "... and 1 other" if idle == 1 else f"... and {idle:,} others"
    more = [beyond(len(told) - top)]
    held = duration(LONG_WAIT_NS)
    if idle:
        more.append(f"{others} that neither waited nor made others wait, nor held it for {held}")
    return Grid(columns, rows, title, "; ".join(filter(None, more)))


def _is_told(group: figures.Group) -> bool:
    """Say whether a group had to do with waiting, or held the lock so long that somebody may."""
    longest_ns = max(group.longest_exclusive_ns, group.longest_shared_ns)
    return bool(group.caused_ns or group.waited_ns) or longest_ns >= LONG_WAIT_NS


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
    lines: list[RenderableType] = [Said(title, style="bold")]
    edges = histogram.edges_ns
    for low, high, count in zip(edges, (*edges[1:], None), histogram.counts):
        until = f"to {duration(high)}" if high else "and more"
        lines.append(_Bar(f"  {duration(low):>6} {until:<9} {count:>11,}  ", count / most))
    return Group(*lines, Text())


@dataclass(frozen=True, slots=True)
class _Bar:
    """A line of a histogram; its bar has what room is left."""

    label: str
    part: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = min(BAR, options.max_width - len(self.label))
        bar = "#" * ceil(self.part * max(0, room))
        yield Text((self.label + bar).rstrip(), no_wrap=True, overflow="ignore")
