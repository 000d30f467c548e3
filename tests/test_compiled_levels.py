"""Levels in C find what a loop over states finds, in the same order, and so does a lack of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import RUNS
from random_systems import states_alike
from test_wide_levels import by_states, drawn, found
from toys import random_configuration

from zaplock.check.verdicts import closed_system, find_design, find_scenario
from zaplock.engines.checking import compiled_levels, exhaustive
from zaplock.engines.checking.compiled_levels import CompiledLevels, LevelsLibrary, levels_library
from zaplock.engines.checking.exhaustive import Search, SearchLimits, explore
from zaplock.engines.checking.hashed import HashSet
from zaplock.engines.checking.transitions import TransitionTable

NEVER = 1 << 60


@pytest.fixture(autouse=True)
def _from_the_first_level_on(monkeypatch: pytest.MonkeyPatch) -> None:
    levels_library.load(may_compile=True)
    assert levels_library.loaded is not None, "this needs a C compiler"
    monkeypatch.setattr(exhaustive, "MANY", 1)


def begun(monkeypatch: pytest.MonkeyPatch) -> list[CompiledLevels]:
    """Keep all levels in C that begin from now on."""
    kept = []
    inner = Search.begin_compiled

    def begin(search: Search, frontier: list[int]) -> CompiledLevels:
        kept.append(inner(search, frontier))
        return kept[-1]

    monkeypatch.setattr(Search, "begin_compiled", begin)
    return kept


@pytest.mark.parametrize(
    ("word", "number", "spare"), [(63, 20, 128), (63, 60, 0), (63, 1, 0), (11, 5, 128)],
    ids=["as it is", "positions get few bits", "numbers get few", "too narrow a word"],
)  # fmt: skip
def test_levels_are_explored_alike(
    word: int, number: int, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_levels, "WORD_BITS", word)
    monkeypatch.setattr(compiled_levels, "NUMBER_BITS", number)
    monkeypatch.setattr(compiled_levels, "SPARE", spare)
    monkeypatch.setattr(exhaustive, "WIDE", 3)
    kept = begun(monkeypatch)
    laid_out: list[int] = []
    inner = CompiledLevels.lay_out_anew
    monkeypatch.setattr(
        CompiledLevels, "lay_out_anew", lambda one: laid_out.append(one.met) or inner(one)
    )
    for seed in (*range(4, 14), 1_022, 1_144):
        monkeypatch.setattr(exhaustive, "MANY", 1 + seed % 3)
        fair = seed % 4 < 2
        for jobs in (1, 2, 3):
            in_c = found(drawn(seed, fair), all_violations=seed % 2 == 0, jobs=jobs)
            assert in_c == by_states(seed, fair), (seed, jobs)
    assert kept
    assert bool(laid_out) == ((word, number) != (63, 20))


def test_random_systems_are_explored_alike() -> None:
    """By one core, by several and by the loop; as many as ZAPLOCK_FUZZ says, others each time."""
    first = time.time_ns() if RUNS else 30_000
    differ = [seed for seed in range(first, first + (RUNS or 30)) if states_alike(seed) < 0]
    assert not differ, differ


def test_a_shipped_scenario_is_explored_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    both, steps = [], []
    system = closed_system(find_scenario("munmap-fault-gup"), find_design("linux-4.20"), fair=True)
    monkeypatch.setattr(exhaustive, "WIDE", 30)
    for many, jobs in ((NEVER, 1), (500, 1), (200, 2), (500, 3)):
        monkeypatch.setattr(exhaustive, "MANY", many)
        both.append(found(system, all_violations=True, jobs=jobs))
        steps.append(explore(system, jobs=jobs).steps_run)
    assert both[1:] == both[:1] * 3
    assert steps[1:] == steps[:1] * 3


def test_limits_end_a_search_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhaustive, "LOOK", 10)
    both = []
    for many in (NEVER, 1):
        monkeypatch.setattr(exhaustive, "MANY", many)
        verdict = explore(random_configuration(9, True), SearchLimits(states=60),
                          all_violations=True)  # fmt: skip
        both.append((verdict.answer, verdict.states, verdict.transitions, verdict.limit))
    assert both[0] == both[1]
    assert both[0][0] == "not-exhausted"


def test_a_limit_on_states_ends_a_search_where_one_core_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other cores go on while words are left to meet, but not where these are one too many."""
    for name, value in (("MANY", 1), ("WIDE", 30), ("SLICE", 50)):
        monkeypatch.setattr(exhaustive, name, value)
    system = closed_system(find_scenario("munmap-fault-gup"), find_design("linux-4.20"), fair=True)
    for most in range(400, 4_000, 300):
        ends = set()
        for jobs in (1, 2, 3):
            verdict = explore(system, SearchLimits(states=most), jobs=jobs)
            ends.add((verdict.limit, verdict.states, verdict.transitions, verdict.steps_run))
        ((limit, states, *_),) = ends
        assert limit == f"{most} states"
        assert most < states < most + 300


