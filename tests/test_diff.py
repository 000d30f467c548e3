"""Two recordings beside each other: what got better is told, what chance did is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zaplock.cli import main
from zaplock.trace import recording_file
from zaplock.trace.analysis import analyse
from zaplock.trace.difference import RecordingDifference, difference, spread
from zaplock.trace.events import Events
from zaplock.trace.handwritten import Log
from zaplock.trace.summary import summarise
from zaplock.views.differences import sentences

MM = 0xFFFF888000001000
MS = 1_000_000
ZAPLOCK = [sys.executable, "-m", "zaplock"]
ABOUT = recording_file.Manifest(source="test", kernel="6.18.0", clock="mono")


def shop(held_ns: int, *, seed: int, seconds: float = 4, every_ns: int = 20 * MS) -> Events:
    """A shop whose cleaner unmaps now and then, and a customer who then waits at its door.

    When the cleaner comes varies; how long it holds the lock varies by a tenth.
    """
    rng = np.random.default_rng(seed)
    log = Log()
    log.task(100, "shop", 100)
    log.task(101, "cleaner", 100, "shop")
    log.task(102, "customer", 100, "shop")
    log.owner(MM, 100)
    now = 0
    while now < seconds * 1e9:
        now += int(every_ns * rng.uniform(0.5, 1.5))
        held = int(held_ns * rng.uniform(0.9, 1.1))
        log.begin(now, tid=101, op="munmap", address=1 << 40, length=1 << 30)
        log.asked(now + 10, tid=101, mm=MM, write=True)
        log.acquired(now + 20, tid=101, mm=MM, write=True)
        log.asked(now + held // 10, tid=102, mm=MM, write=False, cpu=1)
        log.released(now + held, tid=101, mm=MM, write=True)
        log.end(now + held + 10, tid=101, op="munmap")
        log.acquired(now + held + 2_000, tid=102, mm=MM, write=False, cpu=1)
        log.released(now + held + 3_000, tid=102, mm=MM, write=False, cpu=1)
        now += held + 4_000
    return log.events()


@contextmanager
def unread(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of whose output nobody reads anything."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        yield process


def compared(before: Events, after: Events) -> RecordingDifference:
    return difference(*(summarise(analyse(one, "6.18.0")) for one in (before, after)))


def test_what_was_mended_is_told_with_how_much_and_how_sure() -> None:
    found = compared(shop(5 * MS, seed=1), shop(MS, seed=2))
    waited = found.changes[0]
    assert (found.verdict, waited.measure) == ("better", "waited")
    assert waited.chance is not None
    assert waited.chance < 0.001
    # About a fifth: 1 ms a turn of 21 ms instead of 5 ms a turn of 25.
    assert waited.factor_low is not None
    assert waited.factor_high is not None
    assert waited.factor_low < (0.9 / 21) / (4.5 / 25) < waited.factor_high
    assert {one.measure: one.verdict for one in found.changes}["held exclusively"] == "better"


def test_a_range_that_is_one_figure_is_told_as_one() -> None:
    found = compared(shop(5 * MS, seed=1), shop(MS, seed=2))
    waited = replace(found.changes[0], factor_low=0.004701, factor_high=0.004702)
    first, *_ = sentences(replace(found, changes=(waited, *found.changes[1:])))
    assert "95 % sure: 99.53 % less;" in first
    waited = replace(waited, factor_low=0.004, factor_high=0.005)
    first, *_ = sentences(replace(found, changes=(waited, *found.changes[1:])))
    assert "95 % sure: 99.5 % to 99.6 % less;" in first


def test_what_got_worse_is_told() -> None:
    assert compared(shop(MS, seed=1), shop(3 * MS, seed=2)).verdict == "worse"


def test_the_same_program_recorded_again_is_no_difference() -> None:
    """Of eight pairs that differ by chance alone none is told, at one per cent each."""
    told = [
        compared(shop(2 * MS, seed=seed, seconds=2), shop(2 * MS, seed=seed + 100, seconds=2))
        for seed in range(8)
    ]
    assert [one.verdict for one in told] == ["alike"] * 8


def test_one_bad_moment_is_no_proof() -> None:
    """A wait of half the recording leaves no slices to shuffle: nothing is concluded from it."""
    long = shop(1000 * MS, seed=1, seconds=1)
    found = compared(long, shop(MS, seed=2))
    assert found.verdict == "not known"
    assert found.changes[0].chance is None


def test_a_lighter_load_is_told_beside_the_verdict() -> None:
    found = compared(shop(2 * MS, seed=1), shop(2 * MS, seed=2, every_ns=100 * MS))
    assert found.verdict == "better"
    assert any("load was not the same" in doubt for doubt in found.doubts)
    assert found.to_json()["changes"][-1]["verdict"] == "fewer", "a lighter load is no success"


def test_nobody_waits_in_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of which "nobody" is said where all was recorded, however different the load was."""

    before = tmp_path / "before"
    recording_file.write(before, quiet(10**7).events(), ABOUT)

    def said(name: str, after: Log) -> str:
        recording_file.write(tmp_path / name, after.events(), ABOUT)
        assert main(["diff", str(before), str(tmp_path / name)]) == 0
        return capsys.readouterr().out

    assert said("same", quiet(10**7)).startswith("Nobody waited for an mmap_lock in either")
    assert said("less", quiet(10**8)).startswith("Nobody waited for an mmap_lock in either")
    torn = quiet(10**7)
    torn.lost(10**9 + 10**6, cpu=1, count=400)
    assert said("torn", torn).startswith(
        "No wait for an mmap_lock was recorded in either, and not all"
    )


def quiet(every_ns: int) -> Log:
    """A task that has its lock to itself for a second."""
    log = Log()
    log.task(1, "a", 1)
    log.owner(MM, 1)
    for now in range(0, 10**9, every_ns):
        log.begin(now, tid=1, op="mmap", length=4096)
        log.asked(now, tid=1, mm=MM, write=True)
        log.acquired(now + 10, tid=1, mm=MM, write=True)
        log.released(now + 20, tid=1, mm=MM, write=True)
        log.end(now + 30, tid=1, op="mmap")
    return log


def test_a_doubt_is_one_sentence_with_one_full_stop() -> None:
    cut = "This recording has no end: its recorder still runs, or was killed."
    before, after = (analyse(shop(MS, seed=seed), "6.18.0", caveats=(cut,)) for seed in (1, 2))
    said = [*sentences(difference(summarise(before), summarise(after)))]
    assert f"Take it with care: before: {cut}" in said
    assert not [line for line in said if line.endswith("..")]


def test_the_command_line_says_it_first_and_can_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(tmp_path / name) for name in ("before.zaplock", "after.zaplock")]
    for name, held_ns in zip(names, (MS, 4 * MS)):
        recording_file.write(name, shop(held_ns, seed=held_ns), ABOUT)
    assert main(["diff", *names, "--fail-if-worse"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("Worse: tasks waited for the lock ")
    assert "munmap" in said
    assert f"next: zaplock report {names[1]}" in said
    with unread([*ZAPLOCK, "diff", *names, "--fail-if-worse"]) as comparing:
        assert comparing.wait() == 1
    assert main(["diff", *reversed(names), "--json", "--fail-if-worse"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["operations"][0]["name"]) == ("better", "munmap")
    assert told["before"]["waited_ns"] > told["after"]["waited_ns"] > 0


def test_a_span_is_shared_out_among_the_slices_that_it_lies_in() -> None:
    begin, span = np.array([5, 12, 0]), np.array([20, 3, 30])
    assert spread(begin, span, 10, 3).tolist() == [15, 23, 15]
