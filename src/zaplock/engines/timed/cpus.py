"""Who runs where: a clock, its timers, and CPUs that share one run queue.

A thread that works occupies a CPU. One that becomes runnable takes the CPU that it had last if that
is idle, else any idle one, else it goes to the end of the queue; from then on the time slices of
all CPUs count, and who has used its own up goes behind the others. As long as nobody waits for a
CPU no slice is watched and no timer spent on it.

Not covered: priorities, CPU affinity, and the fairness of EEVDF or CFS beyond equal slices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from zaplock.engines.timed.bandwidth import Bandwidth
from zaplock.engines.timed.clock import Clock, Tick, time_of
from zaplock.engines.timed.event_log import MAX_CPUS, EventLog
from zaplock.engines.timed.threads import (
    DONE,
    READY,
    RESTING,
    RESUMING,
    RUNNING,
    SLEEPING,
    SPINNING,
    Thread,
)
from zaplock.trace.events import EventKind


@dataclass(frozen=True, slots=True)
class Sched:
    """The machine that a timed run is run on: its CPUs, and what going on and off them costs.

    `lock_ns`, `unlock_ns` and `downgrade_ns` are lock operations that nobody contends, `wakeup_ns`
    is what a waker pays for each thread that it wakes, `wakeup_latency_ns` how long that thread
    then takes to become runnable.
    """

    cpus: int = 8
    slice_ns: int = 3_000_000
    context_switch_ns: int = 0
    wakeup_ns: int = 0
    wakeup_latency_ns: int = 0
    lock_ns: int = 0
    unlock_ns: int = 0
    downgrade_ns: int = 0

    def __post_init__(self) -> None:
        assert 0 < self.cpus <= MAX_CPUS, self.cpus
        assert self.slice_ns > 0, self.slice_ns


class Cpus:
    """Which thread is on which CPU, and who waits for one."""

    def __init__(self, clock: Clock, sched: Sched, recorder: EventLog) -> None:
        self.clock = clock
        self.sched = sched
        self.running: list[Thread | None] = [None] * sched.cpus
        self.last: list[Thread | None] = [None] * sched.cpus
        self.since_ns = [0] * sched.cpus
        self.ready: deque[Thread] = deque()
        self.ticks = [Tick(cpu) for cpu in range(sched.cpus)]
        for tick in self.ticks:
            clock.enter(tick)
        self.armed = [False] * sched.cpus
        self.stop_spinning: Callable[[Thread], None] = _nobody_spins
        self.owner_left: Callable[[Thread], None] = _nobody_spins
        self.bandwidth: Bandwidth | None = None
        self._recorder = recorder if recorder.sched else None

    def wake(self, thread: Thread) -> None:
        """Make a thread that is off the CPU runnable, after the latency of a wake-up."""
        if self._recorder:
            self._recorder.switch(self.clock.now, thread.code, EventKind.WAKEUP)
        latency_ns = self.sched.wakeup_latency_ns + thread.late_ns
        if not latency_ns:
            self.make_ready(thread)
            return
        thread.state = SLEEPING
        self.clock.set(self.clock.now + latency_ns, thread)

    def make_ready(self, thread: Thread) -> None:
        """Give a thread a CPU, or a place in the queue for one."""
        if self.bandwidth is not None and self.bandwidth.stops(thread):
            self.bandwidth.park(thread)
            return
        if thread.resume is None and thread.state in (SLEEPING, RESTING):
            thread.stalled_since_ns = self.clock.now
        cpu = thread.cpu if self._is_idle(thread.cpu) else self._idle_cpu()
        if cpu is None:
            self._enqueue(thread)
        else:
            self._put_on(thread, cpu)

    def leave(self, thread: Thread, state: int) -> None:
        """Take a thread off its CPU and let the next one run."""
        assert self.running[thread.cpu] is thread, thread
        if self.bandwidth is not None:
            self.bandwidth.goes_off(thread)
        thread.state = state
        thread.timer = 0
        thread.stalled_since_ns = self.clock.now
        if self._recorder:
            prev_state = 0 if state == READY else 1
            self._recorder.switch(self.clock.now, thread.code, EventKind.SCHED_OUT, prev_state)
        self.running[thread.cpu] = None
        if self.ready:
            self._put_on(self.ready.popleft(), thread.cpu)
        if thread.spun:
            self.owner_left(thread)

    def forget(self, thread: Thread) -> None:
        """End a thread that sleeps."""
        thread.state = DONE
        thread.timer = 0
        if self.running[thread.cpu] is thread:
            self.running[thread.cpu] = None

    def tick(self, tick: Tick) -> None:
        """End a time slice, if it is over and somebody waits for the CPU."""
        cpu = tick.cpu
        self.armed[cpu] = False
        if not self.ready:
            return
        thread = self.running[cpu]
        assert thread is not None, "a CPU idles while threads wait for one"
        if self.since_ns[cpu] + self.sched.slice_ns > self.clock.now:
            self._arm(cpu)
        elif thread.state == SPINNING:
            self.stop_spinning(thread)
        else:
            self._preempt(thread)
        if self.ready:
            self._arm(cpu)

    def _is_idle(self, cpu: int) -> bool:
        thread = self.running[cpu]
        return thread is None or thread.state == RESTING

    def _idle_cpu(self) -> int | None:
        if None in self.running:
            return self.running.index(None)
        return next(filter(self._is_idle, range(self.sched.cpus)), None)

    def _preempt(self, thread: Thread) -> None:
        self.ready.append(thread)
        self.stop(thread)

    def stop(self, thread: Thread) -> None:
        """Take a thread off its CPU in the middle of its work, which it will go on with."""
        assert thread.timer, thread
        thread.left_ns = time_of(thread.timer) - self.clock.now
        self.leave(thread, READY)

    def _enqueue(self, thread: Thread) -> None:
        if not self.ready:
            self.since_ns = [self.clock.now] * self.sched.cpus
        thread.state = READY
        self.ready.append(thread)
        for cpu in range(self.sched.cpus):
            self._arm(cpu)

    def _arm(self, cpu: int) -> None:
        if not self.armed[cpu]:
            self.armed[cpu] = True
            end_ns = self.since_ns[cpu] + self.sched.slice_ns
            self.clock.set(max(self.clock.now, end_ns), self.ticks[cpu])

    def _put_on(self, thread: Thread, cpu: int) -> None:
        if thread.cpu != cpu:
            thread.move_to(cpu)
        start_ns = self.clock.now
        if self.last[cpu] is not thread:
            start_ns += self.sched.context_switch_ns
            self.last[cpu] = thread
        if self._recorder:
            self._recorder.switch(start_ns, thread.code, EventKind.SCHED_IN)
        resting = self.running[cpu]
        if resting is not None and resting is not thread:
            resting.state = SLEEPING
        self.running[cpu] = thread
        self.since_ns[cpu] = start_ns
        if self.bandwidth is not None:
            self.bandwidth.goes_on(thread, start_ns)
        thread.state = RESUMING if thread.resume else RUNNING
        thread.stalled_ns += start_ns - thread.stalled_since_ns
        start_ns += thread.left_ns
        thread.left_ns = 0
        self.clock.set(start_ns, thread)

    def check(self) -> None:
        """Assert that nobody waits for an idle CPU and every thread is where it says it is."""
        assert not self.ready or self._idle_cpu() is None, (self.ready, self.running)
        for cpu, thread in enumerate(self.running):
            assert thread is None or thread.cpu == cpu, (cpu, thread)
            assert thread is None or thread.on_cpu or thread.state == RESTING, (cpu, thread)
        assert all(thread.state == READY for thread in self.ready), self.ready


def _nobody_spins(_thread: Thread) -> None:
    return None
