"""Check one scenario under one design: the verdict, and a schedule that shows a break.

A token names all that it takes to see a counterexample again: `expand@linux-4.20~a12b3a`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add, or_
from pathlib import Path
from typing import Final, Literal

import msgspec

from zaplock import protocols
from zaplock.check.closed_system import configuration
from zaplock.check.mutations import mutant, require_known_names
from zaplock.check.operations import KINDS
from zaplock.check.own_operations import invariants_named, kinds_of, operations_named
from zaplock.check.pairs import SIDES, pair, pair_names
from zaplock.check.scenarios import (
    Scenario,
    expected_results,
    litmus_tests,
    parse_operation,
    read_scenario,
    shipped_scenarios,
    validated,
)
from zaplock.designs import load
from zaplock.designs.own_files import is_reference, named_in_file
from zaplock.engines.checking.audit import Audit
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.easiest_counterexample import easiest_counterexample
from zaplock.engines.checking.exhaustive import (
    SearchLimits,
    SearchProgress,
    Verdict,
    answer_of,
    explore,
)
from zaplock.engines.checking.liveness import Lasso, find_livelock
from zaplock.engines.checking.reference import explore_plainly
from zaplock.engines.checking.sampled import ScheduleSample, sample
from zaplock.engines.checking.schedule import replay, spell
from zaplock.errors import ProtocolError, UserError, no_such
from zaplock.model.violations import Invariant, Violation
from zaplock.model.words import MemoryModel
from zaplock.protocols.design import Design

PROTOCOLS: Final = str(Path(protocols.__file__).parent)
"""Where zaplock's own protocols are."""

PROVED, BROKEN, NOT_EXHAUSTED, VACUOUS = "proved", "broken", "not-exhausted", "vacuous"
FAILED = "failed"
EXIT_CODES = {PROVED: 0, BROKEN: 1, NOT_EXHAUSTED: 3, VACUOUS: 3, FAILED: 4}

SearchElsewhere = Callable[
    [bool, SearchLimits, bool, Callable[[SearchProgress], None] | None], Verdict
]
"""Searches in place of this process: with which queue, within which limits, for all violations."""

Queue = Literal["both", "any", "fair"]
"""Who may be next to a lock: any waiter, whom the fair queue of the design's kernel lets in, or
both rules, one after the other: each shows what the other hides."""


@dataclass(frozen=True)
class Added:
    """What a check adds to its scenarios.

    operations, invariants: as FILE.py:NAME. failing: how many allocations may fail, if not as many
    as the scenario says.
    """

    operations: tuple[str, ...] = ()
    invariants: tuple[str, ...] = ()
    failing: int | None = None


@dataclass(frozen=True)
class CheckResult:
    """What a check found out.

    violations: one of each that was met, where all were asked for, else the first. states: distinct
    ones visited, of both queue rules (runs, for the sampler). queues: the rules that were searched.
    schedule: the easiest that shows `violation`, None where none was found within the limits;
    groups: how many steps each of its transitions is of; cycle: how many steps at its end repeat
    for ever; fair: in which queue; memory: of which kind; failing: so many allocations.
    reference: how the design is asked for, where that is not its name. unmet: expectations of the
    scenario that no interleaving met. never_run: lines of the user's code, or of zaplock's
    protocols if asked for, that none ran. audit:
    what was done again.
    """

    scenario: str
    design: str
    verdict: str
    states: int
    seconds: float
    violation: Violation | None = None
    violations: tuple[Violation, ...] = ()
    schedule: tuple[int, ...] | None = None
    groups: tuple[int, ...] = ()
    cycle: int = 0
    preemptions: int = 0
    fair: bool = False
    memory: MemoryModel = "sc"
    failing: int = 0
    why: str = ""
    reference: str = ""
    queues: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()
    never_run: tuple[str, ...] = ()
    audit: Audit = field(default_factory=Audit)

    @property
    def token(self) -> str:
        """Name this counterexample for `zaplock check --replay`."""
        if self.schedule is None:
            return ""
        rule = spell_rules(self.fair, self.memory, self.failing)
        schedule = spell(self.schedule, self.groups, self.cycle)
        return f"{self.scenario}@{self.reference or self.design}{rule}~{schedule}"

    @property
    def invariants(self) -> tuple[str, ...]:
        """Name the rules that were broken, each once."""
        return tuple(dict.fromkeys(violation.invariant.name for violation in self.violations))


