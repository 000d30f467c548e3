"""State that a checker can't see never makes a verdict: it is found, or can't be kept at all."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import pytest
from crews import explore_split
from hidden_designs import WAYS, draw, outcome
from toys import Toy, add, load, store, tasks

from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import explore
from zaplock.engines.checking.reference import explore_plainly
from zaplock.engines.checking.sampled import sample
from zaplock.errors import ProtocolError
from zaplock.model.frozen import NotFrozen, exact, same
from zaplock.model.step import Task, step
from zaplock.model.violations import Invariant, Violation

ENGINES = [
    explore,
    lambda configuration: explore_plainly(configuration, exact=True),
    lambda configuration: explore_split(configuration, 2),
]


def refused(body: Any, words: str, *more: Any) -> None:
    """Every engine refuses, with these words."""
    for engine in ENGINES:
        with pytest.raises(ProtocolError, match=words):
            engine(Configuration(Toy, tasks(body, *more)))


async def quiet() -> None:
    await add("y", 1)
    await add("y", 1)


def test_of_random_designs_that_hide_state_none_gets_a_wrong_verdict() -> None:
    """The first 200 of a sequence; 100,000 others were run once."""
    wrong = [said for said in map(outcome, range(200)) if said]
    assert not wrong, wrong


def test_every_way_to_hide_state_is_drawn() -> None:
    drawn = {draw(seed).way for seed in range(600)}
    assert set(WAYS) <= drawn


def test_a_captured_variable_that_moves_on_is_named() -> None:
    """The step would be run again later and see the variable's later value."""

    async def walk() -> None:
        for page in (1, 2):

            @step
            def look(m: Toy, _task: Task) -> None:
                if m.counters["y"] == page:  # noqa: B023
                    raise Violation(Invariant.USE_AFTER_FREE, "seen")

            await look()

    refused(walk, r"look captures page, which has changed", quiet)


def test_a_list_as_an_argument_is_refused() -> None:
    @step
    def count(_m: Toy, _task: Task, pages: list[int]) -> int:
        return len(pages)

    async def body() -> None:
        await count([1, 2])

    refused(body, r"task1: the step count has an argument that \[1, 2\] is a list")


def test_a_result_that_can_be_changed_is_refused() -> None:
    @step
    def found(_m: Toy, _task: Task) -> Any:
        return [1]

    async def body() -> None:
        await found()

    refused(body, r"task1 gets from found\(\) what can be changed: \[1\] is a list")


def test_what_a_step_forgets_to_await_is_named() -> None:
    async def forgets() -> None:
        add("x", 1)
        await load("x")

    refused(forgets, r"task1 makes the step add\(x, 1\) and never awaits it")

    async def inner() -> None:
        await add("x", 1)

    async def forgets_a_protocol() -> None:
        inner()
        await load("x")

    refused(forgets_a_protocol, "coroutine .*inner.* was never awaited")


def test_a_machine_has_no_state_but_its_cells() -> None:
    @step
    def mark(m: Any, _task: Task) -> None:
        m.flag = True

    async def body() -> None:
        await mark()

    refused(body, "sets the machine's attribute flag to True")
    with pytest.raises(AttributeError, match="a task has no state"):
        Task(1, 1).cpu = 2
    with pytest.raises(AttributeError, match="no state outside its cells"):
        Toy().mm(1).mm = 2


def test_a_global_and_a_clock_are_named_with_file_and_line() -> None:
    async def draws() -> None:
        if random.random() < 0.5:
            await add("x", 1)
        await add("y", 1)

    refused(draws, r"draws \(test_hidden_state.py:\d+\) uses the module random")


