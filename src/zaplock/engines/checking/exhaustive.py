"""Every interleaving: explicit-state search over a memoised transition relation.

Breadth first over states that are ints (`packed`), by memoised transitions (`table`). A state is
remembered whole, not by a hash, so a verdict of "proved" rests on no probability. It holds for the
given configuration and its kind of memory only.

Limits on states, time and memory end a search with the verdict "not-exhausted".
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from zaplock.engines.checking.audit import Audit, no_forgotten_await
from zaplock.engines.checking.children import most_resident_bytes, resident_bytes
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.reductions import Merged, until_sound
from zaplock.engines.checking.transitions import STAYS, TransitionTable
from zaplock.engines.checking.while_any import WhileAny
from zaplock.model.rwsem import Lock
from zaplock.model.violations import Invariant, InvariantName, Violation

if TYPE_CHECKING:
    from zaplock.engines.checking.compiled_levels import CompiledLevels
    from zaplock.engines.checking.divided_levels import DividedLevels
    from zaplock.engines.checking.wide_levels import WideLevels

SLICE = 20_000
"""States to expand in one go."""

WIDE = 2_000
"""A frontier of so many states is explored by all cores (`compiled_levels`), or all at once
(`wide_levels`)."""

LOOK = 4_000
"""States to meet between two looks at the limits."""

MANY = 200
"""A search that has visited so many states goes on in C if it can (`compiled_levels`)."""

NEW_OBJECTS = 20_000
"""Objects that are made before Python looks for cycles among them, while a search goes on."""

SLOT = 16
"""Bytes of one slot of a set's table."""

SET_BYTES = 80
"""What a set has for each of its ints at most, while it outgrows its table."""

Answer = Literal["proved", "broken", "not-exhausted", "vacuous", "failed"]
"""failed: the code of a step or protocol raised an error, and no rule was seen broken."""


class Outgrown(Exception):
    """A number has got more bits than a word has for it."""


@dataclass(frozen=True)
class SearchLimits:
    """When to give up. seconds: of wall time. memory: resident bytes of this process."""

    states: int = 20_000_000
    seconds: float = 600.0
    memory: int = 6 << 30


@dataclass(frozen=True)
class SearchProgress:
    """How far a search has come."""

    states: int
    frontier: int
    depth: int
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """What a search found.

    violations: one of each that was met; without `all_violations` the first only.
    never: names of `sometimes` properties that were true in no state.
    limit: which limit ended it, "" when it is complete.
    audit: what was done again to see that nothing hides.
    results: for each task, everything that it was seen to return. loops: does a task come back to
        a position where it has been?
    """

    answer: Answer
    states: int
    transitions: int
    depth: int
    seconds: float
    violations: tuple[Violation, ...] = ()
    never: tuple[str, ...] = ()
    limit: str = ""
    endings: int = 0
    steps_run: int = field(default=0, compare=False)
    audit: Audit = field(default=Audit(), compare=False)
    results: tuple[tuple[Any, ...], ...] = field(default=(), compare=False)
    loops: bool = field(default=False, compare=False)


def explore(
    configuration: Configuration,
    limits: SearchLimits = SearchLimits(),
    *,
    all_violations: bool = False,
    progress: Callable[[SearchProgress], None] | None = None,
    table: TransitionTable | None = None,
    jobs: int = 1,
) -> Verdict:
    """Visit every reachable state once, or stop at the first violation or at a limit.

    jobs: how many cores explore wide levels, where the search goes on in C.
    """
    with no_forgotten_await(), rare_collections():
        # A function of its own: what it has made is gone before collections come as often as usual.
        return _explore(configuration, limits, all_violations, progress, table, jobs)


def _explore(
    configuration: Configuration,
    limits: SearchLimits,
    all_violations: bool,
    progress: Callable[[SearchProgress], None] | None,
    table: TransitionTable | None,
    jobs: int,
) -> Verdict:
    own = table is None
    table = table or TransitionTable(configuration)
    try:
        return Search(table, limits, all_violations, progress, jobs).run()
    finally:
        if own:
            table.close()


