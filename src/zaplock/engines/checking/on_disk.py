"""Visited states on disk: a search that outgrows the memory goes on there, whole and exact.

States that were met lately are in a set, as in `exhaustive`. When that has grown to its share of
the memory it is written out as a sorted run, and emptied. What a level finds is then looked up in
the runs all at once, in order, so the disk is read forwards; what stands there is no new state
(delayed duplicate detection: Stern and Dill 1998). Of a state the run holds its whole value, in a
fixed number of bytes: nothing rests on a hash here either. Runs are merged two by two as they
become many, so that there are few to look into. A frontier that is large is on disk as well.

Wide levels go by words here as well (`divided_levels`): eight bytes a state in the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zaplock.engines.checking import exhaustive
from zaplock.engines.checking.audit import no_forgotten_await
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import (
    SLICE,
    Search,
    SearchLimits,
    SearchProgress,
    Verdict,
)
from zaplock.engines.checking.sorted_runs import CHUNK, Spooled, StatesOnDisk
from zaplock.engines.checking.transitions import TransitionTable

if TYPE_CHECKING:
    from zaplock.engines.checking.compiled_levels import CompiledLevels
    from zaplock.engines.checking.divided_levels import DividedLevels
    from zaplock.engines.checking.wide_levels import WideLevels

LEAST: Final = 100_000
"""So many states are kept in memory at the least."""

SHARE: Final = 0.6
"""Which part of the memory's limit may be full before states go to the disk."""

MOST: Final = 0.8
"""Which part may be full at any time; Python keeps for the next states what it had for the last."""


@dataclass(frozen=True)
class DiskLimits:
    """Where states may go, and how many there may be in memory, if not as many as fit."""

    directory: Path
    in_memory: int | None = None


class SearchOnDisk(Search):
    """An exploration whose visited states and frontier go to the disk as they become many."""

    def __init__(
        self,
        table: TransitionTable,
        limits: SearchLimits,
        all_violations: bool,
        progress: Callable[[SearchProgress], None] | None,
        disk: DiskLimits,
    ) -> None:
        super().__init__(table, limits, all_violations, progress)
        self.disk = disk
        self.old = StatesOnDisk(disk.directory)
        self.fits = disk.in_memory

    @property
    def states(self) -> int:
        """How many states were visited."""
        return len(self.old) + len(self.visited) if self.wide is None else len(self.wide.visited)

    def search(self) -> None:
        """Explore level by level to the end, to a violation or to a limit."""
        if self.table.initial_violation is not None:
            self.note(self.table.initial_violation)
            return
        frontier: list[list[int] | Spooled] = [[self.table.initial]]
        level: list[list[int] | Spooled] = []
        may_be_wide = True
        while frontier:
            if may_be_wide and sum(map(len, frontier)) >= exhaustive.WIDE:
                may_be_wide = False
                left, found = self.wide_levels(_all(frontier))
                if not left and not found:
                    return
                frontier, level = [left], [found] if found else []
            frontier, level = self._next_level(frontier, level), []
            if self.limit or (self.found and not self.all_violations):
                return
            self.depth += 1

    def all_visited(self) -> Iterator[list[int]]:
        """Give all states that were visited, some at a time."""
        yield from super().all_visited()
        yield from self.old.states()

    def begin_wide(self, frontier: list[int]) -> WideLevels:
        """Go on with words, the older ones on disk; raises Outgrown."""
        return self.divided(frontier, 0, 1, lambda: None)

    def divided(
        self, frontier: list[int], number: int, jobs: int, look: Callable[[], None]
    ) -> DividedLevels:
        """Go on with the words that worker `number` of `jobs` has; raises Outgrown."""
        from zaplock.engines.checking.divided_levels import DividedLevels
        from zaplock.engines.checking.visited_words import RECENT

        fits = RECENT if self.disk.in_memory is None else self.disk.in_memory
        self.wide = wide = DividedLevels(
            self, frontier, fits=fits, files=self.old, number=number, jobs=jobs, look=look
        )
        self.visited = set()
        self.old.forget()
        return wide

    def by_states(self, wide: WideLevels | CompiledLevels) -> tuple[list[int], list[int]]:
        """Give `wide` up; its states are on disk then. See `Search.by_states`."""
        left, found = wide.left()
        self.wide = None
        for states in wide.given_back():
            self.old.take(states, self._width)
        return left, found

    def _next_level(
        self, frontier: list[list[int] | Spooled], level: list[list[int] | Spooled]
    ) -> list[list[int] | Spooled]:
        """Explore a frontier; add what it finds to what was found of the next."""
        found: list[int] = []
        for part in frontier:
            states = part.states() if isinstance(part, Spooled) else part
            for first in range(0, len(states), SLICE):
                if self.is_at_limit(len(states) - first + len(found)):
                    return []
                found += self.expand(states[first : first + SLICE])
                if len(found) >= CHUNK or self._is_full():
                    self._settle(found, level)
                    found = []
        self._settle(found, level)
        return level

    def close(self) -> None:
        """Remove everything from the disk."""
        self.old.close()

    def settled(self, found: list[int]) -> list[int]:
        """Take out what stands on disk, and let everything go there if the memory is full."""
        before = self.old.found(found) if self.old.runs else set()
        if before:
            self.visited -= before
            found = [state for state in found if state not in before]
        if self._is_full():
            self.old.take(self.visited, self._width)
            self.visited.clear()
            self.table.auditor.look_in(self.states)
        return found

    def _settle(self, found: list[int], level: list[list[int] | Spooled]) -> None:
        """Keep what is new as a part of the next frontier."""
        found = self.settled(found)
        if found:
            spools = bool(self.old.runs) and len(found) > SLICE
            level.append(self.old.spool(found, self._width) if spools else found)

    def _is_full(self) -> bool:
        held = len(self.visited)
        if self.fits is not None and held >= self.fits:
            return True
        if self.disk.in_memory is not None or held < LEAST:
            return False
        share = SHARE if self.fits is None else MOST
        if self.memory_ahead() < share * self.memory:
            return False
        self.fits = self.fits or held
        return True

    @property
    def _width(self) -> int:
        return (self.table.packed.layout.bits + 7) // 8


def _all(frontier: list[list[int] | Spooled]) -> list[int]:
    """Read all parts of a frontier."""
    parts = [part.states() if isinstance(part, Spooled) else part for part in frontier]
    return [state for part in parts for state in part]


def explore_on_disk(
    configuration: Configuration,
    disk: DiskLimits,
    limits: SearchLimits = SearchLimits(),
    *,
    all_violations: bool = False,
    progress: Callable[[SearchProgress], None] | None = None,
) -> Verdict:
    """Explore as `exhaustive.explore` does, with the states that don't fit into memory on disk."""
    with no_forgotten_await():
        table = TransitionTable(configuration)
        search = SearchOnDisk(table, limits, all_violations, progress, disk)
        try:
            return search.run()
        finally:
            search.close()
            table.close()
