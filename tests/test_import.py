"""Text traces of other tools become recordings."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from zaplock.cli import main
from zaplock.errors import UserError
from zaplock.trace import foreign, recording_file, text
from zaplock.trace.events import NO_OP, EventKind, Events

FIXTURES = Path(__file__).parent / "fixtures" / "recorder"


def parsed(name: str) -> Events:
    events = text.parse((FIXTURES / name).read_text().splitlines()).events
    events.check()
    return events


def operations(events: Events, kind: EventKind, at_least: int = 0) -> list[tuple[str, int]]:
    rows = np.flatnonzero((events["kind"] == kind) & (events["length"] >= at_least))
    return [(events.operations[events["op"][row]], int(events["length"][row])) for row in rows]


@pytest.mark.parametrize("name", ["ftrace-6.18.txt", "perf-script-6.18.txt"])
def test_a_real_trace_tells_the_threads_munmap(name: str) -> None:
    events = parsed(name)
    assert ("munmap", 4 << 20) in operations(events, EventKind.OP_BEGIN, at_least=4 << 20)
    assert {task.comm for task in events.tasks.values()} == {"python3"}
    kinds = np.bincount(events["kind"], minlength=len(EventKind))
    assert min(kinds[EventKind.ASKED], kinds[EventKind.RELEASED], kinds[EventKind.SCHED_IN]) > 0
    # Each munmap downgrades: more acquisitions than requests.
    assert kinds[EventKind.ACQUIRED] > kinds[EventKind.ASKED]


def test_every_line_of_ours_is_read() -> None:
    lines = (FIXTURES / "ftrace-6.18.txt").read_text().splitlines()
    ours = [line for line in lines if "mmap_lock_" in line or "sys_" in line]
    events = parsed("ftrace-6.18.txt")
    assert int((events["kind"] <= EventKind.OP_END).sum()) == len(ours)


def test_the_trace_cmd_form() -> None:
    events = parsed("trace-cmd-format.txt")
    rows = [
        (EventKind(kind).name, int(tid), int(write), int(time_ns) - 100_000_000_000)
        for kind, tid, write, time_ns in zip(
            events["kind"], events["tid"], events["write"], events["time_ns"]
        )
    ]
    assert rows == [
        ("OP_BEGIN", 4711, 0, 1000),
        ("ASKED", 4711, 1, 2000),
        ("ACQUIRED", 4711, 1, 3000),
        ("ACQUIRED", 4711, 0, 10_000),
        ("ASKED", 4712, 0, 20_000),
        ("LOST", 0, 0, 20_000),
        ("RELEASED", 4711, 0, 500_000),
        ("OP_END", 4711, 0, 501_000),
        ("OP_END", 4711, 0, 600_000),
    ]
    assert set(events["mm"].tolist()) == {0, 0xFFFF888100000040}
    assert events["length"][5] == 17
    assert events["result"][8] == -12
    assert events.tasks[4712].comm == "ps aux"
    assert events["op"][1] == NO_OP


def test_a_program_may_pass_any_number() -> None:
    line = "a-1 [000] 1.000001: sys_enter_munmap: addr: 0xfffffffffffff000, len: 0xffffffffffffffff"
    events = text.parse([line]).events
    events.check()
    assert (int(events["address"][0]), int(events["length"][0])) == (2**64 - 4096, -1)


def test_import_writes_a_recording_and_says_what_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.zaplock"
    assert main(["import", str(FIXTURES / "ftrace-6.18.txt"), "-o", str(output), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["events"] == len(recording_file.read(output).events)
    assert f"next: zaplock report {output}" in said.err
    assert recording_file.read_manifest(output).source == "import"


def test_a_text_without_events_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "nothing.txt"
    empty.write_text("hello\n" * 3)
    assert main(["import", str(empty)]) == 2
    assert "trace-cmd record -e mmap_lock" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "missing.txt")]) == 2
    assert main(["import", "-"]) == 2


def test_a_tool_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, trace = foreign.BINARIES[0], tmp_path / "trace.dat"
    tool = tmp_path / kind.command[0]
    tool.write_text("#!/bin/sh\nwhile :; do :; done\n")
    tool.chmod(0o755)
    trace.write_bytes(kind.magic + bytes(100))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(foreign, "_TOOLS_S", 1)
    with pytest.raises(UserError, match="ended by SIGXCPU"):
        foreign.read_foreign(str(trace))
