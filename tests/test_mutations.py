"""A protecting step that is taken away or moved is noticed by the checker, in every design."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from zaplock.check.matrix import acts_in, try_mutant, try_mutation
from zaplock.check.mutations import mutate, mutations_of
from zaplock.check.shipped_mutations import MUTATIONS
from zaplock.check.verdicts import closed_system, find_design, find_scenario
from zaplock.designs import SHIPPED, load
from zaplock.designs.linux import releases_that_differ
from zaplock.engines.checking.exhaustive import explore

BETWEEN = ("linux-4.14", "linux-5.4", "linux-5.18", "linux-6.1.36", "linux-6.4", "linux-7.3")
"""Releases between the shipped ones, in which other steps protect."""


def designs_with(mutation: str) -> list[str]:
    return [name for name in (*SHIPPED, *BETWEEN) if mutation in mutations_of(load(name))]


@pytest.mark.parametrize("mutation", dict.fromkeys(one.name for one in MUTATIONS))
def test_every_mutant_is_broken_or_says_why_it_is_equivalent(mutation: str) -> None:
    for outcome in try_mutation(mutation, designs_with(mutation)):
        assert outcome.is_right, outcome


@pytest.mark.parametrize("mutation", ["no-detach", "unlock-read-as-write", "no-flush"])
def test_a_search_that_mutants_share_says_of_each_what_it_would_say_alone(mutation: str) -> None:
    designs = designs_with(mutation)
    assert try_mutation(mutation, designs) == [try_mutant(name, mutation) for name in designs]


@pytest.mark.parametrize(
    ("mutation", "acts", "not_there"),
    [("exit-lets-reapers-in", "no-memory-fork", "expand"),
     ("no-vma-start-write-in-stack-growth", "expand", "exit-reap")],
)  # fmt: skip
def test_where_a_mutant_does_not_act_it_is_its_design(
    mutation: str, acts: str, not_there: str
) -> None:
    design = load("linux-6.18")
    one = mutations_of(design)[mutation]
    assert acts_in(one, acts)
    assert not acts_in(one, not_there)
    scenario = find_scenario(not_there)
    stock, mutant = (
        explore(closed_system(scenario, each)) for each in (design, mutate(design, one))
    )
    assert (stock.answer, mutant.answer) == ("proved", "vacuous")
    assert stock.states == mutant.states


def test_every_mutation_can_be_made_somewhere_and_is_named_once_in_a_design() -> None:
    designs = [*releases_that_differ(), *SHIPPED.values()]
    for one in MUTATIONS:
        assert any(one.where(design) for design in designs), one.name
    for design in designs:
        names = [one.name for one in MUTATIONS if one.where(design)]
        assert len(names) == len(set(names)), design.name


def test_a_mutant_is_a_design_of_its_own() -> None:
    mutant = find_design("linux-6.18/no-detached-recheck")
    assert mutant.name == "linux-6.18/no-detached-recheck"
    assert mutant.munmap is SHIPPED["linux-6.18"].munmap


def test_a_design_of_ones_own_has_mutants_by_its_rules(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from dataclasses import replace\nfrom zaplock.designs.linux import linux\n"
        "MINE = replace(linux('6.6'), name='mine', uffd_unmap=False)\n"
    )
    names = mutations_of(find_design(f"{mine}:MINE"))
    stock = mutations_of(find_design("linux-6.6"))
    assert set(stock) - set(names) == {"event-before-unlock"}
    outcome = try_mutant(f"{mine}:MINE", "no-detach")
    assert (outcome.is_right, outcome.scenario) == (True, "munmap-fault-gup")
    assert find_design(f"{mine}:MINE/no-detach").name == "mine/no-detach"


def test_a_newer_kernel_is_no_old_one() -> None:
    newer = replace(SHIPPED["linux-6.18"], name="linux-6.99", kernel="6.99")
    assert set(mutations_of(newer)) == set(mutations_of(SHIPPED["linux-6.18"]))
