"""What the checking engines are given: tasks on a machine, rules for its locks, and promises.

A `Configuration` is complete: every engine (exhaustive, plain, sampled, replay) runs the same one,
and a schedule found by one of them can be replayed by another.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from zaplock.model.machine import Machine
from zaplock.model.rwsem import RWSEM_5_11, RwsemPolicy
from zaplock.model.step import Step, Task

Protocol = Coroutine[Step[Any], Any, Any]
"""A started protocol: an `async def` function that was called and awaits steps."""


@dataclass(frozen=True)
class TaskProgram:
    """One task and the protocol that it runs; `start` gives a fresh coroutine at each call.

    A `daemon` may wait for ever: a state in which nobody else is left is an end, not a deadlock.
    """

    task: Task
    start: Callable[[], Protocol]
    daemon: bool = False

    def may_rest(self, step: Step[Any] | None) -> bool:
        """Return whether the task need not go on before `step`, or has ended (None)."""
        return step is None or self.daemon or step.may_last


@dataclass(frozen=True)
class Rules:
    """Who may enter a lock.

    fair: False: any waiter may be granted a free lock, asking and getting are one transition.
        True: arrival and grant are two; waiters queue first-in-first-out and `policy` decides who
        passes whom. The first rule allows more orders of entry, the second more deadlocks: a
        reader, a queued writer, the same reader again.
    """

    fair: bool = False
    policy: RwsemPolicy = RWSEM_5_11


@dataclass(frozen=True)
class Configuration:
    """A closed system to explore.

    build: makes the machine in its initial state, the same one each time.
    always: raise `Violation` in a state that must not be; asked in every state.
    at_task_end: asked, with the task's result, in the same instant in which a task ends.
    at_end: asked in every state in which all tasks have ended, with their results in order.
    sometimes: name -> predicate that has to be true in some state, or the check is vacuous.
    sometimes_at_end: the same for ends, asked with the results.
    happens: name -> has it happened by now, wherever a task has come: like `sometimes`, for what
        no state shows.
    covers: a directory: which lines of the functions there that are entered does nothing run?
    """

    build: Callable[[], Machine]
    programs: tuple[TaskProgram, ...]
    rules: Rules = Rules()
    always: tuple[Callable[[Machine], None], ...] = ()
    at_task_end: tuple[Callable[[Machine, Task, Any], None], ...] = ()
    at_end: tuple[Callable[[Machine, tuple[Any, ...]], None], ...] = ()
    sometimes: dict[str, Callable[[Machine], bool]] = field(default_factory=dict)
    sometimes_at_end: dict[str, Callable[[Machine, tuple[Any, ...]], bool]] = field(
        default_factory=dict
    )
    happens: dict[str, Callable[[], bool]] = field(default_factory=dict)
    covers: str = ""

    def never(self, seen: Iterable[str]) -> tuple[str, ...]:
        """Name what had to happen and did not, if `seen` was seen of it."""
        wanted = (*self.sometimes, *self.sometimes_at_end, *self.happens)
        there = {*seen, *self.happened()}
        return tuple(name for name in wanted if name not in there)

    def happened(self) -> set[str]:
        """Name what has happened in this process of what no state shows."""
        return {name for name, has_happened in self.happens.items() if has_happened()}

    def observers(self) -> tuple[Callable[..., Any], ...]:
        """List everything that looks at states and is no task."""
        return (
            *self.always, *self.at_task_end, *self.at_end, *self.sometimes.values(),
            *self.sometimes_at_end.values(),
        )  # fmt: skip
