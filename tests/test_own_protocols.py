"""Own protocols drawn at random: what the checker says of them is what a naive explorer sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from own_protocols import Case, Naive, TooLarge, Truth, source

from zaplock.check.scenarios import Scenario
from zaplock.check.verdicts import closed_system, find_design, find_scenario, with_liveness
from zaplock.designs.own_files import _run
from zaplock.engines.checking import exhaustive
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import SearchLimits, Verdict, explore
from zaplock.engines.checking.on_disk import DiskLimits, explore_on_disk
from zaplock.engines.checking.reference import explore_plainly

Search = Callable[[Configuration], Verdict]
everything = partial(explore, all_violations=True)


def expected_answer(case: Case, truth: Truth) -> str:
    """Return the verdict that what is true of a case makes."""
    if truth.broken:
        return "broken"
    for task in range(case.tasks):
        ended = any(state[3][task][0] == "ended" and state[3][task][1] >= 0 for state in truth.ends)
        if not ended and task not in case.daemons and not case.killed[task]:
            return "vacuous"
    if case.sometimes[2] and not truth.is_seen:
        return "vacuous"
    if case.at_end[3] and not truth.ends:
        return "vacuous"
    if case.at_task_end[3] and not any(truth.results):
        return "vacuous"
    return "proved"


def differences(seed: int, folder: Path, search: Search) -> tuple[str, list[str]]:
    """Check a case and explore it naively; return the verdict, and in what the two differ."""
    case = Case(seed)
    file = folder / f"case{seed}.py"
    file.write_text(source(case))
    try:
        truth = Naive(case).explore()
    except TooLarge:
        return "too large", []
    scenario: Scenario = find_scenario(f"{file}:S")
    system = closed_system(scenario, find_design("linux-6.18"))
    verdict = search(system)
    _run.cache_clear()
    said = {one.invariant.name for one in verdict.violations}
    results = [{one[0] for one in ended if one} for ended in verdict.results[: case.tasks]]
    pairs = [
        ("the rules broken", said, truth.broken),
        ("how many ends", verdict.endings, len(truth.ends)),
        ("the verdict", verdict.answer, expected_answer(case, truth)),
    ]
    if not truth.broken:
        pairs.append(("the results", results, truth.results))
        if search is everything:
            lasso = with_liveness(system, verdict, SearchLimits())[1]
            pairs.append(("runs without an end", lasso is not None, truth.never_ends))
    wrong = [f"{what}: {is_said}, and it is {is_so}" for what, is_said, is_so in pairs
             if is_said != is_so]  # fmt: skip
    return "never ends" if truth.never_ends else verdict.answer, wrong


def test_the_verdict_on_own_protocols_is_what_a_naive_explorer_sees(tmp_path: Path) -> None:
    met: Counter[str] = Counter()
    for seed in range(300):
        answer, wrong = differences(seed, tmp_path, everything)
        assert not wrong, f"seed {seed}: {wrong}"
        met[answer] += 1
    assert min(met[one] for one in ("proved", "broken", "vacuous", "never ends")) > 10, met


def test_whole_states_and_the_disk_see_the_same(tmp_path: Path) -> None:
    on_disk = partial(explore_on_disk, disk=DiskLimits(tmp_path, 50), all_violations=True)
    for search in (partial(explore_plainly, exact=True), on_disk):
        for seed in range(300, 340):
            assert not differences(seed, tmp_path, search)[1], seed


def test_levels_in_c_and_with_numpy_see_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exhaustive, "WIDE", 3)
    for many in (1, 1 << 40):  # so many states are left to Python before a search goes on in C
        monkeypatch.setattr(exhaustive, "MANY", many)
        for seed in range(340, 420):
            assert not differences(seed, tmp_path, everything)[1], seed
