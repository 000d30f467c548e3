"""Read the accounts of the cgroups that a recorded process is in, as long as the recording runs.

Both versions of the cpu controller: cpu.max and cpu.stat of version 2, cpu.cfs_quota_us,
cpu.cfs_period_us and cpu.stat of version 1. Only groups with a quota are read, fifty times a
second: an account grows when a throttled group may run again, which is at most a period (100 ms)
later. Readings between two equal ones are left out. No mmap_lock is taken by it.

Not covered: a process that moves to another group while it is recorded counts as in its last one;
threads in groups of their own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from zaplock.recorder.control_groups import group_of, hierarchy
from zaplock.recorder.scheduling import join_first
from zaplock.trace.quota_readings import QuotaReading

_PAUSE_S = 0.02
_LOOK_AGAIN = 25
"""After so many readings new processes are looked for."""
_MOST = 1_000_000
"""Of more readings the oldest are dropped."""


def reading(root: Path, group: str, time_ns: int) -> QuotaReading | None:
    """Read a group's quota and account; None where it has no quota or is gone."""
    folder = root / group.lstrip("/")
    try:
        quota_us, period_us = _limit(folder)
        stat = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if quota_us <= 0:
        return None
    in_us = stat.get("throttled_usec")
    throttled_ns = int(in_us) * 1000 if in_us is not None else int(stat.get("throttled_time", 0))
    count = int(stat.get("nr_throttled", 0))
    return QuotaReading(time_ns, group, quota_us * 1000, period_us * 1000, throttled_ns, count)


def _limit(folder: Path) -> tuple[int, int]:
    if (folder / "cpu.max").exists():
        quota, period = (folder / "cpu.max").read_text().split()
        return (0 if quota == "max" else int(quota)), int(period)
    quota, period = (
        (folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
    )
    return int(quota), int(period)


def above(group: str) -> tuple[str, ...]:
    """List a group and those that it is in, innermost first.

    >>> above("/a/b")
    ('/a/b', '/a')
    """
    parts = [part for part in group.split("/") if part]
    return tuple("/" + "/".join(parts[:count]) for count in range(len(parts), 0, -1))


class QuotaWatch(threading.Thread):
    """Read accounts until `stop`; `pids` says whose groups count, asked twice a second."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        super().__init__(daemon=True)
        self._pids = pids
        self._groups: dict[int, tuple[str, ...]] = {}
        self._readings: list[QuotaReading] = []
        self._newest: dict[str, QuotaReading] = {}
        """The newest reading of each group with a quota; not in the list while nothing changes."""
        self._ended = threading.Event()
        self._where = hierarchy("cpu")

    def run(self) -> None:
        """Read until `stop`."""
        turn = 0
        while not self._ended.is_set():
            if turn % _LOOK_AGAIN == 0:
                self._look()
            self._read(list(self._newest))
            turn += 1
            self._ended.wait(_PAUSE_S)

    def _look(self) -> None:
        """Find the groups of the processes."""
        if self._where is None:
            return
        for pid in self._pids():
            group = group_of(f"/proc/{pid}", self._where[1])
            if group is not None:
                self._groups[pid] = above(group)
        known = {group for chain in self._groups.values() for group in chain}
        self._read(known - self._newest.keys())

    def _read(self, groups: Iterable[str]) -> None:
        if self._where is None:
            return
        time_ns = time.monotonic_ns()
        for group in groups:
            found, before = reading(self._where[0], group, time_ns), self._newest.get(group)
            if found is None:
                continue
            if before is None:
                self._readings.append(found)
            elif found[2:] != before[2:]:
                self._readings += [before, found]
                del self._readings[:-_MOST]
            self._newest[group] = found

    def stop(self) -> None:
        """Read once more, and end."""
        self._ended.set()
        if self.is_alive():
            join_first(self)
        self._read(list(self._newest))

    def rows(self) -> tuple[list[QuotaReading], dict[int, tuple[str, ...]]]:
        """Give the readings, in order of time, and the groups of the processes."""
        # Copies, each in one step: the thread may still be reading.
        readings = sorted({*self._readings.copy(), *self._newest.copy().values()})
        return readings, self._groups.copy() if readings else {}
