"""Every scenario under every design: the matrix, worked off by several processes.

A job is one scenario under all designs, so that a job is large enough to be worth handing over.
Any `concurrent.futures.Executor` will do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

from zaplock.check.bugs import expected, promise_of
from zaplock.check.mutations import (
    Mutation,
    filter_of,
    mutate,
    mutation_named,
    mutations_of,
    split_mutant,
)
from zaplock.check.pairs import pair_names
from zaplock.check.scenarios import Scenario, parse_operation, shipped_scenarios
from zaplock.check.verdicts import (
    BROKEN,
    NOT_EXHAUSTED,
    PROVED,
    VACUOUS,
    Added,
    Queue,
    closed_system,
    combined,
    find_design,
    find_scenario,
    rules_of,
    with_liveness,
)
from zaplock.designs import SHIPPED, Design, load
from zaplock.designs.rules_read import agrees, observe, observed_design, values_read
from zaplock.engines.checking.audit import Audit
from zaplock.engines.checking.exhaustive import SearchLimits, Verdict, explore

T = TypeVar("T")
QUICK = SearchLimits(states=2_000_000, seconds=60.0)


@dataclass(frozen=True)
class Cell:
    """One scenario under one design.

    known: the bug of history that a break is, "" if none. shared: whether the verdict is that of a
    design before it, which agrees in every rule that was asked for.
    unkept: the promise that the design does not make, which the scenario is about. audit: what was
    done again.
    """

    scenario: str
    design: str
    verdict: str
    states: int
    seconds: float
    invariants: tuple[str, ...] = ()
    why: str = ""
    known: str = ""
    unkept: str = ""
    shared: bool = False
    audit: Audit = field(default_factory=Audit, compare=False)

    @property
    def agrees(self) -> bool:
        """Whether history says the same: broken where a bug is known, proved elsewhere."""
        return self.verdict == (BROKEN if self.known or self.unkept else PROVED)


def all_scenarios() -> list[str]:
    """Name the written scenarios, then the pairs."""
    return [*shipped_scenarios(), *pair_names()]


def check_row(
    scenario: str,
    designs: Sequence[str],
    queue: Queue = "both",
    limits: SearchLimits = QUICK,
    added: Added = Added(),
) -> list[Cell]:
    """Check one scenario under each of some designs, meeting every violation that there is.

    A verdict depends on the rules that were asked for. Where two designs agree in those, whatever
    else they differ in, the verdict of the one is that of the other.
    """
    found = find_scenario(scenario, added)
    verdicts = _Verdicts[Cell]()
    cells = []
    for name in designs:
        design = find_design(name)
        cell = verdicts.of(design)
        if cell is not None:
            cell = replace(cell, shared=True)
        else:
            observed = observe(design)
            cell = _checked(found, observed, queue, limits)
            if cell.verdict != NOT_EXHAUSTED:
                verdicts.add(observed, cell)
        bug, promise = expected(scenario, design), promise_of(scenario)
        unkept = promise.says if promise and not promise.keeps(design) else ""
        known = bug.name if bug else ""
        cells.append(replace(cell, scenario=scenario, design=name, known=known, unkept=unkept))
    return cells


class _Verdicts(Generic[T]):
    """What was found in one scenario, by the rules that were asked for and the filter of steps."""

    def __init__(self) -> None:
        self._found: list[tuple[Any, dict[str, Any], T]] = []

    def add(self, observed: Design, found: T) -> None:
        """Remember what was found under a design that was observed meanwhile."""
        by = filter_of(observed_design(observed))
        self._found.append((by, values_read(observed), found))

    def of(self, design: Design) -> T | None:
        """Return what holds for a design, too; None where it differs in something that counted."""
        filtered = filter_of(design)
        for by, rules, found in self._found:
            if by == filtered and agrees(design, rules):
                return found
        return None


def _checked(scenario: Scenario, design: Design, queue: Queue, limits: SearchLimits) -> Cell:
    """Check a scenario in each queue that was asked for."""
    verdicts = []
    for fair in rules_of(scenario, queue):
        system = closed_system(scenario, design, fair)
        verdict = explore(system, limits, all_violations=True)
        verdicts.append((fair, with_liveness(system, verdict, limits)[0]))
    found = combined(scenario, observed_design(design), verdicts)
    return Cell(
        scenario.name, design.name, found.verdict, found.states, found.seconds, found.invariants,
        found.why, audit=found.audit,
    )  # fmt: skip


def matrix(
    executor: Executor | None,
    scenarios: Sequence[str] = (),
    designs: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    *,
    queue: Queue = "both",
    limits: SearchLimits = QUICK,
    added: Added = Added(),
) -> list[Cell]:
    """Check everything, or what is named; in order of scenarios and designs."""
    row = partial(
        check_row, designs=tuple(designs) or tuple(SHIPPED), queue=queue, limits=limits, added=added
    )
    scenarios = list(scenarios) or all_scenarios()
    rows: dict[str, list[Cell]] = {}
    calls = {scenario: partial(row, scenario) for scenario in scenarios}
    for done, (scenario, cells) in enumerate(_each(executor, calls), 1):
        rows[scenario] = cells
        if progress is not None:
            progress(done, len(scenarios))
    return [cell for scenario in scenarios for cell in rows[scenario]]


def _each(
    executor: Executor | None, calls: Mapping[str, Callable[[], T]]
) -> Iterator[tuple[str, T]]:
    """Make each call, and give its name with what it returned, in any order."""
    if executor is None:
        for name, call in calls.items():
            yield name, call()
        return
    futures = {executor.submit(call): name for name, call in calls.items()}
    for future in as_completed(futures):
        yield futures[future], future.result()


@dataclass(frozen=True)
class Killed:
    """What became of a mutant: the scenario and invariant that broke it, or why none had to.

    acted: whether what it has changed was done or asked for in a scenario.
    """

    design: str
    mutation: str
    summary: str
    scenario: str = ""
    invariant: str = ""
    equivalent: str = ""
    acted: bool = True

    @property
    def is_right(self) -> bool:
        """Whether it was broken, or is equivalent, did something somewhere and was not."""
        return bool(self.scenario) != bool(self.equivalent) and self.acted


def mutants(designs: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Name every (design, mutation) of these designs, or of the shipped ones.

    DESIGN/MUTATION stands for that one.
    """
    found: list[tuple[str, str]] = []
    for name in tuple(designs) or tuple(SHIPPED):
        one = split_mutant(name)
        found += [one] if one else [(name, mutation) for mutation in mutations_of(load(name))]
    return found


