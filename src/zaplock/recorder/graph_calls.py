"""Lock events from function_graph, for kernels without mmap_lock tracepoints and without kprobes.

The tracer tells when a function is entered and left, of which task, and neither its arguments nor
what it returned (both could be had long after the tracepoints: 6.15, 6.5). So which semaphore a
call is about is told from where it is called, for the tasks of an experiment alone:

a thread of the target   in a system call on its address space, and in a page fault, the outermost
                         semaphore is its mmap_lock (mm/mmap.c, mprotect.c, mremap.c, madvise.c,
                         fault.c, 4.9 on); what it asks for while it holds that is another
                         (anon_vma, i_mmap). In an exit it can't be told: from 5.19 on exit_mmap
                         has the mmap_lock, before it asks for others without it
another process          in read(2) of a file of /proc/PID, and in process_vm_readv, the outermost
                         semaphore is the target's; in mm_access it is none, in a fault its own

What came of a call is told from what follows: a trylock failed where the task asks again at once
or leaves the function around it without giving the lock back; a killable wait likewise.

What strangers do to the target's lock is not seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.recorder.decode import Columns
from zaplock.recorder.rwsem_probes import FUNCTIONS, ProbedFunction
from zaplock.trace.event_kinds import EventKind

FUNCTION_GRAPH = "function_graph"
"""The way's name."""
MM = 1
"""The address space of all these events: the target's."""
_FARTHEST = 64
"""An address of the tracer's lies at most so many bytes into its function."""


class Around(Enum):
    """What a function says of the semaphores that are asked for in it."""

    OWN = "the caller's mmap_lock"
    FORK = "the caller's mmap_lock, where it is for write"
    FAULT = "the caller's mmap_lock, by a page fault"
    TARGET = "another process's mmap_lock"
    OTHER = "no mmap_lock"


def _calls(*names: str) -> tuple[str, ...]:
    """A system call is __x64_sys_NAME from 4.17 on, SyS_NAME or sys_NAME before."""
    return tuple(f"{prefix}_{name}" for name in names for prefix in ("__x64_sys", "SyS", "sys"))


AROUND: dict[str, Around] = {
    **dict.fromkeys(_calls("munmap", "mmap", "brk", "mremap", "madvise", "mprotect"), Around.OWN),
    **dict.fromkeys(("copy_process",), Around.FORK),
    **dict.fromkeys(("__do_page_fault", "do_user_addr_fault", "exc_page_fault"), Around.FAULT),
    **dict.fromkeys((*_calls("read", "process_vm_readv"), "vfs_read"), Around.TARGET),
    **dict.fromkeys(("mm_access", "do_exit", "exit_mmap"), Around.OTHER),
}
"""Functions in which semaphores are asked for; a kernel knows some of them."""

_NAMES = (*(one.name for one in FUNCTIONS), *AROUND)
_NR_RWSEM = len(FUNCTIONS)
_AROUND = (*[None] * _NR_RWSEM, *AROUND.values())
_TRYLOCKS = {n for n, one in enumerate(FUNCTIONS) if one.asks and one.name.endswith("_trylock")}
_Success = NDArray[np.uint8]
_Found = tuple[EventKind, int] | None
"""The event that a row is, and its mode; None where it is none."""
_DOWNGRADE = next(n for n, one in enumerate(FUNCTIONS) if one.name == "downgrade_write")


@dataclass(frozen=True, slots=True)
class TracedFunctions:
    """Where a kernel has the functions: sorted addresses, and the place of each in the tables."""

    addresses: NDArray[np.uint64]
    numbers: NDArray[np.int64]

    @classmethod
    def told(cls, lines: Iterable[str]) -> TracedFunctions:
        """Read lines of address and name, as in /proc/kallsyms; names not known are passed over.

        Raises ValueError for an address that is no number.
        """
        words = [line.split() for line in lines]
        found = sorted(
            (int(one[0], 16), _NAMES.index(one[1]))
            for one in words
            if len(one) == 2 and one[1] in _NAMES
        )
        return cls(
            np.array([address for address, _ in found], np.uint64),
            np.array([number for _, number in found], np.int64),
        )

    def of(self, addresses: NDArray[Any]) -> NDArray[np.int64]:
        """Return the function that each address lies in, -1 for none of them."""
        if not len(self.addresses):
            return np.full(len(addresses), -1, np.int64)
        addresses = addresses.astype(np.uint64)
        place = np.searchsorted(self.addresses, addresses, side="right") - 1
        begin = self.addresses[np.maximum(place, 0)]
        near = (place >= 0) & (addresses - begin < _FARTHEST)
        return np.where(near, self.numbers[np.maximum(place, 0)], -1)


@dataclass(slots=True)
class _Held:
    """A semaphore that a task has, as far as it has shown."""

    write: bool
    ours: bool
    depth: int
    """So many functions the task was in when it asked."""
    row: int
    """Where its ACQUIRED stands, -1 for another's."""
    tried: bool
    """By a trylock, and nothing has followed yet."""


