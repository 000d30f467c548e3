"""Who is to blame for a wait: stories, a brute-force reference, and a lock that knows the truth."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from drawn import times
from hypothesis import given
from hypothesis import strategies as st

from zaplock.trace.analysis import analyse
from zaplock.trace.blame import Explained, judge
from zaplock.trace.calls import NO_CALL
from zaplock.trace.events import EventKind, Events
from zaplock.trace.handwritten import Log
from zaplock.trace.holds import HOLD, Holds
from zaplock.trace.queue import FIFO, MODERN, SPINNING_READERS, queue_of
from zaplock.trace.waits import WAIT, Waits

MM = 0xFFFF888000001000
MS = 1_000_000
GIB = 1 << 30
Told = list[tuple[int, str, str, int, str, int]]


def told(found: Explained) -> Told:
    return [
        (blame.tid, blame.comm, blame.operation, blame.length, blame.role, blame.share_ns)
        for blame in found.blame
    ]


def wait_of(events: Events, tid: int, kernel: str = "6.18") -> Explained:
    """Explain the longest wait of a task, and check that the shares add up."""
    analysis = analyse(events, kernel)
    rows = np.flatnonzero(analysis.waits["tid"] == tid)
    row = int(rows[np.argmax(analysis.waits["wait_ns"][rows])])
    found = analysis.explain(row)
    shares = sum(blame.share_ns for blame in found.blame)
    assert shares + found.unexplained_ns == analysis.waits["wait_ns"][row]
    return found


def munmap(log: Log, tid: int, start: int, downgrade: int, end: int) -> None:
    """An 8 GiB munmap that takes the lock at `start` and gives it back at `end`."""
    log.begin(start - 2, tid=tid, op="munmap", address=0x7000_0000_0000, length=8 * GIB)
    log.asked(start - 1, tid=tid, mm=MM, write=True)
    log.acquired(start, tid=tid, mm=MM, write=True)
    log.downgraded(downgrade, tid=tid, mm=MM)
    log.released(end, tid=tid, mm=MM, write=False)
    log.end(end + 1, tid=tid, op="munmap")


def test_a_writer_waits_for_the_whole_zap() -> None:
    log = Log()
    log.task(1, "db-free", 1)
    munmap(log, 1, 100, 200, 100 * MS)
    log.begin(1 * MS, tid=2, op="mmap", length=4096)
    log.asked(1 * MS, tid=2, mm=MM, write=True)
    log.acquired(100 * MS + 500, tid=2, mm=MM, write=True)
    found = wait_of(log.events(), 2)
    assert told(found) == [(1, "db-free", "munmap", 8 * GIB, "holder", 99 * MS)]
    assert found.unexplained_ns == 500


def test_the_convoy_blames_the_zap_and_the_writer_in_front_by_halves() -> None:
    """Ps could read beside the zap, were it not for the mmap that is queued in front of it."""
    log = Log()
    munmap(log, 1, 100, 200, 100 * MS)
    log.begin(1 * MS, tid=2, op="mmap", length=4096)
    log.asked(1 * MS, tid=2, mm=MM, write=True)
    log.asked(10 * MS, tid=3, mm=MM, write=False)
    log.acquired(100 * MS, tid=2, mm=MM, write=True)
    log.released(101 * MS, tid=2, mm=MM, write=True)
    log.acquired(101 * MS, tid=3, mm=MM, write=False)
    found = wait_of(log.events(), 3)
    assert told(found) == [
        (1, "", "munmap", 8 * GIB, "holder", 45 * MS),
        (2, "", "mmap", 4096, "queued-writer", 45 * MS),
        (2, "", "mmap", 4096, "holder", 1 * MS),
    ]
    assert found.culprit is not None
    assert found.culprit.operation == "munmap"


def test_a_reader_that_came_before_the_writer_has_nobody_in_front() -> None:
    """No writer asked before it: whatever kept it asleep beside a reader is not in the events."""
    log = Log()
    munmap(log, 1, 100, 5 * MS, 50 * MS)
    log.asked(1 * MS, tid=3, mm=MM, write=False)
    log.asked(2 * MS, tid=2, mm=MM, write=True)
    log.acquired(6 * MS, tid=3, mm=MM, write=False)
    log.released(7 * MS, tid=3, mm=MM, write=False)
    log.acquired(50 * MS, tid=2, mm=MM, write=True)
    found = wait_of(log.events(), 3)
    assert told(found) == [(1, "", "munmap", 8 * GIB, "holder", 4 * MS)]
    assert found.unexplained_ns == 1 * MS
    # A reader of 5.3 to 5.10 may have spun outside the queue while the writer passed it.
    spun = wait_of(log.events(), 3, "5.10.0")
    assert [blame.role for blame in spun.blame] == ["holder", "queued-writer"]
    assert spun.unexplained_ns == 0


def test_a_reader_that_was_preempted_before_it_queued_is_behind_the_writer() -> None:
    """It asked first, but a writer came while it had no cpu: then the queue keeps it out."""

    def story(*, preempted: bool) -> Explained:
        log = Log()
        munmap(log, 1, 100, 5 * MS, 50 * MS)
        log.asked(1 * MS, tid=3, mm=MM, write=False)
        if preempted:
            log.add(1 * MS + 100, EventKind.SCHED_OUT, 3, detail=0)
        log.asked(2 * MS, tid=2, mm=MM, write=True)
        if preempted:
            log.add(3 * MS, EventKind.SCHED_IN, 3)
        log.add(3 * MS + 100, EventKind.SCHED_OUT, 3, detail=2)
        log.acquired(50 * MS + 5, tid=2, mm=MM, write=True)
        log.released(50 * MS + 6, tid=2, mm=MM, write=True)
        log.acquired(50 * MS + 7, tid=3, mm=MM, write=False)
        log.released(50 * MS + 8, tid=3, mm=MM, write=False)
        return wait_of(log.events(), 3)

    behind = story(preempted=True)
    assert ("queued-writer", 2) in {(blame.role, blame.tid) for blame in behind.blame}
    assert behind.unexplained_ns < 10
    assert story(preempted=False).unexplained_ns > 40 * MS


def test_the_last_of_several_readers_is_the_one_that_counts() -> None:
    log = Log()
    for tid, end in ((1, 20 * MS), (2, 90 * MS), (3, 40 * MS)):
        log.acquired(tid, tid=tid, mm=MM, write=False)
        log.released(end, tid=tid, mm=MM, write=False)
    log.asked(10 * MS, tid=9, mm=MM, write=True)
    log.acquired(90 * MS, tid=9, mm=MM, write=True)
    assert told(wait_of(log.events(), 9)) == [(2, "", "", 0, "holder", 80 * MS)]


def test_the_same_operation_again_and_again_is_summed() -> None:
    """The releaser of a chunked munmap gets the lock again before the woken waiter does."""
    log = Log()
    for chunk in range(4):
        munmap(log, 1, chunk * MS + 100, chunk * MS + 200, (chunk + 1) * MS)
    log.asked(500, tid=2, mm=MM, write=True)
    log.acquired(4 * MS, tid=2, mm=MM, write=True)
    found = wait_of(log.events(), 2)
    assert told(found) == [(1, "", "munmap", 8 * GIB, "holder", 4 * MS - 500 - 300)]
    assert found.unexplained_ns == found.free_ns == 300  # between two chunks


def test_who_was_let_in_and_has_no_cpu_yet_is_in_the_way_already() -> None:
    """A reader owns the lock from the moment he is woken: the writer behind him waits for him."""
    log = Log()
    log.acquired(10, tid=1, mm=MM, write=True)
    log.asked(1 * MS, tid=2, mm=MM, write=False)
    log.asked(2 * MS, tid=3, mm=MM, write=True)
    log.released(5 * MS, tid=1, mm=MM, write=True)
    log.acquired(9 * MS, tid=2, mm=MM, write=False)
    log.released(10 * MS, tid=2, mm=MM, write=False)
    log.acquired(12 * MS, tid=3, mm=MM, write=True)
    found = wait_of(log.events(), 3)
    assert [(blame.tid, blame.share_ns, blame.waited) for blame in found.blame] == [
        (2, 4 * MS, True),
        (1, 3 * MS, False),
        (2, 1 * MS, False),
    ]
    assert found.unexplained_ns == found.free_ns == 2 * MS
    own_way = wait_of(log.events(), 2)
    assert [(blame.tid, blame.share_ns) for blame in own_way.blame] == [(1, 4 * MS)]
    assert own_way.free_ns == 4 * MS


def test_who_held_before_the_recording_began_is_blamed_too() -> None:
    log = Log()
    log.asked(100, tid=2, mm=MM, write=True)
    log.released(9 * MS, tid=1, mm=MM, write=False)
    log.acquired(9 * MS + 5, tid=2, mm=MM, write=True)
    assert told(wait_of(log.events(), 2)) == [(1, "", "", 0, "holder", 9 * MS - 100)]


def test_a_wait_that_is_not_over_is_explained_so_far() -> None:
    log = Log()
    log.acquired(10, tid=1, mm=MM, write=True)
    log.asked(1 * MS, tid=2, mm=MM, write=False)
    log.add(30 * MS, EventKind.OP_END, 7)
    assert told(wait_of(log.events(), 2)) == [(1, "", "", 0, "holder", 29 * MS)]


def test_nobody_is_blamed_for_time_in_a_gap() -> None:
    log = Log()
    log.acquired(10, tid=1, mm=MM, write=True)
    log.lost(5 * MS, cpu=0)
    log.released(9 * MS, tid=1, mm=MM, write=True)
    log.asked(6 * MS, tid=2, mm=MM, write=True)
    log.acquired(9 * MS, tid=2, mm=MM, write=True)
    assert told(wait_of(log.events(), 2)) == [(1, "", "", 0, "holder", 3 * MS)]


def vma_story(*, with_sched: bool) -> Log:
    """Task 1 madvises 4 GiB under the VMA's lock; task 2's mprotect sleeps on it with the lock."""
    log = Log()
    for tid, comm in ((1, "trimmer"), (2, "guard"), (3, "reader")):
        log.task(tid, comm, 1, "db")
    log.begin(1 * MS, tid=1, op="madvise", address=0x1000_0000, length=4 * GIB, detail=4)
    log.begin(2 * MS, tid=2, op="mprotect", address=0x1000_0000, length=4096)
    log.asked(2 * MS, tid=2, mm=MM, write=True)
    log.acquired(2 * MS + 100, tid=2, mm=MM, write=True)
    if with_sched:
        log.add(2 * MS + 500, EventKind.SCHED_OUT, 2, detail=2)
    log.asked(3 * MS, tid=3, mm=MM, write=False)
    log.end(80 * MS, tid=1, op="madvise")
    if with_sched:
        log.add(80 * MS + 1000, EventKind.WAKEUP, 2)
        log.add(80 * MS + 1500, EventKind.SCHED_IN, 2)
    log.released(80 * MS + 9000, tid=2, mm=MM, write=True)
    log.end(80 * MS + 9500, tid=2, op="mprotect")
    log.acquired(80 * MS + 9900, tid=3, mm=MM, write=False)
    return log


def test_a_holder_asleep_on_a_vma_lock_is_a_victim() -> None:
    found = wait_of(vma_story(with_sched=True).events(), 3)
    assert told(found) == [
        (1, "trimmer", "madvise(MADV_DONTNEED)", 4 * GIB, "holder", 77 * MS + 1500),
        (2, "guard", "mprotect", 4096, "holder", 7500),
    ]
    assert found.blame[0].vma
    assert found.unexplained_ns == 900


def test_without_sched_events_overlapping_ranges_show_it() -> None:
    found = wait_of(vma_story(with_sched=False).events(), 3)
    assert [(blame.tid, blame.share_ns) for blame in found.blame] == [(1, 77 * MS), (2, 9000)]


def returning_late(late_ns: int) -> Log:
    """The madvise returns so long after the holder that it woke is done; no event tells of cpus."""
    log = Log()
    log.task(1, "purger", 1)
    log.task(2, "jit", 1)
    log.begin(1 * MS, tid=1, op="madvise", address=0x1000_0000, length=2 * GIB, detail=4)
    log.begin(2 * MS, tid=2, op="mprotect", address=0x1000_0000 + 8192, length=4096)
    log.asked(2 * MS, tid=2, mm=MM, write=True)
    log.acquired(2 * MS, tid=2, mm=MM, write=True)
    log.asked(3 * MS, tid=3, mm=MM, write=True)
    log.released(90 * MS, tid=2, mm=MM, write=True)
    log.end(90 * MS + 1, tid=2, op="mprotect")
    log.acquired(90 * MS + 10, tid=3, mm=MM, write=True)
    log.end(90 * MS + late_ns, tid=1, op="madvise")
    return log


def test_an_madvise_that_returns_after_the_holder_whom_it_woke_is_the_culprit() -> None:
    """The woken holder takes the cpu from it, so its return is late by up to a millisecond."""
    for late_ns in (270_000, 910_000):
        (blame,) = wait_of(returning_late(late_ns).events(), 3).blame
        assert (blame.tid, blame.vma, blame.share_ns) == (1, True, 87 * MS)


def test_a_holder_that_was_done_long_before_the_madvise_did_not_wait_for_it() -> None:
    (blame,) = wait_of(returning_late(200 * MS).events(), 3).blame
    assert (blame.tid, blame.vma) == (2, False)


def test_an_madvise_that_lost_its_cpu_at_the_very_end_is_still_the_culprit() -> None:
    """The madvise gave the VMA's lock back, woke the holder and lost its cpu for 40 ms."""
    log = Log()
    log.begin(1 * MS, tid=1, op="madvise", address=0x1000, length=GIB, cpu=1)
    log.begin(2 * MS, tid=2, op="mprotect", address=0x1000, length=4096, cpu=0)
    log.asked(2 * MS, tid=2, mm=MM, write=True)
    log.acquired(2 * MS, tid=2, mm=MM, write=True)
    log.add(2 * MS, EventKind.SCHED_OUT, 2, detail=2, cpu=0)
    log.asked(3 * MS, tid=3, mm=MM, write=True)
    log.add(9 * MS, EventKind.WAKEUP, 2, cpu=1)
    log.add(9 * MS + 5, EventKind.SCHED_OUT, 1, detail=0, cpu=1)
    log.add(9 * MS, EventKind.SCHED_IN, 2, cpu=0)
    log.released(10 * MS, tid=2, mm=MM, write=True)
    log.acquired(10 * MS, tid=3, mm=MM, write=True)
    log.add(49 * MS, EventKind.SCHED_IN, 1, cpu=1)
    log.end(50 * MS, tid=1, op="madvise", cpu=1)
    shares = [(blame.tid, blame.vma, blame.share_ns) for blame in wait_of(log.events(), 3).blame]
    assert shares == [(1, True, 6 * MS), (2, False, 1 * MS)]