@contextmanager
def _rare_collections() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(before[0] and max(before[0], NEW_OBJECTS), *before[1:])
    ours = gc.get_threshold()
    try:
        yield
    finally:
        if gc.get_threshold() == ours:
            gc.set_threshold(*before)


rare_collections: Final = WhileAny(_rare_collections)
"""Has cycles looked for less often: nearly all that a search makes lasts as long as it."""


class Search:
    """The visited states and the frontier of one exploration."""

    def __init__(
        self,
        table: TransitionTable,
        limits: SearchLimits,
        all_violations: bool,
        progress: Callable[[SearchProgress], None] | None,
        cores: int = 1,
    ) -> None:
        self.table = table
        self.cores = cores
        self.limits = limits
        self.memory = limits.memory
        """What this process may occupy; less than the limit where several share it."""
        self.all_violations = all_violations
        self.progress = progress
        self.visited = {table.initial}
        self.counted = 0
        """How many of them `compiled_levels` knows of."""
        self.wide: WideLevels | CompiledLevels | None = None
        self.transitions = 0
        self.depth = 0
        self.endings = 0
        self.loops = False
        """Whether another process has met one; what this one has met is in its table."""
        self.found: dict[tuple[Invariant | InvariantName, str], Violation] = {}
        self.limit = ""
        self.next_look = 0
        self.started = time.monotonic()

    def run(self) -> Verdict:
        """Explore to the end, to a violation or to a limit, and audit what was remembered."""
        self.search()
        self.table.auditor.finish()
        return self.verdict()

    def search(self) -> None:
        """Explore level by level to the end, to a violation or to a limit."""
        if self.table.initial_violation is not None:
            self.note(self.table.initial_violation)
            return
        frontier, found = [self.table.initial], list[int]()
        may_be_compiled = may_be_wide = True
        while frontier:
            if may_be_compiled and self.has_library(len(frontier)):
                may_be_compiled = False
                frontier, found = self.by_levels(frontier, self.begin_compiled)
            if may_be_wide and len(frontier) >= WIDE and not found:
                may_be_wide = False
                frontier, found = self.wide_levels(frontier)
            if not frontier:
                return
            for first in range(0, len(frontier), SLICE):
                if self.is_at_limit(len(frontier) - first + len(found)):
                    return
                found += self.expand(frontier[first : first + SLICE])
                if len(found) >= SLICE:
                    self.table.auditor.look_in(self.states)
            frontier, found = found, []
            if self.found and not self.all_violations:
                return
            self.depth += 1

    def wide_levels(self, frontier: list[int]) -> tuple[list[int], list[int]]:
        """Go on with `wide_levels`; see `by_levels`."""
        return self.by_levels(frontier, self.begin_wide)

    def by_levels(
        self, frontier: list[int], begin: Callable[[list[int]], WideLevels | CompiledLevels]
    ) -> tuple[list[int], list[int]]:
        """Go on with whole levels, to the end or as long as that is worth it.

        Returns what is left to explore of a level, and what was found in it so far.
        """
        try:
            wide = begin(frontier)
        except Outgrown:
            return frontier, []
        try:
            while wide.is_worth_it():
                if not wide.level() or (self.found and not self.all_violations):
                    return [], []
                self.depth += 1
                if not len(wide.frontier):
                    return [], []
        except Outgrown:
            pass
        return self.by_states(wide)

    def by_states(self, wide: WideLevels | CompiledLevels) -> tuple[list[int], list[int]]:
        """Give `wide` up, after levels or in the midst of one.

        Returns what is left to explore of the level, and what was found in it so far; with a limit
        set, where the memory doesn't hold all states.
        """
        if resident_bytes() + wide.bytes_given_back() > self.memory:
            self.limit = f"{self.limits.memory >> 20} MiB"
            return [], []
        left, found = wide.left()
        self.wide = None
        self.visited = set[int]().union(*wide.given_back())
        return left, found

    def all_visited(self) -> Iterator[list[int]]:
        """Give all states that were visited, some at a time."""
        yield list(self.visited)

    def has_library(self, frontier: int) -> bool:
        """Return whether the search can go on in C, and is long enough for that."""
        states = len(self.visited)
        if states < MANY:
            return False
        from zaplock.engines.checking.compiled_levels import levels_library  # and ctypes

        more, self.counted = states - self.counted, states
        return levels_library.is_there(more, is_wide=frontier >= WIDE)

    def begin_compiled(self, frontier: list[int]) -> CompiledLevels:
        """Go on with levels in C; raises Outgrown."""
        from zaplock.engines.checking.compiled_levels import CompiledLevels

        self.wide = CompiledLevels(self, frontier)
        self.visited = set()
        return self.wide

    def begin_wide(self, frontier: list[int]) -> WideLevels:
        """Go on with words; raises Outgrown."""
        from zaplock.engines.checking.wide_levels import WideLevels

        self.wide = WideLevels(self, frontier)
        self.visited = set()
        return self.wide

    def divided(
        self, frontier: list[int], number: int, jobs: int, look: Callable[[], None]
    ) -> DividedLevels:
        """Go on with the words that worker `number` of `jobs` has; raises Outgrown."""
        from zaplock.engines.checking.divided_levels import DividedLevels

        self.wide = wide = DividedLevels(self, frontier, number=number, jobs=jobs, look=look)
        self.visited = set()
        return wide

    def expand(self, frontier: list[int]) -> list[int]:
        """Return the new states one transition away from those given (and remember them)."""
        # The hot loop: see bench/test_check.py before touching it.
        table, visited, fill = self.table, self.visited, self.table.fill
        known = visited.__contains__
        found: list[int] = []
        add, append = visited.add, found.append
        tasks = [
            (index, mask, table.rows[index]) for index, mask in enumerate(table.position_masks)
        ]
        transitions = 0
        for state in frontier:
            stuck = True
            for index, position_mask, rows in tasks:
                row = rows[state & position_mask]
                if row is None:
                    continue
                change = row.memo.get(state & row.mask)
                if change is None:
                    change = fill(index, row, state)
                if change > 0:
                    stuck = False
                    transitions += 1
                    after = state ^ change
                    if not known(after):
                        add(after)
                        append(after)
                elif change < 0:
                    stuck = False
                    transitions += 1
                    if change != STAYS:
                        self.note(table.violation(change))
            if stuck:
                self.nobody_can_go_on(state)
        self.transitions += transitions
        return found

    def settled(self, found: list[int]) -> list[int]:
        """Return those of the states that `expand` gave which really are new: here, all."""
        return found

    def take_in(self, states: Iterable[int]) -> list[int]:
        """Remember states that were found elsewhere; return those that are new."""
        found = []
        for state in states:
            if state not in self.visited:
                self.visited.add(state)
                found.append(state)
        return self.settled(found)

    def close(self) -> None:
        """Remove what is not in memory."""

    def nobody_can_go_on(self, state: int) -> None:
        results = self.table.results(state)
        if results is None:
            self.note(deadlock(self.table, state))
            return
        self.endings += 1
        violation = self.table.at_end(state, results)
        if violation is not None:
            self.note(violation)

    def note(self, violation: Violation) -> None:
        self.found.setdefault((violation.invariant, violation.message), violation)

    @property
    def states(self) -> int:
        """How many states were visited."""
        return len(self.visited) if self.wide is None else len(self.wide.visited)

    def is_at_limit(self, frontier: int) -> bool:
        """Return whether a limit ends the search; looked at every few thousand states."""
        if self.states >= self.next_look or self.states > self.limits.states:
            self.next_look = self.states + LOOK
            self.limit = self.look_at_limits(frontier)
        return bool(self.limit)

    def look_at_limits(self, frontier: int) -> str:
        seconds = time.monotonic() - self.started
        states = self.states
        if self.progress is not None:
            self.progress(SearchProgress(states, frontier, self.depth, seconds))
        if states > self.limits.states:
            return f"{self.limits.states} states"
        if seconds > self.limits.seconds:
            return f"{self.limits.seconds:g} s"
        # What it occupies now is asked only where the most so far would be too much.
        most = most_resident_bytes() + self.bytes_to_come()
        if most > self.memory and self.memory_ahead() > self.memory:
            return f"{self.limits.memory >> 20} MiB"
        return ""

    def memory_ahead(self) -> int:
        """Return what this process will occupy after the next slice, in bytes."""
        return resident_bytes() + self.bytes_to_come()

    def bytes_to_come(self) -> int:
        """Return what the next slice may add to what this process occupies.

        A set that outgrows its table is copied into one of at least twice the size: no small step.
        """
        if self.wide is not None:
            return self.wide.bytes_to_come()
        table = sys.getsizeof(self.visited)
        slots = table // SLOT
        is_near = (len(self.visited) + 4 * SLICE) * 5 > slots * 3
        return 2 * table if is_near and slots > SLICE else 0

    def verdict(self, states: int | None = None) -> Verdict:
        """Sum up; `states` where others have visited some, too."""
        never = self.table.configuration.never(self.table.seen_sometimes)
        answer: Answer = "proved"
        if self.found:
            answer = answer_of(self.found.values())
        elif self.limit:
            answer = "not-exhausted"
        elif never:
            answer = "vacuous"
        return Verdict(
            answer,
            self.states if states is None else states,
            self.transitions,
            self.depth,
            time.monotonic() - self.started,
            tuple(self.found.values()),
            never if answer == "vacuous" else (),
            self.limit,
            self.endings,
            self.table.misses,
            self.table.auditor.report,
            tuple(tuple(end.result for end in trie.ended()) for trie in self.table.tries),
            self.loops or self.table.loops(),
        )


