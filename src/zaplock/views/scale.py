"""Operations a second over CPUs: as a table with ratios, and drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock.views.grid import Grid, figure, words

if TYPE_CHECKING:
    from zaplock.lab.scale import MachineOfTheirs, MeasuredPoint, Point

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#000000")
"""Okabe and Ito's, which the colour-blind can tell apart."""

Rates = dict[tuple[str, str, int], float]


def _rates(points: Sequence[Point]) -> Rates:
    return {(one.workload, one.design, one.cpus): one.per_second for one in points}


def tables(points: Sequence[Point], against: str) -> Iterator[Grid]:
    """Draw each workload's rates and their ratios to a design's, then the ratios between two."""
    rates = _rates(points)
    workloads = list(dict.fromkeys(one.workload for one in points))
    designs = list(dict.fromkeys(one.design for one in points))
    cpus = list(dict.fromkeys(one.cpus for one in points))

    def table(title: str, names: Sequence[str], cell: Callable[[str, int], str]) -> Grid:
        columns = (words("CPUs"), *(figure(str(count)) for count in cpus))
        return Grid(columns, [(name, *(cell(name, n) for n in cpus)) for name in names], title)

    for workload in workloads:

        def rate(name: str, count: int, of: str = workload) -> str:
            return short(rates[of, name, count])

        def ratio(name: str, count: int, of: str = workload) -> str:
            return f"{rates[of, name, count] / rates[of, against, count]:.2f}"

        yield table(f"{workload}, operations a second", designs, rate)
        if others := [name for name in designs if name != against]:
            yield table(f"{workload}, times {against}'s", others, ratio)
    if len(workloads) == 2:
        first, second = workloads
        yield table(
            f"{second} : {first}", designs,
            lambda name, count: f"{rates[second, name, count] / rates[first, name, count]:.2f}",
        )  # fmt: skip


def short(value: float) -> str:
    """Write a rate with three digits or four.

    >>> short(937_794), short(71_841_846), short(81)
    ('938k', '71.8M', '81')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            scaled = value / size
            digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
            return f"{scaled:.{digits}f}{letter}"
    return f"{value:.0f}"


def inputs(theirs: MachineOfTheirs) -> str:
    """Say what was put in."""
    told = f"a cache line takes {theirs.transfer_ns} ns from CPU to CPU"
    if theirs.nodes > 1:
        far = theirs.transfer_ns if theirs.far_ns is None else theirs.far_ns
        told += f", {far} ns between {theirs.nodes} nodes"
    if theirs.cores is not None:
        told += f"; above {theirs.cores} threads two share a core, each at {theirs.smt_speed:g}"
    return told


def measured_table(
    measured: Sequence[MeasuredPoint], points: Sequence[Point], against: str
) -> Grid:
    """Draw what this kernel did, its ratio to one thread, and the ratio that was predicted."""
    rates = _rates(points)
    alone = {one.workload: one.per_second for one in measured if one.cpus == 1}
    rows = []
    for one in measured:
        name, times = one.workload, ("", "")
        if name in alone and (name, against, 1) in rates:
            predicted = rates[name, against, one.cpus] / rates[name, against, 1]
            times = (f"{one.per_second / alone[name]:.2f}", f"{predicted:.2f}")
        quartiles = f"{short(one.low)} to {short(one.high)}"
        rows.append((name, str(one.cpus), f"{one.per_second:,.0f}", quartiles, *times))
    columns = (words("workload"), figure("CPUs"), figure("operations a second"),
               figure("quartiles"), figure("times one thread's"),
               figure(f"by {against}"))  # fmt: skip
    return Grid(columns, rows, "measured on this kernel")


def plot(points: Sequence[Point], path: Path) -> None:
    """Draw operations a second over CPUs, both logarithmic, a line for each design."""
    import altair

    rows = [one.to_json() for one in points]
    counts = altair.Axis(values=sorted({one.cpus for one in points}), format="d")
    axes = {"x": altair.X("cpus:Q", scale=altair.Scale(type="log", base=2), title="CPUs",
                          axis=counts),
            "y": altair.Y("per_second:Q", scale=altair.Scale(type="log"),
                          title="operations a second")}  # fmt: skip
    drawn = altair.Chart(altair.InlineData(rows)).mark_line(point=True)
    colour = altair.Color(
        "design:N",
        scale=altair.Scale(range=_COLOURS),
        legend=altair.Legend(orient="top", title=None),
    )
    chart = drawn.encode(**axes, color=colour).properties(width=360, height=280)
    chart.facet(column=altair.Column("workload:N", title=None)).save(str(path))