def test_a_holder_that_sleeps_for_something_else_stays_the_culprit() -> None:
    """The madvise went on long after the holder ran again: it was not what he slept for."""
    log = vma_story(with_sched=True)
    log.begin(90 * MS, tid=1, op="madvise", address=0x1000_0000, length=4 * GIB, detail=4)
    log.acquired(91 * MS, tid=2, mm=MM, write=True)
    log.add(92 * MS, EventKind.SCHED_OUT, 2, detail=2)
    log.asked(93 * MS, tid=4, mm=MM, write=True)
    log.add(120 * MS, EventKind.SCHED_IN, 2)
    log.released(121 * MS, tid=2, mm=MM, write=True)
    log.acquired(121 * MS, tid=4, mm=MM, write=True)
    log.end(300 * MS, tid=1, op="madvise")
    assert [(blame.tid, blame.vma) for blame in wait_of(log.events(), 4).blame] == [(2, False)]


def test_an_madvise_that_took_the_mmap_lock_was_not_under_a_vma_lock() -> None:
    """Over several VMAs it holds the mmap_lock for read, so it is no rival for a VMA's lock."""
    log = vma_story(with_sched=False)
    log.asked(1 * MS + 10, tid=1, mm=MM, write=False)
    log.acquired(1 * MS + 20, tid=1, mm=MM, write=False)
    log.released(1 * MS + 900, tid=1, mm=MM, write=False)
    assert [blame.tid for blame in wait_of(log.events(), 3).blame] == [2]