def spell_rules(fair: bool, memory: MemoryModel, failing: int) -> str:
    """Write what a token says between its design and its schedule."""
    parts = ["fair"] if fair else []
    parts += [memory] if memory != "sc" else []
    parts += [f"failing{failing}"] if failing else []
    return "".join(f"~{part}" for part in parts)


def find_scenario(name: str, added: Added = Added(), memory: MemoryModel | None = None) -> Scenario:
    """Return a shipped scenario, a pair such as "munmap+fault", or a file's, with what is added.

    A file is a TOML, or FILE.py:NAME. `memory` is put in the place of the scenario's own.
    """
    found = _scenario_of(name)
    if memory is not None:
        found = msgspec.structs.replace(found, memory=memory)
    if added.failing is not None:
        found = msgspec.structs.replace(found, failing_allocations=added.failing)
    if not added.operations and not added.invariants:
        return found
    operations = operations_named(added.operations)
    done = {parse_operation(text).name for spec in found.task for text in spec.do}
    for reference, one in zip(added.operations, operations):
        if one.name not in done:
            raise UserError(
                f"--operation {reference}: no task of {name!r} does {one.name!r}; write it into "
                "the scenario, or leave the option out"
            )
    return msgspec.structs.replace(
        found,
        operations=(*found.operations, *operations),
        invariants=(*found.invariants, *invariants_named(added.invariants)),
    )


def _scenario_of(name: str) -> Scenario:
    shipped = {**shipped_scenarios(), **litmus_tests()}
    if name in shipped:
        return shipped[name]
    if is_reference(name):
        return validated(named_in_file(name, Scenario, "a Scenario"), name)
    left, plus, right = name.partition("+")
    if plus:
        for candidate in (name, f"{right}+{left}"):
            if candidate in pair_names():
                return pair(candidate)
        raise UserError(f"no pair {name!r}; both sides have to be one of {', '.join(SIDES)}")
    if name.endswith(".toml"):
        scenario = read_scenario(Path(name))
        return msgspec.structs.replace(scenario, name=name)
    also = ", pairs such as munmap+fault, a .toml, or FILE.py:NAME for your own"
    raise no_such("scenario", name, shipped, also=also, listed="'zaplock check --list'")


def find_design(name: str) -> Design:
    """Return a shipped design, a user's FILE.py:NAME, or a mutant DESIGN/MUTATION."""
    found = mutant(name)
    return found if found is not None else load(name)


def closed_system(scenario: Scenario, design: Design, fair: bool = False) -> Configuration:
    """Make what the engines run, with the fair queue where asked for."""
    require_known_names(design, KINDS if scenario.part else kinds_of(scenario))
    if fair and not scenario.fair:
        scenario = msgspec.structs.replace(scenario, fair=True)
    return configuration(scenario, design)


def rules_of(scenario: Scenario, queue: Queue) -> tuple[bool, ...]:
    """Return which queue rules a check searches: fair or not, in order."""
    if scenario.fair or queue == "fair":
        return (True,)
    return (False,) if queue == "any" else (False, True)


