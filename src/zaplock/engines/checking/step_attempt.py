"""What one step does when its turn comes: done, queued, or blocked. Shared by all checking engines.

The timed engine has its own rules, since there waiting takes time. Here a task that can't go on is
simply not enabled. Under the fair rule (`Rules.fair`) asking for a taken lock is a transition of
its own, which puts the task into the queue; a release or downgrade then grants the lock to those
whom the kernel's policy wakes, in the same instant, as the kernel does under the wait_lock.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from zaplock.engines.checking.configuration import Rules
from zaplock.engines.checking.faults import asked, guarded
from zaplock.errors import ProtocolError
from zaplock.model import rwsem, words
from zaplock.model.machine import Machine
from zaplock.model.rwsem import EINTR_RESULT, FREE, LockStep
from zaplock.model.spans import SpanStep, SpanSteps
from zaplock.model.step import Step, StepWatch, Task, WaitStep, watching


class StepOutcome(NamedTuple):
    """How an attempt went. `granted` names the waiters whom it let in."""

    kind: str
    result: Any = None
    granted: tuple[int, ...] = ()


BLOCKED: Final = StepOutcome("blocked")
QUEUED: Final = StepOutcome("queued")


def attempt(
    rules: Rules, machine: Machine, task: Task, step: Step[Any], queued: bool
) -> StepOutcome:
    """Let `task` take `step` now, if it can.

    `queued` tells that it stands in the queue of the step's lock already. Raises `Violation` where
    the step finds a broken rule; the machine may then be half changed.
    """
    watch = StepWatch()
    before, watching.watch = watching.watch, watch
    try:
        outcome = guarded(_attempt, rules, machine, task, step, queued)
    finally:
        watching.watch = before
    if watch.pending:
        made = next(iter(watch.pending.values()))
        raise ProtocolError(
            f"{task}: the step {step} makes the step {made}, which does nothing by itself: call "
            f"{made.name}.run(machine, task, ...) to do it in the same instant"
        )
    return outcome


def _attempt(
    rules: Rules, machine: Machine, task: Task, step: Step[Any], queued: bool
) -> StepOutcome:
    if isinstance(step, LockStep):
        return _lock(rules, machine, task, step, queued)
    if isinstance(step, SpanSteps) and not words.is_drained(machine, task):
        return BLOCKED  # as for any lock
    if isinstance(step, WaitStep) and not asked(step.ready, machine, task, *step.args):
        if step.killable and machine.has_fatal_signal(task.tid):
            if queued and step.withdraw is not None:
                step.withdraw(machine, task, *step.args)
            return StepOutcome("done", EINTR_RESULT)
        if rules.fair and isinstance(step, SpanStep) and step.announce is not None and not queued:
            step.announce(machine, task, *step.args)
            return QUEUED
        return BLOCKED
    return StepOutcome("done", step.run(machine, task, *step.args))


def _lock(rules: Rules, machine: Machine, task: Task, step: LockStep, queued: bool) -> StepOutcome:
    if machine.memory == "sc":
        return _ask_lock(rules, machine, task, step, queued)
    if not words.is_drained(machine, task):
        return BLOCKED  # a locked instruction: the store buffer empties first
    if step.action in ("up", "downgrade"):
        words.lock_left(machine, task.tid, step.lock)
    outcome = _ask_lock(rules, machine, task, step, queued)
    if outcome.kind == "done" and step.acquires and _got(step, outcome.result):
        words.lock_taken(machine, task.tid, step.lock)
    for tid in outcome.granted:
        words.lock_taken(machine, tid, step.lock)
    return outcome


def _got(step: LockStep, result: int) -> bool:
    return (step.action == "down" and result == 0) or (step.action == "try" and result == 1)


def _ask_lock(
    rules: Rules, machine: Machine, task: Task, step: LockStep, queued: bool
) -> StepOutcome:
    sem = machine.locks.get(step.lock, FREE)
    if step.action in ("up", "downgrade"):
        return _leave(rules, machine, task, step, sem)
    if step.action == "hand-over":
        machine.locks.put(step.lock, rwsem.hand_over(sem, task.tid, step.to))
        return StepOutcome("done", 0)
    if step.action == "try":
        free = rwsem.is_free_for(sem, step.write) and not sem.queue
        if free:
            machine.locks.put(step.lock, rwsem.acquire(sem, task.tid, step.write))
        return StepOutcome("done", int(free))
    if queued:
        return _wait_in_queue(rules, machine, task, step, sem)
    if _may_enter(rules, sem, step.write):
        machine.locks.put(step.lock, rwsem.acquire(sem, task.tid, step.write))
        return StepOutcome("done", 0)
    if step.killable and machine.has_fatal_signal(task.tid):
        return StepOutcome("done", EINTR_RESULT)
    if not rules.fair:
        return BLOCKED
    machine.locks.put(step.lock, rwsem.enqueue(sem, task.tid, step.write, rules.policy))
    return QUEUED


def _may_enter(rules: Rules, sem: rwsem.Rwsem, write: bool) -> bool:
    if not rwsem.is_free_for(sem, write):
        return False
    passes = not rules.fair or not sem.queue
    return passes or rwsem.may_enter_past_queue(sem, rules.policy, write)


def _leave(
    rules: Rules, machine: Machine, task: Task, step: LockStep, sem: rwsem.Rwsem
) -> StepOutcome:
    if step.action == "up":
        after = rwsem.release(sem, task.tid, step.write)
    else:
        after = rwsem.downgrade(sem, task.tid)
    granted: tuple[int, ...] = ()
    if rules.fair:
        after, granted = rwsem.wake(after, rules.policy)
    machine.locks.put(step.lock, after)
    return StepOutcome("done", 0, granted)


def _wait_in_queue(
    rules: Rules, machine: Machine, task: Task, step: LockStep, sem: rwsem.Rwsem
) -> StepOutcome:
    # Only a fatal signal moves a queued task; being granted is the releaser's transition.
    if not (step.killable and machine.has_fatal_signal(task.tid)):
        return BLOCKED
    after, granted = rwsem.wake(rwsem.leave_queue(sem, task.tid), rules.policy)
    machine.locks.put(step.lock, after)
    return StepOutcome("done", EINTR_RESULT, granted)
