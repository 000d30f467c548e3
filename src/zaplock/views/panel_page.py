"""Panels as one page: the answer, the tables, and all runs on one timeline to zoom into.

It is the report's timeline: a run is a title above its lanes, and all runs have one time axis.
What a bar tells when it is chosen comes from `panels.Bar`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.views.html_data import (
    COMPLETE,
    DOWNGRADED,
    EXCLUSIVE,
    NO_HOLD,
    halves,
    packed,
)
from zaplock.views.panels import Bar, PageText, Panel
from zaplock.views.self_contained_page import page, safe_json

SCRIPTS = ("data.js", "timeline.js", "tables.js", "page.js")
WAITED, STILL_WAITING = 0, 2
"""Outcomes, as `assets/data.js` numbers them."""

Row = tuple[int, int, Bar]
"""The number of a panel, of a lane, and the bar there."""


def render(panels: Sequence[Panel], *, title: str, axis: str, text: PageText) -> str:
    """Return the whole page as text."""
    header = panel_data(panels)
    layout, binary = packed(header.pop("columns"))
    return page(
        "panels.html.j2",
        styles=["page.css"],
        scripts=SCRIPTS,
        title=title,
        axis=axis.capitalize(),
        answer=[line for line in text.answer if line != title],
        grids=text.grids,
        after=text.after,
        header=safe_json({**header, "layout": layout}),
        binary=binary,
    )


def panel_data(panels: Sequence[Panel]) -> dict[str, Any]:
    """Return what `html_data.page_data` returns, of panels: a title lane and lanes for each."""
    lanes: list[dict[str, Any]] = []
    rows: list[Row] = []
    for number, one in enumerate(panels):
        lanes.append({"title": one.title, "tid": "", "comm": "", "pid": number, "process": ""})
        place = {lane: len(lanes) + at for at, lane in enumerate(one.lanes)}
        lanes += [
            {"tid": "", "comm": lane, "pid": number, "process": one.name} for lane in one.lanes
        ]
        rows += [(number, place[bar.lane], bar) for bar in one.bars if bar.lane in place]
    rows.sort(key=lambda row: row[2].start_ns)
    holds = [row for row in rows if row[2].style != "wait"]
    waits = [row for row in rows if row[2].style == "wait"]
    operations = list(dict.fromkeys(bar.what for *_, bar in rows if bar.what))
    columns = {**_columns("hold", holds, operations), **_columns("wait", waits, operations)}
    columns["wait_culprit"] = _culprits(holds, waits, lanes)
    return {
        "duration": max((bar.end_ns for *_, bar in rows), default=1),
        "whole": True,
        "lanes": lanes,
        "operations": operations,
        "mms": [one.name or one.title for one in panels],
        "gaps": [],
        "chains": {str(at): list(bar.told) for at, (*_, bar) in enumerate(waits) if bar.told},
        "stacks": [],
        "times": {},
        "left_out": [0, 0],
        "columns": columns,
    }


def _columns(name: str, rows: Sequence[Row], operations: list[str]) -> dict[str, NDArray[Any]]:
    bars = [bar for *_, bar in rows]
    place = {operation: at for at, operation in enumerate(operations)}
    starts = np.array([bar.start_ns for bar in bars], np.int64)
    spans = np.array([bar.end_ns - bar.start_ns for bar in bars], np.int64)
    empty = np.zeros(len(bars), np.int64)
    return {
        **halves(f"{name}_start", np.diff(starts, prepend=0)),
        **halves(f"{name}_span", spans),
        **halves(f"{name}_length", empty),
        f"{name}_lane": np.array([lane for _, lane, _ in rows], np.int32),
        f"{name}_op": np.array([place.get(bar.what, -1) for bar in bars], np.int32),
        f"{name}_mm": np.array([panel for panel, *_ in rows], np.int32),
        f"{name}_flags": np.array([_flags(bar) for bar in bars], np.uint32),
        f"{name}_stack": np.full(len(bars), NO_HOLD, np.int32),
        f"{name}_outcome": np.array([_outcome(bar) for bar in bars], np.uint32),
    }


def _flags(bar: Bar) -> int:
    flags = EXCLUSIVE if bar.exclusive else 0
    flags |= DOWNGRADED if bar.style == "shared after downgrade" else 0
    return flags | (COMPLETE if bar.seen == "whole" else 0)


def _outcome(bar: Bar) -> int:
    return WAITED if bar.seen == "whole" else STILL_WAITING


def _culprits(
    holds: Sequence[Row], waits: Sequence[Row], lanes: Sequence[dict[str, Any]]
) -> NDArray[Any]:
    """Find, for each wait, the hold of its panel that it is due to."""
    place = {
        (panel, lanes[lane]["comm"], bar.start_ns): at
        for at, (panel, lane, bar) in enumerate(holds)
    }
    found = [
        NO_HOLD if bar.culprit is None else place.get((panel, *bar.culprit), NO_HOLD)
        for panel, _, bar in waits
    ]
    return np.array(found, np.int32)
