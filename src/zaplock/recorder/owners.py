"""Whose each address space is, and from when to when.

The kernel uses the memory of an mm_struct again, so one pointer names several address spaces one
after the other: a shell that starts a hundred commands goes through a handful of pointers, and
processes that have nothing to do with it use them in between. So an mm belongs to a process only
from its birth (or exec) to its end (or next exec); and the second address space with a pointer
gets a name of its own in the recording: the upper 16 bits, which are the same in all pointers of a
kernel, count how often the pointer was used before (exclusive or).

A task owns the mm that it asks for inside its own munmap (say). Not seen: an owner that makes none
of the recorded system calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from zaplock.recorder.decode import Columns
from zaplock.system_calls import CLONES, TRACED_NAMES
from zaplock.trace.event_kinds import EventKind
from zaplock.trace.recorded_tasks import RecordedTask

_SHIFT = 48
_MOST = (1 << 15) - 1
_NOBODYS = _MOST << _SHIFT
_NEVER = (1 << 63) - 1
_EXECS = [TRACED_NAMES.index(name) for name in TRACED_NAMES if name.startswith("execve")]
_CLONES = [TRACED_NAMES.index(name) for name in sorted(CLONES)]


@dataclass(frozen=True, slots=True)
class Span:
    """An address space: the process's from `begin_ns` to `end_ns`; `mm` is its name here.

    At `seen_ns` the process had it for sure; before, while fork or exec made it, nobody else but
    `parent`, the thread that forked, knew it.
    """

    mm: int
    pid: int
    begin_ns: int
    seen_ns: int
    parent: int
    end_ns: int = _NEVER


def calls_of_interest(columns: Columns) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield each exec and clone as (tid, op, kind, result, time_ns), the arguments of `called`."""
    rows = np.flatnonzero(np.isin(columns["op"], _EXECS + _CLONES))
    names = ("tid", "op", "kind", "result", "time_ns")
    yield from zip(*(columns[name][rows].tolist() for name in names))


class Owners:
    """The address spaces of a recording, learned in order of time while it goes on."""

    def __init__(self) -> None:
        self._spans: dict[int, list[Span]] = {}
        self._nr_before: dict[int, int] = {}
        self._begun: dict[int, tuple[int, int]] = {}
        """The operation (execve, clone) that a task was last seen to begin, and when."""
        self._born: dict[int, tuple[int, int]] = {}
        """When each process got its present address space, and the thread that forked, 0: none."""

    def born(self, pid: int, parent: int, time_ns: int) -> None:
        """A process was made, with a copy of its parent's address space."""
        op, begun_ns = self._begun.get(parent, (-1, 0))
        self._born[pid] = (begun_ns if op in _CLONES and begun_ns else time_ns), parent

    def called(self, tid: int, op: int, kind: int, result: int, time_ns: int) -> None:
        """A task began or ended an exec or a clone; who did exec has left its address space."""
        if kind == EventKind.OP_BEGIN:
            self._begun[tid] = op, time_ns
        elif op in _EXECS:
            _, begun_ns = self._begun.pop(tid, (op, time_ns))
            if result == 0:
                self._born[tid] = begun_ns, 0
                # It drops the old one in between; nobody else asks for that any more.
                self.ended(tid, begun_ns, lambda span: span.begin_ns < begun_ns)
            else:
                self.ended(tid, time_ns, lambda span: span.begin_ns >= begun_ns)

    def ended(
        self, pid: int, time_ns: int, which: Callable[[Span], bool] = lambda span: True
    ) -> None:
        """Those address spaces of a process ended."""
        for spans in self._spans.values():
            last = spans[-1]
            if last.pid == pid and last.end_ns == _NEVER and which(last):
                spans[-1] = replace(last, end_ns=time_ns)

    def owns(self, pid: int, mm: int, time_ns: int) -> int:
        """A process was seen to own the pointer; give the address space's name.

        Whoever shares it with an owner that has not ended is a guest in it.
        """
        spans = self._spans.setdefault(mm, [])
        for span in reversed(spans):
            if span.begin_ns <= time_ns <= span.end_ns:
                return span.mm
        number = self._nr_before.get(mm, 0)
        self._nr_before[mm] = number + 1
        begin_ns, parent = self._born.get(pid, (0, 0))
        if self._begun.get(pid, (-1, 0))[0] in _EXECS:  # the one that its exec makes just now
            begin_ns, parent = self._begun[pid][1], 0
        if spans:
            begin_ns = max(begin_ns, min(spans[-1].end_ns, time_ns))
        seen_ns = time_ns if begin_ns else 0
        spans.append(Span(mm ^ (number % _MOST << _SHIFT), pid, begin_ns, seen_ns, parent))
        return spans[-1].mm

    def of(self, pids: set[int]) -> list[Span]:
        """List the address spaces of some processes."""
        return [span for spans in self._spans.values() for span in spans if span.pid in pids]

    def renamed(self, columns: Columns, tasks: Mapping[int, RecordedTask]) -> Columns:
        """Give each address space its own name in the column `mm`.

        What a stranger does with a pointer after its owner's end, or before its first owner's
        beginning, is about an address space that nobody is known to own.
        """
        names = columns["mm"].copy()
        for mm, spans in self._spans.items():
            rows = np.flatnonzero(columns["mm"] == np.uint64(mm))
            time_ns = columns["time_ns"][rows]
            begins = np.array([span.begin_ns for span in spans], np.int64)
            place = np.searchsorted(begins, time_ns, side="right") - 1
            own = np.array([*(span.mm for span in spans), mm ^ _NOBODYS], np.uint64)
            # From 6.16 on a task tells its exit before it takes its address space down.
            outside = time_ns > np.array([span.end_ns for span in spans])[place]
            outside |= time_ns < np.array([span.seen_ns for span in spans])[place]
            for row in np.flatnonzero(outside).tolist():
                tid, span = int(columns["tid"][rows[row]]), spans[place[row]]
                task = tasks.get(tid)
                if not (tid == span.parent or (task and task.pid == span.pid)):
                    place[row] = -1
            names[rows] = own[place]
        return {**columns, "mm": names}

    def forget(self, pids: set[int]) -> list[int]:
        """Forget the processes; return the names of their address spaces."""
        gone = self.of(pids)
        for mm, spans in list(self._spans.items()):
            kept = [span for span in spans if span.pid not in pids]
            # The last one says how the pointer is named until somebody else has it.
            self._spans[mm] = kept or spans[-1:]
        for pid in pids:
            self._born.pop(pid, None)
            self._begun.pop(pid, None)
        return [span.mm for span in gone]
