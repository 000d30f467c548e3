"""One interleaving, run for real: replay of a schedule, and what each of its steps did.

A schedule is the order in which tasks move: `a3b2a` lets the first task take three transitions,
then the second two, then the first one. A run needs no search and shares no table with one, so a
replay is also a second opinion on a counterexample.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from string import ascii_lowercase
from typing import Any

from zaplock.engines.checking.configuration import Configuration, Protocol, TaskProgram
from zaplock.engines.checking.depicting import Stand, is_same_place
from zaplock.engines.checking.faults import asked, guarded
from zaplock.engines.checking.positions import LiveProtocol, abandon
from zaplock.engines.checking.sealed import seal
from zaplock.engines.checking.step_attempt import attempt
from zaplock.errors import ProtocolError, UserError
from zaplock.model.frozen import NotFrozen
from zaplock.model.step import MarkStep, SleepStep, Step
from zaplock.model.violations import Invariant, Violation

Line = tuple[str, int, str]
"""A line of a protocol: file, line number, function."""


@dataclass(frozen=True)
class RunPlace:
    """What the rest of a run depends on: cells and frames; and how many results came before."""

    cells: Hashable
    stands: tuple[tuple[Stand, ...], ...]
    received: tuple[int, ...]

    def is_as(self, before: RunPlace) -> bool:
        """Return whether what follows here is what followed there."""
        return self.cells == before.cells and all(
            map(is_same_place, self.stands, before.stands, before.received)
        )


def livelock(turning: Sequence[str], never: Sequence[str], steps: int) -> Violation:
    """Describe a cycle: who moves in it, who never comes to an end, how many steps it has.

    It starves those if somebody goes round who means to (a daemon).
    """
    starves = not set(turning) <= set(never)
    return Violation(
        Invariant.NO_STARVATION if starves else Invariant.NO_LIVELOCK,
        f"{' and '.join(turning)} can go round for ever ({steps} steps); "
        f"no end comes for {', '.join(never)}",
    )


@dataclass(frozen=True)
class Taken:
    """One transition of a run.

    kind: "done", "queued" (it now waits for the lock) or "violation".
    lines: where in the protocol it was awaited, the innermost function last.
    marks: operations and faults that began or ended just before it.
    changes: (container, key, value now) of every cell that it changed.
    """

    index: int
    step: Step[Any]
    kind: str
    result: Any
    lines: tuple[Line, ...]
    marks: tuple[MarkStep, ...]
    changes: tuple[tuple[str, Any, Any], ...]
    granted: tuple[int, ...] = ()


class _Position:
    """A coroutine and the step that it is about to take."""

    def __init__(self, program: TaskProgram) -> None:
        self.task = program.task
        self.tracked = LiveProtocol(program)
        self.live: Protocol = self.tracked.protocol
        self.step: Step[Any] | None = None
        self.result: Any = None
        self.queued = False
        self.marks: list[MarkStep] = []

    def resume(self, result: Any) -> None:
        """Go on to the next step that changes state."""
        self.queued = False
        self.marks = []
        self.step = None
        self.tracked.received += 1
        guarded(self._go_on, result)
        self.tracked.place()

    def _go_on(self, result: Any) -> None:
        try:
            step = self.live.send(result)
            while isinstance(step, (MarkStep, SleepStep)):
                if isinstance(step, MarkStep):
                    self.marks.append(step)
                step = self.live.send(None)
        except StopIteration as end:
            self.result = end.value
            return
        if not isinstance(step, Step):
            raise ProtocolError(f"{self.task} awaits {step!r}, which is no step")
        self.step = step

    def stands(self) -> tuple[Stand, ...]:
        """Return where the coroutine stands, () at its end."""
        return () if self.step is None else self.tracked.stands({})

    def lines(self) -> tuple[Line, ...]:
        """Name the lines at which the protocol and those that it awaits stand."""
        lines = []
        at: Any = self.live
        while at is not None:
            frame = getattr(at, "cr_frame", None)
            if frame is not None:
                lines.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
                at = at.cr_await
            else:  # a generator that drives a protocol, such as a mutation's filter, or a step's
                frame = getattr(at, "gi_frame", None)
                at = frame.f_locals.get("inner") if frame is not None else None
        return tuple(lines)


class ScheduleRun:
    """A configuration that is moved one transition at a time by whoever chooses the tasks."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.machine = seal(configuration.build())
        self.machine.store.start_journal()
        self.tasks = [program.task for program in configuration.programs]
        self.positions = [_Position(program) for program in configuration.programs]
        self.taken: list[Taken] = []
        self.violation: Violation | None = None
        self.sometimes: set[str] = set()
        for position in self.positions:
            self._guard(lambda position=position: position.resume(None))
        self._guard(self._ask_in_the_beginning)

    def _guard(self, act: Any) -> None:
        try:
            act()
        except Violation as violation:
            self.violation = self.violation or violation

    def _ask_in_the_beginning(self) -> None:
        for index, position in enumerate(self.positions):
            if position.step is None and self.violation is None:
                self._task_ended(index)
        self._ask_promises()

    def _task_ended(self, index: int) -> None:
        for check in self.configuration.at_task_end:
            asked(check, self.machine, self.tasks[index], self.positions[index].result)

    def _ask_promises(self) -> None:
        for promise in self.configuration.always:
            asked(promise, self.machine)
        for name, is_true in self.configuration.sometimes.items():
            if asked(is_true, self.machine):
                self.sometimes.add(name)

    @property
    def ended(self) -> bool:
        """Whether all tasks, daemons apart, have come to their ends."""
        programs = self.configuration.programs
        return all(
            program.may_rest(position.step) for position, program in zip(self.positions, programs)
        )

    def results(self) -> tuple[Any, ...]:
        """Return what the tasks returned."""
        return tuple(position.result for position in self.positions)

    def take(self, index: int) -> Taken | None:
        """Let a task make its next transition; None if it has ended or can't go on now."""
        position = self.positions[index]
        step = position.step
        if step is None or self.violation is not None:
            return None
        lines, marks = position.lines(), tuple(position.marks)
        mark = self.machine.store.mark()
        kind, result = "violation", None
        granted: tuple[int, ...] = ()
        try:
            rules = self.configuration.rules
            kind, result, granted = attempt(
                rules, self.machine, self.tasks[index], step, position.queued
            )
            if kind == "blocked":
                return None
            self._move(position, index, kind, result, granted)
        except NotFrozen as error:
            raise ProtocolError(f"{self.tasks[index]}: {step}: {error}") from None
        except Violation as violation:
            self.violation = violation
            kind = "violation"
        changes = self.machine.store.changes(mark)
        named = tuple((cells.name, key, value) for cells, key, value in changes)
        taken = Taken(index, step, kind, result, lines, marks, named, granted)
        self.taken.append(taken)
        return taken

    def _move(
        self, position: _Position, index: int, kind: str, result: Any, granted: tuple[int, ...]
    ) -> None:
        if kind == "queued":
            position.queued = True
        else:
            position.resume(result)
        moved = [index]
        for tid in granted:
            other = next(i for i, task in enumerate(self.tasks) if task.tid == tid)
            self.positions[other].resume(0)
            moved.append(other)
        for i in moved:
            if self.positions[i].step is None:
                self._task_ended(i)
        self._ask_promises()

    def finish(self) -> None:
        """When nobody can move any more: is it the end, and is the end as promised?"""
        if self.violation is not None:
            return
        if not self.ended:
            waiting = [
                f"{program.task} waits in {position.step}"
                for program, position in zip(self.configuration.programs, self.positions)
                if not program.may_rest(position.step)
            ]
            self.violation = Violation(Invariant.NO_DEADLOCK, "; ".join(waiting))
            return
        for check in self.configuration.at_end:
            self._guard(lambda check=check: asked(check, self.machine, self.results()))

    def place(self) -> RunPlace:
        """Return what the run depends on from here on: all cells, and where the tasks stand."""
        positions = self.positions
        return RunPlace(
            self.machine.store.snapshot(),
            tuple(position.stands() for position in positions),
            tuple(position.tracked.received for position in positions),
        )

    def judge_cycle(self, begin: RunPlace | None, cycle: int) -> None:
        """Report a livelock if the last steps have led back to where they began."""
        if self.violation is not None or begin is None or not self.place().is_as(begin):
            return
        tasks = self.tasks
        turning = sorted({taken.index for taken in self.taken[len(self.taken) - cycle :]})
        never = [
            str(tasks[index])
            for index, (position, program) in enumerate(
                zip(self.positions, self.configuration.programs)
            )
            if not program.may_rest(position.step)
        ]
        self.violation = livelock([str(tasks[index]) for index in turning], never, cycle)

    def can_move(self) -> bool:
        """Return whether some task could make a transition."""
        return any(map(self.can_take, range(len(self.tasks))))

    def can_take(self, index: int) -> bool:
        """Return whether a task could make a transition now (tries it, and takes it back)."""
        position = self.positions[index]
        if position.step is None or self.violation is not None:
            return False
        mark = self.machine.store.mark()
        task, step, rules = self.tasks[index], position.step, self.configuration.rules
        try:
            return attempt(rules, self.machine, task, step, position.queued)[0] != "blocked"
        except Violation:
            return True
        finally:
            self.machine.store.undo(mark)

    def close(self) -> None:
        """Drop coroutines that have not ended."""
        for position in self.positions:
            abandon(position.live)


