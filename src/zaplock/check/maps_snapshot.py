"""What a reader of /proc/PID/maps may show, line by line, while the map changes under it.

Each line must have been true at some instant of the call, and of what was mapped from the call's
begin to its end nothing may be missing, nor, where a scenario promises that, be shown twice
(SNAPSHOT_PER_VMA). The reader notes what is
mapped when it begins; every step of another task notes, in the same instant, what it has made of
that; at the end the lines are held against the notes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from zaplock.check.scenarios import BASE_PAGE, PAGE_SHIFT
from zaplock.model.filters import Rule, Steps
from zaplock.model.rwsem import LockStep
from zaplock.model.spans import SpanSteps
from zaplock.model.step import Step, Task, WaitStep, step, watching
from zaplock.model.violations import Invariant, Violation
from zaplock.model.vma import Vma

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.store import Cells

Line = tuple[int, int, int]
"""First page, the page behind the last, flags."""
Run = tuple[int, int]
"""First page and the page behind the last."""


class Reading(NamedTuple):
    """What a reader that is at it could have seen: lines at any instant, pages at every one."""

    mm: int
    ever: tuple[Line, ...]
    throughout: tuple[Run, ...]


def readings(m: Machine) -> Cells[int, Reading]:
    """Return the notes, by the reader's task id."""
    return m.cells("maps_readings")


def lines_now(m: Machine, mm: int) -> tuple[Line, ...]:
    """List what is mapped, as maps would show it in one instant."""
    space = m.mm(mm)
    return tuple(_line(m.vmas[space.tree[start]]) for start in space.tree)


def _line(vma: Any) -> Line:
    assert isinstance(vma, Vma)
    return vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT, vma.flags


def common(runs: tuple[Run, ...], others: tuple[Run, ...]) -> tuple[Run, ...]:
    """Return the pages that are in both."""
    pairs = ((max(a, c), min(b, d)) for a, b in runs for c, d in others)
    return tuple(sorted(run for run in pairs if run[0] < run[1]))


def note(m: Machine) -> None:
    """Bring every reader's notes up to date."""
    for tid in tuple(readings(m)):
        reading = readings(m)[tid]
        lines = lines_now(m, reading.mm)
        ever = tuple(sorted({*reading.ever, *lines}))
        throughout = common(reading.throughout, _runs(lines))
        readings(m).put(tid, Reading(reading.mm, ever, throughout))


def _runs(lines: tuple[Line, ...]) -> tuple[Run, ...]:
    runs: list[Run] = []
    for first, last, _ in lines:
        if runs and runs[-1][1] == first:
            first = runs.pop()[0]
        runs.append((first, last))
    return tuple(runs)


@cache
def noting(run: Callable[..., Any]) -> Callable[..., Any]:
    """Let a step's function keep the notes of readers in the same instant."""

    @wraps(run)
    def noted(m: Machine, task: Task, *args: Any) -> Any:
        result = run(m, task, *args)
        note(m)
        return result

    return noted


class NotesForReaders(Rule):
    """Let every step of a task keep the notes of those who read maps meanwhile."""

    def __call__(self, step: Step[Any]) -> Steps:
        if isinstance(step, LockStep | WaitStep | SpanSteps):
            return (yield step)
        if watching.watch is not None:
            watching.watch.awaited(step)  # in another's place
        return (yield Step(noting(step.run), step.args))


class SnapshotPerVma(Rule):
    """Follow a reader of maps and judge what it has shown, also whether twice if `once`."""

    def __init__(self, mm: int, once: bool) -> None:
        self.mm = mm
        self.once = once
        self.lines: tuple[Line, ...] | None = None

    def __call__(self, step: Step[Any]) -> Steps:
        if self.lines is None:
            self.lines = ()
            yield begin_reading(self.mm)
        result = yield step
        if step.name == "read_vma":
            self.lines = (*self.lines, _line(result))
        elif step.name == "count_vmas":
            self.lines = yield all_lines(self.mm)
        return result

    def at_end(self) -> Steps:
        yield end_reading(self.lines or (), self.once)


@step
def begin_reading(m: Machine, task: Task, mm: int) -> None:
    """Note what is mapped as the call begins."""
    lines = lines_now(m, mm)
    readings(m).put(task.tid, Reading(mm, lines, _runs(lines)))


@step
def all_lines(m: Machine, _task: Task, mm: int) -> tuple[Line, ...]:
    """Return what is mapped, to a reader who keeps everybody out."""
    return lines_now(m, mm)


@step
def end_reading(m: Machine, task: Task, lines: tuple[Line, ...], once: bool) -> None:
    """Report a line that was never so, and what stayed and is missing, or there twice."""
    reading = readings(m)[task.tid]
    readings(m).drop(task.tid)
    for line in lines:
        if line not in reading.ever:
            raise _broken(task, f"shows {_pages(line)}, which was never so during its call")
    shown = tuple((first, last) for first, last, _ in lines)
    _nothing_missing(task, shown, reading.throughout)
    for one, other in combinations(shown if once else (), 2):
        if twice := common(common((one,), (other,)), reading.throughout):
            raise _broken(task, f"shows {_pages(twice[0])} twice")


def _nothing_missing(task: Task, shown: tuple[Run, ...], throughout: tuple[Run, ...]) -> None:
    for run in throughout:
        at = run[0]
        for first, last in sorted(shown):
            if first <= at < last:
                at = last
        if at < run[1]:
            until = min([first for first, _ in shown if first > at] + [run[1]])
            raise _broken(task, f"does not show {_pages((at, until))}, which was there throughout")


def _broken(task: Task, what: str) -> Violation:
    return Violation(Invariant.SNAPSHOT_PER_VMA, f"{task} {what}")


def _pages(run: tuple[int, ...]) -> str:
    return f"pages [{run[0] - BASE_PAGE}, {run[1] - BASE_PAGE})"
