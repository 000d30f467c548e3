"""Who has the lock is not easily seen: a look at the tasks finds it all the same.

Each case hangs before anybody looks. What had been said of them was "not known: whoever had it took
it before anything was recorded", with the culprit in plain sight.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import name_of
from programs import Program, built, running
from test_already_so import SLOW, blamed, found, stack_has, until, why, zaplock

pytestmark = pytest.mark.root


def hung(folder: Path, way: str, function: str) -> dict[str, Any]:
    """Ask why a process hangs while one is in a function of the kernel, and still is afterwards."""
    for gib in (1.0, 4.0):
        with running(built("hidden", folder), gib, SLOW, way) as program:
            outsider = number_before_go(program, 10)
            until(stack_has(outsider or program.pid, function))
            until(victim_waits(program.pid))
            said = why(program.pid)
            still = stack_has(outsider or program.pid, function)()
            for thread in os.listdir(f"/proc/{program.pid}/task"):  # or its end takes a minute
                os.setpriority(os.PRIO_PROCESS, int(thread), -SLOW)
            if still:
                return said
    pytest.skip("nothing hangs for long enough on this machine")


def victim_waits(pid: int) -> Callable[[], bool]:
    """Say whether it is in its mmap, its munmap, or a fault of the kernel's between them."""
    looks = [stack_has(pid, name) for name in ("vm_mmap_pgoff", "__vm_munmap", "lock_mm_and_find")]
    return lambda: any(look() for look in looks)


def number_before_go(program: Program, base: int) -> int:
    assert program.process.stdout is not None
    number = 0
    for line in program.process.stdout:
        if line.strip() == "go":
            return number
        number = int(line, base)
    pytest.fail("the program ended")


def test_the_page_work_of_mlockall_is_done_exclusively(folder: Path) -> None:
    said = hung(folder, "mlockall", "mlock_pte_range")
    holder = found(said, "holds", "culprit")
    assert (holder["operation"], holder["mode"]) == ("mlockall", "exclusive")
    assert blamed(said, "victim")[0] == ("culprit", "mlockall")


def test_an_madvise_over_several_vmas_has_the_lock_itself(folder: Path) -> None:
    """Its stack is that of one that has only its VMA's lock; but who else should have it?"""
    said = hung(folder, "spanning", "unmap_page_range")
    assert found(said, "holds", "culprit")["operation"] == "madvise(MADV_DONTNEED)"
    assert blamed(said, "victim")[0] == ("culprit", "madvise(MADV_DONTNEED)")


def test_advice_that_comes_from_outside_is_about_the_process_of_its_pidfd(folder: Path) -> None:
    said = hung(folder, "outsider", "madvise_cold_or_pageout_pte_range")
    assert found(said, "holds", "outsider")["operation"] == "process_madvise(MADV_COLD)"
    assert blamed(said, "victim")[0] == ("outsider", "process_madvise(MADV_COLD)")


@contextlib.contextmanager
def mapping_a_slow_file(folder: Path, at: Path, way: str) -> Iterator[Program]:
    """A program that has mapped a file whose pages don't come before the block ends."""
    with running(built("slow_files", folder), at) as files:
        assert files.process.stdout is not None
        if files.process.stdout.readline() != "go\n":
            pytest.skip("there is no FUSE here")
        try:
            with running(built("hidden", folder), 0, 0, way, at / "f") as program:
                try:
                    yield program
                finally:  # before those who wait for its pages: they can't be ended
                    files.process.kill()
                    files.process.wait()
        finally:
            subprocess.run(["umount", "-l", at], check=False, capture_output=True)


READ = "import os, sys; os.pread(os.open(sys.argv[1], 0), 4096, int(sys.argv[2]))"


def test_a_reader_of_anothers_memory_keeps_the_lock_until_the_page_is_there(
    folder: Path, tmp_path: Path
) -> None:
    """A page whose file system does not answer, and a ps or a debugger that reads it from outside.

    It sleeps so that a signal wakes it (state S), as nearly every task of a machine does.
    """
    reader = None
    try:
        with mapping_a_slow_file(folder, tmp_path, "idle") as program:
            address = str(number_before_go(program, 16))
            memory = f"/proc/{program.pid}/mem"
            reader = subprocess.Popen([sys.executable, "-c", READ, memory, address])
            until(stack_has(reader.pid, "request_wait_answer"))
            until(victim_waits(program.pid))
            said = why(program.pid)
    finally:
        if reader:  # only now, since a reader waits for its page whatever comes
            reader.kill()
            reader.wait()
    holder = next(one for one in said["found"] if one["tid"] == reader.pid)
    assert (holder["does"], holder["operation"]) == ("holds", f"read of {memory}")
    assert (holder["state"], holder["mode"]) == ("S", "shared")
    assert f"read of {memory}" in {operation for _, operation in blamed(said, "victim")}


def test_a_thread_whose_page_does_not_come_is_said_to_wait_for_that(
    folder: Path, tmp_path: Path
) -> None:
    with mapping_a_slow_file(folder, tmp_path, "slow") as program:
        number_before_go(program, 16)
        until(stack_has(program.pid, "request_wait_answer"))
        time.sleep(0.2)
        said = zaplock("why", program.pid, "-d", "300ms")
    assert "culprit (tid " in said
    assert "stands in page fault for " in said
    assert "until a FUSE file system, which may be served by slow_files (tid " in said
    assert "brings a page: that is no wait for the lock" in said


def test_who_serves_the_file_system_that_a_holder_waits_for_is_told(
    folder: Path, tmp_path: Path
) -> None:
    """sshfs, lxcfs: one ps hangs behind another, which has the lock until the server answers."""
    reader = None
    try:
        with mapping_a_slow_file(folder, tmp_path, "idle") as program:
            address = str(number_before_go(program, 16))
            reader = subprocess.Popen(
                [sys.executable, "-c", READ, f"/proc/{program.pid}/mem", address]
            )
            until(stack_has(reader.pid, "request_wait_answer"))
            until(victim_waits(program.pid))
            (server,) = (
                int(one.name)
                for one in Path("/proc").glob("[0-9]*")
                if name_of(int(one.name)) == "slow_files"
                and f"\nPPid:\t{os.getpid()}\n" in (one / "status").read_text()
            )
            os.kill(server, signal.SIGSTOP)
            said = zaplock("why", program.pid, "-d", "300ms")
    finally:
        if reader:  # only now, since a reader waits for its page whatever comes
            reader.kill()
            reader.wait()
    assert "it slept itself, on the answer of a FUSE file system, which may be served by " in said
    assert f"slow_files (tid {server}), stopped by a signal" in said


def test_a_container_that_reads_its_own_smaps_is_named_by_our_numbers(folder: Path) -> None:
    """In a container it is /proc/1/smaps_rollup that it reads; here, that is another's."""
    with running(Path("/usr/bin/unshare"), "-pf", "--mount-proc", "--kill-child",
                 built("own_smaps", folder), 20_000, SLOW) as container:  # fmt: skip
        container.says("go")
        children = Path(f"/proc/{container.pid}/task/{container.pid}/children")
        (service,) = map(int, children.read_text().split())
        until(stack_has(service, "show_smaps_rollup"))
        said = json.loads(zaplock("why", service, "-d", "300ms", "--json"))
        if not stack_has(service, "show_smaps_rollup")():
            pytest.skip("it was through before it was looked at")
    reads = {one["operation"] for one in said["found"] if one["task"].startswith("metrics")}
    assert reads == {f"read of /proc/{service}/smaps_rollup"}
