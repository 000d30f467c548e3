"""A laboratory for a script: an address space under a design, threads of one's own, virtual time.

`compare` asks one question of every design. Here any question is asked of one: what a program of
one's own does beside others, with the costs of a profile and the lock of a kernel. A program is an
`async def` function of a `Cx` that awaits protocols (`zaplock.protocols`) and `SleepStep`s.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from zaplock.engines.timed.engine import TimedEngine
from zaplock.engines.timed.hung_tasks import LongWait
from zaplock.errors import UserError, no_such
from zaplock.experiment import FOREIGN
from zaplock.lab import bystanders as by
from zaplock.lab.experiment import SimulatedExperiment, checked
from zaplock.lab.profiles import Profile
from zaplock.lab.subject import MAPPING, MM, prepare
from zaplock.lab.teardown import sched_of
from zaplock.model.machine import Machine
from zaplock.model.step import Step, Task
from zaplock.protocols.address_locks import under
from zaplock.protocols.design import Cx, Design
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.events import Events
from zaplock.trace.teardown_outcome import Stalls

if TYPE_CHECKING:
    import polars

Program = Callable[[Cx], Coroutine[Step[object], object, int | None]]
"""What a thread does: an `async` function of its `Cx`; its number is its result."""

FOREIGN_MMS = 1 << 20
"""Address spaces of processes that are not under study."""
SETUP = 4095
"""The thread that maps what is there before time begins; its number must be nobody else's."""


@dataclass(frozen=True, repr=False)
class Observation:
    """What a run of a laboratory showed.

    `results` has what each thread's program returned, by name; `stalls` how long the operations of
    each bystander stalled in the whole run; `long_waits` what the kernel would report as hung.
    """

    design: Design
    events: Events
    results: dict[str, int | None]
    stalls: dict[str, Stalls]
    long_waits: tuple[LongWait, ...]
    duration_ns: int

    def __repr__(self) -> str:
        worst = ", ".join(f"{name} {stalls.max_ns} ns" for name, stalls in self.stalls.items())
        return (
            f"{type(self).__name__}({self.design.name}, {self.duration_ns} ns, "
            f"{len(self.events)} events, worst stalls: {worst or 'no bystander'}, "
            f"{len(self.long_waits)} hung)"
        )

    @property
    def analysis(self) -> Analysis:
        """Holds, waits and who is to blame."""
        return analyse(self.events, self.design.kernel)

    @property
    def holds(self) -> polars.DataFrame:
        """Every hold of an mmap_lock, a row each."""
        return self.analysis.holds.frame()

    @property
    def waits(self) -> polars.DataFrame:
        """Every wait for an mmap_lock, a row each."""
        return self.analysis.waits.frame()


class Laboratory:
    """One simulated machine with one process under study, to be run once."""

    def __init__(
        self,
        design: Design,
        profile: Profile,
        *,
        cpus: int = 8,
        hung_task_timeout_ns: int = 120 * 10**9,
        seed: int = 1,
        record_sched: bool = False,
    ) -> None:
        """Begin with an empty address space. Raises UserError for a machine that can't be.

        With `record_sched` the run's events tell who was on which CPU, as `record --sched` does.
        """
        self._plan = checked(
            SimulatedExperiment(
                4096, cpus=cpus, hung_task_timeout_ns=hung_task_timeout_ns, seed=seed
            )
        )
        self.design = design
        self.machine = Machine()
        self.machine.costs = profile.costs
        self.engine = TimedEngine(
            self.machine,
            policy=design.rwsem,
            sched=sched_of(profile, cpus),
            hung_task_timeout_ns=hung_task_timeout_ns,
            record_sched=record_sched,
        )
        self._random = Random(seed)
        self._samples: dict[str, by.SimulatedSamples] = {}
        self._names: dict[int, str] = {}
        self._mapped = False

    def map(
        self, length: int, *, backing: str = "anonymous", locked: bool = False, nr_vmas: int = 1
    ) -> int:
        """Map `length` bytes with every page present, before time begins; return the address.

        Also maps what bystanders need. Can be done once.
        """
        if self._mapped:
            raise UserError("this lab has its mapping: map more from a thread's program")
        plan = checked(
            SimulatedExperiment(length, backing, bystanders=(), locked=locked, nr_vmas=nr_vmas)
        )
        costs, self.machine.costs = self.machine.costs, None
        prepare(self.machine, Cx(self.design, Task(SETUP, MM, "setup")), plan)
        self.machine.costs = costs
        self._mapped = True
        return MAPPING

    def thread(
        self,
        name: str,
        program: Program,
        *,
        at_ns: int = 0,
        foreign: bool = False,
        background: bool = False,
    ) -> None:
        """Add a thread of the process under study, or of a process of its own (`foreign`).

        It starts at `at_ns`. The run ends with the last thread that isn't `background`.
        """
        if name in self._names.values():
            raise UserError(f"two threads named {name!r}: name each thread once")
        tid = len(self._names) + 1
        if tid >= SETUP:
            raise UserError(f"thread {name!r} is one too many: a lab has at most {SETUP - 1}")
        task = Task(tid, FOREIGN_MMS + tid if foreign else MM, name, tid % self._plan.cpus)
        work = under(self.design, program(Cx(self.design, task)))
        self.engine.spawn(task, work, at_ns=at_ns, background=background)
        self._names[tid] = name  # what fails above adds no thread, and may be given again

    def bystander(
        self,
        name: str,
        *,
        period_ns: int = 1_000_000,
        does: by.Operation | None = None,
        foreign: bool = False,
    ) -> None:
        """Add a bystander of `zaplock compare` that does its operation once a period.

        Or one of your own, which `does(cx, n)` for the nth time, in a process of its own if
        `foreign`.
        """
        if does is None and name not in by.OPERATIONS:
            raise no_such("bystander", name, by.OPERATIONS, also=", or say what it `does`")
        operation = does or by.OPERATIONS[name]
        if not self._mapped:
            raise UserError(f"bystander {name!r} needs the process's memory: call map() first")
        samples = self._samples[name] = by.SimulatedSamples()
        look = by.stopwatch(lambda: self.engine.now_ns, self.engine.threads)
        self.thread(
            by.COMM.get(name, name),
            lambda cx: by.keep_doing(cx, operation, period_ns, look, samples),
            at_ns=self._random.randrange(period_ns),
            foreign=name in FOREIGN if does is None else foreign,
            background=True,
        )

    def run(self) -> Observation:
        """Let time pass until the last thread has ended. Raises Violation if a rule is broken."""
        threads = self.engine.threads
        inside = sum(thread.task.mm == MM for thread in threads.values())
        self.machine.remote_cpus = max(0, min(inside, self._plan.cpus) - 1)
        self.engine.run()
        return Observation(
            self.design,
            self.engine.events(),
            {name: threads[tid].value for tid, name in self._names.items()},
            {name: Stalls.of(samples.stall_ns) for name, samples in self._samples.items()},
            tuple(self.engine.long_waits),
            self.engine.now_ns,
        )
