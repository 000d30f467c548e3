"""A run of programs of threads: the real kernel shows outcomes, the model must allow each.

Every program runs again and again, each time with other delays, until nothing new has been seen for
some runs. An outcome that the model does not allow is a divergence, as is a rule that the model
itself breaks on the way; it is told how often it came in `AGAIN` more runs, but outcomes of threads
are rare by nature, and one that came once has come. It is set aside only where something was seen
to disturb the machine while it came (`surroundings`). A run in which a page of the process's own
machinery was seen to be away is no run: its counters lack that page. A
program whose search came to a limit before the outcome was met is counted as not known. One program
in `EXPLORED_EVERY` is searched to its end whether or not that is needed, so that the model's own
rules are watched in interleavings that the kernel did not happen to take.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from zaplock.engines.checking.exhaustive import SearchLimits
from zaplock.model.violations import Violation
from zaplock.oracle.bare_process import Lost
from zaplock.oracle.campaign import slice_seed
from zaplock.oracle.interleavings import SEARCH, Interleavings
from zaplock.oracle.real import RealSide
from zaplock.oracle.surroundings import MachineLook
from zaplock.oracle.thread_outcomes import from_nearest, outcome_text
from zaplock.oracle.thread_programs import ThreadedGenerator
from zaplock.oracle.threaded import ThreadedOutcome, ThreadedProgram
from zaplock.oracle.whole_operations import Wrap
from zaplock.protocols.design import Design

NOTHING_NEW = 5
"""A program runs until so many runs in a row have shown no outcome that had not been seen."""
MOST_RUNS = 60
HUNTED = SearchLimits(states=20_000, seconds=2.0, memory=2 << 30)
"""How far one program is searched for a fault in the model: many small ones find more."""
AGAIN = 200
"""How often one runs again whose outcome was not allowed: does that come again?"""
EXPLORED_EVERY = 200
PROGRAMS = 20  # of one slice
Judge = Callable[[ThreadedProgram], Interleavings]


class ThreadDivergence(NamedTuple):
    """A program, what the kernel or the model did that must not be, and how often it came again.

    `outcome` is None where the model broke a rule of its own; `differences`: from the nearest
    outcome that is allowed.
    """

    threaded: ThreadedProgram
    outcome: ThreadedOutcome | None
    told: str
    repeated: int
    differences: tuple[str, ...] = ()


class Unjudged(NamedTuple):
    """A program of which no verdict came, and why."""

    threaded: ThreadedProgram
    why: str

    def __str__(self) -> str:
        return f"{self.why}: {self.threaded}"


@dataclass(slots=True)
class ThreadReport:
    """What a run found. `outcomes` are distinct ones of a program, counted by how they are allowed.

    `unknown`: programs with an outcome of which nothing is known. `explored`: programs of which all
    interleavings were looked at; `reached`: how many outcomes these have; `seen`: how many of them
    the kernel has shown. `set_aside`: programs with an outcome that is not allowed, and what
    disturbed the machine then. `dropped`: runs that lacked a page of the process's own machinery.
    """

    programs: int = 0
    runs: int = 0
    operations: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    explored: int = 0
    reached: int = 0
    seen: int = 0
    divergences: list[ThreadDivergence] = field(default_factory=list)
    set_aside: list[Unjudged] = field(default_factory=list)
    dropped: int = 0
    unknown: list[Unjudged] = field(default_factory=list)
    lost: list[Unjudged] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Tell whether every outcome was allowed, as far as it is known and was not set aside."""
        return not (self.divergences or self.lost)


