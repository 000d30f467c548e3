"""The recorder on the running kernel: what it sees, what it leaves behind, how it ends."""

import contextlib
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import sleeper

from zaplock.cli import main
from zaplock.cli.record import Signals
from zaplock.errors import UserError
from zaplock.recorder import tracefs as tracefs_module
from zaplock.recorder.capturing import capturing
from zaplock.recorder.in_memory import record_mm
from zaplock.recorder.options import Options
from zaplock.recorder.targets import check_process, learn_mm
from zaplock.recorder.tracefs import Instance, opened, start_time, sweep
from zaplock.trace import recording_file
from zaplock.trace.events import EventKind, Events
from zaplock.trace.holds import holds

pytestmark = pytest.mark.root
ME = os.getpid()
SIZE = 37 << 20  # no size that an allocator would choose


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert ours() == []


def ours(pid: int = ME) -> list[str]:
    """Name the instances that a process has now."""
    with opened() as tracefs:
        return [path.name for path in (tracefs.path / "instances").glob(f"zaplock-*-*-{pid}-*-*")]


def rows(events: Events, **wanted: int) -> list[int]:
    keep = np.ones(len(events), np.bool_)
    for name, value in wanted.items():
        keep &= events[name] == value
    return np.flatnonzero(keep).tolist()


def calls(events: Events, operation: str) -> list[int]:
    return rows(events, kind=EventKind.OP_BEGIN, op=events.operations.index(operation))


def churn(seconds: float = 60.0, pause_s: float = 0) -> list[str]:
    """A command that maps and unmaps as fast as Python can, or so that every event has room."""
    script = f"""
import mmap, time
end = time.monotonic() + {seconds}
while time.monotonic() < end:
    for _ in range(100): mmap.mmap(-1, 65536).close()
    time.sleep({pause_s})
"""
    return [sys.executable, "-c", script]


def told_of(events: Events, *programs: str) -> set[int]:
    """Whose events there are: of these programs' tasks and of ours, not of anybody's ps."""
    names = {Path("/proc/self/comm").read_text().rstrip("\n"), *programs}
    return {tid for tid in set(events["tid"].tolist()) if events.tasks[tid].comm in names}


def test_a_munmap_shows_with_its_size_and_its_two_holds() -> None:
    with record_mm(ME) as recorder:
        mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    events = recorder.events()
    events.check()
    (begin,) = [row for row in calls(events, "munmap") if events["length"][row] == SIZE]
    mine = rows(events, tid=int(events["tid"][begin]))
    story = [
        (EventKind(events["kind"][row]).name, int(events["write"][row]))
        for row in mine[mine.index(begin) : mine.index(begin) + 6]
    ]
    assert story == [
        ("OP_BEGIN", 0),
        ("ASKED", 1),
        ("ACQUIRED", 1),
        ("ACQUIRED", 0),  # the downgrade
        ("RELEASED", 0),
        ("OP_END", 0),
    ]
    assert events.mms[recorder.target_mm or 0] == ME
    assert recorder.lost_events == 0


def test_a_foreign_reader_of_the_targets_lock_is_kept() -> None:
    with sleeper() as target, record_mm(target.pid) as recorder:
        reader = subprocess.Popen(
            ["cat", f"/proc/{target.pid}/smaps_rollup"], stdout=subprocess.DEVNULL
        )
        reader.wait()
    events = recorder.events()
    assert rows(events, kind=EventKind.ASKED, tid=reader.pid)
    assert told_of(events, "cat", "sleep") == {reader.pid}
    assert set(events["mm"][events["kind"] == EventKind.ASKED].tolist()) == {recorder.target_mm}
    assert events.tasks[reader.pid].comm == "cat"  # although it has ended


def test_recording_a_quiet_process_leaves_it_quiet() -> None:
    """The recorder itself never takes the target's lock while it records."""
    with sleeper() as target, record_mm(target.pid) as recorder:
        time.sleep(0.6)
    assert told_of(recorder.events(), "sleep") == set()


def test_the_own_process_threads_and_children_of_a_target_are_told_apart() -> None:
    def both() -> int:
        thread = threading.Thread(target=lambda: mmap.mmap(-1, SIZE).close())
        thread.start()
        thread.join()
        child = [sys.executable, "-c", f"import mmap; mmap.mmap(-1, {SIZE}).close()"]
        with subprocess.Popen(child) as process:
            process.wait()
        return process.pid

    sizes, of_child = {}, {}
    for children in (False, True):
        with record_mm(ME, children=children) as recorder:
            pid = both()
        events = recorder.events()
        sizes[children] = sum(events["length"][row] == SIZE for row in calls(events, "munmap"))
        of_child[children] = [mm for mm, owner in events.mms.items() if owner == pid]
    assert (sizes[False], sizes[True]) == (1, 2)
    assert of_child[True]