def test_the_queue_is_known_by_kernel_version() -> None:
    assert queue_of("4.9.79-009.ali3000") is FIFO
    assert queue_of("4.18 + RFC v6") is FIFO
    assert queue_of("linux-4.20") is FIFO
    assert queue_of("5.4.0") is SPINNING_READERS
    assert queue_of("5.11") is MODERN
    assert queue_of("6.18.44-fc") is MODERN
    assert queue_of("my-own-design") is MODERN


# ------------------------------------------------------------------ brute force


@dataclass(frozen=True)
class Interval:
    tid: int
    start: int
    end: int
    exclusive: bool


def table(kind: np.dtype, rows: list[dict[str, int]]) -> dict[str, np.ndarray]:
    columns = {name: np.zeros(len(rows), kind[name]) for name in kind.names or ()}
    for place, row in enumerate(rows):
        for name, value in row.items():
            columns[name][place] = value
    columns["op"][:] = -1
    columns["call"][:] = NO_CALL
    columns["mm"][:] = MM
    return columns


def row_of(item: Interval, length_name: str) -> dict[str, int]:
    return {
        "tid": item.tid,
        "exclusive": item.exclusive,
        "start_ns": item.start,
        length_name: item.end - item.start,
    }


intervals = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30), st.booleans()), max_size=12)


