"""The store: what many hosts recorded, in one place, written by each of them without the others.

    waits/day=D/host=H/unit=U/NAME.parquet       the waits of a recording (`waits`), an object each
    recordings/day=D/host=H/unit=U/ID/...        the recording, as `zaplock report` reads it
    manifest/day=D/host=H/unit=U/NAME.json       that it is whole: its objects with their sums

`object_names` says what a NAME tells, so that nothing must be opened to list the store. DuckDB
and polars read it as it is: `SELECT * FROM 'STORE/waits/**/*.parquet'`.

Nobody locks anything. A waits object is one put; a recording counts from its entry in the manifest
on, which is put last and removed first. So a writer that is killed at any moment leaves whole
recordings, and at most objects that no entry names (`sweep`). Whoever tries again writes the same
names. A recording is counted once, whatever was written twice: of several objects of one recording
the one with the most waits is taken. Objects whose size is not what their name says are torn: they
are left out, and told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import polars as pl

from zaplock import outputs
from zaplock.errors import UserError
from zaplock.fleet_store.object_names import (
    VERSION,
    ObjectName,
    Partition,
    host_folder,
    parse,
    sum_of,
)
from zaplock.fleet_store.objects import Objects
from zaplock.fleet_store.waits import packed, unpacked

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

WAITS, RECORDINGS, MANIFEST, TRUTH = "waits", "recordings", "manifest", "truth.json"
_DAY_S = 86_400


class StoreEntry(msgspec.Struct, frozen=True):
    """An entry of the manifest: a recording, and the objects that it has (name, bytes, sum)."""

    version: int
    recording: str
    host: str
    unit: str
    kernel: str
    cause: str
    waits: int
    worst_ns: int
    files: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as listed: where it is and what its name says."""

    path: str
    place: Partition
    name: ObjectName


