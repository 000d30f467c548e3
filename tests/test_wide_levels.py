"""Levels of many states at once find what a loop over states finds, in the same order."""

from __future__ import annotations

import random
import sys
import tracemalloc
from functools import cache
from typing import Any

import numpy as np
import pytest
from toys import Toy, add, load, random_configuration, random_ranges, store, tasks, wait_for

from zaplock.check.verdicts import closed_system, find_design, find_scenario
from zaplock.engines.checking import exhaustive, wide_levels
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import explore
from zaplock.engines.checking.hashed import NOTHING, SETTLED_BYTES, HashMap, HashSet, Words
from zaplock.model.step import Task, step


@pytest.fixture(autouse=True)
def _in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhaustive, "MANY", 1 << 60)


def found(configuration: Configuration, all_violations: bool, jobs: int = 1) -> tuple[Any, ...]:
    """Explore; give all that is found, violations in the order in which they were met."""
    verdict = explore(configuration, all_violations=all_violations, jobs=jobs)
    results = [sorted(map(repr, ends)) for ends in verdict.results]
    return (
        verdict.answer, verdict.states, verdict.transitions, verdict.depth, verdict.endings,
        verdict.never, verdict.limit, verdict.loops, results, [str(v) for v in verdict.violations],
    )  # fmt: skip


def drawn(seed: int, fair: bool) -> Configuration:
    """Draw a small system."""
    return (random_ranges if seed % 5 == 4 else random_configuration)(seed, fair)


@cache
def by_states(seed: int, fair: bool) -> tuple[Any, ...]:
    """Explore a small system state by state, once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exhaustive, "WIDE", 1 << 60)
        patched.setattr(exhaustive, "MANY", 1 << 60)
        return found(drawn(seed, fair), all_violations=seed % 2 == 0)


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
    keys.move(lambda old: old + np.uint64(most))
    assert {key + most for key in held} == {k for part in keys.parts() for k in part.tolist()}
    assert len(keys) == len(held)
    keys.clear()
    assert not len(keys.keys())


@pytest.mark.parametrize("kind", [HashSet, HashMap])
def test_what_is_to_come_is_told_before(kind: type[HashSet | HashMap]) -> None:
    """In bytes, at most; told by what numpy then allocates."""
    rng, held, many = np.random.default_rng(1), kind(), 20_000
    tracemalloc.start()
    try:
        for _ in range(20):
            keys = np.unique(rng.integers(0, 1 << 62, many, dtype=np.uint64))
            tracemalloc.reset_peak()
            before, told = tracemalloc.get_traced_memory()[0], held.bytes_to_come(many)
            if isinstance(held, HashSet):
                held.add(keys)
            else:
                held.put(keys, keys)
            taken = tracemalloc.get_traced_memory()[1] - before
            assert taken < told + many * SETTLED_BYTES
    finally:
        tracemalloc.stop()


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
    pairs.drop(np.uint64(7), np.array([5, 3], dtype=np.uint64))
    left = [int(NOTHING) if key & 7 in (3, 5) else held[key] for key in held]
    assert pairs.get(everything).tolist() == left
    assert len(pairs) == sum(key & 7 not in (3, 5) for key in held)


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
        monkeypatch.setattr(exhaustive, "WIDE", 1 + seed % 3)
        for fair in (False, True):
            at_once = found(drawn(seed, fair), seed % 2 == 0)
            assert at_once == by_states(seed, fair), (seed, fair)
    assert went_on


def test_a_shipped_scenario_is_explored_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    both = []
    for wide in (1 << 60, 100):
        monkeypatch.setattr(exhaustive, "WIDE", wide)
        scenario, design = find_scenario("munmap-fault-gup"), find_design("linux-4.20")
        both.append(found(closed_system(scenario, design, fair=True), True))
    assert both[0] == both[1]


def test_positions_that_no_word_has_room_for_are_explored_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first words are laid out before any content of the store is numbered."""

    def in_turn(number: int) -> Any:
        async def body() -> None:
            await wait_for("x", number)
            await add("x", 1)

        return body

    both = []
    for wide in (1 << 60, 1):
        monkeypatch.setattr(exhaustive, "WIDE", wide)
        system = Configuration(Toy, tasks(*map(in_turn, range(70))))
        both.append(found(system, all_violations=True))
    assert both[0] == both[1]


def test_a_step_that_is_seen_to_look_at_more_is_audited_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The table drops what it remembered of it, and audits what it remembers in the end."""

    @step
    def peek(m: Toy, _task: Task) -> int:
        return m.counters["x"] and m.counters["y"]

    async def peeks() -> None:
        await peek()

    async def sets() -> None:
        await store("x", 1)

    async def lets_them() -> None:
        await load("z")
        await load("z")
        await load("z")

    both = []
    for wide in (1 << 60, 1):
        monkeypatch.setattr(exhaustive, "WIDE", wide)
        verdict = explore(Configuration(Toy, tasks(peeks, sets, lets_them)))
        both.append((verdict.answer, verdict.states, verdict.steps_run, verdict.audit.steps))
    assert both[0] == both[1]


def test_states_are_not_given_back_where_the_memory_does_not_hold_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exhaustive, "WIDE", 1)
    monkeypatch.setattr(wide_levels, "ENOUGH_SEEN", 30)
    inner = exhaustive.Search.by_states
    told = []

    def by_states(search: exhaustive.Search, wide: wide_levels.WideLevels) -> Any:
        expected = wide.bytes_given_back()
        back = inner(search, wide)
        if search.wide is None:
            told.append((expected, sum(map(sys.getsizeof, [search.visited, *search.visited]))))
        return back

    monkeypatch.setattr(exhaustive.Search, "by_states", by_states)
    whole = explore(random_configuration(9, True), all_violations=True)
    [(expected, taken)] = told
    assert taken / 2 < expected < 1.5 * taken + 1000
    monkeypatch.setattr(wide_levels.WideLevels, "bytes_given_back", lambda _: 1 << 50)
    ended = explore(random_configuration(9, True), all_violations=True)
    assert (ended.limit, len(told)) == ("6144 MiB", 1)
    assert 0 < ended.states < whole.states