def replay(configuration: Configuration, schedule: Sequence[int], cycle: int = 0) -> ScheduleRun:
    """Run a schedule to its end; the run holds the violation, if it meets one.

    cycle: so many steps at its end are said to repeat for ever; that they lead back to where they
    began is the violation NO_LIVELOCK. Raises UserError where the schedule names a task that can't
    move.
    """
    run = ScheduleRun(configuration)
    begin: RunPlace | None = None
    for number, index in enumerate(schedule):
        if cycle and number == len(schedule) - cycle:
            begin = run.place()
        if run.take(index) is None and run.violation is None:
            raise UserError(
                f"the schedule doesn't fit: at its step {number + 1} task "
                f"{ascii_lowercase[index]} can't move (was it made for this scenario and design?)"
            )
    if cycle:
        run.judge_cycle(begin, cycle)
    elif run.violation is None and not run.can_move():
        run.finish()
    run.close()
    return run


def spell(schedule: Sequence[int], groups: Sequence[int] = (), cycle: int = 0) -> str:
    """Write a schedule as a token: [0, 0, 1] is `a2b`, and `a.ab` goes round `ab` for ever.

    `groups` are the sizes of its transitions, where some are of several steps: those are written
    with a capital, so [0, 0, 0, 1] in groups of 2, 1, 1 is `A2ab`.
    """
    if cycle:
        return f"{spell(schedule[:-cycle])}.{spell(schedule[-cycle:])}"
    words: list[str] = []
    at = 0
    for size in groups or [1] * len(schedule):
        letter = ascii_lowercase[schedule[at]]
        words.append(f"{letter.upper()}{size}" if size > 1 else letter)
        at += size
    runs = ((word, len(list(group))) for word, group in groupby(words))
    return "".join(
        f"{word}{count}" if count > 1 and word.islower() else word * count for word, count in runs
    )


def unspell(token: str, tasks: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Read what `spell` wrote, for a configuration of so many tasks: (schedule, groups, cycle)."""
    stem, dot, cycle = token.partition(".")
    if dot:
        parts = unspell(stem, tasks), unspell(cycle, tasks)
        return (*parts[0][0], *parts[1][0]), (), len(parts[1][0])
    if not re.fullmatch(r"([a-zA-Z]([1-9][0-9]{0,5})?)*", token):
        raise UserError(f"schedule {token!r} is not letters of tasks with counts, such as a3b2a")
    schedule: list[int] = []
    groups: list[int] = []
    for letter, digits in re.findall(r"([a-zA-Z])(\d*)", token):
        index, count = ascii_lowercase.index(letter.lower()), int(digits or 1)
        if index >= tasks:
            raise UserError(
                f"schedule {token!r} names task {letter}, but the scenario's tasks are "
                f"a to {ascii_lowercase[tasks - 1]}"
            )
        schedule += [index] * count
        groups += [count] if letter.isupper() else [1] * count
    return tuple(schedule), tuple(groups), 0
