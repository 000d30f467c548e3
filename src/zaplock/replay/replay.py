"""Replay a recording: would another kernel, or another way of freeing memory, have spared the wait?

The recorded operations of one process (`replay_plan`) run in virtual time (`replay_threads`), under
the design that stands for the recorded kernel first: how far its waits are from the recorded ones
is the replay's own error, which is told with every answer. Then under other designs, and with other
ways of freeing.

The simulated machine has a CPU for every thread, so only locks make anybody wait. What a recorded
thread lost because it had no CPU is in the recorded costs, and where its turn for the lock had come
and it was late to run, it is as late in every replay in which it waits there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.designs import SHIPPED, Change, Design
from zaplock.designs.linux import StandIn, design_of, same_rules
from zaplock.designs.rules_read import deciding, observe, rules_read
from zaplock.engines import sequential
from zaplock.engines.timed.cpus import Sched
from zaplock.engines.timed.engine import TimedEngine
from zaplock.engines.timed.event_log import MAX_CPUS
from zaplock.errors import UserError
from zaplock.lab.bystanders import stopwatch
from zaplock.lab.profiles import Profile
from zaplock.linux_version import find
from zaplock.model.machine import Machine
from zaplock.model.step import Task
from zaplock.protocols.design import Cx
from zaplock.replay.closed_loops import Links, let_begin, links_of
from zaplock.replay.other_ways import Way
from zaplock.replay.plan import RecordedOperation, ReplayPlan, choose_mm, plan_of
from zaplock.replay.threads import (
    FAULTED,
    MM,
    PAGE,
    Done,
    Places,
    Replayer,
    lateness,
    put_mapping,
)
from zaplock.trace.analysis import Analysis
from zaplock.trace.events import Events
from zaplock.trace.holds import holds
from zaplock.trace.summary import NO_OPERATION, QUEUED_NS

FOREIGN = 1 << 20
"""Address spaces of other processes."""
SETUP = (1 << 24) - 1
MOST_ERROR = 0.2
"""A replay that is off by more than this share from what was recorded proves nothing."""


@dataclass(frozen=True)
class ReplayRun:
    """The plan done under one design, memory freed in one way.

    `stall_ns` has, for each operation of the plan (thread by thread), how long it waited; `rules`
    are those of the design that were asked for.
    """

    design: Design
    way: Way
    events: Events
    stall_ns: tuple[int, ...]
    longest_exclusive_ns: int
    longest_shared_ns: int
    duration_ns: int
    rules: frozenset[str]

    @property
    def decided_by(self) -> list[Change]:
        """The changes of Linux that gave the design the rules this run asked for."""
        return deciding(self.design, self.rules)

    @property
    def waited_ns(self) -> int:
        """The sum of all waits."""
        return sum(self.stall_ns)


@dataclass(frozen=True)
class Fit:
    """How the replay under the recorded kernel's design compares with the recording.

    Over the operations that waited `QUEUED_NS` or longer in either, as far as the recording shows
    them whole. `typical_error` is the median of single waits, as a share of the greater one,
    `worst_ns` the greatest difference. `no_cpu_ns` is how much of the recorded waiting passed with
    the lock free, beyond the usual wake-up: the waiter's turn had come and it had no CPU.
    """

    operations: int
    recorded_ns: int
    replayed_ns: int
    longest_recorded_ns: int
    longest_replayed_ns: int
    typical_error: float
    worst_ns: int
    no_cpu_ns: int

    @property
    def sum_error(self) -> float:
        """Return by what share of the recorded waiting the replayed differs."""
        most = max(self.recorded_ns, self.replayed_ns)
        return (self.replayed_ns - self.recorded_ns) / (self.recorded_ns or most or 1)

    @property
    def error_ns(self) -> int:
        """Return by how much all recorded waiting and all replayed differ."""
        return abs(self.replayed_ns - self.recorded_ns)

    @property
    def sound(self) -> bool:
        """Whether the replay is near enough to the recording for conclusions."""
        return self.operations > 0 and abs(self.sum_error) <= MOST_ERROR


@dataclass(frozen=True)
class Replay:
    """A recording, and what it would have been. The first of `runs` is the recorded kernel's."""

    analysis: Analysis
    plan: ReplayPlan
    recorded: Design
    profile: Profile
    runs: tuple[ReplayRun, ...]
    note: str = ""
    """What is not known of the recorded kernel."""
    linked: int = 0
    """How many operations begin when another thread has come so far, and not at their time."""

    @cached_property
    def operations(self) -> list[RecordedOperation]:
        """The operations in the order of every run's `stall_ns`."""
        return self.plan.operations

    @cached_property
    def kinds(self) -> dict[str, list[int]]:
        """Rows of the operations by kind, first the kind with the longest wait in any run."""
        rows: dict[str, list[int]] = {}
        for row, one in enumerate(self.operations):
            rows.setdefault(self.kind_of(one), []).append(row)
        waited = np.array([[one.waited_ns for one in self.operations]])
        waited = np.vstack([waited, *(run.stall_ns for run in self.runs)]).max(axis=0)
        worst = {kind: int(waited[own].max()) for kind, own in rows.items()}
        return {kind: rows[kind] for kind in sorted(rows, key=lambda kind: (-worst[kind], kind))}

    def kind_of(self, one: RecordedOperation) -> str:
        """Name what an operation is: its call, or for a foreign reader the program's name."""
        if one.name != NO_OPERATION:
            return one.name
        task = self.plan.tasks.get(one.tid)
        foreign = task is not None and bool(self.plan.pid) and task.pid != self.plan.pid
        return f"{task.comm} (reads it)" if task is not None and foreign else "kernel"

    def near(self, row: int, run: ReplayRun) -> int:
        """Return the longest wait of an operation's thread around it, in a run.

        Around it is what began within the length of its recorded wait: where a lock is held longer
        than recorded, it is an earlier operation of the same thread that waits.
        """
        one = self.operations[row]
        rows, begins = self._rows_of[one.tid]
        first = int(np.searchsorted(begins, one.begin_ns - one.waited_ns))
        last = int(np.searchsorted(begins, one.begin_ns + one.waited_ns, side="right"))
        return max(run.stall_ns[rows + first : rows + last])

    def holder_known(self, row: int) -> bool:
        """Return whether the recording shows who held the lock for most of an operation's wait."""
        wait = self.operations[row].wait
        if wait < 0:
            return True
        found = self.analysis.explain(wait)
        dark_ns = found.unexplained_ns - found.free_ns
        return 2 * dark_ns <= int(self.analysis.waits["wait_ns"][wait])

    def reproduced(self, row: int) -> bool:
        """Return whether the replay under the recorded kernel has an operation's wait as well."""
        recorded_ns, replayed_ns = self.operations[row].waited_ns, self.near(row, self.runs[0])
        return abs(replayed_ns - recorded_ns) <= MOST_ERROR * max(recorded_ns, replayed_ns)

    @cached_property
    def unknown_holders(self) -> list[int]:
        """The operations that waited for somebody whom the recording doesn't show."""
        waited = (row for row, one in enumerate(self.operations) if one.waited_ns >= QUEUED_NS)
        return [row for row in waited if not self.holder_known(row)]

    @cached_property
    def _rows_of(self) -> dict[int, tuple[int, NDArray[np.int64]]]:
        """The first row of each thread, and when its operations begin."""
        found, row = {}, 0
        for tid, own in self.plan.threads.items():
            found[tid] = row, np.array([one.begin_ns for one in own], np.int64)
            row += len(own)
        return found

    def worst_ns(self, run: ReplayRun | None, kind: str) -> int:
        """Return the longest wait of a kind in a run, or in the recording (None)."""
        rows = self.kinds[kind]
        if run is None:
            return max(self.operations[row].waited_ns for row in rows)
        return max(run.stall_ns[row] for row in rows)

    @cached_property
    def recorded_holds(self) -> tuple[int, int]:
        """The longest exclusive and the longest shared hold of the recording."""
        return _longest(self.analysis.events, self.plan.mm)

    @cached_property
    def fit(self) -> Fit:
        """How well the replay does what the recording did."""
        run = self.runs[0]
        pairs = [
            (one.waited_ns, stall)
            for one, stall in zip(self.operations, run.stall_ns)
            if one.whole and max(one.waited_ns, stall) >= QUEUED_NS
        ]
        errors = [abs(ours - theirs) / max(ours, theirs) for theirs, ours in pairs] or [0.0]
        return Fit(
            len(pairs),
            sum(theirs for theirs, _ in pairs),
            sum(ours for _, ours in pairs),
            max((theirs for theirs, _ in pairs), default=0),
            max((ours for _, ours in pairs), default=0),
            float(np.median(errors)),
            max((abs(ours - theirs) for theirs, ours in pairs), default=0),
            sum(max(0, phase.late_ns) for one in self.operations for phase in one.phases),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the replay as plain values; times in nanoseconds."""
        fit = self.fit
        return {
            "recorded": {
                "kernel": self.analysis.kernel,
                "design": self.recorded.name,
                "note": self.note or None,
                "pid": self.plan.pid,
                "mm": hex(self.plan.mm),
                "operations": len(self.operations),
                "linked": self.linked,
                "left_out": self.plan.left_out,
                "lost_events": self.plan.lost_events,
                **({"caveats": list(self.analysis.caveats)} if self.analysis.caveats else {}),
                **self._row(None),
            },
            "error": {
                "operations": fit.operations,
                "recorded_wait_ns": fit.recorded_ns,
                "replayed_wait_ns": fit.replayed_ns,
                "sum": fit.sum_error,
                "typical": fit.typical_error,
                "worst_ns": fit.worst_ns,
                "no_cpu_ns": fit.no_cpu_ns,
                "sound": fit.sound,
            },
            "unknown_holders": {
                "operations": len(self.unknown_holders),
                "wait_ns": sum(self.operations[row].waited_ns for row in self.unknown_holders),
            },
            "profile": self.profile.name,
            "rows": [
                {
                    "design": run.design.name,
                    "free_by": str(run.way),
                    **self._row(run),
                    "decided_by": [change.to_json() for change in run.decided_by],
                }
                for run in self.runs
            ],
        }

    def _row(self, run: ReplayRun | None) -> dict[str, Any]:
        alone, shared = self.recorded_holds if run is None else (
            run.longest_exclusive_ns, run.longest_shared_ns,
        )  # fmt: skip
        waited = sum(one.waited_ns for one in self.operations) if run is None else run.waited_ns
        return {
            "longest_exclusive_hold_ns": alone,
            "longest_shared_hold_ns": shared,
            "worst_wait_ns": {kind: self.worst_ns(run, kind) for kind in self.kinds},
            "waited_ns": waited,
        }


def replay(
    analysis: Analysis,
    profile: Profile,
    *,
    recorded: Design | None = None,
    designs: Sequence[Design] = (),
    ways: Sequence[Way] | None = None,
    pid: int | None = None,
    mm: int | None = None,
    progress: Callable[[str], None] = lambda _what: None,
) -> Replay:
    """Replay one process of a recording under each design.

    Without `ways`, memory is freed as recorded under each design, and under the recorded kernel's
    also in every other way, if there is a munmap that a way would change. With them, each design is
    run with each way. `progress` is told what is run next.

    Raises UserError where the recording has no lock events or no such process, or does not say its
    kernel.
    """
    analysis.require_locks()
    stand_in = StandIn(recorded) if recorded else recorded_design(analysis.kernel)
    base = stand_in.design
    mm = choose_mm(analysis, pid) if mm is None else mm
    understood = observe(base)
    plan = plan_of(analysis, understood, mm, round(profile["wakeup_latency"]))
    links = links_of(analysis, plan)
    rest = [one for one in designs if not same_rules(one, base)]
    wanted = list(dict.fromkeys([base.name, *(one.name for one in rest)]))
    by_name = {base.name: base, **{one.name: one for one in rest}}
    as_was = Way()
    pairs = [(base, as_was)]
    if ways is None:
        pairs += [(by_name[name], as_was) for name in wanted[1:]]
        others = (Way("dontneed"), Way("dontneed-chunks"), Way("munmap-chunks"))
        pairs += [(base, way) for way in others if changes(plan, way)]
    else:
        for way in ways:
            if way != as_was and not changes(plan, way):
                raise UserError(
                    f"no munmap in the recording is longer than {way.chunk} bytes, so --free-by "
                    f"{way} would change nothing: give a smaller chunk or leave it out"
                )
        pairs += [(by_name[name], way) for name in wanted for way in ways]
    runs = []
    for design, way in dict.fromkeys(pairs):
        progress(f"{design.name}, {way}")
        runs.append(run(plan, links, understood, design, way, profile))
    runs[0] = replace(runs[0], rules=runs[0].rules | rules_read(understood))
    return Replay(analysis, plan, base, profile, tuple(runs), stand_in.note, let_begin(links))


def changes(plan: ReplayPlan, way: Way) -> bool:
    """Return whether a way of freeing changes anything in a plan."""
    return any(way.replaces(one) for one in plan.operations)


def recorded_design(kernel: str) -> StandIn:
    """Return the design of a recording's kernel: of its release, or a simulation's design.

    >>> [recorded_design(one).design.name for one in ("6.18.5-cloud", "rfc-v6")]
    ['linux-6.18.5', 'rfc-v6']
    """
    for design in SHIPPED.values():
        if kernel in (design.name, design.kernel):
            return StandIn(design)
    if find(kernel) is None:
        raise UserError(
            f"the recording names no kernel ({kernel!r}): say which with --recorded-under NAME "
            "(see zaplock designs)"
        )
    return design_of(kernel)


def run(
    plan: ReplayPlan, links: Links, recorded: Design, design: Design, way: Way, profile: Profile
) -> ReplayRun:
    """Do a plan under a design in virtual time."""
    observed = observe(design)
    machine = Machine()
    setup = Task(SETUP, MM, "setup")
    sequential.run(machine, setup, _prepare())
    latency_ns = plan.wakeup_ns
    cpus = min(max(len(plan.threads), 1), MAX_CPUS)
    sched = Sched(cpus=cpus, wakeup_latency_ns=latency_ns)
    engine = TimedEngine(machine, policy=observed.rwsem, sched=sched)
    look = stopwatch(lambda: engine.now_ns, engine.threads)
    late, exclusive = lateness(engine.threads), _exclusive(plan, recorded)
    done = {tid: Done([], [], []) for tid in plan.threads}
    replayer = Replayer(profile, way, look, late, Places(), exclusive, links, done)
    for tid, operations in plan.threads.items():
        cx = Cx(observed, _task(plan, tid))
        program = replayer.thread(cx, operations, latency_ns)
        first_ns = 0 if (tid, 0) in links else operations[0].begin_ns - 2 * latency_ns
        engine.spawn(cx.task, program, at_ns=max(0, first_ns))
    engine.run()
    events = engine.events()
    alone_ns, shared_ns = _longest(events, MM)
    stalls = [stall for one in done.values() for stall in one.stall_ns]
    return ReplayRun(
        design, way, events, tuple(stalls), alone_ns, shared_ns, engine.now_ns, rules_read(observed)
    )


async def _prepare() -> int:
    await put_mapping(FAULTED, PAGE)
    return 0


def _exclusive(plan: ReplayPlan, recorded: Design) -> frozenset[str]:
    """Name the calls that the recorded kernel did their page work in with an exclusive hold."""
    munmaps = [one for one in plan.operations if one.kind == "munmap"]
    downgrades = {
        "munmap": any(one.phases[0].downgraded for one in munmaps),
        "brk": recorded.brk_downgrades,
        "mremap": recorded.mremap_downgrades,
    }
    return frozenset(name for name, yes in downgrades.items() if not yes)


def _task(plan: ReplayPlan, tid: int) -> Task:
    known = plan.tasks.get(tid)
    inside = any(one.kind != "as recorded" for one in plan.threads[tid])
    if known is None or inside or known.pid == plan.pid:
        return Task(tid, MM, known.comm if known else "")
    return Task(tid, FOREIGN + known.pid, known.comm)


def _longest(events: Events, mm: int) -> tuple[int, int]:
    found = holds(events)
    own = found["mm"] == mm
    exclusive, hold_ns = found["exclusive"], found["hold_ns"]
    alone, shared = hold_ns[own & exclusive], hold_ns[own & ~exclusive]
    return int(alone.max(initial=0)), int(shared.max(initial=0))
