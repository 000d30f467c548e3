"""Call stacks of those who hold and wait, and which of them tells of which hold or wait.

A stack has a kernel part and a user part, each innermost frame first, each of which may be missing.
Why it was taken says what it tells:

    LOCKED   the task just got the lock: it tells of the wait that ends there and of the hold that
             begins
    SAMPLED  the task was on a cpu when a clock ticked: a hold that lasts longer than a tick has
             some, and the commonest tells what it was about
    QUEUED   the task just joined the lock's queue: it tells of that wait
    SLEEPS   the task just left its cpu to sleep: it tells what a holder sleeps on
    READY    the task just had to leave its cpu to another: a hold that lasts for want of a cpu, and
             was on one between two ticks only, has such a stack

A hold or a wait without a stack of its own has none: nothing is taken over from a neighbour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.stack_reasons import Chain, StackReason

PATIENCE_NS = 100_000
"""The stack of a lock event is taken just beside it: within this time."""

KERNEL = 0
"""Stands in the place of a process id where a text is about an address of the kernel."""


class AddressKind(IntEnum):
    """What stands before an address of a program, as far as that was looked at."""

    OTHER = 0
    AFTER_CALL = 1
    AFTER_SYSCALL = 2
    NOWHERE = 3  # the process has no code there


class NamedAddress(NamedTuple):
    """What code an address is."""

    text: str
    kind: AddressKind = AddressKind.OTHER


Names = Mapping[tuple[int, int], NamedAddress]
"""What the addresses of a process are, by (pid, address); of the kernel by (KERNEL, address)."""


@dataclass(frozen=True, slots=True)
class CallStack:
    """A stack in words: functions of the kernel and of the program, innermost first."""

    kernel: tuple[str, ...] = ()
    user: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.kernel or self.user)

    @property
    def outermost_first(self) -> tuple[str, ...]:
        """The whole stack as flame graphs have it: the program first, the kernel marked `_[k]`."""
        kernel = tuple(f"{frame}_[k]" for frame in reversed(self.kernel))
        return (*reversed(self.user), *kernel)


NO_STACK = CallStack()


@dataclass(frozen=True, slots=True)
class Stacks:
    """Stacks as columns, sorted by (tid, time_ns); `chain` indexes `chains`.

    `names` says what code the addresses are, where that is known.
    """

    time_ns: NDArray[np.int64]
    tid: NDArray[np.int32]
    reason: NDArray[np.uint8]
    chain: NDArray[np.int32]
    chains: tuple[Chain, ...]
    names: Names = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.time_ns)

    def taken(self, reason: StackReason) -> list[int]:
        """List the rows of the stacks that were taken for a reason, in order of time."""
        rows = np.flatnonzero(self.reason == reason)
        found: list[int] = rows[np.argsort(self.time_ns[rows], kind="stable")].tolist()
        return found

    def stack(self, row: int, pid: int) -> CallStack:
        """Give a row's stack in words; `pid` is the process of its task."""
        kernel, user = self.chains[self.chain[row]]
        return CallStack(self._texts(KERNEL, kernel), self._texts(pid, user))

    def of_hold(self, tid: int, pid: int, start_ns: int, end_ns: int) -> CallStack:
        """Give the stack that tells of a hold: where its time went, else where it began.

        The user part is that with which the lock was taken, where that is known.
        """
        taken = self._at(tid, StackReason.LOCKED, start_ns, start_ns + PATIENCE_NS)[:1]
        inside = self._at(tid, StackReason.SAMPLED, start_ns, end_ns)
        asleep = self._at(tid, StackReason.SLEEPS, start_ns, end_ns)
        ready = self._at(tid, StackReason.READY, start_ns, end_ns)
        during = self._commonest(inside or [*asleep, *ready])
        return self._joined(pid, [*during, *taken], [*taken, *during])

    def of_wait(self, tid: int, pid: int, start_ns: int, end_ns: int) -> CallStack:
        """Give the stack that tells of a wait: with which the task queued, slept or got the lock.

        Whoever spins in the place of sleeping has what the clock saw.
        """
        queued = self._at(tid, StackReason.QUEUED, start_ns, end_ns)[:1]
        asleep = self._at(tid, StackReason.SLEEPS, start_ns, end_ns)[:1]
        got_in = self._at(tid, StackReason.LOCKED, end_ns, end_ns + PATIENCE_NS)[:1]
        spinning = self._at(tid, StackReason.SAMPLED, start_ns, end_ns)[:1]
        found = [*queued, *asleep, *got_in, *spinning]
        return self._joined(pid, found, [*got_in, *queued, *asleep, *spinning])

    def asleep(self, tid: int, time_ns: int) -> tuple[str, ...]:
        """Give the kernel stack with which a task fell asleep at that time."""
        found = self._at(tid, StackReason.SLEEPS, time_ns - PATIENCE_NS, time_ns + PATIENCE_NS)
        if not found:
            return ()
        nearest = min(found, key=lambda row: abs(int(self.time_ns[row]) - time_ns))
        return self._texts(KERNEL, self.chains[self.chain[nearest]][0])

    def _at(self, tid: int, reason: StackReason, since_ns: int, until_ns: int) -> list[int]:
        """List the rows of a task with that reason in [since_ns, until_ns]."""
        first, last = np.searchsorted(self.tid, [tid, tid + 1])
        times = self.time_ns[first:last]
        begin = first + np.searchsorted(times, since_ns)
        end = first + np.searchsorted(times, until_ns, side="right")
        found: list[int] = (begin + np.flatnonzero(self.reason[begin:end] == reason)).tolist()
        return found

    def _commonest(self, rows: list[int]) -> list[int]:
        """Choose a row of the functions that occur most often, of equals the earliest."""
        if not rows:
            return []
        places = [self._texts(KERNEL, self.chains[self.chain[row]][0]) for row in rows]
        most, _ = Counter(places).most_common(1)[0]
        return [rows[places.index(most)]]

    def _joined(self, pid: int, for_kernel: Iterable[int], for_user: Iterable[int]) -> CallStack:
        """Take each part from the first row that has it."""
        kernel = next((part for part in self._parts(for_kernel, 0) if part), ())
        user = next((part for part in self._parts(for_user, 1) if part), ())
        return CallStack(self._texts(KERNEL, kernel), self._texts(pid, user))

    def _parts(self, rows: Iterable[int], part: int) -> Iterable[tuple[int, ...]]:
        return (self.chains[self.chain[row]][part] for row in rows)

    def _texts(self, pid: int, addresses: Iterable[int]) -> tuple[str, ...]:
        found = ((self.names.get((pid, one)), one) for one in addresses)
        return tuple(name.text if name else hex(one) for name, one in found)


