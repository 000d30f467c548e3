"""Fewer transitions: steps that nobody else can see are taken together with the one before them.

What a task does to cells that it alone touches is invisible to all others, and so is, while it
holds a lock exclusively, what it does to cells that everybody touches under that lock only: it may
as well happen at once. So a chain of such steps is merged into the step before it. Which cells are
so is not declared: it is assumed of all of them at first, observed while exploring, and where a
cell turns out to be touched by somebody else the assumption shrinks and the search begins again.
When a search ends without such a surprise, its assumption holds in the unreduced system too
(Stoller and Cohen, "Optimistic synchronization-based state-space reduction", TACAS 2003). Rules are
watched at every merged step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import Final, NamedTuple, TypeVar

from zaplock.engines.checking.packed_states import StateField
from zaplock.engines.checking.transitions import STAYS, Transition, TransitionTable
from zaplock.model.rwsem import Lock, Rwsem, held

Found = TypeVar("Found")

LONGEST: Final = 1_000
"""Steps that are merged into one at most, so that limits are looked at in between."""


class Move(NamedTuple):
    """A transition of a task: old XOR new state, or negative for a violation; steps it is of.

    0 where it changes nothing and its task goes round a loop.
    """

    task: int
    change: int
    steps: int = 1


class Plain:
    """Every step is a transition of its own."""

    def __init__(self, table: TransitionTable) -> None:
        self.table = table

    def moves(self, state: int) -> list[Move]:
        """List what the tasks can do in a state."""
        table, found = self.table, []
        for index, mask in enumerate(table.position_masks):
            row = table.rows[index][state & mask]
            if row is not None:
                change = table.move(index, row, state)
                if change:
                    found.append(Move(index, 0 if change == STAYS else change))
        return found


class Merged(Plain):
    """Steps under an exclusive lock on cells that only its holders touch are merged."""

    def __init__(self, table: TransitionTable, locks: Sequence[Lock]) -> None:
        super().__init__(table)
        self.fields: list[StateField] = [table.packed.field("locks", lock) for lock in locks]
        # Bits of cells that somebody touches without the lock, by lock: assumed, and observed.
        self.unprotected = [0] * len(locks)
        self.observed = [0] * len(locks)
        # Bits of cells that each task touches: assumed, and observed.
        self.touched = [0] * len(table.tasks)
        self.touching = [0] * len(table.tasks)
        self.others = self._others()

    def moves(self, state: int) -> list[Move]:
        """List what the tasks can do in a state, each chain of invisible steps as one."""
        moves = super().moves(state)
        for index, mask in enumerate(self.table.position_masks):
            row = self.table.rows[index][state & mask]
            if row is not None:  # what a step that has to wait looks at counts, too
                self._observe(index, row, state)
        return [extended for move in moves for extended in self._extend(move, state)]

    def _extend(self, move: Move, state: int) -> list[Move]:
        """Return a move with the invisible steps behind it.

        Where those end in a violation, what comes before that is a move of its own as well: its
        task may stop there for ever, and others see what the first step of the chain has done.
        """
        table, index = self.table, move.task
        change, steps = move.change, 1
        been = {state}
        while change > 0 and steps < LONGEST:
            now = state ^ change
            if now in been:  # round a loop that nobody else sees
                break
            been.add(now)
            row = table.rows[index][now & table.position_masks[index]]
            if row is None:
                break
            next_change = table.move(index, row, now)
            if not next_change or next_change == STAYS or not self._covers(index, row, now):
                break
            self._observe(index, row, now)
            if next_change < 0:
                return [Move(index, change, steps), Move(index, next_change, steps + 1)]
            steps += 1
            change ^= next_change
        return [Move(index, change, steps)]

    def _mode(self, lock: int, index: int, state: int) -> str:
        field = self.fields[lock]
        sem = field.values[state & field.mask]
        return held(sem, self.table.tasks[index].tid) if isinstance(sem, Rwsem) else ""

    def _covers(self, index: int, row: Transition, state: int) -> bool:
        """Return whether nobody else can see what this step touches: its own, or locked away."""
        mask = row.mask
        if not mask & (self.others[index] | self.table.packed.low_mask):
            return True
        return any(
            self._mode(lock, index, state) == "write" and not mask & self.unprotected[lock]
            for lock in range(len(self.fields))
        )

    def _others(self) -> list[int]:
        return [
            reduce(or_, (mask for other, mask in enumerate(self.touched) if other != index), 0)
            for index in range(len(self.touched))
        ]

    def _observe(self, index: int, row: Transition, state: int) -> None:
        self.touching[index] |= row.mask
        for lock, field in enumerate(self.fields):
            if not self._mode(lock, index, state):
                self.observed[lock] |= row.mask
            self.observed[lock] |= field.mask  # the lock itself is everybody's

    def is_sound(self) -> bool:
        """Return whether nothing was seen that contradicts the assumption; else shrink it."""
        seen, assumed = [*self.observed, *self.touching], [*self.unprotected, *self.touched]
        surprise = any(now & ~before for now, before in zip(seen, assumed))
        self.unprotected = [a | b for a, b in zip(self.observed, self.unprotected)]
        self.touched = [a | b for a, b in zip(self.touching, self.touched)]
        self.others = self._others()
        return not surprise


def until_sound(merged: Merged, search: Callable[[], Found]) -> Found:
    """Search until the assumption that the search was made under has held to its end."""
    while True:
        found = search()
        if merged.is_sound():
            return found


def mmap_locks(table: TransitionTable) -> list[Lock]:
    """List the mmap_locks of a machine's address spaces."""
    return [("mmap_lock", mm) for mm in sorted(getattr(table.machine, "mms", {}))]
