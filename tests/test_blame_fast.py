"""The blame that is laid out once for all waits says what the plain one says, wait by wait."""

from __future__ import annotations

import numpy as np
import pytest
from blame_reference import PlainJudge
from drawn import times
from hypothesis import given
from hypothesis import strategies as st
from scenes import crowd, queue_of_writers
from test_blame import Interval, consistent, intervals, row_of, table, vma_story

from zaplock.trace.analysis import analyse
from zaplock.trace.blame import Judge, judge
from zaplock.trace.events import Events
from zaplock.trace.holds import HOLD, Holds
from zaplock.trace.queue import FIFO, MODERN, SPINNING_READERS
from zaplock.trace.summary import summarise
from zaplock.trace.waits import WAIT, Waits
from zaplock.units import parse_duration
from zaplock.views.sentences import chain


def assert_the_same(verdict: Judge, rows: list[int]) -> None:
    plain = PlainJudge(verdict)
    one_by_one = [verdict.explain(row) for row in rows]
    for found, alone in zip(verdict.explain_all(rows), one_by_one):
        expected = plain.explain(found.wait)
        for said in (found, alone):
            assert said.blame == expected.blame
            assert said.unexplained_ns == expected.unexplained_ns
            assert said.free_ns == expected.free_ns


begins = st.lists(st.integers(-1, 40), max_size=3).map(sorted)
"""When the segments of a recording began; none: every lock was free at first."""


@given(intervals, intervals, st.sampled_from([FIFO, MODERN, SPINNING_READERS]), begins)
@times(200)
def test_random_holds_and_waits(
    drawn_holds: list[tuple[int, int, bool]],
    drawn_waits: list[tuple[int, int, bool]],
    queue: object,
    begun: list[int],
) -> None:
    held = consistent(drawn_holds)
    waited = [
        Interval(100 + tid % 3, start, start + length, exclusive)
        for tid, (start, length, exclusive) in enumerate(sorted(drawn_waits))
    ]
    holds = Holds(table(HOLD, [row_of(hold, "hold_ns") for hold in held]), (), {})
    waits = Waits(table(WAIT, [row_of(wait, "wait_ns") for wait in waited]), (), {})
    verdict = judge(holds, waits, queue, begin_ns=np.array(begun, np.int64))
    assert_the_same(verdict, list(range(len(waited))))


def longest(events: Events, kernel: str, count: int) -> tuple[Judge, list[int]]:
    analysis = analyse(events, kernel)
    order = np.argsort(-analysis.waits["wait_ns"], kind="stable")[:count]
    return analysis.judge, order.tolist()


@pytest.mark.parametrize("kernel", ["4.18", "5.4", "6.18"])
def test_a_crowd(kernel: str) -> None:
    assert_the_same(*longest(crowd(20_000), kernel, 400))


def test_threads_that_wait_for_each_other() -> None:
    assert_the_same(*longest(queue_of_writers(40), "6.18", 400))


@pytest.mark.parametrize("with_sched", [True, False])
def test_holders_that_sleep_on_a_vma_lock(with_sched: bool) -> None:
    assert_the_same(*longest(vma_story(with_sched=with_sched).events(), "6.18", 10))


@pytest.mark.parametrize("events", [queue_of_writers(40, rounds=3), crowd(4_000)])
def test_the_lines_of_a_wait_add_up_to_it(events: Events) -> None:
    """Whoever is not named is among the "others", and what nobody explains has a line."""
    summary = summarise(analyse(events, "6.18"))
    assert any("others" in line for found in summary.explained
               for line in chain(summary.analysis, found))  # fmt: skip
    for found in summary.explained[:200]:
        whole = int(summary.analysis.waits["wait_ns"][found.wait])
        lines = [line for line in chain(summary.analysis, found) if line[0] != " "]
        told = sum(parse_duration(line.partition(" (")[0].replace(" ", "")) for line in lines)
        # A line has three digits, and what is under a hundredth may be left out: of four kinds.
        assert 0.95 * whole <= told <= 1.01 * whole, lines
        shares = [int(line.partition("(")[2].partition(" %")[0]) for line in lines]
        assert 94 <= sum(shares) <= 103, lines


def test_a_wait_behind_hundreds_adds_up() -> None:
    """Nobody has a share worth a line, and together they are all of it."""
    summary = summarise(analyse(queue_of_writers(500, rounds=3), "6.18"))
    worst = summary.explained[0]
    assert len(worst.blame) == 499
    lines = chain(summary.analysis, worst)
    assert lines[1].endswith("(93 %) behind 498 others")
    assert "(7 %) nobody had it" in lines[2]
    assert sum(group.caused_ns for group in summary.by_thread) == sum(
        found.blamed_ns for found in summary.explained
    )
