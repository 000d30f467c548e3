"""A fleet's report as one page that works offline: the answer, small multiples, the tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from zaplock import outputs
from zaplock.fleet.report import FleetReport
from zaplock.units import duration
from zaplock.views.fleet_tables import answer, report_tables
from zaplock.views.self_contained_page import page

_UNITS = 12
_ROWS = 100
LIGHT, DARK = ("#1c2430", "#c9d1da", "#0072b2"), ("#e6ebf1", "#3c4856", "#56b4e9")
"""Ink, lines and bars, as in `assets/base.css`."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as two images, for light and for dark pages."""

    title: str
    light: str
    dark: str


def write_page(report: FleetReport, path: Path) -> Path:
    """Write the page; raise UserError where it can't be written."""
    outputs.write(path, render(report))
    return path


def render(report: FleetReport) -> str:
    """Return the whole page as text."""
    return page(
        "fleet.html.j2",
        styles=["page.css"],
        scripts=["tables.js", "fleet.js"],
        title=f"Who waited in the fleet {report.url}",
        answer=list(answer(report)),
        charts=list(charts(report)),
        grids=list(report_tables(report, _ROWS)),
    )


def charts(report: FleetReport) -> Iterator[Chart]:
    """Draw how long the waits of each unit are, and how much it waited day by day."""
    yield from _lengths(report)
    yield from _days(report)


def _lengths(report: FleetReport) -> Iterator[Chart]:
    """Draw, for each unit and kernel, how many waits are how long."""
    import altair

    rows = report.lengths.filter(pl.col("unit").is_in(_first_units(report)))
    if rows.is_empty():
        return
    edges = [duration(edge) for edge in sorted(set(rows["from_ns"]))]
    # An empty square must be there, too: without it the next ones would stand in its place.
    keys = ["unit", "kernel", "from_ns"]
    squares = rows.select("unit").unique().join(rows.select("kernel").unique(), how="cross")
    every = squares.join(rows.select("from_ns").unique(), how="cross")
    rows = every.join(rows, on=keys, how="left").with_columns(pl.col("waits").fill_null(0))
    rows = rows.sort(keys).with_columns(
        pl.col("from_ns").map_elements(duration, return_dtype=pl.String).alias("from")
    )
    chart = (
        altair.Chart(rows.drop("from_ns"))
        .mark_bar()
        .encode(
            x=altair.X("from:O", sort=edges, title="waited at least"),
            y=altair.Y("waits:Q", scale=altair.Scale(type="symlog"), title=None),
        )
        .properties(width=240, height=60)
        .facet(row=altair.Row("unit:N", sort=_first_units(report), title=None),
               column=altair.Column("kernel:N", title=None))
    )  # fmt: skip
    yield _chart("How many waits are how long, by unit and kernel", chart)


def _days(report: FleetReport) -> Iterator[Chart]:
    """Draw, for each unit, how long others waited each day; nothing for a single day."""
    import altair

    if len(report.days) < 2:
        return
    rows = report.per_day.filter(pl.col("unit").is_in(_first_units(report)))
    rows = rows.with_columns((pl.col("caused_ns") / 1e9).alias("seconds")).drop("caused_ns")
    chart = (
        altair.Chart(rows)
        .mark_line(point=True)
        .encode(x=altair.X("day:T", title=None), y=altair.Y("seconds:Q", title=None))
        .properties(width=200, height=60)
        .facet(altair.Facet("unit:N", sort=_first_units(report), title=None),
               columns=4)
    )  # fmt: skip
    yield _chart("Seconds waited, by day and unit", chart)


def _first_units(report: FleetReport) -> list[str]:
    return list(report.by_unit["unit"].head(_UNITS))


def _chart(title: str, chart: Any) -> Chart:
    """Draw a chart for light and for dark pages, in the pages' own colours."""
    return Chart(title, *(_svg(chart, *colours) for colours in (LIGHT, DARK)))


def _svg(chart: Any, ink: str, line: str, bar: str) -> str:
    """Draw a chart as an image in the page: its texts are an image's, and run nothing."""
    import base64

    import altair
    import vl_convert

    painted = (
        chart.configure(background="transparent")
        .configure_axis(labelColor=ink, titleColor=ink, gridColor=line, tickColor=line)
        .configure_header(labelColor=ink, titleColor=ink)
        .configure_view(stroke=line)
        .configure_bar(color=bar)
        .configure_line(color=bar)
        .configure_point(color=bar, fill=bar)
    )
    version = altair.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]
    with altair.data_transformers.enable("default", max_rows=None):
        drawn = vl_convert.vegalite_to_svg(painted.to_dict(), vl_version=version)
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.encode()).decode()
