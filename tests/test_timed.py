"""The timed engine, told as short stories: who does what at which nanosecond."""

from dataclasses import replace

import pytest

from zaplock.engines.cpus import Sched
from zaplock.engines.timed import TimedEngine
from zaplock.model.faults import Invariant, Violation
from zaplock.model.machine import Machine
from zaplock.model.rwsem import (
    EINTR_RESULT,
    FREE,
    RWSEM_4_9,
    RWSEM_5_3,
    RWSEM_5_11,
    RwsemPolicy,
    down_read,
    down_read_killable,
    down_read_trylock,
    down_write,
    down_write_killable,
    downgrade_write,
    held,
    up_read,
    up_write,
)
from zaplock.model.step import MarkStep, SleepStep, Task, WaitStep, step
from zaplock.trace.events import Kind

LOCK = ("mmap_lock", 1)
MS = 1_000_000
FIFO = replace(RWSEM_4_9, writer_spins="never")


@step
def work(machine: Machine, task: Task, ns: int) -> None:
    machine.spent_ns += ns


@step
def wake(machine: Machine, task: Task, channel: str) -> None:
    machine.events.put(channel, task.tid)
    machine.wake((channel,))


@step
def kill(machine: Machine, task: Task, tid: int) -> None:
    machine.signals.put(tid, "SIGKILL")


def wait_for(channel: str, killable: bool = False) -> WaitStep[int]:
    ready = lambda machine, task, channel: channel in machine.events  # noqa: E731
    answer = lambda machine, task, channel: machine.events[channel]  # noqa: E731
    return WaitStep(answer, (channel,), ready, (channel,), killable)


class Story:
    """An engine, and a log of (time, who, what) that its programs write."""

    def __init__(self, policy: RwsemPolicy = FIFO, **sched: int) -> None:
        self.machine = Machine()
        sched.setdefault("cpus", 8)
        self.engine = TimedEngine(self.machine, policy=policy, sched=Sched(**sched))
        self.log: list[tuple[int, str, str]] = []
        self.threads = 0

    def say(self, what: str):
        log, engine = self.log, self.engine

        @step
        def say(machine: Machine, task: Task) -> None:
            log.append((engine.now_ns, task.name, what))

        return say()

    def start(self, name: str, program, at_ns: int = 0, background: bool = False):
        self.threads += 1
        task = Task(self.threads, 1, name)
        return self.engine.spawn(task, program, at_ns=at_ns, background=background)

    def run(self) -> list[tuple[int, str, str]]:
        self.engine.run()
        self.engine.events().check()
        self.engine.check()
        return self.log

    async def read(self, hold_ns: int) -> None:
        await down_read(LOCK)
        await self.say("reads")
        await work(hold_ns)
        await up_read(LOCK)
        await self.say("done")

    async def write(self, hold_ns: int) -> None:
        await down_write(LOCK)
        await self.say("writes")
        await work(hold_ns)
        await up_write(LOCK)
        await self.say("done")

    async def munmap(self, exclusive_ns: int, shared_ns: int) -> None:
        await down_write(LOCK)
        await self.say("detaches")
        await work(exclusive_ns)
        await downgrade_write(LOCK)
        await self.say("zaps")
        await work(shared_ns)
        await up_read(LOCK)
        await self.say("done")


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


# The lock


def test_readers_share_and_writers_exclude() -> None:
    story = Story()
    story.start("r1", story.read(100))
    story.start("r2", story.read(100), at_ns=10)
    story.start("w", story.write(100), at_ns=20)
    assert story.run() == [
        (0, "r1", "reads"),
        (10, "r2", "reads"),
        (100, "r1", "done"),
        (110, "r2", "done"),
        (110, "w", "writes"),
        (210, "w", "done"),
    ]
    assert story.machine.locks[LOCK] == FREE


def test_a_downgrade_lets_readers_in_but_not_past_a_queued_writer() -> None:
    alone = Story()
    alone.start("munmap", alone.munmap(10, 1000))
    alone.start("ps", alone.read(5), at_ns=5)
    alone.start("late", alone.read(5), at_ns=500)
    assert [row for row in alone.run() if row[2] == "reads"] == [
        (10, "ps", "reads"),
        (500, "late", "reads"),
    ]
    for policy in (RWSEM_4_9, RWSEM_5_3, RWSEM_5_11):
        convoy = Story(replace(policy, writer_spins="never"))
        convoy.start("munmap", convoy.munmap(10, 1000))
        convoy.start("mmap", convoy.write(20), at_ns=3)
        convoy.start("ps", convoy.read(5), at_ns=500)
        log = convoy.run()
        assert (1010, "mmap", "writes") in log
        assert (1030, "ps", "reads") in log


