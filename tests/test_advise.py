"""Advice: from what a recording shows, from what /proc shows, never by taking the lock."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zaplock.advise.advice import Advice
from zaplock.advise.advice_by_kind import BRK, MUNMAP, Means, kind_of
from zaplock.advise.calls import RecordedAdvice, from_recording
from zaplock.advise.costs import Costs, measure_costs
from zaplock.advise.mappings import advise, from_process, parse_maps, parse_status, warnings
from zaplock.cli import advise as verb
from zaplock.cli import main
from zaplock.errors import UserError
from zaplock.system_calls import TRACED_NAMES
from zaplock.trace.analysis import analyse
from zaplock.trace.events import EventKind
from zaplock.trace.handwritten import Log
from zaplock.trace.recording_file import Manifest, Writer, write
from zaplock.trace.summary import summarise

MS = 1_000_000
GIB = 1 << 30
COSTS = Costs(
    1 << 28,
    {
        "munmap": 7 * MS,
        "brk": 7 * MS,
        "munmap of huge pages": MS // 2,
        "piece of a release": MS,
        "piece of a populate": 2 * MS,
        "fork without it": MS // 2,
    },
)


def hold(log: Log, begin_ms: int, length_ms: int, tid: int, op: str, **call: int) -> None:
    """Write one call that holds the lock for write until it ends."""
    log.begin(begin_ms * MS, tid=tid, op=op, **call)
    log.asked(begin_ms * MS + 1, tid=tid, mm=7, write=True)
    log.acquired(begin_ms * MS + 2, tid=tid, mm=7, write=True)
    log.released((begin_ms + length_ms) * MS, tid=tid, mm=7, write=True)
    log.end((begin_ms + length_ms) * MS + 1, tid=tid, op=op)


def wait(log: Log, begin_ms: int, end_ms: int, tid: int) -> None:
    """Write an mmap that waits from begin to end."""
    log.begin(begin_ms * MS, tid=tid, op="mmap", length=4096)
    log.asked(begin_ms * MS + 1, tid=tid, mm=7, write=True)
    log.acquired(end_ms * MS + 10, tid=tid, mm=7, write=True)
    log.released(end_ms * MS + 1000, tid=tid, mm=7, write=True)
    log.end(end_ms * MS + 1001, tid=tid, op="mmap")


def story() -> Log:
    """A munmap of 8 GiB behind which somebody waits 250 ms; a fork and more without waiters."""
    log = Log()
    log.task(1, "worker", 1, "server")
    log.task(2, "victim", 1, "server")
    hold(log, 100, 300, 1, "munmap", address=1 << 40, length=8 * GIB)
    wait(log, 150, 400, 2)
    hold(log, 500, 40, 1, "clone")
    hold(log, 600, 20, 1, "mmap", length=GIB, detail=0x32)
    hold(log, 700, 20, 1, "mmap", length=GIB, detail=0x22)
    hold(log, 800, 30, 1, "mmap", length=GIB, detail=0x8022)
    hold(log, 900, 50, 1, "madvise", length=GIB, detail=4)
    hold(log, 1000, 60, 1, "madvise", length=GIB, detail=23)
    return log


def told_of(log: Log, *, least_ns: int = MS) -> RecordedAdvice:
    return from_recording(summarise(analyse(log.events(), "6.18")), COSTS, least_ns=least_ns)


def advice_of(log: Log, *, least_ns: int = MS) -> dict[str, Advice]:
    return {one.kind.name: one for one in told_of(log, least_ns=least_ns).advice}


def test_the_call_behind_which_somebody_waited_is_named() -> None:
    munmap = advice_of(story())["munmap"]
    assert munmap.what == "munmap by worker of server (pid 1)"
    assert munmap.length == 8 * GIB
    assert munmap.seen
    assert munmap.now_ns == pytest.approx(250 * MS, rel=0.01)
    assert munmap.caused_ns == munmap.now_ns
    assert munmap.then_ns == MS
    assert munmap.gain_ns == munmap.now_ns - MS
    assert "zaplock.release" in munmap.change


def test_what_will_stall_the_first_who_comes_is_named_too() -> None:
    found = advice_of(story())
    assert set(found) == {
        "munmap",
        "fork",
        "mmap over it",
        "mmap",
        "MAP_POPULATE",
        "madvise(MADV_DONTNEED)",
        "madvise(MADV_POPULATE_WRITE)",
    }
    assert (found["fork"].now_ns // MS, found["fork"].then_ns) == (39, MS // 2)
    assert not found["fork"].seen
    assert found["madvise(MADV_POPULATE_WRITE)"].now_ns // MS == 59
    assert "nobody waited" in found["madvise(MADV_DONTNEED)"].note


def test_short_holds_are_let_be() -> None:
    assert set(advice_of(story(), least_ns=100 * MS)) == {"munmap"}


def test_every_recorded_call_has_advice_of_its_own_or_a_reason_why_not() -> None:
    for call in TRACED_NAMES:
        kind = kind_of(call, 0, GIB)
        assert kind.change
        assert kind.means is Means.RELEASE or "zaplock.release" not in kind.change


def test_a_piece_that_is_no_shorter_than_the_call_is_not_advised() -> None:
    """52.8 ms for 4 KiB: the reason is not its size, and no smaller piece is to be had."""
    log = Log()
    log.task(1, "worker", 1, "server")
    hold(log, 100, 53, 1, "munmap", address=1 << 40, length=4096)
    hold(log, 200, 21, 1, "munmap", address=1 << 40, length=64 << 10)
    (found,) = told_of(log).advice
    assert found.what == "munmap: longer than its size explains by worker of server (pid 1)"
    assert found.means is Means.NONE
    assert "release" not in found.change
    assert "--sched" in found.change


def test_a_holder_without_a_cpu_is_told_to_get_one() -> None:
    log = Log()
    log.task(1, "worker", 1, "server")
    hold(log, 100, 100, 1, "munmap", address=1 << 40, length=8 * GIB)
    log.add(110 * MS, EventKind.SCHED_OUT, 1, detail=0)
    log.add(195 * MS, EventKind.SCHED_IN, 1)
    (found,) = told_of(log).advice
    assert found.means is Means.CPU
    assert "cpu.max" in found.change
    assert "release" not in found.change


def test_a_holder_that_slept_is_not_told_to_free_by_pieces() -> None:
    log = Log()
    log.task(1, "worker", 1, "server")
    hold(log, 100, 100, 1, "munmap", address=1 << 40, length=8 * GIB)
    log.add(110 * MS, EventKind.SCHED_OUT, 1, detail=2)
    log.add(195 * MS, EventKind.WAKEUP, 1)
    log.add(196 * MS, EventKind.SCHED_IN, 1)
    (found,) = told_of(log).advice
    assert "slept" in found.change
    assert "release" not in found.change


def test_a_reader_from_outside_is_named_with_what_to_switch_off() -> None:
    """Others were stalled for 230 ms by a call that is not recorded: never "nothing stalls"."""
    log = Log()
    log.task(1, "mapper", 1, "server")
    log.task(9, "telegraf", 9, "telegraf")
    log.owner(7, 1)
    log.asked(100 * MS, tid=9, mm=7, write=False)
    log.acquired(100 * MS + 500, tid=9, mm=7, write=False)
    log.released(337 * MS, tid=9, mm=7, write=False)
    wait(log, 107, 337, 1)
    told = told_of(log)
    (found,) = (one for one in told.advice if one.means is Means.READER)
    assert found.what == "reader by telegraf (pid 9)"
    assert found.note == "held it for 237 ms"
    assert found.now_ns == pytest.approx(230 * MS, rel=0.01)
    assert "procstat" in found.change
    assert told.waits == 1


def test_a_call_that_began_before_the_recording_gets_no_advice_on_pages() -> None:
    """Which advice it gave is not known: it may be populating what a release would free."""
    log = Log()
    log.task(1, "worker", 1, "server")
    log.asked(99 * MS, tid=1, mm=7, write=False)
    log.acquired(100 * MS, tid=1, mm=7, write=False)
    log.released(200 * MS, tid=1, mm=7, write=False)
    log.end(201 * MS, tid=1, op="madvise")
    (found,) = told_of(log).advice
    assert found.kind.name == "madvise"
    assert found.means is Means.NONE


def test_waits_that_nobody_is_known_to_be_behind_are_not_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cheap: None
) -> None:
    log = Log()
    log.task(1, "mapper", 1, "server")
    wait(log, 100, 400, 1)
    write(tmp_path / "dark", log.events())
    assert main(["advise", str(tmp_path / "dark")]) == 0
    out = capsys.readouterr().out
    assert "nothing stalls others" not in out
    assert "1 wait took 1ms or longer, 300 ms in all" in out


MAPS = f"""\
{0x10000000:x}-{0x10000000 + GIB:x} rw-p 00000000 00:00 0 [heap]
{0x200000000:x}-{0x200000000 + 4 * GIB:x} rw-p 00000000 00:00 0
{0x400000000:x}-{0x400000000 + 64 * GIB:x} ---p 00000000 00:00 0
{0x2000000000:x}-{0x2000000000 + 2 * GIB:x} rw-s 00000000 00:01 5 /dev/shm/loader one
{0x3000000000:x}-{0x3000000000 + 4096:x} r--p 00000000 08:01 5 /lib/libc.so.6
{0x7FF000000000:x}-{0x7FF000000000 + GIB:x} rw-p 00000000 00:00 0 [stack]
"""


def test_mappings_are_judged_by_what_can_be_present() -> None:
    status = parse_status(f"RssAnon:\t{2 * GIB >> 10} kB\nRssShmem:\t{GIB >> 10} kB\nThreads:\t5\n")
    found = advise(list(parse_maps(MAPS)), status, COSTS, least_ns=MS)
    assert [one.what.split(maxsplit=1)[1] for one in found] == [
        "[heap]",
        "anonymous",
        "/dev/shm/loader one",
    ]
    heap, anonymous, shared = found
    assert (heap.kind.name, heap.now_ns, heap.then_ns) == ("brk", 28 * MS, None)
    assert (anonymous.kind.name, anonymous.length, anonymous.now_ns) == ("munmap", 4 * GIB, 56 * MS)
    assert "2 GiB present at most; 4 ms if huge" in anonymous.note
    assert shared.now_ns == 28 * MS
    assert not any(one.seen for one in found)


def test_advice_without_gain_is_none() -> None:
    assert Advice("x", MUNMAP, 1, 10, 5, False).worth_it
    assert not Advice("x", MUNMAP, 1, 10, 6, False).worth_it
    assert Advice("x", MUNMAP, 1, 10, 6, True).worth_it
    assert Advice("x", BRK, 1, 10, None, False).worth_it


def test_where_a_piece_takes_as_long_as_was_waited_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cheap: None
) -> None:
    """Who made others wait is named all the same."""
    log = Log()
    log.task(1, "worker", 1, "server")
    log.task(2, "victim", 1, "server")
    hold(log, 100, 51, 1, "munmap", address=1 << 40, length=8 * GIB)
    wait(log, 150, 151, 2)
    write(tmp_path / "short", log.events())
    assert main(["advise", str(tmp_path / "short")]) == 0
    told, _ = capsys.readouterr()
    assert (
        "munmap by worker of server (pid 1): little is gained: the longest piece took 1 ms" in told
    )
    write(tmp_path / "story", story().events())
    assert main(["advise", str(tmp_path / "story")]) == 0
    assert "little is gained" not in capsys.readouterr().out


def test_a_real_process_is_looked_at_without_its_lock() -> None:
    """strace sees every file that is opened: nothing that takes the target's mmap_lock."""
    mapping = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.write(b"x" * len(mapping))
    code = f"""
from zaplock.advise.costs import Costs
from zaplock.advise.mappings import from_process, warnings
costs = Costs(1 << 28, {{"munmap": 7_000_000, "brk": 0}})
print([one.length for one in from_process({os.getpid()}, costs, least_ns=1_000_000)])
warnings({os.getpid()})
"""
    command = ["strace", "-f", "-e", "trace=open,openat", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    lengths = json.loads(done.stdout)
    assert any(length >= 64 << 20 for length in lengths)
    opened = {
        line.split('"')[1].rsplit("/", 1)[1]
        for line in done.stderr.splitlines()
        if f"/proc/{os.getpid()}/" in line
    }
    assert opened <= {"maps", "status", "comm", "exe"}
    mapping.close()


def test_processes_that_cannot_be_read_are_named() -> None:
    with pytest.raises(UserError, match="no process 4194305"):
        from_process(4194305, COSTS, least_ns=MS)
    assert warnings(os.getpid()) == [] or "one thread" in warnings(os.getpid())[0]


@pytest.mark.by_chance
def test_this_kernel_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zaplock.advise.costs.LENGTHS", (32 << 20,))
    costs = measure_costs()
    assert {"munmap", "mmap over it", "mremap", "madvise", "MAP_POPULATE"} <= set(costs.took_ns)
    assert costs.of("munmap", 2 * costs.length) == 2 * costs.took_ns["munmap"]
    assert costs.fixed("piece of a release") < costs.took_ns["munmap"]  # type: ignore[operator]
    assert costs.took_ns["munmap of huge pages"] < costs.took_ns["munmap"]


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs that were measured before."""
    monkeypatch.setattr(verb, "_costs", lambda: COSTS)


def test_the_verb_reads_a_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cheap: None
) -> None:
    write(tmp_path / "story", story().events())
    assert main(["advise", str(tmp_path / "story"), "--json"]) == 0
    out, err = capsys.readouterr()
    found: dict[str, Any] = json.loads(out)
    assert found["advice"][0]["kind"] == "munmap"
    assert found["costs"]["length"] == 1 << 28
    assert "next: zaplock replay" in err
    assert main(["advise", str(tmp_path / "story"), "--top", "1"]) == 0
    out, _ = capsys.readouterr()
    assert "munmap by" in out
    assert "fork" not in out


def test_advice_from_a_recording_without_an_end_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cheap: None
) -> None:
    events = story().events()
    Writer(tmp_path / "story", Manifest(operations=events.operations)).append(events.columns)
    assert main(["advise", str(tmp_path / "story"), "--json"]) == 0
    [caveat, *_] = json.loads(capsys.readouterr().out)["caveats"]
    assert "has no end" in caveat
    assert main(["advise", str(tmp_path / "story")]) == 0
    assert caveat in capsys.readouterr().out


def test_the_verb_says_when_nothing_is_worth_changing(
    capsys: pytest.CaptureFixture[str], cheap: None
) -> None:
    assert main(["advise", "-p", str(os.getpid()), "--least", "1h"]) == 0
    assert "nothing stalls others for 1h" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of them"),
        (["x", "-p", "1"], "one of them"),
        (["/nowhere"], "/nowhere"),
        (["-p", "4194305"], "no process"),
        (["-p", "1", "--top", "0"], "--top 0"),
        (["-p", "1", "--least", "soon"], "soon"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], cheap: None
) -> None:
    assert main(["advise", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
