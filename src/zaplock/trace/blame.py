"""Blame: for every wait, whose hold made it long, and who stood in front in the queue.

At every instant of a wait the lock is in one of five states, and each has its culprit:

    held exclusively            the holder; if it sleeps on a VMA's lock, the task whose madvise
                                holds that (`vma_lock`): then the holder is a victim itself
    shared, a writer waits      the shared holder that will leave last: without the others the
                                writer would wait as long
    shared, a reader waits      nobody would keep it out but the queue: the writer in front of it
                                *and* the shared holder whom that writer waits for. Take either away
                                and it is in, so each explains half of the time: the convoy
    free, a reader next         that reader, unless this waiter may read beside it: a reader owns
                                the lock from the moment it is woken, and it has no cpu yet
    free                        nobody: it is a writer's turn, or this waiter's own, and it has no
                                cpu yet. Unexplained; `free_ns` says how much of it there is

"Free" is said only of a lock whose state is known: somebody may have taken it before the recording
began, and still have it. That is so no longer once a task is seen to have it exclusively; before,
a time in which nobody is seen to have it is *unseen*, and nobody is blamed for it.

The shares of a wait and its unexplained rest add up to the wait, to the nanosecond. Shares of one
task in equal operations (name and length) are summed. What the events don't show (a hold whose two
ends were lost) is unexplained, never guessed.

A lock's history is cut into stretches once for all waits that are asked about (`history`), and the
shares of a wait stay columns until somebody looks at them. So 500 threads that wait for each other
cost little more for each wait than 50 do (`bench/test_report.py`), although each wait has hundreds
to blame.

The half-and-half of the convoy is the Shapley value of two causes of which each is necessary.
`queue` says what "in front" means for each kernel.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.events import NO_OP
from zaplock.trace.history import NOBODY, LockHistory, Stretches, by_mm, history_of, stretches
from zaplock.trace.holds import Holds
from zaplock.trace.queue import MODERN, RwsemQueue
from zaplock.trace.sleeps import Sleeps
from zaplock.trace.vma_lock import SHORTEST_NS, Sleep, VmaLocks
from zaplock.trace.waits import Waits

Array = NDArray[Any]
Role = Literal["holder", "queued-writer"]

HOLDER, VMA, LET_IN, QUEUED = range(4)
"""Why somebody is to blame: it has the lock, a VMA's lock, the next turn, a place in front."""


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
class Shares:
    """Who is to blame for a wait, as columns, the greatest share first.

    `op` indexes the operations of `Calls` (`NO_OP`: none). The other columns are those of `Blame`;
    `why` is one of HOLDER, VMA, LET_IN and QUEUED.
    """

    why: Array
    tid: Array
    op: Array
    address: Array
    length: Array
    share_ns: Array
    row: Array

    def __len__(self) -> int:
        return len(self.why)


@dataclass(frozen=True)
class Explained:
    """A wait (the row of `Waits`) and who is to blame for it, the greatest share first.

    `free_ns` is the part of `unexplained_ns` in which nobody had the lock, `unseen_ns` the part in
    which it isn't known whether somebody had it, who took it before anything was recorded.
    """

    wait: int
    unexplained_ns: int
    free_ns: int
    unseen_ns: int
    shares: Shares
    _holds: Holds = field(repr=False)

    @cached_property
    def blame(self) -> tuple[Blame, ...]:
        """Everybody who is to blame."""
        return self.first(len(self.shares))

    def first(self, count: int) -> tuple[Blame, ...]:
        """Return those with the greatest shares, without a look at the others."""
        return tuple(self._blame(place) for place in range(min(count, len(self.shares))))

    @property
    def culprit(self) -> Blame | None:
        """Return whoever explains most of the wait, None if nobody explains any of it."""
        return next(iter(self.first(1)), None)

    @property
    def blamed_ns(self) -> int:
        """How much of the wait somebody explains."""
        return int(self.shares.share_ns.sum())

    def _blame(self, place: int) -> Blame:
        shares = self.shares
        why, tid, op = (int(column[place]) for column in (shares.why, shares.tid, shares.op))
        task = self._holds.tasks.get(tid)
        return Blame(
            tid,
            task.comm if task else "",
            self._holds.operations[op] if op != NO_OP else "",
            int(shares.address[place]),
            int(shares.length[place]),
            "queued-writer" if why == QUEUED else "holder",
            int(shares.share_ns[place]),
            int(shares.row[place]),
            vma=why == VMA,
            waited=why in (LET_IN, QUEUED),
        )


