"""What was already so when the recording began, and what is not known of it."""

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scenes import GIB, MM, MS, database

from zaplock.cli import main
from zaplock.recorder import snapshot
from zaplock.recorder.beginning import Beginning
from zaplock.recorder.buffers import Buffers
from zaplock.recorder.capture import Capture
from zaplock.recorder.decode import Columns, merged, nothing
from zaplock.recorder.initial_look import OUR_READ, first_look
from zaplock.recorder.initial_rows import AGAIN_NS, Endings, rows, still_open
from zaplock.recorder.layouts import Layouts, PageLayout
from zaplock.recorder.snapshot import Seen, TaskSnapshot
from zaplock.recorder.targets import LearnedMm
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.events import EventKind, Events, FoundTask
from zaplock.trace.handwritten import Log
from zaplock.trace.recording_file import Manifest, write
from zaplock.views.initial_state import found_lines
from zaplock.views.live import now

ON = 10_000 * MS
LOOKED = ON + 2 * MS
DB, FREE, ALLOC, PS = 100, 101, 102, 200
STACK = ("unmap_page_range", "unmap_vmas", "do_vmi_munmap", "__vm_munmap", "__x64_sys_munmap")


def task(tid: int, does: str, operation: str, **more: object) -> FoundTask:
    found = FoundTask(tid, LOOKED, "R" if does == "holds" else "D", "", operation, STACK, does)
    return replace(found, **more)  # type: ignore[arg-type]


HOLDER = task(FREE, "holds", "munmap")
WAITER = task(ALLOC, "waits", "mmap", exclusive=True, since_ns=ON - 3_000 * MS, length=4096)


def beginning(*tasks: FoundTask, asked_ns: dict[int, int] | None = None) -> Beginning:
    seen = tuple(Seen(one, DB, DB) for one in tasks)
    return Beginning(TaskSnapshot(seen, whole=True), ON, {DB: MM}, asked_ns or {})


def recording(log: Log, *tasks: FoundTask) -> Events:
    """Begin a log with what was found."""
    for tid, comm, pid in ((DB, "db", DB), (FREE, "db-free", DB), (ALLOC, "db-alloc", DB)):
        log.task(tid, comm, pid, "db")
    log.task(PS, "ps", PS)
    log.owner(MM, DB)
    events = log.events()
    found = beginning(*tasks).found(dict(events.columns))
    operations = list(events.operations)
    columns = merged([rows(found, operations), dict(events.columns)])
    return Events(columns, tuple(operations), events.tasks, events.mms, found)


def looked_at(events: Events, end_ns: int = ON + 1_000 * MS) -> Analysis:
    return analyse(events, "6.18", span=(ON, end_ns))


def ended() -> Log:
    """The release of the holder, and what the waiter then did."""
    log = Log()
    log.released(ON + 500 * MS, tid=FREE, mm=MM, write=False)
    log.end(ON + 500 * MS, tid=FREE, op="munmap")
    log.acquired(ON + 500 * MS + 100, tid=ALLOC, mm=MM, write=True)
    log.released(ON + 500 * MS + 200, tid=ALLOC, mm=MM, write=True)
    log.end(ON + 500 * MS + 300, tid=ALLOC, op="mmap")
    return log


def test_who_was_found_waits_since_it_went_to_sleep_behind_whom_was_found() -> None:
    analysis = looked_at(recording(ended(), HOLDER, WAITER))
    assert analysis.waits["wait_ns"].tolist() == [3_500 * MS + 100]
    assert analysis.waits["partial"].tolist() == [True]
    culprit = analysis.explain(0).culprit
    assert culprit is not None
    assert (culprit.tid, culprit.operation) == (FREE, "munmap")
    assert culprit.share_ns == 3_500 * MS


def test_a_holder_has_it_since_the_first_one_went_to_sleep_for_it() -> None:
    late = replace(WAITER, tid=PS, since_ns=ON - 1_000 * MS)
    found = beginning(HOLDER, WAITER, late).found(nothing())
    assert [one.since_ns for one in found] == [ON - 3_000 * MS, ON - 3_000 * MS, ON - 1_000 * MS]
    assert beginning(HOLDER).found(nothing())[0].since_ns == ON
    asked = beginning(HOLDER, asked_ns={MM: ON - 20 * MS}).found(nothing())
    assert asked[0].since_ns == ON - 20 * MS


