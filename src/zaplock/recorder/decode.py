"""Turn ring-buffer pages into the columns of `zaplock.trace.events`, many events at once.

`pages.walk` finds the events; here each column is filled by one gather for all events that keep it
at the same place, so the three mmap_lock events, which share their layout, cost one gather a field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.recorder.layouts import EventField, EventLayout, Layouts
from zaplock.recorder.meanings import NAMING, SCHED, meanings
from zaplock.recorder.pages import walk
from zaplock.recorder.rwsem_probes import FUNCTIONS
from zaplock.trace.events import EVENT, IN_INTERRUPT, NO_OP, EventKind
from zaplock.untrusted_names import name_of

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Fact:
    """What one rare event says of a task: `event` is one of `meanings.NAMING`.

    `tid` is the task it is about, `by` the one that was running, `flags` a new task's clone flags.
    """

    time_ns: int
    event: str
    by: int
    tid: int
    comm: str
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Decoded:
    """What some pages of one CPU hold. `columns` are in the order of the CPU's time."""

    columns: Columns
    facts: tuple[Fact, ...]


class Decoder:
    """Decode the pages of a kernel whose layouts are known. It keeps nothing between calls."""

    def __init__(self, layouts: Layouts) -> None:
        self._page = layouts.page
        self._meanings = meanings(layouts.events)
        self._naming = [layout for layout in layouts.events if layout.event in NAMING]
        self._switch = layouts.of(SCHED[0])
        self._waking = layouts.of(SCHED[1])
        # From an event's id to its place in `_meanings`, -1 where it has none.
        self._known = np.full(1 << 16, -1, np.int16)
        for index, meaning in enumerate(self._meanings):
            self._known[meaning.layout.id] = index
        self._kind = np.array([meaning.kind for meaning in self._meanings], np.uint8)
        self._op = np.array([meaning.op for meaning in self._meanings], np.int16)
        self._sources = self._grouped()
        functions = [meaning.function for meaning in self._meanings]
        self.sees_probes = any(function is not None for function in functions)
        """Whether lock events come from probes, and `rwsem_calls` must pair them."""
        self._function = np.array([function or 0 for function in functions], np.int64)
        probed = [None if function is None else FUNCTIONS[function] for function in functions]
        self._write = np.array([one.write if one else 0 for one in probed], np.uint8)
        acquires = [one is not None and one.kind == EventKind.ACQUIRED for one in probed]
        self._success = np.array(acquires, np.uint8)

    @property
    def sees_calls(self) -> bool:
        """Whether system calls are among the events."""
        return EventKind.OP_BEGIN in self._kind

    def _grouped(self) -> list[tuple[str, EventField, NDArray[np.bool_]]]:
        """List (column, field, which meanings have it just there)."""
        groups: dict[tuple[str, int, int, bool], tuple[EventField, NDArray[np.bool_]]] = {}
        for index, meaning in enumerate(self._meanings):
            for column, field in meaning.columns.items():
                key = (column, field.offset, field.size, field.signed)
                _, has = groups.setdefault(key, (field, np.zeros(len(self._meanings), np.bool_)))
                has[index] = True
        return [(key[0], field, has) for key, (field, has) in groups.items()]

    def decode(self, raw: bytes | bytearray | NDArray[np.uint8], cpu: int) -> Decoded:
        """Decode whole pages of one CPU's buffer, laid end to end."""
        data = raw if isinstance(raw, np.ndarray) else np.frombuffer(raw, np.uint8)
        found = walk(data, self._page)
        ids = data.view(np.uint16)[found.offset >> 1]
        which = self._known[ids]
        facts = tuple(self._facts(data, found.offset, found.time_ns, ids))
        offset, time_ns = found.offset, found.time_ns
        known = which >= 0
        if not known.all():
            offset, time_ns, which = offset[known], time_ns[known], which[known]
        columns = self._columns(data, offset, time_ns, which, cpu)
        if self._waking is not None:
            self._forget_interrupted(columns, self._waking, data, offset)
        if self._switch is not None:
            columns = self._switched_in(columns, data, offset)
        return Decoded(_with_losses(columns, found.losses, cpu), facts)

    def _columns(
        self,
        data: NDArray[np.uint8],
        offset: NDArray[np.int64],
        time_ns: NDArray[np.int64],
        which: NDArray[np.int16],
        cpu: int,
    ) -> Columns:
        columns = {name: np.zeros(len(offset), EVENT[name]) for name in EVENT.names or ()}
        columns["time_ns"] = time_ns
        columns["kind"] = self._kind[which]
        columns["cpu"][:] = cpu
        columns["op"] = self._op[which]
        if self.sees_probes:
            columns["detail"] = self._function[which]
            columns["write"], columns["success"] = self._write[which], self._success[which]
        for column, field, has in self._sources:
            if has.all():
                columns[column] = gather(data, offset, field).astype(EVENT[column], copy=False)
                continue
            rows = np.flatnonzero(has[which])
            if len(rows) == len(offset):
                columns[column] = gather(data, offset, field).astype(EVENT[column], copy=False)
            elif len(rows):
                columns[column][rows] = gather(data, offset[rows], field).astype(EVENT[column])
        return columns

    def _forget_interrupted(
        self,
        columns: Columns,
        waking: EventLayout,
        data: NDArray[np.uint8],
        offset: NDArray[np.int64],
    ) -> None:
        """A timer that wakes a task interrupts another one, which has nothing to do with it."""
        rows = np.flatnonzero((columns["kind"] == EventKind.WAKEUP) & (columns["detail"] != 0))
        field = waking.field("common_flags")
        if field is not None and len(rows):
            interrupted = gather(data, offset[rows], field) & IN_INTERRUPT != 0
            columns["detail"][rows[interrupted]] = 0

    def _switched_in(
        self, columns: Columns, data: NDArray[np.uint8], offset: NDArray[np.int64]
    ) -> Columns:
        """Make two rows of a sched_switch: the task that leaves and, just after it, the next."""
        out = np.flatnonzero(columns["kind"] == EventKind.SCHED_OUT)
        field = self._switch.field("next_pid") if self._switch else None
        if field is None or not len(out):
            return columns
        # Bit 8 alone (TASK_REPORT_MAX) is the kernel's word for "preempted, still runnable".
        columns["detail"][out] &= 0xFF
        rows = np.repeat(np.arange(len(offset)), 1 + (columns["kind"] == EventKind.SCHED_OUT))
        second = np.zeros(len(rows), np.bool_)
        second[out + np.arange(len(out)) + 1] = True
        wide = {name: column[rows] for name, column in columns.items()}
        wide["kind"][second] = EventKind.SCHED_IN
        wide["detail"][second] = 0
        wide["tid"][second] = gather(data, offset[out], field)
        return wide

    def _facts(
        self,
        data: NDArray[np.uint8],
        offset: NDArray[np.int64],
        time_ns: NDArray[np.int64],
        ids: NDArray[np.uint16],
    ) -> list[Fact]:
        facts = []
        for layout in self._naming:
            rows = np.flatnonzero(ids == layout.id)
            if len(rows):
                facts += _facts_of(layout, data, offset[rows], time_ns[rows])
        return sorted(facts, key=lambda fact: fact.time_ns)


