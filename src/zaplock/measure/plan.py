"""What to measure: a frozen, checked description of one teardown experiment."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zaplock.errors import UserError, no_such
from zaplock.measure import mappings, memory, teardown
from zaplock.measure.bystanders import FOREIGN, INSIDE, NAMES
from zaplock.trace.quotas import CpuMax

MAX_RATE = 1_000_000


@dataclass(frozen=True, slots=True)
class MeasurePlan:
    """One experiment: `length` bytes of `backing`, every page mapped, taken down once.

    `rate` is operations per second of each bystander (a closed loop: never more than one at a
    time); `timeout_s` limits one repetition; `cpu_max` is the quota of the process while it tears
    down.
    """

    length: int
    backing: str = "anonymous"
    teardown: str = "munmap"
    bystanders: tuple[str, ...] = ("fault", "proc")
    rate: int = 1000
    locked: bool = False
    nr_vmas: int = 1
    timeout_s: float = 300.0
    cpu_max: CpuMax | None = None

    @property
    def inside(self) -> list[str]:
        """Bystanders that are threads of the measured process."""
        return [name for name in self.bystanders if name in INSIDE]

    @property
    def foreign(self) -> list[str]:
        """Bystanders that are processes of their own."""
        return [name for name in self.bystanders if name in FOREIGN]

    @property
    def period_ns(self) -> int:
        """Time from one operation's begin to the next."""
        return 10**9 // self.rate

    @property
    def idle_s(self) -> float:
        """How long the bystanders run before the teardown, to learn their typical duration."""
        return max(0.3, 30 / self.rate)


def _one_of(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise no_such(what, value, known)


def _between(what: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise UserError(f"{what} {value} must lie between {least} and {most}")


def choose_backing(length: int, wanted: str) -> str:
    """Return the backing for `auto`: populated memory where it fits, else the zero page."""
    if wanted != "auto":
        return wanted
    return "anonymous" if memory.fits(length, "anonymous") else "zero"


def checked(plan: MeasurePlan) -> MeasurePlan:
    """Return the plan with its backing chosen; raise UserError if it can't or mustn't run."""
    _one_of("backing", plan.backing, ("auto", *mappings.BACKINGS))
    _one_of("teardown", plan.teardown, tuple(teardown.WAYS))
    for name in plan.bystanders:
        _one_of("bystander", name, NAMES)
    if len(set(plan.bystanders)) < len(plan.bystanders):
        raise UserError(f"bystanders {','.join(plan.bystanders)} name one twice: name each once")
    _between("rate", plan.rate, 1, MAX_RATE)
    _between("timeout", plan.timeout_s, 0.1, 86400)
    chosen = replace(plan, backing=choose_backing(plan.length, plan.backing))
    _check_shape(chosen)
    memory.require(chosen.length, chosen.backing)
    return chosen


def _check_shape(plan: MeasurePlan) -> None:
    unit = mappings.page_size(plan.backing)
    if plan.length <= 0 or plan.length % unit:
        raise UserError(
            f"size {plan.length} is not a positive multiple of {unit},"
            f" the page size of {plan.backing} backing"
        )
    limit = int(Path("/proc/sys/vm/max_map_count").read_text()) - 1000
    _between("--vmas", plan.nr_vmas, 1, min(limit, plan.length // unit))
    why = teardown.refusal(plan.teardown, plan.backing, plan.nr_vmas)
    if why:
        raise UserError(why)
    if plan.backing == "thp":
        _check_thp()
    if plan.locked:
        _check_memlock(plan.length)


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
