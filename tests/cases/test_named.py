"""What made others wait is named in a recording, also where no recorded call was behind it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import Program, built, running
from test_already_so import zaplock

from zaplock.advise.costs import Costs
from zaplock.cli import main

Say = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def app(folder: Path) -> Iterator[Program]:
    with running(built("app", folder), 1.0) as program:
        program.says("go")
        yield program


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """What a verb prints with --json; advice on who reads needs no costs of freeing."""
    monkeypatch.setattr("zaplock.cli.advise._costs", lambda: Costs(1 << 28, {}))

    def say(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*map(str, arguments), "--json"]) == 0
        said: dict[str, Any] = json.loads(capsys.readouterr().out)
        return said

    return say


def operations(said: dict[str, Any], comm: str) -> list[str | None]:
    """List the operations of a task that others waited for, the greatest share first."""
    blames = [blame for wait in said["waits"] for blame in wait["blame"] if blame["comm"] == comm]
    return [blame["operation"] for blame in sorted(blames, key=lambda one: -one["share_ns"])]


def plain(operation: str) -> str:
    """Leave out whose file of /proc it is."""
    return re.sub(r"/proc/\d+/", "", operation)


def largest(pid: int) -> tuple[int, int]:
    """Return where the largest mapping of a process is, and its length."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    areas = [[int(bound, 16) for bound in line.split()[0].split("-")] for line in lines]
    return max(((end - start, start) for start, end in areas))[::-1]


@pytest.mark.parametrize(
    ("arguments", "operation"),
    [
        (("read", "smaps_rollup"), "read of smaps_rollup"),
        (("read", "smaps"), "read of smaps"),
        (("write", "clear_refs", "1"), "write of clear_refs"),
        # py-spy#26: a profiler that reads memory
        (("vm",), "process_vm_readv"),
    ],
)
def test_a_reader_that_comes_while_it_is_recorded(
    folder: Path,
    app: Program,
    tmp_path: Path,
    say: Say,
    arguments: tuple[str, ...],
    operation: str,
) -> None:
    how, *rest = arguments
    what = (f"/proc/{app.pid}/{rest[0]}", *rest[1:]) if rest else (app.pid, *largest(app.pid))
    reader = " ".join(map(str, (built("reader", folder), 0, how, *what)))
    again = f"while :; do {reader}; done"
    file = tmp_path / "read.zaplock"
    with subprocess.Popen(
        ["sh", "-c", again], stdout=subprocess.DEVNULL, start_new_session=True
    ) as readers:
        zaplock("record", "-p", app.pid, "-d", "1s", "-o", file)
        os.killpg(readers.pid, signal.SIGKILL)
    said = say("report", file, "--top", "50")
    named = operations(said, "agent")
    assert named, f"nobody waited for the reader: {said['waits'][:2]}"
    # One that was found at it when the recording began is told with whose file it is.
    assert plain(named[0]) == operation
    blames = [blame for wait in said["waits"] for blame in wait["blame"]]
    theirs = [blame for blame in blames if plain(blame["operation"] or "") == operation]
    stacks = [blame.get("stack") for blame in theirs if blame["comm"] == "agent"]
    assert any(stack and stack["kernel"] for stack in stacks), stacks[:5]
    advice = say("advise", file)["advice"]
    readers_told = [one for one in advice if one["means"] == "reader"]
    assert any(plain(one["what"]).startswith(operation) for one in readers_told)


def test_a_fault_is_named_whoever_it_happens_to(folder: Path, tmp_path: Path, say: Say) -> None:
    """The thread faults in read(), or before that in its own code or on its way out of a sleep."""
    file = tmp_path / "kfault.zaplock"
    with running(built("kfault", folder), 1, 0) as program:
        zaplock("record", "-p", program.pid, "-d", "1s", "-o", file)
    said = say("report", file, "--top", "50")
    long = [wait for wait in said["waits"] if wait["wait_ns"] > 1_000_000]
    named = {wait["operation"] for wait in long if wait["comm"] == "io-read"}
    if not named:
        pytest.skip("the thread did not wait this time")
    faults = {"page fault", "read (kernel-mode fault)", "clock_nanosleep (kernel-mode fault)"}
    assert named <= faults
