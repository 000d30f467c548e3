"""The same search over several machines: same verdict, same number of distinct states.

Each worker begins with the same table. A state belongs to the worker that the contents of its
store hash to; only its owner remembers it and expands it, so each is counted once, and each worker
holds its part of them, of wide levels as words (`divided_levels`). Level by level, states that
belong to others are handed over, and all violations of a level are met before the search stops: as
in one process.

The int of a state means the same everywhere because all numbers are given out in one place: a
worker that meets a new container, cell, value or position asks the parent for its number, and hears
of those that others met before it gets their states. Such questions become rare soon: the numbers
are those of values, not of states.

Who the workers (`part_of_search`) are is a `Crew`'s to say: those of a cluster make the same table
from the same scenario (`check.on_cluster`). The cores of one machine share one search
(`compiled_levels`).

The limit on memory is for all workers in sum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from zaplock.engines.checking.children import resident_bytes
from zaplock.engines.checking.divided_levels import WordParcel
from zaplock.engines.checking.exhaustive import Search, SearchLimits, SearchProgress, Verdict
from zaplock.engines.checking.on_disk import DiskLimits, SearchOnDisk
from zaplock.engines.checking.transitions import TransitionTable
from zaplock.model.violations import Invariant, Violation

Key = tuple[Any, ...]
"""What a question is about; values in it are exact ones."""

News = tuple[Key, Any, int]
"""A question, the value that it is about, and the answer."""

Message = tuple[Any, ...]


class StateParcel(NamedTuple):
    """States for another worker, packed."""

    many: int
    states: bytes


Parcel = StateParcel | WordParcel


class PartCounts(NamedTuple):
    """How far a worker has come; `limit`: which one it has met, "" if none."""

    states: int = 0
    transitions: int = 0
    endings: int = 0
    had_frontier: bool = False
    """Were there own states to expand in this level?"""
    has_frontier: bool = False
    limit: str = ""
    occupied_bytes: int = 0


class Crew(Protocol):
    """The workers of one search, by number. Each answers one message at a time."""

    def __len__(self) -> int: ...

    def send(self, number: int, message: Message) -> None:
        """Give a worker a message; raises OSError where it has ended."""
        ...

    def answers(self) -> Iterator[tuple[int, Message]]:
        """Wait, and give the messages that came; raises `lost`."""
        ...

    def lost(self, number: int) -> Exception:
        """Say that a worker has ended, and why."""
        ...


def search_of(
    table: TransitionTable,
    limits: SearchLimits,
    all_violations: bool,
    progress: Callable[[SearchProgress], None] | None,
    disk: DiskLimits | None,
) -> Search:
    """Begin a search that keeps its states in memory, or on disk where they don't fit."""
    if disk is None:
        return Search(table, limits, all_violations, progress)
    return SearchOnDisk(table, limits, all_violations, progress, disk)


def explored_by(crew: Crew, search: Search) -> Verdict:
    """Let a crew, which has the frontier of a search, explore the rest of it."""
    return _Parent(search, crew).run()


class _Parent:
    """Gives out numbers, hands states over, adds up."""

    def __init__(self, search: Search, crew: Crew) -> None:
        self.search = search
        self.table = search.table
        self.crew = crew
        self.jobs = len(crew)
        self.log: list[News] = []
        self.numbers: dict[Key, int] = {}
        self.told = [0] * self.jobs
        self.base = search.states
        self.occupied = 0

    def run(self) -> Verdict:
        search = self.search
        boxes: list[list[Parcel]] = [[] for _ in range(self.jobs)]
        counts = [PartCounts(has_frontier=True)] * self.jobs
        while any(count.has_frontier for count in counts) or any(boxes):
            self._send("level", boxes)
            boxes, counts = self._collect()
            self.occupied = sum(count.occupied_bytes for count in counts)
            states = self.base + sum(count.states for count in counts)
            self._report(states, sum(parcel.many for box in boxes for parcel in box))
            search.limit = search.limit or next((c.limit for c in counts if c.limit), "")
            if search.limit or (search.found and not search.all_violations):
                self._send("absorb", boxes)
                counts = self._collect()[1]
                break
            search.depth += any(count.had_frontier for count in counts)
        self._send("audit", [[] for _ in range(self.jobs)])
        self._collect()
        search.transitions += sum(count.transitions for count in counts)
        search.endings += sum(count.endings for count in counts)
        return search.verdict(states=self.base + sum(count.states for count in counts))

    def _report(self, states: int, waiting: int) -> None:
        search = self.search
        seconds = time.monotonic() - search.started
        if search.progress is not None:
            search.progress(SearchProgress(states, waiting, search.depth, seconds))
        if states > search.limits.states:
            search.limit = f"{search.limits.states} states"
        elif seconds > search.limits.seconds:
            search.limit = f"{search.limits.seconds:g} s"
        elif resident_bytes() + self.occupied > search.limits.memory:
            search.limit = f"{search.limits.memory >> 20} MiB"

    def _send(self, order: str, boxes: list[list[Parcel]]) -> None:
        share = max(0, self.search.limits.memory - resident_bytes()) // self.jobs
        for number in range(self.jobs):
            news = self.log[self.told[number] :]
            self.told[number] = len(self.log)
            try:
                self.crew.send(number, (order, news, boxes[number], share))
            except OSError:
                raise self.crew.lost(number) from None

    def _collect(self) -> tuple[list[list[Parcel]], list[PartCounts]]:
        """Answer questions until every worker has finished the level."""
        boxes: list[list[Parcel]] = [[] for _ in range(self.jobs)]
        counts: dict[int, PartCounts] = {}
        while len(counts) < self.jobs:
            for number, message in self.crew.answers():
                if message[0] == "ask":
                    self.crew.send(number, ("number", self._number(message[1], message[2])))
                elif message[0] == "audited":
                    counts[number] = PartCounts()
                    self.table.auditor.report += message[1]
                    self.search.loops |= message[2]
                elif message[0] == "error":
                    raise message[1]
                else:
                    _, outboxes, counts[number], found, sometimes = message
                    self._take(found, sometimes)
                    for owner, parcel in outboxes:
                        boxes[owner].append(parcel)
        return boxes, [counts[number] for number in range(self.jobs)]

    def _take(self, found: list[tuple[Invariant, str]], sometimes: set[str]) -> None:
        for invariant, message in found:
            self.search.note(Violation(invariant, message))
        self.table.seen_sometimes |= sometimes

    def _number(self, key: Key, value: Any) -> int:
        if key not in self.numbers:
            number = self.numbers[key] = perform(self.table, key, value)
            self.log.append((key, value, number))
        return self.numbers[key]


def perform(table: TransitionTable, key: Key, result: Any) -> int:
    """Do what a question is about in this process and return the number that it gets."""
    if key[0] == "container":
        made = table.machine.store.families[key[1]][result]
        table.adopt()
        return int(made is None)
    if key[0] == "node":
        _, index, parent, kind, _ = key
        trie = table.tries[index]
        if kind == "end":
            node = trie.end(result)
        elif kind == "queued":
            node = trie.asleep(trie.nodes[parent])
        else:
            node = trie.child(trie.nodes[parent], result)
        table.enter(index, node)
        return node.id
    field = table.packed.field(key[1], key[2])
    if key[0] == "take":
        while len(field.shifts) <= key[3]:
            field.grow()
        number = field.shifts[key[3]]
    else:
        number = field.number_of(result)
    table.widen()
    return number
