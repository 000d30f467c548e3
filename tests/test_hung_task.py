"""Waits that khungtaskd would report: only uninterruptible ones, each with its call chain."""

from dataclasses import replace

import pytest

from zaplock.engines.timed.cpus import Sched
from zaplock.engines.timed.engine import TimedEngine
from zaplock.engines.timed.hung_tasks import LongWait
from zaplock.lab.blocker import Blocker, Party, blocker
from zaplock.lab.hung_report import comparable, task_in
from zaplock.lab.hung_task import HungTask, functions, in_between, kernel_chain, message
from zaplock.measure.guest.rows import hung_task_messages
from zaplock.model.machine import Machine
from zaplock.model.rwsem import (
    RWSEM_4_9,
    RWSEM_5_11,
    LockStep,
    down_write,
    downgrade_write,
    up_read,
    up_write,
)
from zaplock.model.step import SleepStep, Task, WaitStep
from zaplock.trace.analysis import analyse

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


def ps(chain: tuple[str, ...] = ("proc_pid_cmdline_read",)) -> LongWait:
    return LongWait(14018, "ps", 0, 121 * SECOND, "down_read", (*chain, "syscall", "read_cmdline"))


def test_the_message_of_the_rfc_is_written_line_by_line() -> None:
    # A 4.9 kernel's, as the RFC shows it; its stack's words and doubted entries aside.
    log = """\
INFO: task ps:14018 blocked for more than 120 seconds.
      Tainted: G            E   4.9.79-009.x86_64 #1
"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.
ps              D    0 14018      1 0x00000004
 ffff885582f84000 ffff885e8682f000 ffff880972943000 ffff885ebf499bc0
Call Trace:
 [<ffffffff817154d0>] ? __schedule+0x250/0x730
 [<ffffffff817159e6>] schedule+0x36/0x80
 [<ffffffff81718560>] rwsem_down_read_failed+0xf0/0x150
 [<ffffffff81390a28>] call_rwsem_down_read_failed+0x18/0x30
 [<ffffffff81717db0>] down_read+0x20/0x40
 [<ffffffff812b9439>] proc_pid_cmdline_read+0xd9/0x4e0
 [<ffffffff81241d87>] __vfs_read+0x37/0x150
 [<ffffffff81242266>] vfs_read+0x96/0x130
 [<ffffffff812437b5>] SyS_read+0x55/0xc0
 [<ffffffff8171a6da>] entry_SYSCALL_64_fastpath+0x1a/0xc5
"""
    about = task_in(log)
    assert about is not None
    assert (about.name, about.pid, about.ppid, about.flags) == ("ps", 14018, 1, 4)
    written = message(ps(), 120 * SECOND, "4.9", about)
    assert comparable(written) == comparable(log)


@pytest.mark.parametrize(
    ("release", "line"),
    [
        ("4.18", "ps              D    0 14018      1 0x00000004"),
        ("5.10", "task:ps              state:D stack:    0 pid:14018 ppid:     1 flags:0x00000004"),
        ("6.1", "task:ps              state:D stack:0     pid:14018 ppid:1      flags:0x00000004"),
        (
            "6.12",
            "task:ps              state:D stack:0     pid:14018 tgid:14018 ppid:1      "
            "flags:0x00000004",
        ),
    ],
)
def test_the_line_of_the_task_is_that_of_its_release(release: str, line: str) -> None:
    about = HungTask("ps", 14018, f"{release} #1", 14018, 1, 4)
    assert message(ps(), SECOND, release, about).splitlines()[3] == line
    assert task_in(message(ps(), SECOND, release, about)) == about


def test_functions_are_called_as_the_release_calls_them() -> None:
    arguments = ps(("__access_remote_vm", "read_arguments", "proc_pid_cmdline"))
    told = functions(arguments, "4.20")
    assert told[:4] == ["__schedule", "schedule", "rwsem_down_read_failed",
                        "call_rwsem_down_read_failed"]  # fmt: skip
    assert told[5:7] == ["__access_remote_vm", "proc_pid_cmdline_read"]
    fault = LongWait(7, "fault", 0, SECOND, "down_read",
                     ("page_fault_mmap_lock", "user_fault", "write_memory"))  # fmt: skip
    assert functions(fault, "5.10")[2:] == [
        "rwsem_down_read_slowpath", "do_user_addr_fault", "exc_page_fault", "asm_exc_page_fault",
    ]  # fmt: skip
    assert functions(fault, "4.9")[-3:] == ["__do_page_fault", "do_page_fault", "page_fault"]
    assert kernel_chain(fault) == ["down_read", "page_fault_mmap_lock", "user_fault"]
    gup = LongWait(7, "gup", 0, SECOND, "down_read", ("process_vm_rw", "process_vm_readv"))
    assert ("__get_user_pages_unlocked" in functions(gup, "4.9")) is True  # a real 4.9.0's
    assert ("__get_user_pages_unlocked" in functions(gup, "4.10")) is False


def test_what_is_no_report_is_nobodys() -> None:
    assert task_in("") is None
    assert task_in("INFO: task ps:1 blocked for more than 1 seconds.") is None


