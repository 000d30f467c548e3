"""One teardown under a design, read as a real kernel's is: the prediction of `zaplock fidelity`.

munmap, mmap over the range, munmap below a growing neighbour, a shrinking brk or mremap, or exit,
beside bystanders; the simulated events are read by `zaplock.trace.teardown_verdict`. The simulated
machine has CPUs enough for everybody, so that only the lock makes anybody wait. Beside an exit,
threads die with their process, and a foreigner that comes later finds no mm (mmget_not_zero) and
no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from zaplock.engines import sequential
from zaplock.engines.timed.engine import TimedEngine
from zaplock.experiment import FOREIGN, PAGE, Experiment
from zaplock.lab import bystanders as by
from zaplock.lab.profiles import DEFAULT, Profile, load
from zaplock.lab.profiles import predict as predicted_hold_ns
from zaplock.lab.subject import MAPPING, MM, prepare
from zaplock.lab.teardown import sched_of
from zaplock.model.flags import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from zaplock.model.machine import Machine
from zaplock.model.step import SleepStep, Task
from zaplock.protocols.brk import brk
from zaplock.protocols.design import Cx, Design, Protocol
from zaplock.protocols.exit import exit_process, mmget_not_zero
from zaplock.protocols.mmap import mmap
from zaplock.protocols.mremap import mremap
from zaplock.trace import teardown_verdict
from zaplock.trace.teardown_verdict import Subject, TeardownVerdict

TEARDOWNS = ("munmap", "fixed", "growsdown", "brk", "mremap", "exit")
MAPPINGS: Mapping[str, Mapping[str, Any]] = {
    "locked": {"locked": True},
    "hugetlb": {"backing": "hugetlb"},
    "vmas": {"nr_vmas": 1024},
    "zero": {"backing": "zero"},
}
"""Other mappings than one VMA of anonymous memory, each taken down by munmap: by its name, what
differs (fields of an Experiment of 1 GiB: a VMA a MiB)."""
_PROFILES = {"vmas": "epyc-6.18"}
"""In the RFC's figures the tracer is counted as a cost of taking VMAs out of the tree."""
_TID, _CPUS, _SEED, _SLICES = 1, 8, 1, 200
_MAP = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE


def predict(
    design: Design,
    teardown: str,
    bystanders: tuple[str, ...],
    *,
    length: int = 1 << 30,
    period_share: float = 0.005,
    cpus: int = _CPUS,
    arrivals: Mapping[str, float] | None = None,
    profile: Profile | None = None,
) -> TeardownVerdict:
    """Run a teardown of `length` bytes under a design and read its events.

    A bystander comes once in `period_share` of the time that the teardown takes, first at its share
    in `arrivals`, else at random. On one CPU nobody spins on an owner that runs.
    """
    costs = profile or load(_PROFILES.get(teardown, DEFAULT))
    hold_ns = predicted_hold_ns(
        costs,
        length,
        MAPPINGS.get(teardown, {}).get("backing", "anonymous"),
        nr_vmas=MAPPINGS.get(teardown, {}).get("nr_vmas", 1),
    )
    period_ns = max(1_000, int(hold_ns * period_share))
    machine = Machine(remote_cpus=len(bystanders))
    machine.mm(MM).counters.put("users", 1)
    # As an mmu_gather: what is full is freed at once, so that exit frees little under write.
    cx = Cx(design, Task(_TID, MM, "zap", 0), grain=machine.gather_pages)
    work = _prepared(machine, cx, teardown, length)
    machine.costs = costs.costs
    # Who wakes up preempts who runs for long, so nobody is late by more than a hundredth or so.
    sched = replace(sched_of(costs, cpus), slice_ns=max(1_000, hold_ns // _SLICES))
    engine = TimedEngine(machine, policy=design.rwsem, sched=sched)
    exits = teardown == "exit"
    window: list[int] = []

    async def subject() -> int:
        window.append(engine.now_ns)
        result = await work()
        window.append(engine.now_ns)
        return result

    engine.spawn(cx.task, subject(), at_ns=10 * period_ns)
    random, tids = Random(_SEED), {}
    for tid, name in enumerate(bystanders, _TID + 1):
        foreign = name in FOREIGN
        task = Task(tid, tid if foreign else MM, name, tid % cpus)
        loop = _beside_exit if exits else _beside
        program = loop(replace(cx, task=task), name, period_ns, window)
        tids[name] = tid
        at_ns = random.randrange(period_ns)
        if arrivals and name in arrivals and not exits:
            at_ns = 10 * period_ns + int(arrivals[name] * hold_ns)
        engine.spawn(task, program, at_ns=at_ns, background=not exits)
    engine.run()
    end_ns = engine.now_ns if exits else window[1]
    pid = engine.events().mms.get(MM, _TID)
    about = Subject(_TID, pid, window[0], end_ns, tids, exits)
    return teardown_verdict.read(engine.events(), about, design.kernel)


def _prepared(machine: Machine, cx: Cx, teardown: str, length: int) -> Callable[[], Protocol]:
    """Map what the teardown is to take down; return it, ready to start."""
    flags = PROT_READ | PROT_WRITE
    prepare(machine, cx, Experiment(length, bystanders=(), **MAPPINGS.get(teardown, {})))
    if teardown == "growsdown":
        above = mmap(cx, MAPPING + length, 16 * PAGE, flags, _MAP | MAP_GROWSDOWN)
        assert sequential.run(machine, cx.task, above) == MAPPING + length
    if teardown == "brk":
        counters = machine.mm(MM).counters
        counters.put("start_brk", MAPPING)
        counters.put("brk", MAPPING + length)
    end: Mapping[str, Callable[[], Any]] = {
        "munmap": lambda: cx.design.munmap(cx, MAPPING, length),
        "growsdown": lambda: cx.design.munmap(cx, MAPPING, length),
        "fixed": lambda: mmap(cx, MAPPING, length, PROT_NONE, _MAP),
        "brk": lambda: brk(cx, MAPPING),
        "mremap": lambda: mremap(cx, MAPPING, length, PAGE),
        "exit": lambda: exit_process(cx),
    }
    teardown = "munmap" if teardown in MAPPINGS else teardown
    name = {"growsdown": "munmap", "fixed": "mmap", "exit": "exit_group"}.get(teardown, teardown)
    return lambda: by.system_call(cx, name, end[teardown](), MAPPING, length)


async def _beside(cx: Cx, name: str, period_ns: int, _window: list[int]) -> int:
    """Do a bystander's operation once a period, for ever."""
    nth = 0
    while True:
        await by.OPERATIONS[name](cx, nth)
        await SleepStep(period_ns)
        nth += 1


async def _beside_exit(cx: Cx, name: str, period_ns: int, window: list[int]) -> int:
    """The same beside an exit: a thread dies with its process, a foreigner finds no mm any more."""
    mine = replace(cx, task=Task(cx.task.tid, MM, cx.task.name, cx.task.cpu))
    foreign, nth = name in FOREIGN, 0
    alive = await mmget_not_zero(MM) or foreign
    while alive and not window:
        await by.OPERATIONS[name](cx, nth)
        if foreign:
            await exit_process(mine)
        await SleepStep(period_ns)
        alive = not foreign or await mmget_not_zero(MM)
        nth += 1
    return await exit_process(mine) if alive else 0
