"""A search whose states go to the disk finds what one in memory finds, and leaves nothing there."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toys import random_configuration

from zaplock.check.verdicts import closed_system, find_design, find_scenario
from zaplock.cli import main
from zaplock.engines.checking import divided_levels, exhaustive, wide_levels
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import SearchLimits, Verdict, explore
from zaplock.engines.checking.on_disk import DiskLimits, SearchOnDisk, explore_on_disk
from zaplock.engines.checking.sorted_runs import StatesOnDisk
from zaplock.engines.checking.visited_words import VisitedWords

SYSTEMS = [
    ("expand", "linux-4.20", False),
    ("munmap-fault-gup", "linux-4.20", True),
    ("munmap-file", "linux-6.1/no-i-mmap-lock", False),
    ("fork-child", "linux-6.18", False),
    ("nested-flush", "linux-4.20", False),
]


def system_of(scenario: str, design: str, fair: bool) -> Configuration:
    return closed_system(find_scenario(scenario), find_design(design), fair)


def same(one: Verdict, other: Verdict) -> bool:
    texts = [sorted(map(str, verdict.violations)) for verdict in (one, other)]
    return texts[0] == texts[1] and replace(one, seconds=0, violations=()) == replace(
        other, seconds=0, violations=()
    )


@pytest.mark.parametrize("in_memory", [1, 70, 1000])
@pytest.mark.parametrize(("scenario", "design", "fair"), SYSTEMS)
def test_both_find_the_same(
    scenario: str, design: str, fair: bool, in_memory: int, tmp_path: Path
) -> None:
    """Even with a file for every level, as states grow wider and runs are merged."""
    system = system_of(scenario, design, fair)
    limits = SearchLimits(states=8000)
    plain = explore(system, limits, all_violations=True)
    disk = explore_on_disk(system, DiskLimits(tmp_path, in_memory), limits, all_violations=True)
    if not plain.limit:
        assert same(plain, disk)
    assert plain.limit == disk.limit
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("fits", "worth"), [(1, 1 << 60), (9, 1 << 60), (5, 30)])
def test_words_on_disk_are_explored_alike(
    fits: int, worth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same order; where they are not worth it the states go on from there."""
    monkeypatch.setattr(wide_levels, "ENOUGH_SEEN", worth)
    monkeypatch.setattr(wide_levels, "BATCH", 7)
    monkeypatch.setattr(divided_levels, "SLICE", 2)
    monkeypatch.setattr(divided_levels, "CHUNK", 1 + fits // 2)
    began: list[int] = []
    inner = SearchOnDisk.begin_wide
    monkeypatch.setattr(
        SearchOnDisk, "begin_wide", lambda search, front: began.append(1) or inner(search, front)
    )
    for seed in range(8):
        fair, every = seed % 2 == 0, seed % 3 != 0
        monkeypatch.setattr(exhaustive, "WIDE", 1 << 60)
        plain = explore(random_configuration(seed, fair), all_violations=every)
        monkeypatch.setattr(exhaustive, "WIDE", 1 + seed % 3)
        system, disk = random_configuration(seed, fair), DiskLimits(tmp_path, fits)
        words = explore_on_disk(system, disk, all_violations=every)
        texts = [list(map(str, verdict.violations)) for verdict in (plain, words)]
        assert same(plain, words), seed
        assert texts[0] == texts[1], seed
    assert began
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("on_disk", [False, True])
def test_visited_words_are_a_set(on_disk: bool, tmp_path: Path) -> None:
    """However often its latest ones become a run, or all get another layout."""
    rng = random.Random(5)
    files = StatesOnDisk(tmp_path) if on_disk else None
    held = set[int]()
    words = VisitedWords(fits=20, files=files, is_own=lambda keys: keys % np.uint64(3) != 0)
    shift = 0
    for turn in range(60):
        batch = [rng.randrange(900) for _ in range(rng.randrange(40))]
        own = np.array([one << shift for one in batch if one % 3], dtype=np.uint64)
        new = words.unseen(own[words.add(own)])
        expected = [one for one in dict.fromkeys(batch) if one % 3 and one not in held]
        assert [one >> shift for one in new.tolist()] == expected
        held.update(expected)
        words.add(np.array([one << shift for one in batch if not one % 3], dtype=np.uint64))
        words.relieve()
        assert len(words) == len(held)
        if turn in (20, 40):
            words.move(lambda old: old << np.uint64(2))
            shift += 2
    parts = [one >> shift for part in words.parts() for one in part.tolist()]
    assert sorted(parts) == sorted(held)
    assert words.runs
    if files is not None:
        files.close()
    assert not list(tmp_path.iterdir())


def test_runs_hold_each_state_once_whatever_their_widths(tmp_path: Path) -> None:
    states = StatesOnDisk(tmp_path)
    groups = [{256**width + 7 * number for number in range(50)} for width in range(1, 10)]
    for width, group in enumerate(groups, 2):
        states.take(group, width)
    assert len(states) == sum(map(len, groups))
    assert len(states.runs) <= 6
    everything = set.union(*groups)
    assert states.found([*everything, 0, 1 << 200]) == everything
    states.close()
    assert not list(tmp_path.iterdir())


def test_the_command_line_puts_states_there_and_takes_them_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", "munmap-fault-gup", "--design", "linux-4.9", "--disk", str(tmp_path)]
    assert main(words) == 0
    assert "proved" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        (["--exact"], "--exact is for one process"),
        (["--sample", "3"], "--sample keeps no states"),
        (["--cluster", "tcp://127.0.0.1:1", "--unreached"], "leave --cluster out"),
    ],
)
def test_the_disk_is_for_a_search_that_keeps_states(
    more: list[str], refused: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "expand", "--disk", str(tmp_path), *more]) == 2
    assert refused in capsys.readouterr().err


def test_a_directory_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "expand", "--disk", "/nowhere/at/all"]) == 2
    assert "'/nowhere/at/all' is no directory" in capsys.readouterr().err