def test_the_mode_in_which_it_was_found_is_a_guess_that_the_release_corrects() -> None:
    log = Log()
    log.released(ON + 5 * MS, tid=FREE, mm=MM, write=True)
    holds = looked_at(recording(log, replace(HOLDER, exclusive=False))).holds
    assert holds["exclusive"].tolist() == [True]
    assert holds.unmatched == 0
    log = Log()
    log.downgraded(ON + 5 * MS, tid=FREE, mm=MM)
    log.released(ON + 7 * MS, tid=FREE, mm=MM, write=False)
    holds = looked_at(recording(log, replace(HOLDER, exclusive=False))).holds
    assert holds["exclusive"].tolist() == [True, False]
    assert holds["downgraded"].tolist() == [True, True]
    log = Log()
    log.acquired(ON + 5 * MS, tid=ALLOC, mm=MM, write=False)
    waits = looked_at(recording(log, WAITER)).waits
    assert waits["exclusive"].tolist() == [False]


def test_of_a_task_that_had_an_event_meanwhile_the_look_is_dropped() -> None:
    log = Log()
    log.released(ON + 1 * MS, tid=FREE, mm=MM, write=False)
    events = recording(log, HOLDER, WAITER)
    assert [one.tid for one in events.found] == [ALLOC]
    assert int((events["tid"] == FREE).sum()) == 1


def test_who_sleeps_in_a_futex_beside_a_long_holder_may_stand_behind_it() -> None:
    """Nothing tells what for, until he is woken; then the one who woke him is known."""
    sleeper = task(ALLOC, "", "futex", state="S", since_ns=ON - 400 * MS)
    stranger = replace(sleeper, tid=PS)
    said = "\n".join(found_lines(looked_at(recording(Log(), HOLDER, sleeper, stranger))))
    assert f"db-alloc (tid {ALLOC}) has slept in a futex for 402 ms and not been woken: if" in said
    assert f"what db-free (tid {FREE}) has in hand meanwhile" in said
    assert f"tid {PS}" not in said
    for log in (woken(), let_go()):
        said = "\n".join(found_lines(looked_at(recording(log, HOLDER, sleeper))))
        assert "futex" not in said


def woken() -> Log:
    """A log in which the sleeper goes on."""
    log = Log()
    log.begin(ON + 300 * MS, tid=ALLOC, op="mmap")
    return log


def let_go() -> Log:
    """A log in which the holder has the lock for a moment only."""
    log = Log()
    log.released(ON + 5 * MS, tid=FREE, mm=MM, write=False)
    return log


def test_what_has_not_ended_goes_on() -> None:
    log = Log()
    log.asked(ON + 900 * MS, tid=PS, mm=MM, write=False)
    analysis = looked_at(recording(log, HOLDER, WAITER))
    said = list(now(analysis))
    assert said[0] == "Right now 2 tasks wait for this lock:"
    assert "db-alloc (tid 102) in mmap of 4 KiB is still waiting after at least 4 s" in said[1]
    assert "4 s (100 %) behind db-free (tid 101) in munmap" in said[2]
    assert said[-1].startswith("Held now: db-free (tid 101) held it shared for at least 4 s so far")


