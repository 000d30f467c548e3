"""What a report of ten million events costs, and one of many threads that wait for each other.

python -m pytest bench/test_report.py -s
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from scenes import again, crowd, queue_of_writers

from zaplock.trace.analysis import analyse
from zaplock.trace.recording_file import Manifest, write
from zaplock.trace.summary import summarise

MILLION = 1_000_000
LIMIT_CPU_S = 20
LIMIT_BYTES = 2 << 30
LIMIT_RATIO = 15


@pytest.mark.timeout(600)
def test_ten_million_events_in_twenty_seconds_and_two_gigabytes(tmp_path: Path) -> None:
    """CPU seconds, so that whoever else uses the machine doesn't count; wall time is printed."""
    file = tmp_path / "ten-million.zaplock"
    write(file, again(crowd(MILLION), 10), Manifest(kernel="6.18", source="simulation"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "zaplock", "report", file], check=True, stdout=subprocess.DEVNULL
    )
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = after.ru_maxrss * 1024
    print(f"\nreport of 10 million events: {cpu:.1f} CPU s, {wall:.1f} s, {peak / 2**30:.2f} GiB")
    assert cpu < LIMIT_CPU_S
    assert peak < LIMIT_BYTES


def blamed_in(waiters: int) -> float:
    """Return the CPU seconds in which a recording of so many waiting threads is explained."""
    events = queue_of_writers(waiters)
    began = time.process_time()
    summarise(analyse(events, "6.18"))
    return time.process_time() - began


@pytest.mark.timeout(600)
@pytest.mark.parametrize("waiters", [100, 500])
def test_ten_times_the_waiters_take_at_most_fifteen_times_as_long(waiters: int) -> None:
    """Each thread waits ten times, each time behind all the others."""
    few = min(blamed_in(waiters) for _ in range(3))
    many = blamed_in(10 * waiters)
    print(
        f"\n{waiters} waiters: {few:.2f} CPU s; {10 * waiters}: {many:.2f}, {many / few:.1f} times"
    )
    assert many < LIMIT_RATIO * few
