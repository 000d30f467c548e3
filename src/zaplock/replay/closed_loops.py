"""Which recorded operations began only because another thread had come so far: closed loops.

A thread that sleeps until another one wakes it (a mutex, a condition, an answer through a pipe)
begins its next operation later where that other one is held up, and sooner where it is not. The
recording shows it by sched_waking: a sleep and who ended it. What a thread does after such a sleep
is placed by both things that it needed: to have come to the sleep itself, and the waker to have
come to the wake-up. Both are followed back in time, through further sleeps, to the operations of
the replay that ended before.

Of threads that are linked so, the pauses in which they did not sleep are kept, too: whoever is late
there is late with what follows.

A sleep that a timer, a device or nobody known ended is as long as recorded at least: nothing
after it is sooner than in the recording. So is what follows an operation in whose middle a thread
was woken, and what lies behind more than `_MOST` sleeps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from zaplock.replay.plan import RecordedOperation, ReplayPlan
from zaplock.trace.analysis import Analysis
from zaplock.trace.events import EventKind
from zaplock.trace.sleeps import Nap, Sleeps

_MOST = 32
"""So many sleeps are followed back from one operation."""


class After(NamedTuple):
    """Not before `delay_ns` after operation `number` of thread `tid` has ended."""

    tid: int
    number: int
    delay_ns: int


@dataclass(frozen=True, slots=True)
class Link:
    """When a linked operation begins: after all of `after`, and not before `floor_ns`."""

    after: tuple[After, ...]
    floor_ns: int


Links = Mapping[tuple[int, int], Link]
"""By (thread, number of its operation); operations that are not there begin as recorded."""


def links_of(analysis: Analysis, plan: ReplayPlan) -> Links:
    """Find the operations of a plan that another thread let begin; none without sched_waking."""
    wakers = (analysis.events["kind"] == EventKind.WAKEUP) & (analysis.events["detail"] > 0)
    sleeps = analysis.judge.tasks_sleeps
    if sleeps is None or not wakers.any():
        return {}
    story = _Story(plan, sleeps, analysis.begin_ns)
    found = {}
    for tid, operations in plan.threads.items():
        for number, one in enumerate(operations):
            if link := story.link(tid, number, one):
                found[tid, number] = link
    together = {tid for tid, _ in found} | {
        one.tid for link in found.values() for one in link.after
    }
    for tid in together:
        for number, one in enumerate(plan.threads[tid][1:], 1):
            if (tid, number) not in found and (link := story.pause(tid, number, one)):
                found[tid, number] = link
    return found


def let_begin(links: Links) -> int:
    """Count the operations that another thread let begin."""
    return sum(any(one.tid != tid for one in link.after) for (tid, _), link in links.items())


@dataclass(frozen=True, slots=True)
class _Needs:
    """What a thread needed to come to an instant: ends of operations, and a time."""

    after: dict[int, After]
    floor_ns: int

    def later(self, ns: int) -> _Needs:
        """Return what it needed to come to `ns` after that instant, without a sleep between."""
        after = {tid: one._replace(delay_ns=one.delay_ns + ns) for tid, one in self.after.items()}
        return _Needs(after, self.floor_ns + ns)

    def with_(self, other: _Needs) -> _Needs:
        """Return both; of a thread's operations the last, since the earlier come before it."""
        after = dict(self.after)
        for tid, one in other.after.items():
            after[tid] = max(one, after.get(tid, one))
        return _Needs(after, max(self.floor_ns, other.floor_ns))


_NEVER_NS, _END_NS = -(1 << 62), 1 << 62
"""The floor of what may come at any time; after every event."""