@dataclass(frozen=True, slots=True)
class Judge:
    """All that is needed to explain any wait of a recording."""

    holds: Holds
    waits: Waits
    queue: RwsemQueue
    vma_locks: VmaLocks | None
    locks: dict[int, LockHistory]
    tasks_sleeps: Sleeps | None
    begin_ns: Array
    """When each segment of the recording began: what a lock's state was then isn't known."""
    _stretches: dict[int, list[Stretches]]
    _sleeps: dict[int, tuple[Sleep, ...]]

    def explain_all(self, waits: Iterable[int]) -> list[Explained]:
        """Explain several waits (rows of `waits`), laying out the history around them once."""
        rows = [int(row) for row in waits]
        self._lay_out(np.array(rows, np.int64))
        return [self.explain(row) for row in rows]

    def explain(self, wait: int) -> Explained:
        """Explain one wait (a row of `waits`); the shares and the rest add up to its length."""
        shares, free_ns, unseen_ns = self._shares(wait)
        unexplained_ns = int(self.waits["wait_ns"][wait]) - int(shares.share_ns.sum())
        return Explained(wait, unexplained_ns, free_ns, unseen_ns, shares, self.holds)

    def _known_ns(self, lock: LockHistory, end_ns: int) -> int:
        """Return from when on, in the segment of a wait's end, everybody who has a lock is seen.

        That is when a task first has it exclusively: then nobody else does.
        """
        if not len(self.begin_ns):
            return 0
        segment = max(int(np.searchsorted(self.begin_ns, end_ns, side="right")) - 1, 0)
        begin_ns = int(self.begin_ns[segment])
        first = int(np.searchsorted(lock.exclusive_end, begin_ns, side="right"))
        if first == len(lock.exclusive_start):
            return end_ns
        return min(max(int(lock.exclusive_start[first]), begin_ns), end_ns)

    def sleeps(self, hold: int) -> tuple[Sleep, ...]:
        """Return the parts of a hold in which its task slept on a VMA's lock."""
        if hold not in self._sleeps:
            behind = self.vma_locks.behind(self.holds, hold) if self.vma_locks else ()
            self._sleeps[hold] = behind
        return self._sleeps[hold]

    def _lay_out(self, waits: Array) -> None:
        """Cut each lock's history around these waits, every part of it once.

        It is kept until others are asked for: a view looks again at some of those waits.
        """
        self._stretches.clear()
        mms = self.waits["mm"][waits]
        for mm in np.unique(mms).tolist():
            rows = waits[mms == mm]
            start = self.waits["start_ns"][rows]
            order = np.argsort(start, kind="stable")
            start, end = start[order], (start + self.waits["wait_ns"][rows])[order]
            reach = np.maximum.accumulate(end)
            cuts = np.flatnonzero(start[1:] > reach[:-1]) + 1
            firsts, lasts = np.append(0, cuts), np.append(cuts, len(rows)) - 1
            pairs = zip(start[firsts].tolist(), reach[lasts].tolist())
            lock = self.locks[mm]
            self._stretches[mm] = [stretches(lock, *pair) for pair in pairs if pair[0] < pair[1]]

    def _around(self, wait: int, start_ns: int, end_ns: int) -> Stretches:
        mm = int(self.waits["mm"][wait])
        ready = self._stretches.get(mm, [])
        place = bisect_right(ready, start_ns, key=lambda one: int(one.edges[0])) - 1
        if place >= 0 and ready[place].covers(start_ns, end_ns):
            return ready[place].between(start_ns, end_ns)
        return stretches(self.locks[mm], start_ns, end_ns)

    def _shares(self, wait: int) -> tuple[Shares, int, int]:
        """Sum up who is to blame for a wait; return also how long the lock was free and unseen."""
        start = int(self.waits["start_ns"][wait])
        end = start + int(self.waits["wait_ns"][wait])
        if start == end:
            return self._summed([]), 0, 0
        known_ns = self._known_ns(self.locks[int(self.waits["mm"][wait])], end)
        around = self._around(wait, start, end).cut_at(known_ns)
        begin, span = around.edges[:-1], np.diff(around.edges)
        exclusive, shared = around.exclusive, around.shared
        front, writes = self._front(wait, around.writer), bool(self.waits["exclusive"][wait])
        nobody = (exclusive == NOBODY) & (shared == NOBODY)
        free = nobody & (begin >= known_ns)
        reader = self._let_in(wait, around.coming, np.where(free, begin, end), end)
        read_held = (exclusive == NOBODY) & ((shared != NOBODY) | (reader != NOBODY))
        convoy = read_held & (front != NOBODY) & (not writes)
        blocked = read_held if writes else convoy
        half = np.where(convoy, span // 2, 0)
        parts = self._exclusive(*_sums(exclusive, span), start, end)
        parts.append(self._part(HOLDER, *_sums(np.where(blocked, shared, NOBODY), span - half)))
        parts.append(self._part(LET_IN, *_sums(np.where(blocked, reader, NOBODY), span - half)))
        parts.append(self._part(QUEUED, *_sums(np.where(convoy, front, NOBODY), half)))
        free_ns = int(span[free & ~(blocked & (reader != NOBODY))].sum())
        return self._summed(parts), free_ns, int(span[nobody & ~free].sum())

    def _let_in(self, wait: int, coming: Array, free_ns: Array, end: int) -> Array:
        """Return the waiting reader whose turn it is at each free instant, or NOBODY.

        Instants at which the lock is not free are given as `end`.
        """
        start = self.waits["start_ns"][coming]
        there = (free_ns < end) & (coming != NOBODY) & (coming != wait)
        there &= (start <= free_ns) & (start + self.waits["wait_ns"][coming] < end)
        return np.where(there & ~self.waits["exclusive"][coming], coming, NOBODY)

    def _front(self, wait: int, first: Array) -> Array:
        """Return the waiting writer in front of a waiter at each instant, or NOBODY."""
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

    def _exclusive(self, rows: Array, spans: Array, start: int, end: int) -> list[Shares]:
        """Blame the exclusive holders, or those whose VMA lock they slept on."""
        if self.vma_locks is None or not len(self.vma_locks.madvises):
            return [self._part(HOLDER, rows, spans)]
        parts, rest = [], spans.copy()
        calls = self.vma_locks.calls
        for place in np.flatnonzero(self.holds["hold_ns"][rows] >= SHORTEST_NS).tolist():
            row = int(rows[place])
            for sleep in self.sleeps(row):
                slept = min(sleep.end_ns, end) - max(sleep.begin_ns, start)
                if slept > 0:
                    call = np.array([sleep.call])
                    parts.append(
                        Shares(
                            np.array([VMA]),
                            calls.tid[call],
                            calls.op[call],
                            calls.address[call],
                            calls.length[call],
                            np.array([slept]),
                            np.array([row]),
                        )
                    )
                    rest[place] -= slept
        return [*parts, self._part(HOLDER, rows[rest > 0], rest[rest > 0])]

    def _part(self, why: int, rows: Array, spans: Array) -> Shares:
        table: Holds | Waits = self.holds if why == HOLDER else self.waits
        return Shares(
            np.full(len(rows), why),
            table["tid"][rows],
            table["op"][rows],
            table["address"][rows],
            table["length"][rows],
            spans,
            rows,
        )

    def _summed(self, parts: list[Shares]) -> Shares:
        """Sum the shares of each task in equal operations; each has the row of its longest part."""
        names = ("why", "tid", "op", "address", "length", "share_ns", "row")
        if not sum(map(len, parts)):
            return Shares(*(np.zeros(0, np.int64) for _ in names))
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts if len(part)])
            for name in names
        }
        who = columns["why"].astype(np.int64) << 48 | (columns["op"].astype(np.int64) + 1) << 32
        who |= columns["tid"].astype(np.int64) & 0xFFFFFFFF
        order = np.lexsort((-columns["share_ns"], columns["length"], who))
        columns, who = {name: column[order] for name, column in columns.items()}, who[order]
        new = np.ones(len(order), bool)
        new[1:] = (who[1:] != who[:-1]) | (columns["length"][1:] != columns["length"][:-1])
        groups = np.flatnonzero(new)
        total = np.add.reduceat(columns["share_ns"], groups)
        came = np.minimum.reduceat(order, groups)
        columns = {**{name: column[groups] for name, column in columns.items()}, "share_ns": total}
        by_share = np.lexsort((came, columns["tid"], columns["why"] == QUEUED, -total))
        return Shares(*(columns[name][by_share] for name in names))


