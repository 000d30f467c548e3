"""The always-on detector: quiet while nobody waits, then the very wait that was too long."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from zaplock.cli import main
from zaplock.recorder.beginning import Beginning
from zaplock.recorder.capturing import capturing
from zaplock.recorder.flight_limits import Fired
from zaplock.recorder.meanings import CONTENTION, MMAP_LOCK, NAMING
from zaplock.recorder.naming import TaskNames
from zaplock.recorder.options import Options
from zaplock.recorder.snapshot import Seen, TaskSnapshot
from zaplock.recorder.watch import Queued, WatchedQueue, noticed, watch
from zaplock.trace import recording_file
from zaplock.trace.analysis import analyse
from zaplock.trace.events import EVENT, NO_OP, EventKind, Events, FoundTask
from zaplock.trace.waits import WaitOutcome

MS = 1_000_000
STALLS = """
import mmap, sys, threading, time
def populated(size):
    area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    area.madvise(22)  # MADV_POPULATE_READ: the zero page
    return area
def other():
    while True:
        mmap.mmap(-1, 4096).close()
        time.sleep(0.001)
areas = [populated(4 << 30) for _ in range(2)]
print("ready", flush=True)
sys.stdin.readline()
threading.Thread(target=other, daemon=True).start()
while True:
    time.sleep(0.3)
    areas.append(populated(4 << 30))
    areas.pop(0).close()
"""


@contextlib.contextmanager
def running(script: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.root
def test_the_wait_that_woke_the_recorder_is_in_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "a.zaplock"
    with running(STALLS) as process:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        asked = ["record", "-p", str(process.pid), "--watch", "--stop-after-wait", "20ms"]
        assert main([*asked, "--after", "1s", "-d", "250s", "-o", str(path)]) == 0
    recording = recording_file.read(path)
    manifest = recording.manifest
    assert "wait of" in manifest.notes[0]
    recording.events.check()
    analysis = analyse(
        recording.events, manifest.kernel, span=(manifest.started_ns, manifest.ended_ns)
    )
    waits = analysis.waits
    waits.check()
    analysis.holds.check()
    # The first seconds' tasks and calls are all there, with sizes.
    munmap = recording.events.operations.index("munmap")
    begun = recording.events["kind"] == EventKind.OP_BEGIN
    assert bool((recording.events["op"][begun] == munmap).any())
    longest = int(np.argmax(waits["wait_ns"]))
    assert waits["wait_ns"][longest] >= 20 * MS
    # Who made it wait is known where the lock was given back when the lock events had come on: who
    # got it may be told of that some ms later, on a busy machine.
    events = recording.events
    others = (events["kind"] == EventKind.RELEASED) & (events["tid"] != waits["tid"][longest])
    given_back = events["time_ns"][others]
    ended_ns = int(waits["start_ns"][longest] + waits["wait_ns"][longest])
    if bool(((given_back > manifest.started_ns) & (given_back <= ended_ns)).any()):
        assert analysis.explain(longest).culprit is not None
    # What was before the other events came on is nobody's, unless who had it was found by a look.
    had = {task.tid for task in recording.events.found if task.does == "holds"}
    early = np.flatnonzero(waits["start_ns"] < manifest.started_ns)
    for wait in early.tolist():
        dark_ns = manifest.started_ns - int(waits["start_ns"][wait])
        found = analysis.explain(wait)
        if waits["outcome"][wait] == WaitOutcome.ACQUIRED and not (
            had & {blame.tid for blame in found.blame}
        ):
            assert found.unexplained_ns >= min(dark_ns, int(waits["wait_ns"][wait]))


@pytest.mark.root
def test_while_nobody_waits_nothing_is_recorded_and_nothing_but_contention_is_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = """
import mmap
print("ready", flush=True)
while True: mmap.mmap(-1, 4096).close()
"""
    path = tmp_path / "a.zaplock"
    with running(script) as process:
        with capturing(Options(pids=(process.pid,), watch=True)) as capture:
            on = {event for one in capture.instances for event in enabled(one.path)}
            assert on == {*CONTENTION, *NAMING}
            capture.start()
            time.sleep(0.2)
            assert sum(len(pages) for _, pages in capture.buffers.drain()) < 65536
            capture.widen()
            on = {event for one in capture.instances for event in enabled(one.path)}
            assert {*MMAP_LOCK, "syscalls:sys_enter_munmap"} < on
            drained, end = 0, time.monotonic() + 250
            while drained <= 65536 and time.monotonic() < end:
                time.sleep(0.05)
                drained += sum(len(pages) for _, pages in capture.buffers.drain())
            assert drained > 65536
        asked = ["record", "-p", str(process.pid), "--watch", "-d", "1s", "-o", str(path)]
        assert main(asked) == 0
    assert "nothing was recorded" in capsys.readouterr().out
    assert len(recording_file.read(path).events) == 0


def enabled(instance: Path) -> list[str]:
    return (instance / "set_event").read_text().split()


@pytest.mark.parametrize("arguments", [
    ["--watch"],
    ["--watch", "--", "true"],
    ["--watch", "-p", "1", "--stop-after-hold", "1s"],
])  # fmt: skip
def test_what_can_not_be_watched_is_said(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", "-o", str(tmp_path / "a"), *arguments]) == 2
    assert "--watch" in capsys.readouterr().err


def contention(*rows: tuple[float, EventKind, int, int]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Make (ms, kind, tid, flags) into columns."""
    columns = {name: np.zeros(len(rows), EVENT[name]) for name in EVENT.names or ()}
    for number, (at_ms, kind, tid, flags) in enumerate(rows):
        columns["time_ns"][number] = int(at_ms * MS)
        columns["kind"][number], columns["tid"][number] = kind, tid
        columns["detail"][number] = flags
    columns["op"][:] = NO_OP
    return columns


