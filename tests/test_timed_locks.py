"""The semaphores that the timed engine changes in place against the model's pure functions."""

from dataclasses import replace
from random import Random

import pytest

from zaplock.engines.timed.cpus import Sched
from zaplock.engines.timed.engine import TimedEngine
from zaplock.model import rwsem
from zaplock.model.machine import Machine
from zaplock.model.rwsem import FREE, RWSEM_4_9, RWSEM_5_3, RWSEM_5_11, Rwsem, RwsemPolicy
from zaplock.model.step import SleepStep, Task, step

LOCK = ("mmap_lock", 1)
POLICIES = (RWSEM_4_9, RWSEM_5_3, RWSEM_5_11)


@step
def work(machine: Machine, task: Task, ns: int) -> None:
    machine.spent_ns += ns


class Mirror:
    """The same operations done with the pure functions, compared after each of them."""

    def __init__(self, policy: RwsemPolicy) -> None:
        self.policy = policy
        self.sem: Rwsem = FREE

    def ask(self, tid: int, write: bool) -> None:
        free = rwsem.is_free_for(self.sem, write) and not self.sem.queue
        if free or rwsem.may_enter_past_queue(self.sem, self.policy, write):
            self.sem = rwsem.acquire(self.sem, tid, write)
        else:
            self.sem = rwsem.enqueue(self.sem, tid, write)

    def leave(self, tid: int, write: bool, downgrade: bool = False) -> None:
        sem = rwsem.downgrade(self.sem, tid) if downgrade else rwsem.release(self.sem, tid, write)
        self.sem, _ = rwsem.wake(sem, self.policy)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@pytest.mark.parametrize("seed", range(5))
def test_without_spinning_both_say_the_same_after_every_operation(
    policy: RwsemPolicy, seed: int
) -> None:
    # Nobody spins, steals or is late: what is left are the queue's rules, which must be the same.
    policy = replace(policy, writer_spins="never", handoff_ns=None)
    if policy.reader_steals == "spinning":
        policy = replace(policy, reader_steals="never")
    machine, mirror, random = Machine(), Mirror(policy), Random(seed)
    engine = TimedEngine(machine, policy=policy, sched=Sched(cpus=16))
    compared = 0

    @step
    def same(machine: Machine, task: Task, what: str, write: bool) -> None:
        nonlocal compared
        if what == "ask":
            mirror.ask(task.tid, write)
        else:
            mirror.leave(task.tid, write, what == "downgrade")
        compared += 1

    @step
    def compare(machine: Machine, task: Task) -> None:
        assert machine.locks.get(LOCK, FREE) == mirror.sem
        engine.check()

    async def program(plan: list[tuple[bool, bool, int, int]]) -> None:
        for write, downgrades, hold_ns, pause_ns in plan:
            await same("ask", write)
            await rwsem.LockStep("down", LOCK, write)
            await compare()
            await work(hold_ns)
            if downgrades:
                await same("downgrade", True)
                await rwsem.downgrade_write(LOCK)
                await compare()
                await work(hold_ns)
            await same("leave", write and not downgrades)
            await rwsem.LockStep("up", LOCK, write and not downgrades)
            await SleepStep(pause_ns)

    # Odd times with a large spread: no two things fall on the same nanosecond.
    for tid in range(1, 13):
        plan = []
        for _ in range(60):
            write = random.random() < 0.3
            downgrades = write and random.random() < 0.5
            plan.append((write, downgrades, random.randrange(10**6), random.randrange(10**7)))
        engine.spawn(Task(tid, 1), program(plan), at_ns=random.randrange(10**6))
    engine.run()
    assert compared > 12 * 60 * 2
    assert machine.locks[LOCK] == mirror.sem == FREE


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@pytest.mark.parametrize("cpus", [1, 3, 16])
def test_no_rule_is_broken_and_nobody_starves_whatever_the_policy(
    policy: RwsemPolicy, cpus: int
) -> None:
    def run(seed: int) -> tuple[list[int], list[int]]:
        machine, random, holders = Machine(), Random(seed), {"read": 0, "write": 0}
        sched = Sched(cpus=cpus, context_switch_ns=1500, wakeup_ns=800, wakeup_latency_ns=3000)
        engine = TimedEngine(machine, policy=policy, sched=sched, record_sched=seed % 2 == 1)

        @step
        def enter(machine: Machine, task: Task, mode: str) -> None:
            assert not holders["write"]
            assert mode == "read" or not holders["read"]
            holders[mode] += 1
            engine.check()

        @step
        def leave(machine: Machine, task: Task, mode: str) -> None:
            holders[mode] -= 1

        async def program(plan: list[tuple[bool, bool, int, int]]) -> None:
            for write, downgrades, hold_ns, pause_ns in plan:
                mode = "write" if write else "read"
                await rwsem.LockStep("down", LOCK, write)
                await enter(mode)
                await work(hold_ns)
                if downgrades:
                    await leave("write")
                    await rwsem.downgrade_write(LOCK)
                    write, mode = False, "read"
                    await enter("read")
                    await work(hold_ns)
                await leave(mode)
                await rwsem.LockStep("up", LOCK, write)
                if pause_ns:
                    await SleepStep(pause_ns)

        for tid in range(1, 13):
            plan = []
            for _ in range(40):
                write = random.random() < 0.3
                downgrades = write and random.random() < 0.5
                pause_ns = random.choice((0, 1000, 10**6))
                plan.append((write, downgrades, random.randrange(10**6), pause_ns))
            engine.spawn(Task(tid, 1), program(plan), at_ns=random.randrange(10**6))
        engine.run()
        engine.check()
        events = engine.events()
        events.check()
        return events["time_ns"].tolist(), events["tid"].tolist()

    for seed in range(4):
        assert run(seed) == run(seed), "the same seed gives the same run"