def test_from_6_17_on_the_likely_owner_is_told_and_what_no_kernel_says_is_our_own() -> None:
    # As a 7.3 kernel logs it; the owner's own stack, which follows, aside.
    log = """\
INFO: task gup:93 blocked for more than 1 seconds.
      Not tainted 7.3.4+deb13-cloud-amd64 #1 Debian 7.3.4-1~bpo13+1
"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.
task:gup             state:D stack:0     pid:93    tgid:93    ppid:1      task_flags:0x0040 \
flags:0x00080000
Call Trace:
 <TASK>
 __schedule+0x52a/0x1080
 schedule+0x28/0xa0
 schedule_preempt_disabled+0x16/0x30
 rwsem_down_read_slowpath+0x2ca/0x590
 down_read+0x49/0xa0
 process_vm_rw_core.constprop.0+0x1e5/0x4f0
 process_vm_rw+0x10c/0x160
 __x64_sys_process_vm_readv+0x27/0x30
 do_syscall_64+0xc2/0x520
 entry_SYSCALL_64_after_hwframe+0x76/0x7e
 </TASK>
INFO: task gup:93 <reader> blocked on an rw-semaphore likely owned by task zap:91 <reader>
"""
    wait = LongWait(5, "gup", 0, 2 * SECOND, "down_read", ("process_vm_rw",))
    behind = Blocker(Party(1, "zap", False), (Party(6, "mmap", True),))
    about = task_in(log)
    assert comparable(message(wait, SECOND, "7.3", about, behind)) == comparable(log)
    assert "owned by" not in message(wait, SECOND, "6.16", about, behind)
    forgotten = replace(behind, is_known=False)
    assert message(wait, SECOND, "7.3", about, forgotten).splitlines()[-1] == (
        "INFO: task gup:93 is blocked on an rw-semaphore, but the owner is not found."  # a real one
    )
    assert in_between(wait, behind) == (
        "(zaplock: mmap:6 <writer> queued in between; without it gup:5 would share the lock with "
        "zap:1)"
    )
    assert not in_between(wait, Blocker(Party(1, "zap", True), behind.between))


def test_a_report_is_cut_out_of_a_log_without_the_programs_registers() -> None:
    log = """\
[    5.1] INFO: task gup:93 blocked for more than 1 seconds.
[    5.1] Call Trace:
[    5.1]  <TASK>
[    5.1]  down_read+0x49/0xa0
[    5.1] RIP: 0033:0x41b2c7
[    5.1] RSP: 002b:00007ffd0 EFLAGS: 00000246 ORIG_RAX: 0000000000000136
[    5.1]  </TASK>
[    5.1] INFO: task gup:93 <reader> blocked on an rw-semaphore likely owned by task zap:91 <reader>
[    5.1] task:zap             state:R
[    5.1]  <TASK>
[    5.1]  </TASK>
"""
    (report,) = hung_task_messages(log)
    *trace, owner = report.splitlines()[2:]
    assert trace == [" <TASK>", " down_read+0x49/0xa0", " </TASK>"]
    assert owner.endswith("likely owned by task zap:91 <reader>")


def test_the_blocker_is_who_has_the_lock_then_and_who_queued_before() -> None:
    async def downgrades() -> None:
        await down_write(LOCK)
        await SleepStep(SECOND)
        await downgrade_write(LOCK)
        await SleepStep(9 * SECOND)
        await up_read(LOCK)

    async def writes() -> None:
        await SleepStep(SECOND // 2)
        await down_write(LOCK)
        await up_write(LOCK)

    async def reads() -> None:
        await SleepStep(SECOND * 3 // 4)
        await LockStep("down", LOCK, False, False)
        await up_read(LOCK)

    engine = TimedEngine(
        Machine(), policy=RWSEM_4_9, sched=Sched(cpus=4), hung_task_timeout_ns=2 * SECOND
    )
    for tid, program in enumerate((downgrades(), writes(), reads()), 1):
        engine.spawn(Task(tid, 1, f"task{tid}"), program, at_ns=0)
    engine.run()
    seen = analyse(engine.events(), "4.9")
    found = {at: blocker(seen, 3, at * SECOND // 10) for at in (5, 9, 50, 110)}
    writer = (Party(2, "task2", True),)
    assert found == {
        5: None,
        9: Blocker(Party(1, "task1", True), writer),
        50: Blocker(Party(1, "task1", False), writer),
        110: None,
    }


def test_a_reader_who_has_left_is_no_owner_and_hides_who_still_reads() -> None:
    """The semaphore remembers who had it last, and forgets it when that one leaves."""

    async def reads(from_ns: int, until_ns: int) -> None:
        await SleepStep(from_ns)
        await LockStep("down", LOCK, False, False)
        await SleepStep(until_ns - from_ns)
        await up_read(LOCK)

    async def writes() -> None:
        await SleepStep(4 * SECOND)
        await down_write(LOCK)
        await up_write(LOCK)

    engine = TimedEngine(
        Machine(), policy=RWSEM_5_11, sched=Sched(cpus=4), hung_task_timeout_ns=2 * SECOND
    )
    stories = (reads(SECOND, 10 * SECOND), reads(2 * SECOND, 6 * SECOND), writes())
    for tid, program in enumerate(stories, 1):
        engine.spawn(Task(tid, 1, f"task{tid}"), program, at_ns=0)
    engine.run()
    seen = analyse(engine.events(), "7.3")
    assert blocker(seen, 3, 5 * SECOND) == Blocker(Party(2, "task2", False))
    assert blocker(seen, 3, 8 * SECOND) == Blocker(Party(1, "task1", False), is_known=False)
