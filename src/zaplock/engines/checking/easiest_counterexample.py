"""The counterexample that is easiest to understand: fewest preemptions, then fewest steps.

A preemption is a switch away from a task that could have gone on. Most bugs need one or two
(Musuvathi and Qadeer, PLDI 2007), and a schedule with few of them reads as a story in which one
task is interrupted at the one place where it matters.

Dijkstra's search over (state, task that moved last) with costs (preemptions, steps), on the same
memoised transitions as the verdict.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import SearchLimits, deadlock
from zaplock.engines.checking.reductions import Merged, Plain, mmap_locks, until_sound
from zaplock.engines.checking.transitions import TransitionTable
from zaplock.model.rwsem import Lock
from zaplock.model.violations import Invariant, Violation

NOBODY: Final = -1
Place = tuple[int, int]
"""A state, and the index of the task whose transition led there."""


@dataclass(frozen=True)
class Counterexample:
    """A schedule (indexes of tasks, in order) and the violation that its last step meets.

    groups: how many steps each transition is of, where steps that nobody can see were merged.
    """

    schedule: tuple[int, ...]
    violation: Violation
    preemptions: int
    groups: tuple[int, ...] = ()


def easiest_counterexample(
    configuration: Configuration,
    limits: SearchLimits = SearchLimits(),
    *,
    invariant: Invariant | None = None,
    table: TransitionTable | None = None,
    merge: Sequence[Lock] | None = None,
) -> Counterexample | None:
    """Find the violation (of `invariant`, if given) with fewest preemptions, then fewest steps.

    None if there is none, or none within the limits. `merge`: locks under whose exclusive hold
    steps that nobody else can see count as one (default: every mmap_lock; () for none).
    """
    own = table is None
    table = table or TransitionTable(configuration)
    try:
        locks = mmap_locks(table) if merge is None else merge
        if not locks:
            return _Search(Plain(table), limits, invariant).run()
        merged = Merged(table, locks)
        return until_sound(merged, lambda: _Search(merged, limits, invariant).run())
    finally:
        if own:
            table.close()


class _Search:
    def __init__(self, relation: Plain, limits: SearchLimits, invariant: Invariant | None) -> None:
        self.relation = relation
        self.table = table = relation.table
        self.limits = limits
        self.invariant = invariant
        start = table.initial, NOBODY
        self.came_from: dict[Place, Place] = {start: start}
        self.sizes: dict[Place, int] = {}
        self.costs: dict[Place, tuple[int, int]] = {start: (0, 0)}
        # (preemptions, steps, sequence number, place, violation that ends here)
        self.heap: list[tuple[int, int, int, Place, Violation | None]] = [(0, 0, 0, start, None)]
        self.sequence = 0
        self.deadline = time.monotonic() + limits.seconds

    def run(self) -> Counterexample | None:
        initial = self.table.initial_violation
        if initial is not None and self._wanted(initial):
            return Counterexample((), initial, 0)
        settled: set[Place] = set()
        while self.heap:
            preemptions, steps, _, place, violation = heappop(self.heap)
            if violation is not None:
                return self._counterexample(place, violation, preemptions)
            if place in settled:
                continue
            settled.add(place)
            if len(settled) > self.limits.states or time.monotonic() > self.deadline:
                return None
            self._expand(place, preemptions, steps)
        return None

    def _expand(self, place: Place, preemptions: int, steps: int) -> None:
        state, last = place
        moves = self.relation.moves(state)
        if not moves:
            violation = self._stuck(state)
            if violation is not None and self._wanted(violation):
                self._push(preemptions, steps, place, violation)
            return
        switch = int(any(move.task == last for move in moves))
        for index, change, size in moves:
            cost = preemptions + (switch if index != last else 0), steps + 1
            if change < 0:
                violation = self.table.violation(change)
                if self._wanted(violation):
                    end = change, index  # no state follows a violation: its number is its name
                    if cost < self.costs.get(end, (1 << 60, 0)):
                        self.costs[end] = cost
                        self.came_from[end] = place
                        self.sizes[end] = size
                        self._push(*cost, end, violation)
                continue
            after = state ^ change, index
            if cost < self.costs.get(after, (1 << 60, 0)):
                self.costs[after] = cost
                self.came_from[after] = place
                self.sizes[after] = size
                self._push(*cost, after, None)

    def _stuck(self, state: int) -> Violation | None:
        results = self.table.results(state)
        if results is None:
            return deadlock(self.table, state)
        return self.table.at_end(state, results)

    def _wanted(self, violation: Violation) -> bool:
        return self.invariant is None or violation.invariant == self.invariant

    def _push(self, preemptions: int, steps: int, place: Place, end: Violation | None) -> None:
        self.sequence += 1
        heappush(self.heap, (preemptions, steps, self.sequence, place, end))

    def _counterexample(
        self, place: Place, violation: Violation, preemptions: int
    ) -> Counterexample:
        moves = []
        while place[1] != NOBODY:
            moves.append((place[1], self.sizes[place]))
            place = self.came_from[place]
        moves.reverse()
        schedule = tuple(index for index, size in moves for _ in range(size))
        return Counterexample(schedule, violation, preemptions, tuple(size for _, size in moves))
