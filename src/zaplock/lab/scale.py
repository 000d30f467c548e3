"""How operations a second grow with CPUs: known workloads under a design, for a given machine.

    mmap1, mmap2            map and unmap 128 MiB, of memory or of a file, untouched
    brk1                    let the heap grow by a page and shrink again
    page_fault1, 2, 3       touch pages of new memory, write to a private file, to a shared file
    pft-one, pft-each       touch pages: of one mapping for all threads, of one for each
    regions-low, -high      map, touch and unmap a page: each thread in 2 MiB of its own, or mixed
    maps                    map and unmap a page while somebody reads /proc/PID/maps all the time

All but `maps` have a thread on each CPU, all of one process (will-it-scale's threads; pft;
CortenMM's micro-benchmarks at low and high contention). What several CPUs write has to come over to
each: `transfer_ns` (engines.timed.lines), far from another node. A flush interrupts all other CPUs.

Not there: the locks of the page allocator, the LRU lists and memory cgroups, and whatever else
faults share beside the address space. So the figures are ratios between designs on one machine, and
end where those begin to count.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from zaplock.engines import sequential
from zaplock.engines.timed.engine import TimedEngine
from zaplock.engines.timed.lines import CacheLines
from zaplock.errors import UserError, no_such
from zaplock.executors import Executor, Here
from zaplock.experiment import PAGE
from zaplock.lab.bystanders import system_call
from zaplock.lab.profiles import Profile
from zaplock.lab.teardown import sched_of, spawn_ticks
from zaplock.model.files import new_file
from zaplock.model.flags import (
    MADV_DONTFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
)
from zaplock.model.machine import Machine
from zaplock.model.step import SleepStep, Step, Task
from zaplock.protocols.address_locks import under
from zaplock.protocols.brk import brk
from zaplock.protocols.design import Cx, Design
from zaplock.protocols.madvise import madvise
from zaplock.protocols.mmap import mmap
from zaplock.protocols.proc import proc_pid_maps
from zaplock.protocols.user_access import write_memory

MM = 1
SETUP = 4095
RW = PROT_READ | PROT_WRITE
MEMORY = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
MAPPED = 128 << 20
"""Bytes that mmap1 and mmap2 map, as will-it-scale's."""
BASE = 1 << 40
REGION = 2 << 20
HEAP = 1 << 34
MOST_CPUS = 512
FAULTS = 256
"""Pages that a thread touches in a run."""
CALLS = 100
"""Rounds of calls that a thread does in a run."""

Program = Coroutine[Step[Any], Any, int]


@dataclass(frozen=True)
class Workload:
    """What is mapped before, what each thread does (it returns how many operations), in words."""

    summary: str
    unit: str
    program: Callable[[Cx, int, int], Program]
    prepare: Callable[[Machine, Cx, int], None] = lambda _m, _cx, _cpus: None
    scanner: bool = False


@dataclass(frozen=True)
class MachineOfTheirs:
    """The machine to predict for.

    transfer_ns: what a cache line takes from CPU to CPU; far_ns: from another of `nodes` nodes.
    cores: above so many threads, two run on a core, each at `smt_speed` of its own.
    """

    transfer_ns: int = 60
    far_ns: int | None = None
    nodes: int = 1
    cores: int | None = None
    smt_speed: float = 0.6

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return asdict(self)

    def slowed(self, cpus: int) -> float:
        """Return by what the work of a thread is longer where cores are shared."""
        if self.cores is None or cpus <= self.cores:
            return 1.0
        shared = min(cpus, 2 * (cpus - self.cores))
        return cpus / (cpus - shared + shared * self.smt_speed)


@dataclass(frozen=True)
class Point:
    """What so many CPUs did: operations a second, of all threads together."""

    design: str
    workload: str
    cpus: int
    per_second: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class MeasuredPoint(Point):
    """What this kernel did: the median of so many milliseconds, and their quartiles."""

    low: float
    high: float
    milliseconds: int


async def _map_and_unmap(cx: Cx, length: int, flags: int, file: int = 0) -> None:
    at = await system_call(cx, "mmap", mmap(cx, 0, length, RW, flags, file))
    await system_call(cx, "munmap", cx.design.munmap(cx, at, length))


async def _mmap1(cx: Cx, _number: int, _cpus: int) -> int:
    for _ in range(CALLS):
        await _map_and_unmap(cx, MAPPED, MEMORY)
    return CALLS