def test_a_million_states_are_met_once_each_and_in_order() -> None:
    """As a set in Python meets them; words and contents of the store are drawn at random."""
    table = TransitionTable(random_configuration(3, False))
    levels = CompiledLevels(Search(table, SearchLimits(), False, None), [])
    rng = np.random.default_rng(20)
    states = np.zeros((1_000_000, levels.limbs), dtype=np.uint64)
    states[:, 0] = rng.integers(0, 5_000, len(states), dtype=np.uint64)
    bits = rng.integers(1, 14, len(states), dtype=np.uint64)
    states[:, 1] = rng.integers(0, 1 << 13, len(states), dtype=np.uint64) >> bits
    states[:, 2] = rng.integers(0, 3, len(states), dtype=np.uint64) << np.uint64(62)
    first = np.frombuffer(levels.limbs_of(0, levels.met), dtype=np.uint64).reshape(1, -1)
    levels.take_limbs(states.tobytes(), len(states))
    told = np.frombuffer(levels.limbs_of(0, levels.met), dtype=np.uint64).reshape(-1, levels.limbs)
    everything = np.concatenate([first, states])
    keys = everything[:, 0] << np.uint64(40) | everything[:, 1] | everything[:, 2] >> np.uint64(30)
    keys[0] = 1 << 62
    expected = everything[HashSet().add(keys)]
    assert 100_000 < len(expected) < 900_000
    assert np.array_equal(told, expected)
    table.close()


def test_without_a_compiler_a_search_goes_on_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_c = found(random_configuration(9, True), all_violations=True)
    library = LevelsLibrary()
    monkeypatch.setattr(compiled_levels, "levels_library", library)
    monkeypatch.setattr(exhaustive, "WIDE", 20)
    monkeypatch.setenv("ZAPLOCK_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert found(random_configuration(9, True), all_violations=True) == in_c
    assert library.visited > 20
    assert library.loaded is None


def test_it_is_compiled_once_where_many_states_are_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZAPLOCK_CACHE", str(tmp_path))
    compiling = []
    inner = compiled_levels.built

    def built(*args: Any, **kwargs: Any) -> Path:
        compiling.append(1)
        return inner(*args, **kwargs)

    monkeypatch.setattr(compiled_levels, "built", built)
    first, second, third = LevelsLibrary(), LevelsLibrary(), LevelsLibrary()
    few = compiled_levels.LOOK_AFTER
    assert not first.is_there(few, is_wide=False)
    assert not first.is_there(few, is_wide=False)
    assert first.is_there(1, is_wide=True)
    assert not second.is_there(few - 1, is_wide=False)
    assert second.is_there(1, is_wide=False)
    assert third.is_there(compiled_levels.COMPILE_AFTER, is_wide=False)
    assert len(compiling) == 1


def test_a_cache_of_strangers_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setenv("ZAPLOCK_CACHE", str(tmp_path))
    library = LevelsLibrary()
    assert not library.is_there(compiled_levels.COMPILE_AFTER, is_wide=True)


def test_states_are_not_given_back_where_the_memory_does_not_hold_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled_levels, "WORD_BITS", 9)
    kept = begun(monkeypatch)
    whole = explore(random_configuration(9, True), all_violations=True)
    monkeypatch.setattr(CompiledLevels, "bytes_given_back", lambda _: 1 << 50)
    ended = explore(random_configuration(9, True), all_violations=True)
    assert len(kept) == 2
    assert ended.limit == "6144 MiB"
    assert 0 < ended.states < whole.states
