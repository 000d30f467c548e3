"""How soon `zaplock why` is ready to watch, and how much memory `zaplock record` holds.

Ready is when all its trace instances let events in, seen from outside. What of that the kernel
takes for the instances, whoever makes them, is measured beside it. Memory is what the recorder and
its children have in RAM (VmRSS), at most, while one thread maps and unmaps as fast as it can: until
events are off again, and afterwards, when a child decodes them. The kernel's own buffers are not
in it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from zaplock.recorder.instances_ahead import chosen_buffer_kb
from zaplock.recorder.tracefs import Instance, opened

INSTANCES = 2
"""Who looks at a process has one for locks and one for calls."""
STORM_S = 4
MOST_MIB = 40
"""So much a recorder may hold while it records."""
_LOOK_S = 0.001


def ready_s(pid: int) -> float:
    """Return the seconds from the start of `zaplock why PID` to its being ready; wait for it."""
    command = [sys.executable, "-m", "zaplock", "why", str(pid), "-d", "1s"]
    quiet = subprocess.DEVNULL
    with opened() as tracefs:
        began = time.monotonic()
        with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
            while not _is_ready(tracefs.path / "instances", process.pid):
                if process.poll() is not None:
                    raise subprocess.CalledProcessError(process.returncode, command)
                time.sleep(_LOOK_S)
            return time.monotonic() - began


def _is_ready(instances: Path, owner: int) -> bool:
    own = [name for name in os.listdir(instances) if f"-{owner}-" in name]
    with contextlib.suppress(OSError):  # it is being made
        on = [(instances / name / "tracing_on").read_text() for name in own]
        return len(on) == INSTANCES and all(one.strip() == "1" for one in on)
    return False


def instances_s() -> float:
    """Return the seconds that making so many instances and switching them on takes."""
    with opened() as tracefs, contextlib.ExitStack() as stack:
        began = time.monotonic()
        for _ in range(INSTANCES):
            instance = Instance(tracefs, buffer_kb=chosen_buffer_kb())
            stack.enter_context(instance).start()
        return time.monotonic() - began


def recorder_mib(pid: int) -> tuple[float, float]:
    """Return what `zaplock record` held at most while it recorded a process, and until its end."""
    with tempfile.TemporaryDirectory() as at, opened() as tracefs:
        out = str(Path(at) / "a.zaplock")
        record = [sys.executable, "-m", "zaplock", "record", "-p", str(pid), "-o", out]
        while_on, afterwards, was_on = 0.0, 0.0, False
        for owner, held in _held_mib([*record, "-d", f"{STORM_S}s"]):
            is_on = _is_ready(tracefs.path / "instances", owner)
            if is_on or not was_on:
                while_on = max(while_on, held)
            was_on, afterwards = was_on or is_on, max(afterwards, held)
        assert was_on, "it never recorded"
        return while_on, afterwards


def perf_mib(pid: int) -> float:
    """Return what `perf record` of the same lock events held at most."""
    with tempfile.TemporaryDirectory() as at:
        out = str(Path(at) / "perf.data")
        perf = ["perf", "record", "-q", "-m", "16M", "-e", "mmap_lock:*", "-p", str(pid)]
        command = [*perf, "-o", out, "--", "sleep", str(STORM_S)]
        return max(held for _, held in _held_mib(command))


def _held_mib(command: list[str]) -> Iterator[tuple[int, float]]:
    """Run a command; give its number and what it holds, a hundred times a second."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        while process.poll() is None:
            yield process.pid, sum(map(_resident_kb, _family(process.pid))) / 1024
            time.sleep(10 * _LOOK_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _family(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                yield from _family(int(child))


def _resident_kb(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0
