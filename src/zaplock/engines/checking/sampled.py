"""Some interleavings, for what is too large to try them all. Never a proof.

Two choosers: uniformly random among the tasks that can move, and PCT (Burckhardt, Kothari,
Musuvathi, Nagarakatte, ASPLOS 2010): random priorities, the highest that can move goes, and at
`depth` - 1 random moments the running one drops below all others. PCT finds a bug that needs
`depth` ordering constraints with probability at least 1 / (n * k**(depth-1)) per run (n tasks,
k steps).

A run that has not come to its end after `LONGEST` steps is left where it is.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import SearchLimits
from zaplock.engines.checking.purity import Surroundings
from zaplock.engines.checking.schedule import ScheduleRun
from zaplock.model.violations import Violation

LONGEST: Final = 100_000
"""Steps of a run."""

Chooser = Callable[[int, int | None], Iterable[int]]
"""(step number, task that moved last) -> the tasks in order of preference."""


@dataclass(frozen=True)
class ScheduleSample:
    """What the runs showed. `schedule` and `violation` belong to the first that broke.

    unended: runs that were left before their end.
    """

    runs: int
    seconds: float
    longest: int
    violation: Violation | None = None
    schedule: tuple[int, ...] = ()
    never: tuple[str, ...] = ()
    unended: int = 0


def sample(
    configuration: Configuration,
    runs: int = 1000,
    *,
    seed: int = 0,
    depth: int | None = None,
    limits: SearchLimits = SearchLimits(),
    progress: Callable[[int, float], None] | None = None,
) -> ScheduleSample:
    """Try random schedules, by PCT of this `depth` if given; stop at the first violation.

    Raises ProtocolError where something that is no cell has changed meanwhile.
    """
    surroundings = Surroundings()
    for program in configuration.programs:
        surroundings.add(program.start, str(program.task))
    for observer in configuration.observers():
        surroundings.add_observer(observer)
    drawn = _draw(configuration, runs, random.Random(seed), depth, limits, progress)
    surroundings.compare()
    return drawn


def _draw(
    configuration: Configuration, runs: int, rng: random.Random, depth: int | None,
    limits: SearchLimits, progress: Callable[[int, float], None] | None,
) -> ScheduleSample:  # fmt: skip
    started = time.monotonic()
    longest, unended = 1, 0
    never = set(configuration.sometimes)
    for number in range(runs):
        tasks = len(configuration.programs)
        chooser = _uniform(rng, tasks) if depth is None else _pct(rng, tasks, longest, depth)
        run = run_with(configuration, chooser, started + limits.seconds)
        longest = max(longest, len(run.taken))
        unended += run.violation is None and not run.ended
        never -= run.sometimes
        seconds = time.monotonic() - started
        if progress is not None:
            progress(number + 1, seconds)
        if run.violation is not None:
            schedule = tuple(taken.index for taken in run.taken)
            return ScheduleSample(number + 1, seconds, longest, run.violation, schedule)
        if seconds > limits.seconds:
            runs = number + 1
            break
    seconds = time.monotonic() - started
    return ScheduleSample(runs, seconds, longest, never=tuple(sorted(never)), unended=unended)


def run_with(
    configuration: Configuration, chooser: Chooser, deadline: float = math.inf
) -> ScheduleRun:
    """Run one interleaving to its end, asking `chooser` before each step.

    deadline: of time.monotonic(). A run that is longer, or of more than `LONGEST` steps, is left.
    """
    run = ScheduleRun(configuration)
    last: int | None = None
    while run.violation is None and len(run.taken) < LONGEST and time.monotonic() < deadline:
        order = chooser(len(run.taken), last)
        last = next((index for index in order if run.take(index) is not None), None)
        if last is None:
            run.finish()
            break
    run.close()
    return run


def _uniform(rng: random.Random, tasks: int) -> Chooser:
    return lambda _step, _last: rng.sample(range(tasks), tasks)


def _pct(rng: random.Random, tasks: int, length: int, depth: int) -> Chooser:
    priorities = rng.sample(range(depth, depth + tasks), tasks)
    drops = {rng.randrange(length): depth - 1 - i for i in range(depth - 1)}

    def choose(step: int, last: int | None) -> Iterable[int]:
        if step in drops and last is not None:
            priorities[last] = drops[step]
        return sorted(range(tasks), key=lambda index: -priorities[index])

    return choose