def test_a_wait_is_late_while_it_lasts_and_also_when_it_is_over() -> None:
    queue = WatchedQueue()
    begin, end = EventKind.CONTENTION_BEGIN, EventKind.CONTENTION_END
    short = contention((0, begin, 7, 4), (9, end, 7, 0), (10, begin, 8, 2))
    assert queue.late(short, 15 * MS, 10 * MS, 1) is None
    assert queue.due_ns(10 * MS) == 20 * MS  # the reader's tenth millisecond
    fired = queue.late(contention(), 21 * MS, 10 * MS, 1)
    assert fired
    assert (fired.tid, fired.start_ns, fired.write) == (8, 10 * MS, False)
    over = contention((22, end, 8, 0), (30, begin, 9, 4), (41, end, 9, 0))
    fired = queue.late(over, 50 * MS, 10 * MS, 1)
    assert fired
    assert queue.before(1 << 40) == []


def spinning(tid: int, since_ns: int, mm: int = 1) -> FoundTask:
    """Make a task that a look finds on its way into the queue: no event tells if it gets there."""
    stack = ("rwsem_down_write_slowpath", "vm_mmap_pgoff")
    return FoundTask(
        tid, since_ns, "R", "", "mmap", stack, does="waits", exclusive=True, mm=mm,
        since_ns=since_ns,
    )  # fmt: skip


def test_who_was_found_waiting_is_late_only_where_he_waits_still() -> None:
    queue = WatchedQueue()
    queue.begin_with([spinning(7, 0), spinning(8, MS)])
    fired = queue.late(contention(), 20 * MS, 10 * MS, 1)
    assert fired
    assert fired.tid == 7
    assert queue.confirms(fired, [spinning(7, 20 * MS)])
    assert not queue.confirms(fired, [])
    fired = queue.late(contention(), 20 * MS, 10 * MS, 1)
    assert fired
    assert fired.tid == 8  # 7 is through, and nobody hears of it again


def test_a_found_wait_that_an_event_ended_was_one() -> None:
    queue = WatchedQueue()
    queue.begin_with([spinning(7, 0)])
    over = contention((15, EventKind.CONTENTION_END, 7, 0))
    fired = queue.late(over, 20 * MS, 10 * MS, 1)
    assert fired
    assert fired.lasted_ns == 15 * MS
    assert queue.confirms(fired, [])


