"""The whole chain in one call: events -> holds -> waits -> blame.

The parts that several links need (segments, lanes, calls) are made once. Every view starts here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zaplock.trace.blame import Explained, Judge, judge
from zaplock.trace.calls import Calls, calls
from zaplock.trace.events import Events
from zaplock.trace.gaps import Segments, segments
from zaplock.trace.holds import Holds, holds
from zaplock.trace.intervals import lock_lanes
from zaplock.trace.queue import queue_of
from zaplock.trace.sleeps import sleeps
from zaplock.trace.vma_lock import vma_locks
from zaplock.trace.waits import Waits, waits


@dataclass(frozen=True, slots=True)
class Analysis:
    """A recording, understood. `kernel` is the release or design that it was made on."""

    events: Events
    kernel: str
    segments: Segments
    calls: Calls
    holds: Holds
    waits: Waits
    judge: Judge
    caveats: tuple[str, ...] = ()
    """Why the recording is not to be taken for whole, gaps apart: a sentence each."""

    @property
    def begin_ns(self) -> int:
        """The first instant of the recording, or the first wait that it knows of."""
        begin_ns = int(self.segments.begin_ns[0])
        return min(begin_ns, int(self.events["time_ns"][0])) if len(self.events) else begin_ns

    @property
    def duration_ns(self) -> int:
        """From the beginning of the recording to its end."""
        return int(self.segments.end_ns[-1]) - self.begin_ns

    def explain(self, wait: int) -> Explained:
        """Explain one wait, a row of `waits`."""
        return self.judge.explain(wait)

    def explain_all(self, rows: Iterable[int]) -> list[Explained]:
        """Explain several waits (about 0.1 ms each)."""
        return self.judge.explain_all(rows)


def analyse(
    events: Events,
    kernel: str = "",
    *,
    span: tuple[int, int] | None = None,
    caveats: tuple[str, ...] = (),
) -> Analysis:
    """Find the holds and waits of a recording and get ready to explain any of the waits.

    `span` is when the recording began and ended; without it, its first and its last event.
    `caveats` is what reading it told (`file.Recording`).
    """
    cut = segments(events, span)
    in_calls = calls(events, cut)
    rows = lock_lanes(events, cut)
    held = holds(events, cut=cut, in_calls=in_calls, rows=rows)
    waited = waits(events, cut=cut, in_calls=in_calls, rows=rows)
    del rows
    slept = sleeps(events)
    locks = vma_locks(events, in_calls, held, slept)
    verdict = judge(
        held, waited, queue_of(kernel), locks, sleeps=slept, known_ns=int(cut.begin_ns[0])
    )
    return Analysis(events, kernel, cut, in_calls, held, waited, verdict, caveats)
