"""What a kernel did in a finished run: its teardown's phases and victims."""

from __future__ import annotations

from zaplock.kernel.guest import recording
from zaplock.kernel.guest.experiment import GuestRun
from zaplock.trace import verdict
from zaplock.trace.verdict import Subject, Verdict


def read(done: GuestRun) -> Verdict:
    """Read the lock events of a run in a guest or on the host."""
    capsule = done.capsule
    pid = capsule.fact("target_pid")
    subject = Subject(
        tid=pid,
        pid=pid,
        begin_ns=capsule.fact("begin_ns"),
        end_ns=capsule.fact("end_ns"),
        bystanders={lane.name: lane.tid for lane in capsule.lanes},
        exits=done.plan.teardown == "exit",
    )
    return verdict.read(recording.events(capsule), subject, capsule.facts["release"])
