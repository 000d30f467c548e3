"""What a kernel did in a finished run: its teardown's phases and victims."""

from __future__ import annotations

from dataclasses import replace

from zaplock.errors import UserError
from zaplock.measure.guest import recording
from zaplock.measure.guest.capsule import Capsule
from zaplock.measure.guest.experiment import GuestRun, stalls
from zaplock.trace import verdict
from zaplock.trace.events import EventKind
from zaplock.trace.verdict import WAITED, Subject, TeardownVerdict


def read(done: GuestRun, by: str = "") -> TeardownVerdict:
    """Read the lock events of a run in a guest or on the host, `by` one of its ways to record them.

    Where the kernel gives none, the verdict has the bystanders' stalls alone (`seen` is false).
    Raises UserError where events were lost: what is missing could be any hold or wait.
    """
    capsule = done.capsule
    if not recording.lock_events(capsule):
        return _stalls_alone(done)
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
    seen = verdict.read(events, subject, capsule.facts["release"])
    return replace(seen, arrivals_ns=_arrivals(capsule))


def _arrivals(capsule: Capsule) -> dict[str, int]:
    """Say when each bystander came first, from the teardown's begin, lock or no lock.

    Who had begun an operation by then, and was still at it long after, came at once: on one CPU it
    was put off before it could ask.
    """
    begin_ns, end_ns = capsule.fact("begin_ns"), capsule.fact("end_ns")
    long_after_ns = begin_ns + int(WAITED * (end_ns - begin_ns))
    found = {}
    for lane in capsule.lanes:
        came = lane.begin_ns[(lane.begin_ns >= begin_ns) | (lane.end_ns > long_after_ns)]
        if len(came):
            found[lane.name] = max(0, int(came[0]) - begin_ns)
    return found


def _stalls_alone(done: GuestRun) -> TeardownVerdict:
    """Tell what the bystanders' own clocks say: it needs nothing of the kernel."""
    took_ns = done.capsule.fact("end_ns") - done.capsule.fact("begin_ns")
    worst = {name: beside.max_ns for name, (beside, _) in stalls(done).items()}
    return TeardownVerdict((), {}, worst, took_ns=max(took_ns, 1))