def test_readers_of_5_3_to_5_10_spin_on_a_writer_and_enter_past_the_queue() -> None:
    story = Story(RWSEM_5_3, cpus=4)
    story.start("munmap", story.munmap(10, 1000_000))
    story.start("ps", story.read(5), at_ns=5)
    assert (10, "ps", "reads") in story.run()
    # So it does beside a writer who spins too, and has to go on spinning.
    story = Story(RWSEM_5_3, cpus=4)
    story.start("munmap", story.munmap(10, 1000_000))
    story.start("mmap", story.write(20), at_ns=3)
    story.start("ps", story.read(5), at_ns=5)
    assert (10, "ps", "reads") in story.run()


def test_readers_behind_the_head_are_woken_by_the_rules_of_their_kernel() -> None:
    def story_of(policy: RwsemPolicy) -> list[tuple[int, str, str]]:
        story = Story(replace(policy, writer_spins="never"))
        story.start("holder", story.write(100))
        story.start("r1", story.read(10), at_ns=1)
        story.start("w", story.write(10), at_ns=2)
        story.start("r2", story.read(10), at_ns=3)
        return [row for row in story.run() if row[2] != "done"][1:]

    assert story_of(RWSEM_4_9) == [(100, "r1", "reads"), (110, "w", "writes"), (120, "r2", "reads")]
    assert story_of(RWSEM_5_11) == [
        (100, "r1", "reads"),
        (100, "r2", "reads"),
        (110, "w", "writes"),
    ]


def test_a_spinning_writer_gets_the_lock_without_the_latency_of_a_wake_up() -> None:
    for spins, gets_it in (("writer", 100), ("never", 600)):
        story = Story(replace(RWSEM_4_9, writer_spins=spins), wakeup_latency_ns=500)
        story.start("w1", story.write(100))
        story.start("w2", story.write(10), at_ns=5)
        assert (gets_it, "w2", "writes") in story.run()


def test_a_spinner_occupies_its_cpu_and_stops_when_its_slice_is_over() -> None:
    story = Story(RWSEM_4_9, cpus=2, slice_ns=100)

    async def worker() -> None:
        await work(50)
        await story.say("worked")

    story.start("w1", story.write(1000))
    story.start("w2", story.write(10), at_ns=5)
    story.start("worker", worker(), at_ns=20)
    log = story.run()
    assert (170, "worker", "worked") in log, "it waits for the slice of the spinner to end"
    assert (1000, "w2", "writes") in log


def test_a_spinner_gives_up_when_the_owner_sleeps() -> None:
    story = Story(RWSEM_4_9, wakeup_latency_ns=50)

    async def sleeper() -> None:
        await down_write(LOCK)
        await work(100)
        await SleepStep(100)
        await up_write(LOCK)

    story.start("sleeper", sleeper())
    waiting = story.start("w", story.write(10), at_ns=5)
    story.engine.spawn(Task(9, 1, "probe"), _assert_state(story, waiting), at_ns=50)
    # Awake at 250, after the latency of its timer; then the writer has to be woken too.
    assert (300, "w", "writes") in story.run()


async def _assert_state(story: Story, thread) -> None:
    seen = []

    @step
    def look(machine: Machine, task: Task) -> None:
        seen.append(thread.on_cpu)

    await look()
    await work(100)
    await look()
    assert seen == [True, False], "it spins while the owner runs, sleeps when the owner does"


def test_only_newer_kernels_spin_on_readers_and_only_for_a_while() -> None:
    def end_of_spin(policy: RwsemPolicy, hold_ns: int) -> int:
        story = Story(policy, wakeup_latency_ns=1000)
        story.start("r", story.read(hold_ns))
        story.start("w", story.write(1), at_ns=5)
        return next(now for now, who, what in story.run() if (who, what) == ("w", "writes"))

    assert end_of_spin(RWSEM_4_9, 10_000) == 11_000
    assert end_of_spin(RWSEM_5_11, 10_000) == 10_000
    assert end_of_spin(RWSEM_5_11, 30_000) == 31_000


