"""A schedule of the checker in the timed engine: the same steps in the same order, with times.

Each task runs its own protocol; between its steps it waits for its turn. So the order is the
schedule's, while what steps cost, who occupies which CPU and what a lock hand-over takes is the
timed engine's and the cost profile's.
"""

from __future__ import annotations

import types
from collections.abc import Generator, Sequence
from typing import Any

from zaplock.check.counterexample import readable
from zaplock.check.tokens import Token
from zaplock.engines.checking.configuration import TaskProgram
from zaplock.engines.timed.engine import TimedEngine
from zaplock.errors import UserError
from zaplock.lab.profiles import load
from zaplock.lab.teardown import sched_of
from zaplock.model.machine import Machine
from zaplock.model.step import MarkStep, SleepStep, Step, Task, WaitStep, step
from zaplock.model.violations import Violation

TURN = ("replay", "turn")
Told = tuple[int, str, str]
"""Virtual nanoseconds, task, step."""


def replay_timed(token: Token, profile: str = "e5-2680-rfc") -> tuple[list[Told], str]:
    """Run a token's schedule with a profile's times: what was done when, the violation met.

    Raises UserError for schedules of the fair queue: there a step is to wait in a queue, and the
    timed engine keeps its own.
    """
    if token.fair:
        raise UserError("a schedule of the fair queue can't be timed: leave out --timed")
    system = token.system()
    machine = system.build()
    costs = load(profile)
    machine.costs = costs.costs
    sched = sched_of(costs, len(system.programs))
    engine = TimedEngine(machine, policy=token.design.rwsem, sched=sched)
    told: list[Told] = []
    turns = Turns(token.schedule, engine, told)
    for index, program in enumerate(system.programs):
        engine.spawn(program.task, turns.gated(index, program))
    message = ""
    try:
        engine.run()
    except Violation as violation:
        # Those whose turn never comes wait when the schedule has ended before its end: no deadlock.
        if turns.at < len(token.schedule):
            message = readable(str(violation))
    return told, message


class Turns:
    """Whose step is next."""

    def __init__(self, schedule: Sequence[int], engine: TimedEngine, told: list[Told]) -> None:
        self.schedule = schedule
        self.engine = engine
        self.told = told
        self.at = 0

    def is_mine(self, index: int) -> bool:
        """Return whether the next step of the schedule is this task's."""
        return self.at < len(self.schedule) and self.schedule[self.at] == index

    def wait(self, index: int) -> WaitStep[None]:
        """Wait for a task's turn."""
        return WaitStep(_nothing, (index,), lambda _m, _t, i: self.is_mine(i), (*TURN, index))

    @types.coroutine
    def gated(self, index: int, program: TaskProgram) -> Generator[Step[Any], Any, Any]:
        """Run a program with every step that changes state held until its turn."""
        inner = program.start()
        result: Any = None
        while True:
            try:
                wanted = inner.send(result)
            except StopIteration as end:
                return end.value
            if isinstance(wanted, (MarkStep, SleepStep)):
                result = yield wanted
                continue
            yield self.wait(index)
            self.told.append((self.engine.now_ns, str(program.task), readable(str(wanted))))
            result = yield wanted
            self.at += 1
            if self.at < len(self.schedule):
                yield pass_on(self.schedule[self.at])


def _nothing(_m: Machine, _task: Task, _index: int) -> None:
    return None


@step
def pass_on(m: Machine, _task: Task, index: int) -> None:
    """Tell the task whose turn it is."""
    m.wake((*TURN, index))
