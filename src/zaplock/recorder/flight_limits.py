"""When a flight recorder stops, and what stopped it; without numpy, for the recorder."""

from __future__ import annotations

from dataclasses import dataclass

_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Flight:
    """When to stop: a hold or wait of that length; what to keep before and record after it."""

    hold_ns: int = 0
    wait_ns: int = 0
    keep_ns: int = 10 * _SECOND
    after_ns: int = _SECOND


@dataclass(frozen=True, slots=True)
class Fired:
    """What pulled the trigger: `what` is "hold" or "wait", begun at `start_ns`."""

    what: str
    tid: int
    mm: int
    start_ns: int
    lasted_ns: int
    write: bool
