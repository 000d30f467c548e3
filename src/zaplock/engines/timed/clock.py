"""Virtual time and its timers.

A timer is one integer: when it is due, in nanoseconds, times `SLOTS`, plus the slot of whose it is.
So a heap compares integers and nothing else, and time passes by adding to one.
"""

from __future__ import annotations

from heapq import heappush
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zaplock.engines.timed.bandwidth import QuotaTick
    from zaplock.engines.timed.threads import Thread

FOREVER = 1 << 62
"""Later than anything that happens, in nanoseconds."""
SLOTS = 1 << 20
"""How many may have a timer; and how much of a timer a nanosecond is."""
TICK = 8
"""Not a thread's state (threads.py has those): the end of a time slice on a CPU."""


def time_of(timer: int) -> int:
    """Return when a timer is due, in nanoseconds."""
    return timer // SLOTS


class Tick:
    """The end of the time slice of one CPU, in the place of a thread among the timers."""

    __slots__ = ("cpu", "slot", "state", "timer")

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu
        self.state = TICK
        self.slot = 0
        self.timer = 0


class Clock:
    """Virtual time and the timers, in order of time and then of their slots.

    `timer` is the one that was due last: it says what time it is. A timer counts as long as its
    thread says that it is its own; others are stale.
    """

    __slots__ = ("heap", "slots", "timer")

    def __init__(self) -> None:
        self.timer = 0
        self.heap: list[int] = []
        self.slots: list[Any] = []
        # The last timer is never due: so the heap is never empty and needs no test for that.
        end = Tick(0)
        self.enter(end)
        self.set(FOREVER, end)

    @property
    def now(self) -> int:
        """The time in nanoseconds."""
        return self.timer // SLOTS

    def enter(self, thread: Thread | Tick | QuotaTick) -> None:
        """Give a thread its slot among the timers."""
        thread.slot = len(self.slots)
        assert thread.slot < SLOTS, "too many threads"
        self.slots.append(thread)

    def set(self, time_ns: int, thread: Thread | Tick | QuotaTick) -> None:
        """Set the timer of a thread; one set before no longer counts."""
        thread.timer = time_ns * SLOTS + thread.slot
        heappush(self.heap, thread.timer)
