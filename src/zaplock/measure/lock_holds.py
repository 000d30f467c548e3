"""The lock as a measurement sees it: hold times from the recorder, or a note why there are none.

Only the measured process's lock is recorded, and only the mmap_lock tracepoints (5.11+). What
counts as the teardown's are the holds of its thread that lie in its time; it does nothing else
then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zaplock.errors import UserError

if TYPE_CHECKING:
    from zaplock.recorder.in_memory import Recorder


@dataclass(frozen=True, slots=True)
class TeardownHolds:
    """How long the teardown held the mmap_lock, in nanoseconds; None: could not be seen."""

    exclusive_ns: int | None
    shared_ns: int | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class LockHolds:
    """A finished look at one lock: a recording, or the reason why there is none."""

    recorder: Recorder | None
    note: str = ""

    def of_thread(self, tid: int, begin_ns: int, end_ns: int) -> TeardownHolds:
        """Sum up the holds of a thread between two times of CLOCK_MONOTONIC."""
        if self.recorder is None:
            return TeardownHolds(None, None, self.note)
        from zaplock.trace.holds import holds

        found = holds(self.recorder.events())
        mine = (found["tid"] == tid) & (found["start_ns"] <= end_ns) & (found.end_ns >= begin_ns)
        exclusive, span_ns = found["exclusive"], found["hold_ns"]
        lost = self.recorder.lost_events
        return TeardownHolds(
            int(span_ns[mine & exclusive].sum()),
            int(span_ns[mine & ~exclusive].sum()),
            f"{lost} lock events were lost: the hold times are not whole" if lost else "",
        )


@contextmanager
def watch(pid: int, wanted: bool) -> Iterator[LockHolds]:
    """Watch the mmap_lock of a process while the block runs, where that is possible.

    Ask the view after the block only.
    """
    if not wanted:
        yield LockHolds(None)
        return
    from zaplock.recorder.in_memory import record_mm

    recording = record_mm(pid, events=("mmap_lock",))
    try:
        recorder = recording.__enter__()
    except UserError as error:
        yield LockHolds(None, f"hold times not seen: {error}")
        return
    try:
        yield LockHolds(recorder)
    finally:
        recording.__exit__(None, None, None)
