"""Where the time of a hold went: on a cpu, ready but without one, throttled, asleep on what.

From the scheduling events of the task that held the lock. Its own events (of locks and system
calls) say that it runs at that instant, so a story that leaves something out is noticed: from where
a task left its cpu to a sign of life without a return, nothing is known. The parts add up to the
hold, to the nanosecond.

The mmap_lock is given back before a task returns to user mode, so time on a cpu is kernel time.

A task that is ready and has no cpu is *preempted*, or *throttled*: its cgroup has used up its quota
(cpu.max). No event tells the two apart. The group's own account does (`quotas`): of a gap no more
is throttled than the group's throttled time grew around it. From 6.18 on a task is throttled only
on its way to user mode, when it has no lock any more; then all such time is preemption.

Not covered: a hypervisor that takes the cpu away; interrupts, which count as the task's own time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from zaplock import linux_version
from zaplock.trace.events import EventKind
from zaplock.trace.sleeps import Sleeps

THROTTLES_OUTSIDE = (6, 18)
"""From here on no task is throttled in the kernel (e1fad12dcb66, "Switch to task based throttle
model")."""


@dataclass(frozen=True, slots=True)
class HoldTime:
    """The parts of a hold in nanoseconds; `asleep` says on what, the longest first.

    `group` is the cgroup whose quota was used up, "" where nothing was throttled.
    """

    on_cpu_ns: int
    preempted_ns: int
    throttled_ns: int
    asleep: tuple[tuple[str, int], ...]
    unknown_ns: int
    group: str = ""

    @property
    def asleep_ns(self) -> int:
        """All sleep together."""
        return sum(span_ns for _, span_ns in self.asleep)

    @property
    def whole_ns(self) -> int:
        """The hold."""
        known = self.on_cpu_ns + self.preempted_ns + self.throttled_ns + self.asleep_ns
        return known + self.unknown_ns


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch in one state: "cpu", "ready", "asleep" or "unknown"."""

    state: str
    begin_ns: int
    end_ns: int
    slept_ns: int
    """When the sleep began, of "asleep"."""


@dataclass(frozen=True, slots=True)
class HoldWindow:
    """A hold, and whether its beginning and its end were seen."""

    tid: int
    start_ns: int
    end_ns: int
    begun: bool = True
    ended: bool = True


def hold_time(
    sleeps: Sleeps | None,
    hold: HoldWindow,
    asleep_on: Callable[[int], str],
    throttled: Callable[[int, int], tuple[str, int]],
) -> HoldTime:
    """Split a hold. `sleeps` is None where its task's scheduling was not recorded.

    `asleep_on(time_ns)` says what a sleep that began then was for; `throttled(begin_ns, end_ns)` by
    which group the task was throttled in a gap, and for how long at most.
    """
    sums = {"cpu": 0, "ready": 0, "asleep": 0, "unknown": 0}
    on: dict[str, int] = {}
    group, throttled_ns = "", 0
    for piece in _pieces(sleeps, hold) if sleeps else ():
        span_ns = piece.end_ns - piece.begin_ns
        sums[piece.state] += span_ns
        if piece.state == "asleep":
            what = asleep_on(piece.slept_ns)
            on[what] = on.get(what, 0) + span_ns
        elif piece.state == "ready":
            name, part_ns = throttled(piece.begin_ns, piece.end_ns)
            group, throttled_ns = name or group, throttled_ns + min(part_ns, span_ns)
    asleep = tuple(sorted(on.items(), key=lambda item: (-item[1], item[0])))
    known_ns = sums["cpu"] + sums["ready"] + sums["asleep"]
    unknown_ns = hold.end_ns - hold.start_ns - known_ns
    ready_ns = sums["ready"] - throttled_ns
    return HoldTime(sums["cpu"], ready_ns, throttled_ns, asleep, unknown_ns, group)


_BEFORE: dict[int, str] = {
    EventKind.SCHED_OUT: "cpu",
    EventKind.WAKEUP: "asleep",
    EventKind.SCHED_IN: "unknown",
}
"""What a task was doing until its first event, where nothing earlier is known."""


def _pieces(sleeps: Sleeps, hold: HoldWindow) -> Iterator[_Piece]:
    """Cut a hold into stretches of one state, by all the events of its task in it."""
    story = sleeps.story(hold.tid, hold.start_ns, hold.end_ns)
    state, since_ns, slept_ns = "cpu", hold.start_ns, hold.start_ns
    if not hold.begun:
        state = _BEFORE.get(story[0][0], "cpu") if story else "unknown"
    for kind, at_ns, detail in story:
        if kind == EventKind.WAKEUP and state != "asleep":
            continue
        was, new = _turn(state, kind, detail)
        yield _Piece(was, since_ns, at_ns, slept_ns)
        if new == "asleep":
            slept_ns = at_ns
        state, since_ns = new, at_ns
    # Whoever gives the lock back is on a cpu; if it was seen to leave it, its return was not.
    last = "unknown" if hold.ended and state != "cpu" else state
    yield _Piece(last, since_ns, hold.end_ns, slept_ns)


def _turn(state: str, kind: int, detail: int) -> tuple[str, str]:
    """Say what a task was doing up to an event, and what it does from there."""
    if kind == EventKind.SCHED_OUT:
        return ("cpu" if state == "cpu" else "unknown"), ("asleep" if detail else "ready")
    if kind == EventKind.SCHED_IN:
        return ("unknown" if state == "cpu" else state), "cpu"
    if kind == EventKind.WAKEUP:
        return "asleep", "ready"
    return ("cpu" if state == "cpu" else "unknown"), "cpu"  # a sign of life without a return


def throttles_in_kernel(kernel: str) -> bool:
    """Say whether a kernel of that release takes the cpu from a task that is in the kernel.

    False where the release is not known: then such a gap is not called throttling.
    """
    release = linux_version.find(kernel)
    return release is not None and release.series < THROTTLES_OUTSIDE
