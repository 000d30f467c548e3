"""Loops have finitely many positions, and a run that never ends is shown with its cycle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from crews import explore_split
from toys import Toy, add, load, tasks

from zaplock.check.verdicts import check, find_design, find_scenario
from zaplock.cli import main
from zaplock.engines.checking.configuration import Configuration, Rules, TaskProgram
from zaplock.engines.checking.exhaustive import explore
from zaplock.engines.checking.liveness import find_livelock
from zaplock.engines.checking.reference import explore_plainly
from zaplock.engines.checking.schedule import replay, spell, unspell
from zaplock.model import rwsem
from zaplock.model.rwsem import LockStep
from zaplock.model.step import Task
from zaplock.model.violations import Invariant

LOCK, A, B = ("mmap_lock", 1), ("a", 0), ("b", 0)
EXAMPLES = Path(__file__).parent.parent / "docs" / "examples" / "retrying_munmap.py"
READERS_FIRST = f"{EXAMPLES.with_name('readers_first.py')}:READERS_FIRST"


async def spin() -> None:
    while not await rwsem.down_read_trylock(LOCK):
        pass
    await add("x", 1)
    await rwsem.up_read(LOCK)


async def write() -> None:
    await rwsem.down_write(LOCK)
    await add("y", 1)
    await rwsem.up_write(LOCK)


def giving_way(first: Any, second: Any) -> Any:
    async def body() -> None:
        while True:
            await rwsem.down_write(first)
            if await LockStep("try", second, True):
                break
            await rwsem.up_write(first)
        await rwsem.up_write(second)
        await rwsem.up_write(first)

    return body


async def poll() -> None:
    while await load("x") == 0:
        pass


async def read_consistently() -> tuple[int, int]:
    """A sequence lock: read again while a writer is at it or was."""
    while True:
        before = await load("x")
        if before % 2:
            continue
        found = await load("y"), await load("z")
        if await load("x") == before:
            return found


async def write_consistently() -> None:
    for name in ("x", "y", "z", "x"):
        await add(name, 1)


@pytest.mark.parametrize("fair", [False, True])
def test_a_spin_on_a_trylock_is_finite_and_ends(fair: bool) -> None:
    configuration = Configuration(Toy, tasks(spin, write, write), Rules(fair))
    verdicts = [
        explore(configuration), explore_plainly(configuration, exact=True),
        explore_split(configuration, 2),
    ]  # fmt: skip
    assert {one.answer for one in verdicts} == {"proved"}
    assert len({one.states for one in verdicts}) == 1
    assert verdicts[0].loops
    assert find_livelock(configuration) is None


def test_a_sequence_lock_reads_what_was_written_together() -> None:
    configuration = Configuration(Toy, tasks(read_consistently, write_consistently))
    verdict = explore(configuration)
    assert verdict.answer == "proved"
    assert set(verdict.results[0]) == {(0, 0), (1, 1)}
    assert find_livelock(configuration) is None


def test_two_that_give_way_to_each_other_may_do_so_for_ever() -> None:
    configuration = Configuration(Toy, tasks(giving_way(A, B), giving_way(B, A)))
    assert explore(configuration).answer == "proved"
    lasso = find_livelock(configuration)
    assert lasso is not None
    assert lasso.violation.invariant is Invariant.NO_LIVELOCK
    assert set(lasso.schedule[-lasso.cycle :]) == {0, 1}
    run = replay(configuration, lasso.schedule, lasso.cycle)
    assert str(run.violation) == str(lasso.violation)
    token = spell(lasso.schedule, (), lasso.cycle)
    assert unspell(token, 2) == (lasso.schedule, (), lasso.cycle)


def test_who_waits_for_what_never_comes_goes_round_for_ever() -> None:
    alone = find_livelock(Configuration(Toy, tasks(poll, write)))
    assert alone is not None
    assert alone.cycle == 1
    assert "no end comes for task1" in str(alone.violation)

    async def set_x() -> None:
        await add("x", 1)

    assert find_livelock(Configuration(Toy, tasks(poll, set_x))) is None, "it comes at last"


def test_a_daemon_may_go_round_for_ever() -> None:
    daemon = TaskProgram(Task(1, 1), poll, daemon=True)
    assert find_livelock(Configuration(Toy, (daemon, *tasks(write, write)[1:]))) is None


def test_a_loop_over_a_hidden_iterator_is_no_loop_of_positions() -> None:
    async def thrice() -> None:
        for _ in range(3):
            await add("x", 1)

    verdict = explore(Configuration(Toy, tasks(thrice)))
    assert (verdict.states, verdict.loops) == (4, False)


def test_a_loop_inside_a_for_is_finite_each_time_round() -> None:
    async def twice() -> None:
        for _ in range(2):
            await spin()

    configuration = Configuration(Toy, tasks(twice, write))
    assert explore(configuration).states == explore_plainly(configuration, exact=True).states
    assert explore(configuration).answer == "proved"


def test_a_munmap_that_tries_the_lock_is_proved_and_one_that_gives_way_is_not() -> None:
    patient = find_design(f"{EXAMPLES}:PATIENT")
    found = check(find_scenario("munmap-fault-gup"), patient)
    assert (found.verdict, found.queues) == ("proved", ("any", "fair"))
    found = check(find_scenario("munmap+munmap"), find_design(f"{EXAMPLES}:GIVING_WAY"))
    assert found.verdict == "broken"
    assert found.invariants == ("NO_LIVELOCK",)
    assert found.cycle == 6


def test_the_cycle_is_shown_and_its_token_replays(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "munmap+munmap", "--design", f"{EXAMPLES}:GIVING_WAY"])
    out = capsys.readouterr().out
    assert "from here on these 6 steps repeat for ever" in out
    token = out.split("token: ")[1].splitlines()[0]
    assert main(["check", "--replay", token, "--design", f"{EXAMPLES}:GIVING_WAY"]) == 1
    assert "NO_LIVELOCK: A and B can go round for ever" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scenario", "kernel", "starved"),
    [
        ("overtaken-by-writers", "linux-4.9", True),
        ("overtaken-by-writers", "linux-5.3", False),
        ("overtaken-by-writers", "linux-5.11", False),
        ("overtaken-by-readers", "linux-4.9", False),
        ("overtaken-by-readers", "linux-5.3", True),
        ("overtaken-by-readers", "linux-5.11", False),
    ],
)
def test_the_queues_of_4_9_5_3_and_5_11_are_judged(
    scenario: str, kernel: str, starved: bool
) -> None:
    found = check(find_scenario(scenario), find_design(kernel))
    assert found.verdict == ("broken" if starved else "proved")
    if starved:
        assert found.invariants == ("NO_STARVATION",)
        assert found.cycle
        assert "no end comes for " in str(found.violation)


@pytest.mark.parametrize("scenario", ["starvation", "overtaken-by-readers"])
def test_where_readers_go_first_a_writer_starves_and_the_cycle_replays(
    scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", scenario, "--design", READERS_FIRST]) == 1
    out = capsys.readouterr().out
    assert "NO_STARVATION: " in out
    assert "steps repeat for ever" in out
    token = out.split("token: ")[1].splitlines()[0]
    assert main(["check", "--replay", token, "--design", READERS_FIRST]) == 1
    assert "the rule: who asks gets in" in capsys.readouterr().out


def test_beside_readers_who_ask_for_ever_a_wrong_result_and_a_deadlock_are_found() -> None:
    patient = find_scenario("starvation")
    wrong = msgspec.structs.replace(
        patient, task=(msgspec.structs.replace(patient.task[0], do=("munmap 0 2 -> 5",)),
                       *patient.task[1:]),
    )  # fmt: skip
    assert check(wrong, find_design("linux-6.18")).verdict == "broken"
    forgets = find_design("linux-4.9/no-unlock-of-write")
    assert check(patient, forgets).verdict == "broken"