def check(
    scenario: Scenario,
    design: Design,
    limits: SearchLimits = SearchLimits(),
    *,
    queue: Queue = "both",
    all_violations: bool = False,
    jobs: int = 1,
    exact: bool = False,
    disk: Path | None = None,
    unreached: bool = False,
    elsewhere: SearchElsewhere | None = None,
    progress: Callable[[SearchProgress], None] | None = None,
) -> CheckResult:
    """Explore every interleaving; where one breaks a rule, find the easiest that does.

    Under the fair queue too, unless `queue` says otherwise. The limits are for everything together,
    the search for the easiest counterexample included. disk: a directory for states that don't fit
    into memory. jobs: how many cores explore wide levels in memory, if there are as many.
    elsewhere: explores the states in place of this process. unreached: look which lines of the
    protocols nothing runs, too.
    """
    jobs = min(jobs, len(os.sched_getaffinity(0)))
    deadline = time.monotonic() + limits.seconds
    verdicts: list[tuple[bool, Verdict]] = []
    for fair in rules_of(scenario, queue):
        system = closed_system(scenario, design, fair)
        if unreached:
            system = replace(system, covers=PROTOCOLS)
        left = what_is_left(limits, verdicts, deadline)
        if elsewhere is not None:
            verdict = elsewhere(fair, left, all_violations, progress)
        elif exact:
            verdict = explore_plainly(system, left, exact=True)
        elif disk is not None:
            from zaplock.engines.checking.on_disk import DiskLimits, explore_on_disk  # and numpy

            verdict = explore_on_disk(
                system, DiskLimits(disk), left, all_violations=all_violations, progress=progress
            )
        else:
            verdict = explore(
                system, left, all_violations=all_violations, progress=progress, jobs=jobs
            )
        verdict, lasso = with_liveness(system, verdict, left)
        verdicts.append((fair, verdict))
        if lasso is not None and not all_violations:
            return told_as_lasso(combined(scenario, design, verdicts), system, lasso)
        if verdict.violations and not all_violations:
            break
    found = combined(scenario, design, verdicts)
    if not found.violations:
        return found
    system = closed_system(scenario, design, found.fair)
    return explain(found, system, what_is_left(limits, (), deadline))


def with_liveness(
    system: Configuration, verdict: Verdict, limits: SearchLimits
) -> tuple[Verdict, Lasso | None]:
    """Look for a run that never ends, where tasks go round loops and nothing worse was met."""
    if not verdict.loops or verdict.violations or verdict.limit:
        return verdict, None
    try:
        lasso = find_livelock(system, limits)
    except TimeoutError as error:
        return replace(verdict, answer="not-exhausted", limit=f"{error} (livelocks)"), None
    if lasso is None:
        return verdict, None
    return replace(verdict, answer="broken", violations=(lasso.violation,)), lasso


def told_as_lasso(found: CheckResult, system: Configuration, lasso: Lasso) -> CheckResult:
    """Add the schedule that goes into a cycle and round it; it is run to see that it does."""
    run_again(found.scenario, system, lasso.schedule, lasso.violation, lasso.cycle)
    return replace(found, schedule=lasso.schedule, cycle=lasso.cycle)


def what_is_left(
    limits: SearchLimits, verdicts: Sequence[tuple[bool, Verdict]], deadline: float
) -> SearchLimits:
    """Return the limits less what was used of them."""
    used = sum(verdict.states for _, verdict in verdicts)
    seconds = max(0.0, deadline - time.monotonic())
    return replace(limits, states=max(0, limits.states - used), seconds=seconds)


def combined(
    scenario: Scenario, design: Design, verdicts: Sequence[tuple[bool, Verdict]]
) -> CheckResult:
    """Sum up the searches of the queue rules: the worst counts, and what neither has shown."""
    worst: str = min((verdict.answer for _, verdict in verdicts), key=WORST.index)
    broken = [one for one in verdicts if one[1].violations]
    fair = broken[0][0] if broken else verdicts[0][0]
    never = [set(verdict.never) for _, verdict in verdicts]
    missing = sorted(set.intersection(*never)) if all(never) else []
    if worst == VACUOUS and not missing:
        worst = PROVED
    limit = next((verdict.limit for _, verdict in verdicts if verdict.limit), "")
    violations = {
        (one.invariant, one.message): one for _, verdict in verdicts for one in verdict.violations
    }
    return CheckResult(
        scenario.name, design.name, worst,
        sum(verdict.states for _, verdict in verdicts),
        sum(verdict.seconds for _, verdict in verdicts),
        violation=broken[0][1].violations[0] if broken else None,
        violations=tuple(violations.values()), fair=fair, memory=scenario.memory,
        failing=scenario.failing_allocations,
        why=limit or "; ".join(f"never: {name}" for name in missing),
        queues=tuple("fair" if fair else "any" for fair, _ in verdicts),
        unmet=tuple(unmet_expectations(scenario, [verdict for _, verdict in verdicts])),
        never_run=lines_never_run([verdict for _, verdict in verdicts]),
        audit=reduce(add, (verdict.audit for _, verdict in verdicts)),
    )  # fmt: skip