@dataclass(frozen=True, slots=True)
class Listing:
    """What a listing showed: the objects to count, each recording once, and what was left out."""

    objects: tuple[Listed, ...]
    torn: tuple[str, ...]
    newer: tuple[str, ...]
    """Of a version that this zaplock does not know."""
    twice: int

    @property
    def caveats(self) -> tuple[str, ...]:
        """Say what was left out, a sentence each."""
        said = []
        if self.torn:
            said.append(f"{len(self.torn)} torn object(s) left out, the first {self.torn[0]}")
        if self.newer:
            said.append(f"{len(self.newer)} object(s) of a newer version left out: update zaplock")
        return tuple(said)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is told of a recording when it is put: where it belongs, when it began, and how bad."""

    place: Partition
    recording: str
    at_ns: int
    waits: int
    worst_ns: int
    kernel: str
    cause: str = ""


class FleetStore:
    """A store at a directory or an fsspec URL (`s3://bucket/fleet`). Nothing is opened yet."""

    def __init__(
        self,
        url: str,
        files: AbstractFileSystem | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.objects = Objects(url, files, pause)
        self.url = url

    def put_waits(self, about: Recorded, frame: pl.DataFrame) -> str:
        """Put the waits of a recording; return the object's path. A second try does no harm."""
        content = packed(frame)
        name = _name(about, frame.height, content)
        path = f"{WAITS}/{about.place}/{name.spelt('parquet')}"
        self.objects.put(path, content)
        return path

    def put_recording(self, about: Recorded, files: Iterable[tuple[str, bytes]]) -> str:
        """Put a recording's files, then its entry; return the entry's path."""
        folder = _folder(about.place, about.recording)
        written = []
        for file, content in files:
            self.objects.put(f"{folder}/{file}", content)
            written.append((file, len(content), sum_of(content)))
        entry = StoreEntry(
            VERSION,
            about.recording,
            about.place.host,
            about.place.unit,
            about.kernel,
            about.cause,
            about.waits,
            about.worst_ns,
            tuple(written),
        )
        content = msgspec.json.format(msgspec.json.encode(entry), indent=1)
        name = _name(about, about.waits, content)
        path = f"{MANIFEST}/{about.place}/{name.spelt('json')}"
        self.objects.put(path, content)
        return path

    def days(self) -> list[str]:
        """List the days of which there are waits (YYYY-MM-DD), the earliest first."""
        return [name.removeprefix("day=") for name in self.objects.folders(WAITS)
                if name.startswith("day=")]  # fmt: skip

    def waits(self, days: Iterable[str] | None = None) -> Listing:
        """List the tables of waits, of some days or all."""
        return self._listing(WAITS, days)

    def recordings(self, days: Iterable[str] | None = None) -> Listing:
        """List the entries of the manifest, of some days or all, without opening any."""
        return self._listing(MANIFEST, days)

    def recordings_of(self, host: str) -> Listing:
        """List a host's entries of the manifest, without a look at those of others."""
        days = self.objects.folders(MANIFEST)
        return self._listed([f"{MANIFEST}/{day}/{host_folder(host)}" for day in days])

    def _listing(self, kind: str, days: Iterable[str] | None) -> Listing:
        return self._listed([kind] if days is None else [f"{kind}/day={day}" for day in days])

    def _listed(self, below: Iterable[str]) -> Listing:
        best: dict[tuple[str, str, str], Listed] = {}
        torn, newer, twice = [], [], 0
        for path, size in (pair for one in below for pair in self.objects.sizes(one).items()):
            if (found := parse(path)) is None:
                continue
            place, name = found
            if size != name.size:
                torn.append(path)
                continue
            if name.version > VERSION:
                newer.append(path)
                continue
            key = (place.host, place.unit, name.recording)
            listed = Listed(path, place, name)
            twice += key in best
            if key not in best or _better(listed, best[key]):
                best[key] = listed
        order = sorted(best.values(), key=lambda one: (one.place, one.name))
        return Listing(tuple(order), tuple(torn), tuple(newer), twice)

    def read_waits(self, listed: Iterable[Listed]) -> Iterator[tuple[Listed, pl.DataFrame]]:
        """Read tables of waits. Raises UserError where one is not what its name says."""
        chosen = list(listed)
        contents = self.objects.get_all([one.path for one in chosen])
        for one in chosen:
            content = contents.get(one.path)
            if content is None:
                continue  # removed meanwhile
            if sum_of(content) != one.name.sum:
                raise UserError(f"{self.url}: {one.path} is damaged (its sum differs): remove it")
            yield one, unpacked(content, one.path)

    def entry(self, listed: Listed) -> StoreEntry:
        """Open an entry of the manifest. Raises UserError where it is damaged."""
        content = self.objects.get(listed.path)
        try:
            if sum_of(content) != listed.name.sum:
                raise ValueError("its sum differs")
            return msgspec.json.decode(content, type=StoreEntry)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise UserError(f"{self.url}: {listed.path} is damaged ({error}): remove it") from None

    def fetch(self, listed: Listed, into: Path) -> Path:
        """Copy a recording to a folder of this machine, checked; return where it is."""
        entry = self.entry(listed)
        folder = _folder(listed.place, listed.name.recording)
        for file, size, sums in entry.files:
            if "/" in file or file.startswith("."):
                raise UserError(f"{self.url}: {listed.path} names {file!a}: no file of a recording")
            content = self.objects.get(f"{folder}/{file}")
            if len(content) != size or sum_of(content) != sums:
                raise UserError(f"{self.url}: {folder}/{file} is damaged: remove the recording")
            outputs.write(into / file, content, mode=0o600, parents=True)
        return into

    def remove_recording(self, listed: Listed) -> None:
        """Remove a recording, its entry first; its waits stay."""
        entry = self.entry(listed)
        self.objects.remove(listed.path)
        for file, _, _ in entry.files:
            self.objects.remove(f"{_folder(listed.place, listed.name.recording)}/{file}")

    def sweep(self, host: str, older_than_ns: int) -> int:
        """Remove a host's objects that no entry names, of days before an instant; count them.

        Those of the running day may belong to a recording that is being put.
        """
        named = {_folder(one.place, one.name.recording) for one in self.recordings_of(host).objects}
        before = time.strftime("%Y-%m-%d", time.gmtime(older_than_ns // 10**9))
        swept = 0
        for day in self.objects.folders(RECORDINGS):
            if day.removeprefix("day=") >= before:
                continue
            for path in self.objects.sizes(f"{RECORDINGS}/{day}/{host_folder(host)}"):
                if path.rpartition("/")[0] not in named:
                    self.objects.remove(path)
                    swept += 1
        return swept


def _name(about: Recorded, waits: int, content: bytes) -> ObjectName:
    size = len(content)
    return ObjectName(
        about.at_ns, about.recording, VERSION, waits, about.worst_ns, size, sum_of(content)
    )


def _folder(place: Partition, recording: str) -> str:
    return f"{RECORDINGS}/{place}/{recording}"


def _better(one: Listed, other: Listed) -> bool:
    return (one.name.waits, one.name.version, one.name.sum) > (
        other.name.waits,
        other.name.version,
        other.name.sum,
    )


def files_of(recording: Path) -> Iterator[tuple[str, bytes]]:
    """Read the files of a finished recording, its manifest last."""
    names = sorted(one.name for one in recording.iterdir() if not one.name.startswith("."))
    for name in sorted(names, key=lambda name: name == "manifest.json"):
        if name.endswith((".parquet", ".json")):
            yield name, (recording / name).read_bytes()
