"""Run one experiment under one design: the munmap, its bystanders, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from zaplock.designs.rules_read import observed_design, observed_rwsem
from zaplock.engines.timed.cpus import Sched
from zaplock.engines.timed.engine import TimedEngine
from zaplock.engines.timed.hung_tasks import LongWait
from zaplock.errors import UserError
from zaplock.experiment import FOREIGN
from zaplock.lab import bystanders as by
from zaplock.lab.call_log import CallLog
from zaplock.lab.experiment import SimulatedExperiment
from zaplock.lab.hold_clock import HoldClock
from zaplock.lab.leaps import Leaps, can_leap
from zaplock.lab.profiles import Profile
from zaplock.lab.subject import MAPPING, MM, prepare
from zaplock.model.filters import filtered
from zaplock.model.machine import Machine
from zaplock.model.step import Step, Task
from zaplock.protocols.address_locks import under
from zaplock.protocols.design import Cx, Design
from zaplock.protocols.lazy_flush import ticks
from zaplock.protocols.lockless_fault import page_fault_bonsai, page_fault_speculative
from zaplock.protocols.range_locked import page_fault_ranged
from zaplock.trace.events import Events
from zaplock.trace.holds import holds
from zaplock.trace.teardown_outcome import OutcomeDetail, Stalls, TeardownOutcome

SUBJECT = 1
"""The thread that unmaps."""


@dataclass(frozen=True, slots=True)
class Teardown:
    """What one run showed.

    `begin_ns` and `end_ns` are of the munmap as its caller saw it; `calls` its functions, for
    those who asked for them.
    """

    design: Design
    experiment: SimulatedExperiment
    subject: Task
    outcome: TeardownOutcome
    events: Events
    long_waits: tuple[LongWait, ...]
    begin_ns: int
    end_ns: int
    calls: CallLog | None = None

    def named(self, design: Design) -> Teardown:
        """Return the same run as one under another design."""
        return replace(self, design=design, outcome=replace(self.outcome, design=design.name))


def run(
    design: Design,
    experiment: SimulatedExperiment,
    profile: Profile,
    *,
    log_calls: bool = False,
    leaps: bool = True,
) -> Teardown:
    """Run a checked experiment under a design with a profile's costs; the same each time.

    The design may be a stand-in that remembers which rules were read (`designs.rules_read`).

    Without `leaps` every round of every bystander is run, also where it is like the one before:
    the same events at the same times, which the tests witness.
    """
    inside = [name for name in experiment.bystanders if name not in FOREIGN]
    machine = Machine(remote_cpus=min(len(inside), experiment.cpus - 1))
    subject = Task(SUBJECT, MM, "munmap", 0)
    cx = Cx(design, subject)
    prepare(machine, cx, experiment)
    machine.costs = profile.costs
    engine = TimedEngine(
        machine,
        policy=observed_rwsem(design),
        sched=sched_of(profile, experiment.cpus),
        hung_task_timeout_ns=experiment.hung_task_timeout_ns,
        cpu_max=experiment.cpu_max,
        throttled_in=design.throttled_in,
    )
    look = by.stopwatch(lambda: engine.now_ns, engine.threads)
    period_ns = experiment.period_under(profile)
    called: list[tuple[int, int]] = []
    program = _unmap(cx, experiment.length, look, called)
    calls = CallLog(lambda: engine.now_ns) if log_calls else None
    started = under(design, calls.follow(program) if calls else program)
    held = None if design.locking == "rwsem" else HoldClock(lambda: engine.now_ns)
    if held is not None:
        started = filtered(started, held)
    engine.spawn(subject, started, at_ns=2 * period_ns, limited=True)
    plain = observed_design(design)
    may_leap = leaps and experiment.cpu_max is None and can_leap(plain, experiment.bystanders)
    leap = Leaps(engine) if may_leap else None
    samples = _spawn_bystanders(engine, design, experiment, period_ns, look, leap)
    spawn_ticks(engine, design, MM, SUBJECT + len(samples) + 1)
    engine.run()
    (begin_ns, stalled_ns), (end_ns, stalled_then_ns) = called
    events = engine.events()
    outcome = _outcome(design, experiment, events, samples, engine.long_waits, begin_ns, end_ns)
    outcome = replace(outcome, waited_ns=stalled_then_ns - stalled_ns)
    if held is not None:
        outcome = replace(outcome, exclusive_hold_ns=held.exclusive_ns, shared_hold_ns=0)
    return Teardown(
        plain,
        experiment,
        subject,
        outcome,
        events,
        tuple(engine.long_waits),
        begin_ns,
        end_ns,
        calls,
    )


def sched_of(profile: Profile, cpus: int) -> Sched:
    """Return a machine of so many CPUs with a profile's costs of switching, waking and locking."""
    return Sched(
        cpus=cpus,
        context_switch_ns=round(profile["context_switch"]),
        wakeup_ns=round(profile["wakeup"]),
        wakeup_latency_ns=round(profile["wakeup_latency"]),
        lock_ns=round(profile["lock"]),
        unlock_ns=round(profile["unlock"]),
        downgrade_ns=round(profile["downgrade"]),
    )


