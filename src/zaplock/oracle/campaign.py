"""A run of the oracle: slices of sequences on both sides, spread over jobs, summed up.

A slice is a number of sequences whose seed follows from the run's seed and the slice's number
alone, so a run repeats exactly, whatever the number of jobs, and whether they are processes of this
machine or of a cluster, whose kernel is judged then. A divergence that was seen counts. It is run
afresh, and shrunk if it comes again; if not, it is told as one that was seen once. What runs while
somebody changes the machine's settings (of huge pages, of KSM) is not counted at all, and neither
is what differs only while something was seen to disturb (`surroundings`, or a page of the process's
own machinery that was taken away): that is set aside.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import cycle, zip_longest
from multiprocessing.queues import Queue
from typing import TypeVar

from zaplock.engines.sequential import PLAIN_FORMS
from zaplock.errors import UserError
from zaplock.executors import Cluster
from zaplock.oracle import compare
from zaplock.oracle.bare_process import Late, Lost
from zaplock.oracle.compare import Divergence
from zaplock.oracle.coverage import Coverage
from zaplock.oracle.generate import Generator
from zaplock.oracle.ops import Op, OracleStep, Side
from zaplock.oracle.real import RealSide
from zaplock.oracle.report import Report
from zaplock.oracle.scope import EVERYTHING, Scope
from zaplock.oracle.shrink import shrink
from zaplock.oracle.surroundings import MachineLook
from zaplock.workers import pool

SLICE = 20  # sequences
CALM_TRIES = 4  # to run a sequence that differed in peace, after 0, 50, 100, 150 ms
_OWN_PAGE_AWAY = "a page of the bare process's own machinery was taken away"
_STILL_WRITTEN = "pages were still being written to swap"
MAX_SHRUNK = 8  # kinds of divergences of one job that are worth the time to shrink
T = TypeVar("T")
SideMaker = Callable[[RealSide], Side]


class Bench:
    """Both sides, and the comparison of one sequence after another."""

    def __init__(
        self, make_model: SideMaker, scope: Scope = EVERYTHING, real: RealSide | None = None
    ) -> None:
        """Start both sides; `make_model` gets the real one, for its environment.

        `real`: a kernel that runs already, instead of this one.
        """
        self.real = real or RealSide()
        self.model = make_model(self.real)
        self.scope = scope
        self._surroundings = self.real.surroundings(scope.themes)
        self._told: set[str] = set()  # signatures of what has been shrunk
        self._looked = self._surroundings.look()

    def close(self) -> None:
        """End both sides."""
        self.model.close()
        self.real.close()

    def slice(self, seed: int, sequences: int = SLICE, shrinking: bool = True) -> Report:
        """Run some sequences of a seed. What was shrunk once is only counted from then on."""
        report, coverage, began_at = Report(), Coverage(), self._surroundings.mark()
        self._looked = self._surroundings.look()
        generator = Generator(seed, self.scope)
        began = time.monotonic()
        made = [generator.sequence() for _ in range(sequences)]
        for sequence, later in zip_longest(made, made[1:]):
            self._one(sequence, later, report, coverage, shrinking)
        report.seconds = time.monotonic() - began
        if changed := self._surroundings.changed_since(began_at):
            report.unsettled[changed] = report.operations
            report.operations = report.sequences = 0
        else:
            report.coverage = coverage.counts
        return report

    def _one(
        self,
        sequence: tuple[Op, ...],
        later: tuple[Op, ...] | None,
        report: Report,
        coverage: Coverage,
        shrinking: bool,
    ) -> None:
        self._looked = self._surroundings.since(self._looked)
        real = self._run(sequence, report)
        if later is not None:
            self.real.begin(later)
        if real is None:
            return
        report.operations += len(sequence)
        report.sequences += 1
        coverage.add(sequence, real, self.real.environment.baseline)
        found = compare.first_divergence(sequence, real, self.model.run(sequence))
        fault = compare.leftovers(sequence, real)
        if not found and not fault:
            return
        disturbed = self._disturbed(self._looked, sequence)
        if found:
            self._judge(found, real, disturbed, report, shrinking)
        if fault:
            self._judge_kernel(fault, real, disturbed, report, shrinking)
        self._looked = self._surroundings.look()

    def _run(self, sequence: tuple[Op, ...], report: Report) -> list[OracleStep] | None:
        """Run a sequence on the real side: twice if it was lost, as it may be by a busy machine."""
        try:
            return self.real.run(sequence)
        except Lost as error:
            first = error
        at_first = self._surroundings.disturbed(self._looked, sequence)
        steps: list[OracleStep] = []

        def lost() -> Lost | None:
            try:
                steps[:] = self.real.run(sequence)
            except Lost as error:
                return error
            return None

        again, disturbed = self.in_peace(sequence, lost)
        self._looked = self._surroundings.look()
        told = f": {'; '.join(map(str, sequence))}"
        if again is not None and not disturbed:
            report.lost.append(f"{again}{told}")
        elif isinstance(first, Late) and again is None:
            report.late.append(f"{first}{told}")
        elif at_first:
            report.put_aside(at_first)
        elif not isinstance(first, Late):
            report.lost.append(f"{first}, once{told}")
        else:
            report.put_aside(disturbed)
        return steps if again is None else None

    def _disturbed(self, before: MachineLook, sequence: tuple[Op, ...]) -> str:
        """Say what has disturbed the last run on the real side, which was after a look."""
        if self.real.own_page_away():
            return _OWN_PAGE_AWAY
        return self._surroundings.disturbed(before, sequence)

    def _judge(
        self,
        found: Divergence,
        real: list[OracleStep],
        at_first: str,
        report: Report,
        shrinking: bool,
    ) -> None:
        upto = found.sequence[: found.at + 1]
        try:
            again, disturbed = self.in_peace(upto, lambda: self.diverge(upto))
        except Lost:
            again, disturbed = None, ""
        if again is None and not at_first and self.real.settles(upto):
            at_first = _STILL_WRITTEN
        if self._came_again(found, again, at_first, disturbed, report):
            assert again is not None
            report.signatures[found.signature] += 1
            if not self._is_told(found, report.divergences, shrinking):
                if shrinking and len(self._told) <= MAX_SHRUNK:
                    again = self._shrunk_in_peace(again, [step.outcome.result for step in real])
                report.divergences.append(again)

    def _came_again(
        self,
        found: Divergence,
        again: Divergence | None,
        at_first: str,
        disturbed: str,
        report: Report,
    ) -> bool:
        """Tell whether a divergence came again in peace; else keep it as one that came once.

        It is set aside if it came only while something disturbed: `at_first`, and when it came
        again.
        """
        if again is not None and not disturbed:
            return True
        if at_first:
            report.put_aside(at_first)
        else:
            report.keep_once(found)
        return False

    def _shrunk_in_peace(self, found: Divergence, results: list[int]) -> Divergence:
        """Shrink a divergence; what is left of it must differ in peace, too."""
        short = self.shrink(found, results)
        try:
            again, disturbed = self.in_peace(short.sequence, lambda: self.diverge(short.sequence))
        except Lost:
            return found
        if again is None or disturbed or again.signature != found.signature:
            return found
        return again

    def in_peace(
        self, sequence: tuple[Op, ...], run: Callable[[], T | None]
    ) -> tuple[T | None, str]:
        """Run what went wrong until it goes well, or goes wrong though nothing disturbed it.

        Returns what went wrong, and by what it was disturbed each time, "" where it was not.
        """
        disturbed = ""
        for number in range(CALM_TRIES):
            time.sleep(0.05 * number)
            before = self._surroundings.look()
            wrong = run()
            disturbed = self._disturbed(before, sequence)
            if wrong is None or not disturbed:
                return wrong, ""
        return wrong, disturbed

    def _is_told(self, found: Divergence, reported: list[Divergence], shrinking: bool) -> bool:
        if shrinking:
            known = found.signature in self._told
            self._told.add(found.signature)
            return known
        return any(other.signature == found.signature for other in reported)

    def _judge_kernel(
        self,
        fault: Divergence,
        real: list[OracleStep],
        at_first: str,
        report: Report,
        shrinking: bool,
    ) -> None:
        try:
            again, disturbed = self.in_peace(
                fault.sequence,
                lambda: compare.leftovers(fault.sequence, self.real.run(fault.sequence)),
            )
        except Lost:
            again, disturbed = None, ""
        if again is not None and again.signature != fault.signature:
            again = None
        if self._came_again(fault, again, at_first, disturbed, report):
            self._count_kernel(fault, real, report, shrinking)

    def _count_kernel(
        self, fault: Divergence, real: list[OracleStep], report: Report, shrinking: bool
    ) -> None:
        report.kernel_signatures[fault.signature] += 1
        if self._is_told(fault, report.kernel_faults, shrinking):
            return

        def fails(sequence: tuple[Op, ...]) -> bool:
            try:
                other = compare.leftovers(sequence, self.real.run(sequence))
            except Lost:
                return False
            return other is not None and other.signature == fault.signature

        if shrinking:
            results = [step.outcome.result for step in real]
            short = shrink(fault.sequence, results, fails)
            fault = compare.leftovers(short, self.real.run(short)) or fault
        report.kernel_faults.append(fault)

    def diverge(self, sequence: tuple[Op, ...]) -> Divergence | None:
        """Run a sequence on both sides; return the first divergence."""
        return self.compared(sequence)[1]

    def compared(self, sequence: tuple[Op, ...]) -> tuple[list[OracleStep], Divergence | None]:
        """Run a sequence on both sides; return the real steps and the first divergence.

        What differs where pages are still being written to swap runs once more, with more time.
        """
        real, found = self._compared(sequence, patient=False)
        if found and self.real.settles(sequence):
            return self._compared(sequence, patient=True)
        return real, found

    def _compared(
        self, sequence: tuple[Op, ...], *, patient: bool
    ) -> tuple[list[OracleStep], Divergence | None]:
        real = self.real.run(sequence, patient=patient)
        return real, compare.first_divergence(sequence, real, self.model.run(sequence))

    def shrink(self, found: Divergence, results: list[int]) -> Divergence:
        """Return a shortest divergence of the same signature that can be found."""

        def fails(sequence: tuple[Op, ...]) -> bool:
            try:
                other = self.diverge(sequence)
            except Lost:
                return False
            return (
                other is not None
                and other.signature == found.signature
                and other.at == len(sequence) - 1
            )

        short = shrink(found.sequence, results, fails)
        return self.diverge(short) or found


def slice_seed(seed: int, number: int) -> int:
    """Return the seed of slice `number` of a run."""
    return seed * 1_000_003 + number


_BENCH: list[Bench] = []


def _enter(cpus: Queue[int]) -> None:
    """Start a job: one CPU for it and its bare process, which run in turns anyway.

    The model runs so many protocols that plain forms are worth it.
    """
    os.sched_setaffinity(0, {cpus.get()})
    PLAIN_FORMS.runs_left = 0


def _work(make_model: SideMaker, scope: Scope, seed: int) -> Report:
    """Do a slice; what is known of texts from then on is nothing to collect.

    A sequence leaves no garbage in cycles, so the collector need not look at what the imports left,
    nor at what a slice leaves.
    """
    if not _BENCH:
        _BENCH.append(Bench(make_model, scope))
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000)
    report = _BENCH[0].slice(seed)
    gc.freeze()
    return report


def run(
    make_model: SideMaker,
    *,
    seconds: float,
    seed: int,
    jobs: int = 1,
    scope: Scope = EVERYTHING,
) -> Iterator[Report]:
    """Run slices for so many seconds of wall time; yield the sum after each one."""
    cpus: Queue[int] = multiprocessing.Queue()
    for _, cpu in zip(range(jobs), cycle(sorted(os.sched_getaffinity(0), reverse=True))):
        cpus.put(cpu)
    with pool(jobs, "fork", _enter, (cpus,)) as workers:
        yield from _slices(
            lambda one: workers.submit(_work, make_model, scope, one), jobs, seconds, seed
        )


def _slices(
    submit: Callable[[int], Future[Report]], at_once: int, seconds: float, seed: int
) -> Iterator[Report]:
    """Have slices done for so long, so many at once; yield the sum after each one."""
    total, number, pending = Report(), 0, set[Future[Report]]()
    deadline = time.monotonic() + seconds
    while True:
        while len(pending) < at_once and time.monotonic() < deadline:
            pending.add(submit(slice_seed(seed, number)))
            number += 1
        if not pending:
            return
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            total.merge(future.result())
        yield total


_IN_FLIGHT = 2
"""Slices that are sent to a worker process: the next is there when one is done."""
_OWNER = ThreadPoolExecutor(1)
"""Of a cluster's worker process: the one thread that has both sides, with which the bare process
would end."""
_ON_WORKER: dict[tuple[SideMaker, Scope], Bench] = {}


def run_on(
    cluster: Cluster, make_model: SideMaker, *, seconds: float, seed: int, scope: Scope = EVERYTHING
) -> Iterator[Report]:
    """Run slices on a cluster for so many seconds, each worker's kernel being judged.

    Raises UserError where the workers' kernels are not one release, or can't be judged.
    """
    releases = sorted(set(cluster.each(platform.release)))
    if len(releases) > 1:
        raise UserError(
            f"the cluster's workers run {', '.join(releases)}: a campaign judges one kernel; give "
            "a cluster of machines with the same"
        )
    workers, at_once = cluster.futures(), _IN_FLIGHT * len(cluster.processes())
    try:
        yield from _slices(
            lambda one: workers.submit(_work_there, make_model, scope, one), at_once, seconds, seed
        )
    finally:
        cluster.each(_leave)


def _work_there(make_model: SideMaker, scope: Scope, seed: int) -> Report:
    """Do a slice on a cluster's worker, which keeps both sides for the next."""
    return _OWNER.submit(_slice_of, make_model, scope, seed).result()


def _slice_of(make_model: SideMaker, scope: Scope, seed: int) -> Report:
    asked = make_model, scope
    if asked not in _ON_WORKER:
        _forget_all()
        _ON_WORKER[asked] = Bench(make_model, scope)
    return _ON_WORKER[asked].slice(seed)


def _leave() -> None:
    """End both sides of a cluster's worker."""
    _OWNER.submit(_forget_all).result()


def _forget_all() -> None:
    while _ON_WORKER:
        _ON_WORKER.popitem()[1].close()


def against_itself(_real: RealSide) -> Side:
    """Make a second bare process the other side: it finds what the kernel does not repeat."""
    return RealSide()
