"""One self-contained page: the answer, a zoomable timeline, searchable tables. Works offline.

Python prepares the data (`html_data`) and the sentences; the page's own scripts draw and search:
`assets/data.js` unpacks the columns, `timeline.js` draws on a canvas, `tables.js` searches and
lists, `page.js` ties them together. Nothing is loaded from anywhere.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from zaplock import outputs
from zaplock.trace.summary import Group, Summary
from zaplock.units import duration
from zaplock.views.html_data import packed, page_data
from zaplock.views.own_page import policy, safe_json
from zaplock.views.words import answer, heading

SCRIPTS = ("data.js", "timeline.js", "tables.js", "flame.js", "page.js")


def write_html(summary: Summary, path: Path) -> Path:
    """Write the page; raise UserError where it can't be written."""
    outputs.write(path, render(summary))
    return path


def render(summary: Summary) -> str:
    """Return the whole page as text."""
    import jinja2

    header = page_data(summary)
    layout, binary = packed(header.pop("columns"))
    assets = resources.files("zaplock.views") / "assets"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    scripts = [(assets / name).read_text(encoding="utf-8") for name in SCRIPTS]
    template = environment.from_string((assets / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        heading=heading(summary.analysis),
        answer=list(answer(summary)),
        groups=_groups(summary),
        histograms=[histogram for histogram in summary.histograms if histogram.counts],
        duration=duration,
        header=safe_json({**header, "layout": layout}),
        binary=binary,
        style="".join((assets / name).read_text("utf-8") for name in ("base.css", "page.css")),
        scripts=scripts,
        policy=policy(scripts),
    )


def _groups(summary: Summary) -> list[tuple[str, tuple[Group, ...]]]:
    return [
        ("By operation", summary.by_operation),
        ("By thread", summary.by_thread[:500]),
        ("By process", summary.by_process[:500]),
    ]
