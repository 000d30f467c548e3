"""Who holds the mmap_lock and who waits for it, drawn: SVG, PNG or a page that works offline.

A panel is one run (a design's, a kernel's): a lane for each task, bars for its holds and, thinner,
its waits. All panels share one time axis, so that what one design does in microseconds and another
in seconds is seen at a glance. What is narrower than a pixel is drawn as a pixel, as faint as the
part of it that is covered is small. What was seen in part is pale with an outline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zaplock import outputs
from zaplock.errors import UserError
from zaplock.extras import needed
from zaplock.trace.analysis import analyse
from zaplock.trace.teardown_outcome import TeardownOutcome
from zaplock.units import duration
from zaplock.views.panels import NO_TEXT, Bar, PageText, Panel, explained, panel

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
"""Width of a panel in pixels."""

FAINTEST = 0.25
"""The opacity of a pixel of which next to nothing is covered."""

PALE = 0.2
"""How much of its colour a bar has of which not both ends were seen; it has an outline, too."""

KINDS = (".svg", ".png", ".html")


def binned(bars: Sequence[Bar], pixel_ns: int) -> list[Bar]:
    """Put what is narrower than a pixel into pixels, each with the part of it that is covered.

    So nothing is lost that is short, and what is rare doesn't look like what never ends.
    """
    wide = [bar for bar in bars if bar.end_ns - bar.start_ns >= pixel_ns]
    covered: dict[tuple[str, str, int], int] = {}
    for bar in bars:
        if bar.end_ns - bar.start_ns < pixel_ns:
            for place in range(bar.start_ns // pixel_ns, bar.end_ns // pixel_ns + 1):
                begin_ns, end_ns = place * pixel_ns, (place + 1) * pixel_ns
                inside = min(bar.end_ns, end_ns) - max(bar.start_ns, begin_ns)
                if inside > 0:
                    key = (bar.lane, bar.style, place)
                    covered[key] = covered.get(key, 0) + inside
    return wide + [
        Bar(lane, style, place * pixel_ns, (place + 1) * pixel_ns, min(1.0, span_ns / pixel_ns))
        for (lane, style, place), span_ns in sorted(covered.items())
    ]


def draw(
    panels: Sequence[Panel],
    path: Path,
    *,
    title: str = "",
    axis: str = "time since it began",
    text: PageText = NO_TEXT,
) -> Path:
    """Draw panels under each other and write them as the path's suffix says; `axis` names its time.

    A page has `text` around them as well: what is seen in them in sentences and tables.

    Raises UserError for another suffix than .svg, .png and .html, for no panels, or where the
    file can't be written.
    """
    outputs.require_picture(path, place=False)
    if not panels:
        raise UserError(f"{path} would be empty: there is no run to draw")
    if path.suffix == ".html":
        from zaplock.views.panel_page import render

        outputs.write(path, render(panels, title=title, axis=axis, text=text))
        return path
    with needed("a picture"):
        import altair

    if any(bar.seen == "in part" for one in panels for bar in one.bars):
        title = f"{title} (pale with an outline: seen in part)"
    span_ns = max((bar.end_ns for one in panels for bar in one.bars), default=1)
    unit, unit_ns = _unit(span_ns)
    named = f"{axis} [{unit}]"
    charts = [
        _chart(one, span_ns, unit_ns, axis=named if one is panels[-1] else "") for one in panels
    ]
    with altair.data_transformers.enable("default", max_rows=None):
        whole = altair.vconcat(*charts, spacing=6, title=title)
        whole = whole.resolve_scale(x="shared", color="shared", y="independent")
        spec = whole.to_dict()
    outputs.write(path, _rendered(spec, path.suffix))
    return path


def _rendered(spec: dict[str, Any], suffix: str) -> str | bytes:
    with needed("a picture"):
        import vl_convert

    version = "v" + ".".join(spec["$schema"].rpartition("/v")[2].split(".")[:2])
    if suffix == ".svg":
        return vl_convert.vegalite_to_svg(spec, vl_version=version)
    return vl_convert.vegalite_to_png(spec, vl_version=version, scale=2)


def _unit(span_ns: int) -> tuple[str, int]:
    for unit, unit_ns in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if span_ns >= unit_ns:
            return unit, unit_ns
    return "ns", 1


def _chart(one: Panel, span_ns: int, unit_ns: int, *, axis: str) -> Any:
    import altair

    rows = [
        {
            "lane": bar.lane,
            "what": bar.style,
            "from": bar.start_ns / unit_ns,
            "to": bar.end_ns / unit_ns,
            "took": (bar.end_ns - bar.start_ns) * bar.part / unit_ns,
            "part": bar.part if bar.seen == "whole" else PALE,
            "outline": 0 if bar.seen == "whole" else 1,
        }
        for bar in binned(one.bars, max(1, -(-span_ns // WIDTH)))
    ]
    below = altair.Axis(title=axis) if axis else None
    density = altair.Scale(domain=[0, 1], range=[FAINTEST, 1])
    domain = altair.Scale(domain=[0, span_ns / unit_ns], nice=False)
    lanes = altair.Scale(domain=list(one.lanes))
    colours = altair.Scale(domain=list(COLOURS), range=list(COLOURS.values()))
    # A browser's letters may be wider than those that the picture was laid out with.
    legend = altair.Legend(title=None, orient="top", columnPadding=36)
    base = altair.Chart(altair.InlineData(rows)).encode(
        x=altair.X("from:Q", scale=domain, axis=below),
        x2="to:Q",
        y=altair.Y("lane:N", scale=lanes, title=None, axis=altair.Axis(labelLimit=140)),
        color=altair.Color("what:N", scale=colours, legend=legend),
        opacity=altair.Opacity("part:Q", scale=density, legend=None),
        stroke=altair.Stroke("what:N", scale=colours, legend=None),
        strokeWidth=altair.StrokeWidth("outline:Q", scale=None),
    )
    shared = base.transform_filter("datum.what != 'wait' && datum.what != 'exclusive hold'")
    exclusive = base.transform_filter("datum.what == 'exclusive hold'")
    waits = base.transform_filter("datum.what == 'wait'")
    layers = (
        shared.mark_bar(height=12),
        waits.mark_bar(height=5),
        exclusive.mark_bar(height=12),
    )
    title = altair.Title(one.title, anchor="start", fontSize=11, dy=4)
    height = max(1, len(one.lanes)) * 17
    return altair.layer(*layers).properties(width=WIDTH, height=height, title=title)


def plot_comparison(comparison: Comparison, path: Path) -> Path:
    """Draw every design's teardown, block by block (`zaplock compare --plot`)."""
    from zaplock.units import size

    panels = [_of_run(run) for run in comparison.runs]
    panels += [_measured(row) for row in comparison.measured or ()]
    length = size(comparison.experiment.length)
    title = f"munmap of {length}: who holds the mmap_lock, who waits ({comparison.profile.name})"
    text = _text_of(comparison) if path.suffix == ".html" else NO_TEXT
    return draw(panels, path, title=title, axis="time since the teardown began", text=text)


