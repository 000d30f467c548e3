"""Who stood behind whose call without waiting for the lock, on cpus that others want as well."""

from __future__ import annotations

import pytest
from scenes import GIB, MM, MS

from zaplock.trace.analysis import analyse
from zaplock.trace.events import EventKind
from zaplock.trace.handwritten import Log
from zaplock.trace.sleepers_behind import Behind, behind
from zaplock.trace.sleeps import sleeps

MAIN, PIN, MIDDLE = 1, 2, 3
ENDS = 500 * MS
"""pin's munmap, of what others wait for a mutex behind."""


@pytest.fixture
def log() -> Log:
    log = Log()
    for tid, comm in ((MAIN, "main"), (PIN, "pin"), (MIDDLE, "middle")):
        log.task(tid, comm, MAIN, "main")
    log.owner(MM, MAIN)
    sleeps_(log, 1 * MS, MIDDLE)
    log.begin(2 * MS, tid=PIN, op="munmap", length=GIB)
    log.asked(2 * MS + 1, tid=PIN, mm=MM, write=True)
    log.acquired(2 * MS + 2, tid=PIN, mm=MM, write=True)
    sleeps_(log, 3 * MS, MAIN)
    log.released(ENDS - 1, tid=PIN, mm=MM, write=True)
    log.end(ENDS, tid=PIN, op="munmap")
    return log


def sleeps_(log: Log, time_ns: int, tid: int) -> None:
    log.add(time_ns, EventKind.SCHED_OUT, tid, detail=1)


def preempted(log: Log, begin_ns: int, end_ns: int, tid: int) -> None:
    log.add(begin_ns, EventKind.SCHED_OUT, tid)
    log.add(end_ns, EventKind.SCHED_IN, tid)


def wakes(log: Log, time_ns: int, waker: int, tid: int, runs_ns: int) -> None:
    log.add(time_ns, EventKind.WAKEUP, tid, detail=waker)
    log.add(runs_ns, EventKind.SCHED_IN, tid)


def of(log: Log, tid: int) -> list[Behind]:
    return [one for one in behind(analyse(log.events(), "6.18")) if one.tid == tid]


def test_a_waker_that_is_preempted_between_its_munmap_and_its_unlock_is_the_culprit(
    log: Log,
) -> None:
    preempted(log, ENDS + 10, ENDS + 200 * MS, PIN)
    wakes(log, ENDS + 201 * MS, PIN, MAIN, ENDS + 202 * MS)
    (found,) = of(log, MAIN)
    assert (found.waker, found.through) == (PIN, ())
    assert found.inside_ns == ENDS - 3 * MS
    assert found.slept_ns == ENDS + 201 * MS - 3 * MS


def test_a_waker_that_worked_on_after_its_munmap_is_not(log: Log) -> None:
    log.add(ENDS + 50 * MS, EventKind.SCHED_IN, PIN)  # any event, so that it is seen to run
    wakes(log, ENDS + 100 * MS, PIN, MAIN, ENDS + 101 * MS)
    assert not of(log, MAIN)


def test_a_link_of_the_chain_that_waits_for_a_cpu_is_passed_through(log: Log) -> None:
    wakes(log, ENDS + 100, PIN, MIDDLE, ENDS + 300 * MS)
    wakes(log, ENDS + 301 * MS, MIDDLE, MAIN, ENDS + 302 * MS)
    (found,) = of(log, MAIN)
    assert (found.waker, found.through) == (MIDDLE, (MIDDLE,))


def test_since_when_a_task_has_run_for_so_long(log: Log) -> None:
    preempted(log, ENDS + 10, ENDS + 200 * MS, PIN)
    told = sleeps(log.events())
    assert told is not None
    assert told.ran_since(PIN, ENDS + 201 * MS, 1 * MS) == ENDS + 200 * MS
    assert told.ran_since(PIN, ENDS + 201 * MS, 1 * MS + 4) == ENDS + 6
    assert told.ran_since(PIN, 2 * MS, 5) == 2 * MS - 5, "nothing is known of before"
