"""What /proc says of processes that may end while somebody looks."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def has_ended(pid: int) -> bool:
    """Say whether a process is gone, or a zombie (whose parent has yet to ask for it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def name_of(pid: int) -> str:
    """Return a process's name; "" where it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def threads_of(pid: int) -> list[int]:
    """List the threads of a process; none where it is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(thread) for thread in os.listdir(f"/proc/{pid}/task")]
    return []


def children_of_threads(pid: int) -> list[int]:
    """List the children of all threads of a process; none where it is gone."""
    found = list[int]()
    for thread in threads_of(pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def children_of(pid: int) -> list[int]:
    """List the children of a process's first thread; none where it is gone."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in children.split()]


def resident_bytes() -> int:
    """As our page tables say: statm leaves out what each CPU has yet to add (6.2 and later)."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return int(rollup.partition("Rss:")[2].split()[0]) << 10


def waits_with(pid: int, signal: int) -> bool:
    """Say whether a process has yet to take a signal that it was sent."""
    status = Path(f"/proc/{pid}/status").read_text()
    (pending,) = (line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(pending, 16) >> (signal - 1) & 1)


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Have a process that does nothing any more: it has begun, and sleeps."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            deadline = time.monotonic() + 250
            while "(sleep) S" not in Path(f"/proc/{process.pid}/stat").read_text():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process
        finally:
            process.kill()
