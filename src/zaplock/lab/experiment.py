"""An experiment as it is simulated: on which machine, and how often bystanders come.

What is mapped and beside whom stands in `zaplock.experiment`; `lab.teardown` runs it under a
design.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from zaplock.experiment import BYSTANDERS, Experiment, Venue, between, check
from zaplock.lab.bystanders import OPERATIONS
from zaplock.lab.profiles import Profile, predict

ARRIVALS = 400
"""How often each bystander comes during the teardown, where no period is given."""
SHORTEST_PERIOD_NS, LONGEST_PERIOD_NS = 20_000, 10_000_000
MOST_ARRIVALS = 2_000
"""Beside a teardown of hours each bystander samples it so often, and not every 10 ms."""
SIMULATION = Venue("in the simulation", ("munmap",), tuple(OPERATIONS), most_vmas=65_000)
SIMULATED_ONLY = tuple(name for name in OPERATIONS if name not in BYSTANDERS)
"""Bystanders that `zaplock measure` has not."""


@dataclass(frozen=True, slots=True)
class SimulatedExperiment(Experiment):
    """One munmap on a machine with `cpus` CPUs.

    Without a `period_ns` each bystander comes about 400 times during the teardown, at least every
    10 ms and at most every 20 us; but not more than 2,000 times, since all that it would meet in
    a hold of hours is that same hold. `seed` decides when within its first period it begins.
    `hung_task_timeout_ns` is the kernel's /proc/sys/kernel/hung_task_timeout_secs.
    """

    cpus: int = 8
    hung_task_timeout_ns: int = 120 * 10**9
    seed: int = 1

    def period_under(self, profile: Profile) -> int:
        """Return the period of the bystanders on a machine with these costs."""
        if self.period_ns is not None:
            return self.period_ns
        hold_ns = predict(profile, self.length, self.backing, nr_vmas=self.nr_vmas)
        longest_ns = max(LONGEST_PERIOD_NS, hold_ns // MOST_ARRIVALS)
        return min(max(hold_ns // ARRIVALS, SHORTEST_PERIOD_NS), longest_ns)

    def is_sampled_under(self, profile: Profile) -> bool:
        """Say whether bystanders come more seldom than every 10 ms, so that stalls are sampled."""
        return self.period_ns is None and self.period_under(profile) > LONGEST_PERIOD_NS


def checked(experiment: SimulatedExperiment) -> SimulatedExperiment:
    """Return the experiment; raise UserError if it can't be run."""
    check(experiment, SIMULATION)
    between("cpus", experiment.cpus, 1, 4096)
    between("hung task timeout in nanoseconds", experiment.hung_task_timeout_ns, 1, 1 << 60)
    return experiment


def beside(experiment: SimulatedExperiment, bystanders: Sequence[str]) -> SimulatedExperiment:
    """Return the same experiment with these bystanders."""
    return replace(experiment, bystanders=tuple(bystanders))