def consistent(drawn: list[tuple[int, int, bool]]) -> list[Interval]:
    """Keep the holds that a lock allows: an exclusive one stands alone."""
    kept: list[Interval] = []
    for tid, (start, length, exclusive) in enumerate(drawn, 1):
        hold = Interval(tid, start, start + length, exclusive)
        clash = any(
            (hold.exclusive or other.exclusive)
            and hold.start < other.end
            and other.start < hold.end
            for other in kept
        )
        inside = any(
            (hold.exclusive or other.exclusive) and (hold.start == other.start) for other in kept
        )
        if not clash and not inside:
            kept.append(hold)
    return sorted(kept, key=lambda hold: hold.start)


def any_holds(holds: list[Interval], now: int) -> bool:
    return any(hold.start <= now < hold.end for hold in holds)


def next_in(waits: list[Interval], now: int) -> Interval | None:
    """Return the wait that ends next; of several at one time the one that began first."""
    return min((wait for wait in waits if wait.end > now), key=lambda wait: wait.end, default=None)


def reference(holds: list[Interval], waits: list[Interval], row: int) -> dict[tuple[int, str], int]:
    """Go through the wait nanosecond by nanosecond, doubled so that halves are whole."""
    wait, shares = waits[row], defaultdict(int)
    for now in range(wait.start, wait.end):
        here = [hold for hold in holds if hold.start <= now < hold.end]
        alone = [hold for hold in here if hold.exclusive]
        queued = [other for other in waits if other.exclusive and other.start <= now < other.end]
        ahead = [other for other in queued if waits.index(other) < row]
        if alone:
            shares[alone[0].tid, "holder"] += 2
        elif here and wait.exclusive:
            shares[max(hold.end for hold in here), "shared"] += 2
        elif here and ahead:
            shares[max(hold.end for hold in here), "shared"] += 1
            shares[ahead[0].tid, "queued-writer"] += 1
        elif not here:
            coming = next_in(waits, now)
            if coming is None or coming.start > now or coming.end >= wait.end or coming.exclusive:
                continue
            if wait.exclusive:
                shares[coming.tid, "holder"] += 2
            elif ahead:
                shares[coming.tid, "holder"] += 1
                shares[ahead[0].tid, "queued-writer"] += 1
    return dict(shares)


