"""Actors beyond threads that munmap and touch: memory that runs short, tasks that create tasks,
holds that are handed over, drivers, and expectations that depend on each other."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest
from crews import explore_split

from zaplock.author import (
    OwnCells,
    OwnOperation,
    add_counter,
    detach_vmas_to_be_unmapped,
    down_read,
    down_write,
    hand_over_read,
    lookup_and_split,
    mmap_write_downgrade,
    remove_vma_list,
    start_task,
    task_id,
    unmap_region,
    up_read,
    up_write,
)
from zaplock.check.scenarios import InitialMapping, Scenario, TaskSpec
from zaplock.check.verdicts import Added, check, closed_system, find_design, find_scenario
from zaplock.designs import SHIPPED
from zaplock.engines.checking.exhaustive import explore
from zaplock.engines.checking.reference import explore_plainly
from zaplock.engines.checking.schedule import replay
from zaplock.errors import ProtocolError, UserError
from zaplock.model.violations import Invariant
from zaplock.protocols.shortage import no_memory

LINUX = SHIPPED["linux-6.18"]
MAPPED = (InitialMapping((0, 4), populated=(0, 2)),)


def verdict(scenario: str, design: str, added: Added = Added()) -> tuple[str, tuple[str, ...]]:
    found = check(find_scenario(scenario, added), find_design(design))
    return found.verdict, found.invariants


# Memory runs short


def test_a_failed_mmap_over_a_mapping_has_left_a_hole_to_6_11() -> None:
    for release in ("4.9", "5.10", "6.11"):
        assert verdict("no-memory-fixed", f"linux-{release}") == (
            "broken", ("ERROR_LEAVES_NO_TRACE",)
        )  # fmt: skip
    assert verdict("no-memory-fixed", "linux-6.12") == ("proved", ())


@pytest.mark.parametrize("scenario", ["munmap+fault", "munmap+gup", "brk+fault", "fork+munmap"])
def test_any_allocation_of_any_scenario_can_fail_by_one_switch(scenario: str) -> None:
    plain = check(find_scenario(scenario), LINUX)
    short = check(find_scenario(scenario, Added(failing=1)), LINUX)
    assert short.verdict == plain.verdict == "proved"
    assert short.states > 2 * plain.states


def test_filling_memory_in_advance_can_fail_for_want_of_it() -> None:
    tasks = (TaskSpec(("mlock 0 4", "munlock 0 4 -> 0")), TaskSpec(("write 1 7",)))
    short = Scenario("filled", tasks, MAPPED, failing_allocations=1, forbidden=("A.1 == EAGAIN",))
    assert check(short, LINUX).invariants == ("FORBIDDEN_OUTCOME",)
    allowed = msgspec.structs.replace(short, forbidden=(), possible=("A.1 == EAGAIN",))
    assert (check(allowed, LINUX).verdict, check(allowed, LINUX).why) == ("proved", "")


def test_two_allocations_that_fail_are_more_than_one() -> None:
    found = [check(find_scenario("munmap+fault", Added(failing=n)), LINUX) for n in (0, 1, 2)]
    assert {one.verdict for one in found} == {"proved"}
    assert found[0].states < found[1].states < found[2].states


def test_a_counterexample_says_that_allocations_fail_and_is_replayed_so() -> None:
    told = command("check", "no-memory-fixed", "--design", "linux-6.1", "--json")
    found = json.loads(told.stdout)
    assert (told.returncode, found["failing_allocations"]) == (1, 1)
    assert "~failing1~" in found["token"]
    again = command("check", "--replay", found["token"], "--json")
    assert json.loads(again.stdout)["invariant"] == "ERROR_LEAVES_NO_TRACE"


def test_an_error_path_of_ones_own_is_tried() -> None:
    async def forgets(cx, page):  # type: ignore[no-untyped-def]
        await down_write(("own", 1))
        if await no_memory(cx):
            return -12
        await up_write(("own", 1))
        return 0

    own = OwnOperation(name="own-alloc", run=forgets, arguments=("page",), summary="allocates")
    scenario = Scenario("own", (TaskSpec(("own-alloc 1",)),), MAPPED, operations=(own,))
    assert check(scenario, LINUX).verdict == "proved"
    found = check(msgspec.structs.replace(scenario, failing_allocations=1), LINUX)
    assert found.invariants == ("LOCK_MODE",)


def test_only_what_an_allocation_has_failed_for_is_excused() -> None:
    async def spurious(cx, page):  # type: ignore[no-untyped-def]
        await no_memory(cx)
        return -12

    own = OwnOperation(name="spurious", run=spurious, arguments=("page",), summary="ENOMEM")
    task = (TaskSpec(("spurious 1 -> 0",)),)
    scenario = Scenario("own", task, MAPPED, operations=(own,), failing_allocations=1)
    assert check(scenario, LINUX).invariants == ("NO_SPURIOUS_ENOMEM",)


@pytest.mark.parametrize("number", ["-1", "5"])
def test_so_many_allocations_cannot_fail(number: str) -> None:
    told = command("check", "expand", "--failing-allocations", number)
    assert told.returncode == 2
    assert told.stderr.count("\n") == 1
    assert number in told.stderr


# Tasks that create tasks


def system_of(*tasks: TaskSpec, operations: tuple[OwnOperation, ...] = ()) -> Scenario:
    return Scenario("tasks", tasks, MAPPED, name="tasks", operations=operations)


def test_a_child_runs_after_its_fork_and_in_its_copy() -> None:
    parent = TaskSpec(("fork 2 -> 0", "write 0 7 -> 0"), "parent")
    child = TaskSpec(("read 0 -> old", "exit"), "child", mm=2, begins="parent.1")
    scenario = system_of(parent, child)
    assert check(scenario, LINUX).verdict == "proved"
    early = msgspec.structs.replace(child, begins="")
    assert check(system_of(parent, early), LINUX).verdict == "broken", "nothing is there yet"


def test_a_child_of_a_fork_that_fails_never_begins() -> None:
    parent = TaskSpec(("fork 2",), "parent")
    child = TaskSpec(("read 0 -> old", "exit"), "child", mm=2, begins="parent.1")
    scenario = msgspec.structs.replace(
        system_of(parent, child),
        failing_allocations=1, possible=("parent.1 == ENOMEM", "parent.1 == 0 and child.1 == 1000"),
        forbidden=("parent.1 == ENOMEM and child.1 == 1000",),
    )  # fmt: skip
    assert check(scenario, LINUX).verdict == "proved"


def test_every_engine_agrees_on_tasks_that_are_created() -> None:
    system = closed_system(find_scenario("fork-child"), LINUX)
    plain, exact = explore(system), explore_plainly(system, exact=True)
    split = explore_split(system, 2)
    assert (plain.answer, plain.states) == (exact.answer, exact.states) == ("proved", split.states)


@pytest.mark.parametrize("begins", ["child.1", "parent.2", "parent.0", "nobody.1", "later", "A"])
def test_a_task_begins_with_an_operation_that_is_there(begins: str) -> None:
    parent = TaskSpec(("fork 2",), "parent")
    child = TaskSpec(("exit",), "child", mm=2, begins=begins)
    with pytest.raises(UserError, match="begins"):
        check(system_of(parent, child), LINUX)


# A shared hold that another task ends: munmap leaves page tables and VMAs to a worker

WORK: OwnCells[int, tuple[int, ...]] = OwnCells("left_work", ())


async def munmap_with_worker(cx, start, length):  # type: ignore[no-untyped-def]
    await down_write(cx.mmap_lock)
    _, handles = await lookup_and_split(cx, start, start + length)
    await detach_vmas_to_be_unmapped(handles)
    await mmap_write_downgrade(cx)
    await unmap_region(cx, handles, start, start + length, (0, 0))
    await WORK.write(1, handles)
    await hand_over_read(cx.mmap_lock, await task_id("worker"))
    await start_task("worker")
    return 0


async def finish(cx):  # type: ignore[no-untyped-def]
    await remove_vma_list(cx, await WORK.read(1))
    await up_read(cx.mmap_lock)
    return 0


HANDING = replace(LINUX, name="handing", munmap=munmap_with_worker)
FINISH = OwnOperation(name="finish", run=finish, arguments=(), summary="what munmap has left")
WORKER = TaskSpec(("finish",), "worker", begins="when started")
MUNMAP = TaskSpec(("munmap 0 4 -> 0",), "munmap")
TOUCH = TaskSpec(("read 1 -> old SIGSEGV",), "touch")


def test_a_hold_that_is_handed_over_is_the_other_tasks_to_end() -> None:
    scenario = system_of(MUNMAP, TOUCH, WORKER, operations=(FINISH,))
    assert check(scenario, HANDING).verdict == "proved"


def test_a_worker_that_is_started_before_it_has_the_hold_is_found() -> None:
    async def hurries(cx, start, length):  # type: ignore[no-untyped-def]
        await LINUX.munmap(cx, start, length)
        await down_read(cx.mmap_lock)
        await hand_over_read(cx.mmap_lock, await start_task("worker"))
        return 0

    scenario = system_of(MUNMAP, WORKER, operations=(FINISH,))
    found = check(scenario, replace(LINUX, name="hurrying", munmap=hurries))
    assert found.violation is not None
    assert "does up_read but holds not" in found.violation.message


def test_a_worker_that_nobody_starts_rests() -> None:
    scenario = system_of(MUNMAP, TOUCH, WORKER, operations=(FINISH,))
    found = check(scenario, LINUX)
    assert (found.verdict, found.why) == ("vacuous", "never: task 3 succeeds")


def test_without_the_handing_over_the_lock_is_held_for_ever() -> None:
    async def keeps(cx, start, length):  # type: ignore[no-untyped-def]
        await LINUX.munmap(cx, start, length)
        await down_read(cx.mmap_lock)
        await add_counter(cx.mm, "hiwater_vm", 0)
        await start_task("worker")
        return 0

    scenario = system_of(MUNMAP, WORKER, operations=(FINISH,))
    found = check(scenario, replace(LINUX, name="keeping", munmap=keeps))
    assert found.invariants == ("LOCK_MODE",)


def test_who_holds_not_for_read_has_nothing_to_hand_over() -> None:
    async def hands(cx):  # type: ignore[no-untyped-def]
        await down_write(cx.mmap_lock)
        await hand_over_read(cx.mmap_lock, 2)
        return 0

    own = OwnOperation(name="hands", run=hands, arguments=(), summary="hands")
    found = check(system_of(TaskSpec(("hands",)), operations=(own,)), LINUX)
    assert found.violation is not None
    assert found.violation.invariant is Invariant.LOCK_MODE


def test_a_task_that_is_not_there_cannot_be_started() -> None:
    async def starts(cx):  # type: ignore[no-untyped-def]
        return await start_task("nobody")

    own = OwnOperation(name="starts", run=starts, arguments=(), summary="starts")
    with pytest.raises(ProtocolError, match="no task of that name waits"):
        check(system_of(TaskSpec(("starts",)), operations=(own,)), LINUX)


# Expectations that depend on each other


def test_results_are_compared_with_each_other() -> None:
    two = (TaskSpec(("mmap-anywhere 4",)), TaskSpec(("mmap-anywhere 4",)))
    scenario = Scenario("two places", two, room=(0, 16), forbidden=("A.1 == B.1",))
    assert check(scenario, LINUX).verdict == "proved"
    upside_down = msgspec.structs.replace(scenario, forbidden=("A.1 > B.1",))
    assert check(upside_down, LINUX).invariants == ("FORBIDDEN_OUTCOME",)


def test_of_two_that_replace_nothing_one_gets_the_place() -> None:
    found = check(find_scenario("noreplace"), LINUX)
    assert (found.verdict, found.why) == ("proved", "")


# Drivers


def test_a_saved_vma_is_used_after_munmap_let_readers_in() -> None:
    assert verdict("driver-ioctl", "linux-4.19") == ("proved", ())
    for scenario, rule in (
        ("driver-ioctl", "NO_PTE_BEHIND_ZAP"),
        ("driver-shrink", "USE_AFTER_FREE"),
    ):
        found = check(find_scenario(scenario), find_design("linux-4.20"))
        assert rule in found.invariants
        assert found.schedule is not None
        system = closed_system(find_scenario(scenario), find_design("linux-4.20"), found.fair)
        assert replay(system, found.schedule).violation is not None
    assert verdict("driver-lookup", "linux-4.20") == ("proved", ())


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zaplock", *words], capture_output=True, text=True, check=False
    )
