"""Experiments with two tasks: waking, the latency of a wake-up, a context switch.

Two processes hand a token to and fro through eventfds. On one CPU a hand-over is a write, a
wake-up, a switch and a read; on two CPUs a write, a wake-up, the latency until the other CPU runs,
and a read. These are wall times (a sleeper spends no CPU time), so the median of many counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from zaplock.measure.calibration.clock import each

TURNS = 300
PAUSE_S = 0.0002


@contextmanager
def _partner(cpu: int, life: Callable[[], None]) -> Iterator[None]:
    """Have a child process that lives `life` on `cpu`."""
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {cpu})
        try:
            life()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def _hand_over(cpu: int) -> float:
    """Return the median nanoseconds of one hand-over to a partner on `cpu`."""
    there, back = os.eventfd(0), os.eventfd(0)

    def echo() -> None:
        while True:
            os.eventfd_read(there)
            os.eventfd_write(back, 1)

    took = []
    with _partner(cpu, echo):
        for _ in range(TURNS):
            begin = time.perf_counter_ns()
            os.eventfd_write(there, 1)
            os.eventfd_read(back)
            took.append(time.perf_counter_ns() - begin)
    os.close(there)
    os.close(back)
    return median(took) / 2


def _write_to_sleeper(cpu: int) -> float:
    """Return the median nanoseconds of a write that wakes a sleeper on `cpu`."""
    bell = os.eventfd(0)

    def sleep() -> None:
        while True:
            os.eventfd_read(bell)

    took = []
    with _partner(cpu, sleep):
        for _ in range(TURNS):
            time.sleep(PAUSE_S)
            begin = time.perf_counter_ns()
            os.eventfd_write(bell, 1)
            took.append(time.perf_counter_ns() - begin)
    os.close(bell)
    return median(took)


def _alone() -> tuple[float, float]:
    """Return the nanoseconds of a write that wakes nobody, and of a write and a read."""
    bell = os.eventfd(0)

    def both() -> None:
        os.eventfd_write(bell, 1)
        os.eventfd_read(bell)

    took = each(lambda: os.eventfd_write(bell, 1)), each(both)
    os.close(bell)
    return took


def experiments() -> dict[str, float]:
    """Run all experiments; with one CPU there is no latency to measure."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus[:1])
    try:
        write, both = _alone()
        raw = {"write_alone": write, "write_and_read": both, "hand_over": _hand_over(cpus[0])}
        if len(cpus) > 1:
            raw["write_to_sleeper"] = _write_to_sleeper(cpus[1])
            raw["hand_over_remote"] = _hand_over(cpus[1])
    finally:
        os.sched_setaffinity(0, cpus)
    return raw
