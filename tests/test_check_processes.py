"""Processes of a check: they end with their parent, and share one limit on memory."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import threads_of

pytestmark = pytest.mark.needs_cpus  # with one, zaplock starts neither threads nor workers

BIG = """
summary = "too many tasks to exhaust in the time that a test has"
[[map]]
pages = [0, 4]
populated = [0, 2]
[[map]]
pages = [512, 514]
populated = [512, 513]
[[task]]
do = ["munmap 0 4"]
[[task]]
do = ["read 1", "write 2 7"]
[[task]]
do = ["gup 0"]
[[task]]
do = ["gup 512"]
[[task]]
do = ["read 512", "munmap 512 1"]
[[task]]
do = ["dontneed 512 1", "write 513 4"]
"""


def processes_of(session: int) -> list[int]:
    """List the processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != b"Z":
                found.append(int(entry.name))
    return found


def threads_in(session: int) -> int:
    """Count the threads of all processes of a session."""
    return sum(len(threads_of(pid)) for pid in processes_of(session))


def wait_for(condition: object, seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("what", ["big.toml", "--all", "--mutations", "fleet"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(number: int, what: str, tmp_path: Path) -> None:
    """A thread beside the first searches one scenario, on and off; two processes do the rest."""
    scenario = tmp_path / "big.toml"
    scenario.write_text(BIG)
    one = [str(scenario), "--design", "linux-6.18", "--queue", "any"]
    fleet = ["fleet", "simulate", str(tmp_path / "store"), "--hosts", "300"]
    command = fleet if what == "fleet" else ["check", *(one if what == scenario.name else [what])]
    child = subprocess.Popen(
        [sys.executable, "-m", "zaplock", *command, "--jobs", "2"],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    if what == scenario.name:
        assert wait_for(lambda: threads_in(child.pid) >= 2), "no threads"
    else:
        assert wait_for(lambda: len(processes_of(child.pid)) >= 3), "no workers"
    time.sleep(random.Random(int(number)).random() / 2)
    os.kill(child.pid, number)
    said = child.communicate()[1]
    assert wait_for(lambda: not processes_of(child.pid)), processes_of(child.pid)
    assert "Traceback" not in said, said


HALF_A_RESULT = """
import time
from zaplock.workers import pool

def big():
    return b"x" * 200_000_000

if __name__ == "__main__":
    for turn in range(4):
        try:
            with pool(2, "spawn") as workers:
                begun = [workers.submit(big) for _ in range(6)]
                time.sleep(0.3 + 0.1 * turn)
                raise InterruptedError
        except InterruptedError:
            print("ended")
"""


def test_workers_that_are_killed_amid_a_result_keep_nobody_waiting(tmp_path: Path) -> None:
    program = tmp_path / "half.py"
    program.write_text(HALF_A_RESULT)
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, check=True, timeout=240
    )
    assert done.stdout.split() == ["ended"] * 4


@pytest.mark.parametrize("seed", range(int(os.environ.get("ZAPLOCK_KILLS", "2"))))
def test_nobody_is_left_whenever_it_is_killed(seed: int, tmp_path: Path) -> None:
    """While it starts, or in the middle of a level: ZAPLOCK_KILLS=20 were tried."""
    scenario = tmp_path / "big.toml"
    scenario.write_text(BIG)
    command = ["check", str(scenario), "--design", "linux-6.18", "--jobs", "2", "--queue", "any"]
    child = subprocess.Popen(
        [sys.executable, "-m", "zaplock", *command],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(random.Random(seed).uniform(0.0, 6.0))
    child.terminate()
    said = child.communicate()[1]
    assert wait_for(lambda: not processes_of(child.pid)), processes_of(child.pid)
    assert "Traceback" not in said, said


def test_an_error_in_the_code_of_a_design_is_told_with_line_and_schedule(tmp_path: Path) -> None:
    design = tmp_path / "own.py"
    design.write_text(
        "from dataclasses import replace\n"
        "from zaplock.designs import SHIPPED\n"
        "from zaplock.model.step import step\n"
        "@step\n"
        "def stumble(m, task):\n"
        "    return {}[task.mm]\n"
        "async def munmap(cx, start, length):\n"
        "    return await stumble()\n"
        "OWN = replace(SHIPPED['linux-6.1'], name='own', munmap=munmap)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "zaplock", "check", "munmap+fault", "--design", f"{design}:OWN"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "CODE_RUNS: KeyError in stumble (own.py:6): 1" in done.stdout
    assert "munmap (own.py:8)" in done.stdout
    assert "token: munmap+fault@" in done.stdout
    assert not done.stderr


def test_a_limit_on_memory_is_for_all_cores_together(tmp_path: Path) -> None:
    scenario = tmp_path / "big.toml"
    scenario.write_text(BIG)
    most = 0
    command = ["check", str(scenario), "--design", "linux-6.18", "--jobs", "2", "--queue", "any",
               "--max-memory", "150"]  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-m", "zaplock", *command], start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    while child.poll() is None:
        most = max(most, sum(map(resident, processes_of(child.pid))))
        time.sleep(0.05)
    assert child.stdout is not None
    assert "150 MiB" in child.stdout.read()
    child.stdout.close()
    assert child.returncode == 3
    assert most < 150 * 1.1


def resident(pid: int) -> float:
    """Return MiB that a process occupies."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGESIZE") / (1 << 20)