@dataclass(slots=True)
class _Inside:
    """Where one task is."""

    own: bool
    """Whether it is a thread of the target, and not a process beside it."""
    frames: list[int] = field(default_factory=list)
    """The functions that it is in, the outermost first."""
    held: list[_Held] = field(default_factory=list)
    asks_ours: bool = False

    @property
    def innermost(self) -> int:
        """The function that it is in, -1 for none that is followed."""
        return self.frames[-1] if self.frames else -1

    @property
    def around(self) -> Around | None:
        """What the innermost function that says something of semaphores says."""
        return next((found for one in reversed(self.frames) if (found := _AROUND[one])), None)


@dataclass(slots=True)
class GraphCalls:
    """Makes lock events of entries and returns, of all that there are at once, in order of time.

    `own` are the target's threads, `beside` the other processes that are followed.
    """

    functions: TracedFunctions
    own: Collection[int]
    beside: Collection[int]
    unanswered: int = 0
    """Releases, where only the target's lock can be given back, by who was not seen to have it."""
    _tasks: dict[int, _Inside] = field(default_factory=dict)

    def paired(self, columns: Columns) -> Columns:
        """Return the columns with the target's lock events and nothing else of functions."""
        kinds = columns["kind"]
        calls = kinds <= EventKind.RELEASED
        keep = ~calls
        rows = np.flatnonzero(calls & np.isin(columns["tid"], [*self.own, *self.beside]))
        numbers = self.functions.of(columns["mm"][rows]).tolist()
        enters = (kinds[rows] == EventKind.ASKED).tolist()
        tids = columns["tid"][rows].tolist()
        for row, tid, number, entering in zip(rows.tolist(), tids, numbers, enters):
            if number < 0:
                continue
            task = self._tasks.setdefault(tid, _Inside(tid in self.own))
            if entering:
                found = self._entered(task, number, row, columns["success"])
            else:
                found = self._left(task, number, row, columns["success"])
            if found is not None:
                kinds[row], columns["write"][row] = found
                columns["success"][row] = found[0] == EventKind.ACQUIRED
                keep[row] = True
        columns["mm"][calls] = MM
        return {name: column[keep] for name, column in columns.items()}

    def _entered(self, task: _Inside, number: int, row: int, success: _Success) -> _Found:
        in_rwsem = 0 <= task.innermost < _NR_RWSEM
        if not task.frames and _AROUND[number] is not None:
            for held in list(task.held):  # nobody brings a semaphore along from user mode
                self._forget(task, held, success)
        task.frames.append(number)
        if number >= _NR_RWSEM or in_rwsem:
            return None
        function = FUNCTIONS[number]
        failed = self._failed_try(task, function, success)
        if function.asks:
            task.asks_ours = failed.ours if failed else self._is_ours(task, number)
            return (EventKind.ASKED, function.write) if task.asks_ours else None
        if number == _DOWNGRADE:
            return self._downgrades(task, row)
        return self._gives(task, function.write)

    def _failed_try(
        self, task: _Inside, function: ProbedFunction, success: _Success
    ) -> _Held | None:
        """Return the trylock that has failed, since the task now asks for the same."""
        last = task.held[-1] if task.held else None
        if last is None or not last.tried:
            return None
        last.tried = False
        if not function.asks or function.write != last.write:
            return None
        self._forget(task, last, success)
        return last

    def _left(self, task: _Inside, number: int, row: int, success: _Success) -> _Found:
        if number not in task.frames:
            return None  # it was in it before anything was traced
        while task.frames.pop() != number:
            pass  # what it jumped out of
        depth = len(task.frames)
        for held in [one for one in task.held if one.depth > depth + 1]:
            self._forget(task, held, success)  # never given back: it was never had
        function = FUNCTIONS[number] if number < _NR_RWSEM else None
        if function is None or not function.asks or 0 <= task.innermost < _NR_RWSEM:
            return None
        ours, task.asks_ours = task.asks_ours, False
        tried = number in _TRYLOCKS
        task.held.append(_Held(bool(function.write), ours, depth + 1, row if ours else -1, tried))
        return (EventKind.ACQUIRED, function.write) if ours else None

    @staticmethod
    def _forget(task: _Inside, held: _Held, success: _Success) -> None:
        task.held.remove(held)
        if held.row >= 0:
            success[held.row] = 0

    def _is_ours(self, task: _Inside, number: int) -> bool:
        """Say whether the lock that is asked for is the target's."""
        if task.held:
            return False
        around = task.around
        if not task.own:
            return around is Around.TARGET
        if around is Around.FORK:
            return bool(FUNCTIONS[number].write)
        if around is None:  # the fault's own function is inlined, or not to be traced
            return number in _TRYLOCKS
        return around in (Around.OWN, Around.FAULT)

    @staticmethod
    def _downgrades(task: _Inside, row: int) -> _Found:
        held = next((one for one in reversed(task.held) if one.write), None)
        if held is None:
            return None
        held.write, held.row = False, row if held.ours else -1
        return (EventKind.ACQUIRED, 0) if held.ours else None

    def _gives(self, task: _Inside, write: int) -> _Found:
        for place in range(len(task.held) - 1, -1, -1):
            if task.held[place].write == bool(write):
                return (EventKind.RELEASED, write) if task.held.pop(place).ours else None
        self.unanswered += task.around is (Around.OWN if task.own else Around.TARGET)
        return None
