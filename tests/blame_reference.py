"""Blame worked out wait by wait, share by share: slow and plain, to compare the fast one with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from zaplock.trace.blame import Blame, Judge, Role
from zaplock.trace.calls import NO_CALL
from zaplock.trace.history import NOBODY, LockHistory
from zaplock.trace.holds import Holds
from zaplock.trace.waits import Waits

Array = np.ndarray[Any, Any]
Key = tuple[str, int, str, int]
Part = tuple[Key, int, int, int]
NOBODY_HOLDS: Key = ("free", NOBODY, "", 0)


@dataclass(frozen=True)
class PlainlyExplained:
    """What `Explained` tells."""

    wait: int
    blame: tuple[Blame, ...]
    unexplained_ns: int
    free_ns: int


@dataclass(frozen=True)
class PlainJudge:
    """Explains what a `Judge` knows, by itself."""

    judge: Judge

    def __getattr__(self, name: str) -> Any:
        return getattr(self.judge, name)

    def explain(self, wait: int) -> PlainlyExplained:
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
        return PlainlyExplained(wait, tuple(found), unexplained_ns, free_ns)

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
        edges, known_ns = lock.edges(start, end), self._known_since(wait, end)
        if start < known_ns < end:
            edges = np.union1d(edges, [known_ns])
        begin, span = edges[:-1], np.diff(edges)
        exclusive, shared = lock.exclusive_at(begin), lock.shared_at(begin)
        front, writes = self._front(lock, wait, begin), bool(self.waits["exclusive"][wait])
        free = (exclusive == NOBODY) & (shared == NOBODY) & (begin >= known_ns)
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

    def _known_since(self, wait: int, end_ns: int) -> int:
        """Walk through the holds: the first exclusive one after the segment's beginning."""
        begins = [int(one) for one in self.begin_ns]
        if not begins:
            return 0
        begin_ns = max((one for one in begins if one <= end_ns), default=begins[0])
        holds = self.holds
        for row in np.flatnonzero(holds["mm"] == self.waits["mm"][wait]).tolist():
            start, length = int(holds["start_ns"][row]), int(holds["hold_ns"][row])
            if holds["exclusive"][row] and length and start + length > begin_ns:
                return min(max(start, begin_ns), end_ns)
        return end_ns

    def _let_in(self, lock: LockHistory, wait: int, free_ns: Array, end: int) -> Array:
        """Return the waiting reader whose turn it is at each free instant, or NOBODY.

        Instants at which the lock is not free are given as `end`.
        """
        coming = lock.next_in_at(free_ns)
        start = self.waits["start_ns"][coming]
        there = (free_ns < end) & (coming != NOBODY) & (coming != wait)
        there &= (start <= free_ns) & (start + self.waits["wait_ns"][coming] < end)
        return np.where(there & ~self.waits["exclusive"][coming], coming, NOBODY)

    def _front(self, lock: LockHistory, wait: int, time_ns: Array) -> Array:
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
