"""The recording on disk: a directory of Parquet blocks and a JSON manifest (docs/recording.md).

A block appears under its name only when it is whole (written beside, then renamed), and the
manifest and the tables of names are replaced in the same way. So a writer that is killed at any
moment, by SIGKILL or a full disk, leaves a recording that is whole up to its last block. Blocks
are in the order of their writing; two of them may overlap in time (the buffers of two CPUs are
never read at the same instant), and `read` puts the events in order.

Reading believes nothing (`tables`, `manifest`): a damaged block is an error, one that is missing a
gap, and whatever else is not as it should be is among the recording's `caveats`, which every view
tells. The directory is its owner's alone (0700): it has names and the kernel's pointers in it.

Anybody can read the tables without zaplock: `SELECT * FROM 'x.zaplock/events-*.parquet'` in
DuckDB, `polars.read_parquet("x.zaplock/events-*.parquet")`.

Not covered: power loss. Nothing is synced to the device, since a recorder that waits for a disk
loses events; what the kernel had not yet written back is lost with the power. And somebody who
writes a recording of their own: the sums show damage, not who made it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from zaplock.errors import UserError
from zaplock.trace.events import EVENT, EventKind, Events, FoundTask, RecordedTask
from zaplock.trace.gaps import losses
from zaplock.trace.manifest import CHECKED, LOCK_SYSTEMS, Manifest, read_manifest
from zaplock.trace.new_recording import UNDECODED
from zaplock.trace.parquet import Schema, numbers, rows_of
from zaplock.trace.quota_readings import QuotaReading
from zaplock.trace.quotas import Quotas, quotas
from zaplock.trace.recording_writer import Writer, write
from zaplock.trace.stack_reasons import StackReason
from zaplock.trace.stacks import AddressKind, NamedAddress, Names, StackRow, Stacks, in_order
from zaplock.trace.tables import (
    EVENTS,
    FOUND,
    FRAMES,
    GROUPS,
    INSIDE,
    MMS,
    QUOTAS,
    STACKS,
    STACKS_1,
    TASKS,
    WAY_OUT,
    Columns,
    Raw,
    TableFile,
    open_table,
    parse,
    require_memory,
    tables_in,
)
from zaplock.untrusted_names import visible

__all__ = [
    "Manifest",
    "Recording",
    "Writer",
    "read",
    "read_manifest",
    "read_quotas",
    "read_stacks",
    "write",
]

_MOST_NS = 1 << 62
_MOST_LOST = 1 << 48
_BYTES_AN_EVENT = 100
"""What reading takes at its worst: the columns, their copy in order, a block of Parquet."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording as read: its events in order of time, and what its manifest says.

    `caveats` are sentences, each a reason not to take it for whole.
    """

    events: Events
    manifest: Manifest
    caveats: tuple[str, ...] = ()

    @property
    def sees_locks(self) -> bool:
        """Whether lock events were recorded: else who held and who waited is not known."""
        return sees_locks(self.events, self.manifest)


NO_LOCK_EVENTS = (
    "This recording has no lock events: who held an mmap_lock, and who waited for it, is not known."
)


def sees_locks(events: Events, manifest: Manifest) -> bool:
    """Say whether a recording would have the lock events that there were."""
    recorded = any(event.startswith(LOCK_SYSTEMS) for event in manifest.enabled)
    simulated = manifest.source == "simulation"
    return recorded or simulated or bool((events["kind"] <= EventKind.RELEASED).any())


def read_stacks(path: str | os.PathLike[str]) -> Stacks | None:
    """Read the stacks of a recording, or None where it has none."""
    files = _of_kind(Path(path), "stacks")
    if not files:
        return None
    raws = [open_table(file) for file in files]
    require_memory(sum(raw.rows for raw in raws) * 500, f"the stacks of {path}")
    return in_order([row for raw in raws for row in _stack_block(raw)], _read_frames(Path(path)))


def _stack_block(raw: Raw) -> Iterator[StackRow]:
    """Read a block; version 1 had user stacks of eight frames, taken with the lock."""
    if "user" in raw.columns:
        for row in rows_of(parse(raw, STACKS)):
            time_ns, pid, tid, reason, kernel, user, top = row
            yield StackRow(time_ns, pid, tid, reason, tuple(kernel), tuple(user), top)
        return
    for time_ns, tid, *frames in rows_of(parse(raw, STACKS_1)):
        user = tuple(address for address in frames if address)
        yield StackRow(time_ns, tid, tid, int(StackReason.LOCKED), (), user, 0)


def _read_frames(path: Path) -> Names:
    """Read what code the addresses are; version 1 did not tell kinds."""
    files = _of_kind(path, "frames")
    if not files:
        return {}
    told = "kind" in open_table(files[-1]).columns
    schema = FRAMES if told else {name: FRAMES[name] for name in ("pid", "address", "text")}
    known = set(AddressKind)
    names = {}
    for pid, address, text, *kind in newest_rows(path, "frames", schema):
        chosen = AddressKind(kind[0]) if kind and kind[0] in known else AddressKind.OTHER
        names[pid, address] = NamedAddress(visible(text), chosen)
    return names


def read_quotas(path: str | os.PathLike[str]) -> Quotas | None:
    """Read what the cgroups' accounts said, or None where no group had a quota."""
    here = Path(path)
    if not (_of_kind(here, "quotas") and _of_kind(here, "groups")):
        return None
    rows = [
        QuotaReading(time_ns, visible(group), *figures)
        for time_ns, group, *figures in newest_rows(here, "quotas", QUOTAS)
    ]
    chains = {
        pid: tuple(visible(group) for group in chain)
        for pid, chain in newest_rows(here, "groups", GROUPS)
    }
    return quotas(rows, chains)