def test_who_has_just_come_when_all_is_told_is_late_no_sooner_than_others() -> None:
    queue = WatchedQueue()
    assert queue.late(contention((0, BEGIN, 7, 4), (19, BEGIN, 8, 2)), 20 * MS, 10 * MS, 1)
    queue.tell(20 * MS)
    assert queue.due_ns(10 * MS) == 29 * MS
    assert queue.late(contention((22, END, 8, 0), (23, BEGIN, 9, 2)), 28 * MS, 10 * MS, 1) is None
    fired = queue.late(contention(), 33 * MS, 10 * MS, 1)
    assert fired
    assert fired.tid == 9  # 7 is told again when it has waited twice as long
    fired = queue.late(contention((34, END, 9, 0)), 40 * MS, 10 * MS, 1)
    assert fired
    assert fired.tid == 7


@pytest.mark.root
def test_whoever_spun_for_the_lock_wakes_no_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "print('ready', flush=True); import sys; sys.stdin.read()"
    with (
        running(script) as process,
        capturing(Options(pids=(process.pid,), watch=True)) as capture,
    ):
        capture.start()
        mm = capture.target_mm or 0

        class Look:
            def found(self, _: object) -> tuple[FoundTask, ...]:
                return (spinning(process.pid, time.monotonic_ns(), mm),)

        monkeypatch.setattr("zaplock.recorder.watch.first_look", lambda _: Look())
        end = time.monotonic() + 0.5
        over = lambda: time.monotonic() > end  # noqa: E731
        assert watch(capture, TaskNames(), 50 * MS, over, []) is None


@dataclass
class Widened:
    """A capture whose lock events came on at `on_ms`, and what it looked at then."""

    on_ms: int
    pids: tuple[int, ...] = ()

    def widen(self) -> int:
        return self.on_ms * MS

    @property
    def buffers(self) -> Self:
        return self

    def drain(self) -> list[object]:
        return []


@dataclass
class Told:
    """A stream that has these events."""

    columns: dict[str, np.ndarray]  # type: ignore[type-arg]

    def feed(self, *_: object) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        return self.columns


def noticed_events(
    queue: WatchedQueue,
    first: dict[str, np.ndarray],  # type: ignore[type-arg]
    monkeypatch: pytest.MonkeyPatch,
    *seen: FoundTask,
) -> Events:
    """Return what a recording begins with whose lock events came on at 30 ms, of two mms."""
    look = TaskSnapshot(tuple(Seen(task, 1, 1) for task in seen), whole=True)
    beginning = Beginning(look, 0, {1: 1}, {})
    monkeypatch.setattr("zaplock.recorder.watch.first_look", lambda _: beginning)
    fired = Fired("wait", 7, 1, 0, 20 * MS, True)
    operations: list[str] = []
    queues = {1: queue, 1 << 20: WatchedQueue()}
    came = noticed(Widened(30), Told(first), queues, fired, operations)  # type: ignore[arg-type]
    found = Events(came.first, tuple(operations), found=came.found)
    found.check()
    return found


BEGIN, END = EventKind.CONTENTION_BEGIN, EventKind.CONTENTION_END
ASKED, GOT, FREED = EventKind.ASKED, EventKind.ACQUIRED, EventKind.RELEASED


