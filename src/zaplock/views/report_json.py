"""A report as JSON: the longest holds and the worst waits, each with its blame.

The shape is a promise to other programs: fields are added to it, never renamed or taken away.
Where events are missing, "gaps" tells when; where the recording is not to be taken for whole for
another reason, "caveats" has sentences. Holds of which one end is outside the recording, or in
a gap, are in "holds_in_part", with the length that was seen. "stack", where one was
recorded, is {"kernel": [...], "user": [...]}, innermost frame first. "time" says where a hold's
time went, "why_slow" in sentences what follows from it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.analysis import Analysis
from zaplock.trace.blame import Blame, Explained
from zaplock.trace.call_counts import CallCount, call_counts
from zaplock.trace.events import NO_OP
from zaplock.trace.summary import process_name
from zaplock.trace.waits import WaitOutcome
from zaplock.views.headlines import headlines_json
from zaplock.views.initial_state import found_json
from zaplock.views.slow_holds import plain_time
from zaplock.views.stacks import plain


def report_json(analysis: Analysis, *, top: int) -> dict[str, Any]:
    """Return {"kernel", "duration_ns", "lost_events", "holds", "waits", "calls"}.

    `top` rows of each list. With "sees_locks" false, nothing is known of holds and waits.
    """
    return {
        "kernel": analysis.kernel,
        "duration_ns": analysis.duration_ns,
        "lost_events": analysis.segments.lost_events,
        "holds": _holds(analysis, analysis.holds["complete"], top),
        "holds_in_part": _holds(analysis, ~analysis.holds["complete"], top),
        "waits": [
            _wait(analysis, analysis.explain(row))
            for row in longest(analysis.waits["wait_ns"], top)
        ],
        "calls": [_call(analysis, count) for count in call_counts(analysis)[:top]],
        "slept_behind": headlines_json(analysis)[:top],
        **({"found": found_json(analysis)} if analysis.events.found else {}),
        **({"gaps": _gaps(analysis)} if analysis.segments.gaps else {}),
        **({} if analysis.sees_locks else {"sees_locks": False}),
        **({"caveats": list(analysis.caveats)} if analysis.caveats else {}),
    }


def _gaps(analysis: Analysis) -> list[dict[str, int]]:
    """Tell when events are missing; `count` is -1 where the kernel didn't say how many."""
    return [
        {"cpu": gap.cpu, "start_ns": gap.start_ns, "end_ns": gap.end_ns, "count": gap.count}
        for gap in analysis.segments.gaps
    ]


def longest(span_ns: Any, top: int) -> list[int]:
    """Return the rows of the `top` longest spans, of equals the earlier first."""
    if top >= len(span_ns):
        chosen = np.arange(len(span_ns))
    else:
        # Everything as long as the last one in; the sort then keeps the earliest of them.
        least = np.partition(span_ns, len(span_ns) - top)[len(span_ns) - top] if top else 0
        chosen = np.flatnonzero(span_ns >= least)
    order = chosen[np.argsort(-span_ns[chosen], kind="stable")[:top]]
    return [int(row) for row in order]


def _comm(analysis: Analysis, tid: int) -> str:
    task = analysis.events.tasks.get(tid)
    return task.comm if task else ""


def _operation(analysis: Analysis, op: int) -> str | None:
    return None if op == NO_OP else analysis.calls.operations[op]


def _holds(analysis: Analysis, chosen: NDArray[np.bool_], top: int) -> list[dict[str, Any]]:
    rows = np.flatnonzero(chosen)
    holds = analysis.holds.only(rows)
    return [
        {
            "mm": f"{int(holds['mm'][row]):#x}",
            "tid": int(holds["tid"][row]),
            "comm": _comm(analysis, int(holds["tid"][row])),
            "mode": "exclusive" if holds["exclusive"][row] else "shared",
            "start_ns": int(holds["start_ns"][row]),
            "hold_ns": int(holds["hold_ns"][row]),
            "downgraded": bool(holds["downgraded"][row]),
            "operation": _operation(analysis, int(holds["op"][row])),
            "length": int(holds["length"][row]),
            **plain_time(analysis, int(rows[row])),
            **plain(analysis.hold_stack(int(rows[row]))),
        }
        for row in longest(holds["hold_ns"], top)
    ]


def _wait(analysis: Analysis, found: Explained) -> dict[str, Any]:
    waits, row = analysis.waits, found.wait
    return {
        "tid": int(waits["tid"][row]),
        "comm": _comm(analysis, int(waits["tid"][row])),
        "mm": f"{int(waits['mm'][row]):#x}",
        "pid": analysis.events.mms.get(int(waits["mm"][row])),
        "operation": _operation(analysis, int(waits["op"][row])),
        "length": int(waits["length"][row]),
        "outcome": WaitOutcome(int(waits["outcome"][row])).name.lower(),
        "mode": "exclusive" if waits["exclusive"][row] else "shared",
        "start_ns": int(waits["start_ns"][row]),
        "wait_ns": int(waits["wait_ns"][row]),
        "at_least": bool(waits["partial"][row]),
        "blame": [_blame(analysis, blame) for blame in found.blame],
        "unexplained_ns": found.unexplained_ns,
        "free_ns": found.free_ns,
        "unseen_ns": found.unseen_ns,
        **plain(analysis.wait_stack(row)),
    }


def _call(analysis: Analysis, count: CallCount) -> dict[str, Any]:
    return {**asdict(count), "process": process_name(analysis.events.tasks, count.pid)}


def _blame(analysis: Analysis, blame: Blame) -> dict[str, Any]:
    return {
        "tid": blame.tid,
        "comm": blame.comm,
        "operation": blame.operation or None,
        "length": blame.length,
        "role": blame.role,
        "share_ns": blame.share_ns,
        **plain(analysis.blamed_stack(blame)),
    }
