"""The experiment of `zaplock measure` in a guest: a plan, its runs, and the rows of a table.

The guest's probe does what zaplock.measure.measure does on the host, with the same bystanders and
ways of teardown, so that rows stand side by side. In a guest hold times are always seen, since it
is root there. A guest's memory bounds the populated backings; the zero page needs a page table for
each 2 MiB alone, so 80 GiB and more fit a small guest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zaplock import linux_version
from zaplock.errors import UserError, no_such
from zaplock.measure.guest import capsule, kernels, qemu
from zaplock.trace.outcome import Stalls
from zaplock.trace.quotas import CpuMax

TEARDOWNS = ("munmap", "fixed", "growsdown", "brk", "mremap", "dontneed", "exit")
BACKINGS = ("anonymous", "zero", "file", "thp", "hugetlb")
LOCK_EVENTS = ("auto", "tracepoints", "kprobes", "both", "none")
BYSTANDERS = ("fault", "mmap", "madvise", "proc", "gup")
_HUGE = 2 << 20
_BASE_MEMORY = 512 << 20
_SETTLE_NS = 30_000_000


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """One experiment in a guest. Lengths in bytes; `memory` 0 chooses what the backing needs.

    `rate` is operations per second of each bystander. `hung_task_timeout_s` 0 leaves the kernel's
    own (120 s). `cpu_max` is the quota of the target, from before its teardown on. `graph` records
    function_graph instead of events. `locks` says where lock events come from: one of LOCK_EVENTS,
    of which "auto" takes the tracepoints, else kprobes. `shift` stretches an exact guest's time: an
    instruction takes 2 ** shift ns.
    """

    length: int
    kernel: str = "debian:6.1"
    backing: str = "anonymous"
    teardown: str = "munmap"
    bystanders: tuple[str, ...] = ("fault", "proc")
    rate: int = 1000
    locked: bool = False
    nr_vmas: int = 1
    timeout_s: float = 300.0
    exact: bool = False
    nr_cpus: int = 2
    memory: int = 0
    hung_task_timeout_s: int = 0
    cpu_max: CpuMax | None = None
    graph: bool = False
    locks: str = "auto"
    shift: int = qemu.EXACT_SHIFT

    @property
    def machine(self) -> qemu.GuestMachine:
        """The guest that this plan needs."""
        options = (f"hugepages={self.length // _HUGE}",) if self.backing == "hugetlb" else ()
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
    pages = 0 if plan.backing == "zero" else plan.length
    return (_BASE_MEMORY + tables + pages + (16 << 20)) >> 20 << 20


def _one_of(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise no_such(what, value, known, also=" in a guest")


def checked(plan: GuestPlan) -> GuestPlan:
    """Return the plan with its backing chosen; raise UserError if it can't run here."""
    plan = _with_backing(plan)
    _one_of("backing", plan.backing, BACKINGS)
    _one_of("teardown", plan.teardown, TEARDOWNS)
    _one_of("lock events", plan.locks, LOCK_EVENTS)
    for name in plan.bystanders:
        _one_of("bystander", name, BYSTANDERS)
    _check_length(plan)
    _check_teardown(plan)
    _between("--rate", plan.rate, 1, 10**6)
    _between("--guest-cpus", plan.nr_cpus, 1, 64)
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


def _check_length(plan: GuestPlan) -> None:
    unit = _HUGE if plan.backing in ("thp", "hugetlb") else 4096
    if plan.length <= 0 or plan.length % unit:
        raise UserError(
            f"size {plan.length} is not a positive multiple of the page size {unit} "
            f"of {plan.backing} backing"
        )
    _between("--vmas", plan.nr_vmas, 1, min(60000, plan.length // unit))


def _check_teardown(plan: GuestPlan) -> None:
    if plan.teardown in ("brk", "mremap") and plan.backing in ("file", "hugetlb"):
        raise UserError(
            f"teardown {plan.teardown} in a guest can't have {plan.backing} backing: "
            "use anonymous, zero or thp"
        )
    if plan.teardown == "mremap" and plan.nr_vmas > 1:
        raise UserError(
            f"teardown mremap works on one VMA, not on {plan.nr_vmas}: leave --vmas away"
        )


def _between(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UserError(f"{what} {value} must lie between {least} and {most}")


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
        "period_ns": 10**9 // plan.rate,
        "settle_ns": max(_SETTLE_NS, 5 * 10**9 // plan.rate),
        "locked": int(plan.locked),
        "vmas": plan.nr_vmas,
    }
    if plan.locks != "auto":
        words["locks"] = plan.locks
    if plan.hung_task_timeout_s:
        words["hung_s"] = plan.hung_task_timeout_s
    if plan.cpu_max:
        words["cpu_max"] = str(plan.cpu_max).replace("/", "_")
    if plan.graph:
        from zaplock.measure.guest import graph

        words |= {"graph": 1, "graph_root": graph.root(plan.teardown)}
        words |= {"graph_functions": f"{graph.root(plan.teardown)},{graph.FUNCTIONS}"}
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
