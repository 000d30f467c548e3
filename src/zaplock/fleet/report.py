"""What a fleet's store says: who makes whom wait, where, since when, and which hosts differ.

Each part of the store is boiled down to a small table, one row for each day, host, unit, kernel and
cause (`cube_of`): that is what divides over workers. Everything else is made of those rows, by sums
of integers and in a fixed order, so that the report is the same however the work was divided.

A *cause* is a unit's process, what it did and why that took long. Causes are ranked by how long
others waited because of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

import polars as pl

from zaplock.errors import UserError
from zaplock.executors import Executor, divided
from zaplock.fleet_store.store import FleetStore, Listed, Listing
from zaplock.fleet_store.waits import NOT_KNOWN, joined
from zaplock.trace.summary import EDGES_NS

WEEK: Final = 7
_PARTS: Final = 16
_WORST: Final = 20
_ODD: Final = 4.0
"""A host differs that has so many times the median of the hosts with its unit and kernel ..."""
_ODD_HOSTS: Final = 5
"""... of which there are at least so many."""
_CHANGED: Final = 2.0
CAUSE: Final = ("unit", "culprit_process", "culprit_operation", "reason")
_KEYS: Final = ("day", "host", "unit", "kernel", "culprit_process", "culprit_operation", "reason")
SUMS: Final = (
    pl.len().cast(pl.Int64).alias("waits"),
    pl.col("wait_ns").sum().alias("waited_ns"),
    pl.col("wait_ns").max().alias("worst_ns"),
    pl.col("culprit_ns").sum().alias("caused_ns"),
    pl.col("culprit_length").max().alias("length"),
    pl.col("culprit_detail").max().alias("detail"),
)
MORE: Final = (
    pl.col("waits").sum(),
    pl.col("waited_ns").sum(),
    pl.col("worst_ns").max(),
    pl.col("caused_ns").sum(),
    pl.col("length").max(),
    pl.col("detail").max(),
)
"""How rows that `SUMS` made are summed up further."""


@dataclass(frozen=True)
class Cube:
    """A part of the store, boiled down.

    `rows` has a row for each key; `worst` the longest waits; `lengths` how many waits of each unit
    and kernel lie between which edges (`EDGES_NS`).
    """

    rows: pl.DataFrame
    worst: pl.DataFrame
    lengths: pl.DataFrame


@dataclass(frozen=True, slots=True)
class _Task:
    url: str
    parts: tuple[Listed, ...]


@dataclass(frozen=True)
class FleetReport:
    """A fleet, summed up. Tables are frames in their order; times in nanoseconds.

    causes      `CAUSE`, waits, waited_ns, worst_ns, caused_ns, hosts, host_days
    worst       the longest waits, as in the store
    by_unit, by_kernel, by_operation    waits, waited_ns, worst_ns, caused_ns, hosts
    changes     causes whose waiting a host and day has at least doubled, or halved; None where
                there is no week to compare with
    odd         hosts that differ from others with their unit and kernel
    lengths     unit, kernel, from_ns, waits
    per_day     day, unit, caused_ns
    """

    url: str
    days: tuple[str, ...]
    hosts: int
    units: int
    waits: int
    waited_ns: int
    recordings: int
    causes: pl.DataFrame
    worst: pl.DataFrame
    by_unit: pl.DataFrame
    by_kernel: pl.DataFrame
    by_operation: pl.DataFrame
    changes: pl.DataFrame | None
    odd: pl.DataFrame
    lengths: pl.DataFrame
    per_day: pl.DataFrame
    caveats: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values; times in nanoseconds."""
        tables = ("causes", "worst", "by_unit", "by_kernel", "by_operation", "odd", "lengths",
                  "per_day")  # fmt: skip
        return {
            "store": self.url,
            "days": list(self.days),
            **{name: getattr(self, name) for name in ("hosts", "units", "waits", "waited_ns")},
            "recordings": self.recordings,
            **{name: _plain(getattr(self, name)) for name in tables},
            "changes": None if self.changes is None else _plain(self.changes),
            "caveats": list(self.caveats),
        }


def _plain(frame: pl.DataFrame) -> list[dict[str, Any]]:
    times = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Datetime)]
    return frame.with_columns(pl.col(times).dt.strftime("%Y-%m-%dT%H:%M:%S%.9fZ")).to_dicts()


def cube_of(parts: Sequence[tuple[Listed, pl.DataFrame]]) -> Cube:
    """Boil tables of waits down."""
    frames = [
        frame.with_columns(
            day=pl.lit(listed.place.day), host=pl.lit(listed.place.host),
            unit=pl.lit(listed.place.unit),
        )
        for listed, frame in parts
    ]  # fmt: skip
    waits = joined(frames) if frames else _nothing()
    texts = [name for name, kind in waits.schema.items() if kind == pl.String]
    waits = waits.with_columns(pl.col(texts).fill_null(NOT_KNOWN))
    edges = pl.Series(EDGES_NS[1:])
    from_ns = pl.Series("from_ns", EDGES_NS)[edges.search_sorted(waits["wait_ns"], "right")]
    return Cube(
        waits.group_by(_KEYS).agg(SUMS),
        _longest(waits),
        waits.with_columns(from_ns).group_by("unit", "kernel", "from_ns").agg(waits=pl.len()),
    )


def _nothing() -> pl.DataFrame:
    text = pl.Series([], dtype=pl.String)
    return joined([]).with_columns(day=text, host=text, unit=text)


