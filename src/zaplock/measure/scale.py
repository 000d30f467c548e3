"""The workloads of `zaplock scale` on this kernel: scale.c, compiled when it is first needed.

What else runs here must not be taken for contention. So the program tells what was done in each
millisecond in which none of its threads was kept off its CPU, runs of all numbers of threads take
turns, and beside each of them stands what two machine's figures were then: what a cache line takes
from CPU to CPU, and how fast CPUs are beside each other that share nothing. Under a hypervisor
these change while one looks (virtual CPUs move between cores that have a cache in common and such
that have not), so only rounds count in which a line took about what it usually took.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zaplock.errors import UserError
from zaplock.measure.guest.build import compiled

PROGRAM = Path(__file__).with_name("scale.c")
MILLISECONDS = 60
"""How long a workload runs at a time."""
LEAST_ROUNDS, PATIENCE_S = 10, 60.0
ENOUGH = 50
"""Milliseconds that were had undisturbed, for each number of threads, until no more are wanted."""
TOO_FEW = 5
LIKE = 1.3
"""By what factor a line's way may differ from the usual in a round that counts."""
_LIMIT_S = 60

COMPUTE = "compute"
"""The workload that shares nothing."""

Rates = dict[tuple[str, int], list[float]]
"""Operations a second of all threads together in single milliseconds, by workload and threads."""


@dataclass(frozen=True)
class Round:
    """What one turn showed: rates, and a cache line's way meanwhile (None on one CPU)."""

    rates: Rates
    transfer_ns: int | None


@dataclass(frozen=True)
class Spread:
    """Operations a second: the median of undisturbed milliseconds, their quartiles, how many."""

    per_second: float
    low: float
    high: float
    milliseconds: int


@dataclass(frozen=True)
class Measured:
    """What workloads did, by name and number of threads, and what machine that was meanwhile.

    `transfer_ns`: what a cache line took from CPU to CPU, None on one CPU. `speed`: how fast each
    CPU is while all that were asked for compute, of what it is alone; below 1 where they share
    cores.
    """

    rates: dict[tuple[str, int], Spread]
    transfer_ns: int | None
    speed: float


def measure(workloads: Sequence[str], threads: Sequence[int]) -> Measured:
    """Run workloads with these numbers of threads in turn, those that have a CPU for each.

    Raises UserError without a compiler, or where this machine is so busy that nothing can be seen
    undisturbed.
    """
    wanted = [
        (name, count)
        for name in workloads
        for count in threads
        if cpus_needed(name, count) <= cpus_here()
    ]
    if not wanted:
        raise UserError(f"{workloads[0]} needs {cpus_needed(workloads[0], min(threads))} CPUs here")
    computing = [(COMPUTE, count) for count in sorted({1, max(count for _, count in wanted)})]
    rounds: list[Round] = []
    until = time.monotonic() + PATIENCE_S
    while not rounds or (
        time.monotonic() < until and not (len(rounds) >= LEAST_ROUNDS and is_enough(rounds))
    ):
        transfer_ns = round(run_once("transfer")[0]) if cpus_here() > 1 else None
        rates = {each: run_once(*each, MILLISECONDS) for each in (*wanted, *computing)}
        rounds.append(Round(rates, transfer_ns))
    return summed_up(usual(rounds))


def usual(rounds: Sequence[Round]) -> list[Round]:
    """Return the rounds in which a line took about what it took in most."""
    ways = [one.transfer_ns for one in rounds if one.transfer_ns is not None]
    if not ways:
        return list(rounds)
    middle = statistics.median_low(ways)
    return [
        one
        for one in rounds
        if one.transfer_ns is not None and middle / LIKE <= one.transfer_ns <= middle * LIKE
    ]


def is_enough(rounds: Sequence[Round]) -> bool:
    """Return whether each workload was seen undisturbed for long enough."""
    return all(len(seen) >= ENOUGH for seen in _pooled(usual(rounds)).values())


def _pooled(rounds: Sequence[Round]) -> Rates:
    return {each: [rate for one in rounds for rate in one.rates[each]] for each in rounds[0].rates}


def summed_up(rounds: Sequence[Round]) -> Measured:
    """Lay rounds together; raises UserError for what was seen too rarely."""
    pooled = _pooled(rounds)
    for (name, count), seen in pooled.items():
        if len(seen) < TOO_FEW:
            raise UserError(
                f"{name} with {count} threads had its CPUs to itself for {len(seen)} milliseconds "
                f"only, and needs {TOO_FEW}: this machine is too busy; try again"
            )
    rates = {each: _spread(seen) for each, seen in pooled.items()}
    computed = {count: rates.pop((name, count)) for name, count in pooled if name == COMPUTE}
    most = max(computed)
    ways = [one.transfer_ns for one in rounds if one.transfer_ns is not None]
    return Measured(
        rates,
        round(statistics.median(ways)) if ways else None,
        min(1.0, computed[most].per_second / computed[1].per_second / most),
    )


def _spread(seen: Sequence[float]) -> Spread:
    low, middle, high = statistics.quantiles(seen, n=4)
    return Spread(middle, low, high, len(seen))


def cpus_needed(workload: str, threads: int) -> int:
    """Return how many CPUs so many threads want: one more where somebody reads beside them."""
    return threads + (workload == "maps")


def cpus_here() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def run_once(*arguments: str | int) -> list[float]:
    """Run the program once: a workload, its threads and milliseconds; or "transfer"."""
    command = [str(compiled(PROGRAM)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
        raise UserError(f"the workload {arguments[0]} could not be run here: {reason}")
    return [float(line) for line in done.stdout.split()]
