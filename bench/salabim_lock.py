"""The lock of bench/test_timed.py with salabim: who has to wait is passive until woken.

A resource of tokens would be shorter, but where salabim keeps the order of requests, a release
grants one of them only, and readers come in one by one.
"""

from __future__ import annotations

from collections.abc import Generator
from time import process_time
from typing import Any

import salabim

from bench.test_timed import (
    READERS,
    ROUNDS_READER,
    ROUNDS_WRITER,
    WRITERS,
    Log,
    SimpyLock,
    reader_times,
    writer_times,
)


class Passive:
    """A thread that waits for the lock."""

    thread: SalabimThread

    def succeed(self) -> None:
        self.thread.activate()


class Waits:
    """What the lock takes for SimPy's environment: it makes what a thread waits for."""

    event = Passive


class SalabimThread(salabim.Component):  # type: ignore[misc]
    """A reader or writer."""

    def setup(self, lock: SimpyLock, log: Log, number: int) -> None:
        self.lock, self.log, self.number = lock, log, number


class SalabimReader(SalabimThread):
    def process(self) -> Generator[Any]:
        hold_ns, pause_ns = reader_times(self.number)
        lock, append, tid, now = self.lock, self.log.append, self.number + 1, self.env.now
        yield self.hold(self.number)
        for _ in range(ROUNDS_READER):
            append((int(now()), "asked", False, tid))
            wait = lock.ask(False)
            if wait is not None:
                wait.thread = self
                yield self.passivate()
            append((int(now()), "acquired", False, tid))
            yield self.hold(hold_ns)
            append((int(now()), "released", False, tid))
            lock.up_read()
            yield self.hold(pause_ns)


class SalabimWriter(SalabimThread):
    def process(self) -> Generator[Any]:
        exclusive_ns, shared_ns, pause_ns = writer_times(self.number)
        lock, append, now = self.lock, self.log.append, self.env.now
        tid = READERS + self.number + 1
        yield self.hold(READERS + self.number)
        for _ in range(ROUNDS_WRITER):
            append((int(now()), "asked", True, tid))
            wait = lock.ask(True)
            if wait is not None:
                wait.thread = self
                yield self.passivate()
            append((int(now()), "acquired", True, tid))
            yield self.hold(exclusive_ns)
            append((int(now()), "acquired", False, tid))
            lock.downgrade()
            yield self.hold(shared_ns)
            append((int(now()), "released", False, tid))
            lock.up_read()
            yield self.hold(pause_ns)


def run() -> tuple[float, Log]:
    """Return how long salabim took, in seconds, and what happened."""
    env = salabim.Environment(yieldless=False)
    lock = SimpyLock(Waits(), tuned=True)
    log: Log = []
    for number in range(READERS):
        SalabimReader(lock=lock, log=log, number=number, env=env)
    for number in range(WRITERS):
        SalabimWriter(lock=lock, log=log, number=number, env=env)
    started = process_time()
    env.run()
    return process_time() - started, log
