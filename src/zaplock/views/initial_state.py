"""What was already so when the recording began, in sentences and as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zaplock.trace.analysis import Analysis
from zaplock.trace.events import FoundTask
from zaplock.trace.kernel_functions import HALTED, UNANSWERED
from zaplock.trace.kernel_stacks import reads_a_page
from zaplock.trace.madvise import with_advice
from zaplock.units import duration
from zaplock.views.sentences import owner, what, who

FRAMES = 8
"""So many functions of a stack are shown; the rest is how every system call begins."""

_ENTRY = ("do_syscall_64", "entry_SYSCALL_64", "x64_sys_call", "el0_svc", "invoke_syscall")
_OFTEN = 3
_SLOW_NS = 100_000_000
"""A page that doesn't come for so long is told: disks are quicker."""

_LONG_NS = 10_000_000
"""Whoever has the lock for so long may keep others from what else it has."""


def found_lines(analysis: Analysis, *, limit: int = 6) -> Iterator[str]:
    """Say who was found to wait for a lock or to have one, and in which kernel function."""
    tasks = [task for task in analysis.events.found if task.does]
    early = [task for task in tasks if 0 < task.since_ns <= analysis.recorded_ns]
    if early:
        yield "Already so at the beginning:"
        yield from _listed(analysis, early, limit)
    late = [task for task in tasks if not 0 < task.since_ns <= analysis.recorded_ns]
    if late:
        at_ns = min(task.time_ns for task in late) - analysis.recorded_ns
        yield f"Seen after {duration(max(at_ns, 0))}:"
        yield from _listed(analysis, late, limit)
    yield from _no_waits(analysis)
    yield from _perhaps_behind(analysis)


def present_lines(analysis: Analysis, *, limit: int = 3) -> Iterator[str]:
    """Say where in the kernel those are that have a lock now, of a look that was just made."""
    tasks = [task for task in analysis.events.found if task.does == "holds" and task.stack]
    for task in tasks[:limit]:
        name = what(with_advice(task.operation, task.detail), task.length)
        yield f"{who(analysis, task.tid)}, in {name}, is in {stack_line(task.stack)}"
    yield from _no_waits(analysis)


def _listed(analysis: Analysis, tasks: list[FoundTask], limit: int) -> Iterator[str]:
    tasks.sort(key=lambda task: (task.does == "waits", task.since_ns))
    for task in tasks[:limit]:
        yield f"    {_sentence(analysis, task)}"
        if task.stack:
            yield f"        in the kernel: {stack_line(task.stack)}"
    if len(tasks) > limit:
        waiting = sum(task.does == "waits" for task in tasks[limit:])
        yield f"    ... and {len(tasks) - limit:,} more, {waiting:,} of them waiting"


def stack_line(stack: tuple[str, ...]) -> str:
    """Write a kernel stack in one line, innermost first."""
    shown = [name for name in stack if not name.startswith(_ENTRY)]
    more = " < ..." if len(shown) > FRAMES else ""
    return " < ".join(shown[:FRAMES]) + more


def _sentence(analysis: Analysis, task: FoundTask) -> str:
    mode = "exclusively" if task.exclusive else "shared"
    lock = f"the lock of {owner(analysis, task.mm)}" if task.mm else "an mmap_lock"
    verb = "waited for" if task.does == "waits" else "had"
    doing = what(with_advice(task.operation, task.detail), task.length)
    since_ns = analysis.recorded_ns - task.since_ns
    since = f", for at least {duration(since_ns)}" if task.since_ns and since_ns > 0 else ""
    return f"{who(analysis, task.tid)} {verb} {lock}, {mode}, in {doing}{since}"


