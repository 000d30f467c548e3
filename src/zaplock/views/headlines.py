"""What concerns those who wait for no mmap_lock: a caller that stands, a sleeper behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from zaplock.trace.analysis import Analysis
from zaplock.trace.calls import NO_CALL
from zaplock.trace.sleepers_behind import Behind, behind
from zaplock.units import duration
from zaplock.views.sentences import what, who

STOOD_NS = 10_000_000
"""From here on a caller that stands in its own operation is told of."""

_SHOWN = 3
_ENDS = frozenset({"exit", "exit_group"})


def headlines(analysis: Analysis) -> Iterator[str]:
    """Tell of the longest stand of a caller, and of those who slept behind such a caller."""
    sleepers = behind(analysis)
    yield from (behind_sentence(analysis, one) for one in sleepers[:_SHOWN])
    if len(sleepers) > _SHOWN:
        yield f"... and {len(sleepers) - _SHOWN:,} more sleeps behind such a call."
    yield from _own_stand(analysis)


def behind_sentence(analysis: Analysis, one: Behind) -> str:
    """Say who slept until whom woke it, and what that one was in."""
    calls = analysis.calls
    name = what(calls.operations[int(calls.op[one.call])], int(calls.length[one.call]))
    least = "at least " if one.partial else ""
    kind = next(
        (
            f" in {task.operation}"
            for task in analysis.events.found
            if task.tid == one.tid and task.operation and one.partial
        ),
        "",
    )
    through = "".join(
        f" {who(analysis, tid)} woke it, which itself slept until" for tid in one.through
    )
    culprit = who(analysis, int(calls.tid[one.call]))
    return (
        f"{who(analysis, one.tid)} slept{kind} for {least}{duration(one.slept_ns)}, not for the "
        f"mmap_lock, until{through} {culprit} woke it, which was in {name} for "
        f"{duration(one.inside_ns)} of that."
    )


def _own_stand(analysis: Analysis) -> Iterator[str]:
    """Nobody else may have waited: whoever has the lock so long stands there itself."""
    row = longest_own(analysis)
    if row is None:
        return
    holds, calls = analysis.holds, analysis.calls
    call = int(holds["call"][row])
    stood_ns = int(calls.end_ns[call] - calls.begin_ns[call])
    name = what(calls.operations[int(calls.op[call])], int(calls.length[call]))
    mode = "exclusively" if holds["exclusive"][row] else "shared"
    held_ns = int(holds["hold_ns"][row])
    yield (
        f"{who(analysis, int(holds['tid'][row]))} itself stood in {name} for {duration(stood_ns)} "
        f"({duration(held_ns)} with the lock held {mode}), and so did whatever waits for it."
    )


def longest_own(analysis: Analysis) -> int | None:
    """Return the longest hold inside a call that took its caller `STOOD_NS` or more, or None."""
    holds, calls = analysis.holds, analysis.calls
    ends = [op for op, name in enumerate(calls.operations) if name in _ENDS]
    long = holds["hold_ns"] >= STOOD_NS
    rows = np.flatnonzero((holds["call"] != NO_CALL) & long & ~np.isin(holds["op"], ends))
    if not len(rows):
        return None
    return int(rows[np.argmax(holds["hold_ns"][rows])])


def _comm(analysis: Analysis, tid: int) -> str:
    task = analysis.events.tasks.get(tid)
    return task.comm if task else ""


def headlines_json(analysis: Analysis) -> list[dict[str, Any]]:
    """Return the sleeps behind calls as plain values."""
    calls = analysis.calls
    return [
        {
            "tid": one.tid,
            "begin_ns": one.begin_ns,
            "slept_ns": one.slept_ns,
            "at_least": one.partial,
            "comm": _comm(analysis, one.tid),
            "woken_by": one.waker,
            "woken_by_comm": _comm(analysis, one.waker),
            "through": [_comm(analysis, tid) for tid in one.through],
            "culprit": int(calls.tid[one.call]),
            "culprit_comm": _comm(analysis, int(calls.tid[one.call])),
            "operation": calls.operations[int(calls.op[one.call])],
            "length": int(calls.length[one.call]),
            "inside_ns": one.inside_ns,
        }
        for one in behind(analysis)
    ]
