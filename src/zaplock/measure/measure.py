"""The experiment on the kernel that runs: every page mapped, bystanders, one teardown.

    parent                      subject (its own process)            foreign bystanders
      orders  ---------------->   map, lock, cut, populate
      <------------- progress
      <---------------- ready     bystander threads run
      orders  ------------------------------------------------->   look at the subject
      (idle phase: the typical duration of each operation)
      go      ---------------->   teardown, 20 ms more, samples
      <----------------- done
      end     ------------------------------------------------->   samples

A *stall* is what an operation that overlaps the teardown took beyond the median of its idle phase,
so Python's own overhead (the same in both) goes away. What remains is what a running machine
adds: run queues, interrupts, the GIL. The worst of the idle phase, reckoned in the same way, is
reported beside it as the noise floor: a stall below it proves nothing.

Hold times come from the mmap_lock tracepoints (5.11+), which need root; without them they are None
and the note says how to see them. Which way of teardown holds what on which
kernel: zaplock.measure.teardown.
"""

from __future__ import annotations

import os
import platform
import select
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from zaplock.errors import UserError
from zaplock.experiment import period_of
from zaplock.measure import lock_holds
from zaplock.measure.cpu_limit import limited
from zaplock.measure.json_children import Child, ChildError
from zaplock.measure.plan import MeasurePlan, checked
from zaplock.trace.quotas import CpuMax
from zaplock.trace.teardown_outcome import Stalls, TeardownOutcome

SUBJECT = "zaplock.measure.subject"
FOREIGN = "zaplock.measure.foreign_bystander"
AFTER_S = 10.0
"""What is allowed beyond the time limit for bystanders to hand over their samples."""

Progress = Callable[[str, int, int], None]
"""Told the phase ("populate", "idle", "teardown"), what is done and what is to be done of it."""


