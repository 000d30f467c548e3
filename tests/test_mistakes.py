"""Mistakes of those who write operations and invariants: a right verdict, or one line that tells.

Each is checked by every engine: in memory, with whole states, split as a cluster does it, and by
random runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
from crews import explore_split

from zaplock.author import (
    Cx,
    InitialMapping,
    Invariant,
    LockClass,
    Machine,
    OwnCells,
    OwnInvariant,
    OwnOperation,
    Scenario,
    Task,
    TaskSpec,
    Violation,
    down_read,
    down_write,
    down_write_trylock,
    hand_over_read,
    lock_range,
    replace,
    step,
    unlock_range,
    up_read,
    up_write,
)
from zaplock.check.scenarios import validated
from zaplock.check.verdicts import CheckResult, check, find_design, sample_check
from zaplock.engines.checking.exhaustive import SearchLimits
from zaplock.errors import ProtocolError, UserError

COUNT: OwnCells[Any, Any] = OwnCells("mistaken_count", 0)
LOCK = LockClass("mistaken_lock")
LINUX = find_design("linux-6.18")
Body = Callable[[Cx], Any]


def at_most(most: int) -> OwnInvariant:
    return OwnInvariant(
        name="AT_MOST",
        says="the count stays small",
        always=lambda m: "too many" if COUNT.get(m, 1) > most else None,
    )


def scenario(*bodies: Body, invariant: OwnInvariant | None = None, daemons: str = "") -> Scenario:
    names = "abcd"[: len(bodies)]
    return validated(
        Scenario(
            summary="a mistake",
            task=tuple(TaskSpec((name,), name=name.upper(), daemon=name in daemons)
                       for name in names),
            operations=tuple(OwnOperation(name=name, run=body, arguments=(), summary="x")
                             for name, body in zip(names, bodies)),
            invariants=(at_most(9) if invariant is None else invariant,),
        ),
        "mistake",
    )  # fmt: skip


def searched(made: Scenario, limits: SearchLimits = SearchLimits()) -> list[CheckResult]:
    """Check it by every search that can prove something; the verdicts are alike."""

    def split(_fair: bool, _limits: Any, all_violations: bool, _progress: Any) -> Any:
        from zaplock.check.verdicts import closed_system

        system = closed_system(made, LINUX, _fair)
        return explore_split(system, 2, all_violations=all_violations)

    found = [check(made, LINUX, limits), check(made, LINUX, limits, exact=True),
             check(made, LINUX, limits, elsewhere=split)]  # fmt: skip
    assert len({(one.verdict, one.invariants) for one in found}) == 1, found
    return found


def broken(made: Scenario) -> str:
    """Return what every search says is broken; a random run finds it, too."""
    found = searched(made)[0]
    assert found.verdict in ("broken", "failed"), found
    drawn = sample_check(made, LINUX, 40)
    assert drawn.invariants in ((), found.invariants)
    return str(found.violation)


def refused(made: Scenario, words: str) -> None:
    """No search and no random run gives a verdict; all say why not."""
    for search in (searched, lambda made: sample_check(made, LINUX, 20)):
        with pytest.raises(ProtocolError, match=words):
            search(made)


async def counts(cx: Cx) -> int:
    await COUNT.add(1, 1)
    return 0


def test_what_is_asked_about_a_state_writes_nothing() -> None:
    """The engines ask it as often as they like, so no interleaving has such a write."""

    def forgets(m: Machine, *_more: Any) -> None:
        COUNT.put(m, 1, 0)

    def sees(m: Machine) -> bool:
        COUNT.put(m, 1, 7)
        return True

    for kind in (
        {"always": forgets},
        {"at_task_end": forgets},
        {"at_end": forgets},
        {"sometimes": sees},
    ):
        kinds: Any = kind
        invariant = OwnInvariant(name="WRITES", says="x", **kinds)
        refused(
            scenario(counts, counts, invariant=invariant),
            r"WRITES writes the cell mistaken_count\[1\]: .* may look at it and no more",
        )


def test_whoever_ends_the_process_has_failed() -> None:
    @step
    def quits(_m: Machine, _task: Task) -> None:
        raise SystemExit(0)

    async def in_a_step(cx: Cx) -> int:
        await quits()
        return 0

    async def in_a_protocol(cx: Cx) -> int:
        await COUNT.add(1, 1)
        raise SystemExit(0)

    def in_an_invariant(_m: Machine) -> None:
        raise SystemExit(0)

    asks = OwnInvariant(name="QUITS", says="x", always=in_an_invariant)
    for made in (scenario(in_a_step), scenario(in_a_protocol), scenario(counts, invariant=asks)):
        assert broken(made).startswith("CODE_RUNS: SystemExit in ")


def test_calls_without_an_end_have_failed() -> None:
    @step
    def falls(m: Machine, task: Task) -> Any:
        return falls.run(m, task)

    async def body(cx: Cx) -> int:
        await falls()
        return 0

    assert "RecursionError in falls" in broken(scenario(body))


def test_a_violation_that_nobody_raises_is_no_silence() -> None:
    rule = OwnInvariant(name="RULE", says="x")

    @step
    def forgets_to_raise(_m: Machine, _task: Task) -> None:
        rule.broken("oh")

    @step
    def catches(_m: Machine, _task: Task) -> None:
        try:
            raise Violation(Invariant.USE_AFTER_FREE, "oh")
        except Exception:
            return

    async def in_a_step(cx: Cx) -> int:
        await forgets_to_raise()
        return 0

    async def in_a_protocol(cx: Cx) -> int:
        await COUNT.add(1, 1)
        rule.broken("oh")
        return 0

    async def caught(cx: Cx) -> int:
        await catches()
        return 0

    for body in (in_a_step, in_a_protocol, caught):
        refused(scenario(body, invariant=rule), "is made, and then nothing comes of it: raise it")


def test_a_hold_that_is_handed_to_nobody_is_missed() -> None:
    async def to_nobody(cx: Cx) -> int:
        await down_read(LOCK(1))
        await hand_over_read(LOCK(1), 77)
        return 0

    async def to_one_that_has_ended(cx: Cx) -> int:
        await down_read(LOCK(1))
        await COUNT.wait_for(1, 1)
        await hand_over_read(LOCK(1), 2)
        return 0

    async def ends_it(cx: Cx) -> int:
        await COUNT.wait_for(1, 1)
        await up_read(LOCK(1))
        return 0

    async def to_a_worker(cx: Cx) -> int:
        await down_read(LOCK(1))
        await hand_over_read(LOCK(1), 2)
        await COUNT.add(1, 1)
        return 0

    assert "still held: by task 77, which there is none of" in broken(scenario(to_nobody))
    assert "task 2, which has ended before" in broken(scenario(to_one_that_has_ended, counts))
    assert searched(scenario(to_a_worker, ends_it, daemons="b"))[0].verdict == "proved"


async def holds_all(cx: Cx) -> int:
    await down_write(LOCK(1))
    await up_write(LOCK(1))
    return 0


def test_a_lock_is_named_once_and_is_of_one_kind() -> None:
    def taking(lock: Any) -> Body:
        async def body(cx: Cx) -> int:
            await down_write(lock)
            await up_write(lock)
            return 0

        return body

    async def holds_some(cx: Cx) -> int:
        await lock_range(LOCK(1), 0, 5)
        await unlock_range(LOCK(1), 0, 5)
        return 0

    async def holds_none(cx: Cx) -> int:
        await lock_range(LOCK(1), 5, 5)
        await unlock_range(LOCK(1), 5, 5)
        return 0

    for made, words in (
        (scenario(taking("mistaken_lock")), "'mistaken_lock' is no lock"),
        (scenario(taking(LOCK)), "is no lock; make a class of locks"),
        (scenario(holds_all, holds_some), "keep nobody out from each other"),
        (scenario(holds_none), "which is empty and keeps nobody out"),
        (scenario(holds_all, taking(LOCK(True))), "one lock with another of an equal name"),
    ):
        with pytest.raises(ProtocolError, match=words):
            searched(made)


def test_every_search_looks_for_runs_without_an_end() -> None:
    """Each of two tasks succeeds in some run; in another they go round for ever."""

    async def tries(cx: Cx) -> int:
        while not await down_write_trylock(LOCK(1)):
            pass
        await COUNT.add(1, 1)
        await up_write(LOCK(1))
        return 0

    async def is_in_the_way(cx: Cx) -> int:
        while await COUNT.read(1) != 1:
            if await down_write_trylock(LOCK(1)):
                await up_write(LOCK(1))
        return 0

    assert broken(scenario(tries, is_in_the_way)).startswith("NO_LIVELOCK: A and B can go round")


class ThreeReads:
    """An awaitable that counts its steps where no frame shows it."""

    def __init__(self) -> None:
        self.left = 3

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, _result: Any) -> Any:
        if not self.left:
            raise StopIteration(0)
        self.left -= 1
        return COUNT.read(1)

    def close(self) -> None:
        pass


def test_an_awaitable_that_shows_no_frame_is_taken_for_no_loop() -> None:
    async def body(cx: Cx) -> int:
        await ThreeReads()
        await COUNT.add(1, 2)
        return 0

    assert broken(scenario(body, invariant=at_most(1))) == "AT_MOST: too many"


def test_random_runs_end_in_time_where_the_tasks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from zaplock.engines.checking import sampled

    async def goes_on(cx: Cx) -> int:
        while True:
            await COUNT.add(2, 1)

    made = scenario(goes_on)
    started = time.process_time()
    assert sample_check(made, LINUX, 20, limits=SearchLimits(seconds=0.2)).verdict == (
        "not-exhausted"
    )
    assert time.process_time() - started < 20
    monkeypatch.setattr(sampled, "LONGEST", 50)
    assert sample_check(made, LINUX, 3).why == "3 random runs, 3 of them without an end"


@dataclass(frozen=True)
class Kept:
    number: Any


class Pinned(NamedTuple):
    id: int
    hash: int = 0


def test_values_of_ones_own_classes_and_of_any_size_are_told_apart() -> None:
    def keeping(value: Any) -> Body:
        async def body(cx: Cx) -> int:
            await COUNT.write(2, value)
            if await COUNT.read(2) == value:
                await COUNT.write(1, 2)
            return 0

        return body

    for value in (Kept(2), 1 << 100_000, (1 << 100_000, 1), -math.inf):
        made = scenario(keeping(value), invariant=at_most(1))
        assert broken(made) == "AT_MOST: too many"
    refused(scenario(keeping([1])), "make|use a number, a string or a tuple")


def test_chance_and_the_outer_world_by_way_of_a_module_are_refused() -> None:
    import glob
    import platform

    @step
    def draws(_m: Machine, _task: Task) -> int:
        return int(np.random.rand() < 0.5)

    @step
    def looks(_m: Machine, _task: Task) -> int:
        return len(glob.glob("/*"))

    @step
    def asks(_m: Machine, _task: Task) -> int:
        return len(platform.node())

    def body_of(one: Any) -> Body:
        async def body(cx: Cx) -> int:
            await one()
            return 0

        return body

    for one, module in ((draws, "numpy.random"), (looks, "glob"), (asks, "platform")):
        refused(scenario(body_of(one)), f"uses the module {module}")


def test_two_tasks_of_one_name_are_refused() -> None:
    twice = Scenario(summary="x", task=(TaskSpec(("munmap 0 4",), name="A"),) * 2)
    with pytest.raises(UserError, match="2 tasks are called 'A': give each a name of its own"):
        validated(twice, "twice")


def test_an_attribute_is_not_taken_for_the_built_in_function_of_its_name() -> None:
    async def body(cx: Cx) -> int:
        await COUNT.write(2, Pinned(1))
        pinned = await COUNT.read(2)
        await COUNT.write(1, pinned.id + pinned.hash)
        return 0

    assert searched(scenario(body))[0].verdict == "proved"


def under(munmap: Any, *tasks: TaskSpec) -> tuple[Scenario, Any]:
    """Make a scenario of one mapping, and Linux with another munmap."""
    made = Scenario(
        summary="a mapping", map=(InitialMapping((0, 4), populated=(0, 2)),), task=tasks
    )
    return validated(made, "one mapping"), replace(LINUX, name="mine", munmap=munmap)


def test_a_munmap_that_does_nothing_is_no_munmap() -> None:
    async def at_once(_cx: Cx, _start: int, _length: int) -> int:
        return 0

    async def later(cx: Cx, _start: int, _length: int) -> int:
        await COUNT.add(1, 1)
        return 0

    for munmap in (at_once, later):
        made, mine = under(munmap, TaskSpec(("munmap 0 4",), name="M"))
        for more in ({}, {"exact": True}):
            found = check(made, mine, **more)  # type: ignore[arg-type]
            assert str(found.violation) == (
                "RETURN_MEANS_GONE: M has returned from emptying it, but page 0 is still mapped "
                "to its old frame"
            )
        assert sample_check(made, mine, 3).invariants == ("RETURN_MEANS_GONE",)


def test_what_takes_no_step_is_judged_where_it_ends() -> None:
    async def refuses(_cx: Cx, _start: int, _length: int) -> int:
        return -22

    made, mine = under(refuses, TaskSpec(("munmap 0 4 -> 0",), name="M"))
    for more in ({}, {"exact": True}):
        found = check(made, mine, **more)  # type: ignore[arg-type]
        assert "M: munmap 0 4 gave -22, right would be 0" in str(found.violation)
        assert found.token


@pytest.mark.parametrize("result", [None, False, "done", 0.0])
def test_a_call_returns_a_number(result: Any) -> None:
    async def munmap(cx: Cx, start: int, length: int) -> Any:
        await LINUX.munmap(cx, start, length)
        return result

    made, mine = under(munmap, TaskSpec(("munmap 0 4",), name="M"))
    with pytest.raises(ProtocolError, match=f"'munmap' under mine returned {result!r}: return a"):
        check(made, mine)


def test_a_munmap_is_a_protocol() -> None:
    made, mine = under(lambda _cx, _start, _length: 0, TaskSpec(("munmap 0 4",), name="M"))
    with pytest.raises(ProtocolError, match="'munmap' under mine: what it runs gave 0 and no"):
        check(made, mine)
