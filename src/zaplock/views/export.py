"""Holds, waits and blame as tables for other tools: Parquet and CSV.

`blame` has a row for each part of each wait: its `wait` is the row number in the table of waits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zaplock import outputs
from zaplock.extras import needed
from zaplock.trace.analysis import Analysis
from zaplock.trace.holds import Holds
from zaplock.trace.stacks import CallStack
from zaplock.trace.summary import Summary
from zaplock.trace.waits import Waits
from zaplock.untrusted_names import cell
from zaplock.views.stacks import columns

if TYPE_CHECKING:
    import polars


def tables(summary: Summary) -> dict[str, polars.DataFrame]:
    """Return the tables `holds`, `waits` and `blame`."""
    analysis = summary.analysis
    return {
        "holds": _with_stacks(analysis, analysis.holds, analysis.hold_stack),
        "waits": _with_stacks(analysis, analysis.waits, analysis.wait_stack),
        "blame": _blame(analysis, summary),
    }


def _with_stacks(
    analysis: Analysis, table: Holds | Waits, find: Callable[[int], CallStack]
) -> polars.DataFrame:
    with needed("a table for other tools"):
        import polars as pl

    said = columns(analysis, table, find)
    return table.frame().with_columns(
        pl.Series(name, values, dtype=pl.String) for name, values in said.items()
    )


def _blame(analysis: Analysis, summary: Summary) -> polars.DataFrame:
    import polars as pl

    rows = [
        (found.wait, *part)
        for found in summary.explained
        for part in [
            *(
                (b.tid, b.comm, b.operation, b.address, b.length, b.role, b.vma, b.share_ns)
                for b in found.blame
            ),
            (-1, "", "", 0, 0, "unexplained", False, found.unexplained_ns),
        ]
    ]
    schema = {
        "wait": pl.Int64,
        "tid": pl.Int32,
        "comm": pl.String,
        "operation": pl.String,
        "address": pl.UInt64,
        "length": pl.Int64,
        "role": pl.String,
        "vma_lock": pl.Boolean,
        "share_ns": pl.Int64,
    }
    return pl.DataFrame(rows, schema, orient="row")


def export(summary: Summary, directory: Path, kind: Literal["csv", "parquet"]) -> list[Path]:
    """Write the tables into a directory; return the files.

    Raises UserError where the directory can't be made or written.
    """
    files = []
    try:
        with outputs.walk(directory, make=True) as folder:
            for name, frame in tables(summary).items():
                with folder.replacing(f"{name}.{kind}", 0o666) as file:
                    _quoted(frame).write_csv(file) if kind == "csv" else frame.write_parquet(file)
                files.append(directory / f"{name}.{kind}")
    except OSError as error:
        raise outputs.unwritable(directory, error) from None
    return files


def _quoted(frame: polars.DataFrame) -> polars.DataFrame:
    """Quote the cells that a spreadsheet would take for formulas: names are strangers'."""
    import polars as pl

    return frame.with_columns(pl.col(pl.String).map_elements(cell, return_dtype=pl.String))
