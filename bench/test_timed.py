"""The timed engine against SimPy: 28 readers and 4 writers that downgrade, on one FIFO lock.

Both run the same threads with the same times and record the same three events of every hold, and
both must arrive at the same holds at the same times; what differs is who does it. The SimPy side
is written three times: with SimPy's own `Container` of tokens (a reader takes one, a writer all),
as a hand-made lock with an event for every request, and tuned, with an event for those only who
have to wait. None of them knows of CPUs, which the timed engine goes on simulating. Both sides'
programs are generators that yield what they wait for; the protocols' way, coroutines that await
steps, costs 0.1 us more a step and is told beside it. Both sides are timed in CPU seconds, the best
of several rounds, since other programs only ever add to them.

    python -m pytest bench/test_timed.py -s
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Generator
from dataclasses import replace
from time import process_time
from typing import Any

import pytest
import simpy

from zaplock.engines.timed.engine import Sched, TimedEngine
from zaplock.model.machine import Machine
from zaplock.model.rwsem import (
    RWSEM_4_9,
    down_read,
    down_write,
    downgrade_write,
    up_read,
)
from zaplock.model.step import SleepStep, Step, Task, step

READERS, WRITERS = 28, 4
ROUNDS_READER, ROUNDS_WRITER = 2000, 200
FIFO = replace(RWSEM_4_9, name="FIFO", writer_spins="never")
ROUNDS = 7
LEAST_RATIO = {"its Container": 3.0, "a lock with events": 1.5, "a tuned lock": 1.4}
TOKENS = 1 << 20


def reader_times(number: int) -> tuple[int, int]:
    """Return hold and pause of a reader in nanoseconds.

    No two threads are in step, and the times are long, so that no two things fall on the same
    nanosecond: their order would be each engine's own affair.
    """
    return 10_000_019 + 79_193 * number, 90_000_049 + 130_073 * number


def writer_times(number: int) -> tuple[int, int, int]:
    """Return exclusive hold, shared hold and pause of a writer in nanoseconds."""
    return 8_030_003 + 10_007 * number, 50_090_009 + 30_011 * number, 900_010_033 + 170_003 * number


class SimpyLock:
    """A FIFO reader/writer lock; `ask` returns an event to wait for.

    A `tuned` one returns None where the lock was free.
    """

    def __init__(self, env: simpy.Environment, tuned: bool) -> None:
        self.env = env
        self.tuned = tuned
        self.writer = False
        self.readers = 0
        self.queue: deque[tuple[simpy.Event, bool]] = deque()

    def ask(self, write: bool) -> simpy.Event | None:
        if self.queue or self.writer or (write and self.readers):
            event = self.env.event()
            self.queue.append((event, write))
            return event
        self._grant(write)
        return None if self.tuned else self.env.event().succeed()

    def up_read(self) -> None:
        self.readers -= 1
        self._wake()

    def downgrade(self) -> None:
        self.writer = False
        self.readers = 1
        self._wake()

    def _grant(self, write: bool) -> None:
        if write:
            self.writer = True
        else:
            self.readers += 1

    def _wake(self) -> None:
        queue = self.queue
        while queue and not self.writer:
            event, write = queue[0]
            if write and self.readers:
                return
            queue.popleft()
            self._grant(write)
            event.succeed()


Log = list[tuple[int, str, bool, int]]


def simpy_reader(env: simpy.Environment, lock: SimpyLock, log: Log, number: int) -> Generator[Any]:
    hold_ns, pause_ns = reader_times(number)
    timeout, append, tid = env.timeout, log.append, number + 1
    yield timeout(number)
    for _ in range(ROUNDS_READER):
        append((env.now, "asked", False, tid))
        event = lock.ask(False)
        if event is not None:
            yield event
        append((env.now, "acquired", False, tid))
        yield timeout(hold_ns)
        append((env.now, "released", False, tid))
        lock.up_read()
        yield timeout(pause_ns)


def simpy_writer(env: simpy.Environment, lock: SimpyLock, log: Log, number: int) -> Generator[Any]:
    exclusive_ns, shared_ns, pause_ns = writer_times(number)
    timeout, append, tid = env.timeout, log.append, READERS + number + 1
    yield timeout(READERS + number)
    for _ in range(ROUNDS_WRITER):
        append((env.now, "asked", True, tid))
        event = lock.ask(True)
        if event is not None:
            yield event
        append((env.now, "acquired", True, tid))
        yield timeout(exclusive_ns)
        append((env.now, "acquired", False, tid))
        lock.downgrade()
        yield timeout(shared_ns)
        append((env.now, "released", False, tid))
        lock.up_read()
        yield timeout(pause_ns)


def token_reader(
    env: simpy.Environment, tokens: simpy.Container, log: Log, n: int
) -> Generator[Any]:
    hold_ns, pause_ns = reader_times(n)
    timeout, append, tid = env.timeout, log.append, n + 1
    yield timeout(n)
    for _ in range(ROUNDS_READER):
        append((env.now, "asked", False, tid))
        yield tokens.get(1)
        append((env.now, "acquired", False, tid))
        yield timeout(hold_ns)
        append((env.now, "released", False, tid))
        tokens.put(1)
        yield timeout(pause_ns)


def token_writer(
    env: simpy.Environment, tokens: simpy.Container, log: Log, n: int
) -> Generator[Any]:
    exclusive_ns, shared_ns, pause_ns = writer_times(n)
    timeout, append, tid = env.timeout, log.append, READERS + n + 1
    yield timeout(READERS + n)
    for _ in range(ROUNDS_WRITER):
        append((env.now, "asked", True, tid))
        yield tokens.get(TOKENS)
        append((env.now, "acquired", True, tid))
        yield timeout(exclusive_ns)
        append((env.now, "acquired", False, tid))
        tokens.put(TOKENS - 1)
        yield timeout(shared_ns)
        append((env.now, "released", False, tid))
        tokens.put(1)
        yield timeout(pause_ns)


def run_simpy(peer: str) -> tuple[float, Log]:
    """Return how long SimPy took, in seconds, and what happened."""
    env = simpy.Environment()
    log: Log = []
    lock: Any
    if peer == "its Container":
        lock, reads, writes = simpy.Container(env, TOKENS, TOKENS), token_reader, token_writer
    else:
        lock, reads, writes = SimpyLock(env, peer == "a tuned lock"), simpy_reader, simpy_writer
    for number in range(READERS):
        env.process(reads(env, lock, log, number))
    for number in range(WRITERS):
        env.process(writes(env, lock, log, number))
    start = process_time()
    env.run()
    return process_time() - start, log


@step
def work(machine: Machine, _task: Task, ns: int) -> None:
    machine.spent_ns += ns


LOCK = ("mmap_lock", 1)


Steps = Generator[Step[Any], Any, None]


def reader(number: int) -> Steps:
    hold_ns, pause_ns = reader_times(number)
    down, hold, up, pause = down_read(LOCK), work(hold_ns), up_read(LOCK), SleepStep(pause_ns)
    for _ in range(ROUNDS_READER):
        yield down
        yield hold
        yield up
        yield pause


def writer(number: int) -> Steps:
    exclusive_ns, shared_ns, pause_ns = writer_times(number)
    down, up, pause = down_write(LOCK), up_read(LOCK), SleepStep(pause_ns)
    exclusive, downgrade, shared = work(exclusive_ns), downgrade_write(LOCK), work(shared_ns)
    for _ in range(ROUNDS_WRITER):
        yield down
        yield exclusive
        yield downgrade
        yield shared
        yield up
        yield pause


async def awaiting_reader(number: int) -> None:
    hold_ns, pause_ns = reader_times(number)
    down, hold, up, pause = down_read(LOCK), work(hold_ns), up_read(LOCK), SleepStep(pause_ns)
    for _ in range(ROUNDS_READER):
        await down
        await hold
        await up
        await pause


async def awaiting_writer(number: int) -> None:
    exclusive_ns, shared_ns, pause_ns = writer_times(number)
    down, up, pause = down_write(LOCK), up_read(LOCK), SleepStep(pause_ns)
    exclusive, downgrade, shared = work(exclusive_ns), downgrade_write(LOCK), work(shared_ns)
    for _ in range(ROUNDS_WRITER):
        await down
        await exclusive
        await downgrade
        await shared
        await up
        await pause


def run_zaplock(*, awaiting: bool = False) -> tuple[float, TimedEngine]:
    """Return how long the timed engine took, in seconds, and itself."""
    reads, writes = (awaiting_reader, awaiting_writer) if awaiting else (reader, writer)
    threads = READERS + WRITERS
    engine = TimedEngine(Machine(), policy=FIFO, sched=Sched(cpus=threads))
    for number in range(threads):
        program = reads(number) if number < READERS else writes(number - READERS)
        engine.spawn(Task(number + 1, 1), program, at_ns=number)
    start = process_time()
    engine.run()
    return process_time() - start, engine


def same_results(log: Log, engine: TimedEngine) -> None:
    """Assert that both sides saw the same holds at the same times."""
    events = engine.events()
    names = ("asked", "acquired", "released")
    ours = list(
        zip(
            events["time_ns"].tolist(),
            (names[kind] for kind in events["kind"]),
            events["write"].astype(bool).tolist(),
            events["tid"].tolist(),
        )
    )
    assert len(ours) == len(log)
    assert sorted(ours) == sorted(log)


@pytest.mark.parametrize("peer", LEAST_RATIO)
def test_event_rate_is_above_that_of_simpy(peer: str, capsys: pytest.CaptureFixture[str]) -> None:
    simpy_s, zaplock_s, awaiting_s = [], [], []
    for _ in range(ROUNDS):
        gc.collect()
        took_s, log = run_simpy(peer)
        simpy_s.append(took_s)
        gc.collect()
        took_s, engine = run_zaplock(awaiting=True)
        awaiting_s.append(took_s)
        same_results(log, engine)
        gc.collect()
        took_s, engine = run_zaplock()
        zaplock_s.append(took_s)
        same_results(log, engine)
    simpy_rate, rate = len(log) / min(simpy_s), len(log) / min(zaplock_s)
    ratio, awaiting = rate / simpy_rate, min(simpy_s) / min(awaiting_s)
    with capsys.disabled():
        print(f"\n  {len(log):,} events; SimPy, {peer}: {simpy_rate:,.0f}/s, zaplock {rate:,.0f}/s")
        print(f"  ratio: {ratio:.2f}, awaiting {awaiting:.2f} (each side's best of {ROUNDS})")
    assert ratio >= LEAST_RATIO[peer], (simpy_s, zaplock_s)