async def _mmap2(cx: Cx, number: int, _cpus: int) -> int:
    for _ in range(CALLS):
        await _map_and_unmap(cx, MAPPED, MAP_PRIVATE, number + 1)
    return CALLS


def _a_file_each(m: Machine, _cx: Cx, cpus: int) -> None:
    for number in range(cpus):
        new_file(m, number + 1, "shmem", MAPPED)


async def _brk1(cx: Cx, _number: int, _cpus: int) -> int:
    for _ in range(CALLS):
        await system_call(cx, "brk", brk(cx, HEAP + PAGE))
        await system_call(cx, "brk", brk(cx, HEAP))
    return 2 * CALLS


def _begin_heap(m: Machine, _cx: Cx, _cpus: int) -> None:
    m.mm(MM).counters.put("start_brk", HEAP)
    m.mm(MM).counters.put("brk", HEAP)


async def _touch(cx: Cx, start: int) -> int:
    for at in range(start, start + FAULTS * PAGE, PAGE):
        await write_memory(cx, at, 1)
    return FAULTS


def _fault_loop(flags: int, has_file: bool) -> Callable[[Cx, int, int], Program]:
    async def run(cx: Cx, number: int, _cpus: int) -> int:
        file = number + 1 if has_file else 0
        at = await system_call(cx, "mmap", mmap(cx, 0, MAPPED, RW, flags, file))
        await _touch(cx, at)
        await system_call(cx, "munmap", cx.design.munmap(cx, at, MAPPED))
        return FAULTS

    return run


def _part_of(number: int) -> int:
    return BASE + number * REGION


async def _pft(cx: Cx, number: int, _cpus: int) -> int:
    return await _touch(cx, _part_of(number) + PAGE)


def _map_parts(m: Machine, cx: Cx, cpus: int, apart: bool) -> None:
    """Map a region for each thread; `apart`: as so many mappings. Their first pages are there."""

    def do(work: Coroutine[Any, Any, int]) -> int:
        return sequential.run(m, cx.task, under(cx.design, work))

    do(mmap(cx, BASE, cpus * REGION, RW, MEMORY | MAP_FIXED))
    for number in range(1, cpus, 2) if apart else ():
        do(madvise(cx, _part_of(number), REGION, MADV_DONTFORK))
    for number in range(cpus):
        do(write_memory(cx, _part_of(number), 1))


def _page_of(number: int, nth: int, cpus: int, mixed: bool) -> int:
    if not mixed:
        return _part_of(number) + nth * PAGE
    return BASE + (nth * cpus + (number * 7919 + nth * 31) % cpus) * PAGE


def _regions(mixed: bool) -> Callable[[Cx, int, int], Program]:
    async def run(cx: Cx, number: int, cpus: int) -> int:
        for nth in range(CALLS):
            at = _page_of(number, nth, cpus, mixed)
            flags = MEMORY | MAP_FIXED
            await system_call(cx, "mmap", mmap(cx, at, PAGE, RW, flags))
            await write_memory(cx, at, 1)
            await system_call(cx, "munmap", cx.design.munmap(cx, at, PAGE))
        return CALLS

    return run


async def _map_pages(cx: Cx, _number: int, _cpus: int) -> int:
    for _ in range(CALLS):
        await _map_and_unmap(cx, PAGE, MEMORY)
    return CALLS


WORKLOADS: Mapping[str, Workload] = {
    "mmap1": Workload("map and unmap 128 MiB of memory", "rounds", _mmap1),
    "mmap2": Workload("map and unmap 128 MiB of a file", "rounds", _mmap2, _a_file_each),
    "brk1": Workload("let the heap grow and shrink by a page", "calls", _brk1, _begin_heap),
    "page_fault1": Workload("touch new memory", "faults", _fault_loop(MEMORY, False)),
    "page_fault2": Workload(
        "write to a private mapping of a file", "faults", _fault_loop(MAP_PRIVATE, True),
        _a_file_each,
    ),
    "page_fault3": Workload(
        "write to a shared mapping of a file", "faults", _fault_loop(MAP_SHARED, True),
        _a_file_each,
    ),
    "pft-one": Workload(
        "touch memory of one mapping", "faults", _pft,
        lambda m, cx, cpus: _map_parts(m, cx, cpus, False),
    ),
    "pft-each": Workload(
        "touch memory, a mapping for each thread", "faults", _pft,
        lambda m, cx, cpus: _map_parts(m, cx, cpus, True),
    ),
    "regions-low": Workload("map, touch and unmap pages of 2 MiB of one's own", "rounds",
                            _regions(False)),
    "regions-high": Workload("map, touch and unmap pages, those of all threads mixed", "rounds",
                             _regions(True)),
    "maps": Workload("map and unmap a page beside a reader of /proc/PID/maps", "rounds",
                     _map_pages, scanner=True),
}  # fmt: skip
TOGETHER: Mapping[str, tuple[str, ...]] = {"pft": ("pft-one", "pft-each"),
                                           "regions": ("regions-low", "regions-high")}  # fmt: skip