def test_what_was_read_of_code_holds_as_long_as_its_names_are_no_other_sets() -> None:
    """Code is read once for uses of a set's order; which of its names are sets is asked anew."""

    def walking(letters: Any) -> Any:
        async def body() -> None:
            for letter in letters:
                if letter == "a":
                    await add("x", 1)

        return body

    ordered, unordered = walking(("a", "b")), walking({"a", "b"})
    for _ in range(2):
        assert explore(Configuration(Toy, tasks(ordered, quiet))).answer == "proved"
        refused(unordered, r"body \(test_hidden_state.py:\d+\) goes by the order of a set", quiet)


class Queued(NamedTuple):
    n: int


class Running(NamedTuple):
    n: int


@pytest.mark.parametrize("pair", [(1, True), (0, 0.0), (Queued(1), Running(1)), ((1,), (True,))])
def test_values_that_python_calls_equal_are_two_states(pair: tuple[Any, Any]) -> None:
    before, after = pair
    assert before == after
    assert not same(before, after)

    @step
    def change(m: Toy, _task: Task) -> None:
        m.cells("kinds").put("kind", after)

    @step
    def look(m: Toy, _task: Task) -> str:
        return repr(m.cells("kinds")["kind"])

    async def changes() -> None:
        await change()

    async def looks() -> None:
        if await look() == repr(after):
            raise Violation(Invariant.BOOKS_BALANCE, "it has changed")

    def build() -> Toy:
        m = Toy()
        m.cells("kinds").put("kind", before)
        return m

    for bodies in ((changes, looks), (looks, changes)):
        for engine in ENGINES:
            assert engine(Configuration(build, tasks(*bodies))).answer == "broken"


def test_an_exact_value_is_of_what_cannot_change_only() -> None:
    assert exact((1, "a", None)) == exact((1, "a", None))
    for value in ([1], {1: 2}, {1}, frozenset({1}), object(), (1, [2])):
        with pytest.raises(NotFrozen):
            exact(value)


def test_a_random_run_that_does_not_show_its_violation_again_is_no_verdict() -> None:
    from zaplock.engines.checking.schedule import replay

    async def steady() -> None:
        await store("x", await load("x") + 1)

    def lost(m: Toy, _results: Any) -> None:
        if m.counters["x"] != 2:
            raise Violation(Invariant.BOOKS_BALANCE, "lost")

    configuration = Configuration(Toy, tasks(steady, steady), at_end=(lost,))
    found = sample(configuration, 100, seed=1)
    assert str(replay(configuration, found.schedule).violation) == str(found.violation)


def test_an_error_in_a_step_is_a_counterexample_of_its_own_kind() -> None:
    @step
    def look_up(m: Toy, _task: Task) -> int:
        return {0: 1}[m.counters["x"]]

    @step
    def insist(m: Toy, _task: Task) -> None:
        assert m.counters["x"] == 0, "x has moved"

    async def looks() -> None:
        await look_up()

    async def insists() -> None:
        await insist()

    async def moves() -> None:
        await add("x", 1)

    for engine in ENGINES:
        verdict = engine(Configuration(Toy, tasks(looks, moves)))
        assert verdict.answer == "failed"
        assert verdict.violations[0].invariant is Invariant.CODE_RUNS
        assert "KeyError in look_up (test_hidden_state.py:" in str(verdict.violations[0])
        verdict = engine(Configuration(Toy, tasks(insists, moves)))
        assert verdict.answer == "broken"
        assert verdict.violations[0].invariant is Invariant.ASSERTION_HOLDS
        assert "x has moved" in str(verdict.violations[0])


def test_the_audit_of_what_comes_with_zaplock_is_cheap() -> None:
    from zaplock.check.verdicts import closed_system, find_design, find_scenario

    spent = whole = 0.0
    for name in ("munmap-fault-gup", "munmap-file", "uffd-event"):
        verdict = explore(closed_system(find_scenario(name), find_design("linux-6.18")))
        assert verdict.audit.positions > 0
        assert verdict.audit.steps > 0
        assert not verdict.audit.whole
        spent, whole = spent + verdict.audit.seconds, whole + verdict.seconds
    assert spent < 0.25 * whole  # 2 to 6 % on an idle machine