def _longest(waits: pl.DataFrame) -> pl.DataFrame:
    order = ["wait_ns", "time", "host", "unit", "task", "recording"]
    return waits.sort(order, descending=[True, *[False] * 5]).head(_WORST)


def _cube(task: _Task) -> Cube:
    return cube_of(list(FleetStore(task.url).read_waits(task.parts)))


def load(
    url: str,
    workers: Executor,
    days: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> tuple[Cube, Listing]:
    """Boil a store down, all of it or some days, with the help of workers.

    Raises UserError where there is nothing.
    """
    listing = FleetStore(url).waits(days)
    if not listing.objects:
        raise UserError(
            f"{url} has no waits{' of those days' if days else ''}: 'zaplock agent --store' and "
            "'zaplock fleet simulate' write such stores"
        )
    tasks = [_Task(url, tuple(part)) for part in divided(listing.objects, _PARTS)]
    cubes = []
    for cube in workers.map(_cube, tasks):
        cubes.append(cube)
        progress(f"{len(cubes)} of {len(tasks)} parts")
    rows = pl.concat([cube.rows for cube in cubes]).group_by(_KEYS).agg(MORE).sort(_KEYS)
    lengths = pl.concat([cube.lengths for cube in cubes])
    keys = ("unit", "kernel", "from_ns")
    lengths = lengths.group_by(keys).agg(pl.col("waits").cast(pl.Int64).sum()).sort(keys)
    return Cube(rows, _longest(pl.concat([cube.worst for cube in cubes])), lengths), listing


def report(
    url: str,
    workers: Executor,
    *,
    days: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> FleetReport:
    """Sum up a store, all of it or some days."""
    cube, listing = load(url, workers, days, progress)
    recordings = FleetStore(url).recordings(days)
    rows = cube.rows
    found = tuple(sorted(set(rows["day"])))
    return FleetReport(
        url,
        found,
        rows["host"].n_unique(),
        rows["unit"].n_unique(),
        int(rows["waits"].sum()),
        int(rows["waited_ns"].sum()),
        len(recordings.objects),
        causes_of(rows),
        cube.worst,
        _by(rows, "unit"),
        _by(rows, "kernel"),
        _by(rows, "culprit_operation"),
        changes_of(rows),
        odd_hosts(rows),
        cube.lengths,
        rows.group_by("day", "unit").agg(pl.col("caused_ns").sum()).sort("day", "unit"),
        listing.caveats + recordings.caveats,
    )


def causes_of(rows: pl.DataFrame) -> pl.DataFrame:
    """Rank the causes by how long others waited because of each."""
    found = rows.group_by(CAUSE).agg(
        *MORE, hosts=pl.col("host").n_unique(), host_days=pl.struct("host", "day").n_unique()
    )
    return found.sort(["caused_ns", *CAUSE], descending=[True, *[False] * len(CAUSE)])


def _by(rows: pl.DataFrame, key: str) -> pl.DataFrame:
    found = rows.group_by(key).agg(*MORE, hosts=pl.col("host").n_unique())
    return found.drop("length", "detail").sort(["caused_ns", key], descending=[True, False])


def changes_of(rows: pl.DataFrame) -> pl.DataFrame | None:
    """Compare the last week with the one before: per host and day, for each cause.

    None where the store doesn't reach back beyond a week.
    """
    last = date.fromisoformat(max(rows["day"]))
    since, before = ((last - timedelta(days=WEEK * weeks)).isoformat() for weeks in (1, 2))
    new, old = rows.filter(pl.col("day") > since), rows.filter(
        (pl.col("day") <= since) & (pl.col("day") > before)
    )  # fmt: skip
    if old.is_empty():
        return None

    def rate(part: pl.DataFrame, name: str) -> pl.DataFrame:
        host_days = part.select(pl.struct("host", "day").n_unique()).item()
        return part.group_by(CAUSE).agg((pl.col("caused_ns").sum() // host_days).alias(name))

    both = rate(new, "now_ns").join(rate(old, "before_ns"), on=CAUSE, how="full", coalesce=True)
    both = both.with_columns(pl.col("now_ns", "before_ns").fill_null(0))
    more = pl.col("now_ns") >= _CHANGED * pl.col("before_ns")
    less = pl.col("before_ns") >= _CHANGED * pl.col("now_ns")
    by = (pl.col("now_ns") - pl.col("before_ns")).alias("by_ns")
    changed = both.filter(more | less).with_columns(by)
    order = [pl.col("by_ns").abs(), *map(pl.col, CAUSE)]
    return changed.sort(order, descending=[True, *[False] * len(CAUSE)])


def odd_hosts(rows: pl.DataFrame) -> pl.DataFrame:
    """Find hosts whose waiting is many times that of others with the same unit and kernel.

    Where few have the same, nothing is said: what is usual isn't known.
    """
    days = rows["day"].n_unique()
    alike = ["unit", "kernel"]
    own = rows.group_by("host", *alike).agg(a_day_ns=pl.col("caused_ns").sum() // days)
    usual = own.group_by(alike).agg(
        usual_ns=pl.col("a_day_ns").median().cast(pl.Int64), of_hosts=pl.col("host").n_unique()
    )
    found = own.join(usual, on=alike).filter(
        (pl.col("of_hosts") >= _ODD_HOSTS)
        & (pl.col("usual_ns") > 0)
        & (pl.col("a_day_ns") >= _ODD * pl.col("usual_ns"))
    )
    found = found.with_columns(times=(pl.col("a_day_ns") / pl.col("usual_ns")).round(1))
    return found.sort(["a_day_ns", "host", "unit"], descending=[True, False, False])
