"""One program of threads, run again and again: which outcomes come, and is each of them allowed?"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from zaplock.model.violations import Violation
from zaplock.oracle.interleavings import Answer, Interleavings
from zaplock.oracle.thread_campaign import ThreadBench
from zaplock.oracle.thread_outcomes import from_nearest
from zaplock.oracle.thread_programs import ThreadedGenerator
from zaplock.oracle.threaded import ThreadedOutcome, ThreadedProgram

MOST_RUNS = 100_000


class SeenOutcome(NamedTuple):
    """An outcome, in how many runs it came, and how the model allows it.

    differences: from the nearest outcome that is allowed, where this one is not.
    """

    outcome: ThreadedOutcome
    times: int
    answer: Answer
    differences: tuple[str, ...]


class RunAgain(NamedTuple):
    """The outcomes of a program, the most frequent first, and rules that the model broke."""

    runs: int
    seen: tuple[SeenOutcome, ...]
    violations: tuple[Violation, ...]

    @property
    def agrees(self) -> bool:
        """Tell whether every outcome is allowed; what is not known is not counted here."""
        answers = {one.answer for one in self.seen}
        return "not allowed" not in answers and not self.violations


def outcomes(
    bench: ThreadBench, threaded: ThreadedProgram, *, seconds: float, seed: int
) -> Iterator[Counter[ThreadedOutcome]]:
    """Run a program for so many seconds, each time with other delays; yield now and then what came.

    At least one run is made, and MOST_RUNS at most; one that lacked a page of the process's own
    machinery shows nothing. Raises Lost where it doesn't end.
    """
    generator, seen = ThreadedGenerator(seed), Counter[ThreadedOutcome]()
    deadline = time.monotonic() + seconds
    for number in range(MOST_RUNS):
        outcome = bench.real.run_threads(threaded, generator.delays(threaded), bench.cpus)
        if not bench.real.own_page_away():
            seen[outcome] += 1
        if number % 20 == 0:
            yield seen
        if time.monotonic() >= deadline:
            break
    yield seen


def judged(
    bench: ThreadBench, threaded: ThreadedProgram, seen: Counter[ThreadedOutcome]
) -> RunAgain:
    """Judge the outcomes that came."""
    model = Interleavings(bench.real.environment, bench.design, threaded, bench.wrap, bench.limits)
    found, broken = [], dict[str, Violation]()
    for outcome, times in seen.most_common():
        answer: Answer = "not known"
        try:
            answer = model.judge(outcome)
        except Violation as violation:
            broken.setdefault(str(violation), violation)  # of any outcome: the same orders break it
        forbidden = answer == "not allowed"
        told = from_nearest(outcome, model.explored()) if forbidden else ()
        found.append(SeenOutcome(outcome, times, answer, told))
    return RunAgain(seen.total(), tuple(found), (*broken.values(), *model.violations))
