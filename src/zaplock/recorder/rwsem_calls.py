"""Which semaphore a probed call returned with: entries and returns paired, task by task.

A return doesn't say of which semaphore it is: it belongs to the innermost call of that function
that its task is in (an interrupt may have taken another one meanwhile). Every rwsem of the kernel
passes here, and which of them are address spaces' is told by who calls this (`semaphores`), and
found: the first semaphore that a task asks for exclusively in its munmap, brk, mprotect or mremap
is its own mmap_lock, in every kernel from 4.9 on (mm/mmap.c, mm/mprotect.c, mm/mremap.c).

A return whose probe found no free place is missed by the kernel: `unanswered` counts the calls that
are known to have returned without it, and a LOST row says where, so that nothing is joined over it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from zaplock.recorder.decode import Columns, merged
from zaplock.recorder.rwsem_probes import FUNCTIONS, succeeded
from zaplock.system_calls import TRACED_NAMES
from zaplock.trace.event_kinds import EventKind
from zaplock.trace.gaps import losses

_INNERMOST = 16
"""So deep no task is in rwsem functions: what is further out has returned unseen."""
_OWN_FIRST = [TRACED_NAMES.index(name) for name in ("munmap", "brk", "mprotect", "mremap")]
"""Calls whose first exclusive lock is the mmap_lock of who makes them."""

_Call = tuple[int, int, int]
"""Function, semaphore, and when (ns)."""


@dataclass(slots=True)
class Pairing:
    """Makes lock events of probes' rows, fed in order of time; keeps who is inside what.

    `semaphores` are those that are address spaces'; those of others are left out. It grows.
    """

    semaphores: set[int]
    unanswered: int = 0
    _inside: dict[int, list[_Call]] = field(default_factory=dict)
    _calls_own: set[int] = field(default_factory=set)
    """Tasks whose next exclusive lock is their own address space's."""
    _missed_ns: list[tuple[int, int]] = field(default_factory=list)

    def paired(self, columns: Columns) -> Columns:
        """Return the columns with whole lock events of the address spaces and nothing else of them.

        Rows that are no lock events are kept as they are. Where the kernel lost events, what was
        open is forgotten; where it missed a return, a LOST row is put.
        """
        kinds = columns["kind"]
        locks = kinds <= EventKind.RELEASED
        looked = locks | (kinds == EventKind.LOST)
        looked |= np.isin(columns["op"], _OWN_FIRST) & (kinds <= EventKind.OP_END)
        keep = ~locks
        rows = np.flatnonzero(looked)
        names = ("kind", "tid", "detail", "mm", "write", "time_ns")
        numbers = (columns[name][rows].tolist() for name in names)
        for row, kind, tid, function, semaphore, write, time_ns in zip(rows.tolist(), *numbers):
            if kind == EventKind.LOST:
                self._inside.clear()
                self._calls_own.clear()
                continue
            if kind == EventKind.OP_BEGIN:
                self._calls_own.add(tid)
                continue
            if kind == EventKind.OP_END:
                self._calls_own.discard(tid)
                continue
            if kind == EventKind.ASKED:
                if write and tid in self._calls_own:
                    self._calls_own.discard(tid)
                    self.semaphores.add(semaphore)
                self._enter(tid, (function, semaphore, time_ns))
            elif semaphore:
                self._missed(tid, semaphore, time_ns)
            else:
                semaphore = self._leave(tid, function, time_ns)
                result = int(columns["result"][row])
                columns["success"][row] = succeeded(FUNCTIONS[function], result)
            columns["mm"][row] = semaphore
            keep[row] = semaphore in self.semaphores
        columns["detail"][locks] = columns["result"][locks] = 0
        return self._with_gaps({name: column[keep] for name, column in columns.items()})

    def _with_gaps(self, columns: Columns) -> Columns:
        if not self._missed_ns:
            return columns
        gaps, self._missed_ns = losses(self._missed_ns), []
        return merged([columns, gaps])

    def _enter(self, tid: int, call: _Call) -> None:
        inside = self._inside.setdefault(tid, [])
        inside.append(call)
        if len(inside) > _INNERMOST:
            self._unseen([inside.pop(0)], call[2])

    def _leave(self, tid: int, function: int, time_ns: int) -> int:
        """Return the semaphore of the innermost call of this function; 0 where none was seen."""
        inside = self._inside.get(tid, [])
        for place in range(len(inside) - 1, -1, -1):
            if inside[place][0] == function:
                semaphore = inside[place][1]
                self._unseen(inside[place + 1 :], time_ns)
                del inside[place:]
                return semaphore
        return 0

    def _missed(self, tid: int, semaphore: int, time_ns: int) -> None:
        """Who gives a semaphore back has it: a call for it that is still open has returned."""
        inside = self._inside.get(tid, [])
        gone = [one for one in inside if one[1] == semaphore]
        if gone:
            self._unseen(gone, time_ns)
            self._inside[tid] = [one for one in inside if one[1] != semaphore]

    def _unseen(self, calls: list[_Call], until_ns: int) -> None:
        """Count calls of address spaces' semaphores whose return was not seen by now."""
        for _, semaphore, since_ns in calls:
            if semaphore in self.semaphores:
                self.unanswered += 1
                self._missed_ns.append((since_ns, until_ns))
