"""Which semaphore a probed call returned with: entries and returns paired, task by task.

A return doesn't say of which semaphore it is: it belongs to the innermost call of that function
that its task is in (an interrupt may have taken another one meanwhile). Every rwsem of the kernel
passes here, and which of them are address spaces' is told by who calls this (`semaphores`).

A return whose probe found no free place is missed by the kernel: `unanswered` counts the calls that
are known to have returned without it.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

import numpy as np

from zaplock.recorder.decode import Columns
from zaplock.recorder.rwsem_probes import FUNCTIONS, succeeded
from zaplock.trace.events import EventKind

_INNERMOST = 16
"""So deep no task is in rwsem functions: what is further out has returned unseen."""


@dataclass(slots=True)
class Pairing:
    """Makes lock events of probes' rows, fed in order of time; keeps who is inside what."""

    semaphores: Container[int]
    """The semaphores that are address spaces'; those of others are left out."""
    unanswered: int = 0
    _inside: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def paired(self, columns: Columns) -> Columns:
        """Return the columns with whole lock events of the address spaces and nothing else of them.

        Rows that are no lock events are kept as they are.
        """
        locks = np.flatnonzero(columns["kind"] <= EventKind.RELEASED)
        keep = np.ones(len(columns["kind"]), np.bool_)
        numbers = (columns[name][locks].tolist() for name in ("kind", "tid", "detail", "mm"))
        for row, kind, tid, function, semaphore in zip(locks.tolist(), *numbers):
            if kind == EventKind.ASKED:
                self._enter(tid, function, semaphore)
            elif semaphore:
                self._missed(tid, semaphore)
            else:
                semaphore = self._leave(tid, function)
                result = int(columns["result"][row])
                columns["success"][row] = succeeded(FUNCTIONS[function], result)
            columns["mm"][row] = semaphore
            keep[row] = semaphore in self.semaphores
        columns["detail"][locks] = columns["result"][locks] = 0
        return {name: column[keep] for name, column in columns.items()}

    def _enter(self, tid: int, function: int, semaphore: int) -> None:
        inside = self._inside.setdefault(tid, [])
        inside.append((function, semaphore))
        if len(inside) > _INNERMOST:
            self.unanswered += inside.pop(0)[1] in self.semaphores

    def _leave(self, tid: int, function: int) -> int:
        """Return the semaphore of the innermost call of this function; 0 where none was seen."""
        inside = self._inside.get(tid, [])
        for place in range(len(inside) - 1, -1, -1):
            if inside[place][0] == function:
                semaphore = inside[place][1]
                self.unanswered += sum(one in self.semaphores for _, one in inside[place + 1 :])
                del inside[place:]
                return semaphore
        return 0

    def _missed(self, tid: int, semaphore: int) -> None:
        """Who gives a semaphore back has it: a call for it that is still open has returned."""
        inside = self._inside.get(tid, [])
        still = [one for one in inside if one[1] != semaphore]
        if len(still) < len(inside):
            self.unanswered += (len(inside) - len(still)) * (semaphore in self.semaphores)
            self._inside[tid] = still
