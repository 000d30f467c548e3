"""The sequential engine: one protocol, run to its end, with nobody beside it.

This is the engine of the differential tests: a system call of the model gives its result and its
state, the real kernel gives its own, and the two are compared. Nobody else runs, so a step that
would have to wait can never go on: that is reported as `NO_DEADLOCK`. Time doesn't pass and notes
to the engine are passed over. A process that runs many protocols runs them as plain functions
(`engines.direct`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, TypeVar

from zaplock.engines.direct import PlainForms
from zaplock.model.machine import Machine
from zaplock.model.rwsem import EINTR_RESULT, LockStep, ends_wait
from zaplock.model.step import MarkStep, Step, Task, WaitStep
from zaplock.model.violations import Invariant, Violation

T = TypeVar("T")


class LockCall(NamedTuple):
    """One lock operation that took effect, in the order in which a program did them.

    `action` is "down", "try", "up" or "downgrade", or "failed" for a trylock that didn't get the
    lock and a wait that a fatal signal ended; `name` is the lock's ("mmap_lock", "i_mmap", ...).
    """

    action: str
    write: bool
    name: str


def run(
    machine: Machine,
    task: Task,
    program: Coroutine[Step[Any], Any, T],
    lock_calls: list[LockCall] | None = None,
) -> T:
    """Run `program` as `task` from its first step to its last and return what it returns.

    Every lock operation is appended to `lock_calls` where that is given. Raises Violation where a
    step reports one, and (NO_DEADLOCK) where a step would have to wait.
    """
    if lock_calls is None and (plain := PLAIN_FORMS.call_of(program)):
        program.close()
        call, arguments = plain
        done: T = call(machine, task, **arguments)
        return done
    send = program.send
    result: Any = None
    try:
        while True:
            try:
                step = send(result)
            except StopIteration as end:
                value: T = end.value
                return value
            kind = type(step)
            if kind is Step:
                result = step.run(machine, task, *step.args)
            elif isinstance(step, LockStep):
                result = _lock(machine, task, step, lock_calls)
            elif kind is MarkStep:
                result = None
            else:
                result = _waited(machine, task, step)
    finally:
        program.close()


def call(
    machine: Machine, task: Task, make: Callable[..., Coroutine[Step[Any], Any, T]], *arguments: Any
) -> T:
    """Run the protocol that `make(*arguments)` is, as `run` does: as a plain function at once."""
    forms = PLAIN_FORMS
    if forms.runs_left:
        return run(machine, task, make(*arguments))
    done: T = forms[make](machine, task, *arguments)
    return done


def _take(machine: Machine, task: Task, awaited: Any) -> Any:
    """Take one step, or run a protocol, and return its result."""
    kind = type(awaited)
    if kind is Step:
        return awaited.run(machine, task, *awaited.args)
    if isinstance(awaited, LockStep):
        return _lock(machine, task, awaited, None)
    if kind is MarkStep:
        return None
    if isinstance(awaited, Step):
        return _waited(machine, task, awaited)
    return run(machine, task, awaited)


PLAIN_FORMS: Final = PlainForms(_take)
"""Of the protocols that were run here so often that it is worth it."""


def _waited(machine: Machine, task: Task, step: Step[Any]) -> Any:
    if isinstance(step, WaitStep) and not step.ready(machine, task, *step.args):
        if step.killable and machine.has_fatal_signal(task.tid):
            return EINTR_RESULT
        message = f"{task} waits for {step.channel} in {step}, and nobody is there to end that"
        raise Violation(Invariant.NO_DEADLOCK, message)
    return step.run(machine, task, *step.args)


def _lock(machine: Machine, task: Task, step: LockStep, lock_calls: list[LockCall] | None) -> int:
    if step.killable and ends_wait(machine, task, step.lock, step.write):
        result = EINTR_RESULT
    else:
        result = step.run(machine, task, *step.args)
    if lock_calls is not None:
        failed = result < 0 or (step.action == "try" and not result)
        action = "failed" if failed else step.action
        lock_calls.append(LockCall(action, step.write, step.lock[0]))
    return int(result)
