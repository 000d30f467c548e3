"""A question in SQL over a store, answered by DuckDB.

Two views: `waits`, the rows of every table of waits with `day`, `host` and `unit` from their
places, and `recordings`, a row for each entry of the manifest, from its name alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from math import isfinite
from typing import TYPE_CHECKING, Any

import polars as pl

from zaplock.errors import UserError
from zaplock.extras import needed
from zaplock.fleet_store.store import FleetStore, Listing
from zaplock.fleet_store.waits import SCHEMA

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_PLACES = ("day", "host", "unit")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question gave: names of columns and rows of plain values."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    caveats: tuple[str, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Return a row as an object.

        Instants and days are texts in ISO 8601, and what JSON has no form for is the text that
        DuckDB shows (nan, 1.50 of a DECIMAL). Raises UserError where two columns have one name.
        """
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise UserError(f"two columns are called {name!a}: name them apart with AS")
        return [
            {name: _plain(value) for name, value in zip(self.columns, row)} for row in self.rows
        ]


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | str | type(None)):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    return value.isoformat() if isinstance(value, date | datetime) else str(value)


def ask(url: str, question: str, days: Sequence[str] | None = None) -> Answer:
    """Answer a question in SQL. Raises UserError where it can't be, in DuckDB's own words."""
    with needed("'fleet ask'"):
        import duckdb
    store = FleetStore(url)
    listing, recordings = store.waits(days), store.recordings(days)
    with duckdb.connect() as connection:
        _give_waits(connection, store, listing)
        connection.register("recordings", _table(recordings))
        try:
            found = connection.sql(question)
            rows = tuple(found.fetchall()) if found is not None else ()
        except duckdb.Error as error:
            said = " ".join(str(error).split())[:300]
            raise UserError(
                f"DuckDB can't answer ({said}): there are the views waits and recordings; "
                "'DESCRIBE waits' tells a view's columns"
            ) from None
        columns = tuple(found.columns) if found is not None else ()
        return Answer(columns, rows, listing.caveats + recordings.caveats)


def _give_waits(connection: DuckDBPyConnection, store: FleetStore, listing: Listing) -> None:
    """Make the view of all tables; an empty one where there are none."""
    if not listing.objects:
        text = dict.fromkeys(_PLACES, pl.String)
        connection.register("waits", pl.DataFrame(schema={**SCHEMA, **text}).to_arrow())
        return
    objects = store.objects
    protocol = ""
    if not objects.local:
        connection.register_filesystem(objects.files)
        named = objects.files.protocol
        protocol = f"{named if isinstance(named, str) else named[0]}://"
    paths = [f"{protocol}{objects.full(one.path).lstrip('/' if protocol else '')}"
             for one in listing.objects]  # fmt: skip
    spelt = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    connection.execute(
        f"CREATE VIEW waits AS SELECT * FROM read_parquet([{spelt}], union_by_name = true, "
        "hive_partitioning = true, hive_types_autocast = false)"
    )


def _table(listing: Listing) -> Any:
    rows = [
        (
            one.place.day,
            one.place.host,
            one.place.unit,
            one.name.recording,
            one.name.at_ns,
            one.name.waits,
            one.name.worst_ns,
            one.path,
        )
        for one in listing.objects
    ]
    schema = {
        **dict.fromkeys((*_PLACES, "recording"), pl.String),
        "time": pl.Int64,
        "waits": pl.Int64,
        "worst_ns": pl.Int64,
        "entry": pl.String,
    }
    frame = pl.DataFrame(rows, schema, orient="row")
    return frame.with_columns(pl.col("time").cast(SCHEMA["time"])).to_arrow()