def test_the_releaser_gets_the_lock_again_until_the_handoff() -> None:
    def first_write(policy: RwsemPolicy) -> int:
        story = Story(policy, wakeup_latency_ns=10_000)

        async def chunks() -> None:
            for chunk in range(20):
                await down_write(LOCK)
                if chunk == 0:
                    # Its owner is off the CPU: so the waiter queues instead of spinning.
                    await SleepStep(1000)
                await work(MS)
                await up_write(LOCK)

        story.start("chunks", chunks())
        story.start("waiter", story.write(1), at_ns=10)
        return next(now for now, who, what in story.run() if (who, what) == ("waiter", "writes"))

    assert 4 * MS < first_write(RWSEM_5_11) < 6 * MS
    assert first_write(RWSEM_4_9) > 20 * MS


def test_readers_of_newer_kernels_may_enter_a_lock_that_is_free_although_others_queue() -> None:
    def reads_at(policy: RwsemPolicy) -> int:
        story = Story(policy, wakeup_latency_ns=1000)
        story.start("r", story.read(50_000))
        story.start("w", story.write(10_000), at_ns=5)
        # At 50,000 the writer is woken; while it wakes up somebody comes by.
        story.start("late", story.read(10), at_ns=50_500)
        return next(now for now, who, what in story.run() if (who, what) == ("late", "reads"))

    assert reads_at(RWSEM_4_9) == 62_000
    assert reads_at(RWSEM_5_11) == 50_500


def test_a_trylock_never_waits_and_never_passes_a_queue() -> None:
    story = Story()
    results = []

    async def attempt() -> None:
        results.append(await down_read_trylock(LOCK))
        if results[-1]:
            await up_read(LOCK)

    story.start("r", story.read(100))
    story.start("early", attempt(), at_ns=10)
    story.start("w", story.write(10), at_ns=20)
    story.start("late", attempt(), at_ns=30)
    story.run()
    assert results == [1, 0]
    events = story.engine.events()
    acquired = events["kind"] == Kind.ACQUIRED
    assert events["success"][acquired].tolist() == [1, 1, 0, 1]


def test_a_killed_task_leaves_the_queue_and_those_behind_it_go_on() -> None:
    story = Story()
    results = []

    async def mmap() -> None:
        results.append(await down_write_killable(LOCK))
        await story.say("is back")

    async def killer() -> None:
        await kill(2)

    story.start("munmap", story.read(1000))
    story.start("mmap", mmap(), at_ns=10)
    story.start("ps", story.read(10), at_ns=20)
    story.start("killer", killer(), at_ns=100)
    log = story.run()
    assert results == [EINTR_RESULT]
    assert (100, "mmap", "is back") in log
    assert (100, "ps", "reads") in log


def test_an_uninterruptible_wait_ignores_the_kill_and_a_late_killable_one_ends_at_once() -> None:
    story = Story()
    results = []

    async def late() -> None:
        results.append(await down_read_killable(LOCK))
        await story.say("is back")

    async def killer() -> None:
        await kill(2)
        await kill(4)

    story.start("munmap", story.write(1000))
    story.start("ps", story.read(10), at_ns=10)
    story.start("killer", killer(), at_ns=100)
    story.start("late", late(), at_ns=200)
    log = story.run()
    assert (1000, "ps", "reads") in log
    assert (200, "late", "is back") in log
    assert results == [EINTR_RESULT]


def test_steps_see_who_holds_the_lock() -> None:
    story = Story()
    seen = []

    @step
    def look(machine: Machine, task: Task) -> None:
        seen.append((held(machine.locks[LOCK], task.tid), machine.locks[LOCK].queue))

    async def program() -> None:
        await down_write(LOCK)
        await work(100)
        await look()
        await downgrade_write(LOCK)
        await look()
        await up_read(LOCK)
        await look()

    story.start("a", program())
    story.start("w", story.write(1), at_ns=10)
    story.run()
    assert seen == [("write", ((2, True),)), ("read", ((2, True),)), ("", ((2, True),))]


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
        (0, Kind.OP_BEGIN, 0, 0, 0, 0x7000, 4096, 3, 0),
        (0, Kind.ASKED, 1, 0, 1, 0, 0, 0, 0),
        (0, Kind.ACQUIRED, 1, 1, 1, 0, 0, 0, 0),
        (10, Kind.ACQUIRED, 0, 1, 1, 0, 0, 0, 0),
        (110, Kind.RELEASED, 0, 0, 1, 0, 0, 0, 0),
        (110, Kind.OP_END, 0, 0, 0, 0, 0, 0, -12),
        (110, Kind.FAULT_BEGIN, 0, 0, 0, 0x8000, 0, 6, 0),
        (110, Kind.FAULT_END, 0, 0, 0, 0, 0, 0, 1),
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
