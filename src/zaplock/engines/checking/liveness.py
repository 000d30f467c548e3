"""Runs that never end: a way into a cycle of states, and the cycle (a lasso).

A task whose positions repeat (`positions`) may go round for ever. That is a fault only if the
scheduler is not to blame: under weak fairness every task that could go on all the time goes on at
some time. So a strongly connected part of the state graph is a livelock if each task either moves
in it or can't move in one of its states, and if somebody who is no daemon has not ended there.

Tarjan's algorithm (1972) over the memoised transitions, without recursion; cf. Lichtenstein and
Pnueli 1985 for the fair parts. What is shown is a short cycle, not the shortest.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import SearchLimits
from zaplock.engines.checking.reductions import Plain
from zaplock.engines.checking.schedule import livelock
from zaplock.engines.checking.transitions import TransitionTable
from zaplock.model.violations import Violation

Edge = tuple[int, int]
"""The index of the task that moves, and the state after that."""


@dataclass(frozen=True)
class Lasso:
    """A schedule whose last `cycle` steps can be repeated for ever."""

    schedule: tuple[int, ...]
    cycle: int
    violation: Violation


def find_livelock(
    configuration: Configuration, limits: SearchLimits = SearchLimits()
) -> Lasso | None:
    """Find a run that never ends although every task goes on whenever it can.

    Raises TimeoutError where the limits end the search.
    """
    table = TransitionTable(configuration)
    try:
        graph = _Graph(table, limits)
        for part in graph.parts():
            lasso = graph.lasso(part)
            if lasso is not None:
                return lasso
        return None
    finally:
        table.close()


class _Graph:
    def __init__(self, table: TransitionTable, limits: SearchLimits) -> None:
        self.table = table
        self.limits = limits
        self.relation = Plain(table)
        self.deadline = time.monotonic() + limits.seconds
        self.came_from: dict[int, tuple[int, int]] = {}
        self.seen = 0

    def edges(self, state: int) -> list[Edge]:
        """List the moves out of a state that break no rule."""
        return [(m.task, state ^ m.change) for m in self.relation.moves(state) if m.change >= 0]

    def parts(self) -> Iterator[set[int]]:
        """Yield the strongly connected parts that have a cycle."""
        root = self.table.initial
        number: dict[int, int] = {root: 0}
        low = {root: 0}
        open_states = [root]
        is_open = {root}
        path: list[tuple[int, Iterator[Edge]]] = [(root, iter(self.edges(root)))]
        loops: set[int] = set()
        while path:
            state, left = path[-1]
            edge = next(left, None)
            if edge is not None:
                self._one_edge(state, edge, number, low, is_open, open_states, path, loops)
                continue
            path.pop()
            if path:
                above = path[-1][0]
                low[above] = min(low[above], low[state])
            if low[state] == number[state]:
                part = set()
                while True:
                    one = open_states.pop()
                    is_open.discard(one)
                    part.add(one)
                    if one == state:
                        break
                if len(part) > 1 or state in loops:
                    yield part

    def _one_edge(
        self, state: int, edge: Edge, number: dict[int, int], low: dict[int, int],
        is_open: set[int], open_states: list[int], path: list[tuple[int, Iterator[Edge]]],
        loops: set[int],
    ) -> None:  # fmt: skip
        index, after = edge
        if after == state:
            loops.add(state)
        elif after not in number:
            self._look_at_limits(len(number))
            number[after] = low[after] = len(number)
            self.came_from[after] = state, index
            open_states.append(after)
            is_open.add(after)
            path.append((after, iter(self.edges(after))))
        elif after in is_open:
            low[state] = min(low[state], number[after])

    def _look_at_limits(self, states: int) -> None:
        if states > self.limits.states:
            raise TimeoutError(f"{self.limits.states} states")
        if states % 4096 == 0 and time.monotonic() > self.deadline:
            raise TimeoutError(f"{self.limits.seconds:g} s")

    def lasso(self, part: set[int]) -> Lasso | None:
        """Return a lasso into a part and round in it, None where it is not fair or harmless."""
        programs = self.table.configuration.programs
        some = next(iter(part))
        unended = [
            index
            for index, program in enumerate(programs)
            if not program.may_rest(self.table.node(index, some).step)
        ]
        if not unended:
            return None
        moving = {index for state in part for index, after in self.edges(state) if after in part}
        waiting = {
            index
            for index in range(len(programs))
            if index not in moving and any(self._rests(index, state) for state in part)
        }
        if len(moving | waiting) < len(programs):
            return None  # somebody could go on all the time and never does
        return self._tell(part, sorted(moving), sorted(waiting), unended)

    def _rests(self, index: int, state: int) -> bool:
        return all(move.task != index for move in self.relation.moves(state))

    def _rests_after(self, index: int, edge: Edge) -> bool:
        return self._rests(index, edge[1])

    def _tell(
        self, part: set[int], moving: list[int], waiting: list[int], unended: list[int]
    ) -> Lasso:
        stem, start = self._way_into(part)
        at, cycle = start, []
        for index in moving:
            at, steps = self._walk(part, at, partial(_is_of, index))
            cycle += steps
        for index in waiting:
            if not self._rests(index, at):
                at, steps = self._walk(part, at, partial(self._rests_after, index))
                cycle += steps
        if at != start:
            cycle += self._walk(part, at, lambda edge: edge[1] == start)[1]
        programs = self.table.configuration.programs
        violation = livelock(
            [str(programs[index].task) for index in moving],
            [str(programs[index].task) for index in unended],
            len(cycle),
        )
        return Lasso((*stem, *cycle), len(cycle), violation)

    def _way_into(self, part: set[int]) -> tuple[list[int], int]:
        """Return the shortest schedule into a part, and where it arrives."""
        if self.table.initial in part:
            return [], self.table.initial
        return self._search(self.table.initial, lambda edge: edge[1] in part, None)

    def _walk(
        self, part: set[int], start: int, wanted: Callable[[Edge], bool]
    ) -> tuple[int, list[int]]:
        steps, at = self._search(start, wanted, part)
        return at, steps

    def _search(
        self, start: int, wanted: Callable[[Edge], bool], inside: set[int] | None
    ) -> tuple[list[int], int]:
        """Return the shortest schedule to an edge that is wanted, and where that leads."""
        came_from: dict[int, tuple[int, int] | None] = {start: None}
        todo = deque([start])
        while todo:
            state = todo.popleft()
            for edge in self.edges(state):
                index, after = edge
                if inside is not None and after not in inside:
                    continue
                if wanted(edge):
                    return [*_schedule(came_from, state), index], after
                if after not in came_from:
                    came_from[after] = state, index
                    todo.append(after)
        raise AssertionError("a strongly connected part is left without a way")


def _is_of(index: int, edge: Edge) -> bool:
    return edge[0] == index


def _schedule(came_from: dict[int, tuple[int, int] | None], state: int) -> list[int]:
    steps = []
    at = came_from[state]
    while at is not None:
        state, index = at
        steps.append(index)
        at = came_from[state]
    return steps[::-1]
