"""The same search over several processes: same verdict, same number of distinct states.

One process explores until the frontier is wide. Then workers are forked, each with everything that
is known so far. A state belongs to the worker that its value hashes to; only its owner remembers it
and expands it, so each is counted once. Level by level, states that belong to others are handed
over, and all violations of a level are met before the search stops: as in one process.

The int of a state means the same everywhere because all numbers are given out in one place: a
worker that meets a new cell, value or position asks the parent for its number, and hears of those
that others met before it gets their states. Such questions become rare soon: the numbers are those
of values, not of states.
"""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import (
    Search,
    SearchLimits,
    SearchProgress,
    Verdict,
)
from zaplock.engines.checking.packed_states import StateField
from zaplock.engines.checking.positions import Node
from zaplock.engines.checking.transitions import TransitionTable
from zaplock.model.violations import Invariant, Violation

ENOUGH: Final = 4_000
"""A frontier of so many states is worth more than one process."""

Key = tuple[Any, ...]


def explore_split(
    configuration: Configuration,
    jobs: int,
    limits: SearchLimits = SearchLimits(),
    *,
    all_violations: bool = False,
    progress: Callable[[SearchProgress], None] | None = None,
    enough: int = ENOUGH,
) -> Verdict:
    """Explore with `jobs` processes; needs fork(2), since configurations hold functions."""
    table = TransitionTable(configuration)
    try:
        search = Search(table, limits, all_violations, progress)
        frontier = search.until(enough)
        if not frontier or search.limit or jobs < 2:
            return search.verdict()
        return _Parent(search, frontier, jobs).run()
    finally:
        table.close()


class _Parent:
    """Gives out numbers, hands states over, adds up."""

    def __init__(self, search: Search, frontier: list[int], jobs: int) -> None:
        self.search = search
        self.table = search.table
        self.jobs = jobs
        self.log: list[Key] = []
        self.answers: dict[Key, int] = {}
        context = multiprocessing.get_context("fork")
        self.connections: list[Connection] = []
        self.processes = []
        for number in range(jobs):
            mine, theirs = context.Pipe()
            own = [state for state in frontier if owner_of(state, jobs) == number]
            process = context.Process(
                target=_work, args=(theirs, search, own, number, jobs), daemon=True
            )
            process.start()
            theirs.close()
            self.connections.append(mine)
            self.processes.append(process)
        self.told = [0] * jobs
        self.base = len(search.visited)

    def run(self) -> Verdict:
        search = self.search
        boxes: list[list[bytes]] = [[] for _ in range(self.jobs)]
        counts = [(0, 0, 0, True)] * self.jobs
        try:
            while any(busy for *_, busy in counts) or any(boxes):
                self._send("level", boxes)
                boxes, counts = self._collect()
                states = self.base + sum(count[0] for count in counts)
                self._report(states, sum(len(blob) for box in boxes for blob in box))
                if search.limit or (search.found and not search.all_violations):
                    self._send("absorb", boxes)
                    counts = self._collect()[1]
                    break
                search.depth += 1
        finally:
            self._stop()
        search.transitions += sum(count[1] for count in counts)
        search.endings += sum(count[2] for count in counts)
        return search.verdict(states=self.base + sum(count[0] for count in counts))

    def _stop(self) -> None:
        # No EOF tells a worker: those forked after it hold the parent's end of its pipe, too.
        for connection, process in zip(self.connections, self.processes):
            with suppress(OSError):
                connection.send(("stop", [], []))
            connection.close()
            process.join(timeout=1)
            if process.is_alive():  # in the middle of a level whose result nobody wants
                process.terminate()
                process.join()

    def _report(self, states: int, waiting: int) -> None:
        search = self.search
        seconds = time.monotonic() - search.started
        if search.progress is not None:
            search.progress(SearchProgress(states, waiting, search.depth, seconds))
        if states > search.limits.states:
            search.limit = f"{search.limits.states} states"
        elif seconds > search.limits.seconds:
            search.limit = f"{search.limits.seconds:g} s"

    def _send(self, order: str, boxes: list[list[bytes]]) -> None:
        for number, connection in enumerate(self.connections):
            news = [(key, self.answers[key]) for key in self.log[self.told[number] :]]
            self.told[number] = len(self.log)
            connection.send((order, news, boxes[number]))

    def _collect(self) -> tuple[list[list[bytes]], list[tuple[int, int, int, bool]]]:
        """Answer questions until every worker has finished the level."""
        boxes: list[list[bytes]] = [[] for _ in range(self.jobs)]
        counts: dict[int, tuple[int, int, int, bool]] = {}
        while len(counts) < self.jobs:
            for connection in wait(self.connections):
                assert isinstance(connection, Connection)
                number = self.connections.index(connection)
                message = connection.recv()
                if message[0] == "ask":
                    connection.send(self._answer(message[1]))
                elif message[0] == "error":
                    raise message[1]
                else:
                    _, outboxes, counts[number], found, sometimes = message
                    self._take(found, sometimes)
                    for owner, blob in outboxes:
                        boxes[owner].append(blob)
        return boxes, [counts[number] for number in range(self.jobs)]

    def _take(self, found: list[tuple[Invariant, str]], sometimes: set[str]) -> None:
        for invariant, message in found:
            self.search.note(Violation(invariant, message))
        self.table.seen_sometimes |= sometimes

    def _answer(self, key: Key) -> int:
        if key not in self.answers:
            self.answers[key] = perform(self.table, key)
            self.log.append(key)
        return self.answers[key]


