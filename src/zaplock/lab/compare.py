"""Compare designs: the same teardown beside the same bystanders under each of them.

A comparison has one or more *blocks*, each with its own set of bystanders. The first two of the
usual three differ in one thing: `mmap`, which asks for the lock for write. What that one queued
writer does to readers is the point of the second block. The third has writers alone: who else
changes the address space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zaplock.designs.rules_read import agrees, observe, values_read
from zaplock.extras import needed
from zaplock.lab.experiment import SimulatedExperiment, beside, checked
from zaplock.lab.leaps import is_ours
from zaplock.lab.profiles import Profile
from zaplock.lab.teardown import Teardown, run
from zaplock.protocols.design import Design
from zaplock.trace.teardown_outcome import TeardownOutcome

if TYPE_CHECKING:
    import polars

    from zaplock.lab.brk1 import Brk1

BLOCKS = (("fault", "proc"), ("fault", "proc", "mmap"), ("mmap", "fork", "mprotect", "clone"))
"""Readers alone, readers with a writer among them, and writers alone."""
SMALL = 64 << 10
"""Up to which size an unmap is small: there a call's own cost and its locks are what counts."""

Blocks = Sequence[Sequence[str]]


@dataclass(frozen=True, repr=False)
class Comparison:
    """Every design's teardown, block by block, and what the kernel at hand really did.

    `measured` has an outcome for each block that can be measured, or is None where nothing was.
    `brk1`: how fast many threads unmap as little as that, where it is little.
    """

    experiment: SimulatedExperiment
    profile: Profile
    blocks: tuple[tuple[str, ...], ...]
    runs: tuple[Teardown, ...]
    measured: tuple[TeardownOutcome, ...] | None = None
    brk1: tuple[Brk1, ...] = ()

    def __repr__(self) -> str:
        blocks = "; ".join(",".join(block) for block in self.blocks)
        return (
            f"{type(self).__name__}({self.experiment.length} bytes of {self.experiment.backing}, "
            f"{len({row.design for row in self.rows})} designs beside {blocks})"
        )

    @property
    def rows(self) -> tuple[TeardownOutcome, ...]:
        """The simulated outcomes, block by block, in the order of the designs."""
        return tuple(one.outcome for one in self.runs)

    def block(self, bystanders: Sequence[str]) -> list[TeardownOutcome]:
        """List the outcomes of one block, the measured one last."""
        rows = [*self.rows, *(self.measured or ())]
        return [row for row in rows if row.bystanders == tuple(bystanders)]

    def to_json(self) -> dict[str, object]:
        """Return the comparison as plain values: lengths in bytes, times in nanoseconds."""
        measured = self.measured
        return {
            "size": self.experiment.length,
            "profile": self.profile.name,
            "rows": [row.to_json() for row in self.rows],
            "brk1": [row.to_json() for row in self.brk1],
            "measured": None if measured is None else [row.to_json() for row in measured],
        }

    @property
    def frame(self) -> polars.DataFrame:
        """The table: a row for each outcome, times in nanoseconds, stalls as their maximum."""
        with needed("a frame"):
            import polars

        names = dict.fromkeys(name for block in self.blocks for name in block)
        rows = [
            {
                "design": row.design,
                "measured": row in (self.measured or ()),
                "bystanders": ",".join(row.bystanders),
                "exclusive_hold_ns": row.exclusive_hold_ns,
                "shared_hold_ns": row.shared_hold_ns,
                "munmap_ns": row.munmap_ns,
                **{
                    f"{name}_stall_ns": row.stalls[name].max_ns if name in row.stalls else None
                    for name in names
                },
                "hung_tasks": row.hung_tasks,
                "note": row.note,
            }
            for row in (*self.rows, *(self.measured or ()))
        ]
        return polars.DataFrame(rows, infer_schema_length=None)


def compare(
    designs: Sequence[Design],
    experiment: SimulatedExperiment,
    profile: Profile,
    *,
    blocks: Blocks = BLOCKS,
    log_calls: bool = False,
    progress: Callable[[str], None] = lambda _design: None,
) -> Comparison:
    """Run an experiment under each design beside each block of bystanders.

    A run is a function of the rules that it asked for, so a design that has the same ones as
    another has the other's run, under its own name; not so one with protocols of somebody's own,
    which may ask for more than rules. `progress` is told the design that is run next. Raises
    UserError where the experiment can't be.
    """
    plans = [checked(beside(experiment, block)) for block in blocks]
    runs: list[Teardown] = []
    for plan in plans:
        found: list[tuple[Mapping[str, Any], Teardown]] = []
        for design in designs:
            progress(design.name)
            alike = next((one for rules, one in found if agrees(design, rules)), None)
            if alike is not None and is_ours(design):
                runs.append(alike.named(design))
                continue
            observed = observe(design)
            runs.append(run(observed, plan, profile, log_calls=log_calls))
            found.append((values_read(observed), runs[-1]))
    return Comparison(
        experiment, profile, tuple(plan.bystanders for plan in plans), tuple(runs),
        brk1=_brk1(designs, experiment, profile),
    )  # fmt: skip


def _brk1(
    designs: Sequence[Design], experiment: SimulatedExperiment, profile: Profile
) -> tuple[Brk1, ...]:
    if experiment.length > SMALL or experiment.backing != "anonymous":
        return ()
    from zaplock.lab.brk1 import brk1

    seed, cpus = experiment.seed, experiment.cpus
    return tuple(brk1(designs, profile, experiment.length, cpus=cpus, seed=seed))