def try_mutant(design: str, name: str) -> Killed:
    """Check a mutant in the scenarios that its design passes, until one breaks.

    An equivalent one is tried in every written scenario with an operation in which it acts.
    """
    return try_mutation(name, [design])[0]


def try_mutation(name: str, designs: Sequence[str]) -> list[Killed]:
    """Check a mutation in each of some designs.

    Where two mutants agree in the rules that a search asked for, it is made once.
    """
    searched: dict[str, _Verdicts[Verdict]] = defaultdict(_Verdicts)
    return [_killed(load(design), name, searched) for design in designs]


def _killed(base: Design, name: str, searched: dict[str, _Verdicts[Verdict]]) -> Killed:
    one = mutation_named(name, base)
    mutated = mutate(base, one)
    acted = False
    for scenario in _trials(one, base):
        verdict = searched[scenario].of(mutated)
        if verdict is None:
            observed = observe(mutated)
            verdict = explore(closed_system(find_scenario(scenario), observed), QUICK)
            if verdict.answer != NOT_EXHAUSTED:
                searched[scenario].add(observed, verdict)
        acted = acted or verdict.answer != VACUOUS
        if verdict.answer == BROKEN:
            rule = verdict.violations[0].invariant.name
            return Killed(base.name, name, one.summary, scenario, rule, one.equivalent)
    return Killed(base.name, name, one.summary, equivalent=one.equivalent, acted=acted)


def _trials(mutation: Mutation, design: Design) -> Iterable[str]:
    names = mutation.breaks or [name for name in shipped_scenarios() if acts_in(mutation, name)]
    return [name for name in names if keeps(name, design) and expected(name, design) is None]


def acts_in(mutation: Mutation, scenario: str) -> bool:
    """Return whether a mutant may differ from its design in a scenario."""
    if mutation.changes or not mutation.only:
        return True
    tasks = find_scenario(scenario).task
    return any(parse_operation(text).name in mutation.only for one in tasks for text in one.do)


def keeps(scenario: str, design: Design) -> bool:
    """Return whether a scenario is about no promise, or about one that the design makes."""
    promise = promise_of(scenario)
    return promise is None or promise.keeps(design)


def mutation_score(
    executor: Executor | None,
    designs: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[Killed]:
    """Try every mutant of these designs, or of the shipped ones; a job is a mutation."""
    pairs = mutants(designs)
    jobs: dict[str, list[str]] = {}
    for design, name in pairs:
        jobs.setdefault(name, []).append(design)
    calls = {name: partial(try_mutation, name, bases) for name, bases in jobs.items()}
    found: dict[tuple[str, str], Killed] = {}
    for name, outcomes in _each(executor, calls):
        found |= {(design, name): one for design, one in zip(jobs[name], outcomes)}
        if progress is not None:
            progress(len(found), len(pairs))
    return [found[pair] for pair in pairs]


def unexpected(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells on which history and the checker differ."""
    return [cell for cell in cells if not cell.agrees]