def answer_of(violations: Iterable[Violation]) -> Answer:
    """Return "failed" if Python errors are all that was met, else "broken"."""
    only_errors = all(one.invariant is Invariant.CODE_RUNS for one in violations)
    return "failed" if only_errors else "broken"


def deadlock(table: TransitionTable, state: int) -> Violation:
    """Describe a state in which tasks wait and none of them can go on."""
    waiting = []
    for index, program in enumerate(table.configuration.programs):
        node = table.node(index, state)
        if not program.may_rest(node.step):
            waiting.append(f"{program.task} waits in {node.step}")
    return Violation(Invariant.NO_DEADLOCK, "; ".join(waiting))


def explore_merged(
    configuration: Configuration, locks: Sequence[Lock], limits: SearchLimits = SearchLimits()
) -> Verdict:
    """Visit the states of the reduced system (see `reductions`), meeting every violation.

    Fewer states than `explore` visits, the same verdict, the same rules broken.
    """
    with no_forgotten_await():
        table = TransitionTable(configuration)
        merged = Merged(table, locks)
        try:
            return until_sound(merged, lambda: _visit_merged(table, merged, limits))
        finally:
            table.close()


def _visit_merged(table: TransitionTable, merged: Merged, limits: SearchLimits) -> Verdict:
    search = Search(table, limits, True, None)
    if table.initial_violation is not None:
        search.note(table.initial_violation)
    frontier = [] if search.found else [table.initial]
    while frontier and not search.limit:
        state = frontier.pop()
        moves = merged.moves(state)
        search.transitions += len(moves)
        for move in moves:
            if move.change < 0:
                search.note(table.violation(move.change))
            elif state ^ move.change not in search.visited:
                search.visited.add(state ^ move.change)
                frontier.append(state ^ move.change)
        if not moves:
            search.nobody_can_go_on(state)
        if len(search.visited) % 1024 == 0:
            search.limit = search.look_at_limits(len(frontier))
    table.auditor.finish()
    return search.verdict()
