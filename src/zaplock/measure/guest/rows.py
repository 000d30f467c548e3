"""Runs in a guest as rows of the table that `zaplock measure` and `compare` print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zaplock import outputs
from zaplock.measure.guest import finished_run, recording
from zaplock.measure.guest.experiment import GuestPlan, GuestRun, guest_name, run, stalls
from zaplock.measure.guest.function_graph import rewrite
from zaplock.trace.teardown_outcome import TeardownOutcome

_MESSAGE = "blocked for more than"
_OWNED = "blocked on an rw-semaphore"
_END = " </TASK>"


def measure(
    plan: GuestPlan,
    *,
    repeat: int = 1,
    record: str | Path | None = None,
    graph: str | Path | None = None,
    progress: Callable[[str], None] = lambda _phase: None,
) -> list[TeardownOutcome]:
    """Run a plan `repeat` times, each in a fresh guest, and return one row for each run.

    `record` names where the last run's events are written as a recording, `graph` where its
    function_graph is (for a plan with `graph`). Raises UserError where QEMU or the kernel can't be
    had, or the guest fails.
    """
    rows = []
    for _ in range(repeat):
        done = run(plan, progress=progress)
        rows.append(outcome(done))
    if record is not None and not plan.graph:
        recording.write(record, done)
    if graph is not None:
        _write_graph(Path(graph), done)
    return rows


def _write_graph(path: Path, done: GuestRun) -> None:
    lines = rewrite(done.capsule.text("function_graph"))
    outputs.write(path, "".join(f"{line}\n" for line in lines))


def outcome(done: GuestRun) -> TeardownOutcome:
    """Sum up one run as a row."""
    plan, capsule = done.plan, done.capsule
    both = stalls(done)
    seen = None if plan.graph else finished_run.read(done)
    messages = hung_task_messages(capsule.text("kernel_log"))
    clock = "instruction-counted time" if plan.exact else "emulated: compare within this row only"
    return TeardownOutcome(
        design=guest_name(done),
        bystanders=plan.bystanders,
        exclusive_hold_ns=seen.held_ns("exclusive") if seen else None,
        shared_hold_ns=seen.held_ns("shared") if seen else None,
        munmap_ns=capsule.fact("end_ns") - capsule.fact("begin_ns"),
        stalls={name: beside for name, (beside, _) in both.items()},
        hung_tasks=len(messages),
        note=f"{plan.backing} backing; {clock}",
        extra={
            "size": plan.length,
            "backing": plan.backing,
            "teardown": plan.teardown,
            "cpu_ns": capsule.fact("cpu_ns") or None,
            "idle": {name: idle.to_json() for name, (_, idle) in both.items()},
            **({"hung_task_messages": messages} if messages else {}),
        },
    )


def hung_task_messages(log: str) -> list[str]:
    """Return the kernel's own first report of each hung task: its INFO line to its call trace."""
    lines = [line.split("] ", 1)[-1] for line in log.splitlines()]
    starts = [number for number, line in enumerate(lines) if _MESSAGE in line]
    first: dict[str, str] = {}
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        task = lines[start].split()[2]
        first.setdefault(task, "\n".join(_report(lines[start:end])))
    return list(first.values())


def _report(lines: list[str]) -> list[str]:
    """Leave out the program's registers; the trace's end and what is said of an owner stay."""
    done = next((n for n, line in enumerate(lines) if line.startswith("RIP: 0033")), len(lines))
    ended = next((n for n, line in enumerate(lines) if line == _END), len(lines))
    behind = [line for n, line in enumerate(lines) if n > done and (n == ended or _OWNED in line)]
    return lines[:done] + behind
