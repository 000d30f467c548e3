"""`zaplock why` and `zaplock top`: what goes on at this moment."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import sleeper
from scenes import GIB, MM, MS

from zaplock.cli import main
from zaplock.errors import UserError
from zaplock.recorder.cpu_visits import CpuVisits, visiting
from zaplock.recorder.snapshot import born_ns
from zaplock.trace.analysis import analyse
from zaplock.trace.handwritten import Log
from zaplock.views.live import holding_now, now, waiting_now, why_json

# Two threads map and unmap 8 MiB for ever: every round holds the lock exclusively, then shared, and
# they wait for each other.
BUSY = """
import mmap, threading
def go():
    while True:
        area = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        area[::4096] = b"x" * (len(area) // 4096)
        area.close()
threading.Thread(target=go, daemon=True).start()
print("ready", flush=True)
go()
"""


@pytest.fixture
def busy() -> Iterator[int]:
    if os.geteuid() != 0:
        pytest.skip("recording needs root")
    child = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    yield child.pid
    child.kill()
    child.wait()


def hang() -> Log:
    """A munmap that has not come to its end, and a ps that waits behind it for nine seconds."""
    log = Log()
    log.task(1, "db", 1)
    log.task(2, "ps", 2)
    log.owner(MM, 1)
    log.begin(0, tid=1, op="munmap", length=320 * GIB)
    log.asked(0, tid=1, mm=MM, write=True)
    log.acquired(100, tid=1, mm=MM, write=True)
    log.asked(1000 * MS, tid=2, mm=MM, write=False)
    return log


def test_a_hang_is_seen_while_it_lasts() -> None:
    analysis = analyse(hang().events(), "4.9", span=(0, 10_000 * MS))
    assert list(now(analysis)) == [
        "Right now 1 task waits for this lock:",
        "    ps (tid 2) is still waiting after 9 s for the lock of db (pid 1), shared",
        "        9 s (100 %) behind db (tid 1) in munmap of 320 GiB, which held it exclusively",
        "Held now: db (tid 1) held it exclusively for 10 s so far in munmap of 320 GiB.",
    ]
    said = why_json(analysis)
    assert [waiter["task"] for waiter in said["waiting"]] == ["ps (tid 2)"]
    assert said["holding"][0]["doing"] == "munmap of 320 GiB"


def test_what_is_over_is_not_now() -> None:
    log = hang()
    log.released(2000 * MS, tid=1, mm=MM, write=True)
    log.acquired(2000 * MS, tid=2, mm=MM, write=False)
    log.released(2001 * MS, tid=2, mm=MM, write=False)
    analysis = analyse(log.events(), "4.9", span=(0, 10_000 * MS))
    assert waiting_now(analysis) == holding_now(analysis) == []


@pytest.mark.root
def test_why_looks_at_a_real_process(busy: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "-p", str(busy), "-d", "400ms", "--json"]) == 0
    printed = capsys.readouterr()
    seen = json.loads(printed.out)
    held = [hold for hold in seen["holds"] if hold["operation"] == "munmap"]
    assert held, "a process that unmaps all the time was seen to unmap nothing"
    assert {hold["length"] for hold in held} == {8 << 20}
    assert printed.err.startswith(f"next: zaplock record -p {busy}")
    assert main(["why", "-p", str(busy), "-d", "100ms"]) == 0
    assert "Right now" in capsys.readouterr().out


@pytest.mark.root
def test_ctrl_c_ends_the_looking_and_what_was_seen_is_told(
    busy: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(_seconds: float) -> None:
        raise KeyboardInterrupt

    clock = SimpleNamespace(monotonic_ns=time.monotonic_ns, sleep=pressed)
    monkeypatch.setattr("zaplock.cli.why.time", clock)
    assert main(["why", "-p", str(busy), "-d", "10m"]) == 0
    out = capsys.readouterr().out
    assert "Right now" in out
    assert out.rstrip().splitlines()[-1].startswith("next: zaplock record")


@pytest.mark.root
def test_top_shows_screens(busy: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "-p", str(busy), "-n", "2", "-i", "300ms", "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert out.count("By thread") == 2
    assert "munmap" in out
    assert f"(tid {busy})" in out


def test_wrong_numbers_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "-n", "0"]) == 2
    assert "-n 0 is less than 1" in capsys.readouterr().err
    assert main(["why", "-p", "1", "-d", "soon"]) == 2
    assert "duration 'soon'" in capsys.readouterr().err


def test_a_task_is_told_to_be_as_old_as_it_is() -> None:
    begun_ns = time.monotonic_ns()
    with subprocess.Popen(["sleep", "60"]) as process:
        born = born_ns(Path(f"/proc/{process.pid}/stat").read_text())
        process.kill()
    assert begun_ns - 20_000_000 <= born <= time.monotonic_ns()


_NEVER_SLEEPS = """
import ctypes, os, select, signal
signal.alarm(60)  # whatever becomes of the tester
if ctypes.CDLL(None, use_errno=True).mlockall(3):  # nor for a page that has been reclaimed
    raise OSError(ctypes.get_errno(), "mlockall")
os.sched_setaffinity(0, {0})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
print("go", flush=True)
while not select.select([0], [], [], 0)[0]:  # until the tester says so, or is gone
    pass
"""
"""A program that never sleeps, on cpu 0."""


def slept(pid: int) -> int:
    """How often a process has slept."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="recording needs root")
def test_why_of_several_processes_speaks_of_no_one_lock(
    busy: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with sleeper() as other:
        assert main(["why", "-p", str(busy), "-p", str(other.pid), "-d", "300ms"]) == 0
    said = capsys.readouterr().out
    assert "an mmap_lock" in said.partition("In these")[0]
    assert "this lock" not in said


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a real-time thread needs root")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="it would have the only cpu")
@pytest.mark.takes_cpus
def test_a_look_is_called_back_from_a_cpu_that_a_real_time_thread_keeps() -> None:
    """`why` came back when that thread ended: whoever binds itself there gets no share at all."""
    if 0 not in os.sched_getaffinity(0):
        pytest.skip("cpu 0 is not ours")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    hog = subprocess.Popen([sys.executable, "-c", _NEVER_SLEEPS], **pipes, text=True)  # type: ignore[call-overload]
    try:
        assert hog.stdout
        assert hog.stdout.readline() == "go\n"
        other = max(os.sched_getaffinity(0))

        def visit(on: CpuVisits) -> tuple[bool, bool, bool, bool]:
            return on.go_to(0), on.go_to(0), on.go_to(other), hog.poll() is None

        for _ in range(10):
            time.sleep(0.05)  # "go" is read before its writer is done with writing
            before = slept(hog.pid)
            arrived = visiting(visit)
            if slept(hog.pid) == before:  # otherwise the cpu was free for a moment
                break
        assert (arrived, slept(hog.pid) - before) == ((False, False, True, True), 0)
    finally:
        hog.kill()
        hog.wait()


def test_what_fails_on_a_visit_comes_out() -> None:
    def fails(_on: CpuVisits) -> None:
        raise UserError("no such process")

    with pytest.raises(UserError, match="no such process"):
        visiting(fails)


def test_a_look_goes_where_it_may_and_nowhere_else() -> None:
    mine = os.sched_getaffinity(0)

    def visit(on: CpuVisits) -> tuple[list[set[int]], bool]:
        return [os.sched_getaffinity(0) for cpu in mine if on.go_to(cpu)], on.go_to(4000)

    assert visiting(visit) == ([{cpu} for cpu in mine], False)
    assert os.sched_getaffinity(0) == mine
