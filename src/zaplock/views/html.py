"""One self-contained page: the answer, a zoomable timeline, searchable tables. Works offline.

Python prepares the data (`html_data`) and the sentences; the page's own scripts draw and search:
`assets/data.js` unpacks the columns, `timeline.js` draws on a canvas, `tables.js` searches and
lists, `page.js` ties them together. Nothing is loaded from anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zaplock import outputs
from zaplock.trace.summary import Summary
from zaplock.units import duration
from zaplock.views.grid import Grid
from zaplock.views.html_data import packed, page_data
from zaplock.views.report_text import group_table
from zaplock.views.self_contained_page import page, safe_json
from zaplock.views.sentences import answer, heading

SCRIPTS = ("data.js", "timeline.js", "tables.js", "flame.js", "page.js")

MOST_GROUPS = 500
"""So many threads and processes are in the tables of the page."""


def write_html(summary: Summary, path: Path, *, made: str = "") -> Path:
    """Write the page; `made` says when and where it was recorded. UserError if it can't be."""
    outputs.write(path, render(summary, made=made))
    return path


def render(summary: Summary, *, made: str = "") -> str:
    """Return the whole page as text."""
    header = page_data(summary)
    layout, binary = packed(header.pop("columns"))
    return page(
        "page.html.j2",
        styles=["page.css"],
        scripts=SCRIPTS,
        title="Who held the mmap_lock, and who waited",
        about=". ".join(filter(None, (heading(summary.analysis), made))),
        answer=list(answer(summary)),
        grids=list(_groups(summary)),
        histograms=[histogram for histogram in summary.histograms if histogram.counts],
        duration=duration,
        header=safe_json({**header, "layout": layout}),
        binary=binary,
    )


def _groups(summary: Summary) -> Iterator[Grid]:
    yield group_table("By operation", summary.by_operation, MOST_GROUPS)
    yield group_table("By thread", summary.by_thread, MOST_GROUPS)
    yield group_table("By process", summary.by_process, MOST_GROUPS)
