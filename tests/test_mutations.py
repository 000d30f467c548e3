"""A protecting step that is taken away or moved is noticed by the checker, in every design."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zaplock.check.matrix import Killed, acts_in, try_mutant, try_mutation
from zaplock.check.mutations import Mutation, mutate, mutations_of
from zaplock.check.shipped_mutations import MUTATIONS
from zaplock.check.verdicts import closed_system, find_design, find_scenario
from zaplock.cli import main
from zaplock.designs import SHIPPED, load
from zaplock.designs.linux import releases_that_differ
from zaplock.engines.checking.exhaustive import explore
from zaplock.errors import UserError

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


OWN = """
from zaplock.author import *

class Never(Rule):
    def __call__(self, step):
        return None if step.name == "split_vma" else (yield step)

class NoSteps(Rule):
    def __call__(self, step):
        return [step]

def mutation(**fields):
    return Mutation(name="own", summary="x", **fields)

RULE = mutation(rule=Never)
CHANGE = mutation(changes=lambda design: {"fork_locks_vma": True})
IN_FORK = mutation(rule=lambda: Skip("zap_pte_range", False), only=("fork",))
ACTS = mutation(rule=lambda: Skip("zap_pte_range", False), only=["munmap"])
MISSPELLED = mutation(rule=lambda: Skip("zap_pte_range", False), only=("munmapp",))
SAME = mutation(changes=lambda design: {"vma_locks": design.vma_locks})
NO_STEPS = mutation(rule=NoSteps)
"""


@pytest.mark.parametrize("how", [[], ["--exact"], ["--jobs", "2"], ["--queue", "fair"]])
@pytest.mark.parametrize("name", ["RULE", "CHANGE", "IN_FORK"])
def test_a_mutation_of_ones_own_that_a_scenario_never_comes_to_is_vacuous(
    name: str, how: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    check = ["check", "munmap+fault", "--json", "--design", f"linux-4.18/{file}:{name}", *how]
    assert main(check) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "vacuous"
    assert found["why"] == "never: a step or a rule that linux-4.18/own has changed"


def test_one_that_acts_is_broken_and_one_that_is_written_wrongly_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    for name, code, said in (
        ("ACTS", 1, ""),
        ("MISSPELLED", 2, "`only` names the operation 'munmapp'"),
        ("SAME", 2, "changes nothing; give it `changes` or a `rule`"),
        ("NO_STEPS", 4, "the rule NoSteps gave"),
    ):
        assert main(["check", "munmap+fault", "--design", f"linux-4.18/{file}:{name}"]) == code
        assert said in capsys.readouterr().err
    one = ["--design", f"linux-4.18/{file}:MISSPELLED"]
    assert main(["check", "--all", *one]) == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"only": "munmap"}, "only is 'munmap'; give names in a tuple"),
        ({"breaks": "expand"}, "breaks is 'expand'; give names in a tuple"),
        ({"rule": 3}, "rule is 3 and can't be called"),
        ({"where": None}, "where is None and can't be called"),
    ],
)
def test_fields_of_a_mutation_are_what_they_have_to_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        Mutation(name="own", summary="x", **fields)


def test_an_equivalent_mutation_that_nothing_comes_to_is_not_right() -> None:
    equivalent = {"equivalent": "it breaks nothing"}
    assert Killed("linux-6.18", "own", "x", **equivalent).is_right
    assert not Killed("linux-6.18", "own", "x", acted=False, **equivalent).is_right


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