def _sums(rows: Array, span: Array) -> tuple[Array, Array]:
    """Sum the spans of each row that is somebody; the rows rise."""
    chosen = (rows != NOBODY) & (span > 0)
    rows, span = rows[chosen], span[chosen]
    if not len(rows):
        return rows, span
    if bool((rows[1:] < rows[:-1]).any()):
        order = np.argsort(rows, kind="stable")
        rows, span = rows[order], span[order]
    groups = np.flatnonzero(np.append(True, rows[1:] != rows[:-1]))
    return rows[groups], np.add.reduceat(span, groups)


def judge(
    holds: Holds,
    waits: Waits,
    queue: RwsemQueue = MODERN,
    vma_locks: VmaLocks | None = None,
    *,
    sleeps: Sleeps | None = None,
    begin_ns: Array | None = None,
) -> Judge:
    """Lay out the history of every lock, so that its waits can be explained one by one.

    `begin_ns` is when each segment began; without it every lock was free at first.
    """
    locks = {}
    hold_rows, wait_rows = by_mm(holds["mm"]), by_mm(waits["mm"])
    nothing = np.zeros(0, np.int64)
    for mm, rows in wait_rows.items():
        locks[mm] = history_of(holds, waits, hold_rows.get(mm, nothing), rows)
    begins = np.zeros(0, np.int64) if begin_ns is None else begin_ns
    return Judge(holds, waits, queue, vma_locks, locks, sleeps, begins, {}, {})
