"""The lock is not the whole story: its holder waits for something else, or nobody waits for it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import has_ended, threads_of
from programs import Program, built, running
from test_already_so import SLOW, blamed, found, stack_has, until, why, zaplock
from test_hidden_holders import READ, mapping_a_slow_file, number_before_go, victim_waits

pytestmark = pytest.mark.root


def in_exit(pid: int) -> int:
    """Count the threads of a process that are on their way out."""
    stacks = []
    for thread in threads_of(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            stacks.append(Path(f"/proc/{pid}/task/{thread}/stack").read_text())
    return sum("do_exit" in stack for stack in stacks)


@contextlib.contextmanager
def being_truncated(folder: Path, gib: float) -> Iterator[tuple[Program, int]]:
    """A process whose thread maps a file that another process, whose number this gives, truncates.

    The truncation has the lock of the file's mappings, the mapper its own mmap_lock behind it.
    """
    with running(built("behind_more", folder), "truncated", gib, SLOW) as program:
        truncater = number_before_go(program, 10)
        try:
            mapper, waits = stack_has(program.pid, "__mmap_region"), victim_waits(program.pid)
            until(lambda: (mapper() and waits()) or has_ended(truncater))
            yield program, truncater
        finally:
            with contextlib.suppress(ProcessLookupError):  # or its end takes a minute
                os.setpriority(os.PRIO_PROCESS, truncater, -SLOW)
                os.kill(truncater, signal.SIGKILL)


def test_a_holder_that_waits_for_a_files_mappings_is_told_with_who_truncates(folder: Path) -> None:
    for gib in (0.5, 2.0):
        with being_truncated(folder, gib) as (program, truncater):
            if has_ended(truncater):
                continue
            said = zaplock("why", program.pid, "-d", "300ms")
            told = why(program.pid)
            if not stack_has(truncater, "unmap_mapping_range")():
                continue
        assert blamed(told, "victim")[0] == ("mapper", "mmap")
        slept = "it slept itself, for the lock of a file's mappings (i_mmap), which truncater"
        assert f"{slept} (tid {truncater}) in ftruncate may have" in said
        assert said.index("Held now: mapper") < said.index(slept) < said.index("Already so")
        return
    pytest.skip("nothing hangs for long enough on this machine")


def test_a_killed_process_that_does_not_die_waits_for_its_own_lock(folder: Path) -> None:
    """`kill -9` changes nothing: who has the lock must come out of the kernel first."""
    for gib in (0.5, 2.0):
        with being_truncated(folder, gib) as (program, truncater):
            program.process.kill()
            until(lambda: in_exit(program.pid) == 2 or has_ended(truncater))
            if has_ended(truncater):
                continue
            time.sleep(0.05)
            said = why(program.pid)
            if not stack_has(truncater, "unmap_mapping_range")():
                continue
        assert found(said, "holds", "mapper")["operation"] == "mmap"
        assert blamed(said, "victim")[0] == ("mapper", "mmap")
        ending = {one["operation"] for one in said["found"] if one["does"] == "waits"}
        assert "exit" in ending
        assert not [one for one in said["found"] if str(one["operation"]).startswith("kept until")]
        return
    pytest.skip("nothing hangs for long enough on this machine")


@pytest.fixture
def core_pattern() -> Iterator[Path]:
    """Where the machine says what becomes of cores; as it was afterwards."""
    pattern = Path("/proc/sys/kernel/core_pattern")
    before = pattern.read_text()
    yield pattern
    pattern.write_text(before)


def test_a_thread_that_waits_for_the_core_is_no_waiter_for_the_lock(
    folder: Path, tmp_path: Path, core_pattern: Path
) -> None:
    reads_late = tmp_path / "reads_late"
    reads_late.write_text(f"#!/bin/sh\nwhile [ -e {reads_late} ]; do sleep 0.05; done\n")
    reads_late.chmod(0o755)
    with running(built("behind_more", folder), "core") as program:
        program.says("go")
        core_pattern.write_text(f"|{reads_late}")
        program.goes()
        until(lambda: "\nCoreDumping:\t1" in Path(f"/proc/{program.pid}/status").read_text())
        until(stack_has(program.pid, "do_exit"))
        told = why(program.pid)
        reads_late.unlink()
        program.process.wait()
    victim = next(one for one in told["found"] if one["task"].startswith("victim"))
    assert (victim["does"], victim["operation"]) == (
        None,
        "kept until the core of its process is written",
    )


@contextlib.contextmanager
def cgroup(kind: str) -> Iterator[Path]:
    """A control group of a v1 hierarchy."""
    group = Path(f"/sys/fs/cgroup/{kind}/zaplock-test-{os.getpid()}")
    if not (group.parent / "cgroup.procs").exists():
        pytest.skip(f"no v1 cgroup {kind} is mounted here")
    group.mkdir()
    try:
        yield group
    finally:
        end = time.monotonic() + 250
        while True:
            try:
                group.rmdir()
                break
            except OSError:  # until the last of its tasks has gone
                assert time.monotonic() < end
                time.sleep(0.05)


def test_a_fault_that_has_no_memory_left_is_told(folder: Path) -> None:
    with cgroup("memory") as group:
        (group / "memory.limit_in_bytes").write_text("32M")
        (group / "memory.oom_control").write_text("1")
        with running(built("behind_more", folder), "full", group) as program:
            until(stack_has(program.pid, "mem_cgroup_oom_synchronize"))
            said = zaplock("why", program.pid, "-d", "100ms")
    assert "Right now nobody waits for this lock." in said
    assert "is out of memory in its cgroup for " in said
    assert "Give the group more (memory.limit_in_bytes)" in said


def has_state(pid: int, states: str) -> Callable[[], bool]:
    """Say whether a process that nobody has waited for is in one of some states."""
    status = Path(f"/proc/{pid}/status")
    return lambda: re.search(rf"^State:\t{states}", status.read_text(), re.MULTILINE) is not None


def test_a_thread_that_cannot_be_woken_is_told_with_where_it_is(
    folder: Path, tmp_path: Path
) -> None:
    """A read that ends with its file system alone: state D, and neither a fault nor a lock."""
    asks = None
    try:
        with mapping_a_slow_file(folder, tmp_path, "idle") as program:
            number_before_go(program, 16)
            command = "import os, sys; os.pread(os.open(sys.argv[1], 0), 4096, 0)"
            while not asks or has_ended(asks.pid):  # as it does if no server has its request yet
                if asks:
                    asks.wait()
                asks = subprocess.Popen([sys.executable, "-c", command, tmp_path / "f"])
                until(stack_has(asks.pid, "request_wait_answer"))
                asks.kill()  # from now on it waits so that nothing wakes it
                until(has_state(asks.pid, "[DZX]"))
            time.sleep(0.2)
            said = zaplock("why", asks.pid, "-d", "100ms")
    finally:
        if asks:
            asks.kill()
            asks.wait()
    assert "so that no signal wakes it (state D), on the answer of a FUSE file system" in said
    assert ": that is no wait for the lock. It is in " in said


def test_a_strangers_frozen_group_is_not_told_and_the_targets_own_is(folder: Path) -> None:
    command = [sys.executable, "-c", "import time; print('go', flush=True); time.sleep(99)"]
    with (
        cgroup("freezer") as group,
        subprocess.Popen(command, stdout=subprocess.PIPE) as frozen,
        subprocess.Popen(command, stdout=subprocess.PIPE) as other,
    ):
        try:
            for one in (frozen, other):
                assert one.stdout
                assert one.stdout.readline() == b"go\n"
            (group / "cgroup.procs").write_text(str(frozen.pid))
            (group / "freezer.state").write_text("FROZEN")
            until(lambda: (group / "freezer.state").read_text() == "FROZEN\n")
            own, others = (zaplock("why", one.pid, "-d", "100ms") for one in (frozen, other))
        finally:
            (group / "freezer.state").write_text("THAWED")
            for one in (frozen, other):
                one.kill()
    assert "is frozen with its cgroup for " in own
    assert "THAWED in freezer.state" in own
    assert "frozen" not in others


def test_a_frozen_reader_keeps_the_lock_that_it_has(folder: Path, tmp_path: Path) -> None:
    """It is in the middle of a read of another's memory, whose page does not come."""
    reader = None
    try:
        with cgroup("freezer") as group:
            with mapping_a_slow_file(folder, tmp_path, "idle") as program:
                address = str(number_before_go(program, 16))
                memory = f"/proc/{program.pid}/mem"
                reader = subprocess.Popen([sys.executable, "-c", READ, memory, address])
                until(stack_has(reader.pid, "request_wait_answer"))
                (group / "cgroup.procs").write_text(str(reader.pid))
                (group / "freezer.state").write_text("FROZEN")
                until(victim_waits(program.pid))
                told = json.loads(zaplock("why", program.pid, "-d", "300ms", "--json"))
                (group / "freezer.state").write_text("THAWED")
            reader.kill()
            reader.wait()
    finally:
        if reader:
            reader.kill()
            reader.wait()
    holder = next(one for one in told["found"] if one["tid"] == reader.pid)
    assert (holder["does"], holder["operation"]) == ("holds", f"read of {memory}")
    assert f"read of {memory}" in {operation for _, operation in blamed(told, "victim")}
