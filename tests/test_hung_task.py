"""Waits that khungtaskd would report: only uninterruptible ones, each with its call chain."""

from zaplock.engines.timed.cpus import Sched
from zaplock.engines.timed.engine import TimedEngine
from zaplock.engines.timed.hung_tasks import LongWait
from zaplock.lab.hung_task import kernel_chain, message
from zaplock.model.machine import Machine
from zaplock.model.rwsem import RWSEM_4_9, LockStep, down_write, up_read, up_write
from zaplock.model.step import SleepStep, Task, WaitStep

LOCK = ("mmap_lock", 1)
SECOND = 10**9


def waits_of(*programs, timeout_ns: int = 120 * SECOND) -> list[LongWait]:
    engine = TimedEngine(
        Machine(), policy=RWSEM_4_9, sched=Sched(cpus=4), hung_task_timeout_ns=timeout_ns
    )
    for tid, program in enumerate(programs, 1):
        engine.spawn(Task(tid, 1, f"task{tid}"), program, at_ns=tid)
    engine.run()
    return engine.long_waits


async def holder(ns: int) -> None:
    await down_write(LOCK)
    await SleepStep(ns)
    await up_write(LOCK)


async def proc_pid_cmdline_read(killable: bool = False) -> None:
    await access_remote_vm(killable)


async def access_remote_vm(killable: bool) -> None:
    await LockStep("down", LOCK, False, killable)
    await up_read(LOCK)


def test_a_long_uninterruptible_wait_is_found_with_its_call_chain() -> None:
    (wait,) = waits_of(holder(150 * SECOND), proc_pid_cmdline_read())
    assert wait.name == "task2"
    assert wait.waited_ns == 150 * SECOND - 1
    assert wait.waits_for == "down_read"
    assert wait.chain == ("access_remote_vm", "proc_pid_cmdline_read")


def test_a_killable_wait_and_a_short_one_are_not() -> None:
    assert waits_of(holder(150 * SECOND), proc_pid_cmdline_read(killable=True)) == []
    assert waits_of(holder(100 * SECOND), proc_pid_cmdline_read()) == []


def test_a_wait_for_something_else_than_a_lock_hangs_as_well() -> None:
    async def waker(machine: Machine) -> None:
        await SleepStep(200 * SECOND)
        await Waking

    machine = Machine()
    answers = machine.cells("answers")
    answers.put("answered", 0)
    Waking = WaitStep(
        lambda m, task: (answers.put("answered", 1), m.wake(("answer",))),
        (), lambda m, task: True, ("none",),
    )  # fmt: skip

    async def waiter() -> None:
        await WaitStep(
            lambda m, task: None, (), lambda m, task: bool(answers["answered"]), ("answer",)
        )

    engine = TimedEngine(
        machine, policy=RWSEM_4_9, sched=Sched(cpus=2), hung_task_timeout_ns=120 * SECOND
    )
    engine.spawn(Task(1, 1, "monitor"), waker(machine))
    engine.spawn(Task(2, 1, "fault"), waiter())
    engine.run()
    assert [(wait.name, wait.chain) for wait in engine.long_waits] == [("fault", ("waiter",))]


def test_the_message_is_what_greps_of_a_kernel_log_look_for() -> None:
    chain = ("proc_pid_cmdline_read", "syscall", "read_cmdline")
    wait = LongWait(14018, "ps", 0, 121 * SECOND, "down_read", chain)
    lines = message(wait, 120 * SECOND, "4.9").splitlines()
    assert lines[0] == "INFO: task ps:14018 blocked for more than 120 seconds."
    assert "hung_task_timeout_secs" in lines[2]
    assert lines[3].split()[:2] == ["ps", "D"]
    assert lines[-2:] == [" down_read", " proc_pid_cmdline_read"]
    assert kernel_chain(wait) == ["down_read", "proc_pid_cmdline_read"]
