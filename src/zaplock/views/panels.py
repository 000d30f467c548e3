"""Runs as panels: a lane for each task, bars for its holds and waits, on one axis of time.

Pictures (`timeline`) and pages (`panel_page`) draw them. What a bar tells when it is chosen in a
page, and which hold a wait is due to, is worked out for the longest waits (`explained`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from zaplock.trace.analysis import Analysis
from zaplock.trace.blame import VMA
from zaplock.trace.summary import QUEUED_NS
from zaplock.trace.waits import WaitOutcome
from zaplock.views.report_json import longest
from zaplock.views.sentences import chain, doing

if TYPE_CHECKING:
    from zaplock.views.grid import Grid

MOST_IDLE = 12
"""Up to so many tasks have a lane even if they did nothing with the lock."""

Extent = Literal["whole", "in part"]
"""Whether both ends of a hold, or the end of a wait, were seen."""

EXPLAINED = 40
"""Of so many of a panel's waits, the longest, the page tells why they were long."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One hold or wait; `style` is a key of `timeline.COLOURS`, times are its panel's."""

    lane: str
    style: str
    start_ns: int
    end_ns: int
    part: float = 1.0
    """How much of that time is really covered: less than 1 where short ones stand for a pixel."""
    seen: Extent = "whole"
    exclusive: bool = False
    what: str = ""
    """The operation, such as "munmap of 8 GiB", where one is known."""
    told: tuple[str, ...] = ()
    """Why a wait was long, line by line, where that is worked out."""
    culprit: tuple[str, int] | None = None
    """Lane and beginning of the hold that a wait is mostly due to."""


@dataclass(frozen=True, slots=True)
class PageText:
    """What a page has around its pictures: sentences before, tables, and sentences at the end."""

    answer: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    after: tuple[str, ...] = ()


NO_TEXT = PageText()


@dataclass(frozen=True, slots=True)
class Panel:
    """One run: a title, its lanes from top to bottom, its bars."""

    title: str
    lanes: tuple[str, ...]
    bars: tuple[Bar, ...]
    name: str = ""
    """The title in a word, such as the design's name; "": the title itself."""


def panel(title: str, analysis: Analysis, begin_ns: int, end_ns: int) -> Panel:
    """Make a panel of what happened in [begin_ns, end_ns); a lane for each name of a task."""
    names = _lanes(analysis)
    lanes = dict.fromkeys(names.values())
    bars = [*_holds(analysis, names), *_waits(analysis, names)]
    inside = [
        _within(bar, begin_ns) for bar in bars if bar.start_ns < end_ns and bar.end_ns > begin_ns
    ]
    seen = dict.fromkeys(bar.lane for bar in inside)
    # A lane without a bar says something too (nobody waits), unless there are hundreds of them.
    shown = lanes | seen if len(lanes) <= MOST_IDLE else seen
    return Panel(title, tuple(shown), tuple(inside))


def _within(bar: Bar, begin_ns: int) -> Bar:
    """Let a bar's times count from the panel's begin."""
    start_ns, end_ns = max(bar.start_ns, begin_ns) - begin_ns, bar.end_ns - begin_ns
    return replace(bar, start_ns=start_ns, end_ns=end_ns)


def _lanes(analysis: Analysis) -> dict[int, str]:
    """Name every thread: by its number, too, where another one is called the same."""
    comms = {tid: task.comm for tid, task in analysis.events.tasks.items()}
    alike = Counter(comms.values())
    return {tid: comm if alike[comm] == 1 else f"{comm} {tid}" for tid, comm in comms.items()}


def _lane(names: Mapping[int, str], tid: int) -> str:
    return names.get(tid, f"tid {tid}")


def _holds(analysis: Analysis, names: Mapping[int, str]) -> Iterable[Bar]:
    holds = analysis.holds
    ends = holds.end_ns
    for row in range(len(holds)):
        exclusive = bool(holds["exclusive"][row])
        style = "exclusive hold" if exclusive else "shared hold"
        if style == "shared hold" and holds["downgraded"][row]:
            style = "shared after downgrade"
        lane = _lane(names, int(holds["tid"][row]))
        seen: Extent = "whole" if holds["complete"][row] else "in part"
        start_ns, end_ns = int(holds["start_ns"][row]), int(ends[row])
        what = doing(holds, row)
        yield Bar(lane, style, start_ns, end_ns, seen=seen, exclusive=exclusive, what=what)


def _waits(analysis: Analysis, names: Mapping[int, str]) -> Iterable[Bar]:
    waits = analysis.waits
    ends = waits.end_ns
    for row in np.flatnonzero(waits["wait_ns"] >= QUEUED_NS).tolist():
        lane = _lane(names, int(waits["tid"][row]))
        over = int(waits["outcome"][row]) != WaitOutcome.WAITING and not waits["partial"][row]
        start_ns, end_ns = int(waits["start_ns"][row]), int(ends[row])
        seen: Extent = "whole" if over else "in part"
        exclusive, what = bool(waits["exclusive"][row]), doing(waits, row)
        yield Bar(lane, "wait", start_ns, end_ns, seen=seen, exclusive=exclusive, what=what)


def explained(one: Panel, analysis: Analysis, begin_ns: int) -> Panel:
    """Say of the longest waits of a panel why they were long, and which hold they are due to."""
    names, holds = _lanes(analysis), analysis.holds
    waits = analysis.waits
    told: dict[tuple[str, int], tuple[tuple[str, ...], tuple[str, int] | None]] = {}
    for row in longest(waits["wait_ns"], EXPLAINED):
        found = analysis.explain(row)
        hold = next(iter(found.shares.row[found.shares.why <= VMA].tolist()), None)
        culprit = None
        if hold is not None:
            start_ns = max(int(holds["start_ns"][hold]), begin_ns) - begin_ns
            culprit = _lane(names, int(holds["tid"][hold])), start_ns
        key = _lane(names, int(waits["tid"][row])), int(waits["start_ns"][row]) - begin_ns
        told[key] = tuple(chain(analysis, found)), culprit
    bars = []
    for bar in one.bars:
        why = told.get((bar.lane, bar.start_ns)) if bar.style == "wait" else None
        bars.append(replace(bar, told=why[0], culprit=why[1]) if why else bar)
    return replace(one, bars=tuple(bars))
