"""Workers of one search on this machine, as a cluster has them: each makes its own table."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from zaplock.engines.checking.audit import no_forgotten_await
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import SearchLimits, Verdict
from zaplock.engines.checking.on_disk import DiskLimits
from zaplock.engines.checking.parallel import Message, explored_by, search_of
from zaplock.engines.checking.part_of_search import serve
from zaplock.engines.checking.transitions import TransitionTable
from zaplock.workers import die_with

LIMITS = SearchLimits()


class LocalCrew:
    """`jobs` processes that were forked before anything was explored."""

    def __init__(self, configuration: Configuration, jobs: int, *how: Any) -> None:
        context = multiprocessing.get_context("fork")
        self.connections: list[Connection] = []
        self.processes = []
        for number in range(jobs):
            mine, theirs = context.Pipe()
            arguments = (theirs, configuration, number, jobs, os.getpid(), *how)
            process = context.Process(target=_work, args=arguments, daemon=True)
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
            yield self.connections.index(connection), connection.recv()

    def lost(self, number: int) -> Exception:
        return AssertionError(f"worker {number} has ended: {self.processes[number]}")

    def stop(self) -> None:
        for connection in self.connections:
            with suppress(OSError):  # it has raised an error, and ended
                connection.send(("stop", [], [], 0))
        for process, connection in zip(self.processes, self.connections):
            process.join()
            connection.close()


def _work(
    wire: Connection, configuration: Configuration, number: int, jobs: int, parent: int,
    all_violations: bool, disk: DiskLimits | None,
) -> None:  # fmt: skip
    die_with(parent)
    table = TransitionTable(configuration)
    search = search_of(table, LIMITS, all_violations, None, disk)
    serve(wire, search, [table.initial] if number == 0 else [], number, jobs)
    search.close()


def explore_split(
    configuration: Configuration,
    jobs: int,
    *,
    all_violations: bool = False,
    disk: DiskLimits | None = None,
) -> Verdict:
    """Explore with workers as a cluster has them."""
    with no_forgotten_await():
        table = TransitionTable(configuration)
        search = search_of(table, LIMITS, all_violations, None, None)
        crew = LocalCrew(configuration, jobs, all_violations, disk)
        try:
            if table.initial_violation is not None:
                search.note(table.initial_violation)
                return search.verdict()
            return explored_by(crew, search)
        finally:
            crew.stop()
            table.close()
