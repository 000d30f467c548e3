"""One self-contained page: the answer, a zoomable timeline, searchable tables. Works offline.

Python prepares the data (`html_data`) and the sentences; the page's own scripts draw and search:
`assets/data.js` unpacks the columns, `timeline.js` draws on a canvas, `tables.js` searches and
lists, `page.js` ties them together. Nothing is loaded from anywhere.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from zaplock.errors import UserError
from zaplock.trace.summary import Group, Summary
from zaplock.units import duration
from zaplock.views.html_data import packed, page_data
from zaplock.views.report_text import heading
from zaplock.views.words import answer

SCRIPTS = ("data.js", "timeline.js", "tables.js", "page.js")


def write_html(summary: Summary, path: Path) -> Path:
    """Write the page; raise UserError where it can't be written."""
    try:
        path.write_text(render(summary), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror}): name another file") from None
    return path


def render(summary: Summary) -> str:
    """Return the whole page as text."""
    import jinja2

    header = page_data(summary)
    layout, binary = packed(header.pop("columns"))
    assets = resources.files("zaplock.views") / "assets"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((assets / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        heading=heading(summary.analysis),
        answer=list(answer(summary)),
        groups=_groups(summary),
        histograms=[histogram for histogram in summary.histograms if histogram.counts],
        duration=duration,
        header=_safe_json({**header, "layout": layout}),
        binary=binary,
        style=(assets / "page.css").read_text(encoding="utf-8"),
        scripts=[(assets / name).read_text(encoding="utf-8") for name in SCRIPTS],
    )


def _safe_json(value: Any) -> str:
    """Write JSON that can stand inside a script element, whatever tasks are called."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _groups(summary: Summary) -> list[tuple[str, tuple[Group, ...]]]:
    return [
        ("By operation", summary.by_operation),
        ("By thread", summary.by_thread[:500]),
        ("By process", summary.by_process[:500]),
    ]
