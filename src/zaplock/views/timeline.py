"""Who holds the mmap_lock and who waits for it, drawn: SVG, PNG or a page that works offline.

A panel is one run (a design's, a kernel's): a lane for each task, bars for its holds and, thinner,
its waits. All panels share one time axis, so that what one design does in microseconds and another
in seconds is seen at a glance. Bars too close to tell apart are drawn as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zaplock import outputs
from zaplock.errors import UserError
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.summary import QUEUED_NS
from zaplock.views.own_page import policy, safe_json

if TYPE_CHECKING:
    from zaplock.lab.compare import Comparison
    from zaplock.lab.teardown import Teardown

COLOURS = {
    "exclusive hold": "#d55e00",
    "shared hold": "#0072b2",
    "shared after downgrade": "#56b4e9",
    "wait": "#e69f00",
}
WIDTH = 760
"""Width of a panel in pixels; what is closer than half a pixel is one bar."""

MOST_IDLE = 12
"""Up to so many tasks have a lane even if they did nothing with the lock."""

KINDS = (".svg", ".png", ".html")


@dataclass(frozen=True, slots=True)
class Bar:
    """One hold or wait; `style` is a key of `COLOURS`, times count from the panel's begin."""

    lane: str
    style: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Panel:
    """One run: a title, its lanes from top to bottom, its bars."""

    title: str
    lanes: tuple[str, ...]
    bars: tuple[Bar, ...]


def panel(title: str, analysis: Analysis, begin_ns: int, end_ns: int) -> Panel:
    """Make a panel of what happened in [begin_ns, end_ns); a lane for each name of a task."""
    lanes = dict.fromkeys(task.comm for task in analysis.events.tasks.values())
    bars = [*_holds(analysis), *_waits(analysis)]
    inside = [
        Bar(bar.lane, bar.style, max(bar.start_ns, begin_ns) - begin_ns, bar.end_ns - begin_ns)
        for bar in bars
        if bar.start_ns < end_ns and bar.end_ns > begin_ns
    ]
    seen = dict.fromkeys(bar.lane for bar in inside)
    # A lane without a bar says something too (nobody waits), unless there are hundreds of them.
    shown = lanes | seen if len(lanes) <= MOST_IDLE else seen
    return Panel(title, tuple(shown), tuple(inside))


def _lane(analysis: Analysis, tid: int) -> str:
    task = analysis.events.tasks.get(tid)
    return task.comm if task else f"tid {tid}"


def _holds(analysis: Analysis) -> Iterable[Bar]:
    holds = analysis.holds
    ends = holds.end_ns
    for row in range(len(holds)):
        style = "exclusive hold" if holds["exclusive"][row] else "shared hold"
        if style == "shared hold" and holds["downgraded"][row]:
            style = "shared after downgrade"
        lane = _lane(analysis, int(holds["tid"][row]))
        yield Bar(lane, style, int(holds["start_ns"][row]), int(ends[row]))


def _waits(analysis: Analysis) -> Iterable[Bar]:
    waits = analysis.waits
    ends = waits.end_ns
    for row in np.flatnonzero(waits["wait_ns"] >= QUEUED_NS).tolist():
        lane = _lane(analysis, int(waits["tid"][row]))
        yield Bar(lane, "wait", int(waits["start_ns"][row]), int(ends[row]))


def merged(bars: Sequence[Bar], near_ns: int) -> list[Bar]:
    """Join bars of one lane and style that lie closer together than `near_ns`."""
    joined: list[Bar] = []
    for bar in sorted(bars, key=lambda bar: (bar.lane, bar.style, bar.start_ns)):
        last = joined[-1] if joined else None
        if (
            last is not None
            and (last.lane, last.style) == (bar.lane, bar.style)
            and bar.start_ns - last.end_ns < near_ns
        ):
            end_ns = max(last.end_ns, bar.end_ns)
            joined[-1] = Bar(bar.lane, bar.style, last.start_ns, end_ns)
        else:
            joined.append(bar)
    return joined


def draw(panels: Sequence[Panel], path: Path, *, title: str = "") -> Path:
    """Draw panels under each other and write them as the path's suffix says.

    Raises UserError for another suffix than .svg, .png and .html, for no panels, or where the
    file can't be written.
    """
    if path.suffix not in KINDS:
        raise UserError(f"{path} can't be drawn: name a file that ends in {', '.join(KINDS)}")
    if not panels:
        raise UserError(f"{path} would be empty: there is no run to draw")
    import altair

    span_ns = max((bar.end_ns for one in panels for bar in one.bars), default=1)
    unit, unit_ns = _unit(span_ns)
    charts = [_chart(one, span_ns, unit, unit_ns, last=one is panels[-1]) for one in panels]
    with altair.data_transformers.enable("default", max_rows=None):
        whole = altair.vconcat(*charts, spacing=6, title=title)
        whole = whole.resolve_scale(x="shared", color="shared", y="independent")
        spec = whole.to_dict()
    outputs.write(path, _rendered(spec, path.suffix, title))
    return path