def program_stack(user: tuple[int, ...], pid: int, top: int, names: Names) -> tuple[int, ...]:
    """Leave out what is no code, and put in the caller of a system call's stub, where it is known.

    A walk by frame pointers through code that has none ends in any number: from the first address
    on at which the process has no code, the stack is not known.

    `top` is the word at the program's stack pointer. Inside a stub without a frame it is where
    the stub returns to, and the walk by frame pointers has left that function out.
    """
    kinds = [name.kind if (name := names.get((pid, one))) else None for one in user]
    if AddressKind.NOWHERE in kinds:
        user = user[: kinds.index(AddressKind.NOWHERE)]
    if not user or not top or user[1:2] == (top,):
        return user
    here, above = names.get((pid, user[0])), names.get((pid, top))
    if not here or not above:
        return user
    stub = here.kind == AddressKind.AFTER_SYSCALL and above.kind == AddressKind.AFTER_CALL
    return (user[0], top, *user[1:]) if stub else user


class StackRow(NamedTuple):
    """A stack as it is recorded: addresses, innermost first.

    `top` is the word at the program's stack pointer, 0 where it was not taken.
    """

    time_ns: int
    pid: int
    tid: int
    reason: int
    kernel: tuple[int, ...]
    user: tuple[int, ...]
    top: int = 0


def in_order(rows: Iterable[StackRow], names: Names) -> Stacks:
    """Make columns of stacks that come in any order; equal chains are kept once."""
    known: dict[Chain, int] = {}
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...], int], int] = {}
    times, tids, reasons, numbers = [], [], [], []
    for row in rows:
        key = (row.pid, row.kernel, row.user, row.top)
        number = seen.get(key)
        if number is None:
            chain = (row.kernel, program_stack(row.user, row.pid, row.top, names))
            number = seen[key] = known.setdefault(chain, len(known))
        times.append(row.time_ns)
        tids.append(row.tid)
        reasons.append(row.reason)
        numbers.append(number)
    time_ns, tid = np.array(times, np.int64), np.array(tids, np.int32)
    order = np.lexsort((time_ns, tid))
    reason, chain_of = np.array(reasons, np.uint8)[order], np.array(numbers, np.int32)[order]
    return Stacks(time_ns[order], tid[order], reason, chain_of, tuple(known), names)
