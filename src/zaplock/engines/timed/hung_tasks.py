"""Waits that the kernel's hung-task detector would report, caught while the waiter still stands.

The kernel's khungtaskd looks at sleepers in the uninterruptible state only; a killable wait is
never reported, however long it is (kernel/hung_task.c). When such a wait ends the program is still
suspended in it, so its call chain can be read then, and costs nothing otherwise.

Not covered: the detector's own period. The kernel looks every so often and may so miss a wait that
is shorter than twice the timeout; here every wait above the timeout counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from zaplock.engines.timed.threads import Thread, call_chain


@dataclass(frozen=True, slots=True)
class LongWait:
    """One uninterruptible wait that was longer than the timeout.

    `chain` names the functions that the task was in, the innermost first; `waits_for` is the step.
    """

    tid: int
    name: str
    asked_ns: int
    waited_ns: int
    waits_for: str
    chain: tuple[str, ...]


class LongWaits:
    """Collect the uninterruptible waits longer than a timeout; None collects nothing."""

    def __init__(self, timeout_ns: int | None) -> None:
        self.timeout_ns = timeout_ns
        self.found: list[LongWait] = []

    def look_at(self, thread: Thread, now_ns: int) -> None:
        """Note the wait of `thread`, which ends now, if the detector would report it."""
        waited_ns = now_ns - thread.asked_ns
        if self.timeout_ns is None or waited_ns <= self.timeout_ns or thread.step.killable:
            return
        name, chain = thread.task.name, tuple(call_chain(thread.program))
        wait = LongWait(thread.tid, name, thread.asked_ns, waited_ns, thread.step.name, chain)
        self.found.append(wait)
