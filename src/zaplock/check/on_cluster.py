"""One check over the workers of a Dask cluster: each holds and expands its part of the states.

A worker is told by name what is checked, and makes the same table of it; that it is the same is
seen before anything is explored. What they say to each other (`engines.checking.parallel`) goes
through the cluster's own connections. A worker that dies takes its part of the states with it: the
check then begins again, with those that are left or have come in its place.
"""

from __future__ import annotations

import platform
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from zaplock.check.verdicts import (
    Added,
    SearchElsewhere,
    closed_system,
    find_design,
    find_scenario,
)
from zaplock.designs.own_files import is_reference
from zaplock.engines.checking.audit import no_forgotten_await
from zaplock.engines.checking.exhaustive import SearchLimits, SearchProgress, Verdict
from zaplock.engines.checking.on_disk import DiskLimits
from zaplock.engines.checking.parallel import Message, explored_by, search_of
from zaplock.engines.checking.part_of_search import serve
from zaplock.engines.checking.transitions import TransitionTable
from zaplock.errors import UserError
from zaplock.executors import Cluster
from zaplock.model.words import MemoryModel
from zaplock.version import __version__

_TRIES: Final = 4
"""So often is a check begun that loses workers."""
_LOOK_S: Final = 1.0
"""After so long without an answer it is looked whether all workers are there."""


@dataclass(frozen=True)
class Asked:
    """What is to be checked, so that another machine can make it: all of it by name.

    disk: a directory of the worker's machine for states that don't fit into its memory.
    """

    scenario: str
    design: str
    added: Added = field(default_factory=Added)
    memory: MemoryModel | None = None
    disk: Path | None = None

    def from_anywhere(self) -> Asked:
        """Name files as a process in another directory finds them."""
        added = replace(
            self.added,
            operations=tuple(map(_absolute, self.added.operations)),
            invariants=tuple(map(_absolute, self.added.invariants)),
        )
        return replace(
            self, scenario=_absolute(self.scenario), design=_absolute(self.design), added=added
        )


def _absolute(name: str) -> str:
    is_file = is_reference(name) or name.endswith(".toml")
    return str(Path(name).absolute()) if is_file else name


@dataclass(frozen=True)
class _Part:
    """What one worker does of it."""

    asked: Asked
    fair: bool
    limits: SearchLimits
    all_violations: bool
    jobs: int


class _Lost(Exception):
    """A worker has ended."""


def split_over(cluster: Cluster, asked: Asked) -> SearchElsewhere:
    """Return what searches on the cluster in place of this process."""
    asked = asked.from_anywhere()

    def search(
        fair: bool,
        limits: SearchLimits,
        all_violations: bool,
        progress: Callable[[SearchProgress], None] | None,
    ) -> Verdict:
        for left in reversed(range(_TRIES)):
            jobs = len(cluster.processes())
            part = _Part(asked, fair, limits, all_violations, jobs)
            try:
                return _searched(cluster, part, progress)
            except _Lost as error:
                if not left:
                    raise UserError(
                        f"{error}, the {_TRIES}th time: give the workers more memory, or a "
                        "directory of theirs by --disk"
                    ) from None
        raise AssertionError

    return search


def _searched(
    cluster: Cluster, part: _Part, progress: Callable[[SearchProgress], None] | None
) -> Verdict:
    with no_forgotten_await():
        table = _table(part)
        try:
            search = search_of(table, part.limits, part.all_violations, progress, None)
            if table.initial_violation is not None:
                search.note(table.initial_violation)
                return search.verdict()
            crew = _OnCluster(cluster, part)
            try:
                crew.begin(_made(table))
                return explored_by(crew, search)
            finally:
                crew.stop()
        finally:
            table.close()


def _table(part: _Part) -> TransitionTable:
    asked = part.asked
    scenario = find_scenario(asked.scenario, asked.added, asked.memory)
    return TransitionTable(closed_system(scenario, find_design(asked.design), part.fair))


def _made(table: TransitionTable) -> tuple[Any, ...]:
    """Describe a table in which nothing was explored: where it is equal, ints mean the same."""
    fields = [
        (field.container, repr(field.key), field.shifts, len(field.codes))
        for field in table.packed.layout.owners.values()
    ]
    return (__version__, platform.python_version_tuple()[:2], table.initial, fields)


