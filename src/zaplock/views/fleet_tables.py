"""A fleet's report, replay and advice as tables of texts, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from zaplock.fleet.advising import FleetAdvice
from zaplock.fleet.replaying import FleetReplay
from zaplock.fleet.report import FleetReport
from zaplock.units import duration, share


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table: its title, its columns (">" before what stands right) and its cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


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


def report_tables(report: FleetReport, top: int) -> Iterator[TextTable]:
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


def _causes(report: FleetReport, top: int) -> TextTable:
    rows = [
        (
            one["unit"], one["culprit_process"], one["culprit_operation"], one["reason"],
            duration(one["caused_ns"]), duration(one["worst_ns"]), f"{one['waits']:,}",
            f"{one['hosts']:,}",
        )
        for one in report.causes.head(top).iter_rows(named=True)
    ]  # fmt: skip
    columns = ("unit", "process", "operation", "why it was long", ">made others wait",
               ">longest wait", ">waits", ">hosts")  # fmt: skip
    return TextTable("Who makes others wait", columns, tuple(rows))


def _worst(report: FleetReport, top: int) -> TextTable:
    rows = [
        (
            duration(one["wait_ns"]), one["host"], one["unit"], one["task"],
            f"{one['culprit_operation']} by {one['culprit_task']}",
            f"{one['time']:%Y-%m-%d %H:%M:%S}", one["recording"],
        )
        for one in report.worst.head(top).iter_rows(named=True)
    ]  # fmt: skip
    columns = (">wait", "host", "unit", "who", "behind", "when (UTC)", "recording")
    return TextTable("The longest waits", columns, tuple(rows))


def _by(name: str, frame: pl.DataFrame, top: int) -> TextTable:
    shown = name.replace("culprit_", "")
    rows = [
        (
            one[name], duration(one["caused_ns"]), duration(one["waited_ns"]),
            duration(one["worst_ns"]), f"{one['waits']:,}", f"{one['hosts']:,}",
        )
        for one in frame.head(top).iter_rows(named=True)
    ]  # fmt: skip
    columns = (shown, ">made others wait", ">waited", ">longest wait", ">waits", ">hosts")
    return TextTable(f"By {shown}", columns, tuple(rows))


def _changes(changes: pl.DataFrame, top: int) -> TextTable:
    rows = [
        (
            one["unit"], one["culprit_process"], one["culprit_operation"], one["reason"],
            duration(one["before_ns"]), duration(one["now_ns"]),
        )
        for one in changes.head(top).iter_rows(named=True)
    ]  # fmt: skip
    columns = ("unit", "process", "operation", "why it was long", ">the week before", ">last week")
    return TextTable("What changed, a host and day", columns, tuple(rows))


def _odd(odd: pl.DataFrame, top: int) -> TextTable:
    rows = [
        (
            one["host"], one["unit"], one["kernel"], duration(one["a_day_ns"]),
            duration(one["usual_ns"]), f"{one['times']:.1f}", f"{one['of_hosts']:,}",
        )
        for one in odd.head(top).iter_rows(named=True)
    ]  # fmt: skip
    columns = ("host", "unit", "kernel", ">a day", ">usual", ">times", ">of hosts alike")
    return TextTable("Hosts that differ", columns, tuple(rows))


def replay_sentences(found: FleetReplay) -> Iterator[str]:
    """Say what was replayed, and what it spares."""
    yield (
        f"{found.recordings:,} recordings of {found.hosts:,} hosts, {found.replays:,} of different "
        f"content replayed; their stores' waits are {duration(found.caused_ns)} of waiting."
    )
    for one in found.sums.iter_rows(named=True):
        what = one["design"] if one["free_by"] == "munmap" else f"freeing by {one['free_by']}"
        spares = f"spares {duration(one['spared_ns'])}"
        if one["spared_ns"] < 0:
            spares = f"costs {duration(-one['spared_ns'])}"
        yield (
            f"{what} {spares} ({share(one['spared_ns'], one['caused_ns'])} of the "
            f"{duration(one['caused_ns'])} that sound replays stand for)."
        )
    unsound = int(found.rows.filter(pl.col("share").is_null())["caused_ns"].sum())
    if unsound:
        yield f"Not known, since no sound replay stands for it: {duration(unsound)}."
    for one_failed in found.failed[:3]:
        yield f"Not replayed: {one_failed.recording} ({one_failed.why})."


def replay_table(found: FleetReplay, top: int) -> TextTable:
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
    columns = ("unit", "kernel", "operation", "design", "free by", ">recordings", ">replayed",
               ">then", ">spares", ">in the store")  # fmt: skip
    return TextTable("Replayed", columns, tuple(rows))


def advice_table(advice: Sequence[FleetAdvice], top: int) -> TextTable:
    """Lay out what to do, what surely spares most first."""
    rows = [
        (
            one.what, one.unit, f"{one.hosts:,}",
            "not known" if one.spares_ns is None else duration(one.spares_ns),
            duration(one.at_most_ns), one.how,
        )
        for one in advice[:top]
    ]  # fmt: skip
    columns = ("what", "unit", ">hosts", ">spares", ">at most", "how")
    return TextTable("What to do", columns, tuple(rows))
