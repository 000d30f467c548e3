"""It hangs before anybody looks: what `why`, `record`, the watch and `top` say then.

Each case is a program that does what a public report describes (where from is said at each).
The program that holds the lock shares its cpu with another, so that what takes 0.1 s takes seconds.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from processes import threads_of
from programs import Program, built, running

from zaplock.cli import main

pytestmark = pytest.mark.root

SLOW = 19
Look = TypeVar("Look")


def zaplock(*arguments: object) -> str:
    """Return what a command prints; it runs in this process, which has imported it already."""
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        code = main([*map(str, arguments)])
    assert code == 0, errors.getvalue()
    return said.getvalue()


def why(pid: int) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(zaplock("why", "-p", pid, "-d", "300ms", "--json"))
    return said


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 250
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def stack_has(pid: int, function: str) -> Callable[[], bool]:
    """Say whether some thread of a process is in a kernel function."""

    def look() -> bool:
        for thread in threads_of(pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                if function in Path(f"/proc/{pid}/task/{thread}/stack").read_text():
                    return True
        return False

    return look


def found(said: dict[str, Any], does: str, name: str) -> dict[str, Any]:
    rows = [one for one in said["found"] if one["does"] == does and one["task"].startswith(name)]
    assert rows, f"{name} was not found: {said['found']}"
    row: dict[str, Any] = rows[0]
    return row


def blamed(said: dict[str, Any], victim: str) -> list[tuple[str, str | None]]:
    waits = [wait for wait in said["waits"] if wait["comm"] == victim]
    assert waits, f"{victim} did not wait: {said['waits']}"
    longest = max(waits, key=lambda wait: int(wait["wait_ns"]))
    assert longest["at_least"]
    return [(blame["comm"], blame["operation"]) for blame in longest["blame"]]


def while_it_hangs(
    folder: Path,
    name: str,
    look: Callable[[Program], Look],
    *more: object,
    inside: str = "unmap_vmas",
    ready: str = "unmap_vmas",
) -> Look:
    """Look at a program that hangs in a kernel function, and still does so afterwards.

    What a look at a hang must find is only owed where it hung all the while; how long it does so
    depends on the machine, so it gets more memory to free until it does.
    """
    for gib in (1.0, 2.0, 4.0):
        with running(built(name, folder), gib, SLOW, *more) as program:
            program.says("go")
            until(stack_has(program.pid, ready))
            time.sleep(0.3)
            said = look(program)
            if stack_has(program.pid, inside)():
                return said
    pytest.skip("nothing hangs for long enough on this machine")


def test_a_munmap_that_began_before_is_named_with_its_victim_and_stack(folder: Path) -> None:
    """What the discussion of the kernel's patch began with: a ps that hangs, now."""
    began_ns = time.monotonic_ns()
    said = while_it_hangs(folder, "already", lambda program: why(program.pid))
    holder, waiter = found(said, "holds", "culprit"), found(said, "waits", "victim")
    assert (holder["operation"], waiter["operation"]) == ("munmap", "mmap")
    assert "unmap_vmas" in holder["kernel_stack"]
    assert waiter["kernel_stack"][0] == "vm_mmap_pgoff"
    assert blamed(said, "victim")[0] == ("culprit", "munmap")
    wait = next(wait for wait in said["waits"] if wait["comm"] == "victim")
    # It went to sleep 0.3 s before we came, and not before the program was started.
    assert 300e6 < wait["wait_ns"] < time.monotonic_ns() - began_ns
    assert said["found"][0]["since_ns"]


def test_why_says_so_in_words_with_since_when(folder: Path) -> None:
    said = while_it_hangs(
        folder, "already", lambda program: zaplock("why", program.pid, "-d", "300ms")
    )
    assert "victim" in said
    assert "at least" in said
    assert "in munmap, which held it" in said
    assert "in the kernel: " in said
    assert "Nobody waited" not in said


def told_while_it_records(*arguments: object) -> str:
    """Return what a recording without an end says before it is asked to end."""
    command = [sys.executable, "-m", "zaplock", "record", *map(str, arguments)]
    recorder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert recorder.stdout is not None
    lines = []
    for line in recorder.stdout:
        lines.append(line)
        if "victim" in line:
            break
    assert recorder.poll() is None, lines
    recorder.send_signal(signal.SIGINT)
    recorder.communicate()
    assert recorder.returncode == 0
    return "".join(lines)


def assert_told_at_once(said: str) -> None:
    assert said.startswith("Already so at the beginning:\n")
    assert re.search(r"culprit \(tid \d+\) had the lock of .*, in munmap, for at least", said)
    assert re.search(r"in the kernel: .*unmap_vmas", said)
    assert re.search(r"victim \(tid \d+\) waited for the lock of .*, in mmap of 4 KiB", said)


