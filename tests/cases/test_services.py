"""Services after public reports, all on one machine, in one recording: who, what, where, why.

Where each comes from: opensearch#20933 (search), polars#22414 (frame), WSL#41113 (vma),
corretto-8#455 (heap), golang/go#57069 (runtime), jemalloc#1422 (allocator).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from programs import built, running
from test_already_so import zaplock
from test_stood import until_traced

pytestmark = pytest.mark.root
NICE = 5
SECONDS = 2.5


@dataclass
class Machine:
    """What was told of the recording, and each service's process id by its mode."""

    said: dict[str, Any]
    advice: list[dict[str, Any]]
    pids: dict[str, int]

    def waits(self, mode: str, victim: str) -> list[dict[str, Any]]:
        """The waits of a victim for the lock of its service, the longest first."""
        pid = self.pids[mode]
        return [one for one in self.said["waits"] if (one["comm"], one["pid"]) == (victim, pid)]


MODES = {"search": 32, "frame": 96, "vma": 96, "heap": 96, "runtime": 96, "allocator": 16}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    if os.geteuid() != 0:
        pytest.skip("recording needs root")
    folder = tmp_path_factory.mktemp("services")
    file = folder / "all.zaplock"
    java = shutil.copy(built("service", folder), folder / "java")
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(built("hog", folder)))
        services = {}
        for mode, mib in MODES.items():
            program = Path(java) if mode == "heap" else built("service", folder)
            services[mode] = stack.enter_context(running(program, mode, mib, NICE, SECONDS))
            services[mode].says("ready")
        pids = {mode: service.pid for mode, service in services.items()}
        targets = [word for pid in pids.values() for word in ("-p", str(pid))]
        command = [sys.executable, "-m", "zaplock", "record", *targets, "-d", f"{SECONDS}s"]
        with subprocess.Popen([*command, "-o", file], stdout=subprocess.DEVNULL) as recorder:
            until_traced(pids["allocator"])
            for service in services.values():
                service.goes()
        assert recorder.returncode == 0
    said = json.loads(zaplock("report", file, "--json", "--top", "1000"))
    advice = json.loads(zaplock("advise", file, "--json"))["advice"]
    return Machine(said, advice, pids)


@pytest.mark.parametrize(
    ("mode", "victim", "culprit", "operation", "function"),
    [
        ("search", "request", "search", "mincore", ""),  # some 50 us on a cpu: between two ticks
        ("search", "request", "script-field", "madvise(MADV_", ""),
        ("frame", "main-loop", "polars-unmap-0", "munmap", "unmap"),
        ("vma", "pgrep", "purger", "madvise(MADV_DONTNEED)", ""),
        ("heap", "search-1", "G1 Service", "mmap", "unmap"),
    ],
)
def test_who_made_whom_wait_in_what(
    machine: Machine, mode: str, victim: str, culprit: str, operation: str, function: str
) -> None:
    waits = machine.waits(mode, victim)
    assert waits, f"{victim} did not wait"
    blamed = [blame for wait in waits[:5] for blame in wait["blame"] if blame["comm"] == culprit]
    assert blamed, [wait["blame"] for wait in waits[:2]]
    worst = max(blamed, key=lambda blame: int(blame["share_ns"]))
    assert worst["operation"].startswith(operation)
    if function:
        stacks = [name for one in blamed for name in one.get("stack", {}).get("kernel", ())]
        assert any(function in name for name in stacks), worst


@pytest.mark.parametrize("mode", ["search", "frame", "vma", "heap"])
def test_a_wait_has_the_stack_with_which_it_began(machine: Machine, mode: str) -> None:
    waits = [one for one in machine.said["waits"] if one["pid"] == machine.pids[mode]]
    stacks = [name for one in waits for name in one.get("stack", {}).get("kernel", ())]
    assert any(name.startswith("rwsem_down_") for name in stacks), waits[:3]


def test_who_stands_behind_the_lock_of_a_runtime_that_gives_pages_back(machine: Machine) -> None:
    behind = [one for one in machine.said["slept_behind"]
              if one["operation"] == "madvise(MADV_DONTNEED)"]  # fmt: skip
    assert behind, machine.said["slept_behind"]
    assert behind[0]["length"] == MODES["runtime"] << 20


def test_a_storm_of_calls_without_the_lock_is_counted(machine: Machine) -> None:
    pid = machine.pids["allocator"]
    calls = [one for one in machine.said["calls"]
             if (one["pid"], one["operation"]) == (pid, "madvise(MADV_DONTNEED)")]  # fmt: skip
    assert calls, machine.said["calls"][:5]
    assert calls[0]["count"] > 100
    assert calls[0]["without_lock"] > 0.9 * calls[0]["count"]
    assert abs(calls[0]["length"] - (calls[0]["count"] << 20)) <= 16 << 20  # its own stack, too


@pytest.mark.parametrize(
    ("what", "who", "means"),
    [
        ("munmap", "polars-unmap-0 of service", {"release", "cpu"}),
        ("mincore", "search of service", {"pieces", "cpu"}),
        ("mmap", "G1 Service of java", {"setting", "release", "cpu"}),
    ],
)
def test_the_advice_is_about_the_culprit(
    machine: Machine, what: str, who: str, means: set[str]
) -> None:
    told = [one for one in machine.advice if f" by {who}" in one["what"]]
    told = [one for one in told if one["what"].startswith(what)]
    assert told, [one["what"] for one in machine.advice]
    assert {one["means"] for one in told} <= means


def worst_ms(program: Path, arguments: tuple[object, ...], *, cured: bool) -> float:
    """Run a program beside nobody who looks; return its victim's own clock."""
    environment = {**os.environ, **({"CURED": "1"} if cured else {})}
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True,
                          input="\n\n")  # fmt: skip
    rows = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
    names = ("worst", "mmap", "stood", "fork")
    return 1000 * next(float(rows[name]) for name in names if name in rows)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("service", ("frame", 256, 10, 0.3)),
        ("service", ("vma", 256, 10, 0.3)),
        ("service", ("heap", 256, 10, 0.3)),
        ("service", ("search", 32, 19, 0.3)),
        ("service", ("runtime", 256, 10, 0.3)),
        ("service", ("smaps", 256, 10, 0.3)),
        ("service", ("clear_refs", 256, 10, 0.3)),
        ("service", ("memory", 64, 10, 0.3)),
        ("service", ("metrics", 256, 10, 0.3)),
        ("service", ("command", 256, 19, 0.3)),
        ("already", (0.25, 10)),
        ("gil", (0.25, 10)),
    ],
)
def test_following_the_advice_halves_the_worst_stall(
    tmp_path: Path, name: str, arguments: tuple[object, ...]
) -> None:
    """By the clock of the victim itself; what else the machine does may cost one run or two."""
    program = built(name, tmp_path)
    built("reader", tmp_path)
    hog = subprocess.Popen([built("hog", tmp_path)])
    try:
        for _ in range(4):
            plain = worst_ms(program, arguments, cured=False)
            followed = worst_ms(program, arguments, cured=True)
            if 2 * followed <= plain:
                return
        pytest.fail(f"{plain:.1f} ms, and {followed:.1f} ms when followed")
    finally:
        hog.kill()
        hog.wait()
