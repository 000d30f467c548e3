"""Levels of many states at once find what a loop over states finds, in the same order."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from toys import random_configuration, random_ranges

from zaplock.check.verdicts import closed_system, find_design, find_scenario
from zaplock.engines.checking import exhaustive, wide_levels
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import explore
from zaplock.engines.checking.hashed import NOTHING, HashMap, HashSet, Words


def found(configuration: Configuration, all_violations: bool) -> tuple[Any, ...]:
    """Explore; give all that is found, violations in the order in which they were met."""
    verdict = explore(configuration, all_violations=all_violations)
    results = [sorted(map(repr, ends)) for ends in verdict.results]
    return (
        verdict.answer, verdict.states, verdict.transitions, verdict.depth, verdict.endings,
        verdict.never, verdict.limit, verdict.loops, results, [str(v) for v in verdict.violations],
    )  # fmt: skip


def batches(rng: random.Random, most: int) -> list[Words]:
    """Make batches of keys, many of them more than once."""
    sizes = [rng.randrange(200) for _ in range(12)]
    return [np.array([rng.randrange(most) for _ in range(n)], dtype=np.uint64) for n in sizes]


@pytest.mark.parametrize("most", [30, 3_000, 1 << 62])
def test_a_hash_set_is_a_set(most: int) -> None:
    keys, held = HashSet(), set[int]()
    for batch in batches(random.Random(most), most):
        expected = []
        for key in batch.tolist():
            expected.append(key not in held)
            held.add(key)
        assert keys.add(batch).tolist() == expected
        assert len(keys) == len(held)
    assert set(keys.keys().tolist()) == held


@pytest.mark.parametrize("most", [3_000, 1 << 62])
def test_a_hash_map_is_a_dict(most: int) -> None:
    pairs, held = HashMap(), dict[int, int]()
    for batch in batches(random.Random(most), most):
        known = pairs.get(batch)
        assert known.tolist() == [held.get(key, int(NOTHING)) for key in batch.tolist()]
        new = np.unique(batch[known == NOTHING])
        pairs.put(new, new + np.uint64(7))
        held |= {key: key + 7 for key in new.tolist()}
    everything = np.array(list(held), dtype=np.uint64)
    assert pairs.get(everything).tolist() == list(held.values())


@pytest.mark.parametrize(
    ("bits", "worth", "size"), [(63, 1 << 60, 20_000), (15, 1 << 60, 7), (63, 30, 3)],
    ids=["as it is", "too narrow a word", "not worth it"],
)  # fmt: skip
def test_levels_are_explored_alike(
    bits: int, worth: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide_levels, "WORD_BITS", bits)
    monkeypatch.setattr(wide_levels, "ENOUGH_SEEN", worth)
    monkeypatch.setattr(wide_levels, "BATCH", size)
    went_on = []
    inner = wide_levels.WideLevels.level
    monkeypatch.setattr(wide_levels.WideLevels, "level", lambda w: went_on.append(1) or inner(w))
    for seed in range(14):
        make = random_ranges if seed % 5 == 4 else random_configuration
        for fair in (False, True):
            both = []
            for wide in (1 << 60, 1 + seed % 3):
                monkeypatch.setattr(exhaustive, "WIDE", wide)
                both.append(found(make(seed, fair), all_violations=seed % 2 == 0))
            assert both[0] == both[1], (seed, fair)
    assert went_on


def test_a_shipped_scenario_is_explored_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    both = []
    for wide in (1 << 60, 100):
        monkeypatch.setattr(exhaustive, "WIDE", wide)
        scenario, design = find_scenario("munmap-fault-gup"), find_design("linux-4.20")
        both.append(found(closed_system(scenario, design, fair=True), all_violations=True))
    assert both[0] == both[1]