def test_every_event_of_a_whole_command_finds_its_partner(tmp_path: Path) -> None:
    """Without losses each request is answered, each hold released, each call returns."""
    path = tmp_path / "a.zaplock"
    assert main(["record", "-o", str(path), "--", *churn(0.4, pause_s=0.01)]) == 0
    recording = recording_file.read(path)
    events = recording.events
    assert recording.manifest.complete
    assert recording.manifest.lost_events == 0
    assert not rows(events, kind=EventKind.LOST)
    assert unmatched(events) == []
    assert len(calls(events, "munmap")) > 100


def test_a_command_is_not_mixed_up_with_others_whose_memory_it_gets(tmp_path: Path) -> None:
    """Processes come and go beside it; the kernel gives the same mm_structs to both in turn."""
    for name in ("mine", "stranger"):
        shutil.copy("/bin/true", tmp_path / name)
    path = tmp_path / "a.zaplock"
    beside = subprocess.Popen(["sh", "-c", f"while :; do {tmp_path}/stranger; done"])
    # A shell forks, Python's subprocess calls vfork; both then call exec.
    script = f"import subprocess\nfor _ in range(30): subprocess.run(['{tmp_path}/mine'])"
    loop = f'for i in $(seq 30); do {tmp_path}/mine; done; exec {sys.executable} -c "{script}"'
    try:
        assert main(["record", "-o", str(path), "--", "sh", "-c", loop]) == 0
    finally:
        beside.kill()
        beside.wait()
    events = recording_file.read(path).events
    locks = np.flatnonzero(events["kind"] <= EventKind.RELEASED)
    tids = {int(tid) for tid in events["tid"][locks]}
    assert {events.tasks[tid].comm for tid in tids}.isdisjoint({"stranger"})
    mine = {tid for tid in tids if events.tasks[tid].comm == "mine"}
    assert len(mine) == 60
    owners: dict[int, set[int]] = {tid: set() for tid in mine}
    for tid, mm in zip(events["tid"][locks].tolist(), events["mm"][locks].tolist()):
        if tid in owners:
            owners[tid].add(events.mms[mm])
    for tid, owned in owners.items():
        assert tid in owned, "its own address space"
        assert not (owned - {tid}) & mine, "and none of its brothers'"


