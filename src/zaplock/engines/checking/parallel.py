"""The same search over several processes: same verdict, same number of distinct states.

Each worker has what is known when it begins. A state belongs to the worker that its value hashes
to; only its owner remembers it and expands it, so each is counted once, and each worker holds its
part of them. Level by level, states that belong to others are handed over, and all violations of a
level are met before the search stops: as in one process.

The int of a state means the same everywhere because all numbers are given out in one place: a
worker that meets a new container, cell, value or position asks the parent for its number, and hears
of those that others met before it gets their states. Such questions become rare soon: the numbers
are those of values, not of states.

Who the workers are is a `Crew`'s to say. `Forked` are processes of this machine, forked with all
that one process found until the frontier was wide; they die with their parent, whatever ends it.
Those of a cluster make the same table from the same scenario (`check.on_cluster`).

The limit on memory is for all processes in sum.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Final, NamedTuple, Protocol

from zaplock.engines.checking import exhaustive
from zaplock.engines.checking.audit import Audit, no_forgotten_await
from zaplock.engines.checking.children import resident_bytes
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.divided_levels import (
    DividedLevels,
    WordParcel,
    owner_of,
    pack,
    unpack,
)
from zaplock.engines.checking.exhaustive import (
    SLICE,
    Search,
    SearchLimits,
    SearchProgress,
    Verdict,
)
from zaplock.engines.checking.on_disk import DiskLimits, SearchOnDisk
from zaplock.engines.checking.packed_states import StateField
from zaplock.engines.checking.positions import Node
from zaplock.engines.checking.transitions import TransitionTable
from zaplock.engines.checking.wide_levels import Outgrown
from zaplock.errors import ProtocolError
from zaplock.model.frozen import exact
from zaplock.model.violations import Invariant, Violation
from zaplock.workers import die_with

ENOUGH: Final = 4_000
"""A frontier of so many states is worth more than one process."""

_PACKED: Final = 64
"""Bytes that a state takes at most, about, in a list and as it is sent."""

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


class Wire(Protocol):
    """What a worker talks through: messages in, messages out."""

    def send(self, message: Message, /) -> None: ...
    def recv(self) -> Message: ...

    def poll(self) -> bool:
        """Return whether there is something to receive, be it that the parent is gone."""
        ...


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


class Forked:
    """Processes of this machine, with all that this one knows."""

    def __init__(self, search: Search, frontier: list[int], jobs: int) -> None:
        context = multiprocessing.get_context("fork")
        self.connections: list[Connection] = []
        self.processes = []
        stores = ~search.table.packed.low_mask
        for number in range(jobs):
            mine, theirs = context.Pipe()
            own = [state for state in frontier if owner_of(state & stores, jobs) == number]
            process = context.Process(
                target=_forked,
                args=(theirs, [*self.connections, mine], search, own, number, jobs, os.getpid()),
                daemon=True,
            )
            process.start()
            theirs.close()
            self.connections.append(mine)
            self.processes.append(process)

    def __len__(self) -> int:
        return len(self.processes)

    def send(self, number: int, message: Message) -> None:
        self.connections[number].send(message)

    def answers(self) -> Iterator[tuple[int, Message]]:
        for connection in wait(self.connections):
            assert isinstance(connection, Connection)
            number = self.connections.index(connection)
            try:
                message = connection.recv()
            except (EOFError, OSError):
                raise self.lost(number) from None
            yield number, message

    def lost(self, number: int) -> MemoryError:
        self.processes[number].join(timeout=1)
        return MemoryError(
            f"a worker of the search has ended (exit code {self.processes[number].exitcode}); was "
            "it killed for lack of memory?"
        )

    def stop(self) -> None:
        """End all of them."""
        # No EOF tells a worker: those forked after it hold the parent's end of its pipe, too.
        for connection, process in zip(self.connections, self.processes):
            with suppress(OSError):
                connection.send(("stop", [], [], 0))
            connection.close()
            process.join(timeout=0.2)
            if process.is_alive():  # in the middle of a level whose result nobody wants
                process.terminate()
                process.join()


def explore_split(
    configuration: Configuration,
    jobs: int,
    limits: SearchLimits = SearchLimits(),
    *,
    all_violations: bool = False,
    progress: Callable[[SearchProgress], None] | None = None,
    enough: int = ENOUGH,
    disk: DiskLimits | None = None,
) -> Verdict:
    """Explore with `jobs` processes; needs fork(2), since configurations hold functions."""
    with no_forgotten_await():
        table = TransitionTable(configuration)
        search = search_of(table, limits, all_violations, progress, disk)
        try:
            frontier = search.until(enough if jobs > 1 else None)
            if not frontier or search.limit:
                table.auditor.finish()
                return search.verdict()
            crew = Forked(search, frontier, jobs)
            try:
                return explored_by(crew, search)
            finally:
                crew.stop()
        finally:
            search.close()
            table.close()


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


def _forked(
    connection: Connection,
    of_others: list[Connection],
    search: Search,
    frontier: list[int],
    number: int,
    jobs: int,
    parent: int,
) -> None:
    """Be a worker that was forked."""
    die_with(parent)
    for other in of_others:
        other.close()
    serve(connection, search, frontier, number, jobs)


def serve(wire: Wire, search: Search, frontier: list[int], number: int, jobs: int) -> None:
    """Be worker `number` of `jobs`: expand the own states of each level until told to stop."""
    worker = _Worker(wire, search, frontier, number, jobs)
    try:
        while (message := wire.recv())[0] != "stop":
            worker.obey(*message)
    except (EOFError, OSError):
        return  # nobody is there any more who would want the result
    except Exception as error:
        try:
            pickle.dumps(error)
        except Exception:
            error = RuntimeError(repr(error))
        with suppress(OSError):
            wire.send(("error", error))


class _Worker:
    """One part of the states, by the hash of what the store holds in them."""

    def __init__(
        self, wire: Wire, search: Search, frontier: list[int], number: int, jobs: int
    ) -> None:
        self.wire = wire
        self.search = search
        self.frontier = frontier
        self.number = number
        self.jobs = jobs
        self.known: dict[Key, int] = {}
        self.base = search.states
        self.handed_over: Sequence[set[int]] = (set(), set())
        """Others' states that this level and the one before it have met: none is sent again."""
        self.wide: DividedLevels | None = None
        self.may_be_wide = True
        self.stores_of: dict[int, dict[int, int]] = {}
        """What the store holds, by who has sent that and its number there."""
        search.set_apart()
        search.progress = None
        search.transitions = search.endings = 0
        search.found = {}
        table = search.table
        table.auditor.report = Audit()
        table.packed.layout.take = self._take  # type: ignore[method-assign]
        table.packed.layout.number = self._number  # type: ignore[method-assign]
        table.packed.announce = self._announce
        for index, trie in enumerate(table.tries):
            trie.number = self._node_number(index)  # type: ignore[method-assign,assignment]

    def _ask(self, key: Key, value: Any = None) -> int:
        answer = self.known.get(key)
        if answer is None:
            self.wire.send(("ask", key, value))
            answer = self.known[key] = self.wire.recv()[1]
        return answer

    def _announce(self, name: str) -> None:
        """Let everybody have a container that this worker is the first to make."""
        origin = self.search.table.machine.store.origins.get(name)
        if origin is None:
            raise ProtocolError(
                f"a step has made the container {name!r}, which other processes can't make: make "
                "it with the machine, or use --jobs 1"
            )
        self._ask(("container", *origin), origin[1])

    def _take(self, field: StateField) -> int:
        layout = self.search.table.packed.layout
        shift = self._ask(("take", field.container, field.key, len(field.shifts)))
        layout.own(shift, field)
        return shift

    def _number(self, field: StateField, value: Any) -> int:
        name = value if field.is_keys else exact(value)
        return self._ask(("number", field.container, field.key, name), value)

    def _node_number(self, index: int) -> Callable[[Node | None, str, Any], int]:
        def number(parent: Node | None, kind: str, result: Any) -> int:
            parent_id = parent.id if parent is not None else -1
            return self._ask(("node", index, parent_id, kind, exact(result)), result)

        return number

    def obey(self, order: str, news: list[News], parcels: list[Parcel], memory: int) -> None:
        """Learn what others met, take in states, and for a "level" expand and hand over."""
        self.known.update((key, answer) for key, _, answer in news)
        for key, value, _ in news:
            perform(self.search.table, key, value)
        search = self.search
        search.memory = memory
        if order == "audit":
            self.wire.send(("audited", search.table.auditor.finish()))
            return
        for parcel in parcels:
            self._take_in(parcel)
        if self.wide is not None:
            self.wide.settle(self.wide.ahead)
        had_frontier, outboxes = self._has_frontier(), list[tuple[int, Parcel]]()
        if order == "level" and not search.limit:
            outboxes = self._level()
        counts = PartCounts(
            search.states - self.base,
            search.transitions,
            search.endings,
            had_frontier,
            self._has_frontier(),
            search.limit,
            resident_bytes(),
        )
        self.wire.send(("done", outboxes, counts, list(search.found), search.table.seen_sometimes))

    def _take_in(self, parcel: Parcel) -> None:
        """Take in states that others have found."""
        if isinstance(parcel, WordParcel):
            parcel.add_to(self.stores_of.setdefault(parcel.sender, {}))
        if self.wide is not None:
            try:
                if isinstance(parcel, WordParcel):
                    self.wide.receive(parcel, self.stores_of[parcel.sender])
                else:
                    self.wide.receive_states(unpack(parcel.states))
                return
            except Outgrown:
                found = self._by_states()  # of this level still, from the parcels before
                self.frontier += found
        if isinstance(parcel, WordParcel):
            states = parcel.states(self.stores_of[parcel.sender])
        else:
            states = unpack(parcel.states)
        self.frontier += self.search.take_in(states)

    def _has_frontier(self) -> bool:
        return bool(self.frontier) if self.wide is None else self.wide.has_frontier()

    def _level(self) -> list[tuple[int, Parcel]]:
        """Expand the own states of a level; return what is for others."""
        parcels: list[tuple[int, Parcel]] = []
        found: list[int] = []
        if self.may_be_wide and len(self.frontier) * self.jobs >= exhaustive.WIDE:
            self._begin_wide()
        if self.wide is not None:
            wide = self.wide
            try:
                wide.level()
            except Outgrown:
                parcels += wide.parcels()
                found = self._by_states()
            else:
                parcels += wide.parcels()
                if not self.search.limit and not wide.is_worth_it():
                    self._by_states()
                return parcels
        self.handed_over = (self.handed_over[1], set())
        self.frontier = found + self._expand()
        return parcels + self._outboxes()

    def _begin_wide(self) -> None:
        self.may_be_wide = False
        frontier, self.frontier = self.frontier, []
        try:
            self.wide = self.search.divided(frontier, self.number, self.jobs, self._look)
        except Outgrown:
            self.frontier = frontier

    def _by_states(self) -> list[int]:
        """Go on state by state; return what was found of the next level."""
        assert self.wide is not None
        search, wide = self.search, self.wide
        self.frontier, found = search.by_states(wide)
        if not search.limit:
            self.wide = None
            self.base += search.states - len(wide.visited)
        return found

    def _look(self) -> None:
        if self.wire.poll():
            raise EOFError("the parent is gone")

    def _expand(self) -> list[int]:
        """Expand the frontier in slices; return the own states found."""
        own: list[int] = []
        limits, search = self.search.limits, self.search
        for first in range(0, len(self.frontier), SLICE):
            if time.monotonic() - search.started > limits.seconds:
                search.limit = f"{limits.seconds:g} s"
            elif search.memory_ahead() + self._to_hand_over() > search.memory:
                search.limit = f"{limits.memory >> 20} MiB"
            if search.limit:
                break
            self._look()
            found = search.expand(self.frontier[first : first + SLICE])
            own += search.settled(self._own(found))
        return own

    def _to_hand_over(self) -> int:
        """Return what the states for others will take: a table that may double, and their bytes."""
        states = self.handed_over[1]
        return 2 * sys.getsizeof(states) + _PACKED * len(states)

    def _own(self, found: list[int]) -> list[int]:
        """Return those of some new states that belong here; the others are to be handed over."""
        number, jobs, stores = self.number, self.jobs, ~self.search.table.packed.low_mask
        own: list[int] = []
        others: list[int] = []
        for state in found:
            (own if owner_of(state & stores, jobs) == number else others).append(state)
        self.search.visited.difference_update(others)
        before, now = self.handed_over
        now.update(state for state in others if state not in before)
        return own

    def _outboxes(self) -> list[tuple[int, Parcel]]:
        """Pack what this level has found for each of the others."""
        by_owner: dict[int, list[int]] = {}
        stores = ~self.search.table.packed.low_mask
        for state in self.handed_over[1]:
            by_owner.setdefault(owner_of(state & stores, self.jobs), []).append(state)
        return [
            (owner, StateParcel(len(states), pack(states))) for owner, states in by_owner.items()
        ]
