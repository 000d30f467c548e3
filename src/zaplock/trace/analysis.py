"""The whole chain in one call: events -> holds -> waits -> blame.

The parts that several links need (segments, lanes, calls) are made once. Every view starts here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from zaplock.errors import UserError
from zaplock.trace.blame import Blame, Explained, Judge, judge
from zaplock.trace.calls import Calls, calls
from zaplock.trace.events import EventKind, Events
from zaplock.trace.gaps import Segments, segments
from zaplock.trace.hold_time import HoldTime, HoldWindow, hold_time, throttles_in_kernel
from zaplock.trace.holds import Holds, holds
from zaplock.trace.intervals import lock_lanes
from zaplock.trace.outside_calls import named_by_stack, named_by_worker
from zaplock.trace.queue import queue_of
from zaplock.trace.quotas import Quotas
from zaplock.trace.sleep_reasons import NOT_KNOWN, VMA_LOCK, reason_of
from zaplock.trace.sleeps import sleeps
from zaplock.trace.stacks import NO_STACK, CallStack, Stacks
from zaplock.trace.vma_lock import vma_locks
from zaplock.trace.waits import Waits, waits


@dataclass(frozen=True, repr=False)
class Analysis:
    """A recording, understood. `kernel` is the release or design that it was made on."""

    events: Events
    kernel: str
    segments: Segments
    calls: Calls
    holds: Holds
    waits: Waits
    judge: Judge
    stacks: Stacks | None = None
    quotas: Quotas | None = None
    caveats: tuple[str, ...] = ()
    """Why the recording is not to be taken for whole, gaps apart: a sentence each."""
    sees_locks: bool = True
    """Whether lock events were recorded; without them nothing is known of holds and waits."""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self.holds)} holds and {len(self.waits)} waits "
            f"of {len(self.events.tasks)} tasks on {self.kernel})"
        )

    @property
    def is_whole(self) -> bool:
        """Whether nothing is known to be missing."""
        return not self.segments.gaps and not self.caveats

    @property
    def begin_ns(self) -> int:
        """The first instant of the recording, or the first wait that it knows of."""
        begin_ns = int(self.segments.begin_ns[0])
        return min(begin_ns, int(self.events["time_ns"][0])) if len(self.events) else begin_ns

    @property
    def recorded_ns(self) -> int:
        """When the recording itself began: what is earlier was found, or told by a watch."""
        return int(self.segments.begin_ns[0])

    @property
    def duration_ns(self) -> int:
        """From the beginning of the recording to its end."""
        return int(self.segments.end_ns[-1]) - self.begin_ns

    def require_locks(self) -> None:
        """Raise UserError where nothing is known of holds and waits."""
        if not self.sees_locks:
            raise UserError(
                "the recording has no lock events, so who held and who waited is not known: record "
                "with them ('zaplock doctor' says which way this kernel has)"
            )

    def explain(self, wait: int) -> Explained:
        """Explain one wait, a row of `waits`."""
        return self.judge.explain(wait)

    def explain_all(self, rows: Iterable[int]) -> list[Explained]:
        """Explain several waits (about 0.1 ms each)."""
        return self.judge.explain_all(rows)

    def hold_stack(self, row: int) -> CallStack:
        """Give the stack that tells of a hold; an empty one where none was recorded."""
        return self._stack(self.holds, row) if self.stacks else NO_STACK

    def wait_stack(self, row: int) -> CallStack:
        """Give the stack that tells of a wait; an empty one where none was recorded."""
        return self._stack(self.waits, row) if self.stacks else NO_STACK

    def blamed_stack(self, blame: Blame) -> CallStack:
        """Give the stack of whoever made a wait long: of its hold, or of its own wait."""
        if blame.vma:  # its call holds a VMA's lock; the row is the sleeping holder's
            return NO_STACK
        return self.wait_stack(blame.row) if blame.waited else self.hold_stack(blame.row)

    def hold_time(self, row: int) -> HoldTime:
        """Say where the time of a hold went."""
        holds = self.holds
        tid, start_ns = int(holds["tid"][row]), int(holds["start_ns"][row])
        end_ns = start_ns + int(holds["hold_ns"][row])
        task = self.events.tasks.get(tid)
        pid = task.pid if task else tid
        # Of others' tasks not every switch is recorded (the kernel's filter by process id).
        told = self.judge.tasks_sleeps if self.has_sched and pid in self.owners else None
        whole = bool(holds["complete"][row])
        begun = whole or start_ns not in self.segments.begin_ns
        window = HoldWindow(tid, start_ns, end_ns, begun, whole or not begun)

        def asleep_on(time_ns: int) -> str:
            return self._asleep_on(row, tid, time_ns)

        def throttled(begin_ns: int, end_ns: int) -> tuple[str, int]:
            if self.quotas is None or not throttles_in_kernel(self.kernel):
                return "", 0
            return self.quotas.throttled(pid, begin_ns, end_ns)

        return hold_time(told, window, asleep_on, throttled)

    def _asleep_on(self, row: int, tid: int, time_ns: int) -> str:
        """Say what a holder slept on that fell asleep at an instant."""
        stack = self.stacks.asleep(tid, time_ns) if self.stacks else ()
        if what := reason_of(stack):
            return what
        naps = self.judge.sleeps(row)
        if any(nap.begin_ns <= time_ns < nap.end_ns for nap in naps):
            return VMA_LOCK
        return f"in {stack[0]}" if stack else NOT_KNOWN

    @cached_property
    def has_sched(self) -> bool:
        """Whether scheduling events were recorded."""
        return bool((self.events["kind"] == EventKind.SCHED_OUT).any())

    @cached_property
    def owners(self) -> frozenset[int]:
        """The processes whose lock was recorded."""
        return frozenset(self.events.mms.values())

    def _stack(self, table: Holds | Waits, row: int) -> CallStack:
        assert self.stacks is not None
        return _stack(self.events, self.stacks, table, row)


def _stack(events: Events, stacks: Stacks, table: Holds | Waits, row: int) -> CallStack:
    tid, start_ns = int(table["tid"][row]), int(table["start_ns"][row])
    task = events.tasks.get(tid)
    find = stacks.of_hold if isinstance(table, Holds) else stacks.of_wait
    end_ns = start_ns + int(table[table.LENGTH][row])
    return find(tid, task.pid if task else tid, start_ns, end_ns)


def analyse(
    events: Events,
    kernel: str = "",
    *,
    span: tuple[int, int] | None = None,
    stacks: Stacks | None = None,
    quotas: Quotas | None = None,
    caveats: tuple[str, ...] = (),
    sees_locks: bool = True,
) -> Analysis:
    """Find the holds and waits of a recording and get ready to explain any of the waits.

    `span` is when the recording began and ended; without it, its first and its last event.
    `caveats` and `sees_locks` are what reading it told (`file.Recording`).
    """
    cut = segments(events, span)
    in_calls = calls(events, cut)
    rows = lock_lanes(events, cut)
    held = holds(events, cut=cut, in_calls=in_calls, rows=rows)
    waited = waits(events, cut=cut, in_calls=in_calls, rows=rows)
    del rows
    if stacks:
        held = named_by_stack(held, lambda row: _stack(events, stacks, held, row).kernel)
        waited = replace(waited, operations=held.operations)
        waited = named_by_stack(waited, lambda row: _stack(events, stacks, waited, row).kernel)
        held = replace(held, operations=waited.operations)
    owners = set(events.mms.values())
    held = named_by_worker(held, events.tasks, owners)
    waited = named_by_worker(replace(waited, operations=held.operations), events.tasks, owners)
    held = replace(held, operations=waited.operations)
    in_calls = replace(in_calls, operations=waited.operations)
    slept = sleeps(events)
    locks = vma_locks(events, in_calls, held, slept)
    verdict = judge(held, waited, queue_of(kernel), locks, sleeps=slept, begin_ns=cut.begin_ns)
    return Analysis(
        events, kernel, cut, in_calls, held, waited, verdict, stacks, quotas, caveats, sees_locks
    )
