"""Check one scenario under one design: the verdict, and a schedule that shows a break.

A token names all that it takes to see a counterexample again: `expand@linux-4.20~a12b3a`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from zaplock.check.closed_system import configuration
from zaplock.check.mutations import mutant
from zaplock.check.pairs import SIDES, pair, pair_names
from zaplock.check.scenarios import Scenario, read_scenario, shipped_scenarios
from zaplock.designs import SHIPPED, load
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.easiest import easiest_counterexample
from zaplock.engines.checking.exhaustive import SearchLimits, SearchProgress, explore
from zaplock.engines.checking.parallel import explore_split
from zaplock.engines.checking.reference import explore_plainly
from zaplock.engines.checking.sampled import sample
from zaplock.engines.checking.schedule import spell, unspell
from zaplock.engines.checking.transitions import TransitionTable
from zaplock.errors import UserError
from zaplock.model.violations import Invariant, Violation
from zaplock.protocols.design import Design

PROVED, BROKEN, NOT_EXHAUSTED, VACUOUS = "proved", "broken", "not-exhausted", "vacuous"
EXIT_CODES = {PROVED: 0, BROKEN: 1, NOT_EXHAUSTED: 3, VACUOUS: 3}


@dataclass(frozen=True)
class CheckResult:
    """What a check found out.

    violations: one of each that was met, where all were asked for, else the first. schedule: the
    easiest that shows `violation`; groups: how many steps each of its transitions is of. states:
    distinct ones visited (runs, for the sampler). reference: how the design is asked for, where
    that is not its name.
    """

    scenario: str
    design: str
    verdict: str
    states: int
    seconds: float
    violation: Violation | None = None
    violations: tuple[Violation, ...] = ()
    schedule: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    preemptions: int = 0
    fair: bool = False
    why: str = ""
    reference: str = ""

    @property
    def token(self) -> str:
        """Name this counterexample for `zaplock check --replay`."""
        if self.violation is None:
            return ""
        rule = "~fair" if self.fair else ""
        schedule = spell(self.schedule, self.groups)
        return f"{self.scenario}@{self.reference or self.design}{rule}~{schedule}"

    @property
    def invariants(self) -> tuple[str, ...]:
        """Name the rules that were broken, each once."""
        return tuple(dict.fromkeys(violation.invariant.name for violation in self.violations))


def find_scenario(name: str) -> Scenario:
    """Return a shipped scenario, a pair such as "munmap+fault", or that of a TOML file."""
    shipped = shipped_scenarios()
    if name in shipped:
        return shipped[name]
    left, plus, right = name.partition("+")
    if plus:
        for candidate in (name, f"{right}+{left}"):
            if candidate in pair_names():
                return pair(candidate)
        raise UserError(f"no pair {name!r}; both sides have to be one of {', '.join(SIDES)}")
    if name.endswith(".toml"):
        scenario = read_scenario(Path(name))
        return msgspec.structs.replace(scenario, name=name)
    known = ", ".join(shipped)
    raise UserError(
        f"no scenario {name!r}; there are {known}, pairs such as munmap+fault, or a .toml"
    )


def find_design(name: str) -> Design:
    """Return a shipped design, a user's FILE.py:NAME, or a mutant DESIGN/MUTATION."""
    found = mutant(name)
    return found if found is not None else load(name)


def _shipped(design: str) -> bool:
    """Say whether a name stands for zaplock's own; else it would be a file's (`designs.load`)."""
    return design.partition("/")[0] in SHIPPED or ".py:" not in design


def replaying(token: str, design: str) -> str:
    """Return the command that shows a counterexample again."""
    file = "" if _shipped(design) else f" --design {shlex.quote(design)}"
    return f"zaplock check --replay {shlex.quote(token)}{file}"


def closed_system(scenario: Scenario, design: Design, fair: bool = False) -> Configuration:
    """Make what the engines run, with the fair queue where asked for."""
    if fair and not scenario.fair:
        scenario = msgspec.structs.replace(scenario, fair=True)
    return configuration(scenario, design)


