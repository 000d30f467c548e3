"""Holders that are victims: asleep with the mmap_lock, because of a per-VMA lock.

Since 6.4 a fault, and by 6.18 an madvise inside one VMA, takes that VMA's own lock for read and
not the mmap_lock. A writer of the mmap_lock that wants to change the VMA must write-lock it first
(`vma_start_write`), and sleeps, mmap_lock in hand, until the madvise is over. Everybody who waits
for the mmap_lock then waits for the madvise; the holder is a victim itself. No mmap_lock event says
so. Two things do:

- the holder leaves its cpu to sleep (sched_switch with a prev_state other than 0) while another
  task of its process is inside an madvise, and is woken when that call is over (its way back to a
  cpu counts too: it would not have left it);
- or, without sched events, the ranges: a holder whose range overlaps that of an madvise which began
  before the hold and took no mmap_lock itself must have waited for its VMA. The woken holder may be
  done before the madvise's task has returned from its call (`WAKE_NS`).

Not covered: sleeping on the VMA lock of a page fault (short, unless the fault reads from a disk),
and process_madvise, whose ranges lie in another process's memory and aren't in its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.calls import Calls
from zaplock.trace.events import EventKind, Events, RecordedTask
from zaplock.trace.holds import Holds
from zaplock.trace.madvise import call_of
from zaplock.trace.sleeps import Nap, Sleeps

Array = NDArray[Any]

WAKE_NS = 5_000_000
"""A sleeper is woken within this time of the end of the madvise that it slept for: later, where the
wake-up itself was not recorded; earlier, where the madvise's task still had to return. Time in
which that task had no cpu does not count."""

SHORTEST_NS = 20_000
"""Holds and sleeps shorter than this are not looked at: no wait of interest hangs on them."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """The holder was asleep in [begin_ns, end_ns) because of row `call` of the calls."""

    begin_ns: int
    end_ns: int
    call: int


@dataclass(frozen=True, slots=True)
class VmaLocks:
    """What is needed to tell why a holder slept."""

    calls: Calls
    madvises: Array
    """Rows of `calls` that may hold a VMA's lock, sorted by their begin."""
    begin_ns: Array
    longest_ns: int
    sleeps: Sleeps | None
    """None without sched events."""
    tasks: Mapping[int, RecordedTask]

    def behind(self, holds: Holds, row: int) -> tuple[Sleep, ...]:
        """Return the parts of an exclusive hold in which its task slept on a VMA's lock."""
        if not len(self.madvises) or not holds["exclusive"][row]:
            return ()
        start, hold = int(holds["start_ns"][row]), int(holds["hold_ns"][row])
        if hold < SHORTEST_NS:
            return ()
        rivals = self._rivals(holds, row, start, start + hold)
        if not rivals:
            return ()
        if self.sleeps is not None:
            return self._from_sleeps(self.sleeps, holds, row, rivals)
        return self._from_ranges(holds, row, rivals)

    def _rivals(self, holds: Holds, row: int, start: int, end: int) -> list[int]:
        """Return the madvise calls of other tasks of the process that overlap the hold."""
        first = np.searchsorted(self.begin_ns, start - self.longest_ns)
        last = np.searchsorted(self.begin_ns, end)
        tid = int(holds["tid"][row])
        return [
            int(call)
            for call in self.madvises[first:last]
            if self.calls.end_ns[call] > start
            and self.calls.tid[call] != tid
            and self._one_process(int(self.calls.tid[call]), tid)
        ]

    def _one_process(self, tid: int, other: int) -> bool:
        task, another = self.tasks.get(tid), self.tasks.get(other)
        return task is None or another is None or task.pid == another.pid

    def _from_sleeps(
        self, sleeps: Sleeps, holds: Holds, row: int, rivals: list[int]
    ) -> tuple[Sleep, ...]:
        start = int(holds["start_ns"][row])
        end = start + int(holds["hold_ns"][row])
        found = []
        for nap in sleeps.naps(int(holds["tid"][row]), start, end):
            call = self._slept_for(sleeps, holds, row, rivals, nap)
            if call is not None and nap.ran_ns - nap.begin_ns >= SHORTEST_NS:
                found.append(Sleep(nap.begin_ns, min(nap.ran_ns, end), call))
        return tuple(found)

    def _slept_for(
        self, sleeps: Sleeps, holds: Holds, row: int, rivals: list[int], nap: Nap
    ) -> int | None:
        """Choose the madvise that covered the sleep and ended it, overlapping ranges first."""
        ended_it = [
            call
            for call in rivals
            if self.calls.begin_ns[call] <= nap.begin_ns < self.calls.end_ns[call]
            and self._ended(sleeps, call, nap)
        ]
        if not ended_it:
            return None
        return min(
            ended_it,
            key=lambda call: (
                not self._overlap(holds, row, call),
                abs(int(self.calls.end_ns[call]) - nap.woken_ns),
            ),
        )

    def _ended(self, sleeps: Sleeps, call: int, nap: Nap) -> bool:
        """Say whether the sleep ended with the call: the call had next to nothing left to do."""
        end_ns = int(self.calls.end_ns[call])
        if end_ns < nap.woken_ns:
            return nap.woken_ns - end_ns <= WAKE_NS
        tid = int(self.calls.tid[call])
        return sleeps.running_ns(tid, nap.woken_ns, end_ns) <= WAKE_NS

    def _from_ranges(self, holds: Holds, row: int, rivals: list[int]) -> tuple[Sleep, ...]:
        start = int(holds["start_ns"][row])
        end = start + int(holds["hold_ns"][row])
        sure = [
            call
            for call in rivals
            if self._overlap(holds, row, call)
            and self.calls.begin_ns[call] < start
            and start < self.calls.end_ns[call] <= end + WAKE_NS
        ]
        if not sure:
            return ()
        last = max(sure, key=lambda call: int(self.calls.end_ns[call]))
        return (Sleep(start, min(int(self.calls.end_ns[last]), end), last),)

    def _overlap(self, holds: Holds, row: int, call: int) -> bool:
        begin, length = int(holds["address"][row]), int(holds["length"][row])
        other, size = int(self.calls.address[call]), int(self.calls.length[call])
        return begin < other + size and other < begin + length


def vma_locks(events: Events, calls: Calls, holds: Holds, slept: Sleeps | None) -> VmaLocks:
    """Gather the madvise calls that took no mmap_lock; `slept` is when every task slept."""
    ops = [op for op, name in enumerate(calls.operations) if call_of(name) == "madvise"]
    madvise = np.flatnonzero(np.isin(calls.op, ops))
    if len(madvise):
        madvise = madvise[~np.isin(madvise, holds["call"])]
    madvise = madvise[np.argsort(calls.begin_ns[madvise], kind="stable")]
    begin_ns = calls.begin_ns[madvise]
    longest = int((calls.end_ns[madvise] - begin_ns).max(initial=0))
    if not bool((events["kind"] == EventKind.SCHED_OUT).any()):
        slept = None
    return VmaLocks(calls, madvise, begin_ns, longest, slept, events.tasks)