def _read_found(path: Path) -> tuple[FoundTask, ...]:
    return tuple(
        FoundTask(*(_shown(value) for value in row)) for row in newest_rows(path, "found", FOUND)
    )


def _shown(value: Any) -> Any:
    """Make the texts of a field visible."""
    if isinstance(value, list):
        return tuple(visible(one) for one in value)
    return visible(value) if isinstance(value, str) else value


def read(path: str | os.PathLike[str]) -> Recording:
    """Read a recording: every event in order of time, the names of tasks and of mms.

    Needs about 59 bytes of memory an event, and a quarter more while it sorts.
    Raises UserError where the path holds no recording or a damaged one, or one that doesn't fit.
    """
    where = Path(path)
    manifest = read_manifest(where)
    files = _of_kind(where, "events")
    columns, edges = _load(files, manifest)
    holes = holes_in([file.number for file in files], edges, manifest)
    if files and not manifest.complete and files[0].number > manifest.blocks.get("events", (0,))[0]:
        manifest = msgspec.structs.replace(manifest, started_ns=edges[0][0])  # a flight recorder
    columns = _in_order(_with_losses(columns, holes))
    inside = {tid: (own, process) for tid, own, process in newest_rows(where, "inside", INSIDE)}
    tasks = {row[0]: _task(row, inside) for row in newest_rows(where, "tasks", TASKS)}
    mms = dict(newest_rows(where, "mms", MMS))
    events = Events(columns, manifest.operations, tasks, mms, _read_found(where))
    caveats = list(_caveats(where, manifest, len(holes)))
    if not sees_locks(events, manifest):
        caveats.insert(0, NO_LOCK_EVENTS)
    return Recording(events, manifest, tuple(caveats))


def _of_kind(path: Path, kind: str) -> list[TableFile]:
    try:
        files = [file for file in tables_in(path) if file.kind == kind]
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): is it yours?") from None
    if twice := [a for a, b in itertools.pairwise(files) if a.number == b.number]:
        raise UserError(f"{twice[0].path} is there twice: move the one that isn't this recording's")
    return files


def newest_rows(path: Path, kind: str, schema: Schema) -> list[tuple[Any, ...]]:
    """Read the rows of a table that is replaced: the last that was written."""
    files = _of_kind(path, kind)
    if not files:
        return []
    raw = open_table(files[-1])
    require_memory(raw.rows * 500, str(files[-1].path))
    return list(rows_of(parse(raw, schema)))


def _task(row: tuple[Any, ...], inside: Mapping[int, tuple[int, int]]) -> RecordedTask:
    tid, comm, pid, process = row
    return RecordedTask(tid, visible(comm), pid, visible(process), inside.get(tid, (0, 0)))