def test_a_recording_says_so_at_once_and_keeps_it(folder: Path, tmp_path: Path) -> None:
    def record(program: Program) -> tuple[Path, str]:
        file = tmp_path / f"hang-{program.pid}.zaplock"
        return file, told_while_it_records("-p", program.pid, "-o", file)

    file, told = while_it_hangs(folder, "already", record)
    assert_told_at_once(told)
    said = json.loads(zaplock("report", file, "--json"))
    assert blamed(said, "victim")[0] == ("culprit", "munmap")
    assert found(said, "holds", "culprit")["kernel_stack"]
    assert "Already so at the beginning" in zaplock("report", file)


def test_a_watch_notices_a_wait_that_is_older_than_itself(folder: Path, tmp_path: Path) -> None:
    def watch(program: Program) -> tuple[Path, dict[str, Any]]:
        file = tmp_path / f"watched-{program.pid}.zaplock"
        said = zaplock(
            *("record", "-p", program.pid, "--watch", "--stop-after-wait", "20ms"),
            *("-d", "100s", "--after", "100ms", "--json", "-o", file),
        )
        return file, json.loads(said)

    file, said = while_it_hangs(folder, "already", watch)
    assert any(note.startswith("stopped after victim") for note in said["notes"])
    assert found(said, "holds", "culprit")["operation"] == "munmap"
    told = json.loads(zaplock("report", file, "--json"))
    assert blamed(told, "victim")[0] == ("culprit", "munmap")


def test_a_watch_says_at_once_what_it_noticed(folder: Path, tmp_path: Path) -> None:
    def watch(program: Program) -> str:
        file = tmp_path / f"noticed-{program.pid}.zaplock"
        return told_while_it_records("-p", program.pid, "--watch", "--after", "60s", "-o", file)

    assert_told_at_once(while_it_hangs(folder, "already", watch))


def test_top_shows_it_on_its_first_screen(folder: Path) -> None:
    said = while_it_hangs(
        folder,
        "already",
        lambda program: zaplock("top", "-p", program.pid, "-n", "1", "-i", "200ms"),
    )
    said = " ".join(said.split())  # a long line is folded, and how long one is the stack decides
    # Whoever lists processes just then (ps, pkill) waits for it as well.
    assert re.search(r"Right now \d+ tasks? waits? for this lock:", said)
    assert re.search(r"victim \(tid \d+\) in mmap of 4 KiB .*? behind culprit", said)
    assert re.search(r"culprit \(tid \d+\), in munmap, is in .*unmap_vmas", said)


@pytest.fixture(scope="module")
def app(folder: Path) -> Iterator[Program]:
    with running(built("app", folder), 1.0) as program:
        program.says("go")
        yield program


@pytest.mark.parametrize(
    ("arguments", "function", "verb"),
    [
        # process-exporter#246, telegraf#15295, atop#97, htop#1712
        (("read", "smaps_rollup"), "smaps_pte_range", "read"),
        (("read", "smaps"), "smaps_pte_range", "read"),
        # cadvisor#3670
        (("write", "clear_refs", "1"), "clear_refs", "write"),
    ],
)
def test_a_foreign_reader_is_named_with_the_file_that_it_reads(
    folder: Path, app: Program, arguments: tuple[str, ...], function: str, verb: str
) -> None:
    how, name, *text = arguments
    file = f"/proc/{app.pid}/{name}"
    with running(built("reader", folder), SLOW, how, file, *text) as reader:
        reader.says("go")
        until(stack_has(reader.pid, function))
        said = why(app.pid)
        if not stack_has(reader.pid, function)():
            pytest.skip("it was through before it was looked at")
    agent = found(said, "holds", "agent")
    assert agent["operation"] == f"{verb} of {file}"
    assert any(function in name for name in agent["kernel_stack"])


def test_threads_that_wait_for_a_userfault_are_told_with_the_cause(folder: Path) -> None:
    """infra#644, firecracker#3020: the handler of the userfaultfd is gone."""
    with running(built("uffd", folder), 2) as program:
        program.says("go")
        said = zaplock("why", "-p", program.pid, "-d", "100ms")
        stuck = [one for one in why(program.pid)["found"] if one["task"].startswith("vcpu")]
    assert all("handle_userfault" in one["kernel_stack"] for one in stuck)
    assert len(stuck) == 2
    assert "vcpu0" in said
    assert "vcpu1" in said
    assert "userfaultfd monitor has to answer, for" in said


def test_a_process_that_reads_its_own_smaps_is_named(folder: Path) -> None:
    """ayende.com, RavenDB: 30,000 mappings, and its own metrics read them."""
    with running(built("own_smaps", folder), 10_000, SLOW) as program:
        program.says("go")
        until(stack_has(program.pid, "show_smaps_rollup"))
        said = why(program.pid)
        if not stack_has(program.pid, "show_smaps_rollup")():
            pytest.skip("it was through before it was looked at")
    reading = f"read of /proc/{program.pid}/smaps_rollup"
    metrics = [one for one in said["found"] if one["task"].startswith("metrics")]
    assert metrics, said["found"]
    assert metrics[0]["operation"] == reading
    assert "show_smaps_rollup" in metrics[0]["kernel_stack"]
    # It gives way to a writer now and then, so events may know better than the look who has it.
    assert any(reading in line for one in said["waiting"] for line in one["behind"]) or any(
        (blame["comm"], blame["operation"]) == ("metrics", reading)
        for wait in said["waits"]
        for blame in wait["blame"]
    )