def locked(*rows: tuple[float, EventKind, int, int]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Make (ms, kind, tid, write) into columns of mm 1's lock."""
    columns = contention(*rows)
    is_lock = columns["kind"] <= FREED
    columns["mm"][:], columns["success"][:] = 1, columns["kind"] == GOT
    columns["write"][is_lock] = columns["detail"][is_lock]
    columns["detail"][is_lock], columns["address"][~is_lock] = 0, 1
    return columns


def spans(events: Events, kind: str) -> list[tuple[int, float, float]]:
    """List (tid, begin, end) of the waits or holds, in milliseconds."""
    analysis = analyse(events, "", span=(30 * MS, 100 * MS))
    found = getattr(analysis, kind)
    found.check()
    tids, begin_ns = found["tid"].tolist(), found["start_ns"].tolist()
    end_ns = (found["start_ns"] + found[found.LENGTH]).tolist()
    return [(tid, at / MS, end / MS) for tid, at, end in zip(tids, begin_ns, end_ns)]


def test_a_wait_that_was_over_before_the_lock_events_came_on_is_there_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = WatchedQueue()
    assert queue.late(contention((2, BEGIN, 7, 4), (25, END, 7, 0)), 26 * MS, 20 * MS, 1)
    later = locked((40, ASKED, 7, 0), (41, GOT, 7, 0), (42, FREED, 7, 0))
    events = noticed_events(queue, later, monkeypatch)
    assert spans(events, "waits") == [(7, 2, 25), (7, 40, 41)]
    assert spans(events, "holds") == [(7, 41, 42)]  # of the first hold nothing was seen


def test_a_wait_that_ends_while_the_lock_events_come_on_is_there_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = WatchedQueue()
    assert queue.late(contention((2, BEGIN, 7, 4)), 26 * MS, 20 * MS, 1)
    first = locked((28, END, 7, 0), (60, FREED, 7, 1))
    events = noticed_events(queue, first, monkeypatch)
    assert spans(events, "waits") == [(7, 2, 28)]
    assert spans(events, "holds") == [(7, 30, 60)]  # since when they were on it is seen


def test_a_wait_that_ends_before_the_first_look_at_the_events_is_there_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = WatchedQueue()
    assert queue.late(contention((2, BEGIN, 7, 4)), 26 * MS, 20 * MS, 1)
    first = locked(
        (27, ASKED, 8, 1), (27, BEGIN, 8, 4), (33, END, 7, 0), (33, GOT, 7, 1), (50, FREED, 7, 1),
        (50, END, 8, 0), (50, GOT, 8, 1), (51, FREED, 8, 1),
    )  # fmt: skip
    events = noticed_events(queue, first, monkeypatch)
    assert spans(events, "waits") == [(7, 2, 33), (8, 27, 50)]
    assert spans(events, "holds") == [(7, 33, 50), (8, 50, 51)]


def test_who_is_found_with_the_lock_has_waited_for_it_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = WatchedQueue()
    assert queue.late(contention((2, BEGIN, 7, 4), (25, END, 7, 0)), 26 * MS, 20 * MS, 1)
    holder = FoundTask(7, 31 * MS, "R", "", "mremap", (), does="holds", exclusive=True)
    waiter = replace(holder, tid=8, does="waits", since_ns=10 * MS)
    rest = locked((60, FREED, 7, 1), (60, END, 8, 0), (60, GOT, 8, 1), (61, FREED, 8, 1))
    events = noticed_events(queue, rest, monkeypatch, holder, waiter)
    assert spans(events, "waits") == [(7, 2, 25), (8, 10, 60)]
    assert spans(events, "holds") == [(7, 25, 60), (8, 60, 61)]  # since 8 queued, but not before


def test_a_wait_that_was_killed_got_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = WatchedQueue()
    killed = contention((2, BEGIN, 7, 4), (25, END, 7, 0))
    killed["result"][1] = -4
    assert queue.late(killed, 26 * MS, 20 * MS, 1)
    events = noticed_events(queue, locked(), monkeypatch)
    analysis = analyse(events, "", span=(30 * MS, 100 * MS))
    assert analysis.waits["outcome"].tolist() == [WaitOutcome.KILLED]
    assert spans(events, "holds") == []


def test_each_wait_that_ended_is_told_once() -> None:
    queue = WatchedQueue()
    begin, end = EventKind.CONTENTION_BEGIN, EventKind.CONTENTION_END
    queue.begin_with([spinning(6, MS)])
    rows = contention((2, begin, 7, 4), (3, end, 6, 0), (5, end, 7, 0), (6, end, 9, 0))
    assert queue.late(rows, 10 * MS, 10 * MS, 1) is None
    found, came = Queued(MS, 6, True, found=True), Queued(2 * MS, 7, True)
    assert queue.ended == [(2 * MS, found, True), (3 * MS, came, True)]
    assert queue.late(contention(), 10 * MS, 10 * MS, 1) is None
    assert queue.ended == []