def _load(
    files: list[TableFile], manifest: Manifest
) -> tuple[dict[str, NDArray[Any]], list[tuple[int, int]]]:
    """Read the blocks, and the first and the last time of each."""
    raws = [open_table(file) for file in files]
    total = sum(raw.rows for raw in raws)
    require_memory(total * _BYTES_AN_EVENT, f"a recording of {total:,} events")
    columns = {name: np.empty(total, EVENT[name]) for name in EVENT.names or ()}
    edges: list[tuple[int, int]] = []
    start = 0
    while raws:
        raw = raws.pop(0)
        table = parse(raw, EVENTS)
        block = {name: numbers(table[name], kind) for name, kind in EVENTS.items()}
        _check_ranges(block, raw.file, len(manifest.operations))
        for name, column in columns.items():
            column[start : start + raw.rows] = block[name]
        times = block["time_ns"]
        known = edges[-1][1] if edges else manifest.started_ns
        edges.append((int(times.min()), int(times.max())) if len(times) else (known, known))
        start += raw.rows
    return columns, edges


def _check_ranges(block: Columns, file: TableFile, nr_operations: int) -> None:
    """Raise UserError where a number in a block means nothing."""
    lost = block["length"][block["kind"] == EventKind.LOST]
    for name, values, least, beyond in (
        ("time_ns", block["time_ns"], 0, _MOST_NS),
        ("kind", block["kind"], 0, len(EventKind)),
        ("write", block["write"], 0, 2),
        ("success", block["success"], 0, 2),
        ("cpu", block["cpu"], -1, 1 << 15),
        ("tid", block["tid"], 0, 1 << 31),
        ("op", block["op"], -1, nr_operations),
        ("length of a loss", lost, -1, _MOST_LOST),
    ):
        if len(values) and not (least <= int(values.min()) and int(values.max()) < beyond):
            raise UserError(
                f"{file.path} is damaged (a {name} is not in {least} to {beyond - 1}): {WAY_OUT}"
            )


def holes_in(
    numbers: list[int], edges: list[tuple[int, int]], manifest: Manifest
) -> list[tuple[int, int]]:
    """Say between which instants blocks are missing, by their numbers.

    `edges` are the first and the last time of each block that is there.
    """
    first, beyond = manifest.blocks.get("events", (0, 0))
    if not manifest.complete or manifest.version < CHECKED:
        first, beyond = (numbers[0], numbers[-1] + 1) if numbers else (0, 0)
    until_ns, expected, holes = manifest.started_ns, first, []
    for number, (begin_ns, end_ns) in zip(numbers, edges):
        if number != expected:
            holes.append((min(until_ns, begin_ns), max(until_ns, begin_ns)))
        until_ns, expected = max(until_ns, end_ns), number + 1
    if expected < beyond:
        holes.append((until_ns, max(until_ns, manifest.ended_ns)))
    return holes


def _with_losses(
    columns: dict[str, NDArray[Any]], holes: list[tuple[int, int]]
) -> dict[str, NDArray[Any]]:
    """Enter holes as losses; before the events, so that they are first among equals."""
    if not holes:
        return columns
    lost = losses(holes)
    return {name: np.concatenate([lost[name], column]) for name, column in columns.items()}


def _caveats(path: Path, manifest: Manifest, nr_holes: int) -> Iterator[str]:
    if (path / UNDECODED).exists():
        yield (
            "Part of this recording is not decoded: its recorder still runs, or was killed (then "
            f"'zaplock record --finish {path}' decodes it)."
        )
    if not manifest.complete:
        yield "This recording has no end: its recorder still runs, or was killed."
    if manifest.version < CHECKED:
        yield "This recording is from an earlier zaplock, without sums: damage isn't noticed."
    elif not all(table.sum for table in tables_in(path)):
        yield "A table of this recording has lost the sum in its name: damage isn't noticed."
    if nr_holes:
        blocks = "A block is" if nr_holes == 1 else f"In {nr_holes} places blocks are"
        yield f"{blocks} missing from this recording: a gap."
    for kind in ("tasks", "mms") if manifest.complete and manifest.version >= CHECKED else ():
        files = _of_kind(path, kind)
        if not files or files[-1].number + 1 != manifest.blocks.get(kind, (0, 0))[1]:
            yield f"The table {kind} of this recording is not its last one: names may be missing."


def _in_order(columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    time_ns = columns["time_ns"]
    if bool((time_ns[1:] >= time_ns[:-1]).all()):
        return columns
    order = np.argsort(time_ns, kind="stable")
    for name in list(columns):
        columns[name] = columns[name][order]
    return columns
