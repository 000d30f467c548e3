"""A search whose states go to the disk finds what one in memory finds, and leaves nothing there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from zaplock.check.verdicts import closed_system, find_design, find_scenario
from zaplock.cli import main
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import SearchLimits, Verdict, explore
from zaplock.engines.checking.on_disk import DiskLimits, explore_on_disk
from zaplock.engines.checking.sorted_runs import StatesOnDisk

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
