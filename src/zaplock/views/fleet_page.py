"""A fleet's report as one page that works offline: the answer, small multiples, the tables."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import polars as pl

from zaplock import outputs
from zaplock.fleet.report import FleetReport
from zaplock.units import duration
from zaplock.views.fleet_tables import answer, report_tables
from zaplock.views.own_page import policy

_UNITS = 12
_ROWS = 100


def write_page(report: FleetReport, path: Path) -> Path:
    """Write the page; raise UserError where it can't be written."""
    outputs.write(path, render(report))
    return path


def render(report: FleetReport) -> str:
    """Return the whole page as text."""
    import jinja2

    assets = resources.files("zaplock.views") / "assets"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((assets / "fleet.html.j2").read_text(encoding="utf-8"))
    return template.render(
        title=f"zaplock fleet: {report.url}",
        answer=list(answer(report)),
        charts=[svg for svg in (_lengths(report), _days(report)) if svg],
        tables=list(report_tables(report, _ROWS)),
        style=(assets / "page.css").read_text(encoding="utf-8"),
        policy=policy(),
    )


def _lengths(report: FleetReport) -> str:
    """Draw, for each unit and kernel, how many waits are how long."""
    import altair

    rows = report.lengths.filter(pl.col("unit").is_in(_first_units(report)))
    if rows.is_empty():
        return ""
    edges = [duration(edge) for edge in sorted(set(rows["from_ns"]))]
    rows = rows.with_columns(
        pl.col("from_ns").map_elements(duration, return_dtype=pl.String).alias("from")
    )
    chart = (
        altair.Chart(rows.drop("from_ns"))
        .mark_bar()
        .encode(
            x=altair.X("from:O", sort=edges, title=None),
            y=altair.Y("waits:Q", scale=altair.Scale(type="symlog"), title=None),
        )
        .properties(width=150, height=60)
        .facet(row=altair.Row("unit:N", sort=_first_units(report), title=None),
               column=altair.Column("kernel:N", title="how many waits are how long, by kernel"))
    )  # fmt: skip
    return _svg(chart)


def _days(report: FleetReport) -> str:
    """Draw, for each unit, how long others waited each day; nothing for a single day."""
    import altair

    if len(report.days) < 2:
        return ""
    rows = report.per_day.filter(pl.col("unit").is_in(_first_units(report)))
    rows = rows.with_columns((pl.col("caused_ns") / 1e9).alias("seconds")).drop("caused_ns")
    chart = (
        altair.Chart(rows)
        .mark_line(point=True)
        .encode(x=altair.X("day:T", title=None), y=altair.Y("seconds:Q", title=None))
        .properties(width=200, height=60)
        .facet(altair.Facet("unit:N", sort=_first_units(report), title="seconds waited, by day"),
               columns=4)
    )  # fmt: skip
    return _svg(chart)


def _first_units(report: FleetReport) -> list[str]:
    return list(report.by_unit["unit"].head(_UNITS))


def _svg(chart: Any) -> str:
    """Draw a chart as an image in the page: its texts are an image's, and run nothing."""
    import base64

    import altair
    import vl_convert

    version = altair.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]
    with altair.data_transformers.enable("default", max_rows=None):
        drawn = vl_convert.vegalite_to_svg(chart.to_dict(), vl_version=version)
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.encode()).decode()
