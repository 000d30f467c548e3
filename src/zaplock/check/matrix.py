"""Every scenario under every design: the matrix, worked off by several processes.

A job is one scenario under all designs, so that a job is large enough to be worth handing over.
Any `concurrent.futures.Executor` will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from functools import partial

from zaplock.check.bugs import LIVENESS, expected
from zaplock.check.mutations import Mutation
from zaplock.check.pairs import pair_names
from zaplock.check.scenarios import shipped_scenarios
from zaplock.check.shipped_mutations import MUTATIONS
from zaplock.check.verdicts import BROKEN, PROVED, closed_system, find_design, find_scenario
from zaplock.designs import SHIPPED
from zaplock.engines.checking.exhaustive import SearchLimits, explore

QUICK = SearchLimits(states=2_000_000, seconds=60.0)


@dataclass(frozen=True)
class Cell:
    """One scenario under one design. `known`: the bug of history that a break is, "" if none."""

    scenario: str
    design: str
    verdict: str
    states: int
    seconds: float
    invariants: tuple[str, ...] = ()
    why: str = ""
    known: str = ""

    @property
    def agrees(self) -> bool:
        """Whether history says the same: broken where a bug is known, proved elsewhere."""
        if self.scenario == LIVENESS:
            return self.verdict == BROKEN
        return self.verdict == (BROKEN if expected(self.scenario, self.design) else PROVED)


def all_scenarios() -> list[str]:
    """Name the written scenarios, then the pairs."""
    return [*shipped_scenarios(), *pair_names()]


def check_row(
    scenario: str, designs: Sequence[str], fair: bool = False, limits: SearchLimits = QUICK
) -> list[Cell]:
    """Check one scenario under each of some designs, meeting every violation that there is."""
    found = find_scenario(scenario)
    cells = []
    for name in designs:
        system = closed_system(found, find_design(name), fair)
        verdict = explore(system, limits, all_violations=True)
        rules = tuple(dict.fromkeys(one.invariant.name for one in verdict.violations))
        bug = expected(scenario, name)
        cells.append(
            Cell(
                scenario, name, verdict.answer, verdict.states, verdict.seconds, rules,
                verdict.limit or "; ".join(verdict.never), bug.name if bug else "",
            )
        )  # fmt: skip
    return cells


def matrix(
    executor: Executor | None,
    scenarios: Sequence[str] = (),
    designs: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    *,
    fair: bool = False,
    limits: SearchLimits = QUICK,
) -> list[Cell]:
    """Check everything, or what is named; in order of scenarios and designs."""
    row = partial(check_row, designs=tuple(designs) or tuple(SHIPPED), fair=fair, limits=limits)
    scenarios = list(scenarios) or all_scenarios()
    rows: dict[str, list[Cell]] = {}
    for done, (scenario, cells) in enumerate(_rows(executor, scenarios, row), 1):
        rows[scenario] = cells
        if progress is not None:
            progress(done, len(scenarios))
    return [cell for scenario in scenarios for cell in rows[scenario]]


def _rows(
    executor: Executor | None, scenarios: Sequence[str], row: Callable[[str], list[Cell]]
) -> Iterator[tuple[str, list[Cell]]]:
    if executor is None:
        for scenario in scenarios:
            yield scenario, row(scenario)
        return
    futures = {executor.submit(row, scenario): scenario for scenario in scenarios}
    for future in as_completed(futures):
        yield futures[future], future.result()


@dataclass(frozen=True)
class Killed:
    """What became of a mutant: the scenario and invariant that broke it, or why none had to."""

    design: str
    mutation: str
    summary: str
    scenario: str = ""
    invariant: str = ""
    equivalent: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it was broken, or is equivalent and was not."""
        return bool(self.scenario) != bool(self.equivalent)


def mutants() -> list[tuple[str, str]]:
    """Name every (design, mutation)."""
    return [(design, one.name) for one in MUTATIONS for design in one.designs]


def try_mutant(design: str, name: str) -> Killed:
    """Check a mutant in the scenarios that its design passes, until one breaks.

    An equivalent one is tried in every written scenario.
    """
    one = next(m for m in MUTATIONS if m.name == name and design in m.designs)
    mutated = find_design(f"{design}/{name}")
    for scenario in _trials(one, design):
        verdict = explore(closed_system(find_scenario(scenario), mutated), QUICK)
        if verdict.answer == BROKEN:
            rule = verdict.violations[0].invariant.name
            return Killed(design, name, one.summary, scenario, rule, one.equivalent)
    return Killed(design, name, one.summary, equivalent=one.equivalent)


def _trials(mutation: Mutation, design: str) -> Iterable[str]:
    names = mutation.breaks or tuple(shipped_scenarios())
    return [name for name in names if name != LIVENESS and expected(name, design) is None]


def mutation_score(
    executor: Executor | None, progress: Callable[[int, int], None] | None = None
) -> list[Killed]:
    """Try every mutant of every design."""
    pairs = mutants()
    if executor is None:
        outcomes: Iterable[Killed] = (try_mutant(*pair) for pair in pairs)
    else:
        outcomes = executor.map(try_mutant, *zip(*pairs), chunksize=4)
    found = []
    for outcome in outcomes:
        found.append(outcome)
        if progress is not None:
            progress(len(found), len(pairs))
    return found


def unexpected(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells on which history and the checker differ."""
    return [cell for cell in cells if not cell.agrees]
