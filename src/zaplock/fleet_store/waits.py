"""The table of waits: one row for each wait that stood in the queue, with who made it long.

It is what a fleet's questions are about, and all that they need: recordings are only fetched to be
replayed. Version 1. A later version may add columns; whoever reads an older table finds them empty
there. Nothing else changes a version's meaning.
"""

from __future__ import annotations

import io
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

import polars as pl

from zaplock.errors import UserError
from zaplock.trace.blame import Explained
from zaplock.trace.events import NO_OP
from zaplock.trace.hold_time import HoldTime
from zaplock.trace.summary import NO_OPERATION, Summary

NOT_KNOWN = "not known"

SCHEMA: dict[str, Any] = {
    "time": pl.Datetime("ns", "UTC"),
    "recording": pl.String,
    "kernel": pl.String,
    "process": pl.String,
    "task": pl.String,
    "operation": pl.String,
    "exclusive": pl.Boolean,
    "wait_ns": pl.Int64,
    "culprit_process": pl.String,
    "culprit_task": pl.String,
    "culprit_operation": pl.String,
    "culprit_length": pl.Int64,
    "culprit_detail": pl.Int64,
    "culprit_ns": pl.Int64,
    "role": pl.String,
    "reason": pl.String,
    "unexplained_ns": pl.Int64,
}
"""The columns of version 1.

`culprit_*` are of whoever explains most of the wait ("not known" where nobody does) and
`culprit_ns` is how much; `reason` is what kept that hold long; `role` is "holder" or
"queued-writer".
"""


@dataclass(frozen=True, slots=True)
class WallClock:
    """How a recording's clock stands to the world's: `offset_ns` added to it is UTC since 1970."""

    offset_ns: int


def waits_of(
    summary: Summary,
    recording: str,
    clock: WallClock,
    least_ns: int = 0,
    mms: Container[int] | None = None,
) -> pl.DataFrame:
    """Lay out the explained waits of a recording that took `least_ns` or longer, in their order.

    Those for the locks of some address spaces alone, where `mms` are given.
    """
    waits = summary.analysis.waits
    rows = [
        _row(summary, found, recording, clock)
        for found in summary.explained
        if int(waits["wait_ns"][found.wait]) >= least_ns
        and (mms is None or int(waits["mm"][found.wait]) in mms)
    ]
    return pl.DataFrame(rows, SCHEMA, orient="row").sort("time", "task", maintain_order=True)


def _row(summary: Summary, found: Explained, recording: str, clock: WallClock) -> tuple[Any, ...]:
    analysis, wait = summary.analysis, found.wait
    waits, tasks = analysis.waits, analysis.events.tasks
    who = tasks.get(int(waits["tid"][wait]))
    op = int(waits["op"][wait])
    culprit = found.culprit
    blamed = tasks.get(culprit.tid) if culprit else None
    table: Any = analysis.waits if culprit and culprit.waited else analysis.holds
    return (
        int(waits["start_ns"][wait]) + clock.offset_ns,
        recording,
        analysis.kernel,
        (who.process or who.comm) if who else NOT_KNOWN,
        who.comm if who else NOT_KNOWN,
        NO_OPERATION if op == NO_OP else waits.operations[op],
        bool(waits["exclusive"][wait]),
        int(waits["wait_ns"][wait]),
        (blamed.process or blamed.comm) if blamed else NOT_KNOWN,
        culprit.comm or NOT_KNOWN if culprit else NOT_KNOWN,
        (culprit.operation or NO_OPERATION) if culprit else NOT_KNOWN,
        culprit.length if culprit else 0,
        int(table["detail"][culprit.row]) if culprit and not culprit.vma else 0,
        culprit.share_ns if culprit else 0,
        culprit.role if culprit else NOT_KNOWN,
        _reason(summary, found),
        found.unexplained_ns,
    )


def _reason(summary: Summary, found: Explained) -> str:
    """Say in a few words, of which there are few, what kept the culprit's hold long."""
    culprit = found.culprit
    if culprit is None:
        return NOT_KNOWN
    if culprit.vma:
        return "held a VMA's lock"
    if culprit.role == "queued-writer":
        return "waited in front"
    if culprit.waited:
        return "had no cpu yet"
    return reason_of(summary.analysis.hold_time(culprit.row))


def reason_of(time: HoldTime) -> str:
    """Name the longest part of a hold."""
    parts = [
        (time.on_cpu_ns, "on a cpu"),
        (time.preempted_ns, "ready without a cpu"),
        (time.throttled_ns, "throttled"),
        (time.asleep_ns, f"asleep: {time.asleep[0][0]}" if time.asleep else "asleep"),
        (time.unknown_ns, NOT_KNOWN),
    ]
    return max(parts, key=lambda part: part[0])[1]


def packed(frame: pl.DataFrame) -> bytes:
    """Write a table of waits as Parquet; the same rows give the same bytes."""
    into = io.BytesIO()
    frame.select(list(SCHEMA)).write_parquet(into, compression="zstd", compression_level=1)
    return into.getvalue()


def unpacked(content: bytes, where: str) -> pl.DataFrame:
    """Read a table of waits of this version or an older one, which lacks columns.

    Raises UserError where it is damaged or isn't one.
    """
    try:
        has = pl.read_parquet_schema(io.BytesIO(content))
        for name, kind in has.items():
            if name in SCHEMA and kind != SCHEMA[name]:
                raise UserError(f"{where}: its column {name} is {kind}, not {SCHEMA[name]}")
        frame = pl.read_parquet(
            io.BytesIO(content), columns=[name for name in SCHEMA if name in has]
        )
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        said = str(error).splitlines()[0][:200]
        raise UserError(f"{where} can't be read ({said}): remove it, the rest can be") from None
    return with_all_columns(frame)


def with_all_columns(frame: pl.DataFrame) -> pl.DataFrame:
    """Add what an older version lacks, as empty fields."""
    missing = [pl.lit(None, kind).alias(name) for name, kind in SCHEMA.items()
               if name not in frame.columns]  # fmt: skip
    return frame.with_columns(missing).select(list(SCHEMA))


def joined(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Put tables of waits one below the other."""
    found = list(frames)
    return pl.concat(found) if found else pl.DataFrame(schema=SCHEMA)