def test_a_foreign_operation_ends_when_its_task_comes_anew() -> None:
    reader = task(PS, "holds", "read of /proc/100/smaps", mm=MM)
    operations: list[str] = []
    begun = rows([reader], operations)
    endings = Endings()
    endings.expect([reader], set(), operations)

    def locks(at_ns: int) -> Columns:
        log = Log()
        log.released(at_ns, tid=PS, mm=MM, write=False)
        log.asked(at_ns + AGAIN_NS // 2, tid=PS, mm=MM, write=False)
        log.acquired(at_ns + AGAIN_NS // 2, tid=PS, mm=MM, write=False)
        log.released(at_ns + AGAIN_NS, tid=PS, mm=MM, write=False)
        log.asked(at_ns + 3 * AGAIN_NS, tid=PS, mm=MM, write=False)
        return dict(log.events().columns)

    after = endings.added(locks(ON))
    assert after["kind"].tolist() == [
        *(EventKind.RELEASED, EventKind.ASKED, EventKind.ACQUIRED, EventKind.RELEASED),
        *(EventKind.OP_END, EventKind.ASKED),
    ]
    assert len(begun["kind"]) == 2
    again = locks(ON + 100 * AGAIN_NS)
    assert endings.added(again) is again


def test_a_wait_of_which_only_the_end_was_seen_is_at_least_so_long() -> None:
    log = Log()
    log.begin(ON, tid=FREE, op="munmap")
    log.acquired(ON + 80 * MS, tid=ALLOC, mm=MM, write=True)
    log.released(ON + 81 * MS, tid=ALLOC, mm=MM, write=True)
    log.acquired(ON + 90 * MS, tid=PS, mm=MM, write=False)
    log.released(ON + 91 * MS, tid=PS, mm=MM, write=False)
    waits = looked_at(recording(log)).waits
    assert waits["tid"].tolist() == [ALLOC, PS]
    assert waits["wait_ns"].tolist() == [80 * MS, 90 * MS]
    assert waits["partial"].all()


def test_a_downgrade_of_which_only_the_end_was_seen_was_an_exclusive_hold() -> None:
    log = Log()
    log.downgraded(ON + 50 * MS, tid=FREE, mm=MM)
    log.released(ON + 70 * MS, tid=FREE, mm=MM, write=False)
    log.end(ON + 70 * MS, tid=FREE, op="munmap")
    analysis = looked_at(recording(log))
    assert len(analysis.waits) == 0
    holds = analysis.holds
    holds.check()
    assert list(zip(holds["exclusive"].tolist(), holds["hold_ns"].tolist())) == [
        (True, 50 * MS),
        (False, 20 * MS),
    ]
    assert holds["complete"].tolist() == [False, True]
    assert holds["downgraded"].all()


def waiting_alone() -> Log:
    """The recorder came during a hold, ps after it, and nothing else was seen."""
    log = Log()
    log.asked(ON + 10 * MS, tid=PS, mm=MM, write=False)
    return log


def test_nobody_is_said_only_of_a_lock_that_was_seen() -> None:
    analysis = looked_at(recording(waiting_alone()))
    found = analysis.explain(0)
    assert found.free_ns == 0
    assert found.unseen_ns == found.unexplained_ns == 990 * MS
    (line,) = list(now(analysis))[2:]
    assert "not known: whoever had it took it before anything was recorded" in line
    assert "nobody" not in line


def test_once_a_task_has_had_it_exclusively_it_is_known_to_be_free() -> None:
    log = waiting_alone()
    log.acquired(ON + 110 * MS, tid=FREE, mm=MM, write=True)
    log.released(ON + 210 * MS, tid=FREE, mm=MM, write=True)
    log.acquired(ON + 510 * MS, tid=PS, mm=MM, write=False)
    analysis = looked_at(recording(log))
    wait = int(np.flatnonzero(analysis.waits["tid"] == PS)[0])
    found = analysis.explain(wait)
    assert (found.unseen_ns, found.free_ns) == (100 * MS, 300 * MS)
    assert [(blame.tid, blame.share_ns) for blame in found.blame] == [(FREE, 100 * MS)]


def test_after_a_gap_nothing_is_known_again() -> None:
    log = Log()
    log.asked(ON, tid=FREE, mm=MM, write=True)
    log.acquired(ON + 100, tid=FREE, mm=MM, write=True)
    log.released(ON + 200, tid=FREE, mm=MM, write=True)
    log.lost(ON + 300 * MS, cpu=0, count=9)
    log.asked(ON + 400 * MS, tid=PS, mm=MM, write=False)
    analysis = looked_at(recording(log))
    wait = int(np.flatnonzero(analysis.waits["tid"] == PS)[0])
    assert analysis.explain(wait).unseen_ns == 600 * MS


def test_who_forgets_old_events_keeps_what_they_began() -> None:
    """A window or a flight recorder: a wait that began before what is kept is as long as it was."""
    events = database()
    whole = analyse(events, "6.18", span=(0, 200 * MS))
    for cut in range(1, len(events)):
        old = {name: column[:cut] for name, column in events.columns.items()}
        new = {name: column[cut:] for name, column in events.columns.items()}
        again = still_open(merged([still_open(old), nothing()]))
        assert again["kind"].tolist() == still_open(old)["kind"].tolist()
        kept = replace(events, columns=merged([still_open(old), new]))
        began_ns = int(old["time_ns"][-1])
        analysis = analyse(kept, "6.18", span=(began_ns, 200 * MS))
        later = whole.waits.end_ns > began_ns
        assert analysis.waits["wait_ns"].tolist() == whole.waits["wait_ns"][later].tolist()
        assert analysis.waits["op"].tolist() == whole.waits["op"][later].tolist()
        for wait in range(len(analysis.waits)):
            # Whose hold is over is forgotten; while it goes on it is to blame for all of it.
            if int(analysis.waits["wait_ns"][wait]) > MS and began_ns < 186 * MS:
                culprit = analysis.explain(wait).culprit
                assert culprit is not None
                assert culprit.operation in ("munmap", "mmap")
        assert analysis.holds.unmatched == 0


def test_a_recording_keeps_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = recording(ended(), replace(HOLDER, length=GIB), WAITER)
    file = tmp_path / "hang.zaplock"
    write(file, events, Manifest(kernel="6.18", started_ns=ON, ended_ns=ON + 1_000 * MS))
    assert main(["report", str(file)]) == 0
    out = capsys.readouterr().out
    assert "Already so at the beginning:" in out
    assert "db-free (tid 101) had the lock of db (pid 100), shared, in munmap of 1 GiB" in out
    assert "in the kernel: unmap_page_range < unmap_vmas < do_vmi_munmap" in out
    assert main(["report", str(file), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["waits"][0]["at_least"]
    assert report["holds_in_part"][0]["operation"] == "munmap"
    kept = {one["tid"]: one for one in report["found"]}
    assert kept[FREE]["kernel_stack"] == list(STACK)
    assert kept[ALLOC]["since_ns"] == ON - 3_000 * MS


def test_a_read_of_ours_that_waits_is_told_where_no_holder_was_found() -> None:
    done = threading.Event()
    ours = LearnedMm(MM, 77, ON - 30 * MS, done)
    layouts = Layouts(PageLayout(4096, 8, 8, 16), ())
    buffers = Buffers([], 4096)
    capture = Capture(layouts, buffers, [], {os.getpid(): ours}, {os.getpid()})
    capture.on_ns = ON
    begun = first_look(capture)
    (own,) = (task for task in begun.found(nothing()) if task.tid == 77)
    assert (own.does, own.mm, own.since_ns) == ("waits", MM, ON - 30 * MS)
    assert own.operation == OUR_READ
    assert 77 not in begun.hidden
    done.set()
    begun = first_look(capture)
    assert 77 in begun.hidden
    assert all(task.tid != 77 for task in begun.found(nothing()))


def test_a_look_that_was_not_whole_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "FOREIGN_PATIENCE_S", -1.0)
    assert not snapshot.look({os.getpid()}).whole
    monkeypatch.undo()
    assert snapshot.look({os.getpid()}).whole


def test_a_call_that_takes_the_lock_again_and_again_has_its_name_though_events_came_first() -> None:
    """MADV_COLLAPSE lets go and comes again; nothing tells of the call until it ends."""
    log = Log()
    for tid in (FREE, ALLOC):  # both before the look
        log.asked(ON + MS, tid=tid, mm=MM, write=True)
        log.acquired(ON + MS, tid=tid, mm=MM, write=True)
        log.released(ON + MS + 1, tid=tid, mm=MM, write=True)
    log.end(ON + MS + 2, tid=ALLOC, op="mmap")
    events = log.events()
    collapsing = task(FREE, "", "madvise", length=GIB, detail=25)
    waiting = task(ALLOC, "waits", "mmap", exclusive=True, since_ns=ON - MS)
    look = beginning(collapsing, waiting)
    assert not look.found(dict(events.columns))
    found = look.in_calls(dict(events.columns))
    assert [(one.tid, one.operation, one.does) for one in found] == [(FREE, "madvise", "")]

    operations = list(events.operations)
    calling = rows(found, operations, calling={FREE: ON})
    assert calling["kind"].tolist() == [EventKind.OP_BEGIN]
    assert (calling["time_ns"][0], calling["detail"][0]) == (ON, 25)
    assert not len(rows(found, operations)["kind"])  # nobody would tell of its end
