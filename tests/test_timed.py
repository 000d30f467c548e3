"""The timed engine, told as short stories: who does what at which nanosecond."""

import pytest
from stage import LOCK, MS, Story, kill, wait_for, wake, work

from zaplock.model.rwsem import (
    EINTR_RESULT,
    down_read,
    down_write,
    downgrade_write,
    up_write,
)
from zaplock.model.step import MarkStep, SleepStep
from zaplock.model.violations import Invariant, Violation
from zaplock.trace.events import EventKind

# Time and CPUs


def test_a_step_happens_and_then_its_price_is_paid() -> None:
    story = Story()

    async def program() -> None:
        await work(100)
        await story.say("after work")
        await SleepStep(50)
        await story.say("after sleep")

    thread = story.start("a", program(), at_ns=7)
    assert story.run() == [(107, "a", "after work"), (157, "a", "after sleep")]
    assert thread.finished_ns == 157


def test_a_day_and_a_nanosecond_are_told_apart() -> None:
    day_ns = 86_400 * 1_000_000_000

    async def program(story: Story) -> None:
        await story.write(1)
        await SleepStep(day_ns)
        await story.write(1)

    story = Story()
    story.start("a", program(story), at_ns=7)
    story.run()
    events = story.engine.events()
    assert events["time_ns"].tolist() == [7, 7, 8, day_ns + 8, day_ns + 8, day_ns + 9]


def test_a_program_may_yield_its_steps_instead_of_awaiting_them() -> None:
    story = Story()

    async def awaits() -> int:
        await down_write(LOCK)
        await work(100)
        return await up_write(LOCK)

    def yields():
        yield down_write(LOCK)
        yield work(100)
        return (yield up_write(LOCK))

    a, b = story.start("a", awaits()), story.start("b", yields())
    story.run()
    assert (a.finished_ns, b.finished_ns) == (100, 200)
    assert a.value == b.value == 0


def test_two_threads_work_at_once_on_two_cpus_and_share_one() -> None:
    async def program(story: Story) -> None:
        await work(10 * MS)
        await story.say("done")

    for cpus, ends in ((2, [10, 10]), (1, [19, 20])):
        story = Story(cpus=cpus, slice_ns=3 * MS)
        for name in "ab":
            story.start(name, program(story))
        assert story.run() == [(ends[0] * MS, "a", "done"), (ends[1] * MS, "b", "done")]


def test_switching_and_waking_cost_time() -> None:
    story = Story(cpus=1, slice_ns=3 * MS, context_switch_ns=1000)

    async def program() -> None:
        await work(4 * MS)
        await story.say("done")

    a = story.start("a", program())
    story.start("b", program())
    # a 3 ms, b 3 ms, a 1 ms, b 1 ms; each of the four turns begins with a switch.
    assert story.run() == [(7 * MS + 3000, "a", "done"), (8 * MS + 4000, "b", "done")]
    assert a.stalled_ns == a.finished_ns - 4 * MS


def test_a_thread_comes_back_to_its_cpu_or_takes_an_idle_one() -> None:
    story = Story(cpus=2)

    async def napper() -> None:
        await work(10)
        await SleepStep(10)
        await work(10)
        await story.say("done")

    async def worker() -> None:
        await work(1000)

    napping = story.start("napper", napper())
    for at_ns in (0, 15):
        story.start("worker", worker(), at_ns=at_ns)
    # Its CPU was given to the second worker while it slept, the other one is busy: it waits.
    assert story.run() == [(1010, "napper", "done")]
    assert napping.stalled_ns == 980


def test_the_background_ends_at_its_first_sleep_after_the_foreground() -> None:
    story = Story()

    async def bystander() -> None:
        while True:
            await SleepStep(100)
            await work(30)
            await story.say("read")

    async def main() -> None:
        await work(210)

    story.start("ps", bystander(), background=True)
    story.start("main", main())
    assert story.run() == [(130, "ps", "read")]
    assert story.engine.now_ns == 210


