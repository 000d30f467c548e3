"""The agent on this kernel: stalls that a program tells of itself are in log, figures and store."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import has_ended

from zaplock.agent import spool
from zaplock.agent.hooks import Hooks
from zaplock.agent.main_loop import Agent
from zaplock.agent.make_recording import alone, keep_within
from zaplock.agent.metrics import MOST, MOST_SERIES, Bounded, Metrics
from zaplock.agent.settings import Settings
from zaplock.agent.spool_queue import Shipping
from zaplock.agent.target_watch import unit_of
from zaplock.cli import main
from zaplock.errors import UserError
from zaplock.fleet_store.object_names import place_at
from zaplock.fleet_store.store import FleetStore, Recorded
from zaplock.recorder.tracefs import Tracefs, opened, sweep
from zaplock.trace.recording_file import read

STALLS = """
import mmap, sys, threading, time
def populated(size):
    area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    area.madvise(22)  # MADV_POPULATE_READ: the zero page
    return area
worst, calls = [0], [0]
def other():
    while True:
        begin = time.monotonic_ns()
        mmap.mmap(-1, 4096).close()
        worst[0] = max(worst[0], time.monotonic_ns() - begin)
        calls[0] += 1
        time.sleep(0.002)
threading.Thread(target=other, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    area = populated(int(line) << 20)
    worst[0] = 0
    area.close()
    done = calls[0] + 1
    while calls[0] <= done:  # the one that waited is among them
        time.sleep(0.001)
    print(worst[0], flush=True)
"""
LIMIT_NS = 20_000_000
MOST_MIB = 32 << 10


class Victim:
    """A program that stalls itself when it is told to, and says for how long by its own clock."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.pid = process, process.pid
        self._mib = 4096

    def stall(self) -> int:
        """Unmap much beside a thread that maps; return that thread's longest call, in ns.

        Next time it is twice as much where that was no clear stall on so fast a machine.
        """
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{self._mib}\n")
        self.process.stdin.flush()
        lasted_ns = int(self.process.stdout.readline())
        if lasted_ns < 2 * LIMIT_NS:
            self._mib = min(2 * self._mib, MOST_MIB)
        return lasted_ns


@contextlib.contextmanager
def stalling(program: str = STALLS) -> Iterator[Victim]:
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "ready\n"
            yield Victim(process)
        finally:
            process.kill()


@pytest.fixture
def victim() -> Iterator[Victim]:
    with stalling() as victim:
        yield victim


@contextlib.contextmanager
def agent(folder: Path, pid: int, *more: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run an agent, which ends in good order; give it and the port of its figures."""
    port = free_port()
    command = [sys.executable, "-m", "zaplock", "agent", "-p", str(pid), "--after", "100ms"]
    command += ["--store", str(folder / "store"), "--spool", str(folder / "spool"), *more]
    command += ["--listen", f"127.0.0.1:{port}", "--host", "here"]
    with (
        open(folder / "log", "a") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            yield process, port
        finally:
            process.kill()


def free_port() -> int:
    """Find a port that nobody has, and that the kernel gives to nobody who doesn't ask for it."""
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in range(given - 1 - os.getpid() % 1000, 1024, -1):
        with contextlib.suppress(OSError), socket.socket() as asks:
            asks.bind(("127.0.0.1", port))
            return port
    pytest.skip("no port is free here")


def figures(port: int) -> dict[str, float]:
    """Read the agent's figures; {} while there are none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
    except (OSError, http.client.HTTPException):
        return {}
    return {
        name: float(value)
        for name, value in re.findall(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
    }


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def until(true: Any, patience_s: float = 250, pause_s: float = 0.05) -> None:
    """Wait until something is so; ask again after each pause."""
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(pause_s)


def stall_until(victim: Victim, true: Any) -> None:
    """Stall again and again until something is so: each takes much CPU time, so not too often."""
    until(lambda: victim.stall() and true(), pause_s=0.3)


@pytest.mark.root
def test_a_stall_is_in_the_log_the_figures_and_the_store(victim: Victim, tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    with agent(tmp_path, victim.pid, "--hook", f"cat >> {hook}") as (process, port):
        until(lambda: figures(port).get("zaplock_watched_processes") == 1)
        time.sleep(0.5)  # whoever waited while it looked round is in no event
        lasted = []

        def found() -> bool:
            """Stall until one is told with its culprit, in whatever moment the agent was."""
            lasted.append(victim.stall())
            time.sleep(0.5)
            until(lambda: figures(port).get("zaplock_spool_bytes") == 0)
            return any(line.get("culprit_operation") == "munmap" for line in log_of(tmp_path))

        until(found)
        told = [line for line in log_of(tmp_path) if line["event"] == "trouble"]
        trouble = next(line for line in told if line["culprit_operation"] == "munmap")
        until(lambda: hook.exists() and trouble["recording"] in hook.read_text())
        seen = dict[str, float]()
        until(lambda: seen.update(figures(port)) or seen)
        resident = Path(f"/proc/{process.pid}/status").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert trouble["culprit_process"] == trouble["process"]
    assert LIMIT_NS <= trouble["wait_ns"] <= 2 * max(lasted)
    assert log_of(tmp_path)[-1]["event"] == "ended"
    waits = {name: value for name, value in seen.items() if name.startswith("zaplock_wait_sec")}
    assert any('culprit_operation="munmap"' in name and "_count" in name for name in waits)
    assert seen["zaplock_buffer_bytes"] < 16 << 20
    peak = re.search(r"VmHWM:\s+(\d+) kB", resident)
    assert peak
    assert int(peak[1]) < 60_000
    store = FleetStore(str(tmp_path / "store"))
    (entry,) = [one for one in store.recordings().objects
                if one.name.recording == trouble["recording"]]  # fmt: skip
    recording = read(store.fetch(entry, tmp_path / "back"))
    assert not recording.caveats
    assert recording.events.mms
    assert entry.name.worst_ns == trouble["wait_ns"]
    assert not spool.Spool(tmp_path / "spool").broken()


@pytest.mark.root
def test_a_store_that_fails_is_told_and_the_recording_waits(victim: Victim, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no folder")
    with agent(tmp_path, victim.pid) as (process, port):
        until(lambda: figures(port).get("zaplock_watched_processes") == 1)
        failed = 'zaplock_unrecorded_troubles_total{why="store"}'
        stall_until(victim, lambda: list((tmp_path / "spool").iterdir()))
        until(lambda: figures(port).get(failed, 0) >= 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert any(line["event"] == "not stored" for line in log_of(tmp_path))
    assert len(spool.Spool(tmp_path / "spool").waiting()) >= 1
    (tmp_path / "store").unlink()
    with agent(tmp_path, victim.pid) as (process, port):  # the next agent puts what waits
        until(lambda: figures(port).get("zaplock_recordings_total", 0) >= 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert FleetStore(str(tmp_path / "store")).recordings().objects


@pytest.mark.root
def test_a_killed_agent_leaves_nothing_on_and_nothing_half(victim: Victim, tmp_path: Path) -> None:
    kills = int(os.environ.get("ZAPLOCK_AGENT_KILLS", "3"))
    for kill in range(kills):
        with agent(tmp_path, victim.pid) as (process, port):
            until(lambda: "zaplock_watched_processes" in figures(port))
            if kill % 3:
                victim.stall()
            time.sleep(0.37 * kill % 1.7)
            process.kill()
            process.wait()
        with opened() as tracefs:

            def gone(pid: int = process.pid, tracefs: Tracefs = tracefs) -> bool:
                """Sweep, as the next start does; a child has its files until it is executed."""
                sweep(tracefs)
                return not list((tracefs.path / "instances").glob(f"zaplock-*-{pid}-*"))

            until(gone)
        store = FleetStore(str(tmp_path / "store"))
        for one in store.recordings().objects:
            store.entry(one)
        assert not store.waits().torn
    with agent(tmp_path, victim.pid) as (process, port):
        until(lambda: figures(port).get("zaplock_watched_processes") == 1)
        until(lambda: figures(port).get("zaplock_spool_bytes") == 0, 600)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    store = FleetStore(str(tmp_path / "store"))
    names = [one.name.recording for one in store.recordings().objects]
    assert len(names) == len(set(names))
    assert store.waits().twice == 0
    assert not list((tmp_path / "spool").iterdir())


LATE = f"late-{os.getpid()}"
NAMED = f"""
import time
open("/proc/self/comm", "w").write("{LATE}")
time.sleep(600)
"""


@pytest.mark.root
def test_a_process_that_comes_later_is_watched_until_it_ends(
    victim: Victim, tmp_path: Path
) -> None:
    with agent(tmp_path, victim.pid, "--comm", LATE, "--rescan", "1s") as (process, port):

        def watches(count: int) -> bool:
            return figures(port).get("zaplock_watched_processes") == count

        until(lambda: watches(1))
        with subprocess.Popen([sys.executable, "-c", NAMED], stdout=subprocess.DEVNULL) as late:
            until(lambda: watches(2))
            late.kill()
        until(lambda: watches(1))
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


EXEC = "if line == 'exec\\n': os.execv(sys.executable, sys.orig_argv)"
EXECS = STALLS.replace("    area = populated(int", f"    {EXEC}\n    area = populated(int")
EXECS = EXECS.replace("import mmap", "import os, mmap")


@pytest.mark.root
def test_an_exec_during_the_recorded_seconds_is_followed(tmp_path: Path) -> None:
    """Nothing but its event tells of it: the process is the same."""

    def recorded() -> set[str]:
        return {line["recording"] for line in log_of(tmp_path) if line["event"] == "trouble"}

    more = ("--after", "1s", "--rescan", "1000s")
    with stalling(EXECS) as victim, agent(tmp_path, victim.pid, *more) as (process, port):
        until(lambda: figures(port).get("zaplock_watched_processes") == 1)
        stall_until(victim, lambda: list((tmp_path / "spool").glob("*/*/spool-0*.raw")))
        assert victim.process.stdin
        assert victim.process.stdout
        victim.process.stdin.write("exec\n")
        victim.process.stdin.flush()
        assert victim.process.stdout.readline() == "ready\n"
        until(recorded)
        before = recorded()
        stall_until(victim, lambda: recorded() - before)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_who_could_not_be_watched_is_tried_again_ever_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns, pid = [0], os.getppid()
    monkeypatch.setattr("zaplock.agent.main_loop.time.monotonic_ns", lambda: now_ns[0])
    settings = Settings(str(tmp_path / "store"), tmp_path / "spool", "h")
    one = Agent(settings, lambda: [pid], Metrics(), ended=lambda: True, say=Said())
    tried = []
    for second in range(200):
        now_ns[0] = second * 10**9
        if one.changed(()):
            tried.append(second)
            one.refuse(pid, "its lock can't be learned just now")
    assert tried == [0, 10, 30, 70, 150]


@pytest.mark.root
def test_events_that_the_kernel_lost_are_counted_once(tmp_path: Path) -> None:
    """The agent is stopped while it records somebody who locks without a pause."""

    def overflows() -> bool:
        """Tell whether a buffer of the agent has had no room for an event."""
        with opened() as tracefs:
            instances = f"instances/zaplock-*-{process.pid}-*/per_cpu/cpu*/stats"
            stats = [file.read_text() for file in tracefs.path.glob(instances)]
        return any(re.search(r"^(overrun|dropped events): [1-9]", one, re.M) for one in stats)

    def lost() -> list[int]:
        return [line["count"] for line in log_of(tmp_path) if line["event"] == "events lost"]

    more = ("--after", "2s", "--buffers", "1M")
    with (
        stalling(STALLS.replace("time.sleep(0.002)", "pass")) as victim,
        agent(tmp_path, victim.pid, *more) as (process, port),
    ):
        until(lambda: figures(port).get("zaplock_watched_processes") == 1)
        stall_until(victim, lambda: list((tmp_path / "spool").glob("*/*/spool-0*.raw")))
        process.send_signal(signal.SIGSTOP)
        until(overflows)
        victim.process.send_signal(signal.SIGSTOP)  # it has done enough
        process.send_signal(signal.SIGCONT)
        until(lambda: figures(port).get("zaplock_recordings_total", 0) >= 1)
        until(lambda: figures(port).get("zaplock_lost_events_total") == sum(lost()) > 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    store = FleetStore(str(tmp_path / "store"))
    recordings = [
        read(store.fetch(one, tmp_path / str(number)))
        for number, one in enumerate(store.recordings().objects)
    ]
    told = max(recording.manifest.lost_events for recording in recordings)
    assert told >= max(lost()), "the recording knows what it lacks"


class Said:
    """A log in memory."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))


def test_a_hook_that_takes_too_long_is_killed_with_what_it_began(tmp_path: Path) -> None:
    said, began = Said(), tmp_path / "began"
    hooks = Hooks(f"sleep 1000 & echo $! > {began}.part; mv {began}.part {began}; wait",
                  Metrics(), said)  # fmt: skip
    hooks.run({"wait_ns": 1})
    until(began.exists)
    hooks.look_after(time.monotonic_ns())
    assert hooks.running
    hooks.look_after(time.monotonic_ns() + 31 * 10**9)
    assert not hooks.running
    assert said.lines == [("hook failed", {"why": "it took over 30 s"})]
    until(lambda: has_ended(int(began.read_text())))


def test_a_hook_that_reads_nothing_has_not_failed() -> None:
    said = Said()
    hooks = Hooks("exec <&-", Metrics(), said)
    hooks.run({"more": "than a pipe holds" * 10_000})
    until(lambda: hooks.look_after(time.monotonic_ns()) or not hooks.running)
    assert not said.lines


def test_what_no_child_can_read_keeps_nothing_else_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zaplock.agent.spool_queue._RETRY_NS", 0)
    spooled, metrics, said = spool.Spool(tmp_path / "spool"), Metrics(), Said()
    for name in ("1", "2"):
        (spooled.begin(name) / "trouble.json").write_bytes(b"no trouble")
    shipping = Shipping(
        Settings(str(tmp_path / "store"), spooled.path, "h"), spooled, metrics,
        Hooks("", metrics, said), said,
    )  # fmt: skip
    until(lambda: shipping.look_after(time.monotonic_ns()) or len(said.lines) == 2)
    shipping.stop()
    assert [(event, fields["folder"]) for event, fields in said.lines] == [
        ("not stored", "1"),
        ("not stored", "2"),
    ]


def waits_for_a_lock(pid: int) -> bool:
    """Tell whether a process waits for a lock on a file."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(words[1] == "->" and words[5] == str(pid) for words in lines)


def test_two_children_do_not_work_on_one_folder(tmp_path: Path) -> None:
    """The first may be that of an agent that was killed."""
    command = [sys.executable, "-m", "zaplock.agent.make_recording", str(tmp_path)]
    with alone(tmp_path):
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: waits_for_a_lock(child.pid) or child.poll() is not None)
        assert child.poll() is None
    assert child.wait(), "there is nothing in it"


def put(store: FleetStore, number: int, at_ns: int, worst_ns: int, host: str = "here") -> None:
    about = Recorded(place_at(at_ns, host, "u"), f"{number:012x}", at_ns, 1, worst_ns, "6.18")
    store.put_recording(about, [("a.parquet", b"x" * 100)])


def test_the_least_interesting_recordings_go_first(tmp_path: Path) -> None:
    store, now_ns = FleetStore(str(tmp_path / "store")), 1_795_000_000 * 10**9
    for number, worst_ms in enumerate((50, 900, 20, 300)):
        put(store, number, now_ns - number * 10**9, worst_ms * 10**6)
    put(store, 10, now_ns - 40 * 86_400 * 10**9, 10**10)
    put(store, 11, now_ns, 1, "elsewhere")
    budget = {"host": "here", "keep": 3, "keep_bytes": 1 << 20, "keep_days": 30}
    assert keep_within(store, budget, now_ns) == 2

    def left() -> list[int]:
        return sorted(int(one.name.recording, 16) for one in store.recordings().objects)

    assert left() == [0, 1, 3, 11], "the old one and the shortest went"
    assert keep_within(store, {**budget, "keep_bytes": 150}, now_ns) == 2
    assert left() == [1, 11]


def test_labels_have_few_values() -> None:
    bounded = Bounded(2)
    assert [bounded.value("p", one) for one in "abcab"] == ["a", "b", "other", "a", "b"]
    assert bounded.value("q", "c") == "c"
    metrics = Metrics()
    for number in range(2 * MOST):
        metrics.show_trouble(f"session-{number}.scope")
        metrics.show_queued(f"session-{number}.scope", "python", 1)
        for process in range(MOST):
            metrics.show_queued("session-0.scope", f"process-{number * process}", 1)
    for family in metrics.registry.collect():
        units = {sample.labels["unit"] for sample in family.samples if "unit" in sample.labels}
        assert len(units) in (0, MOST + 1), family.name
        series = {tuple(sample.labels.values()) for sample in family.samples
                  if sample.name.endswith(("_count", "_total"))}  # fmt: skip
        assert len(series) <= MOST_SERIES + MOST + 1
    counted = [
        sample.value for family in metrics.registry.collect() for sample in family.samples
        if sample.name == "zaplock_queued_seconds_count"
    ]  # fmt: skip
    assert sum(counted) == 2 * MOST * (MOST + 1), "nothing is left out"


def test_settings_and_spools_that_make_no_sense_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="--keep 0"):
        Settings("s", tmp_path, "h", keep=0).check()
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UserError, match="written by others"):
        spool.Spool(tmp_path / "open")
    for arguments, said in (
        (["--store", "x"], "say whom to watch"),
        (["--store", "x", "--all", "--listen", "nowhere"], "HOST:PORT"),
        (["--store", "x", "--all", "--after", "1us"], "--after"),
        (["--store", "x", "--all", "--host", ","], "--host ',' is no host's name"),
        (["--store", "x", "--all", "--host", "a,b"], "--host 'a,b' is no host's name"),
        (["--store", "x", "--all", "--host", "../x"], "--host '../x' is no host's name"),
    ):
        assert main(["agent", *arguments, "--spool", str(tmp_path / "s")]) == 2
        assert said in capsys.readouterr().err


def test_a_spool_that_somebody_has_removed_is_empty(tmp_path: Path) -> None:
    spooled = spool.Spool(tmp_path / "spool")
    spooled.path.rmdir()
    assert (spooled.waiting(), spooled.broken(), spooled.size) == ([], [], 0)


def test_a_process_has_a_unit() -> None:
    assert unit_of(os.getpid())
    assert unit_of(1 << 30) == "unknown"
