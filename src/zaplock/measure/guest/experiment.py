"""The experiment of `zaplock measure` in a guest: a plan, its runs, and the rows of a table.

The guest's probe does what zaplock.measure.measure does on the host, with the same bystanders and
ways of teardown, so that rows stand side by side. In a guest hold times are always seen, since it
is root there. A guest's memory bounds the populated backings; the zero page needs a page table for
each 2 MiB alone, so 80 GiB and more fit a small guest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zaplock import linux_version
from zaplock.errors import UserError
from zaplock.experiment import BACKINGS, GUEST, Experiment, between, check, one_of
from zaplock.measure.guest import capsule, kernels, qemu
from zaplock.trace.teardown_outcome import Stalls

LOCK_EVENTS = ("auto", "tracepoints", "kprobes", "function_graph", "all", "none")
_BASE_MEMORY = 512 << 20
_SETTLE_NS = 30_000_000


@dataclass(frozen=True, slots=True)
class GuestPlan(Experiment):
    """An experiment in a guest. `memory` in bytes, 0 chooses what the backing needs.

    `hung_task_timeout_s` 0 leaves the kernel's own (120 s). `cpu_max` is the target's from before
    its teardown on. `graph` records function_graph instead of events. `locks` says where lock
    events come from: one of LOCK_EVENTS, of which "auto" takes the tracepoints, else
    kprobes, else function_graph.
    `shift` stretches an exact guest's time: an instruction takes 2 ** shift ns.
    `from_begin`: no bystander does anything before the teardown begins. A kernel that is not
    `traced` runs as it would by itself: while it is, some take other ways to the same functions.
    """

    period_ns: int = 1_000_000
    kernel: str = "debian:6.1"
    timeout_s: float = 300.0
    exact: bool = False
    nr_cpus: int = 2
    memory: int = 0
    hung_task_timeout_s: int = 0
    graph: bool = False
    locks: str = "auto"
    shift: int = qemu.EXACT_SHIFT
    from_begin: bool = False
    traced: bool = True

    @property
    def machine(self) -> qemu.GuestMachine:
        """The guest that this plan needs."""
        options = (
            (f"hugepages={self.length // self.page}",) if BACKINGS[self.backing].from_pool else ()
        )
        return qemu.GuestMachine(
            self.memory or _memory(self), self.nr_cpus, self.exact, self.shift, options
        )


@dataclass(frozen=True, slots=True)
class GuestRun:
    """A plan, checked, and what its guest handed over."""

    plan: GuestPlan
    capsule: capsule.Capsule


def _memory(plan: GuestPlan) -> int:
    tables = plan.length // 512
    pages = plan.length if BACKINGS[plan.backing].takes_memory else 0
    return (_BASE_MEMORY + tables + pages + (16 << 20)) >> 20 << 20


def checked(plan: GuestPlan) -> GuestPlan:
    """Return the plan with its backing chosen; raise UserError if it can't run here."""
    plan = _with_backing(plan)
    check(plan, GUEST)
    one_of("lock events", plan.locks, LOCK_EVENTS, GUEST.where)
    between("--guest-cpus", plan.nr_cpus, 1, 64)
    need, free = plan.machine.memory, _available_memory()
    if need > free:
        raise UserError(
            f"the guest needs {need >> 20} MiB and {free >> 20} MiB are free: "
            "give a smaller SIZE, or --backing zero"
        )
    return plan


def _with_backing(plan: GuestPlan) -> GuestPlan:
    if plan.backing != "auto":
        return plan
    populated = replace(plan, backing="anonymous")
    fits = _memory(populated) < _available_memory() // 2
    return populated if fits else replace(plan, backing="zero")


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def arguments(plan: GuestPlan) -> list[str]:
    """Return the probe's command line for a plan (probe.c tells its meaning)."""
    words = {
        "length": plan.length,
        "backing": plan.backing,
        "teardown": plan.teardown,
        "bystanders": ",".join(plan.bystanders),
        "period_ns": plan.period_ns,
        "settle_ns": max(_SETTLE_NS, 5 * plan.period_ns),
        "locked": int(plan.locked),
        "vmas": plan.nr_vmas,
    }
    if plan.locks != "auto":
        words["locks"] = plan.locks
    if plan.hung_task_timeout_s:
        words["hung_s"] = plan.hung_task_timeout_s
    if not plan.traced:
        words["trace"] = 0
    if plan.from_begin:
        words["from_begin"] = 1
    if plan.cpu_max:
        words["cpu_max"] = str(plan.cpu_max).replace("/", "_")
    if plan.graph:
        from zaplock.measure.guest import function_graph

        words |= {"graph": 1, "graph_root": function_graph.root(plan.teardown)}
        words |= {
            "graph_functions": f"{function_graph.root(plan.teardown)},{function_graph.FUNCTIONS}"
        }
    return [f"{name}={value}" for name, value in words.items()]


def run(plan: GuestPlan, *, progress: Callable[[str], None] = lambda _phase: None) -> GuestRun:
    """Boot the plan's kernel and run the plan once. Raises UserError if it fails."""
    plan = checked(plan)
    kernel = kernels.find(plan.kernel)
    machine = _with_places(plan.machine, kernels.release_in(kernel.content()))
    result = qemu.run(kernel, machine, arguments(plan), limit_s=plan.timeout_s, progress=progress)
    return GuestRun(plan, result)


_PLACES = 64


def _with_places(machine: qemu.GuestMachine, release: str) -> qemu.GuestMachine:
    """Give return probes places for waiting tasks: before 4.12 as many as there may be CPUs."""
    found = linux_version.find(release)
    if found is None or found.carries("4.12"):
        return machine
    return replace(machine, boot_options=(*machine.boot_options, f"possible_cpus={_PLACES}"))


def lane_stalls(lane: capsule.Lane, begin_ns: int, end_ns: int) -> tuple[Stalls, Stalls]:
    """Return the stalls of the operations that overlap the teardown, and those of the idle phase.

    Both are reckoned from the median of the operations that ended before the teardown.
    """
    took = lane.end_ns - lane.begin_ns
    idle = took[lane.end_ns < begin_ns]
    beside = took[(lane.end_ns >= begin_ns) & (lane.begin_ns <= end_ns) & (took >= 0)]
    typical = int(np.median(idle)) if len(idle) else 0
    return _beyond(beside, typical), _beyond(idle, typical)


def _beyond(took_ns: np.ndarray[tuple[int], np.dtype[np.int64]], typical_ns: int) -> Stalls:
    return Stalls.of([int(span) for span in np.maximum(took_ns - typical_ns, 0)])


def guest_name(run: GuestRun) -> str:
    """Name the guest's kernel as a row of a table does."""
    mode = ", exact" if run.plan.exact else ""
    return f"{run.plan.kernel} in QEMU{mode}, {run.capsule.facts['release']}"


def stalls(run: GuestRun) -> Mapping[str, tuple[Stalls, Stalls]]:
    """Return each bystander's stalls beside the teardown and in the idle phase."""
    window = run.capsule.fact("begin_ns"), run.capsule.fact("end_ns")
    return {lane.name: lane_stalls(lane, *window) for lane in run.capsule.lanes}