def _rendered(spec: dict[str, Any], suffix: str, title: str) -> str | bytes:
    import vl_convert

    version = "v" + ".".join(spec["$schema"].rpartition("/v")[2].split(".")[:2])
    if suffix == ".svg":
        return vl_convert.vegalite_to_svg(spec, vl_version=version)
    if suffix == ".png":
        return vl_convert.vegalite_to_png(spec, vl_version=version, scale=2)
    plot = (resources.files("zaplock.views") / "assets" / "plot.js").read_text("utf-8")
    return _page(spec, title, vl_convert.javascript_bundle(plot, vl_version=version))


def _page(spec: dict[str, Any], title: str, script: str) -> str:
    """Lay the drawing out as a page; Vega interprets its expressions, so that none is compiled."""
    import jinja2

    assets = resources.files("zaplock.views") / "assets"
    script = script.replace("</script", "<\\/script")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((assets / "plot.html.j2").read_text("utf-8"))
    return template.render(
        title=title, script=script, policy=policy([script]), spec=safe_json(spec)
    )


def _unit(span_ns: int) -> tuple[str, int]:
    for unit, unit_ns in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if span_ns >= unit_ns:
            return unit, unit_ns
    return "ns", 1


def _chart(one: Panel, span_ns: int, unit: str, unit_ns: int, *, last: bool) -> Any:
    import altair
    import polars as pl

    rows = [
        {
            "lane": bar.lane,
            "what": bar.style,
            "from": bar.start_ns / unit_ns,
            "to": bar.end_ns / unit_ns,
            "took": (bar.end_ns - bar.start_ns) / unit_ns,
        }
        for bar in merged(one.bars, max(1, span_ns // WIDTH // 2))
    ]
    schema = {"lane": pl.String, "what": pl.String} | dict.fromkeys(
        ("from", "to", "took"), pl.Float64
    )
    axis = altair.Axis(title=f"time since the teardown began [{unit}]") if last else None
    domain = altair.Scale(domain=[0, span_ns / unit_ns], nice=False)
    lanes = altair.Scale(domain=list(one.lanes))
    colours = altair.Scale(domain=list(COLOURS), range=list(COLOURS.values()))
    base = altair.Chart(pl.DataFrame(rows, schema)).encode(
        x=altair.X("from:Q", scale=domain, axis=axis),
        x2="to:Q",
        y=altair.Y("lane:N", scale=lanes, title=None, axis=altair.Axis(labelLimit=140)),
        color=altair.Color("what:N", scale=colours, legend=altair.Legend(title=None, orient="top")),
        tooltip=["lane:N", "what:N", "from:Q", "took:Q"],
    )
    shared = base.transform_filter("datum.what != 'wait' && datum.what != 'exclusive hold'")
    exclusive = base.transform_filter("datum.what == 'exclusive hold'")
    waits = base.transform_filter("datum.what == 'wait'")
    layers = (
        shared.mark_bar(height=12),
        waits.mark_bar(height=5),
        # A stroke, so that microseconds on an axis of seconds still show as a line.
        exclusive.mark_bar(height=12, stroke=COLOURS["exclusive hold"], strokeWidth=1),
    )
    title = altair.Title(one.title, anchor="start", fontSize=11, dy=4)
    height = max(1, len(one.lanes)) * 17
    return altair.layer(*layers).properties(width=WIDTH, height=height, title=title)


def plot_comparison(comparison: Comparison, path: Path) -> Path:
    """Draw every design's teardown, block by block (`zaplock compare --plot`)."""
    from zaplock.units import size

    panels = [_of_run(run) for run in comparison.runs]
    length = size(comparison.experiment.length)
    title = f"munmap of {length}: who holds the mmap_lock, who waits ({comparison.profile.name})"
    return draw(panels, path, title=title)


def _of_run(run: Teardown) -> Panel:
    analysis = analyse(run.events, run.design.kernel)
    beside = ", ".join(run.outcome.bystanders) or "nobody"
    span_ns = run.end_ns - run.begin_ns
    title = f"{run.design.name}, beside {beside}"
    return panel(title, analysis, run.begin_ns, run.end_ns + span_ns // 50)
