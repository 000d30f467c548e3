"""How an experiment is timed: by the thread's own CPU time, so that a busy neighbour counts less.

Wall time on a shared machine contains the turns of others on the run queue. CPU time contains
what the thread itself did, in user and kernel mode, and the waits that it spun through. It still
contains what others do to the caches, and under some hypervisors stolen time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

INNER = 5
"""Repetitions of a loop inside one experiment; the least counts, since all noise is additive."""


def spent(work: Callable[[], object]) -> int:
    """Return the CPU nanoseconds that one call of `work` takes."""
    begin_ns = time.thread_time_ns()
    work()
    return time.thread_time_ns() - begin_ns


def each(work: Callable[[], object], calls: int = 2000) -> float:
    """Return the CPU nanoseconds of one call in a loop, the loop itself taken away."""
    turns = range(calls)

    def loop() -> None:
        for _ in turns:
            work()

    def empty() -> None:
        for _ in turns:
            pass

    loop()
    return (
        min(spent(loop) for _ in range(INNER)) - min(spent(empty) for _ in range(INNER))
    ) / calls