def check(
    scenario: Scenario,
    design: Design,
    limits: SearchLimits = SearchLimits(),
    *,
    fair: bool = False,
    all_violations: bool = False,
    jobs: int = 1,
    exact: bool = False,
    progress: Callable[[SearchProgress], None] | None = None,
) -> CheckResult:
    """Explore every interleaving; where one breaks a rule, find the easiest that does."""
    system = closed_system(scenario, design, fair)
    fair = fair or scenario.fair
    if exact:
        verdict = explore_plainly(system, limits, exact=True)
    elif jobs > 1:
        verdict = explore_split(
            system, jobs, limits, all_violations=all_violations, progress=progress
        )
    else:
        verdict = explore(system, limits, all_violations=all_violations, progress=progress)
    why = verdict.limit or "; ".join(f"never: {name}" for name in verdict.never)
    found = CheckResult(
        scenario.name, design.name, verdict.answer, verdict.states, verdict.seconds,
        violations=verdict.violations, fair=fair, why=why,
    )  # fmt: skip
    return explain(found, system, limits) if verdict.answer == BROKEN else found


def explain(
    found: CheckResult,
    system: Configuration,
    limits: SearchLimits,
    invariant: Invariant | None = None,
) -> CheckResult:
    """Add the easiest counterexample, of one invariant if asked for."""
    table = TransitionTable(system)
    try:
        easiest = easiest_counterexample(system, limits, invariant=invariant, table=table)
    finally:
        table.close()
    if easiest is None:
        return found
    return replace(
        found,
        violation=easiest.violation,
        violations=found.violations or (easiest.violation,),
        schedule=easiest.schedule,
        groups=easiest.groups,
        preemptions=easiest.preemptions,
    )


def sample_check(
    scenario: Scenario,
    design: Design,
    runs: int,
    *,
    seed: int = 0,
    depth: int | None = None,
    fair: bool = False,
    limits: SearchLimits = SearchLimits(),
    progress: Callable[[int, float], None] | None = None,
) -> CheckResult:
    """Try random interleavings; never a proof, so what isn't broken is not exhausted."""
    system = closed_system(scenario, design, fair)
    drawn = sample(system, runs, seed=seed, depth=depth, limits=limits, progress=progress)
    broken = drawn.violation is not None
    return CheckResult(
        scenario.name,
        design.name,
        BROKEN if broken else NOT_EXHAUSTED,
        drawn.runs,
        drawn.seconds,
        violation=drawn.violation,
        violations=(drawn.violation,) if drawn.violation is not None else (),
        schedule=drawn.schedule,
        fair=fair or scenario.fair,
        why="" if broken else f"{drawn.runs} random runs",
    )


@dataclass(frozen=True)
class Token:
    """A token, read: what to run and in which order."""

    scenario: Scenario
    design: Design
    reference: str
    """How the design is asked for."""
    fair: bool
    schedule: tuple[int, ...]
    groups: tuple[int, ...]

    def system(self) -> Configuration:
        """Make the closed system that the schedule belongs to."""
        return closed_system(self.scenario, self.design, self.fair)


def read_token(text: str, designs: Collection[str] = ()) -> Token:
    """Read what `Found.token` wrote; raises UserError where it is none.

    A design that is a file's (FILE.py:NAME) runs that file, so a token alone, which somebody may
    have sent, doesn't name one: it must be among `designs`, which the user gives.
    """
    rest, tilde, schedule = text.rpartition("~")
    fair = rest.endswith("~fair")
    scenario, at, design = rest.removesuffix("~fair").partition("@")
    if not tilde or not at:
        raise UserError(f"token {text!r} is not SCENARIO@DESIGN~SCHEDULE as a check prints it")
    if not _shipped(design) and design not in designs:
        raise UserError(
            f"token {text!r} would run the file of {design!r}: if you trust that file, "
            f"give --design {design} as well"
        )
    found = find_scenario(scenario)
    system = closed_system(found, find_design(design), fair)
    return Token(found, find_design(design), design, fair, *unspell(schedule, len(system.programs)))
