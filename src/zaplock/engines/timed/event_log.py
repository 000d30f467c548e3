"""What happens in a timed run, kept in two integers an event and decoded once, at the end.

Nearly all events of a run say "this task, on this CPU, did that to this lock", so the whole event
fits one 64-bit code beside its time: 16 bytes. Operations and faults have arguments;
these stand in a side table that names the row they belong to. `events()` turns all of it into the
columns of `zaplock.trace.events` in numpy, without a loop over events.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zaplock.engines.timed.clock import SLOTS
from zaplock.model.step import MarkStep
from zaplock.trace.events import EVENT, NO_OP, EventKind, Events, RecordedTask

# The code of an event, from its lowest bit: kind 4, write 1, success 1, cpu 12, lock or operation
# 20, tid 24. A thread keeps its own part ready, and so does a lock, so that recording is an OR.
WRITE = 1 << 4
SUCCESS = 1 << 5
_CPU, _SUBJECT, _TID = 6, 18, 38
MAX_CPUS, MAX_SUBJECTS, MAX_TID = 1 << 12, 1 << 20, 1 << 24

ASKED = int(EventKind.ASKED)
ACQUIRED = int(EventKind.ACQUIRED) | SUCCESS
NOT_ACQUIRED = int(EventKind.ACQUIRED)
RELEASED = int(EventKind.RELEASED)
DOWNGRADED = ACQUIRED
"""A downgrade looks like the kernel's: acquired, not for write."""


def thread_code(tid: int, cpu: int) -> int:
    """Return the part of an event's code that says which thread does it, and where."""
    assert 0 < tid < MAX_TID, tid
    assert 0 <= cpu < MAX_CPUS, cpu
    return tid << _TID | cpu << _CPU


_ARGUMENTS = ("address", "length", "detail", "result")

FRESH_MAX = 1 << 20
"""How many numbers the engine lets `fresh` grow to before it calls `pack`."""


class EventRange(NamedTuple):
    """A place in a log: so many events and so many address spaces were there."""

    events: int
    mms: int


class EventPattern(NamedTuple):
    """Events that came twice, and by how much the second time differs: (times, codes), arguments.

    `rows` are those of the second time that have arguments, counted from its first.
    """

    last: NDArray[Any]
    step: NDArray[Any]
    rows: NDArray[Any]
    last_arguments: NDArray[Any]
    argument_step: NDArray[Any]
    last_mms: tuple[int, ...]
    mm_step: tuple[int, ...]


