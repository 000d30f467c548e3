"""Keep the stacks that tell of a hold or a wait, and know what code they are in.

A sample is kept where its task is between an ASKED or ACQUIRED and the RELEASED of a lock that is
recorded, by the lock events of the same task. That is known as soon as the lock events up to its
time are, so samples wait here until then. Whoever gets a lock (`LOCKED`) is always kept. The
program's part of a stack is kept only of the target's own processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zaplock.recorder.code_names import CodeNames
from zaplock.recorder.decode import Columns
from zaplock.recorder.stack_samples import CodeEvent, Sample
from zaplock.trace.event_kinds import EventKind
from zaplock.trace.stack_reasons import StackReason
from zaplock.trace.stacks import Names, StackRow

Array = NDArray[np.int64]

_NEVER = 1 << 62
_SECOND = 1_000_000_000
_USED = ("time_ns", "kind", "success", "tid", "mm")
_SLACK_NS = 20_000
"""A sample and the lock event that it belongs to are not of the same nanosecond."""


class SampleSource(Protocol):
    """What gives samples: a sampler, or what it has spooled."""

    lost: int

    def take(self) -> tuple[list[Sample], list[CodeEvent]]:
        """Give what came in since."""


class StackKeeper:
    """What becomes of the samples of one recording. `is_ours` tells the target's processes."""

    def __init__(
        self,
        sampler: SampleSource,
        is_ours: Callable[[int], bool],
        code: CodeNames | None = None,
    ) -> None:
        self._sampler = sampler
        self._is_ours = is_ours
        self._pending: list[Sample] = []
        self._locks: list[Columns] = []
        self._open: set[tuple[int, int]] = set()
        """Each (tid, mm) whose lock was asked for or had, after the last judged events."""
        self.code = code or CodeNames()

    @property
    def lost(self) -> int:
        """How many samples are missing, at least."""
        return self._sampler.lost

    def add(self, columns: Columns) -> None:
        """Take the lock events of the next while, in order of time."""
        rows = np.flatnonzero(columns["kind"] <= EventKind.RELEASED)
        if len(rows):
            self._locks.append({name: columns[name][rows] for name in _USED})

    def ready(self, horizon_ns: int = _NEVER) -> list[StackRow]:
        """Give the stacks up to an instant to which all lock events have been added."""
        samples, code = self._sampler.take()
        self.code.learn(code)
        self._pending += samples
        known = [one for one in self._pending if one.time_ns < horizon_ns]
        self._pending = [one for one in self._pending if one.time_ns >= horizon_ns]
        kept = self._kept(known)
        self.code.saw(kept)
        self.code.forget(horizon_ns - _SECOND)
        return [
            StackRow(one.time_ns, one.pid, one.tid, one.reason, *one.chain, one.top) for one in kept
        ]

    def names(self, patience_s: float | None = None) -> Names:
        """Say what code the kept stacks are in; after the recording's end."""
        return self.code.named(patience_s)

    def notes(self) -> list[str]:
        """Say what the stacks lack, once they have their `names`."""
        found = []
        if self.lost:
            found.append(f"{self.lost:,} stacks were lost: the machine was busy")
        if count := len(self.code.nameless):
            found.append(
                f"stacks of {count} process(es) that ended are bare addresses: their code was "
                "mapped before the recording began"
            )
        found += (
            f"process {pid} wrote a map of its functions, but no stack reaches them: its runtime "
            "has no frame pointers (docs/recording.md, Stacks)"
            for pid in sorted(self.code.unwalked)
        )
        return found

    def _kept(self, samples: list[Sample]) -> list[Sample]:
        inside = self._inside(samples)
        kept = []
        for one, tells in zip(samples, inside):
            if tells or one.reason == StackReason.LOCKED:
                user = one.chain[1] and self._is_ours(one.pid)
                kept.append(one if user else one._replace(chain=(one.chain[0], ()), top=0))
        return [one for one in kept if any(one.chain)]

    def _inside(self, samples: list[Sample]) -> list[bool]:
        """Say of each sample whether its task asks for or has a lock."""
        since = Counter(tid for tid, _ in self._open)
        edges = self._edges()
        inside = [False] * len(samples)
        places: dict[int, list[int]] = {}
        for place, one in enumerate(samples):
            places.setdefault(one.tid, []).append(place)
        for tid, rows in places.items():
            times = np.array([samples[row].time_ns for row in rows], np.int64)
            count = np.full(len(rows), since[tid])
            for step, slack_ns in ((1, -_SLACK_NS), (-1, _SLACK_NS)):
                at = edges.time_ns[(edges.tid == tid) & (edges.step == step)] + slack_ns
                count += step * np.searchsorted(at, times, side="right")
            for row, told in zip(rows, (count > 0).tolist()):
                inside[row] = told
        return inside

    def _edges(self) -> _Edges:
        """Return when tasks began and ended to ask for or have a lock, in order of time."""
        if not self._locks:
            return _Edges(*(np.zeros(0, np.int64) for _ in range(3)))
        block = {name: np.concatenate([one[name] for one in self._locks]) for name in _USED}
        self._locks.clear()
        refused = (block["kind"] == EventKind.ACQUIRED) & (block["success"] == 0)
        inside = (block["kind"] != EventKind.RELEASED) & ~refused
        order = np.lexsort((block["time_ns"], block["mm"], block["tid"]))
        tid, mm, inside = block["tid"][order], block["mm"][order], inside[order]
        first = np.ones(len(order), np.bool_)
        first[1:] = (tid[1:] != tid[:-1]) | (mm[1:] != mm[:-1])
        before = np.roll(inside, 1)
        heads, tails = np.flatnonzero(first), np.flatnonzero(np.roll(first, -1))
        for head, tail in zip(heads.tolist(), tails.tolist()):
            key = (int(tid[head]), int(mm[head]))
            before[head] = key in self._open
            (self._open.add if inside[tail] else self._open.discard)(key)
        step = inside.astype(np.int64) - before.astype(np.int64)
        edges = np.flatnonzero(step)
        edges = edges[np.argsort(block["time_ns"][order][edges], kind="stable")]
        return _Edges(block["time_ns"][order][edges], tid[edges], step[edges])


@dataclass(frozen=True, slots=True)
class _Edges:
    """When a task began (`step` 1) or ended (-1) to ask for or have some lock."""

    time_ns: Array
    tid: Array
    step: Array