class _Story:
    """Each thread's operations and sleeps, to look back from an instant.

    Times count from the recording's first instant, `begin_ns`.
    """

    def __init__(self, plan: ReplayPlan, sleeps: Sleeps, begin_ns: int) -> None:
        self._sleeps, self._begin_ns = sleeps, begin_ns
        self._naps: dict[int, list[Nap]] = {}
        self._operations = plan.threads
        self._ends = {
            tid: list(accumulate((one.end_ns for one in own), max))
            for tid, own in plan.threads.items()
        }
        self._left = 0

    def link(self, tid: int, number: int, one: RecordedOperation) -> Link | None:
        """Return what let an operation begin, None if no other thread that is replayed did."""
        since_ns = self._ends[tid][number - 1] if number else _NEVER_NS
        last = self._last_sleep(tid, since_ns, one.begin_ns)
        if last is None:
            return None
        self._left = _MOST
        needs = self._needs(tid, number, one.begin_ns)
        others = set(needs.after) - {tid}
        if not others:
            return None
        return Link(tuple(sorted(needs.after.values())), needs.floor_ns)

    def pause(self, tid: int, number: int, one: RecordedOperation) -> Link | None:
        """Return what keeps the pause that a thread ran through before an operation, if it did.

        So that two threads of which one waits for the other are late together. Never sooner.
        """
        end_ns = self._ends[tid][number - 1]
        if self._last_sleep(tid, end_ns, one.begin_ns) is not None:
            return None
        return Link((After(tid, number - 1, max(0, one.begin_ns - end_ns)),), one.begin_ns)

    def _naps_of(self, tid: int) -> list[Nap]:
        if tid not in self._naps:
            self._naps[tid] = [
                Nap(
                    nap.begin_ns - self._begin_ns,
                    nap.woken_ns - self._begin_ns,
                    nap.ran_ns - self._begin_ns,
                    nap.waker,
                )
                for nap in self._sleeps.naps(tid, 0, _END_NS)
            ]
        return self._naps[tid]

    def _last_sleep(self, tid: int, since_ns: int, until_ns: int) -> Nap | None:
        naps = self._naps_of(tid)
        place = bisect_right(naps, until_ns, key=lambda nap: nap.woken_ns) - 1
        return naps[place] if place >= 0 and naps[place].begin_ns >= since_ns else None

    def _needs(self, tid: int, number: int, at_ns: int) -> _Needs:
        """Tell what a thread needed to come to an instant before its operation `number`."""
        end_ns = self._ends[tid][number - 1] if number else _NEVER_NS
        sleep = self._last_sleep(tid, end_ns, at_ns)
        if sleep is None:
            if not number:
                return _Needs({}, at_ns)  # it began to be, or to be recorded: at that time
            return _Needs({tid: After(tid, number - 1, at_ns - end_ns)}, _NEVER_NS)
        self._left -= 1
        if self._left < 0:
            return _Needs({}, at_ns)
        came = self._needs(tid, number, sleep.begin_ns)
        known = sleep.waker and sleep.waker != tid
        woke = self._at(sleep.waker, sleep.woken_ns) if known else _Needs({}, sleep.woken_ns)
        return came.with_(woke).later(at_ns - sleep.woken_ns)

    def _at(self, tid: int, at_ns: int) -> _Needs:
        """Tell what any thread needed to come to an instant."""
        operations: Sequence[RecordedOperation] = self._operations.get(tid, ())
        if not operations:
            return self._beside(tid, at_ns)
        number = bisect_right(self._ends[tid], at_ns)
        under_way = number < len(operations) and operations[number].begin_ns < at_ns
        return _Needs({}, at_ns) if under_way else self._needs(tid, number, at_ns)

    def _beside(self, tid: int, at_ns: int) -> _Needs:
        """Tell that of a thread without operations, which may hand on what others did."""
        sleep = self._last_sleep(tid, _NEVER_NS, at_ns)
        self._left -= 1
        if sleep is None or self._left < 0 or not sleep.waker:
            return _Needs({}, at_ns)
        came, woke = self._beside(tid, sleep.begin_ns), self._at(sleep.waker, sleep.woken_ns)
        return came.with_(woke).later(at_ns - sleep.woken_ns)
