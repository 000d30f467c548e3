"""What other kernels, or other ways of freeing, would have spared a fleet.

Recordings are replayed (`zaplock.replay`) under the design of their own kernel, which tells the
replay's error, under others, and under their own with memory freed in other ways. Of each unit and
kernel some recordings are taken, the worst first; those of equal content are replayed once. What
is said of a fleet is a share of what the store's waits sum up to, for those waits alone whose
unit, kernel and culprit's operation a sound replay stands for. The rest is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from zaplock.designs import Design
from zaplock.errors import UserError
from zaplock.executors import Executor
from zaplock.fleet.report import load
from zaplock.fleet_store.store import FleetStore, Listed, StoreEntry
from zaplock.fleet_store.waits import WallClock, waits_of
from zaplock.lab.profiles import Profile
from zaplock.replay.replay import replay
from zaplock.scratch import Scratch
from zaplock.trace.analysis import Analysis
from zaplock.trace.manifest import FILE
from zaplock.trace.reading import read_analysis
from zaplock.trace.summary import QUEUED_NS, summarise

MOST = 10
"""So many recordings of each unit and kernel are replayed, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One recording's waiting: as recorded, under its own design, and under another or another way.

    `operation` is what its culprits did for most of the time. `count` recordings have its content.
    """

    unit: str
    kernel: str
    operation: str
    design: str
    free_by: str
    recorded_ns: int
    own_ns: int
    then_ns: int
    sound: bool
    count: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A recording that could not be replayed, and why."""

    recording: str
    why: str


