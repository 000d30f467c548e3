"""Call stacks in words, and as folded text for flame graphs.

A folded line is `root;outermost;...;innermost nanoseconds`, as FlameGraph's flamegraph.pl,
speedscope and inferno read it. The roots keep apart what must not be added up:

    made others wait   how long others waited, by the stack of whoever they waited behind
    waited             the same waits, by the stack of the one who waited
    held exclusively   how long the lock was held, by the stack of the holder
    held shared
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zaplock import outputs
from zaplock.errors import UserError
from zaplock.trace.analysis import Analysis
from zaplock.trace.blame import Explained
from zaplock.trace.stacks import CallStack
from zaplock.trace.summary import QUEUED_NS, Summary

FRAMES = 6
"""So many functions of each part are said in a sentence."""

UNKNOWN = "[no stack]"

_TRACING = ("__mmap_lock_do_trace_", "__traceiter_", "trace_event_raw_event_", "perf_trace_")
"""What is inside of these is what looks at the task, not what the task does."""

_PLUMBING = (
    "entry_SYSCALL",
    "do_syscall_64",
    "x64_sys_call",
    "asm_",
    "ret_from_fork",
)
"""Every stack has these; they tell nothing of what the task was about."""


def telling(frames: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out the kernel's entry and tracing code, unless there is nothing else."""
    traced = [place for place, frame in enumerate(frames) if frame.startswith(_TRACING)]
    inner = frames[traced[-1] + 1 :] if traced else frames
    kept = tuple(frame for frame in inner if not frame.startswith(_PLUMBING))
    return kept or frames


def sentence(stack: CallStack) -> str:
    """Say a stack in one line, innermost first: the program's functions, then the kernel's."""
    parts = []
    if stack.user:
        parts.append(f"in {_some(stack.user)}")
    if stack.kernel:
        parts.append(f"in the kernel: {_some(telling(stack.kernel))}")
    return "; ".join(parts)


def _some(frames: tuple[str, ...]) -> str:
    more = len(frames) - FRAMES
    rest = f" < {more} more" if more > 0 else ""
    return " < ".join(frames[:FRAMES]) + rest


def of_wait(analysis: Analysis, found: Explained) -> Iterator[str]:
    """Say the stacks of a wait's victim and of its main culprit, where they are known."""
    if victim := analysis.wait_stack(found.wait):
        yield f"    the waiter was {sentence(victim)}"
    if found.culprit and (culprit := analysis.blamed_stack(found.culprit)):
        name = found.culprit.comm or f"tid {found.culprit.tid}"
        yield f"    {name} was {sentence(culprit)}"


def plain(stack: CallStack) -> dict[str, dict[str, list[str]]]:
    """Return the field "stack" for JSON, innermost frames first; none where none was recorded."""
    return {"stack": {"kernel": list(stack.kernel), "user": list(stack.user)}} if stack else {}


ROOTS = ("made others wait", "waited", "held exclusively", "held shared")


class StackTime(NamedTuple):
    """How long something lasted by a root, of which task, with which stack."""

    root: str
    process: str
    comm: str
    tid: int
    stack: CallStack
    span_ns: int


def require_stacks(analysis: Analysis) -> None:
    """Raise UserError where a recording has no stacks."""
    if analysis.stacks is None:
        raise UserError(
            "this recording has no stacks to fold: record with --stacks, or on a kernel with perf"
        )


def stack_times(summary: Summary) -> Iterator[StackTime]:
    """Give the times of all waits, of whoever they were behind, and of all holds."""
    analysis = summary.analysis
    for found in summary.explained:
        for blame in found.blame:
            stack = analysis.blamed_stack(blame)
            yield _timed(ROOTS[0], analysis, blame.tid, stack, blame.share_ns)
    waits, holds = analysis.waits, analysis.holds
    for row in np.flatnonzero(waits["wait_ns"] >= QUEUED_NS).tolist():
        tid, span_ns = int(waits["tid"][row]), int(waits["wait_ns"][row])
        yield _timed(ROOTS[1], analysis, tid, analysis.wait_stack(row), span_ns)
    for row in range(len(holds)):
        root = ROOTS[2] if holds["exclusive"][row] else ROOTS[3]
        tid, span_ns = int(holds["tid"][row]), int(holds["hold_ns"][row])
        yield _timed(root, analysis, tid, analysis.hold_stack(row), span_ns)


KERNEL_FILE = "[kernel]"
"""Where the kernel's functions are, as perf's own profiles call it."""


def placed(stack: CallStack) -> Iterator[tuple[str, str]]:
    """Give each function with the file that it is in ("": not known), innermost first."""
    for function in stack.kernel:
        yield function, KERNEL_FILE
    for text in stack.user:
        function, between, file = text.removesuffix(")").rpartition(" (")
        if between and text.endswith(")"):
            yield function, file
        else:
            yield text, text.rpartition("+0x")[0]
    if not stack:
        yield UNKNOWN, ""


def _timed(root: str, analysis: Analysis, tid: int, stack: CallStack, span_ns: int) -> StackTime:
    task = analysis.events.tasks.get(tid)
    names = (task.process or task.comm, task.comm) if task else (f"tid {tid}", f"tid {tid}")
    return StackTime(root, *names, tid, CallStack(telling(stack.kernel), stack.user), span_ns)


def folded(summary: Summary) -> Iterator[str]:
    """Yield the lines of a folded file, the greatest sum of each root first."""
    sums: dict[tuple[str, ...], int] = defaultdict(int)
    for one in stack_times(summary):
        frames = one.stack.outermost_first or (UNKNOWN,)
        path = (one.root, one.process, one.comm, *frames)
        sums[tuple(_foldable(name) for name in path)] += one.span_ns
    for path, span_ns in sorted(sums.items(), key=lambda item: (item[0][0], -item[1], item[0])):
        yield f"{';'.join(path)} {span_ns}"


def _foldable(name: str) -> str:
    """Keep a name from ending a frame or a line."""
    return name.replace(";", ":").replace("\n", " ")


def write_folded(summary: Summary, path: Path) -> Path:
    """Write the folded text. Raises UserError without stacks or a place to write."""
    require_stacks(summary.analysis)
    outputs.write(path, "".join(f"{line}\n" for line in folded(summary)))
    return path


def columns(analysis: Analysis, table: Any, find: Any) -> dict[str, list[str]]:
    """Return the columns `user_stack` and `kernel_stack` of a table: `outermost;...;innermost`."""
    stacks = [find(row) for row in range(len(table))] if analysis.stacks else []
    blank = [""] * len(table)
    if not stacks:
        return {"user_stack": blank, "kernel_stack": blank}
    return {
        "user_stack": [";".join(reversed(stack.user)) for stack in stacks],
        "kernel_stack": [";".join(reversed(stack.kernel)) for stack in stacks],
    }
