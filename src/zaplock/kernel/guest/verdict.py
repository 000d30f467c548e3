"""What a kernel did, read from its own lock events: the teardown's phases and who waited for whom.

The same reading serves a guest and the host, and the fidelity table compares it with a design's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zaplock.kernel.guest.capsule import Capsule
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.events import Events

WAITED = 0.05
"""A wait counts where it lasts this share of the teardown's holds, or more."""
_PART = 0.1
"""A task is named as the one waited for where it explains this share of the wait, or more."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One hold of the task that tears down: "exclusive" or "shared", in nanoseconds."""

    mode: str
    begin_ns: int
    hold_ns: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one kernel tore one mapping down.

    `waits` has, for each bystander that waited, the names of those it waited behind, the holder
    first; `worst_wait_ns` its longest wait for the mmap_lock.
    """

    phases: tuple[Phase, ...]
    waits: Mapping[str, tuple[str, ...]]
    worst_wait_ns: Mapping[str, int]

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes of the phases in order."""
        return tuple(phase.mode for phase in self.phases)

    @property
    def hold_ns(self) -> int:
        """How long the teardown held the lock, in any mode."""
        return sum(phase.hold_ns for phase in self.phases)

    def held_ns(self, mode: str) -> int | None:
        """How long it held the lock in one mode; None where no hold was seen at all."""
        if not self.phases:
            return None
        return sum(phase.hold_ns for phase in self.phases if phase.mode == mode)

    def ratio(self, bystander: str) -> float:
        """A bystander's longest wait, as a share of the teardown's holds."""
        return self.worst_wait_ns.get(bystander, 0) / self.hold_ns if self.hold_ns else 0.0


def read(capsule: Capsule, events: Events, *, teardown: str) -> Verdict:
    """Read a teardown's phases and its victims from a finished probe's events."""
    analysis = analyse(events, capsule.facts["release"])
    pid, begin_ns = capsule.fact("target_pid"), capsule.fact("begin_ns")
    end_ns = capsule.fact("end_ns")
    rows = _exit_rows(analysis, pid, begin_ns) if teardown == "exit" else None
    if rows is None:
        rows = _call_rows(analysis, pid, begin_ns, end_ns)
    holds = analysis.holds
    phases = tuple(
        Phase(
            "exclusive" if holds["exclusive"][row] else "shared",
            int(holds["start_ns"][row]),
            int(holds["hold_ns"][row]),
        )
        for row in rows
    )
    length_ns = sum(phase.hold_ns for phase in phases)
    mms = {int(holds["mm"][row]) for row in rows}
    tids = {lane.name: lane.tid for lane in capsule.lanes}
    worst, behind = _waits(analysis, tids, mms, (begin_ns, end_ns), int(WAITED * length_ns))
    return Verdict(phases, behind, worst)


def _call_rows(analysis: Analysis, tid: int, begin_ns: int, end_ns: int) -> list[int]:
    """The holds of the one system call that the target's main thread did between two instants."""
    holds = analysis.holds
    chosen = (holds["tid"] == tid) & (holds["start_ns"] >= begin_ns) & (holds["start_ns"] <= end_ns)
    return [int(row) for row in np.flatnonzero(chosen)]


def _exit_rows(analysis: Analysis, pid: int, begin_ns: int) -> list[int]:
    """The holds of exit_mmap: of the thread that was last, from its longest hold on."""
    holds, tasks = analysis.holds, analysis.holds.tasks
    own = np.array([(task := tasks.get(int(tid))) is not None and task.pid == pid for tid in holds["tid"]])
    after = np.flatnonzero(own & (holds["start_ns"] >= begin_ns))
    if not len(after):
        return []
    zap = after[np.argmax(holds["hold_ns"][after])]
    chosen = after[(after >= zap) & (holds["tid"][after] == holds["tid"][zap])]
    return [int(row) for row in chosen]


def _waits(
    analysis: Analysis,
    tids: Mapping[str, int],
    mms: set[int],
    window: tuple[int, int],
    least_ns: int,
) -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
    """Return each bystander's longest wait in the window and, if it counts, whom it waited for."""
    waits = analysis.waits
    beside = np.isin(waits["mm"], np.array(sorted(mms), np.uint64))
    beside &= (waits.end_ns >= window[0]) & (waits["start_ns"] <= window[1])
    names = {tid: name for name, tid in tids.items()}
    worst: dict[str, int] = {}
    behind: dict[str, tuple[str, ...]] = {}
    for name, tid in tids.items():
        rows = np.flatnonzero(beside & (waits["tid"] == tid))
        if not len(rows):
            continue
        row = int(rows[np.argmax(waits["wait_ns"][rows])])
        worst[name] = int(waits["wait_ns"][row])
        if worst[name] >= max(least_ns, 1):
            behind[name] = _culprits(analysis, row, names)
    return worst, behind


def _culprits(analysis: Analysis, wait: int, names: Mapping[int, str]) -> tuple[str, ...]:
    explained = analysis.explain(wait)
    total = int(analysis.waits["wait_ns"][wait])
    found = sorted(
        {
            (blame.role != "holder", names.get(blame.tid, "teardown"))
            for blame in explained.blame
            if blame.share_ns >= _PART * total
        }
    )
    return tuple(name for _, name in found)