@given(intervals, intervals)
@times(150)
def test_shares_agree_with_brute_force(
    drawn_holds: list[tuple[int, int, bool]], drawn_waits: list[tuple[int, int, bool]]
) -> None:
    held = consistent(drawn_holds)
    waited = [
        Interval(100 + tid, start, start + length, exclusive)
        for tid, (start, length, exclusive) in enumerate(sorted(drawn_waits))
    ]
    holds = Holds(table(HOLD, [row_of(hold, "hold_ns") for hold in held]), (), {})
    waits = Waits(table(WAIT, [row_of(wait, "wait_ns") for wait in waited]), (), {})
    end_of = {hold.tid: hold.end for hold in held if not hold.exclusive}
    verdict = judge(holds, waits)
    for row, wait in enumerate(waited):
        found = verdict.explain(row)
        got: dict[tuple[int, str], int] = defaultdict(int)
        for blame in found.blame:
            shared = blame.role == "holder" and blame.tid in end_of
            key = (end_of[blame.tid], "shared") if shared else (blame.tid, blame.role)
            got[key] += blame.share_ns
        expected = reference(held, waited, row)
        assert got.keys() <= expected.keys()
        for key, doubled in expected.items():
            # Each stretch of a convoy is halved once, so a stretch may be off by half a ns.
            assert abs(2 * got[key] - doubled) <= 2 * (len(held) + len(waited))
        assert sum(got.values()) + found.unexplained_ns == wait.end - wait.start
        empty = [now for now in range(wait.start, wait.end) if not any_holds(held, now)]
        assert found.free_ns <= min(len(empty), found.unexplained_ns)
        assert 2 * found.unexplained_ns == 2 * (wait.end - wait.start) - sum(expected.values())


# ------------------------------------------------------------------ a lock that knows the truth


