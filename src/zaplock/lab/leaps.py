"""Leap over rounds of bystanders that are like the rounds before.

Beside a teardown of seconds or hours a bystander does the same thing hundreds of times: nothing
else happens, so every round is like the last, with other names for what it maps. Where that is
seen, and nobody else's timer is due, the rounds that follow are told and not run: samples and
events are written in bulk, and the timers of all bystanders move on by the same time.

It is seen in two *windows* of two rounds each (mprotect alternates). The second must have the same
events as the first, so much later, by the same threads; arguments may go on in steps, as the
addresses of faults do. In both nobody else may have had an event: who isn't a bystander at rest has
waited since before them, or is in the middle of one step whose end is far. So a state is
left out in which the same threads do the same again; the run that leaps and the plain one have
equal events (tests/test_leaps.py runs both).

What a round costs may depend on how many there were: a page table is needed for each 512th page.
`ALIKE` says of an operation how many rounds from the nth on are alike; who isn't in it is never
leapt over, neither is a design of one's own, nor anything beside a CPU quota.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, NamedTuple

from zaplock.engines.timed.clock import time_of
from zaplock.engines.timed.event_log import EventPattern, EventRange
from zaplock.engines.timed.threads import BLOCKED, DONE, RESTING, RUNNING, SLEEPING, Thread
from zaplock.model.step import Step, Task, step

if TYPE_CHECKING:
    from zaplock.engines.timed.engine import TimedEngine
    from zaplock.lab.bystanders import SimulatedSamples
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Design

ENTRIES_PER_TABLE = 512
ENDLESS = 1 << 60
"""More rounds, and more nanoseconds, than any run has."""
MOST_PATIENCE = 64
"""How many rounds a bystander lets pass before it looks again, where rounds are not alike."""


def _always(_nth: int) -> int:
    return ENDLESS


def _within_one_table(nth: int) -> int:
    """Count the faults, from the nth on, whose pages have a page table already."""
    return -(nth + 1) % ENTRIES_PER_TABLE


ALIKE: dict[str, Callable[[int], int]] = {
    "fault": _within_one_table,
    "mmap": _always,
    "madvise": _always,
    "mprotect": _always,
    "clone": _always,
    "fork": _always,
    "proc": _always,
    "environ": _always,
    "gup": _always,
}


def can_leap(design: Design, bystanders: tuple[str, ...]) -> bool:
    """Say whether rounds of these bystanders under this design may be alike at all.

    A fork copies what faults have mapped, so that one never costs what the last one did.
    """
    if not all(name in ALIKE for name in bystanders) or {"fault", "fork"} <= set(bystanders):
        return False
    return is_ours(design)


def is_ours(design: Design) -> bool:
    """Say whether all protocols of a design are zaplock's."""
    rules = [getattr(design, rule.name) for rule in fields(design)]
    # By its globals, since a wrapper may bear the module of what it wraps.
    named = [getattr(rule, "__globals__", {}).get("__name__") for rule in rules if callable(rule)]
    return all(str(name).startswith("zaplock.") for name in named)


class _Mark(NamedTuple):
    """What there was when a bystander ended a round; `timers`: of those who do nothing else."""

    now_ns: int
    log: EventRange
    timers: dict[int, int]