def _silent(_phase: str, _done: int, _of: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """The raw result of one repetition, times in CLOCK_MONOTONIC nanoseconds.

    `cpu_ns` is the CPU time of the teardown's thread in it (None for exit, which it does not
    survive).
    """

    begin_ns: int
    end_ns: int
    cpu_ns: int | None
    samples: Mapping[str, tuple[Sequence[int], Sequence[int]]]
    holds: lock_holds.TeardownHolds
    huge_bytes: int = 0


def kernel_name() -> str:
    """Name the kernel that runs, as a row of a table does: `this kernel, 6.18.44`."""
    return f"this kernel, {platform.release()}"


def measure(
    length: int,
    *,
    backing: str = "auto",
    teardown: str = "munmap",
    bystanders: Sequence[str] = ("fault", "proc"),
    rate: int = 1000,
    locked: bool = False,
    nr_vmas: int = 1,
    repeat: int = 1,
    timeout_s: float = 300.0,
    trace: bool = True,
    cpu_max: CpuMax | None = None,
    progress: Progress = _silent,
) -> list[TeardownOutcome]:
    """Run the experiment `repeat` times on this kernel and return one outcome for each run.

    `length` is in bytes. `backing` auto takes populated memory where it fits, else the zero page;
    the outcome's note says which. `trace` False leaves the tracepoints alone. Raises UserError when
    the size doesn't fit, a name is unknown or a run takes longer than `timeout_s`.
    """
    if not 1 <= repeat <= 1000:
        raise UserError(f"repeat {repeat} must lie between 1 and 1000")
    wanted = MeasurePlan(
        length,
        backing,
        teardown,
        tuple(bystanders),
        locked,
        nr_vmas,
        period_of(rate),
        cpu_max,
        timeout_s,
    )
    plan = checked(wanted)
    runs = [once(plan, trace=trace, progress=progress) for _ in range(repeat)]
    return [outcome(plan, run) for run in runs]


def once(plan: MeasurePlan, *, trace: bool = True, progress: Progress = _silent) -> MeasuredRun:
    """Run one checked plan once."""
    deadline = time.monotonic() + plan.timeout_s
    with ExitStack() as stack:
        watchers = {name: stack.enter_context(Child(FOREIGN)) for name in plan.foreign}
        subject = stack.enter_context(Child(SUBJECT, _orders(plan)))
        ready = _populated(subject, plan, deadline, progress)
        with lock_holds.watch(subject.pid, trace) as view:
            for name, watcher in watchers.items():
                orders = {"bystander": name, "pid": subject.pid, "probe": ready["probe"]}
                watcher.send({**orders, "period_ns": plan.period_ns})
            progress("idle", 0, 1)
            time.sleep(plan.idle_s)
            progress("teardown", 0, 1)
            with limited(subject.pid, plan.cpu_max) if plan.cpu_max else nullcontext():
                done = _teardown(subject, plan, deadline)
        samples = done["samples"] | {name: _samples(child) for name, child in watchers.items()}
    holds = view.of_thread(subject.pid, done["begin_ns"], done["end_ns"])
    return MeasuredRun(
        done["begin_ns"], done["end_ns"], done["cpu_ns"], samples, holds, ready["huge_bytes"]
    )


def _orders(plan: MeasurePlan) -> dict[str, Any]:
    return {
        "length": plan.length,
        "backing": plan.backing,
        "teardown": plan.teardown,
        "bystanders": plan.inside,
        "period_ns": plan.period_ns,
        "locked": plan.locked,
        "nr_vmas": plan.nr_vmas,
    }


def _populated(
    subject: Child, plan: MeasurePlan, deadline: float, progress: Progress
) -> dict[str, Any]:
    done = 0
    progress("populate", done, plan.length)
    while "progress" in (answer := subject.receive(deadline)):
        done += answer["progress"]
        progress("populate", done, plan.length)
    return answer


def _teardown(subject: Child, plan: MeasurePlan, deadline: float) -> dict[str, Any]:
    gone = os.pidfd_open(subject.pid)
    try:
        subject.send({"go": True})
        done = subject.receive(deadline)
        if plan.teardown == "exit":
            _wait_for_exit(gone, deadline)
            done["end_ns"] = time.monotonic_ns()
    finally:
        os.close(gone)
    return done


def _wait_for_exit(pidfd: int, deadline: float) -> None:
    waiter = select.poll()
    waiter.register(pidfd, select.POLLIN)
    if not waiter.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise ChildError("the process had not exited when its time limit was over: raise --timeout")


def _samples(watcher: Child) -> tuple[list[int], list[int]]:
    watcher.send({"end": True})
    begin_ns, took_ns = watcher.receive(time.monotonic() + AFTER_S)["samples"]
    return begin_ns, took_ns


def stalls(
    begin_ns: Sequence[int], took_ns: Sequence[int], window: tuple[int, int]
) -> tuple[Stalls, Stalls]:
    """Return the stalls of the operations that overlap the window, and those of the idle phase.

    Both are reckoned from the median of the operations that ended before the window.
    """
    idle = [took for begin, took in zip(begin_ns, took_ns) if begin + took < window[0]]
    beside = [
        took
        for begin, took in zip(begin_ns, took_ns)
        if begin + took >= window[0] and begin <= window[1]
    ]
    typical = int(median(idle)) if idle else 0
    return _beyond(beside, typical), _beyond(idle, typical)


def _beyond(took_ns: Sequence[int], typical_ns: int) -> Stalls:
    return Stalls.of([max(0, took - typical_ns) for took in took_ns])


def hung_limit_ns() -> int | None:
    """Return the kernel's hung-task limit, or None where it reports none."""
    try:
        seconds = int(Path("/proc/sys/kernel/hung_task_timeout_secs").read_text())
    except (OSError, ValueError):
        return None
    return seconds * 10**9 if seconds > 0 else None


def outcome(plan: MeasurePlan, run: MeasuredRun) -> TeardownOutcome:
    """Sum up one run as a row."""
    window = (run.begin_ns, run.end_ns)
    both = {name: stalls(*run.samples[name], window) for name in plan.bystanders}
    limit = hung_limit_ns()
    notes = [f"{plan.backing} backing", _huge_note(plan, run), run.holds.note]
    return TeardownOutcome(
        design=kernel_name(),
        bystanders=plan.bystanders,
        exclusive_hold_ns=run.holds.exclusive_ns,
        shared_hold_ns=run.holds.shared_ns,
        munmap_ns=run.end_ns - run.begin_ns,
        stalls={name: beside for name, (beside, _) in both.items()},
        # a bystander whose wait passed the limit; the kernel reports it only if it slept
        # uninterruptibly
        hung_tasks=sum(beside.max_ns > limit for beside, _ in both.values()) if limit else 0,
        note="; ".join(note for note in notes if note),
        extra={
            "size": plan.length,
            "backing": plan.backing,
            "teardown": plan.teardown,
            "cpu_ns": run.cpu_ns,
            "idle": {name: idle.to_json() for name, (_, idle) in both.items()},
        },
    )


def _huge_note(plan: MeasurePlan, run: MeasuredRun) -> str:
    share = run.huge_bytes / plan.length
    if plan.backing != "thp" or share > 0.99:
        return ""
    return f"only {share:.0%} of it could be mapped by huge pages"


def _middle(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return int(median(known)) if known else None


QUANTILES = ("count", "p50_ns", "p99_ns", "max_ns")


def _middle_stalls(several: Sequence[Mapping[str, int]]) -> Stalls:
    return Stalls(*(int(median(one[part] for one in several)) for part in QUANTILES))


def summary(outcomes: Sequence[TeardownOutcome]) -> TeardownOutcome:
    """Return the median of each figure over repeated runs, and of each quantile of stalls."""
    first = outcomes[0]
    stalled = {
        n: _middle_stalls([one.stalls[n].to_json() for one in outcomes]) for n in first.stalls
    }
    idle = {n: _middle_stalls([one.extra["idle"][n] for one in outcomes]) for n in first.stalls}
    notes = dict.fromkeys(note for one in outcomes for note in one.note.split("; "))
    return replace(
        first,
        exclusive_hold_ns=_middle([one.exclusive_hold_ns for one in outcomes]),
        shared_hold_ns=_middle([one.shared_hold_ns for one in outcomes]),
        munmap_ns=int(median(one.munmap_ns for one in outcomes)),
        stalls=stalled,
        hung_tasks=max(one.hung_tasks for one in outcomes),
        note="; ".join(notes),
        extra={
            **first.extra,
            "idle": {name: stalls.to_json() for name, stalls in idle.items()},
            "cpu_ns": _middle([one.extra.get("cpu_ns") for one in outcomes]),
            "repeat": len(outcomes),
            "spread": spread(outcomes),
        },
    )


def spread(outcomes: Sequence[TeardownOutcome]) -> dict[str, list[int]]:
    """Return the least and the greatest of each figure over repeated runs, in nanoseconds."""
    figures: dict[str, list[int | None]] = {
        "munmap_ns": [one.munmap_ns for one in outcomes],
        "exclusive_hold_ns": [one.exclusive_hold_ns for one in outcomes],
        "shared_hold_ns": [one.shared_hold_ns for one in outcomes],
    }
    for name in outcomes[0].bystanders:
        figures[f"{name}_max_ns"] = [one.stalls[name].max_ns for one in outcomes]
    known = {name: [v for v in values if v is not None] for name, values in figures.items()}
    return {name: [min(values), max(values)] for name, values in known.items() if values}