async def _unmap(
    cx: Cx, length: int, look: Callable[[], Step[tuple[int, int]]], called: list[tuple[int, int]]
) -> int:
    called.append(await look())
    result = await by.system_call(
        cx, "munmap", cx.design.munmap(cx, MAPPING, length), MAPPING, length
    )
    called.append(await look())
    if result:
        raise UserError(
            f"the munmap of {cx.design.name!r} returned {result} for the mapping under study: "
            "to be compared it has to return 0"
        )
    return 0


def spawn_ticks(engine: TimedEngine, design: Design, mm: int, tid: int) -> None:
    """Let the CPUs' ticks come, in the background, where an unmap leaves something to them."""
    if design.lazy_flush:
        engine.spawn(Task(tid, mm, "ticks"), ticks(mm), background=True)


def _spawn_bystanders(
    engine: TimedEngine,
    design: Design,
    experiment: SimulatedExperiment,
    period_ns: int,
    look: Callable[[], Step[tuple[int, int]]],
    leaps: Leaps | None,
) -> dict[str, by.SimulatedSamples]:
    random = Random(experiment.seed)
    samples = {}
    for tid, name in enumerate(experiment.bystanders, SUBJECT + 1):
        mm = tid if name in FOREIGN else MM
        task = Task(tid, mm, by.COMM.get(name, name), tid % experiment.cpus)
        samples[name] = by.SimulatedSamples()
        leap = None if leaps is None else leaps.of(tid, name, samples[name])
        program = by.keep_doing(
            Cx(design, task), by.OPERATIONS[name], period_ns, look, samples[name], leap
        )
        begin_ns = 2 * period_ns if name == "fork" else 0
        program = under(design, program)
        at_ns, limited = begin_ns + random.randrange(period_ns), mm == MM
        engine.spawn(task, program, at_ns=at_ns, background=True, limited=limited)
    return samples


def _outcome(
    design: Design,
    experiment: SimulatedExperiment,
    events: Events,
    samples: dict[str, by.SimulatedSamples],
    long_waits: Sequence[LongWait],
    begin_ns: int,
    end_ns: int,
) -> TeardownOutcome:
    exclusive_ns, shared_ns = held_by_subject(events, begin_ns, end_ns)
    return TeardownOutcome(
        design=design.name,
        bystanders=experiment.bystanders,
        exclusive_hold_ns=exclusive_ns,
        shared_hold_ns=shared_ns,
        munmap_ns=end_ns - begin_ns,
        stalls={name: Stalls.of(one.during(begin_ns, end_ns)) for name, one in samples.items()},
        hung_tasks=len({wait.tid for wait in long_waits}),
        extra=_locks_of(design),
    )


def _locks_of(design: Design) -> OutcomeDetail:
    """Say what munmap and faults lock, where that is not what they lock in Linux."""
    told = OutcomeDetail()
    if design.mmap is not None:
        told["munmap_locks"] = "range"
    if design.page_fault in (page_fault_bonsai, page_fault_speculative):
        told["faults_lock"] = "nothing"
    elif design.page_fault is page_fault_ranged:
        told["faults_lock"] = "page"
    return told


def held_by_subject(events: Events, begin_ns: int, end_ns: int) -> tuple[int, int]:
    """Return how long the munmap held the mmap_lock exclusively and shared."""
    own = events["tid"] == SUBJECT
    found = holds(replace(events, columns={name: events[name][own] for name in events.columns}))
    own = (found["start_ns"] >= begin_ns) & (found["start_ns"] <= end_ns)
    exclusive = found["exclusive"]
    held_ns = found["hold_ns"]
    return (
        int(np.sum(held_ns[own & exclusive])),
        int(np.sum(held_ns[own & ~exclusive])),
    )
