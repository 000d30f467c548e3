"""The tables of a recording as files: checked when they are read, whole when they are written.

A table's name says what it is, its number and how its bytes begin when they are summed up:
`events-000012-9f86d081884c7d65.parquet` ends in 16 digits of the SHA-256 of its content. So a file
is checked before a byte of it is parsed, a block that is missing leaves a hole in the numbers, and
no second file must be kept in step with it. (Until version 1 a name had no sum, and a table that is
replaced had no number.)

Reading trusts nothing: only plain files are opened, and without waiting for anybody; a path is a
path, whatever characters are in it; how much memory a table will take is bounded before any of it
is taken; types are compared exactly. Tables are parsed by another process (`separate_parser`),
since a sum doesn't tell who wrote one and old ones have none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arro3.core import Table
from numpy.typing import NDArray

from zaplock.errors import UserError
from zaplock.inputs import read_plain
from zaplock.outputs import Folder
from zaplock.trace.events import EVENT
from zaplock.trace.parquet import ColumnKind as Is
from zaplock.trace.parquet import Schema, is_of
from zaplock.trace.quota_readings import QuotaReading
from zaplock.trace.separate_parser import PARSER
from zaplock.untrusted_names import read_text

_NAME = re.compile(r"([a-z]+)(?:-([0-9]{6,9}))?(?:-([0-9a-f]{16}))?\.parquet")
_DIGITS = 16
_LARGEST_FILE = 1 << 30
MOST_ROWS = 1 << 22
"""In one block; a larger one is written as several. Blocks of version 1 knew no bound."""
_MOST_TEXT = 4096
WAY_OUT = "record again, or move it away: the rest can be read, and what is missing is told"

Columns = Mapping[str, NDArray[Any]]
EVENTS = {name: Is(EVENT[name].name) for name in EVENT.names or ()}
TASKS = {
    "tid": Is.INT32,
    "comm": Is.TEXT,
    "pid": Is.INT32,
    "process": Is.TEXT,
}
MMS = {"mm": Is.UINT64, "pid": Is.INT32}
INSIDE = {"tid": Is.INT32, "inside_tid": Is.INT32, "inside_pid": Is.INT32}
FRAMES = {
    "pid": Is.INT32,
    "address": Is.UINT64,
    "text": Is.TEXT,
    "kind": Is.UINT8,
}
STACKS = {
    "time_ns": Is.INT64,
    "pid": Is.INT32,
    "tid": Is.INT32,
    "reason": Is.UINT8,
    "kernel": Is.ADDRESSES,
    "user": Is.ADDRESSES,
    "top": Is.UINT64,
}
STACKS_1 = {
    "time_ns": Is.INT64,
    "tid": Is.INT32,
    **dict.fromkeys([f"frame{number}" for number in range(8)], Is.UINT64),
}
"""Of version 1."""
QUOTAS = {name: Is.TEXT if name == "group" else Is.INT64 for name in QuotaReading._fields}
GROUPS = {"pid": Is.INT32, "groups": Is.TEXTS}
FOUND = {
    "tid": Is.INT32,
    "time_ns": Is.INT64,
    "state": Is.TEXT,
    "wchan": Is.TEXT,
    "operation": Is.TEXT,
    "stack": Is.TEXTS,
    "does": Is.TEXT,
    "exclusive": Is.BOOL,
    "mm": Is.UINT64,
    "since_ns": Is.INT64,
    "address": Is.UINT64,
    "length": Is.INT64,
    "detail": Is.INT64,
}
"""The fields of `FoundTask`, in their order."""


@dataclass(frozen=True, slots=True, order=True)
class TableFile:
    """A table's file: its kind, number (-1: it has none) and sum ("": it has none)."""

    kind: str
    number: int
    sum: str
    path: Path


def tables_in(directory: Path) -> list[TableFile]:
    """List the tables of a recording, by kind and number."""
    found = []
    for entry in os.scandir(directory):
        if match := _NAME.fullmatch(entry.name):
            kind, number, digits = match.groups()
            path = directory / entry.name
            found.append(TableFile(kind, int(number or -1), digits or "", path))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Raw:
    """A table whose bytes are what was written, not yet parsed.

    `rows` and `columns` are what it says it has.
    """

    file: TableFile
    content: bytes
    rows: int
    columns: frozenset[str]


def open_table(file: TableFile) -> Raw:
    """Read a table's bytes and check their sum. Raises UserError where it is damaged."""
    with _told(file.path):
        content = read_plain(file.path, _LARGEST_FILE, WAY_OUT, follow=False)
        if file.sum and _sum(content) != file.sum:
            raise ValueError("its content is not what was written")
        rows, columns = PARSER.look(content)
    if file.sum and rows > MOST_ROWS:
        raise UserError(f"{file.path} claims {rows:,} rows, and none has over {MOST_ROWS:,}")
    return Raw(file, content, rows, columns)


def parse(raw: Raw, schema: Schema) -> Table:
    """Parse the columns of a table, which must have just these types and no empty fields.

    Raises UserError where it has others, or where a text is longer than any name.
    """
    with _told(raw.file.path):
        if missing := [name for name in schema if name not in raw.columns]:
            raise ValueError(f"its column {missing[0]} is missing")
        table = PARSER.parse(raw.content, raw.rows, list(schema))
        for name, kind in schema.items():
            if not is_of(kind, table[name].type):
                raise ValueError(f"its column {name} is {table[name].type}, not {kind.value}")
        if table.num_rows != raw.rows:
            raise ValueError("it has not the rows that it says")
        for name, kind in schema.items():
            if table[name].null_count:
                raise ValueError(f"its column {name} has empty fields")
            if kind is Is.TEXT and raw.rows:
                longest = max(len(text.encode()) for text in table[name].to_pylist())
                if longest > _MOST_TEXT:
                    raise ValueError(f"a text in {name} has {longest:,} bytes")
    return table


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes the libraries say into one line."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a PanicException of Rust is no Exception
        lines = str(error).splitlines() or [type(error).__name__]
        if isinstance(error, OSError):
            lines = [error.strerror or lines[0]]
        raise UserError(f"{path} can't be read ({lines[0][:200]}): {WAY_OUT}") from None


def require_memory(needed: int, what: str) -> None:
    """Raise UserError, before any of it is taken, where so many bytes can't be had."""
    free = _available()
    if needed > free:
        raise UserError(
            f"{what} needs {needed >> 20:,} MiB of memory, and {free >> 20:,} MiB are free: "
            "use a larger machine, or record for a shorter time"
        )


def _available() -> int:
    rooms = [1 << 62]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        used = int(read_text("/proc/self/statm").split()[0]) * resource.getpagesize()
        rooms.append(max(0, limit - used))
    with contextlib.suppress(OSError, IndexError):
        for line in read_text("/proc/meminfo").splitlines():
            if line.startswith("MemAvailable:"):
                rooms.append(int(line.split()[1]) << 10)
    return min(rooms)


def put(folder: Folder, kind: str, number: int, content: bytes) -> str:
    """Write a table's bytes whole; return its file's name."""
    name = f"{kind}-{number:06d}-{_sum(content)}.parquet"
    folder.write(name, content)
    return name


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
