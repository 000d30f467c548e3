"""The exhaustive engine sees every interleaving, and the plain search is its witness."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from crews import explore_split
from toys import (
    LOCKS,
    Toy,
    add,
    insert,
    kill,
    load,
    must_equal,
    random_configuration,
    random_ranges,
    store,
    tasks,
    total_below,
    wait_for,
)

from zaplock.engines.checking.configuration import Configuration, Rules
from zaplock.engines.checking.easiest_counterexample import easiest_counterexample
from zaplock.engines.checking.exhaustive import (
    SearchLimits,
    SearchProgress,
    explore,
    explore_merged,
)
from zaplock.engines.checking.reference import explore_plainly
from zaplock.engines.checking.sampled import sample
from zaplock.engines.checking.schedule import replay, spell, unspell
from zaplock.errors import ProtocolError, UserError
from zaplock.model import rwsem
from zaplock.model.step import MarkStep, SleepStep, Task, WaitStep
from zaplock.model.violations import Invariant, Violation

LOCK = ("mmap_lock", 1)


def brief(verdict: Any) -> tuple[Any, ...]:
    broken = {(violation.invariant, violation.message) for violation in verdict.violations}
    return (
        verdict.answer, verdict.states, verdict.transitions, verdict.endings, verdict.never, broken,
    )  # fmt: skip


async def increment_in_two_steps() -> int:
    seen = await load("x")
    await store("x", seen + 1)
    return seen


def x_must_be(value: int) -> Any:
    def check(m: Toy, _results: tuple[Any, ...]) -> None:
        if m.counters["x"] != value:
            raise Violation(Invariant.BOOKS_BALANCE, f"x is {m.counters['x']}")

    return check


LOST_UPDATE = Configuration(
    Toy, tasks(increment_in_two_steps, increment_in_two_steps), at_end=(x_must_be(2),)
)


@cache
def explored(seed: int, fair: bool) -> Any:
    """Explore a random program whole; several tests compare with it."""
    return explore(random_configuration(seed, fair), all_violations=True)


@cache
def explored_plainly(seed: int, fair: bool) -> Any:
    """Do so by the plain search, which knows states by their hashes."""
    return explore_plainly(random_configuration(seed, fair))


@pytest.mark.parametrize("fair", [False, True])
def test_it_agrees_with_the_plain_search_on_random_programs(fair: bool) -> None:
    answers = set()
    for seed in range(300):
        fast, slow = explored(seed, fair), explored_plainly(seed, fair)
        assert brief(fast) == brief(slow), f"random_configuration({seed}, {fair})"
        answers.add(fast.answer)
    assert answers == {"proved", "broken", "vacuous"}


@pytest.mark.parametrize("fair", [False, True])
def test_merging_steps_that_nobody_sees_changes_no_verdict(fair: bool) -> None:
    plain = merged = 0
    for seed in range(300):
        configuration = random_configuration(seed, fair)
        whole = explored(seed, fair)
        reduced = explore_merged(configuration, LOCKS)
        assert (whole.answer == "broken") == (reduced.answer == "broken"), seed
        rules = [{one.invariant for one in verdict.violations} for verdict in (whole, reduced)]
        assert rules[0] == rules[1], seed
        plain, merged = plain + whole.states, merged + reduced.states
        found = easiest_counterexample(configuration, merge=LOCKS)
        assert (found is not None) == (whole.answer == "broken"), seed
        if found is not None:
            assert str(replay(configuration, found.schedule).violation) == str(found.violation)
    assert merged < 0.7 * plain


@pytest.mark.parametrize("fair", [False, True])
def test_every_search_agrees_where_ranges_are_locked(fair: bool) -> None:
    met = set()
    for seed in range(40):
        configuration = random_ranges(seed, fair)
        fast = explore(configuration, all_violations=True)
        assert brief(fast) == brief(explore_plainly(configuration, exact=True)), seed
        if seed % 10 == 0:
            split = explore_split(configuration, 2, all_violations=True)
            assert brief(split) == brief(fast), seed
        merged = explore_merged(configuration, LOCKS)
        rules = [{one.invariant for one in verdict.violations} for verdict in (fast, merged)]
        assert rules[0] == rules[1], seed
        found = easiest_counterexample(configuration, merge=LOCKS)
        assert (found is not None) == (fast.answer == "broken"), seed
        if found is not None:
            assert str(replay(configuration, found.schedule).violation) == str(found.violation)
        met |= {fast.answer, *rules[0]}
    deadlock = {Invariant.NO_DEADLOCK} if fair else set()
    assert met == {"proved", "broken", Invariant.PRIVATE_UNDER_READ} | deadlock


def test_hashed_and_whole_states_agree() -> None:
    for seed in range(100):
        configuration = random_configuration(seed, bool(seed % 2))
        hashed = explored_plainly(seed, bool(seed % 2))
        exact = explore_plainly(configuration, exact=True)
        assert brief(hashed) == brief(exact), seed


def test_a_lost_update_is_found_and_its_schedule_is_the_easiest() -> None:
    assert explore(LOST_UPDATE).answer == "broken"
    found = easiest_counterexample(LOST_UPDATE)
    assert found is not None
    assert (found.preemptions, len(found.schedule)) == (1, 4)
    assert spell(found.schedule) in ("ab2a", "ba2b")


def test_the_same_schedule_always_gives_the_same_violation() -> None:
    for seed in range(120):
        configuration = random_configuration(seed, bool(seed % 2))
        found = easiest_counterexample(configuration)
        assert (found is not None) == (explored(seed, bool(seed % 2)).answer == "broken")
        if found is not None:
            schedule = unspell(spell(found.schedule), len(configuration.programs))[0]
            run = replay(configuration, schedule)
            assert str(run.violation) == str(found.violation), seed
            assert len(run.taken) == len(schedule)


def test_a_held_lock_keeps_a_lost_update_away() -> None:
    async def careful() -> None:
        await rwsem.down_write(LOCK)
        await increment_in_two_steps()
        await rwsem.up_write(LOCK)

    verdict = explore(Configuration(Toy, tasks(careful, careful), at_end=(x_must_be(2),)))
    assert (verdict.answer, verdict.endings) == ("proved", 1)


async def read_twice() -> None:
    await rwsem.down_read(LOCK)
    await rwsem.down_read(LOCK)
    await rwsem.up_read(LOCK)
    await rwsem.up_read(LOCK)


async def write_once() -> None:
    await rwsem.down_write(LOCK)
    await rwsem.up_write(LOCK)


def test_a_reader_behind_a_writer_behind_itself_deadlocks_in_the_fair_queue_only() -> None:
    both = tasks(read_twice, write_once)
    assert explore(Configuration(Toy, both)).answer == "proved"
    verdict = explore(Configuration(Toy, both, Rules(fair=True, policy=rwsem.RWSEM_4_9)))
    assert verdict.violations[0].invariant is Invariant.NO_DEADLOCK
    assert "task1 waits in down_read(mmap_lock)" in verdict.violations[0].message


def convoy(
    with_writer: bool,
    policy: rwsem.RwsemPolicy = rwsem.RWSEM_4_9,
    writer_sees_it_shared: bool = False,
) -> Configuration:
    """A downgraded holder zaps (y is 1); a reader counts z up inside the lock."""

    async def zap() -> None:
        await rwsem.down_write(LOCK)
        await add("x", 1)
        await rwsem.downgrade_write(LOCK)
        await add("y", 1)
        await add("y", -1)
        await rwsem.up_read(LOCK)

    async def read() -> None:
        if with_writer:
            await WaitStep(load.run, ("x",), a_writer_queues, ("queue",))
        await rwsem.down_read(LOCK)
        await add("z", 1)
        await rwsem.up_read(LOCK)

    async def write() -> None:
        if writer_sees_it_shared:
            await wait_for("y", 1)
        await rwsem.down_write(LOCK)
        await rwsem.up_write(LOCK)

    def a_writer_queues(m: Toy, _task: Task, _name: str) -> bool:
        return (3, True) in m.locks.get(LOCK, rwsem.FREE).queue

    def overlap(m: Toy) -> bool:
        return m.counters["y"] == 1 and m.counters["z"] == 1

    all_of_them = tasks(zap, read, write)
    rules = Rules(fair=True, policy=policy)
    some = all_of_them if with_writer else all_of_them[:2]
    return Configuration(Toy, some, rules, sometimes={"overlap": overlap})


def test_a_downgrade_lets_a_reader_in_but_none_behind_a_queued_writer() -> None:
    assert "overlap" in explore_names(convoy(with_writer=False))
    assert "overlap" not in explore_names(convoy(with_writer=True))


def test_readers_of_5_3_to_5_10_pass_a_writer_unless_it_has_spun_on_readers_in_vain() -> None:
    spinning = rwsem.RWSEM_5_3
    assert "overlap" in explore_names(convoy(True, spinning)), "it slept through the exclusive hold"
    assert "overlap" not in explore_names(convoy(True, spinning, writer_sees_it_shared=True))
    assert "overlap" not in explore_names(convoy(True, rwsem.RWSEM_5_11))
    built_without = replace(spinning, writer_spins="never")
    assert "overlap" not in explore_names(convoy(True, built_without))


def explore_names(configuration: Configuration) -> set[str]:
    """Name the `sometimes` properties that are true in some state."""
    from zaplock.engines.checking.transitions import TransitionTable

    table = TransitionTable(configuration)
    explore(configuration, all_violations=True, table=table)
    return table.seen_sometimes


def test_a_killable_wait_ends_when_its_task_is_killed() -> None:
    async def hold_for_ever() -> None:
        await rwsem.down_write(LOCK)
        await wait_for("x", 1)
        await rwsem.up_write(LOCK)

    async def ask() -> int:
        result = await rwsem.down_write_killable(LOCK)
        if result == 0:
            await rwsem.up_write(LOCK)
        await store("x", 1)
        return result

    async def killer() -> None:
        await kill(2)

    ends = {
        f"ends with {result}": lambda _m, results, result=result: results[1] == result
        for result in (0, rwsem.EINTR_RESULT)
    }
    for fair in (False, True):
        configuration = Configuration(
            Toy, tasks(hold_for_ever, ask, killer), Rules(fair), sometimes_at_end=ends
        )
        assert explore(configuration).answer == "proved"


def test_a_scenario_in_which_nothing_happens_is_vacuous() -> None:
    async def nothing() -> None:
        await load("x")

    dull = Configuration(
        Toy, tasks(nothing, nothing), sometimes={"x moves": lambda m: m.counters["x"] > 0}
    )
    verdict = explore(dull)
    assert (verdict.answer, verdict.never) == ("vacuous", ("x moves",))


def test_a_promise_about_every_state_is_asked_in_every_state() -> None:
    async def up_and_down() -> None:
        await add("x", 1)
        await add("x", -1)

    four = tasks(*[up_and_down] * 4)
    assert explore(Configuration(Toy, four, always=(total_below(5),))).answer == "proved"
    verdict = explore(Configuration(Toy, four, always=(total_below(4),)))
    assert verdict.violations[0].message == "x + y reached 4"


def test_a_promise_that_looks_further_later_is_still_asked_everywhere() -> None:
    """Which cells a promise looks at may depend on the state."""

    def promise(m: Toy) -> None:
        if m.counters["x"] == 1 and m.counters["y"] == 1:
            raise Violation(Invariant.BOOKS_BALANCE, "both")

    async def y_early() -> None:
        for _ in range(3):
            await add("y", 1)
            await add("y", -1)
        await add("y", 1)

    async def x_late() -> None:
        await add("z", 1)
        await add("x", 1)

    configuration = Configuration(Toy, tasks(y_early, x_late), always=(promise,))
    assert brief(explore(configuration, all_violations=True)) == brief(
        explore_plainly(configuration)
    )


def test_a_violation_in_a_step_names_who_met_it() -> None:
    async def picky() -> None:
        await must_equal("x", 0)

    verdict = explore(Configuration(Toy, tasks(increment_in_two_steps, picky)))
    assert str(verdict.violations[0]) == "BOOKS_BALANCE: task2 wants x=0"


def test_marks_and_sleeps_are_no_transitions() -> None:
    async def noisy() -> None:
        await MarkStep("op_begin", ("munmap", 0, 0, 0))
        await add("x", 1)
        await SleepStep(100)
        await MarkStep("op_end", ("munmap", 0))

    async def quiet() -> None:
        await add("x", 1)

    assert explore(Configuration(Toy, tasks(noisy, noisy))).states == 4
    assert explore(Configuration(Toy, tasks(quiet, quiet))).states == 4


def test_more_values_than_a_field_first_holds() -> None:
    """Fields of a packed state grow; ints made earlier keep their meaning."""

    async def many() -> None:
        for i in range(150):
            await add("x", 1)
            if i % 5 == 0:
                await insert(i)

    async def look() -> int:
        return await load("x")

    configuration = Configuration(Toy, tasks(many, look))
    fast, slow = explore(configuration), explore_plainly(configuration, exact=True)
    assert brief(fast) == brief(slow)


def test_limits_end_a_search_honestly() -> None:
    async def long() -> None:
        for _ in range(60):
            await add("x", 1)

    configuration = Configuration(Toy, tasks(long, long, long))
    seen: list[SearchProgress] = []
    verdict = explore(configuration, SearchLimits(states=5_000), progress=seen.append)
    assert (verdict.answer, verdict.limit) == ("not-exhausted", "5000 states")
    assert seen[-1].states == verdict.states >= 5_000
    assert explore(configuration, SearchLimits(seconds=0.0)).answer == "not-exhausted"
    assert explore(configuration, SearchLimits(memory=1)).answer == "not-exhausted"


def test_a_protocol_that_is_no_function_of_its_results_is_caught() -> None:
    calls = []

    async def moody() -> None:
        calls.append(1)
        await load("x")
        await add("y", len(calls))

    async def other() -> None:
        await add("x", 1)
        await add("x", 1)

    with pytest.raises(ProtocolError, match=r"not a function|calls, which .* captures has changed"):
        explore(Configuration(Toy, tasks(moody, moody, other)))


@pytest.mark.parametrize("depth", [None, 2, 3])
def test_the_sampler_finds_a_shallow_bug_and_its_token_replays(depth: int | None) -> None:
    found = sample(LOST_UPDATE, 500, seed=1, depth=depth)
    assert found.violation is not None
    run = replay(LOST_UPDATE, unspell(spell(found.schedule), 2)[0])
    assert str(run.violation) == str(found.violation)
    assert sample(LOST_UPDATE, 500, seed=1, depth=depth).schedule == found.schedule


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="step 3 task a can't move"):
        replay(LOST_UPDATE, unspell("a3", 2)[0])
    with pytest.raises(UserError, match="names task c"):
        unspell("abc", 2)
    with pytest.raises(UserError, match="not letters of tasks"):
        unspell("a0", 2)


@pytest.mark.parametrize("all_violations", [False, True])
def test_several_processes_find_the_same_and_count_the_same(all_violations: bool) -> None:
    def counted(verdict: Any) -> tuple[Any, ...]:
        return (*brief(verdict), verdict.depth)

    for seed in range(0, 40, 2):
        configuration = random_configuration(seed, seed % 4 == 0)
        alone = explore(configuration, all_violations=all_violations)
        split = explore_split(configuration, 3, all_violations=all_violations)
        assert counted(alone) == counted(split), seed
