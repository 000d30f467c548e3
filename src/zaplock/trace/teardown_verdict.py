"""A teardown in brief: the modes in which it held the mmap_lock, and who waited behind whom.

Read from the event stream alone, so that a real kernel's teardown and a design's are read by the
same eyes and can be laid side by side (`zaplock fidelity`). Not covered: waits for a VMA's own
lock, which have no lock event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.events import Events
from zaplock.trace.summary import QUEUED_NS

WAITED = 0.05
"""A wait counts where it lasts this share of the teardown's holds, or more, and QUEUED_NS."""
_PART = 0.1
"""A task is named as the one waited for where it explains this share of the wait, or more."""


@dataclass(frozen=True, slots=True)
class TeardownPhase:
    """One hold of the task that tears down: "exclusive" or "shared", in nanoseconds."""

    mode: str
    begin_ns: int
    hold_ns: int


@dataclass(frozen=True, slots=True)
class Subject:
    """Who tore down, from when to when, and beside whom (bystanders' thread ids by name).

    `exits` says that the teardown is the process's exit, done by whichever thread is last.
    """

    tid: int
    pid: int
    begin_ns: int
    end_ns: int
    bystanders: Mapping[str, int]
    exits: bool = False


@dataclass(frozen=True, slots=True)
class TeardownVerdict:
    """How one kernel tore one mapping down.

    `waits` has, for each bystander that waited, the names of those it waited behind, the holder
    first; `worst_wait_ns` its longest wait for the mmap_lock.
    """

    phases: tuple[TeardownPhase, ...]
    waits: Mapping[str, tuple[str, ...]]
    worst_wait_ns: Mapping[str, int]
    arrivals_ns: Mapping[str, int] = field(default_factory=dict)
    """When each bystander came first, from the teardown's begin, where that is known."""
    took_ns: int = 0
    """How long the teardown took, where no lock event was there to be seen; `worst_wait_ns` are
    then the longest stalls of the bystanders."""

    @property
    def seen(self) -> bool:
        """Whether lock events were recorded: without them there are no phases and no waits."""
        return not self.took_ns

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes of the phases in order."""
        return tuple(phase.mode for phase in self.phases)

    @property
    def hold_ns(self) -> int:
        """How long the teardown held the lock, in any mode."""
        return sum(phase.hold_ns for phase in self.phases)

    @property
    def lasted_ns(self) -> int:
        """How long it held the lock or, where that was not seen, how long its call took."""
        return self.took_ns or self.hold_ns

    def held_ns(self, mode: str) -> int | None:
        """How long it held the lock in one mode; None where no hold was seen at all."""
        if not self.phases:
            return None
        return sum(phase.hold_ns for phase in self.phases if phase.mode == mode)

    def ratio(self, bystander: str) -> float:
        """A bystander's longest wait, as a share of the teardown's holds."""
        whole_ns = self.lasted_ns
        return self.worst_wait_ns.get(bystander, 0) / whole_ns if whole_ns else 0.0


def read(events: Events, subject: Subject, kernel: str = "") -> TeardownVerdict:
    """Read a teardown's phases and victims. `kernel` is the release or design (for its queue)."""
    analysis = analyse(events, kernel)
    holds = analysis.holds
    rows = _exit_rows(analysis, subject) if subject.exits else _call_rows(analysis, subject)
    phases = tuple(
        TeardownPhase(
            "exclusive" if holds["exclusive"][row] else "shared",
            int(holds["start_ns"][row]),
            int(holds["hold_ns"][row]),
        )
        for row in rows
    )
    least_ns = int(WAITED * sum(phase.hold_ns for phase in phases))
    mms = {int(holds["mm"][row]) for row in rows}
    worst, behind = _waits(analysis, subject, mms, max(least_ns, 1))
    return TeardownVerdict(phases, behind, worst)


def _call_rows(analysis: Analysis, subject: Subject) -> list[int]:
    """Return the holds of the one system call that the task did between the two instants."""
    holds, start_ns = analysis.holds, analysis.holds["start_ns"]
    chosen = (holds["tid"] == subject.tid) & (start_ns >= subject.begin_ns)
    return [int(row) for row in np.flatnonzero(chosen & (start_ns <= subject.end_ns))]


def _exit_rows(analysis: Analysis, subject: Subject) -> list[int]:
    """Return the holds of exit_mmap: of the thread that was last, from its longest hold on."""
    holds, tasks = analysis.holds, analysis.holds.tasks
    threads = [task.tid for task in tasks.values() if task.pid == subject.pid]
    own = np.isin(holds["tid"], [subject.tid, *threads])
    after = np.flatnonzero(own & (holds["start_ns"] >= subject.begin_ns))
    if not len(after):
        return []
    zap = after[np.argmax(holds["hold_ns"][after])]
    return [int(row) for row in after[(after >= zap) & (holds["tid"][after] == holds["tid"][zap])]]


def _waits(
    analysis: Analysis, subject: Subject, mms: set[int], least_ns: int
) -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
    """Return each bystander's longest wait beside the teardown and, if it counts, for whom."""
    waits = analysis.waits
    beside = np.isin(waits["mm"], np.array(sorted(mms), np.uint64))
    beside &= (waits.end_ns >= subject.begin_ns) & (waits["start_ns"] <= subject.end_ns)
    names = {tid: name for name, tid in subject.bystanders.items()}
    worst: dict[str, int] = {}
    behind: dict[str, tuple[str, ...]] = {}
    for name, tid in subject.bystanders.items():
        rows = np.flatnonzero(beside & (waits["tid"] == tid))
        if not len(rows):
            continue
        row = int(rows[np.argmax(waits["wait_ns"][rows])])
        if waits["wait_ns"][row] < QUEUED_NS:
            continue  # it found the lock free
        worst[name] = int(waits["wait_ns"][row])
        if worst[name] >= least_ns:
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
