"""Calibration: the units of a cost profile, measured on this machine in repeated rounds.

A round is a fresh process that runs every experiment once (zaplock.measure.calibration). Each round
is derived by itself; a unit is the median over the rounds, its spread their least and greatest. So
a round that was disturbed spoils nothing, and the spread shows how far the figures can be trusted.

The figures hold for 4 KiB pages and an otherwise idle machine. What they don't hold: the cost of
memory that a hypervisor still has to find, NUMA distances, and contention inside the kernel.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from zaplock.errors import UserError
from zaplock.experiment import PAGE
from zaplock.measure import memory
from zaplock.measure.calibration import derive
from zaplock.measure.json_children import Child, ChildError
from zaplock.measure.measure import measure
from zaplock.measure.plan import most_vmas
from zaplock.trace.teardown_outcome import TeardownOutcome

WORKER = "zaplock.measure.calibration.worker"
ROUND_LIMIT_S = 120.0
_VMAS, _REPEAT = 32_768, 3
"""VMAs of a page each, so many that no cache holds them: of 8,192 one is freed in 0.5 us, of 32,768
and of 60,000 in 0.75 us."""
STEPS = 3
"""Progress lines in each round."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The units of this machine in nanoseconds, with spread, notes and provenance."""

    costs: Mapping[str, float]
    spread: Mapping[str, tuple[float, float]]
    notes: Mapping[str, str]
    kernel: str
    cpu: str
    rounds: int
    scale_mib: int


def calibrate(
    *,
    rounds: int = 5,
    scale_mib: int = 128,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Calibration:
    """Measure this machine; `progress` is told the steps done and the steps in all.

    The largest experiment takes eight times `scale_mib` MiB. Raises UserError when that doesn't fit
    or a round takes longer than two minutes.
    """
    if not 1 <= rounds <= 100:
        raise UserError(f"rounds {rounds} must lie between 1 and 100")
    if not 16 <= scale_mib <= 16384:
        raise UserError(f"scale {scale_mib} MiB must lie between 16 and 16384")
    memory.require(9 * scale_mib << 20, "anonymous")
    raws: list[dict[str, float]] = []

    def told(step: int) -> None:
        progress(len(raws) * STEPS + step, rounds * STEPS)

    while len(raws) < rounds:
        raws.append(_round(scale_mib, told))
    return _with_vma_holds(merged(raws, scale_mib))


def _least_cpu_ns(runs: Sequence[TeardownOutcome]) -> int:
    return min(took for run in runs if (took := run.extra["cpu_ns"]) is not None)


def _with_vma_holds(found: Calibration) -> Calibration:
    """Tell what a VMA costs under the exclusive lock from what it costs after, where it is seen.

    Many populated VMAs are unmapped at once and the same pages in one: the exclusive hold is the
    tracepoints', its least since others' turns on the CPU are in it. Without root it stays a half.
    """
    nr_vmas = min(_VMAS, most_vmas())
    length = nr_vmas * PAGE
    many = measure(length, backing="anonymous", bystanders=(), nr_vmas=nr_vmas, repeat=_REPEAT)
    holds = [one.exclusive_hold_ns for one in many if one.exclusive_hold_ns is not None]
    if not holds:
        return found
    one = measure(length, backing="anonymous", bystanders=(), repeat=_REPEAT, trace=False)
    beyond = _least_cpu_ns(many) - _least_cpu_ns(one)
    detach = [hold / nr_vmas for hold in holds]
    free = max(0.0, beyond / nr_vmas - min(detach))
    return replace(
        found,
        costs={**found.costs, "vma_detach": round(min(detach), 2), "vma_free": round(free, 2)},
        spread={
            **found.spread,
            "vma_detach": (round(min(detach), 2), round(max(detach), 2)),
            "vma_free": (round(free, 2), round(free, 2)),
        },
        notes={
            **found.notes,
            "vma_detach": f"the exclusive hold of a munmap of {nr_vmas:,} populated VMAs, for each",
            "vma_free": "what such a VMA adds to a munmap beyond vma_detach",
        },
    )


def _round(scale_mib: int, progress: Callable[[int], None]) -> dict[str, float]:
    deadline = time.monotonic() + ROUND_LIMIT_S
    with Child(WORKER, {"scale_mib": scale_mib}) as worker:
        for step in range(STEPS):
            try:
                answer = worker.receive(deadline)
            except ChildError:
                if time.monotonic() < deadline:
                    raise
                raise ChildError(
                    f"a round of experiments of {scale_mib} MiB took over {ROUND_LIMIT_S:g} s: "
                    "give a smaller --scale, or wait until this machine does less"
                ) from None
            progress(step + 1)
    raw: dict[str, float] = answer["raw"]
    return raw


def merged(raws: list[dict[str, float]], scale_mib: int = 0) -> Calibration:
    """Return the median and the spread of each unit over the rounds."""
    by_round = [derive.units(raw) for raw in raws]
    found = {unit: [units[unit] for units in by_round] for unit in by_round[0]}
    return Calibration(
        costs={unit: round(median(values), 2) for unit, values in found.items()},
        spread={unit: (round(min(v), 2), round(max(v), 2)) for unit, v in found.items()},
        notes=derive.notes(raws[0]),
        kernel=platform.release(),
        cpu=cpu_name(),
        rounds=len(raws),
        scale_mib=scale_mib,
    )


def cpu_name() -> str:
    """Return the CPU's name and the number of CPUs online."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()
