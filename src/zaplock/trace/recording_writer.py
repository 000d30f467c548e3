"""Write a recording, block by block (docs/recording.md; `recording_file` has the idea)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from zaplock.outputs import Folder
from zaplock.trace.events import EVENT, EventKind, Events, FoundTask, RecordedTask
from zaplock.trace.manifest import FILE, Manifest, encode
from zaplock.trace.new_recording import begin_recording
from zaplock.trace.parquet import Schema, columns_of, packed
from zaplock.trace.pointers import Pointers
from zaplock.trace.quota_readings import QuotaReading, QuotaRows
from zaplock.trace.stacks import Names, StackRow
from zaplock.trace.tables import (
    EVENTS,
    FOUND,
    FRAMES,
    GROUPS,
    INSIDE,
    MMS,
    MOST_ROWS,
    QUOTAS,
    STACKS,
    TASKS,
    Columns,
    put,
    tables_in,
)
from zaplock.untrusted_names import visible

_IN_BLOCKS = ("events", "stacks")
"""Kinds of tables of which each block stays; of the others the last one stands."""

AnyColumns = Mapping[str, Sequence[Any] | NDArray[Any]]


class Writer:
    """Write a recording, block by block.

    >>> with Writer("run.zaplock", Manifest(operations=events.operations)) as writer:
    ...     writer.append(events.columns)
    ...     writer.name(events.tasks, events.mms)          # doctest: +SKIP

    Leaving the `with` block closes it: the manifest says `complete` unless an error passed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest,
        *,
        hash_pointers: bool = False,
        pointer_key: bytes = b"",
        folder: Folder | None = None,
    ) -> None:
        """Make the directory, or go on in the `folder` of a recording that was begun.

        Raises UserError where something is already there, or no room.
        """
        self.path = Path(path)
        self.manifest = msgspec.structs.replace(manifest, hashed_pointers=hash_pointers)
        self._pointers = Pointers(pointer_key) if hash_pointers else None
        self._numbers: dict[str, int] = {}
        self._blocks: dict[str, list[tuple[str, int]]] = {}
        self._files: dict[str, str] = {}
        """Of each table that is replaced: the file that stands now."""
        self.folder = folder or begin_recording(path, self.manifest)
        if folder is not None:
            self._go_on()

    def _go_on(self) -> None:
        """Count what is in the recording already, so that what comes is written behind it."""
        for table in tables_in(Path(f"/proc/self/fd/{self.folder.descriptor}")):
            if table.number < 0:
                continue
            self._numbers[table.kind] = table.number + 1
            if table.kind in _IN_BLOCKS:
                self._blocks.setdefault(table.kind, []).append((table.path.name, 0))
            else:
                self._files[table.kind] = table.path.name

    def append(self, columns: Columns) -> None:
        """Write one block; no event is in the recording before this returns, all are after.

        More events than a block may have (`tables.MOST_ROWS`) are written as several.
        """
        for start in range(0, len(columns["time_ns"]), MOST_ROWS):
            part = {name: columns[name][start : start + MOST_ROWS] for name in EVENT.names or ()}
            if self._pointers:
                part = self._pointers.hidden(part)
            self._append("events", part, EVENTS, int(part["time_ns"].max()))
            self._count_losses(part)

    def append_stacks(self, rows: Sequence[StackRow]) -> None:
        """Write a block of stacks."""
        for start in range(0, len(rows), MOST_ROWS):
            part = [
                row._replace(kernel=tuple(map(self._hide, row.kernel)))
                for row in rows[start : start + MOST_ROWS]
            ]
            columns = dict(zip(STACKS, zip(*part)))
            self._append("stacks", columns, STACKS, max(row.time_ns for row in part))

    def name_frames(self, names: Names) -> None:
        """Say what code the addresses are, by (pid, address)."""
        rows = [
            (pid, *self._told(address, name.text, of_kernel=not pid), name.kind)
            for (pid, address), name in names.items()
        ]
        self._put("frames", columns_of(rows, FRAMES), FRAMES)

    def write_quotas(
        self, readings: Sequence[QuotaReading], groups: Mapping[int, tuple[str, ...]]
    ) -> None:
        """Write the cgroups' accounts, in order of time, and which groups the processes are in."""
        if not readings:
            return
        plain = [reading._replace(group=visible(reading.group)) for reading in readings]
        self._put("quotas", columns_of(plain, QUOTAS), QUOTAS)
        rows = [(pid, [visible(group) for group in chain]) for pid, chain in groups.items()]
        self._put("groups", columns_of(rows, GROUPS), GROUPS)

    def find(self, found: Iterable[FoundTask]) -> None:
        """Replace the table of what was already so when the recording began."""
        rows = [
            [self._hide(task.mm) if name == "mm" else getattr(task, name) for name in FOUND]
            for task in found
        ]
        self._put("found", columns_of(rows, FOUND), FOUND)

    def name(self, tasks: Mapping[int, RecordedTask], mms: Mapping[int, int]) -> None:
        """Replace the tables of names by these."""
        rows = [
            (task.tid, visible(task.comm), task.pid, visible(task.process))
            for task in tasks.values()
        ]
        self._put("tasks", columns_of(rows, TASKS), TASKS)
        inside = [(task.tid, *task.inside) for task in tasks.values() if any(task.inside)]
        if inside or "inside" in self._files:
            self._put("inside", columns_of(inside, INSIDE), INSIDE)
        owners = [(self._hide(mm), pid) for mm, pid in mms.items()]
        self._put("mms", columns_of(owners, MMS), MMS)

    def _hide(self, pointer: int) -> int:
        return self._pointers.hide(pointer) if self._pointers else pointer

    def _told(self, address: int, text: str, *, of_kernel: bool) -> tuple[int, str]:
        """Return an address and what it is called; a bare number is hidden with the address."""
        if not of_kernel or self._pointers is None:
            return address, visible(text)
        hidden = self._hide(address)
        return hidden, hex(hidden) if text.startswith("0x") else visible(text)

    def drop_before(self, time_ns: int) -> int:
        """Delete the blocks that end before an instant; return how many (the flight recorder).

        What is left begins where the last of them ended.
        """
        dropped = 0
        for kind, blocks in self._blocks.items():
            while blocks and blocks[0][1] < time_ns:
                name, ended_ns = blocks.pop(0)
                self.folder.remove(name)
                dropped += 1
                if kind == "events" and ended_ns > self.manifest.started_ns:
                    self.manifest = msgspec.structs.replace(self.manifest, started_ns=ended_ns)
        return dropped

    def change(self, **fields: Any) -> None:
        """Change fields of the manifest, on disk as well."""
        self.manifest = msgspec.structs.replace(self.manifest, **fields)
        self._replace_manifest()

    def close(self, *, complete: bool = True) -> None:
        """Write the manifest for the last time."""
        self.change(complete=complete)
        self.folder.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
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
        blocks = {}
        for kind, beyond in self._numbers.items():
            standing = len(self._blocks[kind]) if kind in self._blocks else 1
            blocks[kind] = (beyond - standing, beyond)
        self.manifest = msgspec.structs.replace(self.manifest, blocks=blocks)
        self.folder.write(FILE, encode(self.manifest))

    def _append(self, kind: str, columns: AnyColumns, schema: Schema, ended_ns: int) -> None:
        """Write one more block of a kind."""
        number = self._numbers.get(kind, 0)
        name = put(self.folder, kind, number, packed(columns, schema))
        self._numbers[kind] = number + 1
        self._blocks.setdefault(kind, []).append((name, ended_ns))

    def _put(self, kind: str, columns: AnyColumns, schema: Schema) -> None:
        """Write a table anew; the old one goes when the new one stands."""
        number = self._numbers.get(kind, 0)
        old = self._files.get(kind)
        new = put(self.folder, kind, number, packed(columns, schema))
        self._numbers[kind], self._files[kind] = number + 1, new
        if old:
            self.folder.remove(old)


def write(
    path: str | os.PathLike[str],
    events: Events,
    manifest: Manifest | None = None,
    *,
    quotas: QuotaRows = ((), {}),
) -> None:
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
        writer.write_quotas(*quotas)
