"""Recordings made up for tests: a database that frees memory, and a crowd of any size."""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from zaplock.trace.events import EVENT, EventKind, Events, RecordedTask
from zaplock.trace.handwritten import Log

MM = 0xFFFF888000001000
MS = 1_000_000
GIB = 1 << 30


def database() -> Events:
    """An 8 GiB munmap, an mmap that queues behind it, and a foreign ps that queues behind that."""
    log = Log()
    log.task(100, "db", 100)
    log.task(101, "db-free", 100, "db")
    log.task(102, "db-alloc", 100, "db")
    log.task(200, "ps", 200)
    log.owner(MM, 100)
    log.begin(0, tid=101, op="munmap", address=0x7F00_0000_0000, length=8 * GIB)
    log.asked(1_000, tid=101, mm=MM, write=True)
    log.acquired(1_100, tid=101, mm=MM, write=True)
    log.downgraded(12_100, tid=101, mm=MM)
    log.begin(1 * MS, tid=102, op="mmap", length=4096, cpu=1)
    log.asked(1 * MS, tid=102, mm=MM, write=True, cpu=1)
    log.asked(10 * MS, tid=200, mm=MM, write=False, cpu=1)
    log.released(186 * MS, tid=101, mm=MM, write=False)
    log.end(186 * MS + 500, tid=101, op="munmap")
    log.acquired(186 * MS + 4_000, tid=102, mm=MM, write=True, cpu=1)
    log.released(186 * MS + 9_000, tid=102, mm=MM, write=True, cpu=1)
    log.end(186 * MS + 9_500, tid=102, op="mmap", cpu=1)
    log.acquired(186 * MS + 12_000, tid=200, mm=MM, write=False, cpu=1)
    log.released(186 * MS + 14_000, tid=200, mm=MM, write=False, cpu=1)
    return log.events()


OPERATIONS = ("munmap", "mmap", "mprotect")
MUNMAP, MMAP, MPROTECT, FAULT = 0, 1, 2, -1


@dataclass
class _Crowd:
    """Tasks on a few first-in-first-out locks; every step writes the events that Linux would."""

    rng: random.Random
    rows: list[tuple[int, ...]] = field(default_factory=list)
    agenda: list[tuple[int, int, str, int]] = field(default_factory=list)
    queues: dict[int, deque[tuple[int, bool]]] = field(default_factory=dict)
    holders: dict[int, dict[int, bool]] = field(default_factory=dict)
    doing: dict[int, int] = field(default_factory=dict)
    serial: int = 0

    def later(self, at: int, what: str, tid: int) -> None:
        self.serial += 1
        heapq.heappush(self.agenda, (at, self.serial, what, tid))

    def write(
        self, now: int, kind: EventKind, tid: int, write: bool = False, length: int = 0
    ) -> None:
        lock = kind <= EventKind.RELEASED
        op = -1 if lock else self.doing[tid]
        mm = MM + 64 * (tid % 3) if lock else 0
        success = int(kind == EventKind.ACQUIRED)
        at = 0x7F00_0000_0000 if length else 0
        self.rows.append((now, kind, int(write), success, tid % 2, tid, op, mm, at, length, 0, 0))

    def begin(self, now: int, tid: int) -> None:
        op = self.rng.choice((MUNMAP, MMAP, MPROTECT, FAULT, FAULT, FAULT))
        self.doing[tid] = op
        if op != FAULT:
            self.write(now, EventKind.OP_BEGIN, tid, length=4096 << self.rng.randrange(18))
        write = op != FAULT
        self.write(now + 50, EventKind.ASKED, tid, write)
        self.queues.setdefault(tid % 3, deque()).append((tid, write))
        self.grant(now + 100, tid % 3)

    def grant(self, now: int, lock: int) -> None:
        queue, holders = self.queues[lock], self.holders.setdefault(lock, {})
        while queue:
            tid, write = queue[0]
            if any(holders.values()) or (write and holders):
                return
            queue.popleft()
            holders[tid] = write
            self.write(now, EventKind.ACQUIRED, tid, write)
            downgrades = self.doing[tid] == MUNMAP
            held = int(self.rng.paretovariate(1.1) * 500)
            self.later(now + min(held, 20 * MS), "downgrade" if downgrades else "release", tid)

    def step(self, now: int, what: str, tid: int) -> None:
        if what == "begin":
            return self.begin(now, tid)
        lock = tid % 3
        if what == "downgrade":
            self.holders[lock][tid] = False
            self.write(now, EventKind.ACQUIRED, tid)
            self.grant(now, lock)
            return self.later(
                now + min(int(self.rng.paretovariate(1.0) * 2000), 50 * MS), "release", tid
            )
        self.write(now, EventKind.RELEASED, tid, self.holders[lock].pop(tid))
        if self.doing[tid] != FAULT:
            self.write(now + 10, EventKind.OP_END, tid)
        self.grant(now + 20, lock)
        return self.later(now + 20 + int(self.rng.expovariate(1 / 40_000)), "begin", tid)


