"""The CPU quotas of cgroups (cpu.max), as the groups' own accounts told them during a recording.

A group that has used up its quota is throttled until its next period; `throttled_ns` of its account
(cpu.stat) grows by it. Which of its tasks stood for that, and when just, no kernel tells; so of a
gap in a task's running, at most what the account grew around it was throttling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.quota_readings import QuotaReading


@dataclass(frozen=True, slots=True)
class CpuMax:
    """`quota_ns` of CPU time in each `period_ns`, all CPUs together."""

    quota_ns: int
    period_ns: int

    def __post_init__(self) -> None:
        assert self.quota_ns > 0, self
        assert self.period_ns > 0, self

    def __str__(self) -> str:
        return f"{self.quota_ns // 1000}/{self.period_ns // 1000}"


@dataclass(frozen=True, slots=True)
class GroupAccount:
    """The readings of one group, in order of time."""

    time_ns: NDArray[np.int64]
    throttled_ns: NDArray[np.int64]
    quota_ns: int
    period_ns: int

    def grew_ns(self, begin_ns: int, end_ns: int) -> int:
        """How much the throttled time grew between the readings around a stretch."""
        before = max(0, int(np.searchsorted(self.time_ns, begin_ns, side="right")) - 1)
        after = min(len(self.time_ns) - 1, int(np.searchsorted(self.time_ns, end_ns)))
        return int(self.throttled_ns[after] - self.throttled_ns[before])


@dataclass(frozen=True, slots=True)
class Quotas:
    """The groups with a quota, and which of them the processes are in, innermost first."""

    accounts: Mapping[str, GroupAccount]
    groups: Mapping[int, tuple[str, ...]]

    def throttled(self, pid: int, begin_ns: int, end_ns: int) -> tuple[str, int]:
        """Say which group of a process was throttled in a stretch, and for how long at most.

        ("", 0) where none was, or the process is in none with a quota.
        """
        found = [
            (min(self.accounts[group].grew_ns(begin_ns, end_ns), end_ns - begin_ns), group)
            for group in self.groups.get(pid, ())
            if group in self.accounts
        ]
        part_ns, group = max(found, default=(0, ""))
        return (group, part_ns) if part_ns > 0 else ("", 0)


def quotas(readings: Sequence[QuotaReading], groups: Mapping[int, tuple[str, ...]]) -> Quotas:
    """Put readings, in order of time, in order of groups."""
    accounts = {}
    for group in {reading.group for reading in readings}:
        own = [reading for reading in readings if reading.group == group]
        accounts[group] = GroupAccount(
            np.array([one.time_ns for one in own], np.int64),
            np.array([one.throttled_ns for one in own], np.int64),
            own[-1].quota_ns,
            own[-1].period_ns,
        )
    return Quotas(accounts, groups)
