"""Go through the states of a scenario by hand: choose who moves, look, go back.

The run is a schedule that grows and shrinks (`engines.checking.schedule`): going back is running
the shorter one, so a state that is come back to is the one that was left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zaplock.check.counterexample import (
    Hold,
    StepRow,
    describe_state,
    holds_of,
    innermost,
    place_of,
    readable,
    row_of,
    short,
)
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.schedule import ScheduleRun
from zaplock.errors import UserError


@dataclass(frozen=True)
class Choice:
    """One task: the step that it would take now, and where it stands.

    can_move: whether it can; where not, `step` is what it waits in, "" at its end.
    """

    letter: str
    task: str
    step: str
    function: str
    place: str
    can_move: bool


@dataclass(frozen=True)
class ExplorerView:
    """What there is to see in a state: the steps so far, who can move, locks, what is broken.

    ended: nobody can move any more, or a rule is broken. results: by task, once all have ended.
    """

    rows: tuple[StepRow, ...]
    choices: tuple[Choice, ...]
    holds: tuple[Hold, ...]
    ended: bool
    invariant: str
    rule: str
    message: str
    results: tuple[str, ...]


class Explorer:
    """A configuration, and the schedule that leads to the state in view."""

    def __init__(self, system: Configuration, schedule: Sequence[int] = ()) -> None:
        """Begin where a schedule ends; raises UserError where that doesn't fit."""
        self.system = system
        self.tasks = tuple(str(program.task) for program in system.programs)
        self.schedule: list[int] = []
        self.rows: list[StepRow] = []
        self.run = ScheduleRun(system)
        for index in schedule:
            if not self.take(index):
                raise UserError(
                    f"the schedule doesn't fit: {self.tasks[index]} can't move at "
                    f"{len(self.schedule) + 1}"
                )
        self._judge()

    def take(self, index: int) -> bool:
        """Let a task take its next step; False where it can't."""
        taken = self.run.take(index)
        if taken is None:
            return False
        self.schedule.append(index)
        self.rows.append(row_of(len(self.schedule), False, taken, self.run, self.tasks))
        self._judge()
        return True

    def go_on(self, index: int) -> int:
        """Let a task go on until it has to wait, ends or breaks a rule; return how many steps."""
        taken, most = 0, 1000  # a task that spins would go on for ever
        while taken < most and self.take(index):
            taken += 1
        return taken

    def back(self, steps: int = 1) -> int:
        """Take back the last steps; return how many."""
        keep = max(0, len(self.schedule) - steps)
        gone = len(self.schedule) - keep
        schedule, self.schedule, self.rows = self.schedule[:keep], [], []
        self.close()
        self.run = ScheduleRun(self.system)
        for index in schedule:
            self.take(index)
        self._judge()
        return gone

    def _judge(self) -> None:
        if self.run.violation is None and not self.run.can_move():
            self.run.finish()

    def view(self) -> ExplorerView:
        """Return what there is to see now."""
        violation = self.run.violation
        choices = tuple(self._choice(index) for index in range(len(self.tasks)))
        ended = not any(choice.can_move for choice in choices)
        return ExplorerView(
            tuple(self.rows),
            choices,
            holds_of(self.run, self.tasks),
            ended,
            violation.invariant.name if violation else "",
            violation.invariant.value if violation else "",
            readable(violation.message) if violation else "",
            tuple(short(str(one)) for one in self.run.results()) if self.run.ended else (),
        )

    def state(self) -> list[str]:
        """Describe the state: what is mapped, translated and torn down, and all that is its own."""
        return describe_state(self.run.machine)

    def _choice(self, index: int) -> Choice:
        position = self.run.positions[index]
        line = innermost(position.lines())
        step = "" if position.step is None else short(str(position.step))
        return Choice(
            "abcdefgh"[index],
            self.tasks[index],
            step,
            line[2] if step else "",
            place_of(line) if step else "",
            self.run.can_take(index),
        )

    def close(self) -> None:
        """Drop protocols that have not ended."""
        self.run.close()
