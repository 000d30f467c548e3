"""The recording on disk: a directory of Parquet blocks and a JSON manifest (docs/recording.md).

A block appears under its name only when it is whole (written beside, then renamed), and the
manifest and the tables of names are replaced in the same way. So a writer that is killed at any
moment, by SIGKILL or a full disk, leaves a recording that is whole up to its last block. Blocks
are in the order of their writing; two of them may overlap in time (the buffers of two CPUs are
never read at the same instant), and `read` puts the events in order.

Anybody can read the tables without zaplock: `SELECT * FROM 'x.zaplock/events-*.parquet'` in
DuckDB, `polars.read_parquet("x.zaplock/events-*.parquet")`.

Not covered: power loss. Nothing is synced to the device, since a recorder that waits for a disk
loses events; what the kernel had not yet written back is lost with the power.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from zaplock.errors import UserError
from zaplock.trace.events import EVENT, EventKind, Events, FoundTask, RecordedTask
from zaplock.trace.quotas import QuotaReading, Quotas, quotas
from zaplock.trace.stacks import (
    AddressKind,
    NamedAddress,
    Names,
    StackReason,
    StackRow,
    Stacks,
    in_order,
)

FORMAT = "zaplock recording"
VERSION = 2
"""2 (from 1): stacks have a reason, a kernel part and lists of frames; quotas of cgroups."""
_MANIFEST = "manifest.json"
_BLOCK = "events-{:06d}.parquet"
_BLOCKS = "events-*.parquet"

_STACKS = "stacks-{:06d}.parquet"
_FRAMES = "frames.parquet"
_FOUND = "found.parquet"
_QUOTAS = "quotas.parquet"
_GROUPS = "groups.parquet"

Columns = Mapping[str, NDArray[Any]]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording is: where, when and how it was made, and what it lacks.

    `lost_events` counts the losses whose number is known; `unknown_losses` the gaps whose number
    isn't. `complete` is False while a recorder is writing and stays so when it was killed.
    """

    format: str = FORMAT
    version: int = VERSION
    source: str = "recorder"
    """"recorder", "simulation" or "import"."""
    kernel: str = ""
    machine: str = ""
    clock: str = "mono"
    cpus: int = 0
    target: str = ""
    command_line: tuple[str, ...] = ()
    enabled: tuple[str, ...] = ()
    """The trace events that were switched on, as system:name."""
    operations: tuple[str, ...] = ()
    started_at: str = ""
    """Wall-clock time in ISO 8601, UTC."""
    started_ns: int = 0
    """First instant of the recording by `clock`; `ended_ns` is its last."""
    ended_ns: int = 0
    lost_events: int = 0
    unknown_losses: int = 0
    complete: bool = False
    notes: tuple[str, ...] = ()
    zaplock: str = ""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording as read: its events in order of time, and what its manifest says."""

    events: Events
    manifest: Manifest


def read_stacks(path: str | os.PathLike[str]) -> Stacks | None:
    """Read the stacks of a recording, or None where it has none."""
    files = sorted(Path(path).glob("stacks-*.parquet"))
    if not files:
        return None
    names = _read_frames(Path(path) / _FRAMES)
    rows = [row for file in files for row in _stack_block(file)]
    return in_order(rows, names)


def _stack_block(file: Path) -> Iterator[StackRow]:
    """Read a block; version 1 had user stacks of eight frames, taken with the lock."""
    table = pl.read_parquet(file, memory_map=False)
    if "user" in table.columns:
        for row in table.select(*StackRow._fields).iter_rows():
            time_ns, pid, tid, reason, kernel, user, top = row
            yield StackRow(time_ns, pid, tid, reason, tuple(kernel), tuple(user), top)
    else:
        for time_ns, tid, *frames in table.iter_rows():
            user = tuple(address for address in frames if address)
            yield StackRow(time_ns, tid, tid, int(StackReason.LOCKED), (), user, 0)


def _read_frames(file: Path) -> Names:
    """Read what code the addresses are; version 1 did not tell kinds."""
    if not file.exists():
        return {}
    table = pl.read_parquet(file)
    kinds = table["kind"] if "kind" in table.columns else [AddressKind.OTHER] * len(table)
    columns = (table["pid"], table["address"], table["text"], kinds)
    return {
        (pid, address): NamedAddress(text, AddressKind(kind))
        for pid, address, text, kind in zip(*columns)
    }


def read_quotas(path: str | os.PathLike[str]) -> Quotas | None:
    """Read what the cgroups' accounts said, or None where no group had a quota."""
    readings, groups = Path(path) / _QUOTAS, Path(path) / _GROUPS
    if not (readings.exists() and groups.exists()):
        return None
    rows = [QuotaReading(*row) for row in pl.read_parquet(readings).iter_rows()]
    chains = {pid: tuple(chain) for pid, chain in pl.read_parquet(groups).iter_rows()}
    return quotas(rows, chains)


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read what a recording says of itself, without its events.

    Raises UserError where there is no recording, or one of a version that this zaplock can't read.
    """
    file = Path(path) / _MANIFEST
    try:
        raw = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} is no recording (it has no {_MANIFEST}): make one with "
            f"'zaplock record', or turn a text trace into one with 'zaplock import'"
        ) from None
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except msgspec.MsgspecError as error:
        raise UserError(f"{file} is damaged ({error}): record again") from None
    if manifest.format != FORMAT or manifest.version > VERSION:
        raise UserError(
            f"{path} is a {manifest.format!r} of version {manifest.version}; this zaplock reads "
            f"{FORMAT!r} up to version {VERSION}: update zaplock"
        )
    return manifest


def read(path: str | os.PathLike[str]) -> Recording:
    """Read a recording: every event in order of time, the names of tasks and of mms.

    Needs about 59 bytes of memory an event, and a quarter more while it sorts.
    Raises UserError where the path holds no recording or a damaged one.
    """
    manifest = read_manifest(path)
    columns = _in_order(_load(sorted(Path(path).glob(_BLOCKS))))
    here = Path(path)
    names = (_read_tasks(here), _read_mms(here), _read_found(here))
    return Recording(Events(columns, manifest.operations, *names), manifest)


def _load(blocks: list[Path]) -> dict[str, NDArray[Any]]:
    try:
        counts = [pl.scan_parquet(block).select(pl.len()).collect().item() for block in blocks]
        columns = {name: np.empty(sum(counts), EVENT[name]) for name in EVENT.names or ()}
        start = 0
        for block, count in zip(blocks, counts):
            frame = pl.read_parquet(block, columns=list(columns), memory_map=False)
            for name, column in columns.items():
                column[start : start + count] = frame[name].to_numpy()
            start += count
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"an event block in {blocks[0].parent} can't be read ({reason}): record again, or move "
            "the damaged block away to read the rest"
        ) from None
    return columns


def _in_order(columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    time_ns = columns["time_ns"]
    if bool((time_ns[1:] >= time_ns[:-1]).all()):
        return columns
    order = np.argsort(time_ns, kind="stable")
    for name in list(columns):
        columns[name] = columns[name][order]
    return columns


def _read_tasks(path: Path) -> dict[int, RecordedTask]:
    file = path / "tasks.parquet"
    if not file.exists():
        return {}
    return {row[0]: RecordedTask(*row) for row in pl.read_parquet(file).iter_rows()}


def _read_mms(path: Path) -> dict[int, int]:
    file = path / "mms.parquet"
    return dict(pl.read_parquet(file).iter_rows()) if file.exists() else {}


_FOUND_SCHEMA: dict[str, Any] = {
    "tid": pl.Int32,
    "time_ns": pl.Int64,
    "state": pl.String,
    "wchan": pl.String,
    "operation": pl.String,
    "stack": pl.List(pl.String),
    "does": pl.String,
    "exclusive": pl.Boolean,
    "mm": pl.UInt64,
    "since_ns": pl.Int64,
    "address": pl.UInt64,
    "length": pl.Int64,
    "detail": pl.Int64,
}
"""The fields of `FoundTask`, in their order."""


def _read_found(path: Path) -> tuple[FoundTask, ...]:
    file = path / _FOUND
    if not file.exists():
        return ()
    rows = pl.read_parquet(file, memory_map=False).select(*_FOUND_SCHEMA).iter_rows(named=True)
    return tuple(FoundTask(**{**row, "stack": tuple(row["stack"])}) for row in rows)


class Writer:
    """Write a recording, block by block.

    >>> with Writer("run.zaplock", Manifest(operations=events.operations)) as writer:
    ...     writer.append(events.columns)
    ...     writer.name(events.tasks, events.mms)          # doctest: +SKIP

    Leaving the `with` block closes it: the manifest says `complete` unless an error passed.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: Manifest) -> None:
        """Make the directory. Raises UserError where something is already there."""
        self.path = Path(path)
        self.manifest = manifest
        self._blocks: list[tuple[Path, int]] = []
        self._next = 0
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise UserError(f"{path} is already there: remove it or name another file") from None
        except OSError as error:
            raise UserError(
                f"{path} can't be made ({error.strerror}): name another place"
            ) from None
        self._replace_manifest()

    def append(self, columns: Columns) -> None:
        """Write one block; no event is in the recording before this returns, all are after."""
        count = len(columns["time_ns"])
        if count == 0:
            return
        frame = pl.DataFrame({name: columns[name] for name in EVENT.names or ()})
        path = self.path / _BLOCK.format(self._next)
        self._put(path, frame)
        self._next += 1
        self._blocks.append((path, int(columns["time_ns"].max())))
        self._count_losses(columns)

    def append_stacks(self, rows: Sequence[StackRow]) -> None:
        """Write a block of stacks."""
        addresses = pl.List(pl.UInt64)
        schema: dict[str, Any] = {
            "time_ns": pl.Int64,
            "pid": pl.Int32,
            "tid": pl.Int32,
            "reason": pl.UInt8,
            "kernel": addresses,
            "user": addresses,
            "top": pl.UInt64,
        }
        if not rows:
            return
        columns = dict(zip(schema, zip(*rows)))
        series = [pl.Series(name, columns[name], dtype=kind) for name, kind in schema.items()]
        path = self.path / _STACKS.format(self._next)
        self._put(path, pl.DataFrame(series))
        self._next += 1
        self._blocks.append((path, max(row.time_ns for row in rows)))

    def name_frames(self, names: Names) -> None:
        """Say what code the addresses are, by (pid, address)."""
        rows = [(pid, address, *name) for (pid, address), name in names.items()]
        schema = {"pid": pl.Int32, "address": pl.UInt64, "text": pl.String, "kind": pl.UInt8}
        self._put(self.path / _FRAMES, pl.DataFrame(rows, schema, orient="row"))

    def write_quotas(
        self, readings: Sequence[QuotaReading], groups: Mapping[int, tuple[str, ...]]
    ) -> None:
        """Write the cgroups' accounts, in order of time, and which groups the processes are in."""
        if not readings:
            return
        schema: dict[str, Any] = dict.fromkeys(QuotaReading._fields, pl.Int64)
        schema["group"] = pl.String
        self._put(self.path / _QUOTAS, pl.DataFrame(list(readings), schema, orient="row"))
        rows = [(pid, list(chain)) for pid, chain in groups.items()]
        chains: dict[str, Any] = {"pid": pl.Int32, "groups": pl.List(pl.String)}
        self._put(self.path / _GROUPS, pl.DataFrame(rows, chains, orient="row"))

    def name(self, tasks: Mapping[int, RecordedTask], mms: Mapping[int, int]) -> None:
        """Replace the tables of names by these."""
        rows = [(task.tid, task.comm, task.pid, task.process) for task in tasks.values()]
        schema = {"tid": pl.Int32, "comm": pl.String, "pid": pl.Int32, "process": pl.String}
        self._put(self.path / "tasks.parquet", pl.DataFrame(rows, schema, orient="row"))
        owners = list(mms.items())
        self._put(
            self.path / "mms.parquet",
            pl.DataFrame(owners, {"mm": pl.UInt64, "pid": pl.Int32}, orient="row"),
        )

    def find(self, found: Iterable[FoundTask]) -> None:
        """Replace the table of what was already so when the recording began."""
        rows = [[getattr(task, name) for name in _FOUND_SCHEMA] for task in found]
        self._put(self.path / _FOUND, pl.DataFrame(rows, _FOUND_SCHEMA, orient="row"))

    def drop_before(self, time_ns: int) -> int:
        """Delete the blocks that end before an instant; return how many (the flight recorder)."""
        old = [block for block in self._blocks if block[1] < time_ns]
        for path, _ in old:
            path.unlink()
        self._blocks = [block for block in self._blocks if block[1] >= time_ns]
        return len(old)

    def change(self, **fields: Any) -> None:
        """Change fields of the manifest, on disk as well."""
        self.manifest = msgspec.structs.replace(self.manifest, **fields)
        self._replace_manifest()

    def close(self, *, complete: bool = True) -> None:
        """Write the manifest for the last time."""
        self.change(complete=complete)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close(complete=kind is None)

    def _count_losses(self, columns: Columns) -> None:
        lost = columns["length"][columns["kind"] == EventKind.LOST]
        if len(lost):
            known = lost[lost >= 0]
            self.change(
                lost_events=self.manifest.lost_events + int(known.sum()),
                unknown_losses=self.manifest.unknown_losses + len(lost) - len(known),
            )

    def _replace_manifest(self) -> None:
        pretty = msgspec.json.format(msgspec.json.encode(self.manifest), indent=2)
        beside = self.path / (_MANIFEST + ".part")
        beside.write_bytes(pretty + b"\n")
        beside.replace(self.path / _MANIFEST)

    def _put(self, path: Path, frame: pl.DataFrame) -> None:
        beside = path.with_name(path.name + ".part")
        try:
            frame.write_parquet(beside, compression="zstd", compression_level=1)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def write(path: str | os.PathLike[str], events: Events, manifest: Manifest | None = None) -> None:
    """Write finished events (of a simulation, say) as a recording of one block a million events."""
    about = manifest or Manifest(source="simulation")
    time_ns = events["time_ns"]
    about = msgspec.structs.replace(
        about,
        operations=events.operations,
        started_ns=about.started_ns or (int(time_ns[0]) if len(time_ns) else 0),
        ended_ns=about.ended_ns or int(time_ns.max(initial=0)),
    )
    block = 1_000_000
    with Writer(path, about) as writer:
        for start in range(0, len(events), block):
            writer.append({name: events[name][start : start + block] for name in EVENT.names or ()})
        writer.name(events.tasks, events.mms)
        if events.found:
            writer.find(events.found)