def test_a_process_that_calls_exec_is_followed_into_its_new_address_space(tmp_path: Path) -> None:
    path = tmp_path / "a.zaplock"
    first, then = tmp_path / "first.py", tmp_path / "then.py"
    then.write_text(
        f"import mmap, time\n"
        f"while True: mmap.mmap(-1, {SIZE}).close(); print(time.monotonic_ns(), flush=True); "
        "time.sleep(0.01)"
    )
    first.write_text(
        f"import os, sys\nsys.stdin.readline()\n"
        f"os.execv(sys.executable, [sys.executable, {str(then)!r}])"
    )
    with subprocess.Popen(
        [sys.executable, str(first)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        recorder = started(path, "-p", str(process.pid))

        instances = ours(recorder.pid)

        def filters() -> list[str]:
            """Which address spaces' lock events are let in."""
            file = "events/mmap_lock/mmap_lock_acquire_returned/filter"
            with opened() as tracefs:
                return [(tracefs.path / "instances" / one / file).read_text() for one in instances]

        try:
            end, before = time.monotonic() + 250, filters()
            process.stdin.write(b"\n")
            process.stdin.flush()
            while filters() == before and time.monotonic() < end:
                time.sleep(0.1)
            since_ns, rounds = time.monotonic_ns(), 0
            while rounds < 20:
                rounds += int(process.stdout.readline()) > since_ns
            recorder.terminate()
            assert recorder.wait() == 0
        finally:
            process.kill()
    events = recording_file.read(path).events
    mapped = [row for row in calls(events, "munmap") if events["length"][row] == SIZE]
    locks = rows(events, kind=EventKind.ASKED, write=1, tid=process.pid)
    assert len(mapped) > 10
    assert len(locks) > 10
    mms = {int(events["mm"][row]) for row in locks}
    assert {events.mms[mm] for mm in mms} == {process.pid}


def unmatched(events: Events) -> list[tuple[str, int]]:
    """Step through the events with the rules of the lock; list those that break them."""
    wrong: list[tuple[str, int]] = []
    state: dict[tuple[int, int], str] = {}
    inside: dict[int, int] = {}
    for row in range(len(events)):
        kind, tid = EventKind(events["kind"][row]), int(events["tid"][row])
        who = (tid, int(events["mm"][row]))
        mode = "exclusive" if events["write"][row] else "shared"
        before = state.get(who, "free")
        if kind == EventKind.ASKED:
            state[who] = "asked " + mode
            ok = before == "free"
        elif kind == EventKind.ACQUIRED:
            ok = before == "asked " + mode or (before == "exclusive" and mode == "shared")
            state[who] = mode if events["success"][row] else "free"
        elif kind == EventKind.RELEASED:
            ok = before == mode
            state[who] = "free"
        elif kind == EventKind.OP_BEGIN:
            ok = tid not in inside
            inside[tid] = int(events["op"][row])
        elif kind == EventKind.OP_END:
            ok = inside.pop(tid, None) == events["op"][row]
        else:
            continue
        if not ok:
            wrong.append((kind.name, row))
    open_calls = {events.operations[op] for op in inside.values()} - {"exit", "exit_group"}
    wrong += [(name, -1) for name in open_calls]
    return wrong + [(what, -1) for what in state.values() if what != "free"]


def test_losses_are_counted_as_the_kernel_counts_them() -> None:
    """A buffer that is too small, and a reader that comes too late."""
    with capturing(Options(buffer_kb=64, groups=("mmap_lock",))) as capture:
        capture.start()
        for _ in range(3000):
            mmap.mmap(-1, 4096).close()
        capture.stop()
        counted = capture.lost_in_kernel()
        from zaplock.recorder.naming import TaskNames
        from zaplock.recorder.stream import Stream

        stream = Stream(capture.layouts, TaskNames())
        stream.feed(capture.buffers.drain(), 0)
        columns = stream.rest()
    lost = columns["length"][columns["kind"] == EventKind.LOST]
    assert counted > 1000
    assert int(lost.sum()) == counted


def lost_of(instances: list[str]) -> int:
    """Count the events for which the buffers of instances had no room."""
    with opened() as tracefs:
        stats = [
            file.read_text()
            for one in instances
            for file in (tracefs.path / "instances" / one).glob("per_cpu/cpu*/stats")
        ]
    lost = r"^(?:overrun|dropped events): (\d+)"
    return sum(int(count) for one in stats for count in re.findall(lost, one, re.MULTILINE))


def test_the_kernels_own_word_for_lost_reaches_the_recording(tmp_path: Path) -> None:
    """A recorder that is stopped while its target runs must say that it lost events."""
    path = tmp_path / "a.zaplock"
    recorder = started(path, "--buffer", "64K", "--", *churn(30))
    os.kill(recorder.pid, signal.SIGSTOP)
    instances = ours(recorder.pid)
    while lost_of(instances) <= 1000:
        time.sleep(0.02)
    os.kill(recorder.pid, signal.SIGCONT)
    recorder.terminate()
    assert recorder.wait() == 0
    kill_the_rest(path)
    manifest = recording_file.read_manifest(path)
    assert manifest.lost_events > 1000
    events = recording_file.read(path).events
    lost = events["length"][events["kind"] == EventKind.LOST]
    assert int(lost[lost >= 0].sum()) == manifest.lost_events
    assert int((lost < 0).sum()) == manifest.unknown_losses


def test_tracefs_is_opened_privately_where_it_is_not_mounted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = Path("/proc/self/mounts").read_text()
    monkeypatch.setattr(tracefs_module, "mounted", lambda: None)
    with opened() as tracefs:
        assert tracefs.private
        assert Path("/proc/self/mounts").read_text() == before
        where = tracefs.path
        assert (where / "events" / "header_page").exists()
    assert not where.exists()
    with record_mm(ME) as recorder:
        mmap.mmap(-1, SIZE).close()
    assert calls(recorder.events(), "munmap")


def test_a_process_at_its_end_is_no_kernel_thread() -> None:
    """Whoever asks why a killed server with much memory doesn't go away is told what it does."""
    is_ending, told, end = "", set[str](), time.monotonic() + 250
    while not any(words.startswith(is_ending) for words in told) and time.monotonic() < end:
        is_ending, told = said_of_a_killed_server()  # its end is short: a busy looker may miss it
        assert not any("kernel thread" in words for words in told)
    assert any(words.startswith(is_ending) for words in told)


def said_of_a_killed_server() -> tuple[str, set[str]]:
    """Kill a server with much memory; return what is to be said of it, and all that was said."""
    filled = "kept = bytearray(1 << 29); print('go', flush=True); import time; time.sleep(99)"
    told = set[str]()
    with subprocess.Popen([sys.executable, "-c", filled], stdout=subprocess.PIPE) as server:
        assert server.stdout
        assert server.stdout.readline() == b"go\n"
        check_process(server.pid)
        server.kill()
        while not any("a zombie" in words for words in told):
            told.add(refusal(server.pid))
    return f"process {server.pid} is ending: ", told


def test_a_process_whose_first_thread_has_ended_is_not_said_to_have_ended() -> None:
    leaves = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(99,)).start()\n"
        "ctypes.CDLL(None).syscall({'x86_64': 60}.get(__import__('os').uname().machine, 93))"
    )
    with subprocess.Popen([sys.executable, "-c", leaves]) as process:
        try:
            while "State:\tZ" not in Path(f"/proc/{process.pid}/status").read_text():
                time.sleep(0.01)
            words = refusal(process.pid)
        finally:
            process.kill()
    assert words.startswith(f"the first thread of process {process.pid} has ended and others live")


