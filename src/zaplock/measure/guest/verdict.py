"""What a kernel did in a finished run: its teardown's phases and victims."""

from __future__ import annotations

from zaplock.errors import UserError
from zaplock.measure.guest import recording
from zaplock.measure.guest.experiment import GuestRun
from zaplock.trace import verdict
from zaplock.trace.events import EventKind
from zaplock.trace.verdict import Subject, TeardownVerdict


def read(done: GuestRun, by: str = "") -> TeardownVerdict:
    """Read the lock events of a run in a guest or on the host, `by` one of its ways to record them.

    Raises UserError where events were lost: what is missing could be any hold or wait.
    """
    capsule = done.capsule
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
    return verdict.read(events, subject, capsule.facts["release"])