@dataclass(frozen=True)
class FleetReplay:
    """What was replayed, and what it means for the store.

    `rows` has for each unit, kernel, operation, design and way: recordings, unsound, recorded_ns,
    own_ns, then_ns, share (of the waiting that is spared; null where no replay is sound), caused_ns
    (what the store has of such waits) and spared_ns (the share of that).
    """

    rows: pl.DataFrame
    replays: int
    recordings: int
    failed: tuple[Failed, ...]
    caused_ns: int
    """All that the store has of the kernels asked for."""
    hosts: int

    @property
    def sums(self) -> pl.DataFrame:
        """Sum up by design and way: spared_ns of the caused_ns that sound replays stand for."""
        known = self.rows.filter(pl.col("share").is_not_null())
        found = known.group_by("design", "free_by").agg(
            pl.col("caused_ns").sum(), pl.col("spared_ns").sum(), pl.col("recordings").sum()
        )
        return found.sort(["spared_ns", "design", "free_by"], descending=[True, False, False])

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; times in nanoseconds."""
        return {
            "hosts": self.hosts,
            "caused_ns": self.caused_ns,
            "recordings": self.recordings,
            "replays": self.replays,
            "sums": self.sums.to_dicts(),
            "rows": self.rows.to_dicts(),
            "failed": [{"recording": one.recording, "why": one.why} for one in self.failed],
        }


@dataclass(frozen=True)
class _Task:
    url: str
    listed: Listed
    entry: StoreEntry
    count: int
    designs: tuple[Design, ...]
    profile: Profile


def replay_fleet(
    url: str,
    workers: Executor,
    profile: Profile,
    *,
    designs: Sequence[Design] = (),
    kernel: str = "",
    most: int = MOST,
    days: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> FleetReplay:
    """Replay a store's recordings of kernels whose release begins with `kernel`.

    Raises UserError where there is nothing to replay.
    """
    if most < 1:
        raise UserError(f"--most {most} is less than 1: replay at least one recording of each")
    store = FleetStore(url)
    cube, _ = load(url, workers, days)
    rows = cube.rows.filter(pl.col("kernel").map_elements(
        lambda one: of_series(one, kernel), return_dtype=pl.Boolean
    ))  # fmt: skip
    chosen, recordings = _chosen(store, kernel, most, days)
    if not chosen:
        there = ", ".join(sorted(set(cube.rows["kernel"])))
        asked = f" of Linux {kernel}" if kernel else ""
        raise UserError(f"{url} has no recordings{asked}; its waits are of {there}")
    tasks = [
        _Task(url, listed, entry, count, tuple(designs), profile) for listed, entry, count in chosen
    ]
    found: list[Replayed] = []
    failed: list[Failed] = []
    for number, outcome in enumerate(workers.map(_replay, tasks), 1):
        if isinstance(outcome, Failed):
            failed.append(outcome)
        else:
            found += outcome
        progress(f"{number} of {len(tasks)} recordings")
    caused_ns = int(rows["caused_ns"].sum())
    hosts = rows["host"].n_unique()
    return FleetReplay(
        _projected(found, rows), len(tasks), recordings, tuple(failed), caused_ns, hosts
    )


def of_series(kernel: str, asked: str) -> bool:
    """Say whether a release is one of the series that was asked for.

    >>> of_series("6.1.37", "6.1"), of_series("6.18", "6.1"), of_series("5.15", "")
    (True, False, True)
    """
    return not asked or kernel == asked or kernel.startswith((f"{asked}.", f"{asked}-"))


def _chosen(
    store: FleetStore, kernel: str, most: int, days: Sequence[str] | None
) -> tuple[list[tuple[Listed, StoreEntry, int]], int]:
    """Choose recordings, the worst first; those of equal content once, with how many there are."""
    listed = sorted(store.recordings(days).objects, key=lambda one: (-one.name.worst_ns, one.path))
    taken: dict[tuple[str, str], int] = {}
    found: dict[tuple[Any, ...], list[Any]] = {}
    for one in listed:
        entry = store.entry(one)
        if not of_series(entry.kernel, kernel):
            continue
        content = tuple(sums for name, _, sums in entry.files if name != FILE)
        key = (entry.unit, entry.kernel, content)
        if key in found:
            found[key][2] += 1
        elif taken.setdefault((entry.unit, entry.kernel), 0) < most:
            taken[entry.unit, entry.kernel] += 1
            found[key] = [one, entry, 1]
    chosen = [(one, entry, count) for one, entry, count in found.values()]
    return chosen, sum(count for _, _, count in chosen)


def _replay(task: _Task) -> list[Replayed] | Failed:
    with Scratch("fleet") as folder:
        try:
            analysis = read_analysis(
                FleetStore(task.url).fetch(task.listed, folder / "one.zaplock")
            )
            return _replayed(task, analysis)
        except UserError as error:
            return Failed(task.entry.recording, str(error))


def _replayed(task: _Task, analysis: Analysis) -> list[Replayed]:
    waits = waits_of(summarise(analysis), task.entry.recording, WallClock(0), QUEUED_NS)
    if waits.is_empty():
        raise UserError("nobody waits in it")
    sums = waits.group_by("culprit_operation").agg(pl.col("culprit_ns").sum())
    operation = str(sums.sort("culprit_ns", "culprit_operation").row(-1)[0])
    done = replay(analysis, task.profile, designs=task.designs)
    own, fit = done.runs[0], done.fit
    return [
        Replayed(
            task.entry.unit,
            task.entry.kernel,
            operation,
            run.design.name,
            str(run.way),
            fit.recorded_ns,
            own.waited_ns,
            run.waited_ns,
            fit.sound,
            task.count,
        )
        for run in done.runs[1:]
    ]


_KEYS = ["unit", "kernel", "operation", "design", "free_by"]


def _projected(found: Iterable[Replayed], rows: pl.DataFrame) -> pl.DataFrame:
    """Sum up the replays of each kind, and take their share of what the store has of it."""
    schema = dict.fromkeys(_KEYS, pl.String)
    plain = [
        (one.unit, one.kernel, one.operation, one.design, one.free_by, one.count,
         0 if one.sound else one.count,
         *(value * one.count * one.sound for value in (one.recorded_ns, one.own_ns, one.then_ns)))
        for one in found
    ]  # fmt: skip
    names = ("recordings", "unsound", "recorded_ns", "own_ns", "then_ns")
    table = pl.DataFrame(plain, {**schema, **dict.fromkeys(names, pl.Int64)}, orient="row")
    summed = table.group_by(_KEYS).agg(pl.col(names).sum())
    share = 1 - pl.col("then_ns") / pl.col("own_ns")
    summed = summed.with_columns(
        share=pl.when(pl.col("own_ns") > 0).then(share).otherwise(None).round(6)
    )
    caused = rows.group_by("unit", "kernel", operation=pl.col("culprit_operation")).agg(
        pl.col("caused_ns").sum()
    )
    both = summed.join(caused, on=["unit", "kernel", "operation"], how="left")
    both = both.with_columns(pl.col("caused_ns").fill_null(0))
    spared = (pl.col("caused_ns") * pl.col("share")).round(0).cast(pl.Int64)
    both = both.with_columns(spared_ns=spared)
    return both.sort(
        ["spared_ns", *_KEYS], descending=[True, *[False] * len(_KEYS)], nulls_last=True
    )