def gather(data: NDArray[np.uint8], offset: NDArray[np.int64], field: EventField) -> NDArray[Any]:
    """Read one number field of many events; `offset` is each event's first byte."""
    at = offset + field.offset
    if field.size == 1:
        return data[at]
    if field.size in (2, 4):
        numbers: NDArray[Any] = data.view(f"{'i' if field.signed else 'u'}{field.size}")
        return numbers[at // field.size]
    # Events begin at a multiple of 4, so 8 bytes are two words.
    words = data.view(np.uint32)
    pairs = np.empty((len(at), 2), np.uint32)
    np.right_shift(at, 2, out=at)
    # "clip" where nothing needs clipping: "raise" would fill a buffer first, then copy it.
    np.take(words, at, out=pairs[:, 0], mode="clip")
    at += 1
    np.take(words, at, out=pairs[:, 1], mode="clip")
    return pairs.view(np.int64 if field.signed else np.uint64)[:, 0]


def text(data: NDArray[np.uint8], offset: NDArray[np.int64], field: EventField) -> list[str]:
    """Read one fixed-size string field of many events."""
    at = (offset + field.offset)[:, None] + np.arange(field.size)
    return [name_of(bytes(row).split(b"\0")[0]) for row in data[at]]


def _facts_of(
    layout: EventLayout,
    data: NDArray[np.uint8],
    offset: NDArray[np.int64],
    time_ns: NDArray[np.int64],
) -> list[Fact]:
    by, tid = layout.field("common_pid"), layout.field("pid")
    comm = layout.field("newcomm") or layout.field("comm")
    flags = layout.field("clone_flags")
    if by is None or comm is None:
        return []
    numbers = gather(data, offset, by).tolist()
    about = gather(data, offset, tid).tolist() if tid else numbers
    extra = gather(data, offset, flags).tolist() if flags else [0] * len(numbers)
    return [
        Fact(*row)
        for row in zip(
            time_ns.tolist(),
            [layout.event] * len(numbers),
            numbers,
            about,
            text(data, offset, comm),
            extra,
        )
    ]


def _with_losses(columns: Columns, losses: tuple[tuple[int, int], ...], cpu: int) -> Columns:
    if not losses:
        return columns
    lost = {name: np.zeros(len(losses), EVENT[name]) for name in EVENT.names or ()}
    lost["time_ns"][:] = [time_ns for time_ns, _ in losses]
    lost["length"][:] = [count for _, count in losses]
    lost["kind"][:] = EventKind.LOST
    lost["cpu"][:] = cpu
    lost["op"][:] = NO_OP
    return merged([lost, columns])


def merged(parts: list[Columns]) -> Columns:
    """Put parts together in the order of time; ties keep the order of the parts."""
    if len(parts) == 1:
        return parts[0]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    time_ns = columns["time_ns"]
    if bool((time_ns[1:] >= time_ns[:-1]).all()):
        return columns
    order = np.argsort(time_ns, kind="stable")
    return {name: column[order] for name, column in columns.items()}


def nothing() -> Columns:
    """Give columns without a row."""
    return {name: np.empty(0, EVENT[name]) for name in EVENT.names or ()}