def refusal(pid: int) -> str:
    """Say why a process can't be looked at; "" where it can."""
    try:
        check_process(pid)
    except UserError as error:
        return str(error)
    return ""


def test_an_mm_can_be_learned_and_only_of_a_process() -> None:
    with opened() as tracefs, sleeper() as target:
        mm = learn_mm(tracefs, target.pid).mm
        assert mm == learn_mm(tracefs, target.pid).mm
        assert mm not in (0, learn_mm(tracefs, ME).mm)
        with pytest.raises(UserError, match="kernel thread"):
            learn_mm(tracefs, 2)
    with pytest.raises(UserError, match=r"there is no process .*'ps -e'"):
        record_mm(2**22 - 1).__enter__()


@pytest.mark.parametrize(("options", "said"), [
    (Options(groups=("mmap_lock", "magic")), "no events 'magic'; there are"),
    (Options(buffer_kb=1), "under 64 KiB"),
    (Options(percent=101), "not between 0 and 100"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(options: Options, said: str) -> None:
    with pytest.raises(UserError, match=said), capturing(options):
        pass


def started(path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `zaplock record` in a process of its own; return when it records."""
    said = path.with_suffix(".said")
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "zaplock", "record", "-o", str(path), *arguments],
            stdout=out,
            stderr=out,
        )
    end = time.monotonic() + 250
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and any(tracing(name) for name in ours(process.pid)):
            return process
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"nothing is recorded after 250 s: {said.read_text()}")


def tracing(instance: str) -> bool:
    with opened() as tracefs, contextlib.suppress(OSError):
        return (tracefs.path / "instances" / instance / "tracing_on").read_text() == "1\n"
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_recording_in_good_order(tmp_path: Path, number: int) -> None:
    path = tmp_path / "a.zaplock"
    process = started(path, "-p", str(ME))
    mmap.mmap(-1, SIZE).close()
    process.send_signal(number)
    assert process.wait() == 0
    assert path.with_suffix(".said").read_text().splitlines()[-1] == f"next: zaplock report {path}"
    assert ours(process.pid) == []
    recording = recording_file.read(path)
    assert recording.manifest.complete
    assert SIZE in recording.events["length"][calls(recording.events, "munmap")]


def test_a_second_signal_does_not_wait() -> None:
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_killed_recorder_leaves_a_spool_and_is_swept_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.zaplock"
    process = started(path, "--", *churn(30, pause_s=0.01))
    wait_for_events(path)
    assert main(["record", "--finish", str(path)]) == 2
    assert "is being recorded: end its recorder" in capsys.readouterr().err
    process.kill()
    process.wait()
    waiting = recording_file.read(path)
    assert f"zaplock record --finish {path}" in waiting.caveats[0]
    assert main(["record", "--finish", str(path)]) == 0
    assert f"zaplock report {path}" in capsys.readouterr().out
    kill_the_rest(path)
    recording = recording_file.read(path)
    recording.events.check()
    assert not recording.manifest.complete
    assert recording.caveats == (
        "This recording has no end: its recorder still runs, or was killed.",
    )
    assert len(calls(recording.events, "munmap")) > 100
    assert {row for _, row in unmatched(recording.events)} <= {-1}, "only the end is cut off"
    assert main(["record", "--finish", str(path)]) == 2
    assert "nothing that is to be decoded" in capsys.readouterr().err
    with opened() as tracefs:
        sweep(tracefs)  # if another zaplock's start has not done it
    assert ours(process.pid) == []


def wait_for_events(path: Path) -> None:
    """Wait until a recorder has spooled a good many of them."""
    while sum(one.stat().st_size for one in path.glob("spool-0*.raw")) < 1 << 20:
        time.sleep(0.02)


def kill_the_rest(path: Path) -> None:
    """End the command that a killed recorder has left behind."""
    tasks = recording_file.read(path).events.tasks
    for pid in {task.pid for task in tasks.values()}:
        with contextlib.suppress(OSError):
            if b"time.monotonic() + 30" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def test_sweeping_spares_the_living() -> None:
    with opened() as tracefs, Instance(tracefs, buffer_kb=64) as instance:
        assert instance.name not in sweep(tracefs)
        assert instance.path.exists()
        owner = instance.name.rsplit("-", 2)[0]
        recycled = tracefs.path / "instances" / f"{owner}-{(start_time(ME) or 0) + 1}-0"
        recycled.mkdir()  # our number, but another process's start time
        foreign = tracefs.path / "instances" / f"somebody-{ME}"
        foreign.mkdir()
        try:
            sweep(tracefs)  # if another zaplock's start has not done it
            assert not recycled.exists()
            assert foreign.exists()
        finally:
            foreign.rmdir()


def test_a_full_disk_ends_the_recording_with_what_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = Path(tempfile.mkdtemp(dir=tmp_path))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(disk)], check=True)
    try:
        path = disk / "a.zaplock"
        # What is fetched at once fits, however late that is.
        small = ["--buffer", "256K"]
        assert main(["record", "-o", str(path), *small, "--", *churn(20.0)]) == 2
        said = capsys.readouterr().err
        assert re.search(r"could not be written .*free some space.*zaplock report", said)
        recording = recording_file.read(path)
        recording.events.check()
        assert len(recording.events) > 1000
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def busiest(events: Events) -> list[tuple[object, ...]]:
    """List who wrote the most events of which kind: how often, who, kind, and when (seconds)."""
    kinds = Counter(zip(events["tid"].tolist(), events["kind"].tolist()))
    told: list[tuple[object, ...]] = []
    for (tid, kind), count in kinds.most_common(4):
        when = events["time_ns"][(events["tid"] == tid) & (events["kind"] == kind)]
        task = events.tasks.get(tid)
        span = [round((int(edge) - int(events["time_ns"][0])) / 1e9, 3) for edge in when[[0, -1]]]
        told.append((count, task.comm if task else tid, EventKind(kind).name, *span))
    return told


@pytest.mark.by_chance  # another hold of a program that waits for a CPU may be as long
def test_the_flight_recorder_stops_at_a_long_hold_and_keeps_what_was_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.zaplock"
    noticed = tmp_path / "noticed"
    script = f"""
import mmap, os, sys, time
def hold():
    big = mmap.mmap(-1, 4 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    big.madvise(mmap.MADV_NOHUGEPAGE)
    big.madvise({22})  # MADV_POPULATE_READ: the zero page, 4 GiB of page tables' worth
    big.close()
for _ in range(6):  # on a busy machine the events of one hold may be lost
    end = time.monotonic() + 4.5
    while time.monotonic() < end:
        mmap.mmap(-1, 4096).close(); time.sleep(0.002)
        if os.path.exists({str(noticed)!r}): sys.exit()
    hold()
"""
    arguments = ["--stop-after-hold", "60ms", "--keep", "1s", "--", sys.executable, "-c", script]
    assert main(["record", "-o", str(path), *arguments]) == 0
    noticed.touch()
    assert re.search(r"stopped after python\d?.* hold of .* ms", capsys.readouterr().out)
    recording = recording_file.read(path)
    assert recording.manifest.notes
    events = recording.events
    fired = [row for row in calls(events, "munmap") if events["length"][row] == 4 << 30]
    populated = [row for row in calls(events, "madvise") if events["detail"][row] == 22]
    assert fired or populated, (recording.manifest.lost_events, busiest(events))
    kept_ns = int(events["time_ns"][(populated or fired)[0]] - events["time_ns"][0])
    assert 0.5e9 < kept_ns < 3.5e9  # at least half of what was asked for; not the 4.5 s before


def test_a_command_that_does_not_exist_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", "-o", str(tmp_path / "a"), "--", "/no/such/program"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["record", "-p", "1", "--", "true"]) == 2
    assert main(["record", "--children"]) == 2


def test_sched_faults_and_contention_come_on_request() -> None:
    groups = ("mmap_lock", "syscalls", "faults", "sched", "contention")
    with record_mm(ME, events=groups) as recorder:
        area = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        area[4096] = 1
        time.sleep(0.01)
        area.close()
    events = recorder.events()
    assert rows(events, kind=EventKind.FAULT_BEGIN, tid=threading.get_native_id())
    slept = rows(events, kind=EventKind.SCHED_OUT, tid=threading.get_native_id())
    assert any(events["detail"][row] != 0 for row in slept)
    assert rows(events, kind=EventKind.SCHED_IN, tid=threading.get_native_id())


def test_the_heap_tells_how_far_it_moved(tmp_path: Path) -> None:
    path = tmp_path / "a.zaplock"
    program = tmp_path / "heap.py"
    program.write_text(
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.sbrk.restype = ctypes.c_void_p\n"
        "libc.sbrk.argtypes = [ctypes.c_ssize_t]\nlibc.sbrk(1 << 20)\nlibc.sbrk(-(1 << 19))\n"
        "for absurd in (2**64 - 4096, 2**63, 1):\n"
        "    libc.syscall(12, ctypes.c_ulong(absurd))\n"
        "    libc.syscall(11, ctypes.c_ulong(absurd), ctypes.c_ulong(absurd))\n"
    )
    assert main(["record", "-o", str(path), "--", sys.executable, str(program)]) == 0
    events = recording_file.read(path).events
    moves = [int(events["detail"][row]) for row in calls(events, "brk")]
    assert 1 << 20 in moves
    assert -(1 << 19) in moves
    # A program may pass any number; none stops the recorder.
    assert 2**64 - 4096 in events["address"][calls(events, "munmap")]


def test_without_root_the_way_out_is_said() -> None:
    script = """
import os, sys
import rich.console, zaplock.units, zaplock.cli.record, zaplock.recorder.command
import zaplock.recorder.session
from zaplock.cli import main
from zaplock.cli.record import Signals
os.setgid(65534); os.setuid(65534)
sys.exit(main(["record", "-d", "1s", "-o", "/tmp/zaplock-never"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "sudo" in done.stderr


def test_instances_that_stop_one_after_the_other_leave_no_tail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine half a second lies between two: what the later one has has no partner."""
    real = Instance.stop

    def late(self: Instance) -> None:
        real(self)
        time.sleep(0.2)

    done, rounds = threading.Event(), list[int]()

    def work() -> None:
        while not done.is_set():
            mmap.mmap(-1, SIZE).close()
            rounds.append(len(rounds))
            time.sleep(0.001)  # so that every event has room, however late it all stops

    worker = threading.Thread(target=work)
    with record_mm(ME) as recorder:
        worker.start()
        while len(rounds) < 20:
            time.sleep(0.01)
        monkeypatch.setattr(Instance, "stop", late)
        recorder.stop()
        monkeypatch.undo()
        done.set()
        worker.join()
    events = recorder.events()
    assert int(events["time_ns"].max()) <= recorder.span[1]
    assert holds(events).unmatched == 0
    own = events["tid"] == worker.native_id
    calls_end = events["time_ns"][own & (events["kind"] == EventKind.OP_END)].max()
    locks_end = events["time_ns"][own & (events["kind"] == EventKind.RELEASED)].max()
    assert abs(int(locks_end) - int(calls_end)) < 100_000_000


def test_a_recorder_that_was_told_to_leave_them_out_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = str(tmp_path / "none.zaplock")
    assert main(["record", "--by", "none", "-o", kept, "--", "true"]) == 0
    assert "without lock events: who held a lock" in capsys.readouterr().out
    assert main(["report", kept]) == 0
    assert "Who waited for an mmap_lock is not known." in capsys.readouterr().out
    assert main(["record", "--by", "kprobes2", "-o", kept, "--", "true"]) == 2
    assert "there are" in capsys.readouterr().err
