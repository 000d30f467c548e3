"""What would spare a fleet most: the calls to change, the kernels to upgrade, in one order.

Advice on calls is `zaplock.advise`'s, by what the store says of the culprits; it can spare no more
than what they cause. How much another kernel or another way of freeing spares is what the replays
say (`replaying`). Only those figures are promised; the others are bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from zaplock.advise.advice_by_kind import Means, kind_of
from zaplock.fleet.replaying import FleetReplay
from zaplock.fleet.report import FleetReport
from zaplock.replay.other_ways import Way
from zaplock.trace.summary import NO_OPERATION

AS_RECORDED = str(Way())
"""The way of freeing that is none."""


@dataclass(frozen=True, slots=True)
class FleetAdvice:
    """One thing to do: what, on how many hosts, and how much waiting it spares.

    `spares_ns` is from sound replays, None where only the bound `at_most_ns` is known.
    """

    what: str
    how: str
    unit: str
    hosts: int
    spares_ns: int | None
    at_most_ns: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


def advise_fleet(report: FleetReport, replayed: FleetReplay) -> list[FleetAdvice]:
    """List what could be done, what surely spares most first."""
    found = [*_upgrades(report, replayed), *_calls(report, replayed)]
    return sorted(found, key=lambda one: (-(one.spares_ns or 0), -one.at_most_ns, one.what))


def _upgrades(report: FleetReport, replayed: FleetReplay) -> list[FleetAdvice]:
    rows = replayed.rows.filter((pl.col("free_by") == AS_RECORDED) & pl.col("share").is_not_null())
    sums = rows.group_by("kernel", "design").agg(pl.col("spared_ns", "caused_ns").sum())
    hosts = dict(report.by_kernel.select("kernel", "hosts").rows())
    return [
        FleetAdvice(
            f"upgrade Linux {kernel} to {design.removeprefix('linux-')}",
            "boot the newer kernel",
            "all",
            hosts.get(kernel, 0),
            spared,
            caused,
        )
        for kernel, design, spared, caused in sums.sort("kernel", "design").rows()
        if spared > 0
    ]


def _calls(report: FleetReport, replayed: FleetReplay) -> list[FleetAdvice]:
    found = []
    sites = ["unit", "culprit_process", "culprit_operation"]
    causes = report.causes.group_by(sites, maintain_order=True).agg(
        pl.col("caused_ns").sum(), pl.col("length", "detail", "hosts").max()
    )
    whole = pl.col("caused_ns").sum().over("unit", "culprit_operation")
    causes = causes.with_columns(share=(pl.col("caused_ns") / whole).fill_nan(0))
    for row in causes.iter_rows(named=True):
        operation = row["culprit_operation"]
        kind = kind_of(
            "" if operation == NO_OPERATION else operation, row["detail"] or 0, row["length"] or 0
        )
        if kind.means is Means.NONE:
            continue
        found.append(
            FleetAdvice(
                f"{operation} by {row['culprit_process']}",
                kind.change,
                row["unit"],
                row["hosts"],
                _by_pieces(replayed, row["unit"], operation, row["share"]),
                row["caused_ns"],
            )
        )
    return found


def _by_pieces(replayed: FleetReplay, unit: str, operation: str, share: float) -> int | None:
    """Return what the best other way of freeing spares a unit, None where none was replayed.

    A replay stands for all of a unit's processes; of that one that causes a `share` has as much.
    """
    rows = replayed.rows.filter(
        (pl.col("unit") == unit)
        & (pl.col("operation") == operation)
        & (pl.col("free_by") != AS_RECORDED)
        & pl.col("share").is_not_null()
    )
    sums = rows.group_by("free_by").agg(pl.col("spared_ns").sum())
    best = sums["spared_ns"].max()
    return round(best * share) if isinstance(best, int) else None
