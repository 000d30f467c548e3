"""A stage for stories about the timed engine: programs, and a log of who did what when."""

from dataclasses import replace

from zaplock.engines.timed.cpus import Sched
from zaplock.engines.timed.engine import TimedEngine
from zaplock.model.machine import Machine
from zaplock.model.rwsem import (
    RWSEM_4_9,
    RwsemPolicy,
    down_read,
    down_write,
    downgrade_write,
    up_read,
    up_write,
)
from zaplock.model.step import Task, WaitStep, step

LOCK = ("mmap_lock", 1)
MS = 1_000_000
FIFO = replace(RWSEM_4_9, writer_spins="never")


@step
def work(machine: Machine, task: Task, ns: int) -> None:
    machine.spent_ns += ns


@step
def wake(machine: Machine, task: Task, channel: str) -> None:
    machine.cells("news").put(channel, task.tid)
    machine.wake((channel,))


@step
def kill(machine: Machine, task: Task, tid: int) -> None:
    machine.signals.put(tid, "SIGKILL")


def wait_for(channel: str, killable: bool = False) -> WaitStep[int]:
    ready = lambda machine, task, channel: channel in machine.cells("news")  # noqa: E731
    answer = lambda machine, task, channel: machine.cells("news")[channel]  # noqa: E731
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
