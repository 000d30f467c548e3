"""Who the tasks are that live now, by /proc; without numpy, for the recorder.

`/proc/TID/comm` and `/proc/TID/status` take no mmap_lock on any kernel (`cmdline` does, so it is
never read).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from zaplock.trace.recorded_tasks import RecordedTask
from zaplock.untrusted_names import name_of, read_text


def of_everybody() -> Iterator[RecordedTask]:
    """Name every thread that exists now."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            yield from of_process(int(entry.name))


def of_process(pid: int) -> list[RecordedTask]:
    """Name the threads of a process that exists now; none where it is gone."""
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        return []
    process, contained = _comm(pid), is_contained(pid)
    named = [(tid, _comm_of(pid, tid)) for tid in threads]
    return [
        RecordedTask(
            tid, comm, pid, process or comm, numbers_inside(pid, tid) if contained else (0, 0)
        )
        for tid, comm in named
        if comm
    ]


def of_thread(tid: int) -> RecordedTask | None:
    """Name one thread that exists now, or None where it is gone."""
    try:
        status = read_text(f"/proc/{tid}/status")
    except (FileNotFoundError, ProcessLookupError):
        return None
    pid = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Tgid"))
    comm, inside = _comm(tid), _numbers(status)
    return RecordedTask(tid, comm, pid, _comm(pid) or comm, inside) if comm else None


def is_contained(pid: int) -> bool:
    """Say whether a process is in another PID namespace than this one."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    except OSError:  # it has ended, or is a stranger's
        return False


def numbers_inside(pid: int, tid: int) -> tuple[int, int]:
    """Return the numbers of a thread and its process in their own PID namespace, (0, 0): unknown.

    `/proc/TID/status` takes no mmap_lock.
    """
    try:
        return _numbers(read_text(f"/proc/{pid}/task/{tid}/status"))
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0


def _numbers(status: str) -> tuple[int, int]:
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    own, process = lines.get("NSpid", "").split(), lines.get("NStgid", "").split()
    return (int(own[-1]), int(process[-1])) if len(own) > 1 and process else (0, 0)


def _comm(pid: int) -> str:
    return _line(f"/proc/{pid}/comm")


def _comm_of(pid: int, tid: int) -> str:
    return _line(f"/proc/{pid}/task/{tid}/comm")


def _line(path: str) -> str:
    try:
        return name_of(Path(path).read_bytes().removesuffix(b"\n"))
    except (FileNotFoundError, ProcessLookupError):
        return ""
