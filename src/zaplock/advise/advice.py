"""One piece of advice: what stalls others, how long, what to do, and how long it would be then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zaplock.advise.costs import Costs

BY_PIECES = (
    "zaplock.release(...) (or MADV_DONTNEED by pieces with a rest after each), then the call"
)
FILL_BY_PIECES = "map without it, then zaplock.buffers.populate (MADV_POPULATE_WRITE by pieces)"

CHANGES = {
    "munmap": BY_PIECES,
    "mmap over it": "give the pages back first: " + BY_PIECES,
    "mremap": "give the pages back first: " + BY_PIECES,
    "brk": "keep big blocks off the heap (mallopt M_MMAP_THRESHOLD, MALLOC_MMAP_THRESHOLD_), "
    "or trim less often (M_TRIM_THRESHOLD)",
    "madvise": "the same by pieces with a rest after each: zaplock.release(..., unmap=False)",
    "MAP_POPULATE": FILL_BY_PIECES,
    "mprotect": "protect before the pages are there, or by pieces",
    "mlock": "populate by pieces first (zaplock.buffers.populate), or mlock2 with MLOCK_ONFAULT",
    "fork": "MADV_DONTFORK on the big buffers, or posix_spawn / vfork",
}
"""What to do about each kind of call."""

LEFT = {
    "munmap": "piece of a release",
    "mmap over it": "piece of a release",
    "mremap": "piece of a release",
    "madvise": "piece of a release",
    "MAP_POPULATE": "piece of a populate",
    "fork": "fork without it",
}
"""Which measured figure tells what is left to wait for after the change."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Something worth changing.

    `what` names the call or mapping, `kind` the kind of call (a key of `CHANGES`), `length` its
    bytes. `now_ns` is the worst stall of others by it: seen (`seen` True) or expected if it is
    called; `then_ns` the one after the change, None where this kernel can't tell. `caused_ns` is
    the sum of all waits that a recording blames on it.
    """

    what: str
    kind: str
    length: int
    now_ns: int
    then_ns: int | None
    seen: bool
    count: int = 1
    caused_ns: int = 0
    note: str = ""

    @property
    def change(self) -> str:
        """What to do."""
        return CHANGES[self.kind]

    @property
    def gain_ns(self) -> int:
        """What the change takes off the worst stall."""
        return self.now_ns - (self.then_ns or 0)

    @property
    def worth_it(self) -> bool:
        """Whether the change takes off half of the stall or more, as far as can be told."""
        return self.then_ns is None or 2 * self.then_ns <= self.now_ns

    def to_json(self) -> dict[str, Any]:
        """Return the advice as JSON values."""
        names = ("what", "kind", "length", "now_ns", "then_ns", "seen", "count", "caused_ns")
        fields = {name: getattr(self, name) for name in names}
        return {**fields, "change": self.change, "note": self.note}


def left(kind: str, costs: Costs) -> int | None:
    """Return the stall that remains after the change, in nanoseconds."""
    return costs.fixed(LEFT[kind]) if kind in LEFT else None