"""Names for workloads that are laid side by side."""


def require(workload: str, cpus: Sequence[int]) -> None:
    """Raise UserError for a workload that there is not, or a number of CPUs that can't be."""
    parts_of(workload)
    for count in cpus:
        if not 1 <= count <= MOST_CPUS:
            raise UserError(f"--cpus {count} must lie between 1 and {MOST_CPUS}")


def parts_of(name: str) -> tuple[str, ...]:
    """Return the workloads that a name stands for; raises UserError for none."""
    if name in TOGETHER:
        return TOGETHER[name]
    if name not in WORKLOADS:
        raise no_such("workload", name, (*WORKLOADS, *TOGETHER))
    return (name,)


def measure_point(
    design: Design, costs: Mapping[str, float], name: str, cpus: int, theirs: MachineOfTheirs
) -> Point:
    """Run one workload on so many CPUs under a design, with these costs."""
    workload = WORKLOADS[name]
    slowed = theirs.slowed(cpus)
    profile = Profile(
        name="scaled", description="", source="",
        costs={unit: cost * slowed for unit, cost in costs.items()},
    )  # fmt: skip
    machine = Machine(remote_cpus=cpus - 1)
    setup = Cx(design, Task(SETUP, MM, "setup"))
    workload.prepare(machine, setup, cpus)
    machine.costs = profile.costs
    lines = CacheLines(theirs.transfer_ns, far_ns=theirs.far_ns, cpus=cpus, nodes=theirs.nodes)
    extra = int(workload.scanner)
    engine = TimedEngine(
        machine, policy=design.rwsem, sched=sched_of(profile, cpus + extra), lines=lines,
        records=False,
    )  # fmt: skip
    threads = []
    for number in range(cpus):
        task = Task(number + 1, MM, f"cpu{number}", number)
        program = workload.program(Cx(design, task), number, cpus)
        threads.append(engine.spawn(task, under(design, program), at_ns=number * 7))
    if workload.scanner:
        task = Task(cpus + 1, MM + 1, "scanner", cpus)
        engine.spawn(task, under(design, _scan(Cx(design, task))), background=True)
    spawn_ticks(engine, design, MM, cpus + 2)
    engine.run()
    done = sum(thread.value for thread in threads)
    ended_ns = max(thread.finished_ns for thread in threads)
    return Point(design.name, name, cpus, done * 1e9 / max(1, ended_ns))


async def _scan(cx: Cx) -> int:
    while True:
        await proc_pid_maps(cx, MM)
        await SleepStep(1)


def scaled_costs(
    design: Design, profile: Profile, name: str, single: float | None
) -> dict[str, float]:
    """Return a profile's costs, longer or shorter so that one thread makes `single` a second."""
    costs = dict(profile.costs)
    if single is None:
        return costs
    alone = measure_point(design, costs, name, 1, MachineOfTheirs(0)).per_second
    return {unit: cost * alone / single for unit, cost in costs.items()}


def scale(
    designs: Sequence[Design],
    profile: Profile,
    name: str,
    cpus: Sequence[int],
    theirs: MachineOfTheirs,
    *,
    single: Mapping[str, float] | None = None,
    workers: Executor | None = None,
    progress: Callable[[str], None] = lambda _what: None,
) -> list[Point]:
    """Predict a workload under designs at several numbers of CPUs, the points divided over workers.

    `single`: what one thread makes a second, by workload, under the first design. Raises UserError
    for numbers that can't be.
    """
    require(name, cpus)
    wanted = []
    for part in parts_of(name):
        costs = scaled_costs(designs[0], profile, part, (single or {}).get(part))
        wanted += [(design, costs, part, count) for design in designs for count in cpus]
    points = []
    for point in (workers or Here()).map(partial(_measured, theirs), wanted):
        progress(f"{point.workload} under {point.design}, {point.cpus} CPUs")
        points.append(point)
    return points


def _measured(
    theirs: MachineOfTheirs, wanted: tuple[Design, Mapping[str, float], str, int]
) -> Point:
    return measure_point(*wanted, theirs)