def _text_of(comparison: Comparison) -> PageText:
    from zaplock.views import outcomes

    grids = [outcomes.table(comparison, block) for block in comparison.blocks]
    grids += [outcomes.brk1_table(comparison)] if comparison.brk1 else []
    return PageText((outcomes.title(comparison), *outcomes.sentences(comparison)), tuple(grids))


def _of_run(run: Teardown) -> Panel:
    analysis = analyse(run.events, run.design.kernel)
    span_ns = run.end_ns - run.begin_ns
    title = f"{run.design.name}, {_figures(run.outcome)}"
    one = panel(title, analysis, run.begin_ns, run.end_ns + span_ns // 50)
    return explained(replace(one, name=run.design.name), analysis, run.begin_ns)


def _measured(row: TeardownOutcome) -> Panel:
    """Draw what is known of a really measured teardown: its holds; when others stalled is not."""
    exclusive_ns, shared_ns = row.exclusive_hold_ns or 0, row.shared_hold_ns or 0
    bars = [
        Bar("munmap", "exclusive hold", 0, exclusive_ns, exclusive=True),
        Bar("munmap", "shared after downgrade", exclusive_ns, exclusive_ns + shared_ns),
    ]
    known = tuple(bar for bar in bars if bar.end_ns > bar.start_ns)
    return Panel(f"{row.design}, really measured, {_figures(row)}", ("munmap",), known, row.design)


def _figures(row: TeardownOutcome) -> str:
    """Say beside whom, and how long each of them stalled at worst."""
    stalls = {name: row.stalls[name].max_ns for name in row.bystanders}
    said = [f"{name} {duration(span)}" if span else f"{name} none" for name, span in stalls.items()]
    return f"worst stalls: {', '.join(said)}" if said else "nobody beside it"
