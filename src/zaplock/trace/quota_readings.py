"""What the account of a cgroup with a CPU quota said; without numpy, for the recorder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class QuotaReading(NamedTuple):
    """What a group's account said at an instant: `quota_ns` of each `period_ns`, all so far."""

    time_ns: int
    group: str
    quota_ns: int
    period_ns: int
    throttled_ns: int
    throttled: int
    """How often it was throttled so far."""


QuotaRows = tuple[Sequence[QuotaReading], Mapping[int, tuple[str, ...]]]
"""Readings in order of time, and the groups that each process is in, innermost first."""