WORST: Final = (BROKEN, FAILED, NOT_EXHAUSTED, VACUOUS, PROVED)


def unmet_expectations(scenario: Scenario, verdicts: Sequence[Verdict]) -> list[str]:
    """Name the results that a scenario expects and no interleaving has shown."""
    if any(verdict.answer != PROVED for verdict in verdicts):
        return []
    unmet = []
    for number, spec in enumerate(scenario.task):
        seen = [results for verdict in verdicts for results in verdict.results[number]]
        for at, text in enumerate(spec.do):
            for word, value in expected_results(text):
                if not any(results[at : at + 1] == (value,) for results in seen):
                    name = spec.name or f"task {number + 1}"
                    unmet.append(f"{name}: {text.partition('->')[0].strip()} -> {word}")
    return unmet


def lines_never_run(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """Name the lines that were looked at and that no search ran, where all of them were whole."""
    if any(verdict.answer not in (PROVED, VACUOUS) for verdict in verdicts):
        return ()
    return reduce(or_, (verdict.audit.lines for verdict in verdicts)).never_run()


def explain(
    found: CheckResult,
    system: Configuration,
    limits: SearchLimits,
    invariant: Invariant | None = None,
) -> CheckResult:
    """Add the easiest counterexample, of one invariant if asked for, within the limits.

    The verdict stands whatever becomes of this search. A schedule is run once more, in an engine
    that shares nothing with the search; raises ProtocolError where it then shows something else.
    """
    try:
        easiest = easiest_counterexample(system, limits, invariant=invariant)
    except (MemoryError, OverflowError):
        easiest = None
    if easiest is None:
        return found
    run_again(found.scenario, system, easiest.schedule, easiest.violation)
    return replace(
        found,
        violation=easiest.violation,
        violations=found.violations or (easiest.violation,),
        schedule=easiest.schedule,
        groups=easiest.groups,
        preemptions=easiest.preemptions,
    )


def run_again(
    scenario: str,
    system: Configuration,
    schedule: Sequence[int],
    expected: Violation,
    cycle: int = 0,
) -> None:
    """Run a schedule in an engine that shares nothing with whoever found it.

    Raises ProtocolError where it does not show the same. The words of a Python error may differ.
    """
    try:
        shown = replay(system, schedule, cycle).violation
        text = str(shown or "nothing")
    except ProtocolError:
        raise
    except UserError as error:  # a task that can't move, or has ended
        shown, text = None, f"that {error}"
    fails = Invariant.CODE_RUNS
    both_fail = shown is not None and shown.invariant is expected.invariant is fails
    if text != str(expected) and not both_fail:
        raise ProtocolError(
            f"the schedule {spell(schedule)} of {scenario} has shown {expected}, and shows {text} "
            "when it is run alone: something that is no cell has a say in it"
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
    if drawn.violation is not None:
        run_again(scenario.name, system, drawn.schedule, drawn.violation)
    return CheckResult(
        scenario.name,
        design.name,
        answer_of([drawn.violation]) if drawn.violation is not None else NOT_EXHAUSTED,
        drawn.runs,
        drawn.seconds,
        violation=drawn.violation,
        violations=(drawn.violation,) if drawn.violation is not None else (),
        schedule=drawn.schedule if broken else None,
        fair=fair or scenario.fair,
        memory=scenario.memory,
        failing=scenario.failing_allocations,
        why="" if broken else _said_of_runs(drawn),
    )


def _said_of_runs(drawn: ScheduleSample) -> str:
    unended = f", {drawn.unended} of them without an end" if drawn.unended else ""
    return f"{drawn.runs} random runs{unended}"