@dataclass
class Rwsem:
    """A FIFO reader/writer lock in a random world, which writes events and remembers the truth."""

    log: Log = field(default_factory=Log)
    holders: dict[int, bool] = field(default_factory=dict)
    queue: list[tuple[int, bool, int]] = field(default_factory=list)
    until: dict[int, int] = field(default_factory=dict)
    downgrade_at: dict[int, int] = field(default_factory=dict)
    plan: dict[int, tuple[int, int | None]] = field(default_factory=dict)
    truth: dict[int, dict[tuple[int, str], int]] = field(default_factory=dict)
    shared_until: dict[int, int] = field(default_factory=dict)

    def ask(self, now: int, tid: int, write: bool, hold: int, downgrade: int | None) -> None:
        self.log.begin(now, tid=tid, op=f"op{tid}", length=tid * 4096)
        self.log.asked(now, tid=tid, mm=MM, write=write)
        self.plan[tid] = (hold, downgrade)
        self.queue.append((tid, write, now))
        self.grant(now)

    def grant(self, now: int) -> None:
        while self.queue:
            tid, write, _ = self.queue[0]
            if (write and self.holders) or any(self.holders.values()):
                return
            self.queue.pop(0)
            self.holders[tid] = write
            hold, downgrade = self.plan[tid]
            # Ends of their own, so that "the last to leave" is one task.
            self.until[tid] = now + hold + (tid - now - hold) % 16
            if write and downgrade is not None and downgrade < hold:
                self.downgrade_at[tid] = now + downgrade
            self.log.acquired(now, tid=tid, mm=MM, write=write)

    def tick(self, now: int) -> None:
        for tid in [tid for tid, at in self.downgrade_at.items() if at == now]:
            del self.downgrade_at[tid]
            self.holders[tid] = False
            self.log.downgraded(now, tid=tid, mm=MM)
        for tid in [tid for tid, at in self.until.items() if at == now]:
            self.log.released(now, tid=tid, mm=MM, write=self.holders.pop(tid))
            self.log.end(now, tid=tid, op=f"op{tid}")
            del self.until[tid]
        self.grant(now)

    def witness(self) -> None:
        """Write down who keeps each waiter out during the nanosecond that begins now."""
        exclusive = [tid for tid, write in self.holders.items() if write]
        for place, (tid, write, _) in enumerate(self.queue):
            truth = self.truth.setdefault(tid, defaultdict(int))
            ahead = [other for other, writes, _ in self.queue[:place] if writes]
            last = max(self.holders, key=lambda holder: self.until[holder])
            if exclusive:
                truth[exclusive[0], "holder"] += 2
            elif write:
                truth[last, "holder"] += 2
            else:
                truth[last, "holder"] += 1
                truth[ahead[0], "queued-writer"] += 1


asks = st.tuples(
    st.integers(0, 80), st.booleans(), st.integers(1, 40), st.none() | st.integers(1, 20)
)


@given(st.lists(asks, min_size=2, max_size=14))
@times(150)
def test_blame_agrees_with_a_lock_that_knows(
    drawn: list[tuple[int, bool, int, int | None]],
) -> None:
    """Every culprit, in every role, gets the nanoseconds for which it kept the waiter out."""
    lock = Rwsem()
    ask_at = defaultdict(list)
    for tid, (start, write, hold, downgrade) in enumerate(drawn, 1):
        # Holds of different ends, so that "the last to leave" is one task.
        ask_at[start].append((tid, write, hold * 16 + tid, downgrade))
    now = 0
    while now <= 80 or lock.until:
        lock.tick(now)
        for tid, write, hold, downgrade in ask_at.get(now, ()):
            lock.ask(now, tid, write, hold, downgrade)
        lock.witness()
        now += 1
    analysis = analyse(lock.log.events(), "4.18")
    analysis.holds.check()
    assert analysis.holds.unmatched == 0
    for row, tid in enumerate(analysis.waits["tid"].tolist()):
        found = analysis.explain(row)
        truth = lock.truth.get(tid, {})
        got = {(blame.tid, blame.role): blame.share_ns for blame in found.blame}
        assert got.keys() <= truth.keys()
        for key, doubled in truth.items():
            assert abs(2 * got.get(key, 0) - doubled) <= 2 * len(drawn)
        assert found.unexplained_ns == 0
        assert sum(got.values()) == analysis.waits["wait_ns"][row]
