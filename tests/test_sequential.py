"""The sequential engine: a program alone on the machine, told as short stories."""

import pytest

from zaplock.engines.sequential import LockCall, run
from zaplock.model.machine import Machine
from zaplock.model.rwsem import (
    EINTR_RESULT,
    FREE,
    down_read,
    down_read_trylock,
    down_write,
    down_write_killable,
    downgrade_write,
    up_read,
    up_write,
)
from zaplock.model.step import MarkStep, SleepStep, Task, WaitStep, step
from zaplock.model.violations import Invariant, Violation

LOCK = ("mmap_lock", 1)
T1, T2 = Task(1, 1), Task(2, 1)


@step
def note(machine: Machine, task: Task, what: str) -> int:
    machine.signals.put(100 + len(machine.signals), what)
    return len(machine.signals)


def notes(machine: Machine) -> list[str]:
    return list(machine.signals.data.values())


async def zap_with_read_lock() -> str:
    await MarkStep("op_begin", ("munmap", 0, 4096, 0))
    assert await down_write_killable(LOCK) == 0
    assert await note("detach") == 1
    await downgrade_write(LOCK)
    await SleepStep(10**12)
    assert await note("zap") == 2
    await up_read(LOCK)
    await MarkStep("op_end", ("munmap", 0))
    return "done"


def test_a_program_runs_to_its_end_and_returns_its_value() -> None:
    machine = Machine()
    calls: list[LockCall] = []
    assert run(machine, T1, zap_with_read_lock(), calls) == "done"
    assert notes(machine) == ["detach", "zap"]
    assert machine.locks[LOCK] == FREE
    assert calls == [
        ("down", True, "mmap_lock"),
        ("downgrade", True, "mmap_lock"),
        ("up", False, "mmap_lock"),
    ]


def test_waiting_for_a_lock_that_nobody_can_release_is_a_deadlock() -> None:
    machine = Machine()

    async def take() -> None:
        await down_write(LOCK)

    run(machine, T1, take())
    with pytest.raises(Violation, match="task2 waits for mmap_lock") as caught:
        run(machine, T2, take())
    assert caught.value.invariant is Invariant.NO_DEADLOCK


def test_a_trylock_that_fails_is_a_result_and_not_a_deadlock() -> None:
    machine = Machine()
    calls: list[LockCall] = []

    async def hold() -> None:
        await down_write(LOCK)

    async def attempt() -> int:
        return await down_read_trylock(LOCK)

    run(machine, T1, hold())
    assert run(machine, T2, attempt(), calls) == 0
    assert calls == [("failed", False, "mmap_lock")]


def test_a_killed_task_takes_a_free_lock_but_does_not_wait_for_a_held_one() -> None:
    machine = Machine()
    machine.signals.put(1, "SIGKILL")

    async def take() -> int:
        return await down_write_killable(LOCK)

    async def hold() -> None:
        await down_read(LOCK)

    assert run(machine, T1, take()) == 0
    run(machine, T1, _give_back())
    run(machine, T2, hold())
    assert run(machine, T1, take()) == EINTR_RESULT


async def _give_back() -> None:
    await up_write(LOCK)


def test_a_wait_must_be_ready_unless_it_is_killable_and_its_task_is_killed() -> None:
    machine = Machine()

    async def wait(killable: bool) -> int:
        ready = lambda machine, task, tid: tid in machine.signals  # noqa: E731
        answer = lambda machine, task, tid: tid  # noqa: E731
        return await WaitStep(answer, (7,), ready, ("event", 7), killable)

    with pytest.raises(Violation, match="waits for \\('event', 7\\)"):
        run(machine, T1, wait(True))
    machine.signals.put(1, "SIGKILL")
    assert run(machine, T1, wait(True)) == EINTR_RESULT
    with pytest.raises(Violation):
        run(machine, T1, wait(False))
    machine.signals.put(7, "SIGUSR1")
    assert run(machine, T1, wait(False)) == 7


def test_a_wrong_unlock_is_reported_with_both_modes() -> None:
    machine = Machine()

    async def wrong() -> None:
        await down_read(LOCK)
        await up_write(LOCK)

    with pytest.raises(Violation, match="does up_write but holds read") as caught:
        run(machine, T1, wrong())
    assert caught.value.invariant is Invariant.LOCK_MODE


def test_a_fault_of_a_step_ends_the_program_and_runs_its_finally_blocks() -> None:
    machine = Machine()
    left: list[str] = []

    @step
    def broken(machine: Machine, task: Task) -> None:
        raise StopIteration("not the end of the program")

    async def program() -> None:
        try:
            await broken()
        finally:
            left.append("finally")

    with pytest.raises(StopIteration):
        run(machine, T1, program())
    assert left == ["finally"]