class _Searcher:
    """What lives on a worker of the cluster: a search in a thread of its own."""

    def __init__(self, number: int, part: _Part) -> None:
        self.orders: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.turn = 0
        wire = _InThread(self.orders, self.answers)
        threading.Thread(target=_search, args=(wire, number, part), daemon=True).start()

    def exchange(self, turn: int, message: Message) -> Message:
        """Give the search a message and wait for its answer.

        Dask may make a lost object anew and ask that one again; it knows nothing, which its turn
        shows.
        """
        if turn != self.turn:
            return ("lost",)
        self.turn += 1
        self.orders.put(message)
        return self.answers.get()

    async def stop(self) -> None:
        """End the search, in the middle of a level if need be: a coroutine waits for no turn."""
        self.orders.put(("stop", [], [], 0))

    def __del__(self) -> None:
        self.orders.put(("stop", [], [], 0))


class _InThread:
    """The wire between the object and its search."""

    def __init__(
        self, orders: queue.SimpleQueue[Message], answers: queue.SimpleQueue[Message]
    ) -> None:
        self.orders = orders
        self.send = answers.put
        self.recv = orders.get

    def poll(self) -> bool:
        return not self.orders.empty()


def _search(wire: _InThread, number: int, part: _Part) -> None:
    """Be a worker, from the making of the table to the end."""
    try:
        with no_forgotten_await():
            table = _table(part)
            disk = DiskLimits(part.asked.disk) if part.asked.disk is not None else None
            search = search_of(table, part.limits, part.all_violations, None, disk)
            try:
                if wire.recv()[0] == "begin":
                    wire.send(("begun", _made(table)))
                    frontier = [table.initial] if number == 0 else []
                    serve(wire, search, frontier, number, part.jobs)
            finally:
                search.close()
                table.close()
    except Exception as error:
        wire.send(("error", error))
    finally:
        wire.send(("lost",))  # to whoever still waits for an answer


class _OnCluster:
    """The crew: one object on each worker process."""

    def __init__(self, cluster: Cluster, part: _Part) -> None:
        self.cluster = cluster
        self.addresses = cluster.processes()[: part.jobs]
        self.searchers = cluster.objects(_Searcher, self.addresses, part)
        self.turns = [0] * part.jobs
        self.waiting = ThreadPoolExecutor(part.jobs)
        self.come: queue.SimpleQueue[tuple[int, Message]] = queue.SimpleQueue()

    def __len__(self) -> int:
        return len(self.turns)

    def begin(self, made: tuple[Any, ...]) -> None:
        """Let every worker make its table, and see that it is the same as here."""
        if len(self.searchers) < len(self.turns):
            raise _Lost("a worker of the cluster has ended")
        for number in range(len(self)):
            self.send(number, ("begin",))
        begun = 0
        while begun < len(self):
            for number, message in self.answers():
                if message[0] == "error":
                    raise message[1]
                if message[1] != made:
                    raise UserError(
                        f"the worker at {self.addresses[number]} makes another table of the same "
                        f"scenario (zaplock {message[1][0]}, Python {'.'.join(message[1][1])}; "
                        f"here {made[0]}, {'.'.join(made[1])}): give it what is here, the files "
                        "of your own designs and scenarios as well"
                    )
                begun += 1

    def send(self, number: int, message: Message) -> None:
        turn = self.turns[number]
        self.turns[number] += 1
        self.waiting.submit(self._exchange, number, turn, message)

    def _exchange(self, number: int, turn: int, message: Message) -> None:
        try:
            answer = self.searchers[number].exchange(turn, message).result()
        except Exception:  # of Dask's, as many kinds as there are ways to lose a worker
            answer = ("lost",)
        self.come.put((number, answer))

    def answers(self) -> Iterator[tuple[int, Message]]:
        while True:
            with suppress(queue.Empty):
                number, message = self.come.get(timeout=_LOOK_S)
                break
            there = self.cluster.processes()
            for number, address in enumerate(self.addresses):
                if address not in there:
                    raise self.lost(number)
        if message[0] == "lost":
            raise self.lost(number)
        yield number, message

    def lost(self, number: int) -> _Lost:
        return _Lost(f"the worker of the cluster at {self.addresses[number]} has ended")

    def stop(self) -> None:
        """Tell all of them that nobody waits any more."""
        there = self.cluster.processes()
        for address, searcher in zip(self.addresses, self.searchers):
            if address in there:
                with suppress(Exception):
                    searcher.stop().result(timeout=_LOOK_S)
        self.searchers.clear()
        self.waiting.shutdown(wait=False, cancel_futures=True)