def test_a_watch_keeps_the_file_of_a_reader_that_gives_way(folder: Path, tmp_path: Path) -> None:
    """It lets go of the lock for each writer, so that events know better than the look who has it:
    but not which file it reads."""
    file = tmp_path / "smaps.zaplock"
    with running(built("own_smaps", folder), 30_000, 0) as program:
        program.says("go")
        until(stack_has(program.pid, "show_smaps_rollup"))
        limits = ("--stop-after-wait", "2ms", "--after", "300ms", "-d", "50s")
        zaplock("record", "-p", program.pid, "--watch", *limits, "-o", file)
        if not stack_has(program.pid, "show_smaps_rollup")():
            pytest.skip("it was through before it was looked at")
    told = json.loads(zaplock("report", file, "--json", "--top", "999"))
    held = [one for one in told["holds"] + told["holds_in_part"] if one["comm"] == "metrics"]
    assert held
    assert {one["operation"] for one in held} == {f"read of /proc/{program.pid}/smaps_rollup"}


def test_a_fault_inside_a_system_call_is_named_as_one(folder: Path) -> None:
    """A read() into memory that isn't there yet waits behind a munmap and a writer in front."""
    said = while_it_hangs(
        folder, "kfault", lambda program: why(program.pid), ready="lock_mm_and_find_vma"
    )
    io = found(said, "waits", "io-read")
    assert "lock_mm_and_find_vma" in io["kernel_stack"]
    assert io["operation"] == "read (kernel-mode fault)"
    assert io["mode"] == "shared"
    assert ("culprit", "munmap") in blamed(said, "io-read")


def test_a_vfork_child_that_has_its_parents_lock_is_named(folder: Path) -> None:
    """It is another process, and has the same address space until it calls exec."""
    said = while_it_hangs(
        folder,
        "vfork",
        lambda program: why(program.pid),
        ready="vm_mmap_pgoff",
        inside="vm_mmap_pgoff",
    )
    assert found(said, "holds", "child")["operation"] == "munmap"
    assert blamed(said, "victim")[0] == ("child", "munmap")


@pytest.mark.parametrize("halt", ["signal", "tracer"])
def test_what_is_stopped_is_said_to_be_stopped(folder: Path, halt: str) -> None:
    """Nobody waits for the lock, and still nothing goes on."""
    with subprocess.Popen(["sleep", "100"]) as sleeper:
        try:
            with halted(sleeper.pid, halt) as text:
                said = zaplock("why", sleeper.pid, "-d", "100ms")
                told = json.loads(zaplock("why", sleeper.pid, "-d", "100ms", "--json"))["found"]
        finally:
            sleeper.kill()
    assert f"sleep (tid {sleeper.pid}) is {text} for " in said
    assert "that is no wait for the lock" in said
    # A thread of the kernel's that just then sleeps without being interruptible is told as well.
    assert [task["operation"] for task in told if task["tid"] == sleeper.pid] == [text]


@contextlib.contextmanager
def halted(pid: int, halt: str) -> Iterator[str]:
    """Stop a process; give what is to be said of it."""
    if halt == "signal":
        os.kill(pid, signal.SIGSTOP)
        until(stack_has(pid, "do_signal_stop"))
        yield "stopped by a signal"
    else:
        tracing = "import ctypes, sys; c = ctypes.CDLL(None); c.ptrace(16, int(sys.argv[1]), 0, 0)"
        waiting = "; print('go', flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", tracing + waiting, str(pid)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes) as tracer:  # type: ignore[call-overload]
            assert tracer.stdout.readline() == b"go\n"
            until(stack_has(pid, "ptrace_stop"))
            yield "stopped by its tracer"
            tracer.kill()


def test_the_whole_system_is_looked_at_too(folder: Path, tmp_path: Path) -> None:
    def record(program: Program) -> tuple[int, Path, str]:
        file = tmp_path / f"all-{program.pid}.zaplock"
        return program.pid, file, zaplock("record", "-d", "200ms", "-o", file)

    pid, file, told = while_it_hangs(folder, "already", record)
    if "no time to look at every process" in told:
        pytest.skip("too many tasks for the time that a look has, as was told")
    said = json.loads(zaplock("report", file, "--json", "--top", "50"))
    assert blamed(said, "victim")[0] == ("culprit", "munmap")
    wait = next(wait for wait in said["waits"] if wait["comm"] == "victim")
    assert wait["pid"] == pid


def test_a_crowd_of_threads_is_answered_for(folder: Path) -> None:
    """will-it-scale#4, argobots#369: many threads map, and one has the lock for long."""
    said = while_it_hangs(folder, "crowd", lambda program: why(program.pid), 60)
    waiting = [one for one in said["found"] if one["does"] == "waits"]
    assert len(waiting) >= 50
    assert {"mmap"} <= {one["operation"] for one in waiting} <= {"mmap", "page fault"}
    assert "unmap_vmas" in found(said, "holds", "culprit")["kernel_stack"]
