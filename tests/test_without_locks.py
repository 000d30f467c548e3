"""A recording without lock events tells what it has and never says that nobody waited."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from zaplock.cli import main
from zaplock.trace import recording_file
from zaplock.trace.events import EVENT, EventKind, Events
from zaplock.trace.manifest import Manifest

TRACE = """\
# os release : 4.18.0
     db-7   [000] ....  10.000001: sys_munmap(addr: 7f0000000000, len: 40000000)
     db-8   [001] d...  10.000009: sched_switch: prev_comm=db prev_pid=8 prev_state=D ==> next_pid=0
     db-7   [000] ....  10.900001: sys_munmap -> 0x0
     db-7   [000] d...  10.900005: sched_waking: comm=db pid=8 prio=120 target_cpu=001
     <idle>-0 [001] d...  10.900009: sched_switch: prev_pid=0 prev_state=R ==> next_pid=8
"""
UNKNOWN = "is not known"


@pytest.fixture
def without(tmp_path: Path) -> str:
    """A trace of munmap and of a sleeper that it kept waiting, as a kernel before 5.11 gives it."""
    source, kept = tmp_path / "trace.txt", tmp_path / "4.18.zaplock"
    source.write_text(TRACE)
    assert main(["import", str(source), "-o", str(kept)]) == 0
    return str(kept)


def test_the_report_says_that_it_does_not_know_who_waited(
    without: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["report", without]) == 0
    out, err = capsys.readouterr()
    assert "Who waited for an mmap_lock is not known." in out
    assert "no lock events" in out + err
    assert "Nobody waited" not in out
    assert "without the mmap_lock" not in out  # nor is that known
    assert "not for the mmap_lock" not in out


def test_the_other_views_do_not_either(
    without: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["report", without, "--html", str(page)]) == 0
    assert UNKNOWN in page.read_text()
    capsys.readouterr()
    assert main(["report", without, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sees_locks"] is False
    assert told["slept_behind"] == []
    assert [call["without_lock"] for call in told["calls"]] == [None]
    assert UNKNOWN in told["caveats"][0]
    trace = tmp_path / "trace.pftrace"
    assert main(["report", without, "--perfetto", str(trace)]) == 0
    assert UNKNOWN.encode() in trace.read_bytes()
    for verb in (["replay"], ["advise"], ["diff", without]):
        assert main([*verb, without]) == 2
        assert "no lock events" in capsys.readouterr().err.splitlines()[-1]


def test_a_recording_that_would_have_seen_them_may_say_that_nobody_waited(
    without: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = recording_file.read(without)
    assert not read.sees_locks
    quiet = tmp_path / "quiet.zaplock"
    seen = Manifest(
        operations=read.events.operations, enabled=("zaplock:down_read", "zaplock:up_read")
    )
    recording_file.write(quiet, read.events, seen)
    capsys.readouterr()
    assert main(["report", str(quiet)]) == 0
    assert "Nobody waited for an mmap_lock" in capsys.readouterr().out


def test_one_lock_event_is_enough() -> None:
    none = Events({name: column[:0] for name, column in _one().columns.items()}, ())
    assert not recording_file.sees_locks(none, Manifest(source="import"))
    assert recording_file.sees_locks(_one(), Manifest(source="import"))
    assert recording_file.sees_locks(none, Manifest(source="simulation"))


def _one() -> Events:
    columns = {name: np.zeros(1, EVENT[name]) for name in EVENT.names or ()}
    columns["kind"][:] = EventKind.ASKED
    columns["op"][:] = -1
    return Events(columns, ())
