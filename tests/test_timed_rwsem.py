"""The timed engine's semaphore, policy by policy: who gets the lock at which nanosecond."""

from dataclasses import replace

from stage import LOCK, MS, Story, kill, work

from zaplock.model.machine import Machine
from zaplock.model.rwsem import (
    EINTR_RESULT,
    FREE,
    RWSEM_4_9,
    RWSEM_5_3,
    RWSEM_5_11,
    RwsemPolicy,
    down_read_killable,
    down_read_trylock,
    down_write,
    down_write_killable,
    downgrade_write,
    held,
    up_read,
    up_write,
)
from zaplock.model.step import SleepStep, Task, step
from zaplock.trace.events import EventKind


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


def test_readers_of_5_3_to_5_10_pass_a_sleeping_writer_until_one_has_spun_in_vain() -> None:
    late = Story(RWSEM_5_3, cpus=4)
    late.start("munmap", late.munmap(10, 1000_000))
    late.start("before", late.read(5), at_ns=500)
    late.start("mmap", late.write(20), at_ns=1_000)
    late.start("beside", late.read(5), at_ns=2_000)
    late.start("behind", late.read(5), at_ns=40_000)
    log = late.run()
    assert (500, "before", "reads") in log
    assert (2_000, "beside", "reads") in log, "the writer still spins: nothing is forbidden yet"
    assert (1000_010, "mmap", "writes") in log
    assert (1000_030, "behind", "reads") in log, "it queued behind the writer that timed out"


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
    acquired = events["kind"] == EventKind.ACQUIRED
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