# Waits for something else than a lock


def test_a_wait_ends_when_a_step_makes_it_ready() -> None:
    story = Story(wakeup_latency_ns=50)

    async def waiter() -> None:
        assert await wait_for("event") == 2
        await story.say("got it")

    async def waker() -> None:
        await work(100)
        await wake("other")
        await work(100)
        await wake("event")

    story.start("monitor", waiter())
    story.start("munmap", waker())
    assert story.run() == [(250, "monitor", "got it")]


def test_a_killable_wait_ends_with_a_signal() -> None:
    story = Story()
    results = []

    async def waiter() -> None:
        results.append(await wait_for("never", killable=True))

    async def killer() -> None:
        await work(10)
        await kill(1)

    story.start("monitor", waiter())
    story.start("killer", killer())
    story.run()
    assert results == [EINTR_RESULT]


# What is wrong is said


def test_a_reader_that_reads_again_behind_a_queued_writer_is_a_deadlock() -> None:
    story = Story()

    async def twice() -> None:
        await down_read(LOCK)
        await work(100)
        await down_read(LOCK)

    story.start("ps", twice())
    story.start("mmap", story.write(1), at_ns=10)
    with pytest.raises(Violation, match=r"ps:1 in down_read.*mmap:2 in down_write") as caught:
        story.engine.run()
    assert caught.value.invariant is Invariant.NO_DEADLOCK


def test_a_wrong_unlock_or_downgrade_is_reported() -> None:
    async def unlock() -> None:
        await up_write(LOCK)

    async def downgrade() -> None:
        await down_read(LOCK)
        await downgrade_write(LOCK)

    for program, message in ((unlock(), "does up_write but holds not"), (downgrade(), "downgrade")):
        story = Story()
        story.start("a", program)
        with pytest.raises(Violation, match=message) as caught:
            story.engine.run()
        assert caught.value.invariant is Invariant.LOCK_MODE


# The events


def test_the_event_stream_is_that_of_the_kernels_tracepoints() -> None:
    story = Story()

    async def munmap() -> None:
        await MarkStep("op_begin", ("munmap", 0x7000, 4096, 3))
        await story.munmap(10, 100)
        await MarkStep("op_end", ("munmap", -12))
        await MarkStep("fault_begin", (0x8000, 6))
        await MarkStep("fault_end", (1,))

    story.start("db", munmap())
    story.run()
    events = story.engine.events()
    columns = ("time_ns", "kind", "write", "success", "mm", "address", "length", "detail", "result")
    rows = list(zip(*(events[name].tolist() for name in columns)))
    assert rows == [
        (0, EventKind.OP_BEGIN, 0, 0, 0, 0x7000, 4096, 3, 0),
        (0, EventKind.ASKED, 1, 0, 1, 0, 0, 0, 0),
        (0, EventKind.ACQUIRED, 1, 1, 1, 0, 0, 0, 0),
        (10, EventKind.ACQUIRED, 0, 1, 1, 0, 0, 0, 0),
        (110, EventKind.RELEASED, 0, 0, 1, 0, 0, 0, 0),
        (110, EventKind.OP_END, 0, 0, 0, 0, 0, 0, -12),
        (110, EventKind.FAULT_BEGIN, 0, 0, 0, 0x8000, 0, 6, 0),
        (110, EventKind.FAULT_END, 0, 0, 0, 0, 0, 0, 1),
    ]
    assert events.operations == ("munmap",)
    assert events.tasks[1].comm == "db"


def test_other_locks_queue_in_the_same_way_but_are_not_recorded() -> None:
    story = Story()

    async def program() -> None:
        await down_write(("i_mmap", 3))
        await work(10)
        await up_write(("i_mmap", 3))
        await story.say("done")

    story.start("a", program())
    story.start("b", program())
    assert story.run() == [(10, "a", "done"), (20, "b", "done")]
    assert len(story.engine.events()) == 0
