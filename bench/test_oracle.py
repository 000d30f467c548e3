"""How fast the real side and the whole comparison are, beside the plain way to do the same.

All of it on one core: the process and the bare process that it drives take turns there.

The peer is what one would write first: a Python process that makes a system call through ctypes
and reads its own /proc/self/smaps and status afterwards, parsed line by line.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zaplock.errors import UserError
from zaplock.oracle.bare_process import check_machine
from zaplock.oracle.campaign import Bench, run
from zaplock.oracle.generate import Generator
from zaplock.oracle.modelside import COVERED, model_side

SEQUENCES = 40


def plain_operation(libc: ctypes.CDLL) -> None:
    """Map two pages, and look at the whole address space and the counters."""
    libc.syscall(9, 0x1020_0000, 8192, 3, 0x32, -1, 0)
    figures: dict[str, int] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            figures[name] = figures.get(name, 0) + int(rest.split()[0])
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.startswith(("Vm", "Rss")):
            figures[name] = int(rest.split()[0])


def rate(work: Callable[[], int]) -> float:
    """Return operations a second, the median of five rounds."""
    rates = []
    for _ in range(5):
        began = time.perf_counter()
        rates.append(work() / (time.perf_counter() - began))
    return statistics.median(rates)


def test_fully_compared_operations_beside_plain_ctypes(
    record_property: Callable[[str, object], None],
) -> None:
    try:
        check_machine()
    except UserError as error:
        pytest.skip(str(error))
    libc = ctypes.CDLL(None)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})

    def plain() -> int:
        for _ in range(200):
            plain_operation(libc)
        return 200

    both = Bench(model_side, COVERED)
    generator = Generator(1, COVERED)

    def real() -> int:
        return sum(len(both.real.run(generator.sequence())) for _ in range(SEQUENCES))

    try:
        figures = {"plain": rate(plain), "real side": rate(real)}
        rates = []
        for seed in range(1, 6):  # as `zaplock oracle --seconds 6 --jobs 1 --seed N` does it
            *_, report = run(model_side, seconds=6, seed=seed, scope=COVERED)
            assert report.agrees, report.signatures
            rates.append(report.operations / report.seconds)
        figures["compared"] = statistics.median(rates)
    finally:
        both.close()
        os.sched_setaffinity(0, allowed)
    for name, per_second in figures.items():
        record_property(name, round(per_second))
        print(f"{name:<10} {per_second:10,.0f} operations/s")
    assert figures["real side"] > 30 * figures["plain"], figures
    assert figures["compared"] > 15 * figures["plain"], figures
