"""What was already so when the recording began, in sentences and as plain values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from zaplock.trace.analysis import Analysis
from zaplock.trace.events import FoundTask
from zaplock.trace.madvise import with_advice
from zaplock.units import duration
from zaplock.views.sentences import owner, what, who
from zaplock.views.standing import asleep_with_it, no_waits, perhaps_behind, stack_line


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
    yield from no_waits(analysis)
    yield from perhaps_behind(analysis)


def present_lines(analysis: Analysis, *, limit: int = 3) -> Iterator[str]:
    """Say where in the kernel those are that have a lock now, of a look that was just made."""
    tasks = [task for task in analysis.events.found if task.does == "holds" and task.stack]
    for task in tasks[:limit]:
        name = what(with_advice(task.operation, task.detail), task.length)
        yield f"{who(analysis, task.tid)}, in {name}, is in {stack_line(task.stack)}"
    yield from no_waits(analysis)


def _listed(analysis: Analysis, tasks: list[FoundTask], limit: int) -> Iterator[str]:
    tasks.sort(key=lambda task: (task.does == "waits", task.since_ns))
    for task in tasks[:limit]:
        yield f"    {_sentence(analysis, task)}"
        if task.stack:
            yield f"        in the kernel: {stack_line(task.stack)}"
            yield from (f"        {line}" for line in asleep_with_it(analysis, task))
        if task.does == "waits" and (other := _another(task)):
            yield f"        that is another process's lock: ask zaplock why {other}"
    if len(tasks) > limit:
        waiting = sum(task.does == "waits" for task in tasks[limit:])
        yield f"    ... and {len(tasks) - limit:,} more, {waiting:,} of them waiting"


def _another(task: FoundTask) -> int:
    """Return the process whose lock a task is about, if it is none that was looked at; 0: unknown.

    >>> _another(FoundTask(7, 0, "D", "", "read of /proc/4711/maps", (), does="waits"))
    4711
    """
    found = re.search("of /proc/([0-9]+)/", task.operation)
    return int(found[1]) if found and not task.mm else 0


def _sentence(analysis: Analysis, task: FoundTask) -> str:
    mode = "exclusively" if task.exclusive else "shared"
    other = _another(task)
    unknown = f"the lock of process {other}" if other else "an mmap_lock"
    lock = f"the lock of {owner(analysis, task.mm)}" if task.mm else unknown
    verb = "waited for" if task.does == "waits" else "had"
    doing = what(with_advice(task.operation, task.detail), task.length)
    since_ns = analysis.recorded_ns - task.since_ns
    since = f", for at least {duration(since_ns)}" if task.since_ns and since_ns > 0 else ""
    return f"{who(analysis, task.tid)} {verb} {lock}, {mode}, in {doing}{since}"


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
