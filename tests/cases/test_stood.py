"""Nobody waits for the lock, and yet somebody stands: what is said then."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from programs import Program, built, running

from zaplock.recorder.tracefs import opened

pytestmark = pytest.mark.root


def looked_at(program: Path, *arguments: object) -> tuple[str, dict[str, Any], dict[str, float]]:
    """Run a program that says ready, goes on, and says over, while `why` looks at it.

    Return what `why` says, in words and as JSON, and what the program says of itself.
    """
    said: list[str] = []
    for as_json in ([], ["--json"]):
        process = subprocess.Popen(
            [str(program), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        try:
            running = Program(process)
            running.says("ready")
            command = ["why", "-p", str(process.pid), "-d", "30s", *as_json]
            why = subprocess.Popen(
                [sys.executable, "-m", "zaplock", *command], stdout=subprocess.PIPE, text=True
            )
            until_traced(process.pid)
            process.stdin.write("\n\n")
            process.stdin.flush()
            took = running.seconds()
            out, _ = why.communicate()
            said.append(out)
        finally:
            process.kill()
            process.wait()
    return said[0], json.loads(said[1]), took


def until_traced(pid: int) -> None:
    """Wait until a recorder has the process in its pid filter and lets events in."""
    end = time.monotonic() + 250
    with opened() as tracefs:
        while time.monotonic() < end:
            for filters in (tracefs.path / "instances").glob("zaplock-*/set_event_pid"):
                try:
                    mine = str(pid) in filters.read_text().split()
                    if mine and (filters.parent / "tracing_on").read_text().strip() == "1":
                        time.sleep(0.1)
                        return
                except OSError:
                    continue
            time.sleep(0.02)
    pytest.fail("nobody traces it")


def test_a_fork_stalls_its_own_caller(folder: Path) -> None:
    """redis#9030: BGSAVE forks in the only thread; why ends with the process, long before 30 s."""
    words, said, took = looked_at(built("bgsave", folder), 1.0)
    assert said["ended"]
    assert "ended after" in words
    forks = [hold for hold in said["holds"] if hold["operation"] in ("clone", "clone3", "fork")]
    assert forks[0]["mode"] == "exclusive"
    assert "dup_mmap" in forks[0]["stack"]["kernel"]
    assert 0.5 * took["fork"] < forks[0]["hold_ns"] / 1e9 <= took["fork"]
    if took["fork"] > 0.05:
        assert "itself stood in clone" in words


def test_who_waits_for_a_mutex_behind_a_munmap_is_told(folder: Path) -> None:
    """pytorch#77139: the pin thread unmaps with the interpreter's lock in hand."""
    words, said, took = looked_at(built("gil", folder), 1.0, 10)
    if took["stood"] < 0.02:
        pytest.skip("main did not stand for long enough to be told of")
    behind = [one for one in said["slept_behind"] if one["operation"] == "munmap"]
    assert behind, said["slept_behind"]
    assert behind[0]["length"] == 1 << 30
    hold = next(one for one in said["holds"] if one["operation"] == "munmap")
    assert any("unmap" in name for name in hold["stack"]["kernel"])
    assert behind[0]["slept_ns"] >= 0.8 * took["stood"] * 1e9
    assert "until pin-memory" in words
    assert "which was in munmap of 1 GiB for" in words


def test_a_timer_that_fires_meanwhile_makes_nobody_a_culprit_and_a_chain_is_followed(
    folder: Path,
) -> None:
    """sleeper's timers fire in the culprit's munmap; last stands behind middle, that behind it."""
    with running(built("hog", folder)):
        _, said, _ = looked_at(built("timer", folder), 192, 5)
    behind = [one for one in said["slept_behind"] if one["operation"] == "munmap"]
    told = {one["comm"]: one for one in sorted(behind, key=lambda one: one["begin_ns"])}
    assert "sleeper" not in told
    assert told["middle"]["through"] == []
    assert told["last"]["through"] == ["middle"]
    assert told["last"]["woken_by_comm"] == "middle"
    assert told["last"]["culprit_comm"] == "culprit"