class EventLog:
    """The events of one run while they happen."""

    def __init__(self, *, sched: bool = False) -> None:
        """Begin without events; `sched` asks for who runs where as well."""
        self.sched = sched
        self.fresh: list[int] = []
        """By turns the timer that was due when something happened, and its code."""
        self._packed: list[NDArray[Any]] = []
        self._packed_length = 0
        self._rows = array("q")
        self._arguments: list[tuple[int, int, int, int]] = []
        self._repeated: list[tuple[NDArray[Any], NDArray[Any]]] = []
        self._operations: dict[str, int] = {}
        self._mms: dict[int, int] = {}

    def lock_code(self, mm: int) -> int:
        """Return the part of an event's code that names the mmap_lock of `mm`; never 0."""
        return self._mms.setdefault(mm, len(self._mms) + 1) << _SUBJECT

    def mark(self, now_ns: int, code: int, mark: MarkStep) -> None:
        """Record that an operation or a fault begins or ends."""
        what, args = mark.what, mark.args
        if what == "op_begin":
            name, address, length, detail = (*args, 0, 0, 0)[:4]
            self._with_arguments(
                now_ns, code | EventKind.OP_BEGIN | self._op(name), address, length, detail
            )
        elif what == "op_end":
            name, result = (*args, 0)[:2]
            self._with_arguments(now_ns, code | EventKind.OP_END | self._op(name), result=result)
        elif what == "fault_begin":
            address, detail = (*args, 0)[:2]
            self._with_arguments(now_ns, code | EventKind.FAULT_BEGIN, address, 0, detail)
        else:
            assert what == "fault_end", what
            self._with_arguments(now_ns, code | EventKind.FAULT_END, result=(*args, 0)[0])

    def switch(self, now_ns: int, code: int, kind: EventKind, detail: int = 0) -> None:
        """Record that a thread leaves or gets a CPU, or is woken."""
        self._with_arguments(now_ns, code | kind, detail=detail)

    def _op(self, name: str) -> int:
        number = self._operations.setdefault(name, len(self._operations) + 1)
        return number << _SUBJECT

    def _with_arguments(
        self,
        now_ns: int,
        code: int,
        address: int = 0,
        length: int = 0,
        detail: int = 0,
        result: int | None = 0,
    ) -> None:
        self._rows.append(len(self))
        self._arguments.append((address, length, detail, result or 0))
        self.fresh += (now_ns * SLOTS, code)

    def pack(self) -> None:
        """Move the fresh events, a list of timer and code by turns, to where they take 16 bytes."""
        self._packed.append(_decoded(self.fresh))
        self._packed_length += len(self.fresh)
        self.fresh.clear()

    @property
    def end(self) -> EventRange:
        """Where the next event will stand."""
        return EventRange(len(self), len(self._mms))

    def pattern(self, first: EventRange, middle: EventRange, ns: int) -> EventPattern | None:
        """Return what came between `first` and `middle` and again, `ns` later, since then.

        None if the second time isn't like the first, or where the events are packed already. What
        may differ are arguments, and which address space a lock belongs to, if each time has its
        own ones.
        """
        packed, count = self._packed_length // 2, middle.events - first.events
        new_mms = middle.mms - first.mms
        if first.events < packed or len(self) - middle.events != count:
            return None
        if len(self._mms) - middle.mms != new_mms:
            return None
        both = _decoded(self.fresh[2 * (first.events - packed) :]).reshape(-1, 2)
        last, step = both[count:], both[count:] - both[:count]
        moved = step[:, 1] != 0
        on_lock = last[:, 1] & 15 <= EventKind.RELEASED
        alike = (step[:, 0] == ns).all() and (step[moved, 1] == new_mms << _SUBJECT).all()
        mms = list(self._mms)[first.mms :]
        mm_step = {b - a for a, b in zip(mms, mms[new_mms:])}
        begin, half = bisect_left(self._rows, first.events), bisect_left(self._rows, middle.events)
        rows = np.array(self._rows[begin:], np.int64)
        once, twice = rows[: half - begin] - first.events, rows[half - begin :] - middle.events
        alike = alike and on_lock[moved].all() and len(mm_step) < 2 and np.array_equal(once, twice)
        if not alike:
            return None
        arguments = np.array(self._arguments[begin:], np.int64).reshape(-1, 4)
        now = arguments[len(once) :]
        return EventPattern(
            last, step, twice, now, now - arguments[: len(once)], tuple(mms[new_mms:]), (*mm_step,)
        )

    def repeat(self, pattern: EventPattern, times: int) -> None:
        """Record so many more repetitions of a pattern, which ends with the newest event."""
        self.pack()
        nth = np.arange(1, times + 1)[:, None, None]
        count = len(pattern.last)
        first_rows = len(self) + (nth[:, :, 0] - 1) * count
        self._repeated.append(
            (
                (first_rows + pattern.rows).ravel(),
                (pattern.last_arguments + nth * pattern.argument_step).reshape(-1, 4),
            )
        )
        self._packed.append((pattern.last + nth * pattern.step).ravel())
        self._packed_length += 2 * count * times
        for step_mm in pattern.mm_step:
            for number in range(1, times + 1):
                for mm in pattern.last_mms:
                    self.lock_code(mm + number * step_mm)

    def __len__(self) -> int:
        return (self._packed_length + len(self.fresh)) // 2

    def events(self, tasks: Mapping[int, RecordedTask], mms: Mapping[int, int]) -> Events:
        """Decode what was recorded so far into the columns of an event stream."""
        self.pack()
        time_ns, code = np.concatenate(self._packed).reshape(-1, 2).T
        order = np.argsort(time_ns, kind="stable") if _unordered(time_ns) else None
        columns = self._decode(time_ns, code)
        if order is not None:
            columns = {name: column[order] for name, column in columns.items()}
        return Events(columns, tuple(self._operations), dict(tasks), dict(mms))

    def _decode(self, time_ns: NDArray[Any], code: NDArray[Any]) -> dict[str, NDArray[Any]]:
        columns = {name: np.zeros(len(code), EVENT[name]) for name in EVENT.names or ()}
        kind = code & 15
        subject = code >> _SUBJECT & MAX_SUBJECTS - 1
        on_lock = kind <= EventKind.RELEASED
        is_op = (kind == EventKind.OP_BEGIN) | (kind == EventKind.OP_END)
        mms = np.array([0, *self._mms], np.uint64)
        columns["time_ns"][:] = time_ns
        columns["kind"][:] = kind
        columns["write"][:] = code >> 4 & 1
        columns["success"][:] = code >> 5 & 1
        columns["cpu"][:] = code >> _CPU & MAX_CPUS - 1
        columns["tid"][:] = code >> _TID
        columns["mm"][:] = mms[np.where(on_lock, subject, 0)]
        columns["op"][:] = np.where(is_op, subject - 1, NO_OP)
        rows = np.array(self._rows, np.int64)
        arguments = list(zip(*self._arguments)) or [(), (), (), ()]
        for name, values in zip(_ARGUMENTS, arguments):
            columns[name][rows] = np.array(values, EVENT[name])
        for rows, repeated in self._repeated:
            for name, column in zip(_ARGUMENTS, repeated.T):
                columns[name][rows] = column
        return columns


def _unordered(time_ns: NDArray[Any]) -> bool:
    return bool((time_ns[1:] < time_ns[:-1]).any())


def _decoded(fresh: list[int]) -> NDArray[Any]:
    """Return timers and codes by turns as times in nanoseconds and codes by turns."""
    try:
        columns = np.array(fresh, np.int64)
        columns[::2] //= SLOTS
    except OverflowError:  # after two hours a timer takes more than 64 bits
        columns = np.empty(len(fresh), np.int64)
        columns[::2] = [timer // SLOTS for timer in fresh[::2]]
        columns[1::2] = fresh[1::2]
    return columns
