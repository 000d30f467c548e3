"""Advice from a recording: the calls behind which others really waited.

For each process and kind of call: the worst wait that one call explains, and all that the calls of
that kind explain together. Calls that held the lock for long while nobody waited are named too, as
what will stall the first who comes. Not advised on: exit and page faults, which nobody can call by
pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zaplock.advise.advice import CHANGES, Advice, left
from zaplock.advise.costs import Costs
from zaplock.trace.summary import operation_name, process_name

if TYPE_CHECKING:
    from zaplock.trace.summary import Summary

MAP_FIXED, MAP_POPULATE = 0x10, 0x8000
KINDS = {
    "munmap": "munmap",
    "mremap": "mremap",
    "brk": "brk",
    "madvise": "madvise",
    "process_madvise": "madvise",
    "mprotect": "mprotect",
    "pkey_mprotect": "mprotect",
    "mlock": "mlock",
    "mlock2": "mlock",
    "mlockall": "mlock",
    "clone": "fork",
    "clone3": "fork",
    "fork": "fork",
}
ADVICE_KINDS = {22: "MAP_POPULATE", 23: "MAP_POPULATE"}  # MADV_POPULATE_READ, _WRITE


@dataclass(slots=True)
class _Site:
    """The calls of one kind by one process."""

    count: int = 0
    longest_ns: int = 0
    length: int = 0
    worst_share_ns: int = 0
    caused_ns: int = 0

    def held(self, hold_ns: int, length: int) -> None:
        self.count += 1
        if hold_ns > self.longest_ns:
            self.longest_ns, self.length = hold_ns, length

    def blamed(self, share_ns: int, length: int) -> None:
        self.caused_ns += share_ns
        if share_ns > self.worst_share_ns:
            self.worst_share_ns, self.length = share_ns, length


def from_recording(summary: Summary, costs: Costs, *, least_ns: int) -> list[Advice]:
    """Return advice on calls that stalled, or could have stalled, others for `least_ns` or more."""
    analysis, sites = summary.analysis, dict[tuple[str, str], _Site]()
    holds = analysis.holds.complete()
    for row in (holds["hold_ns"] >= least_ns).nonzero()[0].tolist():
        operation = operation_name(holds.operations, int(holds["op"][row]))
        kind = _kind(operation, int(holds["detail"][row]))
        if kind:
            key = (process_name(holds.tasks, int(holds["tid"][row])), kind)
            site = sites.setdefault(key, _Site())
            site.held(int(holds["hold_ns"][row]), int(holds["length"][row]))
    for found in summary.explained:
        for blame in found.blame:
            detail = 0
            if not blame.waited and not blame.vma:
                detail = int(analysis.holds["detail"][blame.row])
            kind = _kind(blame.operation, detail)
            if kind and blame.share_ns >= least_ns:
                key = (process_name(analysis.events.tasks, blame.tid), kind)
                sites.setdefault(key, _Site()).blamed(blame.share_ns, blame.length)
    return [_advice(*key, site, costs) for key, site in sites.items()]


def _advice(process: str, kind: str, site: _Site, costs: Costs) -> Advice:
    seen = site.worst_share_ns > 0
    return Advice(
        what=f"{kind} by {process}",
        kind=kind,
        length=site.length,
        now_ns=site.worst_share_ns or site.longest_ns,
        then_ns=left(kind, costs),
        seen=seen,
        count=max(site.count, 1),
        caused_ns=site.caused_ns,
        note="" if seen else "nobody waited this time",
    )


def _kind(operation: str, detail: int) -> str:
    if operation == "mmap":
        if detail & MAP_POPULATE:
            return "MAP_POPULATE"
        return "mmap over it" if detail & MAP_FIXED else ""
    if operation == "madvise" and detail in ADVICE_KINDS:
        return ADVICE_KINDS[detail]
    kind = KINDS.get(operation, "")
    assert not kind or kind in CHANGES
    return kind
