"""Blame: for every wait, whose hold made it long, and who stood in front in the queue.

At every instant of a wait the lock is in one of five states, and each has its culprit:

    held exclusively            the holder; if he sleeps on a VMA's lock, the task whose madvise
                                holds that (`vma_lock`): then the holder is a victim himself
    shared, a writer waits      the shared holder that will leave last: without the others the
                                writer would wait as long
    shared, a reader waits      nobody would keep him out but the queue: the writer in front of him
                                *and* the shared holder whom that writer waits for. Take either away
                                and he is in, so each explains half of the time: the convoy
    free, a reader next         that reader, unless this waiter may read beside him: a reader owns
                                the lock from the moment he is woken, and he has no cpu yet
    free                        nobody: it is a writer's turn, or this waiter's own, and he has no
                                cpu yet. Unexplained; `free_ns` says how much of it there is

The shares of a wait and its unexplained rest add up to the wait, to the nanosecond. Shares of one
task in equal operations (name and length) are summed. What the events don't show (a hold whose two
ends were lost) is unexplained, never guessed.

The half-and-half of the convoy is the Shapley value of two causes of which each is necessary.
`queue` says what "in front" means for each kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.calls import NO_CALL
from zaplock.trace.holds import Holds
from zaplock.trace.queue import MODERN, RwsemQueue
from zaplock.trace.sleeps import Sleeps
from zaplock.trace.vma_lock import Sleep, VmaLocks
from zaplock.trace.waits import WaitOutcome, Waits

Array = NDArray[Any]
Role = Literal["holder", "queued-writer"]

Key = tuple[str, int, str, int]
"""What shares are summed by: role, tid, operation, length."""

Part = tuple[Key, int, int, int]
"""A share: its key, the row it comes from, the address of the operation, nanoseconds."""

NOBODY = -1
NOBODY_HOLDS: Key = ("free", NOBODY, "", 0)


@dataclass(frozen=True, slots=True)
class Blame:
    """One task's part in a wait: in which operation on which range, and for how long.

    `operation` is "" where no system call was recorded. `row` is the row of the hold that blocked
    longest, or with `waited` of its wait: a queued writer's, or that of a reader who was let in and
    had no cpu yet. `vma` says that it held a VMA's lock and not the mmap_lock, which the task of
    the hold `row` had.
    """

    tid: int
    comm: str
    operation: str
    address: int
    length: int
    role: Role
    share_ns: int
    row: int
    vma: bool = False
    waited: bool = False


@dataclass(frozen=True, slots=True)
class Explained:
    """A wait (the row of `Waits`) and who is to blame for it, the greatest share first.

    `free_ns` is the part of `unexplained_ns` in which nobody had the lock.
    """

    wait: int
    blame: tuple[Blame, ...]
    unexplained_ns: int
    free_ns: int

    @property
    def culprit(self) -> Blame | None:
        """Return whoever explains most of the wait, None if nobody explains any of it."""
        return self.blame[0] if self.blame else None


@dataclass(frozen=True, slots=True)
class _Lock:
    """The history of one mmap_lock, laid out so that an instant is answered by binary search."""

    exclusive: Array
    exclusive_start: Array
    exclusive_end: Array
    shared: Array
    shared_start: Array
    shared_ends: Array
    shared_last: Array
    shared_last_end: Array
    writers: Array
    writer_start: Array
    writer_ends: Array
    writer_reach: Array
    entered: Array
    entered_start: Array
    entered_end: Array

    def edges(self, start: int, end: int) -> Array:
        """Return the instants in [start, end] between which nothing changes, both ends included."""
        parts = [np.array([start, end], np.int64)]
        for column in (
            self.exclusive_start,
            self.exclusive_end,
            self.shared_start,
            self.shared_ends,
            self.writer_start,
            self.writer_ends,
            self.entered_start,
            self.entered_end,
        ):
            first, last = np.searchsorted(column, [start, end])
            parts.append(column[first:last])
        edges = np.unique(np.concatenate(parts))
        return edges[np.searchsorted(edges, start) :]

    def exclusive_at(self, time_ns: Array) -> Array:
        """Return the exclusive hold at each instant, or NOBODY."""
        return _active(self.exclusive, self.exclusive_start, self.exclusive_end, time_ns)

    def shared_at(self, time_ns: Array) -> Array:
        """Return, of the shared holds at each instant, the one that ends last, or NOBODY."""
        return _active(self.shared_last, self.shared_start, self.shared_last_end, time_ns)

    def first_writer_at(self, time_ns: Array) -> Array:
        """Return, of the writers that wait at each instant, the one that asked first, or NOBODY."""
        if not len(self.writers):
            return np.full(len(time_ns), NOBODY)
        place = np.searchsorted(self.writer_reach, time_ns, side="right")
        found = np.minimum(place, len(self.writers) - 1)
        there = (place < len(self.writers)) & (self.writer_start[found] <= time_ns)
        return np.where(there, self.writers[found], NOBODY)

    def next_in_at(self, time_ns: Array) -> Array:
        """Return the wait that ends next after each instant by having the lock, or NOBODY."""
        if not len(self.entered):
            return np.full(len(time_ns), NOBODY)
        place = np.searchsorted(self.entered_end, time_ns, side="right")
        found = np.minimum(place, len(self.entered) - 1)
        return np.where(place < len(self.entered), self.entered[found], NOBODY)


def _active(rows: Array, start: Array, end: Array, time_ns: Array) -> Array:
    if not len(rows):
        return np.full(len(time_ns), NOBODY)
    place = np.searchsorted(start, time_ns, side="right") - 1
    found = np.maximum(place, 0)
    return np.where((place >= 0) & (end[found] > time_ns), rows[found], NOBODY)


def _lock(holds: Holds, waits: Waits, hold_rows: Array, wait_rows: Array) -> _Lock:
    start, end = holds["start_ns"], holds.end_ns
    longer = hold_rows[holds["hold_ns"][hold_rows] > 0]
    exclusive = longer[holds["exclusive"][longer]]
    shared = longer[~holds["exclusive"][longer]]
    reach = np.maximum.accumulate(end[shared]) if len(shared) else end[shared]
    record = np.where(end[shared] == reach, np.arange(len(shared)), 0)
    last = np.maximum.accumulate(record) if len(record) else record
    writers = wait_rows[waits["exclusive"][wait_rows] & (waits["wait_ns"][wait_rows] > 0)]
    wait_end = waits.end_ns
    entered = wait_rows[waits["outcome"][wait_rows] == WaitOutcome.ACQUIRED]
    entered = entered[np.argsort(wait_end[entered], kind="stable")]
    return _Lock(
        exclusive,
        start[exclusive],
        end[exclusive],
        shared,
        start[shared],
        np.sort(end[shared]),
        shared[last],
        reach,
        writers,
        waits["start_ns"][writers],
        np.sort(wait_end[writers]),
        np.maximum.accumulate(wait_end[writers]) if len(writers) else wait_end[writers],
        entered,
        np.sort(waits["start_ns"][entered]),
        wait_end[entered],
    )


@dataclass(frozen=True, slots=True)
class Judge:
    """All that is needed to explain any wait of a recording."""

    holds: Holds
    waits: Waits
    queue: RwsemQueue
    vma_locks: VmaLocks | None
    locks: dict[int, _Lock]
    tasks_sleeps: Sleeps | None
    known_ns: int
    """Before this instant only waits are known (of a watch), not who held the lock."""
    _sleeps: dict[int, tuple[Sleep, ...]]

    def explain(self, wait: int) -> Explained:
        """Explain one wait (a row of `waits`); the shares and the rest add up to its length."""
        shares: dict[Key, list[int]] = {}
        total = free_ns = 0
        for key, row, address, share_ns in self._shares(wait):
            if key is NOBODY_HOLDS:
                free_ns = share_ns
                continue
            entry = shares.setdefault(key, [0, 0, row, address])
            entry[0] += share_ns
            total += share_ns
            if share_ns > entry[1]:
                entry[1:] = [share_ns, row, address]
        found = [self._blame(key, entry) for key, entry in shares.items()]
        found.sort(key=lambda blame: (-blame.share_ns, blame.role, blame.tid))
        unexplained_ns = int(self.waits["wait_ns"][wait]) - total
        return Explained(wait, tuple(found), unexplained_ns, free_ns)

    def sleeps(self, hold: int) -> tuple[Sleep, ...]:
        """Return the parts of a hold in which its task slept on a VMA's lock."""
        if hold not in self._sleeps:
            behind = self.vma_locks.behind(self.holds, hold) if self.vma_locks else ()
            self._sleeps[hold] = behind
        return self._sleeps[hold]

    def _blame(self, key: Key, entry: list[int]) -> Blame:
        kind, tid, operation, length = key
        task = self.holds.tasks.get(tid)
        role: Role = "queued-writer" if kind == "queued-writer" else "holder"
        comm = task.comm if task else ""
        share_ns, _, row, address = entry
        return Blame(
            tid,
            comm,
            operation,
            address,
            length,
            role,
            share_ns,
            row,
            vma=kind == "vma",
            waited=kind in ("queued-writer", "let in"),
        )

    def _shares(self, wait: int) -> Iterator[Part]:
        """Yield (key, row, address, share) of each stretch of the wait that somebody explains."""
        start = int(self.waits["start_ns"][wait])
        end = start + int(self.waits["wait_ns"][wait])
        lock = self.locks[int(self.waits["mm"][wait])]
        edges = lock.edges(start, end)
        if start < self.known_ns < end:
            edges = np.union1d(edges, [self.known_ns])
        begin, span = edges[:-1], np.diff(edges)
        exclusive, shared = lock.exclusive_at(begin), lock.shared_at(begin)
        front, writes = self._front(lock, wait, begin), bool(self.waits["exclusive"][wait])
        free = (exclusive == NOBODY) & (shared == NOBODY) & (begin >= self.known_ns)
        reader = self._let_in(lock, wait, np.where(free, begin, end), end)
        read_held = (exclusive == NOBODY) & ((shared != NOBODY) | (reader != NOBODY))
        convoy = read_held & (front != NOBODY) & (not writes)
        blocked = read_held if writes else convoy
        half = np.where(convoy, span // 2, 0)
        for row, share_ns in _sums(exclusive, span):
            yield from self._exclusive(row, wait, start, end, share_ns)
        for row, share_ns in _sums(np.where(blocked, shared, NOBODY), span - half):
            yield self._entry("holder", self.holds, row, share_ns)
        for row, share_ns in _sums(np.where(blocked, reader, NOBODY), span - half):
            yield self._entry("let in", self.waits, row, share_ns)
        for row, share_ns in _sums(np.where(convoy, front, NOBODY), half):
            yield self._entry("queued-writer", self.waits, row, share_ns)
        yield NOBODY_HOLDS, NOBODY, 0, int(span[free & ~(blocked & (reader != NOBODY))].sum())

    def _let_in(self, lock: _Lock, wait: int, free_ns: Array, end: int) -> Array:
        """Return the waiting reader whose turn it is at each free instant, or NOBODY.

        Instants at which the lock is not free are given as `end`.
        """
        coming = lock.next_in_at(free_ns)
        start = self.waits["start_ns"][coming]
        there = (free_ns < end) & (coming != NOBODY) & (coming != wait)
        there &= (start <= free_ns) & (start + self.waits["wait_ns"][coming] < end)
        return np.where(there & ~self.waits["exclusive"][coming], coming, NOBODY)

    def _front(self, lock: _Lock, wait: int, time_ns: Array) -> Array:
        """Return the waiting writer in front of a waiter at each instant, or NOBODY."""
        first = lock.first_writer_at(time_ns)
        overtaken = self.queue.readers_spin and not self.waits["exclusive"][wait]
        before = (first < wait) | (self.waits["start_ns"][first] < self._queued_ns(wait))
        return np.where((before | overtaken) & (first != wait), first, NOBODY)

    def _queued_ns(self, wait: int) -> int:
        """Return until when a waiter may have joined the queue: some time after it asked."""
        start = int(self.waits["start_ns"][wait])
        if self.tasks_sleeps is None:
            return start
        tid, span = int(self.waits["tid"][wait]), int(self.waits["wait_ns"][wait])
        return self.tasks_sleeps.queued_ns(tid, start, start + span)

    def _exclusive(
        self, row: int, wait: int, start: int, end: int, share_ns: int
    ) -> Iterator[Part]:
        rest = share_ns
        for sleep in self.sleeps(row):
            slept = min(sleep.end_ns, end) - max(sleep.begin_ns, start)
            if slept > 0 and self.vma_locks is not None:
                calls = self.vma_locks.calls
                name = calls.operations[calls.op[sleep.call]]
                key = ("vma", int(calls.tid[sleep.call]), name, int(calls.length[sleep.call]))
                yield key, row, int(calls.address[sleep.call]), slept
                rest -= slept
        if rest > 0:
            yield self._entry("holder", self.holds, row, rest)

    def _entry(self, kind: str, table: Holds | Waits, row: int, share_ns: int) -> Part:
        inside = int(table["call"][row]) != NO_CALL
        operation = table.operations[int(table["op"][row])] if inside else ""
        key = (kind, int(table["tid"][row]), operation, int(table["length"][row]))
        return key, row, int(table["address"][row]), share_ns


def _sums(rows: Array, span: Array) -> Iterable[tuple[int, int]]:
    """Sum the spans of each row that is somebody."""
    chosen = (rows != NOBODY) & (span > 0)
    distinct, place = np.unique(rows[chosen], return_inverse=True)
    sums = np.zeros(len(distinct), np.int64)
    np.add.at(sums, place, span[chosen])
    return zip(distinct.tolist(), sums.tolist())


def judge(
    holds: Holds,
    waits: Waits,
    queue: RwsemQueue = MODERN,
    vma_locks: VmaLocks | None = None,
    *,
    sleeps: Sleeps | None = None,
    known_ns: int = 0,
) -> Judge:
    """Lay out the history of every lock, so that its waits can be explained one by one."""
    locks = {}
    hold_rows, wait_rows = _by_mm(holds["mm"]), _by_mm(waits["mm"])
    nothing = np.zeros(0, np.int64)
    for mm, rows in wait_rows.items():
        locks[mm] = _lock(holds, waits, hold_rows.get(mm, nothing), rows)
    return Judge(holds, waits, queue, vma_locks, locks, sleeps, known_ns, {})


def _by_mm(mm: Array) -> dict[int, Array]:
    distinct = np.unique(mm)
    order = np.argsort(np.searchsorted(distinct, mm).astype(np.int32), kind="stable")
    cuts = np.searchsorted(mm[order], distinct[1:])
    return {int(key): rows for key, rows in zip(distinct, np.split(order, cuts))}
