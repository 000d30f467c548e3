"""One teardown experiment as data: what is mapped, who else is there, on which machine.

The same description is what `zaplock measure` does for real; here it is checked, and `lab.teardown`
runs it under a design.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from zaplock.errors import UserError, no_such
from zaplock.lab.profiles import Profile, predict
from zaplock.trace.quotas import CpuMax

PAGE = 4096
HUGE = 2 << 20
BACKINGS = ("anonymous", "zero", "file", "thp", "hugetlb")
BYSTANDERS = ("fault", "proc", "mmap", "gup", "madvise", "mprotect", "clone", "fork")
SIMULATED_ONLY = ("mprotect", "clone", "fork")
"""Bystanders that `zaplock measure` has not."""
ARRIVALS = 400
"""How often each bystander comes during the teardown, where no rate is given."""
SHORTEST_PERIOD_NS, LONGEST_PERIOD_NS = 20_000, 10_000_000


@dataclass(frozen=True, slots=True)
class Experiment:
    """`length` bytes of `backing` in `nr_vmas` VMAs, every page mapped, taken down by one munmap.

    Each bystander does one operation every `period_ns`, never two at a time; None lets it come
    about 400 times during the teardown, at least every 10 ms and at most every 20 us. `seed`
    decides when within its first period it begins. `hung_task_timeout_ns` is the kernel's
    /proc/sys/kernel/hung_task_timeout_secs. `cpu_max` is the quota of the
    process under study; foreign bystanders have none.
    """

    length: int
    backing: str = "anonymous"
    bystanders: tuple[str, ...] = ("fault", "proc")
    period_ns: int | None = None
    cpus: int = 8
    locked: bool = False
    nr_vmas: int = 1
    hung_task_timeout_ns: int = 120 * 10**9
    seed: int = 1
    cpu_max: CpuMax | None = None

    def period_under(self, profile: Profile) -> int:
        """Return the period of the bystanders on a machine with these costs."""
        if self.period_ns is not None:
            return self.period_ns
        hold_ns = predict(profile, self.length, self.backing, nr_vmas=self.nr_vmas)
        return min(max(hold_ns // ARRIVALS, SHORTEST_PERIOD_NS), LONGEST_PERIOD_NS)


def checked(experiment: Experiment) -> Experiment:
    """Return the experiment; raise UserError if it can't be run."""
    unit = HUGE if experiment.backing in ("thp", "hugetlb") else PAGE
    _one_of("backing", experiment.backing, BACKINGS)
    for name in experiment.bystanders:
        _one_of("bystander", name, BYSTANDERS)
    if len(set(experiment.bystanders)) < len(experiment.bystanders):
        names = ",".join(experiment.bystanders)
        raise UserError(f"bystanders {names} name one twice: name each once")
    if experiment.length < 1 or experiment.length % unit:
        raise UserError(
            f"size {experiment.length} is no positive multiple of {unit} bytes, which "
            f"{experiment.backing} memory is mapped in: round it up"
        )
    _between("cpus", experiment.cpus, 1, 4096)
    _between("vmas", experiment.nr_vmas, 1, min(65_000, experiment.length // unit))
    _between("hung task timeout in nanoseconds", experiment.hung_task_timeout_ns, 1, 1 << 60)
    if experiment.cpu_max is not None:
        _between("quota of cpu.max in nanoseconds", experiment.cpu_max.quota_ns, 10**6, 10**12)
        _between("period of cpu.max in nanoseconds", experiment.cpu_max.period_ns, 10**6, 10**9)
    if experiment.period_ns is not None:
        _between("period in nanoseconds", experiment.period_ns, 1_000, 10**12)
    return experiment


def beside(experiment: Experiment, bystanders: Sequence[str]) -> Experiment:
    """Return the same experiment with these bystanders."""
    return replace(experiment, bystanders=tuple(bystanders))


def _one_of(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise no_such(what, value, known)


def _between(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UserError(f"{what} {value} must lie between {least} and {most}")
