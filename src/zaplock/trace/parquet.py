"""Columns of numbers, texts and lists as Parquet, and what a file says of itself.

The library is arro3, Arrow's own Rust implementation behind two small modules: what only records
needs no data frame library. A table's schema names the `ColumnKind` of each column. Texts and lists
may come as any of Arrow's types for them (polars, DuckDB and arro3 write different ones), numbers
only as exactly theirs.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from itertools import accumulate, chain
from typing import Any, Final

import numpy as np
from arro3.core import Array, ChunkedArray, DataType, Table, list_array
from arro3.io import write_parquet
from numpy.typing import NDArray


class ColumnKind(Enum):
    """What a column has; `value` is numpy's name for a number, or what else it is."""

    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    UINT64 = "uint64"
    BOOL = "bool"
    TEXT = "text"
    TEXTS = "list of texts"
    ADDRESSES = "list of uint64"


Schema = Mapping[str, ColumnKind]

_NUMBERS: Final = {
    ColumnKind.INT16: DataType.int16(),
    ColumnKind.INT32: DataType.int32(),
    ColumnKind.INT64: DataType.int64(),
    ColumnKind.UINT8: DataType.uint8(),
    ColumnKind.UINT64: DataType.uint64(),
    ColumnKind.BOOL: DataType.bool(),
}
_TEXT: Final = DataType.large_utf8()
_WITHIN: Final = {ColumnKind.TEXTS: ColumnKind.TEXT, ColumnKind.ADDRESSES: ColumnKind.UINT64}


def is_of(kind: ColumnKind, found: DataType) -> bool:
    """Say whether a column's type is of a kind."""
    if kind in _WITHIN:
        is_list = DataType.is_list(found) or DataType.is_large_list(found)
        return is_list and found.value_type is not None and is_of(_WITHIN[kind], found.value_type)
    if kind is ColumnKind.TEXT:
        return any(
            asked(found)
            for asked in (DataType.is_string, DataType.is_large_string, DataType.is_string_view)
        )
    return found == _NUMBERS[kind]


def packed(columns: Mapping[str, Sequence[Any] | NDArray[Any]], schema: Schema) -> bytes:
    """Return columns as the bytes of a Parquet file.

    Times differ little from one row to the next: their differences take less than half of what a
    dictionary of them does, and are written faster. What repeats (tasks, addresses) has one.
    """
    table = Table.from_pydict({name: _array(columns[name], kind) for name, kind in schema.items()})
    file = io.BytesIO()
    times = [name for name in schema if name.endswith("_ns")]
    write_parquet(
        table, file, compression="zstd(1)",
        column_encoding=dict.fromkeys(times, "delta_binary_packed"),
        column_dictionary_enabled=dict.fromkeys(times, False),
    )  # fmt: skip
    return file.getvalue()


def _array(values: Sequence[Any] | NDArray[Any], kind: ColumnKind) -> Array:
    if isinstance(values, np.ndarray):
        return Array.from_numpy(np.ascontiguousarray(values))
    if kind in _WITHIN:
        ends = np.fromiter(accumulate(map(len, values)), np.int64, len(values))
        within = _array(list(chain.from_iterable(values)), _WITHIN[kind])
        return list_array(Array.from_numpy(np.concatenate(([0], ends))), within)
    return Array(values, _TEXT if kind is ColumnKind.TEXT else _NUMBERS[kind])


def numbers(column: ChunkedArray, kind: ColumnKind) -> NDArray[Any]:
    """Return a column of numbers."""
    return column.to_numpy() if column.num_chunks else np.empty(0, kind.value)


def rows_of(table: Table) -> Iterable[tuple[Any, ...]]:
    """Give a table's rows, texts as `str` and lists as `list`."""
    return zip(*(table[name].to_pylist() for name in table.column_names))


def columns_of(rows: Iterable[Sequence[Any]], schema: Schema) -> dict[str, Sequence[Any]]:
    """Turn rows into columns, also where there are none."""
    found = list(zip(*rows))
    return dict(zip(schema, found or [()] * len(schema)))
