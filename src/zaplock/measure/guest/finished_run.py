"""What a kernel did in a finished run: its teardown's phases and victims."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from zaplock.errors import UserError
from zaplock.measure.guest import recording
from zaplock.measure.guest.capsule import Capsule
from zaplock.measure.guest.experiment import GuestRun, stalls
from zaplock.trace import teardown_verdict
from zaplock.trace.events import EventKind, Events
from zaplock.trace.teardown_verdict import Subject, TeardownVerdict


def read(done: GuestRun, by: str = "") -> TeardownVerdict:
    """Read the lock events of a run in a guest or on the host, `by` one of its ways to record them.

    Where the kernel gives none, the verdict has the bystanders' stalls alone (`seen` is false).
    Raises UserError where events were lost: what is missing could be any hold or wait.
    """
    capsule = done.capsule
    if not recording.lock_events(capsule):
        return _stalls_alone(done)
    recording.require_told(done, by)
    events = recording.events(capsule, by)
    if nr_gaps := int((events["kind"] == EventKind.LOST).sum()):
        raise UserError(
            f"{done.plan.kernel}: the trace buffers overflowed {nr_gaps} times, so its holds can't "
            "be trusted: try again with a smaller SIZE, or a smaller --rate"
        )
    pid = capsule.fact("target_pid")
    subject = Subject(
        tid=pid,
        pid=pid,
        begin_ns=capsule.fact("begin_ns"),
        end_ns=capsule.fact("end_ns"),
        bystanders={lane.name: lane.tid for lane in capsule.lanes},
        exits=done.plan.teardown == "exit",
    )
    seen = teardown_verdict.read(events, subject, capsule.facts["release"])
    return replace(seen, arrivals_ns=_arrivals(capsule, events))


def _arrivals(capsule: Capsule, events: Events) -> dict[str, int]:
    """Say when each bystander came first, from the teardown's begin: when it asked for the lock.

    In an operation that had begun by then it may ask long after, put off by who has the only CPU.
    Who asks for nothing in its operation (a fault by its VMA's lock) comes when that begins.
    """
    begin_ns = capsule.fact("begin_ns")
    own = events["tid"] == capsule.fact("target_pid")
    locks = np.unique(events["mm"][own & (events["kind"] <= EventKind.RELEASED)])
    asked = (events["kind"] == EventKind.ASKED) & np.isin(events["mm"], locks)
    asked &= events["time_ns"] >= begin_ns
    found = {}
    for lane in capsule.lanes:
        asks_ns = events["time_ns"][asked & (events["tid"] == lane.tid)]
        for op_begin_ns, op_end_ns in zip(lane.begin_ns.tolist(), lane.end_ns.tolist()):
            inside = asks_ns[(asks_ns >= op_begin_ns) & (asks_ns <= op_end_ns)]
            if len(inside) or op_begin_ns >= begin_ns:
                found[lane.name] = int(inside[0] if len(inside) else op_begin_ns) - begin_ns
                break
    return found


def _stalls_alone(done: GuestRun) -> TeardownVerdict:
    """Tell what the bystanders' own clocks say: it needs nothing of the kernel."""
    took_ns = done.capsule.fact("end_ns") - done.capsule.fact("begin_ns")
    worst = {name: beside.max_ns for name, (beside, _) in stalls(done).items()}
    return TeardownVerdict((), {}, worst, took_ns=max(took_ns, 1))
