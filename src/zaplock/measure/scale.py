"""The workloads of `zaplock scale` on this kernel: scale.c, compiled when it is first needed."""

from __future__ import annotations

import os
import statistics
import subprocess
from pathlib import Path

from zaplock.errors import UserError
from zaplock.measure.guest.build import compiled

PROGRAM = Path(__file__).with_name("scale.c")
MILLISECONDS = 200
"""How long a workload runs for one figure."""
ROUNDS = 5
_LIMIT_S = 60


def rate(workload: str, threads: int) -> float:
    """Return operations a second of all threads together: the median of some runs.

    Raises UserError without a compiler or without so many CPUs.
    """
    needed = cpus_needed(workload, threads)
    if needed > cpus_here():
        raise UserError(f"{workload} with {threads} threads needs {needed} CPUs here")
    return statistics.median(run_once(workload, threads, MILLISECONDS) for _ in range(ROUNDS))


def transfer_ns() -> float:
    """Return what a cache line takes from one CPU of this machine to another, in nanoseconds.

    The least of many batches, since whatever else runs here only makes it longer. Raises UserError
    on a machine with one CPU.
    """
    if cpus_here() < 2:
        raise UserError("a cache line's way from CPU to CPU needs two CPUs: give --transfer NS")
    return run_once("transfer")


def cpus_needed(workload: str, threads: int) -> int:
    """Return how many CPUs so many threads want: one more where somebody reads beside them."""
    return threads + (workload == "maps")


def cpus_here() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def run_once(*arguments: str | int) -> float:
    """Run the program once: a workload, its threads and milliseconds; or "transfer"."""
    command = [str(compiled(PROGRAM)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
        raise UserError(f"the workload {arguments[0]} could not be run here: {reason}")
    return float(done.stdout)