class Leaps:
    """The bystanders of one run, and when they may leap."""

    def __init__(self, engine: TimedEngine) -> None:
        """Begin without bystanders. The engine must have no CPU quota."""
        self._engine = engine
        self._samples: dict[int, SimulatedSamples] = {}
        self._alike: dict[int, Callable[[int], int]] = {}
        self._marks: dict[int, list[_Mark]] = {}
        self._patience = 1
        self._wait = 0

    def of(self, tid: int, name: str, samples: SimulatedSamples) -> Callable[[], Step[int]]:
        """Return the step that ends a round of the bystander `name`, and leaps if it may."""
        self._samples[tid], self._alike[tid], self._marks[tid] = samples, ALIKE[name], []

        @step
        def leap(_m: Machine, task: Task) -> int:
            return self._end_round(task.tid)

        return leap

    def _end_round(self, tid: int) -> int:
        engine, marks = self._engine, self._marks[tid]
        marks.append(_Mark(engine.now_ns, engine.recorder.end, self._timers()))
        if len(marks) < 5:
            return 0
        del marks[:-5]
        if marks[0].timers != marks[-1].timers:
            self._patience, self._wait = 1, 0  # something else has begun
            return 0
        if self._wait:
            self._wait -= 1
            return 0
        leapt_ns = self._leap(tid, marks)
        self._patience = 1 if leapt_ns else min(2 * self._patience, MOST_PATIENCE)
        self._wait = 0 if leapt_ns else self._patience
        return leapt_ns

    def _timers(self) -> dict[int, int]:
        """Return the timers of those who haven't begun a round: the subject, and who comes late."""
        samples = self._samples
        return {
            tid: thread.timer
            for tid, thread in self._engine.threads.items()
            if tid not in samples or not samples[tid].begin_ns
        }

    def _leap(self, tid: int, marks: list[_Mark]) -> int:
        first, _, middle, _, last = marks
        window_ns = last.now_ns - middle.now_ns
        active = self._active(tid, first)
        if not active or middle.now_ns - first.now_ns != window_ns:
            return 0
        if not all(self._is_regular(one, middle.now_ns, window_ns) for one in active):
            return 0
        due_ns = min((self._due_ns(one) for one in last.timers), default=0)
        rounds = min(self._alike[one](len(self._samples[one].begin_ns)) for one in active)
        times = min((due_ns - last.now_ns) // window_ns - 1, rounds // 2)
        if times < 1:
            return 0
        pattern = self._engine.recorder.pattern(first.log, middle.log, window_ns)
        if pattern is None:
            return 0
        self._pass_over(tid, active, pattern, times, window_ns)
        return times * window_ns

    def _due_ns(self, tid: int) -> int:
        """Return when somebody who does no rounds goes on; one who waits does so for others."""
        thread = self._engine.threads[tid]
        return time_of(thread.timer) if thread.state != DONE and thread.timer else ENDLESS

    def _active(self, tid: int, first: _Mark) -> list[int]:
        """List the bystanders that do rounds; none where somebody is in the middle of something."""
        engine = self._engine
        if engine.cpus.ready or any(engine.cpus.armed):
            return []
        active = []
        for one, thread in engine.threads.items():
            if one == tid or self._is_at_rest(thread):
                active.append(one)
            elif not self._stays(thread, first):
                return []
        return active

    def _is_at_rest(self, thread: Thread) -> bool:
        samples = self._samples.get(thread.tid)
        if samples is None or not samples.end_ns or len(samples.begin_ns) > len(samples.end_ns):
            return False
        return thread.state in (SLEEPING, RESTING) and thread.resume is None

    def _stays(self, thread: Thread, first: _Mark) -> bool:
        """Say whether a thread does nothing, and has done nothing since `first`."""
        if thread.state == BLOCKED:
            handoff_ns = self._engine.policy.handoff_ns or 0
            return thread.asked_ns + handoff_ns < first.now_ns
        if thread.state == DONE:
            return thread.finished_ns < first.now_ns
        asleep = thread.state == SLEEPING and thread.resume is None
        return thread.tid in first.timers and (asleep or thread.state == RUNNING)

    def _is_regular(self, tid: int, middle_ns: int, window_ns: int) -> bool:
        """Say whether a bystander's last two rounds were in one window, the two before alike."""
        samples = self._samples[tid]
        begin_ns, end_ns, stall_ns = samples.begin_ns, samples.end_ns, samples.stall_ns
        return (
            len(begin_ns) >= 4
            and end_ns[-3] <= middle_ns < end_ns[-2]
            and all(
                begin_ns[-i] - begin_ns[-i - 2] == window_ns
                and end_ns[-i] - end_ns[-i - 2] == window_ns
                and stall_ns[-i] == stall_ns[-i - 2]
                for i in (1, 2)
            )
        )

    def _pass_over(
        self, tid: int, active: list[int], pattern: EventPattern, times: int, window_ns: int
    ) -> None:
        """Write down so many windows, and let all who are at rest sleep for so much longer."""
        engine = self._engine
        engine.recorder.repeat(pattern, times)
        for one in active:
            samples = self._samples[one]
            for times_ns in (samples.begin_ns, samples.end_ns):
                told = [0] * (2 * times)
                for k, at in enumerate(times_ns[-2:]):
                    told[k::2] = range(at + window_ns, at + times * window_ns + 1, window_ns)
                times_ns += told
            samples.stall_ns += samples.stall_ns[-2:] * times
            if one != tid:
                thread = engine.threads[one]
                engine.clock.set(time_of(thread.timer) + times * window_ns, thread)
        for marks in self._marks.values():
            marks.clear()
