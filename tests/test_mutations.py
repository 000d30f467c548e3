"""A protecting step that is taken away or moved is noticed by the checker, in every design."""

from __future__ import annotations

import pytest

from zaplock.check.matrix import try_mutant
from zaplock.check.mutations import Mutation
from zaplock.check.shipped_mutations import MUTATIONS
from zaplock.check.verdicts import find_design
from zaplock.designs import SHIPPED


def name_of(mutation: Mutation) -> str:
    return f"{mutation.name}-{mutation.designs[0]}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=name_of)
def test_every_mutant_is_broken_or_says_why_it_is_equivalent(mutation: Mutation) -> None:
    for design in mutation.designs:
        outcome = try_mutant(design, mutation.name)
        assert outcome.is_right, outcome


def test_every_design_has_mutants_and_every_mutant_a_design() -> None:
    mutated = {design for mutation in MUTATIONS for design in mutation.designs}
    assert mutated == set(SHIPPED)
    names = [(one.name, design) for one in MUTATIONS for design in one.designs]
    assert len(names) == len(set(names))


def test_a_mutant_is_a_design_of_its_own() -> None:
    mutant = find_design("linux-6.18/no-detached-recheck")
    assert mutant.name == "linux-6.18/no-detached-recheck"
    assert mutant.munmap is SHIPPED["linux-6.18"].munmap