def crowd(count: int, *, seed: int = 1, tasks: int = 24) -> Events:
    """Make at least `count` events of three processes in a crowd (3 s a million events)."""
    world = _Crowd(random.Random(seed))
    for tid in range(1000, 1000 + tasks):
        world.later(tid, "begin", tid)
    while len(world.rows) < count:
        now, _, what, tid = heapq.heappop(world.agenda)
        world.step(now, what, tid)
    rows = np.array(world.rows, dtype=EVENT)
    rows = rows[np.argsort(rows["time_ns"], kind="stable")]
    columns = {name: np.ascontiguousarray(rows[name]) for name in EVENT.names or ()}
    # The first thread of each lock is its process's leader.
    leader = {tid % 3: tid for tid in (1002, 1001, 1000)}
    people = {
        tid: RecordedTask(tid, f"worker-{tid - 1000}", leader[tid % 3], f"service-{tid % 3}")
        for tid in range(1000, 1000 + tasks)
    }
    owners = {MM + 64 * lock: leader[lock] for lock in range(3)}
    return Events(columns, OPERATIONS, people, owners)


def again(events: Events, times: int) -> Events:
    """Repeat a recording one after the other, for sizes that take too long to make."""
    span = int(events["time_ns"][-1]) + 1_000_000
    columns = {}
    for name in EVENT.names or ():
        columns[name] = np.tile(events[name], times)
    columns["time_ns"] += np.repeat(np.arange(times, dtype=np.int64) * span, len(events))
    return Events(columns, events.operations, events.tasks, events.mms)


def queue_of_writers(waiters: int, *, rounds: int = 10, hold_ns: int = 10_000) -> Events:
    """Make threads that do nothing but map a page, one after the other, again and again.

    Each has asked again before its turn comes, so each waits behind all the others.
    """
    count = waiters * rounds
    turn = np.arange(count, dtype=np.int64)
    got = (turn + 1) * hold_ns
    ended = got + hold_ns - 700  # whose turn it is has no cpu yet for 700 ns
    asked = np.where(turn < waiters, turn, ended[turn - waiters] + 300)
    steps = (
        (asked - 1, EventKind.OP_BEGIN),
        (asked, EventKind.ASKED),
        (got, EventKind.ACQUIRED),
        (ended, EventKind.RELEASED),
        (ended + 1, EventKind.OP_END),
    )
    rows = np.zeros(count * len(steps), EVENT)
    for place, (time_ns, kind) in enumerate(steps):
        own = rows[place * count : (place + 1) * count]
        own["time_ns"], own["kind"], own["tid"] = time_ns, kind, 1000 + turn % waiters
        own["mm"], own["write"], own["success"], own["length"] = MM, 1, 1, 4096
        own["op"] = 0 if kind in (EventKind.OP_BEGIN, EventKind.OP_END) else -1
    rows = rows[np.argsort(rows["time_ns"], kind="stable")]
    columns = {name: np.ascontiguousarray(rows[name]) for name in EVENT.names or ()}
    tids = range(1000, 1000 + waiters)
    people = {tid: RecordedTask(tid, f"worker-{tid - 1000}", 1000, "service") for tid in tids}
    return Events(columns, ("mmap",), people, {MM: 1000})
