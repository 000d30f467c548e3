"""A CPU quota as cgroups have it (cpu.max): so much time on CPUs in each period, for a group.

The members' time on CPUs is taken from what the period has left; when nothing is left the group is
*throttled* until a period begins that leaves something again. What was overdrawn is paid back from
the periods that follow. What is left over is not saved. Where a throttled member stops, a design
decides (`Design.throttled_in`):

    kernel   at once, wherever it is, also with locks in hand (to 6.17); one that is woken gets no
             CPU either
    user     on its way back to user mode (6.18 on): the end of its system call or page fault; what
             it does in the kernel until then is overdrawn

Not covered: the slices of 5 ms by which CPUs get the quota, and that usage is looked at in ticks:
a real group overdraws by up to a tick and pays it back, so that single pauses are off by a few
milliseconds, their sum is not. Nested groups; cpu.max.burst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.engines.timed.clock import TICK
from zaplock.engines.timed.threads import READY, SPINNING, Thread
from zaplock.trace.quotas import CpuMax

if TYPE_CHECKING:
    from zaplock.engines.timed.cpus import Cpus


class QuotaTick:
    """When the account must be looked at again, in the place of a thread among the timers."""

    __slots__ = ("slot", "state", "timer")

    def __init__(self) -> None:
        self.state = TICK
        self.slot = 0
        self.timer = 0


class Bandwidth:
    """The account of one group. Periods begin at multiples of `period_ns`."""

    def __init__(self, cpus: Cpus, limit: CpuMax, *, in_kernel: bool) -> None:
        self._cpus = cpus
        self._limit = limit
        self._in_kernel = in_kernel
        self._left_ns = limit.quota_ns
        self._counted_ns = 0
        self._members: dict[Thread, None] = {}
        self._on: dict[Thread, int] = {}
        """Members on a CPU, and since when their time is not counted yet."""
        self._parked: list[Thread] = []
        self.throttled = False
        self.tick = QuotaTick()
        cpus.clock.enter(self.tick)

    def add(self, thread: Thread) -> None:
        """Make a thread a member."""
        self._members[thread] = None

    def goes_on(self, thread: Thread, at_ns: int) -> None:
        """A thread gets a CPU at an instant, which is now or soon."""
        if thread in self._members:
            self._count()
            self._on[thread] = at_ns
            self._arm()

    def goes_off(self, thread: Thread) -> None:
        """A thread leaves its CPU."""
        if thread in self._on:
            self._count()
            del self._on[thread]
            self._arm()

    def stops(self, thread: Thread) -> bool:
        """Say whether a thread may not run now."""
        if not self.throttled or thread not in self._members:
            return False
        self._count()
        return self.throttled and (self._in_kernel or not thread.inside)

    def park(self, thread: Thread) -> None:
        """Keep a thread that is off the CPU until the group may run again."""
        thread.state = READY
        self._parked.append(thread)
        self._arm()

    def look(self) -> None:
        """Do what the timer is for: throttle the group, or let it run again."""
        self._count()
        if self._left_ns <= 0 and not self.throttled and self._on:
            self._throttle()
        self._arm()

    def _count(self) -> None:
        """Take what the members have used, period by period, and begin new periods."""
        now, period_ns = self._cpus.clock.now, self._limit.period_ns
        while self._counted_ns < now:
            begins_ns = (self._counted_ns // period_ns + 1) * period_ns
            until_ns = min(now, begins_ns)
            for thread, since_ns in self._on.items():
                self._left_ns -= max(0, until_ns - since_ns)
                self._on[thread] = max(since_ns, until_ns)
            self._counted_ns = until_ns
            if until_ns == begins_ns:
                self._left_ns = min(self._limit.quota_ns, self._left_ns + self._limit.quota_ns)
                if not self._on and self._left_ns == self._limit.quota_ns:
                    self._counted_ns = now  # nothing happens in the periods between
        if self.throttled and self._left_ns > 0:
            self._unthrottle()

    def _throttle(self) -> None:
        self.throttled = True
        # Before a CPU gets free: none of these may have it.
        for thread in [one for one in self._cpus.ready if self.stops(one)]:
            self._cpus.ready.remove(thread)
            self.park(thread)
        for thread in list(self._on):
            if thread not in self._on:
                continue  # it spun on one who has stopped, and sleeps now
            if thread.state == SPINNING:
                if self._in_kernel:
                    self._cpus.stop_spinning(thread)
            elif self._in_kernel or not thread.inside:
                self._cpus.stop(thread)
                self.park(thread)

    def _unthrottle(self) -> None:
        self.throttled = False
        parked, self._parked = self._parked, []
        for thread in parked:
            self._cpus.make_ready(thread)

    def _arm(self) -> None:
        """Set the timer: when the group may run again, or has nothing left if all run on."""
        now, period_ns = self._cpus.clock.now, self._limit.period_ns
        if not self._on and not (self.throttled and self._parked):
            return
        next_period_ns = (now // period_ns + 1) * period_ns
        at_ns = next_period_ns
        if not self.throttled and self._on:
            spent_at_ns = max(now, min(self._on.values()))
            spent_at_ns += -(-max(self._left_ns, 0) // len(self._on))
            at_ns = min(at_ns, max(spent_at_ns, now))
        self._cpus.clock.set(at_ns, self.tick)
