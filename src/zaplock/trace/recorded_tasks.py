"""The tasks of a recording: who they are, and what they did when it began; without numpy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecordedTask:
    """Who a thread id is: its name, its process and that process's name.

    `inside` are the numbers of the thread and of its process in their own PID namespace (a
    container's), (0, 0) where that is the recorder's or isn't known.
    """

    tid: int
    comm: str
    pid: int
    process: str = ""
    inside: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class FoundTask:
    """What a task was doing when somebody looked, before any event told of it.

    `stack` are the kernel functions it was in, innermost first; `state` is its letter in /proc.
    `does` is "waits" or "holds" (an mmap_lock: that of `mm`, 0 where it isn't known whose), or ""
    for anything else, which `operation` names. `since_ns` is the earliest time from which on it
    is known to have been so, 0 where only the look itself tells, at `time_ns`.
    """

    tid: int
    time_ns: int
    state: str
    wchan: str
    operation: str
    stack: tuple[str, ...]
    does: str = ""
    exclusive: bool = False
    mm: int = 0
    since_ns: int = 0
    address: int = 0
    length: int = 0
    detail: int = 0
