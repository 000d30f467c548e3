"""Replays of threads that let each other begin: one comes when the other has come so far."""

from __future__ import annotations

import pytest
from scenes import MS

from zaplock.designs import SHIPPED
from zaplock.lab import profiles
from zaplock.replay.closed_loops import After, Link, let_begin, links_of
from zaplock.replay.other_ways import Way
from zaplock.replay.plan import plan_of
from zaplock.replay.replay import Replay, replay
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.events import EventKind
from zaplock.trace.handwritten import Log
from zaplock.views import replayed as view

MM, DB, FREER, MAPPER, RELAY = 7, 100, 101, 102, 103
PROFILE = profiles.load(profiles.DEFAULT)
UNDER = SHIPPED["linux-5.10"]
HEAP = 64 << 20
FREED = 40 * MS
"""When the munmap is over."""


def call(log: Log, tid: int, name: str, begin_ns: int, end_ns: int, length: int) -> None:
    """A call that has the lock exclusively but for its first and last microsecond."""
    log.begin(begin_ns, tid=tid, op=name, address=1 << 30, length=length)
    log.asked(begin_ns + 1_000, tid=tid, mm=MM, write=True)
    log.acquired(begin_ns + 1_100, tid=tid, mm=MM, write=True)
    log.released(end_ns - 1_000, tid=tid, mm=MM, write=True)
    log.end(end_ns, tid=tid, op=name)


def sleep(log: Log, tid: int, begin_ns: int, woken_ns: int, waker: int) -> None:
    """A sleep in a futex; `waker` 0: a timer ended it."""
    log.add(begin_ns, EventKind.SCHED_OUT, tid, detail=1)
    log.add(woken_ns, EventKind.WAKEUP, tid, detail=waker)
    log.add(woken_ns + 20_000, EventKind.SCHED_IN, tid)


def story(*sleeps: tuple[int, int, int, int]) -> Analysis:
    """One thread frees a heap in 40 ms; another maps 200 us later, and once more after that."""
    log = Log()
    for tid, comm in ((FREER, "free"), (MAPPER, "map"), (RELAY, "relay")):
        log.task(tid, comm, DB, "db")
    log.owner(MM, DB)
    call(log, FREER, "munmap", 0, FREED, HEAP)
    for one in sleeps:
        sleep(log, *one)
    call(log, MAPPER, "mmap", FREED + 200_000, FREED + 220_000, 4096)
    call(log, MAPPER, "mmap", FREED + 300_000, FREED + 320_000, 4096)
    return analyse(log.events(), "5.10.0", span=(0, FREED + MS))


def linked(analysis: Analysis) -> dict[tuple[int, int], Link]:
    return dict(links_of(analysis, plan_of(analysis, UNDER, MM, 20_000)))


def waits(found: Replay, run: int) -> int:
    rows = found.kinds["mmap"]
    return sum(found.runs[run].stall_ns[row] for row in rows)


WOKEN = (MAPPER, 5 * MS, FREED + 100_000, FREER)
BY_TIMER = (MAPPER, 5 * MS, FREED + 100_000, 0)


def test_what_another_thread_let_begin_is_found() -> None:
    found = linked(story(WOKEN))
    assert found.pop((MAPPER, 0)).after == (After(FREER, 0, 200_000),)
    assert let_begin(found) == 0
    pause = Link((After(MAPPER, 0, 80_000),), FREED + 300_000)
    assert found == {(MAPPER, 1): pause}, "the second mmap is late with the first"


def test_a_timer_and_a_recording_without_wake_ups_link_nothing() -> None:
    assert linked(story(BY_TIMER)) == {}
    assert linked(story()) == {}


def test_it_is_passed_on_by_a_thread_that_never_takes_the_lock() -> None:
    relay = (RELAY, 4 * MS, FREED + 50_000, FREER)
    found = linked(story(relay, (MAPPER, 5 * MS, FREED + 100_000, RELAY)))
    assert found[MAPPER, 0].after == (After(FREER, 0, 200_000),)


def test_a_waker_in_the_middle_of_a_call_or_after_a_timer_gives_no_sooner_begin() -> None:
    assert linked(story((MAPPER, 5 * MS, 20 * MS, FREER))) == {}
    paused = (FREER, FREED + 10_000, FREED + 60_000, 0)
    link = linked(story(paused, WOKEN))[MAPPER, 0]
    assert link == Link((After(FREER, 0, 150_000),), FREED + 200_000), "all but the pause"


@pytest.mark.parametrize(("sleeps", "waits_for_it"), [((WOKEN,), False), ((BY_TIMER,), True)])
def test_a_thread_that_waits_for_the_other_does_not_run_into_its_chunks(
    sleeps: tuple[tuple[int, int, int, int], ...], waits_for_it: bool
) -> None:
    """By 4 KiB the munmap takes longer: only who does not wait for it meets it."""
    analysis = story(*sleeps)
    ways = [Way(), Way("munmap-chunks", 4096)]
    found = replay(analysis, PROFILE, ways=ways)
    assert found.runs[1].duration_ns > FREED + MS, "it is longer than the pause behind it"
    assert waits(found, 0) == 0
    assert (waits(found, 1) > 0) == waits_for_it
    assert found.to_json()["recorded"]["linked"] == (0 if waits_for_it else 1)
    told = [line for line in view.remarks(found) if "begin when another thread" in line]
    assert bool(told) != waits_for_it


def test_what_ends_sooner_lets_the_other_begin_sooner() -> None:
    """A munmap that waited 30 ms for a reader which another kernel would not have let in."""
    log = Log()
    for tid, comm in ((FREER, "free"), (MAPPER, "map")):
        log.task(tid, comm, DB, "db")
    log.owner(MM, DB)
    log.asked(0, tid=RELAY, mm=MM, write=False)
    log.acquired(10, tid=RELAY, mm=MM, write=False)
    log.released(30 * MS, tid=RELAY, mm=MM, write=False)
    log.begin(1 * MS, tid=FREER, op="munmap", address=1 << 30, length=HEAP)
    log.asked(1 * MS + 10, tid=FREER, mm=MM, write=True)
    log.acquired(30 * MS + 20_000, tid=FREER, mm=MM, write=True)
    log.released(31 * MS, tid=FREER, mm=MM, write=True)
    log.end(31 * MS + 10, tid=FREER, op="munmap")
    sleep(log, MAPPER, 2 * MS, 31 * MS + 50_000, FREER)
    call(log, MAPPER, "mmap", 32 * MS, 33 * MS, 4096)
    analysis = analyse(log.events(), "5.10.0", span=(0, 40 * MS))
    (link,) = linked(analysis).values()
    assert link.floor_ns < 5 * MS, "nothing holds it where it was but the munmap"
    assert link.after == (After(FREER, 0, 1 * MS - 10),)
    assert replay(analysis, PROFILE, ways=[Way()]).fit.sum_error == pytest.approx(0, abs=0.01)
