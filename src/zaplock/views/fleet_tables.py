"""A fleet's report, replay and advice as tables of texts, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from zaplock.fleet.advising import AS_RECORDED, FleetAdvice
from zaplock.fleet.replaying import FleetReplay
from zaplock.fleet.report import CAUSE, FleetReport
from zaplock.units import duration, share
from zaplock.views.grid import Grid, figure, words

_CAUSE_COLUMNS = (
    words("unit"),
    words("process"),
    words("operation"),
    words("why it was long", rank=1),
)
"""Of `CAUSE`."""


def answer(report: FleetReport) -> Iterator[str]:
    """Say in sentences what a fleet's store shows."""
    first, last = report.days[0], report.days[-1]
    when = first if first == last else f"{first} to {last}"
    yield (
        f"{report.hosts:,} hosts, {report.units:,} units, {when}: {report.waits:,} waits for an "
        f"mmap_lock, {duration(report.waited_ns)} in all; {report.recordings:,} recordings."
    )
    if not report.causes.is_empty():
        top = report.causes.row(0, named=True)
        whole = int(report.causes["caused_ns"].sum())
        yield (
            f"Most of it is behind {top['culprit_operation']} by {top['culprit_process']} in "
            f"{top['unit']}: {share(top['caused_ns'], whole)}, on {top['hosts']:,} hosts."
        )
    if report.changes is None:
        yield "What changed since last week is not known: the store has no week before."
    for line in report.caveats:
        yield f"Not whole: {line}."


def report_tables(report: FleetReport, top: int) -> Iterator[Grid]:
    """Lay the report out."""
    yield _causes(report, top)
    yield _worst(report, top)
    for name, frame in (
        ("unit", report.by_unit),
        ("kernel", report.by_kernel),
        ("culprit_operation", report.by_operation),
    ):
        yield _by(name, frame, top)
    if report.changes is not None:
        yield _changes(report.changes, top)
    yield _odd(report.odd, top)


def _causes(report: FleetReport, top: int) -> Grid:
    rows = [
        (
            *(one[name] for name in CAUSE),
            duration(one["caused_ns"]), duration(one["worst_ns"]), f"{one['waits']:,}",
            f"{one['hosts']:,}",
        )
        for one in report.causes.head(top).iter_rows(named=True)
    ]  # fmt: skip
    columns = (
        *_CAUSE_COLUMNS,
        figure("made others wait"),
        figure("longest wait", rank=2),
        figure("waits", rank=3),
        figure("hosts"),
    )
    return Grid(columns, rows, "Who makes others wait")


def _worst(report: FleetReport, top: int) -> Grid:
    rows = [
        (
            duration(one["wait_ns"]), one["host"], one["unit"], one["task"],
            f"{one['culprit_operation']} by {one['culprit_task']}",
            f"{one['time']:%Y-%m-%d %H:%M:%S}", one["recording"],
        )
        for one in report.worst.head(top).iter_rows(named=True)
    ]  # fmt: skip
    columns = (
        figure("wait"),
        words("host"),
        words("unit"),
        words("who"),
        words("behind"),
        words("when (UTC)", rank=2),
        words("recording", rank=3),
    )
    return Grid(columns, rows, "The longest waits")


def _by(name: str, frame: pl.DataFrame, top: int) -> Grid:
    shown = name.replace("culprit_", "")
    rows = [
        (
            one[name], duration(one["caused_ns"]), duration(one["waited_ns"]),
            duration(one["worst_ns"]), f"{one['waits']:,}", f"{one['hosts']:,}",
        )
        for one in frame.head(top).iter_rows(named=True)
    ]  # fmt: skip
    columns = (
        words(shown),
        figure("made others wait"),
        figure("waited"),
        figure("longest wait", rank=2),
        figure("waits", rank=3),
        figure("hosts"),
    )
    return Grid(columns, rows, f"By {shown}")


def _changes(changes: pl.DataFrame, top: int) -> Grid:
    rows = [
        (
            *(one[name] for name in CAUSE), duration(one["before_ns"]), duration(one["now_ns"]),
        )
        for one in changes.head(top).iter_rows(named=True)
    ]  # fmt: skip
    columns = (
        *_CAUSE_COLUMNS,
        figure("the week before"),
        figure("last week"),
    )
    return Grid(columns, rows, "What changed, a host and day")


def _odd(odd: pl.DataFrame, top: int) -> Grid:
    rows = [
        (
            one["host"], one["unit"], one["kernel"], duration(one["a_day_ns"]),
            duration(one["usual_ns"]), f"{one['times']:.1f}", f"{one['of_hosts']:,}",
        )
        for one in odd.head(top).iter_rows(named=True)
    ]  # fmt: skip
    columns = (
        words("host"),
        words("unit"),
        words("kernel", rank=1),
        figure("a day"),
        figure("usual", rank=2),
        figure("times"),
        figure("of hosts alike", rank=3),
    )
    return Grid(columns, rows, "Hosts that differ")


def replay_sentences(found: FleetReplay) -> Iterator[str]:
    """Say what was replayed, and what it spares."""
    yield (
        f"{found.recordings:,} recordings of {found.hosts:,} hosts, {found.replays:,} of different "
        f"content replayed; their stores' waits are {duration(found.caused_ns)} of waiting."
    )
    for one in found.sums.iter_rows(named=True):
        what = one["design"] if one["free_by"] == AS_RECORDED else f"freeing by {one['free_by']}"
        spares = f"spares {duration(one['spared_ns'])}"
        if one["spared_ns"] < 0:
            spares = f"costs {duration(-one['spared_ns'])}"
        yield (
            f"{what} {spares} ({share(abs(one['spared_ns']), one['caused_ns'])} of the "
            f"{duration(one['caused_ns'])} that sound replays stand for)."
        )
    unsound = int(found.rows.filter(pl.col("share").is_null())["caused_ns"].sum())
    if unsound:
        yield f"Not known, since no sound replay stands for it: {duration(unsound)}."
    for one_failed in found.failed[:3]:
        yield f"Not replayed: {one_failed.recording} ({one_failed.why})."


def replay_table(found: FleetReplay, top: int) -> Grid:
    """Lay out what each kind of stall would be."""
    rows = [
        (
            one["unit"], one["kernel"], one["operation"], one["design"], one["free_by"],
            f"{one['recordings']:,}", duration(one["own_ns"]), duration(one["then_ns"]),
            "not known" if one["share"] is None else f"{100 * one['share']:.0f} %",
            "not known" if one["spared_ns"] is None else duration(one["spared_ns"]),
        )
        for one in found.rows.head(top).iter_rows(named=True)
    ]  # fmt: skip
    columns = (
        words("unit"),
        words("kernel", rank=1),
        words("operation"),
        words("design"),
        words("free by"),
        figure("recordings", rank=3),
        figure("replayed"),
        figure("then"),
        figure("spares"),
        figure("in the store"),
    )
    return Grid(columns, rows, "Replayed")


def advice_table(advice: Sequence[FleetAdvice], top: int) -> Grid:
    """Lay out what to do, what surely spares most first."""
    rows = [
        (
            one.what, one.unit, f"{one.hosts:,}",
            "not known" if one.spares_ns is None else duration(one.spares_ns),
            duration(one.at_most_ns), one.how,
        )
        for one in advice[:top]
    ]  # fmt: skip
    columns = (
        words("what"),
        words("unit"),
        figure("hosts"),
        figure("spares"),
        figure("at most", rank=1),
        words("how"),
    )
    return Grid(columns, rows, "What to do")