def perform(table: TransitionTable, key: Key) -> int:
    """Do what a question is about in this process and return the number that it gets."""
    if key[0] == "node":
        _, index, parent, kind, _, result = key
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
        number = field.number_of(key[3])
    table.widen()
    return number


def _work(
    connection: Connection, search: Search, frontier: list[int], number: int, jobs: int
) -> None:
    """Be a worker: expand the own states of each level until the parent hangs up."""
    worker = _Worker(connection, search, frontier, number, jobs)
    try:
        while (message := connection.recv())[0] != "stop":
            worker.obey(*message)
    except Exception as error:
        try:
            pickle.dumps(error)
        except Exception:
            error = RuntimeError(repr(error))
        connection.send(("error", error))


class _Worker:
    """One part of the states, by the hash that is their value modulo the number of workers."""

    def __init__(
        self, connection: Connection, search: Search, frontier: list[int], number: int, jobs: int
    ) -> None:
        self.connection = connection
        self.search = search
        self.frontier = frontier
        self.number = number
        self.jobs = jobs
        self.known: dict[Key, int] = {}
        self.base = len(search.visited)
        self.handed_over = 0
        search.transitions = search.endings = 0
        search.found = {}
        table = search.table
        table.packed.layout.take = self._take  # type: ignore[method-assign]
        table.packed.layout.number = self._number  # type: ignore[method-assign]
        for index, trie in enumerate(table.tries):
            trie.number = self._node_number(index)  # type: ignore[method-assign,assignment]

    def _ask(self, key: Key) -> int:
        answer = self.known.get(key)
        if answer is None:
            self.connection.send(("ask", key))
            answer = self.known[key] = self.connection.recv()
        return answer

    def _take(self, field: StateField) -> int:
        layout = self.search.table.packed.layout
        shift = self._ask(("take", field.container, field.key, len(field.shifts)))
        layout.own(shift, field)
        return shift

    def _number(self, field: StateField, value: Any) -> int:
        return self._ask(("number", field.container, field.key, value))

    def _node_number(self, index: int) -> Callable[[Node | None, str, Any], int]:
        def number(parent: Node | None, kind: str, result: Any) -> int:
            parent_id = parent.id if parent is not None else -1
            return self._ask(("node", index, parent_id, kind, type(result).__name__, result))

        return number

    def obey(self, order: str, news: list[tuple[Key, int]], blobs: list[bytes]) -> None:
        """Learn what others met, take in states, and for a "level" expand and hand over."""
        self.known.update(news)
        for key, _ in news:
            perform(self.search.table, key)
        visited = self.search.visited
        for blob in blobs:
            for state in unpack(blob):
                if state not in visited:
                    visited.add(state)
                    self.frontier.append(state)
        found = self.search.expand(self.frontier) if order == "level" else []
        by_owner: list[list[int]] = [[] for _ in range(self.jobs)]
        for state in found:
            by_owner[owner_of(state, self.jobs)].append(state)
        self.frontier = by_owner[self.number]
        outboxes = self._hand_over(by_owner)
        search = self.search
        counts = (
            len(visited) - self.base - self.handed_over,
            search.transitions,
            search.endings,
            bool(self.frontier),
        )
        self.connection.send(
            ("done", outboxes, counts, list(search.found), search.table.seen_sometimes)
        )

    def _hand_over(self, by_owner: list[list[int]]) -> list[tuple[int, bytes]]:
        """Give others' states away; they stay known here too, so none is sent twice."""
        outboxes = []
        for owner, states in enumerate(by_owner):
            if owner != self.number and states:
                self.handed_over += len(states)
                outboxes.append((owner, pack(states)))
        return outboxes


def owner_of(state: int, jobs: int) -> int:
    """Return which worker a state belongs to; spread evenly, the same in every process."""
    return (hash(state) * 0x9E3779B97F4A7C15 >> 40) % jobs


def pack(states: list[int]) -> bytes:
    """Write ints one after another, all as wide as the widest."""
    width = (max(states).bit_length() + 7) // 8
    body = b"".join([state.to_bytes(width, "little") for state in states])
    return width.to_bytes(4, "little") + body


def unpack(blob: bytes) -> list[int]:
    """Read what `pack` wrote."""
    width = int.from_bytes(blob[:4], "little")
    return [int.from_bytes(blob[at : at + width], "little") for at in range(4, len(blob), width)]
