"""The names of the store's objects: all that a listing has to know stands in them.

    day=2026-11-27/host=web-7/unit=redis.service/
        20261127T101530.000000123Z_3f9c2a71b0de_v1_n812_w1500000000_b48213_9f86d081884c7d65.parquet

is when it began (UTC), which recording it is of, the version of its schema, how many waits are in
it, the longest of them in nanoseconds, how many bytes the object has and how their SHA-256 begins.
So the store is listed, sorted, narrowed and judged without opening anything, an object that was
torn is told by its size alone, and what a second try writes has the same name and is there once.

The folders are Hive partitions, as DuckDB, polars and Spark read them. A value that is no plain
name is written as in a URL (`%2F`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote

from zaplock.errors import UserError
from zaplock.untrusted_names import visible

VERSION = 1
"""Of the schema of a table of waits (`waits.SCHEMA`) and of an entry of the manifest."""
_SECOND = 10**9
_DIGITS = 16
_NAME = re.compile(
    r"(\d{8}T\d{6})\.(\d{9})Z_([0-9a-f]{12})_v(\d{1,4})_n(\d{1,18})_w(\d{1,18})_b(\d{1,18})"
    r"_([0-9a-f]{16})\.(?:parquet|json)"
)
_PLACE = re.compile(r"day=(\d{4}-\d\d-\d\d)/host=([^/=]+)/unit=([^/=]+)")
_LONGEST = 200


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """A partition: of which day (UTC, YYYY-MM-DD), which host and which unit."""

    day: str
    host: str
    unit: str

    def __str__(self) -> str:
        return f"day={self.day}/{host_folder(self.host)}/unit={_quoted(self.unit)}"


@dataclass(frozen=True, slots=True, order=True)
class ObjectName:
    """What an object's name says. Times are nanoseconds, `at_ns` since 1970 in UTC."""

    at_ns: int
    recording: str
    version: int
    waits: int
    worst_ns: int
    size: int
    sum: str

    def spelt(self, kind: str) -> str:
        """Write the name, `kind` is "parquet" or "json"."""
        seconds, rest = divmod(self.at_ns, _SECOND)
        at = datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%dT%H%M%S")
        return (
            f"{at}.{rest:09d}Z_{self.recording}_v{self.version}_n{self.waits}_w{self.worst_ns}"
            f"_b{self.size}_{self.sum}.{kind}"
        )


def host_folder(host: str) -> str:
    """Return the folder of a host, in that of a day."""
    return f"host={_quoted(host)}"


def place_at(at_ns: int, host: str, unit: str) -> Partition:
    """Return the partition of an instant (ns since 1970). Raises UserError for an empty name."""
    if not (host and unit):
        raise UserError("a host and a unit have a name: give --host NAME")
    day = datetime.fromtimestamp(at_ns // _SECOND, UTC).strftime("%Y-%m-%d")
    return Partition(day, visible(host)[:_LONGEST], visible(unit)[:_LONGEST])


def parse(path: str) -> tuple[Partition, ObjectName] | None:
    """Read the end of an object's path; None where it is no object of the store."""
    folder, _, name = path.rpartition("/")
    found, where = _NAME.fullmatch(name), _PLACE.search(folder)
    if found is None or where is None:
        return None
    at, rest, recording, version, waits, worst_ns, size, sums = found.groups()
    try:
        began = datetime.strptime(at, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None
    at_ns = int(began.timestamp()) * _SECOND + int(rest)
    place = Partition(where[1], visible(unquote(where[2])), visible(unquote(where[3])))
    return place, ObjectName(
        at_ns, recording, int(version), int(waits), int(worst_ns), int(size), sums
    )


def sum_of(content: bytes) -> str:
    """Return how the SHA-256 of some bytes begins."""
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def recording_id(*parts: str) -> str:
    """Name a recording by what makes it: the same parts give the same name, in any process."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:12]


def _quoted(value: str) -> str:
    return quote(value, safe="").replace("~", "%7E")