class ThreadBench:
    """The real side, and the model's judgement of one program after another."""

    def __init__(self, design: Design, wrap: Wrap = lambda protocol: protocol) -> None:
        """Start the real side. `wrap` puts a fault into every protocol of the model."""
        self.real = RealSide()
        self._surroundings = self.real.surroundings(())
        self.design = design
        self.wrap = wrap
        self.explored_every = EXPLORED_EVERY
        self.most_runs = MOST_RUNS
        self.cpus = sorted(os.sched_getaffinity(0))
        self.limits = SEARCH

    def close(self) -> None:
        """End the real side."""
        self.real.close()

    def slice(self, seed: int, report: ThreadReport, programs: int = PROGRAMS) -> None:
        """Run some programs of a seed and add what they showed to a report."""
        generator = ThreadedGenerator(seed, self.real.environment.start_brk)
        began = time.monotonic()
        for _ in range(programs):
            self.one(generator, generator.program(), report)
        report.seconds += time.monotonic() - began

    def one(
        self, generator: ThreadedGenerator, threaded: ThreadedProgram, report: ThreadReport
    ) -> None:
        """Run one program a few times and judge its outcomes."""
        try:
            before = self._surroundings.look()
            seen, runs = self._outcomes(generator, threaded, report)
            disturbed = self._disturbed(before, threaded)
        except Lost as error:
            report.lost.append(Unjudged(threaded, str(error)))
            return
        report.programs += 1
        report.runs += runs
        report.operations += runs * threaded.length
        model = Interleavings(self.real.environment, self.design, threaded, self.wrap, self.limits)
        try:
            for outcome in seen:
                self._judge(generator, model, outcome, disturbed, report)
            if report.programs % self.explored_every == 0:
                model.explored()
        except Violation as found:
            self._broken(threaded, found, report)
        if model.is_explored:
            report.explored += 1
            report.reached += len(model.explored())
            report.seen += len(model.explored() & seen)
        for violation in model.violations:
            self._broken(threaded, violation, report)

    def _outcomes(
        self, generator: ThreadedGenerator, threaded: ThreadedProgram, report: ThreadReport
    ) -> tuple[set[ThreadedOutcome], int]:
        """Run a program until it shows nothing new; return its outcomes, and how often it ran."""
        seen, runs, since_new = set[ThreadedOutcome](), 0, 0
        while since_new < NOTHING_NEW and runs < self.most_runs:
            outcome = self.real.run_threads(threaded, generator.delays(threaded), self.cpus)
            runs += 1
            if self.real.own_page_away():
                report.dropped += 1
                continue
            since_new = since_new + 1 if outcome in seen else 0
            seen.add(outcome)
        return seen, runs

    def _judge(
        self,
        generator: ThreadedGenerator,
        model: Interleavings,
        outcome: ThreadedOutcome,
        disturbed: str,
        report: ThreadReport,
    ) -> None:
        answer = model.judge(outcome)
        report.outcomes[answer] += 1
        if answer == "not known":
            why = f"a search came to a limit before it gave {outcome_text(outcome)}"
            report.unknown.append(Unjudged(model.threaded, why))
        elif answer == "not allowed" and not model.violations:
            told = f"no interleaving gives {outcome_text(outcome)}"
            before = self._surroundings.look()
            try:
                again = sum(self._comes(generator, model.threaded, outcome) for _ in range(AGAIN))
            except Lost as error:
                report.lost.append(Unjudged(model.threaded, f"{told}; run again, {error}"))
                return
            differences = from_nearest(outcome, model.explored())
            if disturbed and (not again or self._disturbed(before, model.threaded)):
                report.set_aside.append(Unjudged(model.threaded, f"{told}; {disturbed} meanwhile"))
                return
            report.divergences.append(
                ThreadDivergence(model.threaded, outcome, told, again, differences)
            )

    def _comes(
        self, generator: ThreadedGenerator, threaded: ThreadedProgram, outcome: ThreadedOutcome
    ) -> bool:
        came = self.real.run_threads(threaded, generator.delays(threaded), self.cpus) == outcome
        return came and not self.real.own_page_away()

    def _disturbed(self, before: MachineLook, threaded: ThreadedProgram) -> str:
        """Say what has disturbed a program that ran since a look; "" where nothing was seen."""
        operations = [*threaded.setup, *(op for thread in threaded.threads for op in thread)]
        return self._surroundings.disturbed(before, operations)

    def _broken(
        self, threaded: ThreadedProgram, violation: Violation, report: ThreadReport
    ) -> None:
        told = f"broke the model: {violation.invariant.name}: {violation.message}"
        report.divergences.append(ThreadDivergence(threaded, None, told, 0))


def run(bench: ThreadBench, *, seconds: float, seed: int) -> Iterator[ThreadReport]:
    """Run slices for so many seconds of wall time; yield the sum after each one."""
    report, deadline, number = ThreadReport(), time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        bench.slice(slice_seed(seed, number), report)
        number += 1
        yield report


class ThreadDetection(NamedTuple):
    """How a fault was found: after how many programs and seconds; `told` "" if it was not."""

    programs: int
    seconds: float
    told: str


def hunt(design: Design, wrap: Wrap, seed: int = 1, limit_s: float = 60.0) -> ThreadDetection:
    """Judge by a model with a fault in it, every program searched to its end, until that shows.

    Each runs once and on one CPU, for which nobody has to wait: whichever outcome the kernel shows,
    the model has to have it.
    """
    bench = ThreadBench(design, wrap)
    bench.explored_every, bench.most_runs, bench.limits = 1, 1, HUNTED
    bench.cpus = bench.cpus[-1:]
    report, began, number = ThreadReport(), time.monotonic(), 0
    try:
        while time.monotonic() - began < limit_s and not report.divergences:
            bench.slice(slice_seed(seed, number), report, programs=1)
            number += 1
    finally:
        bench.close()
    told = report.divergences[0].told if report.divergences else ""
    return ThreadDetection(report.programs, time.monotonic() - began, told)
