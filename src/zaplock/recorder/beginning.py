"""What a look at the tasks found when tracing had just come on; `initial_rows` has the idea.

Without numpy, for the recorder: the events come as columns, and are only read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zaplock.recorder.snapshot import Seen, TaskSnapshot
from zaplock.trace.event_kinds import PAGE_FAULT, EventKind
from zaplock.trace.kernel_functions import HALTED, UNANSWERED
from zaplock.trace.recorded_tasks import FoundTask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zaplock.recorder.decode import Columns

AGAIN_NS = 1_000_000
"""Who asks for the lock so soon after letting go of it goes on with the same (a reader of smaps
gives way to a writer now and then)."""

FAULT_ENDINGS = (PAGE_FAULT, "(kernel-mode fault)")
"""What is over as soon as it lets go of the lock."""

_WORTH_NS = 10_000_000
"""What is told at once has been so for this long; locks are asked for all the time."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """A look, and when tracing had come on before it (CLOCK_MONOTONIC).

    `mms` are the address spaces of the processes, as far as they are known. `asked_ns` is when a
    read of ours asked for the lock of one of them and was kept waiting, by mm. `hidden` are threads
    of ours that nobody wants to hear of.
    """

    look: TaskSnapshot
    on_ns: int
    mms: Mapping[int, int]
    asked_ns: Mapping[int, int]
    hidden: tuple[int, ...] = ()

    @property
    def looked_ns(self) -> int:
        """When the last task was looked at."""
        return max((one.task.time_ns for one in self.look.seen), default=self.on_ns)

    def found(self, events: Columns) -> tuple[FoundTask, ...]:
        """Return what was so at the beginning; `events` are those until the look was over."""
        kind = events["kind"]
        told = _first_ns(events, kind <= EventKind.RELEASED)
        calls = _first_ns(events, _of_calls(kind))
        kept = [
            self._placed(_surer(one, calls))
            for one in self.look.seen
            if not _before(one.task, told)
        ]
        since = self._waited_for(kept)
        return tuple(self._since(task, since) for task in kept)

    def in_calls(self, events: Columns) -> tuple[FoundTask, ...]:
        """Return the tasks of whose lock `events` know better, but not of the call they are in.

        Where the call is one that takes the lock again and again and has no event of its own (a
        read of smaps), the task has the `mm`, and `since_ns` is when it first came for its lock.
        """
        kind = events["kind"]
        locks = _first_ns(events, kind <= EventKind.RELEASED)
        calls = _first_ns(events, _of_calls(kind))
        known = [one for one in self.look.seen if _before(one.task, locks)]
        return tuple(self._in_call(one, events) for one in known if not _before(one.task, calls))

    def _in_call(self, one: Seen, events: Columns) -> FoundTask:
        task = replace(one.task, does="", exclusive=False)
        if not one.task.does or task.operation.endswith(FAULT_ENDINGS):
            return task
        mm = self.mms.get(one.subject, 0)
        since_ns = _came_ns(events, task, mm)
        return replace(task, mm=mm, since_ns=since_ns) if since_ns else task

    def suspects(self) -> tuple[FoundTask, ...]:
        """Return what was so if no event knows better."""
        kept = [self._placed(one) for one in self.look.seen]
        since = self._waited_for(kept)
        return tuple(self._since(task, since) for task in kept)

    def at_present(self) -> tuple[FoundTask, ...]:
        """Return the tasks as they were seen, for a look while a recording goes on."""
        return tuple(self._placed(one) for one in self.look.seen)

    def _placed(self, one: Seen) -> FoundTask:
        mm = self.mms.get(one.subject, 0) if one.task.does else 0
        return replace(one.task, mm=mm)

    def _waited_for(self, tasks: Iterable[FoundTask]) -> dict[int, int]:
        """Return since when somebody waits for each mm's lock."""
        since = dict(self.asked_ns)
        for task in tasks:
            if task.does == "waits" and task.since_ns:
                since[task.mm] = min(task.since_ns, since.get(task.mm, task.since_ns))
        return since

    def _since(self, task: FoundTask, since: Mapping[int, int]) -> FoundTask:
        if not task.does:
            return task
        # Who has it has had it since the first of those who wait came, and since it fell asleep.
        waited_ns = since.get(task.mm, 0) if task.does == "holds" else 0
        first_ns = min(filter(None, (task.since_ns, waited_ns)), default=0)
        return replace(task, since_ns=min(first_ns or self.on_ns, self.on_ns))


def is_trouble(task: FoundTask, on_ns: int) -> bool:
    """Say whether a task waits for a lock or has it for long, or goes on no further otherwise."""
    long = task.does and task.since_ns < on_ns - _WORTH_NS
    return bool(long) or task.operation in (*UNANSWERED, *HALTED.values())


def _first_ns(events: Columns, chosen: NDArray[np.bool_]) -> dict[int, int]:
    """Say when each task had its first event of those chosen, which are in order of time."""
    first = dict[int, int]()
    for tid, time_ns in zip(events["tid"][chosen].tolist(), events["time_ns"][chosen].tolist()):
        first.setdefault(tid, time_ns)
    return first


def _of_calls(kind: NDArray[np.uint8]) -> NDArray[np.bool_]:
    chosen: NDArray[np.bool_] = (kind == EventKind.OP_BEGIN) | (kind == EventKind.OP_END)
    return chosen


def _surer(one: Seen, calls: Mapping[int, int]) -> Seen:
    """Leave out what was concluded of a task that has come out of its call since tracing is on."""
    if one.perhaps and _before(one.task, calls):
        return replace(one, task=replace(one.task, does="", exclusive=False))
    return one


def _came_ns(events: Columns, task: FoundTask, mm: int) -> int:
    """Say since when a task came for this lock again and again until its look; 0: it hadn't."""
    chosen = (events["kind"] <= EventKind.RELEASED) & (events["tid"] == task.tid)
    chosen &= (events["mm"] == mm) & (events["time_ns"] <= task.time_ns)
    came_ns, released_ns = 0, 0
    for kind, time_ns in zip(events["kind"][chosen].tolist(), events["time_ns"][chosen].tolist()):
        if not came_ns or (released_ns and time_ns - released_ns > AGAIN_NS):
            came_ns = time_ns
        released_ns = time_ns if kind == EventKind.RELEASED else 0
    over = released_ns and task.time_ns - released_ns > AGAIN_NS
    return 0 if over else came_ns


def _before(task: FoundTask, told: Mapping[int, int]) -> bool:
    """Say whether an event had told of a task before it was looked at."""
    return told.get(task.tid, task.time_ns) < task.time_ns
