"""What to measure: a frozen, checked description of one teardown experiment."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass, replace
from pathlib import Path

from zaplock.errors import UserError
from zaplock.experiment import FOREIGN, HOST, Experiment, between, check
from zaplock.measure import memory


@dataclass(frozen=True, slots=True)
class MeasurePlan(Experiment):
    """An experiment on this kernel, once; `timeout_s` limits it."""

    period_ns: int = 1_000_000
    timeout_s: float = 300.0

    @property
    def inside(self) -> list[str]:
        """Bystanders that are threads of the measured process."""
        return [name for name in self.bystanders if name not in FOREIGN]

    @property
    def foreign(self) -> list[str]:
        """Bystanders that are processes of their own."""
        return [name for name in self.bystanders if name in FOREIGN]

    @property
    def idle_s(self) -> float:
        """How long the bystanders run before the teardown, to learn their typical duration."""
        return max(0.3, 30 * self.period_ns / 1e9)


def choose_backing(length: int, wanted: str) -> str:
    """Return the backing for `auto`: populated memory where it fits, else the zero page."""
    if wanted != "auto":
        return wanted
    return "anonymous" if memory.fits(length, "anonymous") else "zero"


def most_vmas() -> int:
    """Return how many VMAs this kernel lets a mapping be cut into, the process's own left apart."""
    return int(Path("/proc/sys/vm/max_map_count").read_text()) - 1000


def checked(plan: MeasurePlan) -> MeasurePlan:
    """Return the plan with its backing chosen; raise UserError if it can't or mustn't run."""
    between("timeout", plan.timeout_s, 0.1, 86400)
    chosen = replace(plan, backing=choose_backing(plan.length, plan.backing))
    check(chosen, HOST._replace(most_vmas=most_vmas()))
    if chosen.backing == "thp":
        _check_thp()
    if chosen.locked:
        _check_memlock(chosen.length)
    memory.require(chosen.length, chosen.backing)
    return chosen


def _check_thp() -> None:
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not switch.exists() or "[never]" in switch.read_text():
        raise UserError(
            f"backing thp needs transparent huge pages, which are off: as root, "
            f"echo madvise > {switch}"
        )


def _check_memlock(length: int) -> None:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if os.geteuid() != 0 and limit != resource.RLIM_INFINITY and length > limit:
        raise UserError(
            f"--locked {length} is more than RLIMIT_MEMLOCK, {limit} bytes: run as root "
            "or raise `ulimit -l`"
        )