def _no_waits(analysis: Analysis) -> Iterator[str]:
    """Say who goes on no further, and not for want of the lock."""
    for operation in UNANSWERED:
        if stuck := [task for task in analysis.events.found if task.operation == operation]:
            stand = "stands" if len(stuck) == 1 else "stand"
            since = _since(stuck) or " now"
            yield (
                f"{_several(analysis, stuck)} {stand} in {operation},{since}: that is no wait for "
                "the lock. Does the monitor (the process that reads the userfaultfd) live and "
                "answer?"
            )
    for task in analysis.events.found:
        if task.does or not task.since_ns or not reads_a_page(task.stack):
            continue
        if task.time_ns - task.since_ns >= _SLOW_NS:
            doing = what(with_advice(task.operation, task.detail), task.length)
            yield (
                f"{who(analysis, task.tid)} stands in {doing}{_since([task])}, until a file "
                "system or swap brings a page: that is no wait for the lock. It is in "
                f"{stack_line(task.stack)}"
            )
    for operation in dict.fromkeys(HALTED.values()):
        if halted := [task for task in analysis.events.found if task.operation == operation]:
            be = "is" if len(halted) == 1 else "are"
            yield (
                f"{_several(analysis, halted)} {be} {operation}{_since(halted)}: that is no wait "
                "for the lock, but whoever waits for them waits for that. "
                f"{_LET_GO[operation]}"
            )


def _perhaps_behind(analysis: Analysis) -> Iterator[str]:
    """Name who sleeps in a futex beside a thread of the same process that has the lock for long.

    Its owner is known to the program alone; of who is woken later `headlines` tells by whom.
    """
    tasks, found, holds = analysis.events.tasks, analysis.events.found, analysis.holds
    seen = set(analysis.events["tid"].tolist())
    for holder in (task for task in found if task.does == "holds" and task.tid in tasks):
        if not (holds["hold_ns"][holds["tid"] == holder.tid] >= _LONG_NS).any():
            continue
        asleep = [
            task
            for task in found
            if task.operation == "futex"
            and task.tid not in seen
            and task.tid in tasks
            and tasks[task.tid].pid == tasks[holder.tid].pid
        ]
        if asleep:
            asleep.sort(key=lambda task: -task.since_ns)  # what has just begun is the likelier
            have = "has" if len(asleep) == 1 else "have"
            yield (
                f"{_several(analysis, asleep)} {have} slept in a futex{_since(asleep)} and not "
                f"been woken: if that is for what {who(analysis, holder.tid)} has in hand "
                "meanwhile (the interpreter's lock, say), they stand behind it as well."
            )


_LET_GO = {
    "stopped by a signal": "kill -CONT lets them go on.",
    "stopped by its tracer": "Its tracer (TracerPid in /proc/PID/status) has to let it go on.",
    "frozen with its cgroup": "0 in cgroup.freeze lets them go on.",
    "kept until the core of its process is written": "Then the process ends: ulimit -c, "
    "/proc/PID/coredump_filter and MADV_DONTDUMP make a core smaller.",
}


def _several(analysis: Analysis, tasks: list[FoundTask]) -> str:
    names = [who(analysis, task.tid) for task in tasks[:_OFTEN]]
    more = f" and {len(tasks) - _OFTEN} more" if len(tasks) > _OFTEN else ""
    return f"{', '.join(names)}{more}"


def _since(tasks: list[FoundTask]) -> str:
    oldest = min((task.since_ns for task in tasks if task.since_ns), default=0)
    return f" for {duration(max(task.time_ns for task in tasks) - oldest)}" if oldest else ""


def found_json(analysis: Analysis) -> list[dict[str, Any]]:
    """Return every found task as plain values."""
    return [
        {
            "tid": task.tid,
            "task": who(analysis, task.tid),
            "state": task.state,
            "does": task.does or None,
            "mode": ("exclusive" if task.exclusive else "shared") if task.does else None,
            "mm": f"{task.mm:#x}" if task.mm else None,
            "operation": with_advice(task.operation, task.detail) or None,
            "address": task.address,
            "length": task.length,
            "since_ns": task.since_ns or None,
            "looked_ns": task.time_ns,
            "wchan": task.wchan or None,
            "kernel_stack": list(task.stack),
        }
        for task in analysis.events.found
    ]
