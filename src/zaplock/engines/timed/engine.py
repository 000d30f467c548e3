"""The timed engine: a discrete-event simulation in virtual nanoseconds.

A step happens at one instant and then its price is paid: for `machine.spent_ns` its thread occupies
a CPU, and after that takes its next step. Locks queue as a kernel's rwsem queues (contention.py),
CPUs are shared (cpus.py), what happens is recorded (recorder.py). The same programs, seed and
profile give the same events on every machine: all choices follow from the time and, among things
at the same time, from the order in which their threads were spawned.

Nearly all of a run is three things: a step with its price, a lock that is free, a sleep. These are
done in one loop without a call; whatever makes somebody wait or wakes somebody goes through a
method. As long as the running thread's next step comes before every timer it goes on without
touching the heap.

    engine = TimedEngine(machine, policy=RWSEM_4_9, sched=Sched(cpus=4))
    engine.spawn(Task(1, mm=1), program())
    engine.run()
    engine.events()
"""

from __future__ import annotations

from collections.abc import Hashable, Sized
from heapq import heappop, heappush, heappushpop
from typing import Any, Literal

from zaplock.engines.timed.bandwidth import Bandwidth, QuotaTick
from zaplock.engines.timed.clock import FOREVER, SLOTS, Clock, Tick
from zaplock.engines.timed.contention import Contention
from zaplock.engines.timed.cpus import Cpus, Sched
from zaplock.engines.timed.event_log import (
    ACQUIRED,
    ASKED,
    DOWNGRADED,
    FRESH_MAX,
    NOT_ACQUIRED,
    RELEASED,
    WRITE,
    EventLog,
)
from zaplock.engines.timed.hung_tasks import LongWait, LongWaits
from zaplock.engines.timed.lines import CacheLines
from zaplock.engines.timed.locks import LockView, TimedLock
from zaplock.engines.timed.threads import (
    BLOCKED,
    DONE,
    RESTING,
    RESUMING,
    RUNNING,
    SLEEPING,
    SPINNING,
    Program,
    Thread,
)
from zaplock.errors import UserError
from zaplock.model.machine import Machine
from zaplock.model.rwsem import EINTR_RESULT, Lock, LockStep, RwsemPolicy, downgrade, release
from zaplock.model.spans import SpanDowngrade, SpanEnd, SpanStep, SpanTry
from zaplock.model.step import MarkStep, SleepStep, Step, Task, WaitStep
from zaplock.model.violations import Invariant, Violation
from zaplock.trace.events import Events
from zaplock.trace.events import RecordedTask as TaskName
from zaplock.trace.quotas import CpuMax


class TimedEngine:
    """One simulated machine with its threads."""

    def __init__(
        self,
        machine: Machine,
        *,
        policy: RwsemPolicy,
        sched: Sched = Sched(),
        hung_task_timeout_ns: int | None = None,
        record_sched: bool = False,
        cpu_max: CpuMax | None = None,
        throttled_in: Literal["kernel", "user"] = "kernel",
        lines: CacheLines | None = None,
        records: bool = True,
    ) -> None:
        """Stand beside `machine`, at time 0. No lock of it may be held.

        With `lines`, what several CPUs write has to come over to each of them. Who asks for results
        and times alone, and never for `events`, saves their making by `records` False.
        """
        self.machine = machine
        self.policy = policy
        self.sched = sched
        self.threads: dict[int, Thread] = {}
        self.clock = Clock()
        self.recorder = EventLog(sched=record_sched)
        self.cpus = Cpus(self.clock, sched, self.recorder)
        if cpu_max is not None:
            in_kernel = throttled_in == "kernel"
            self.cpus.bandwidth = Bandwidth(self.cpus, cpu_max, in_kernel=in_kernel)
        self._long_waits = LongWaits(hung_task_timeout_ns)
        self._signals = machine.signals.back_with(lambda data: _Signals(data, machine.woken))
        self._contention = Contention(
            self.clock, self.cpus, self.recorder, self._long_waits, self._signals
        )
        self._lines = self._contention.lines = lines
        if lines is not None:
            machine.touched = self._touched
        self._locks: dict[Lock, TimedLock] = {}
        self._channels: dict[tuple[Any, ...], list[Thread]] = {}
        self._foreground = 0
        self._next_cpu = 0
        self._records = records

    @property
    def now_ns(self) -> int:
        """The virtual time."""
        return self.clock.now

    @property
    def long_waits(self) -> list[LongWait]:
        """The uninterruptible waits above the timeout, in the order in which they ended."""
        return self._long_waits.found

    def spawn(
        self,
        task: Task,
        program: Program,
        *,
        at_ns: int = 0,
        background: bool = False,
        limited: bool = False,
    ) -> Thread:
        """Start a thread at a time that hasn't passed; `limited`: under the engine's `cpu_max`.

        A run lasts until every foreground thread has ended; a background thread then ends at its
        next sleep, so that what it is in the middle of is finished.
        """
        assert task.tid not in self.threads, f"two threads with id {task.tid}"
        assert at_ns >= self.clock.now, (at_ns, self.clock.now)
        thread = Thread(task, program, self._next_cpu, background)
        self._next_cpu = (self._next_cpu + 1) % self.sched.cpus
        self.threads[task.tid] = thread
        self.clock.enter(thread)
        if limited and self.cpus.bandwidth is not None:
            self.cpus.bandwidth.add(thread)
        self._foreground += not background
        self.clock.set(at_ns, thread)
        return thread

    def run(self) -> None:
        """Run until all foreground threads have ended and the background has come to rest.

        Raises Violation where a step reports one, and (NO_DEADLOCK) where nobody can go on.
        """
        view = self.machine.locks.back_with(lambda data: LockView(self._locks, data))
        self.machine.tells_wakes = True
        try:
            self._run()
            self._complain_of_deadlock()
        finally:
            self.machine.tells_wakes = False
            settled = view.settled()
            self.machine.locks.back_with(lambda _view: settled)
            for thread in self.threads.values():
                thread.program.close()

    def events(self) -> Events:
        """Return what was recorded so far. A process has the name of its first thread."""
        leaders: dict[int, Task] = {}
        named = {}
        for tid, thread in sorted(self.threads.items()):
            leader = leaders.setdefault(thread.task.mm, thread.task)
            named[tid] = TaskName(tid, thread.task.name, leader.tid, leader.name)
        return self.recorder.events(named, {mm: task.tid for mm, task in leaders.items()})

    def _run(self) -> None:
        # One function on purpose: a call for each step would cost more than the step. What is used
        # at every step is a local variable, since an attribute costs as much as the work itself.
        # What is rare is a method: CPython 3.11 compares slowly before a jump over 255 units.
        machine, clock, cpus, contention = self.machine, self.clock, self.cpus, self._contention
        heap, slots, ns = clock.heap, clock.slots, SLOTS
        woken, fresh = machine.woken, self.recorder.fresh
        lock_ns, unlock_ns = self.sched.lock_ns, self.sched.unlock_ns
        latency_ns = self.sched.wakeup_latency_ns
        a_step, a_lock_step, a_sleep, fresh_max = Step, LockStep, SleepStep, FRESH_MAX
        bandwidth, lines, records = cpus.bandwidth, self._lines, self._records
        # Whoever sleeps leaves its CPU if somebody waits for one, or if anybody looks who has it.
        unseen = not self.recorder.sched and bandwidth is None
        leaves: Sized = cpus.ready if unseen else (True,)
        end = FOREVER * ns
        lock: Any
        thread: Thread
        step: Any
        price: Any
        machine.spent_ns = 0
        timer = heappop(heap)
        while True:
            thread = slots[timer % ns]
            if thread.timer is not timer:
                timer = heappop(heap)
                continue
            if thread.state:
                if thread.state == RESTING:
                    thread.state = RUNNING
                elif timer >= end:
                    heappush(heap, timer)
                    return
                else:
                    clock.timer = timer
                    if not self._due(thread):
                        timer = heappop(heap)
                        continue
            clock.timer = timer
            send, result = thread.send, thread.result
            # From here to the next thread `timer` is this thread's slot at the time it is now.
            while True:
                try:
                    step = send(result)
                except StopIteration as stop:
                    self._finish(thread, stop.value)
                    timer = heappop(heap)
                    break
                kind = type(step)
                if kind is a_step:
                    args = step.args
                    run = step.run
                    if len(args) == 1:
                        result = run(machine, thread.task, args[0])
                    else:
                        result = run(machine, thread.task, *args)
                    price = machine.spent_ns
                    if price:
                        machine.spent_ns = 0
                        if type(price) is not int:
                            price = int(price + 0.5)
                    if woken:
                        price += self._after_step()
                elif kind is a_lock_step:
                    if step.lock is not thread.last_which:
                        self._turn_to(thread, step.lock)
                    lock = thread.last_lock
                    action, write, result = step.action, step.write, 0
                    codes = thread.write_codes if write else thread.read_codes
                    if action == "down":
                        price = lock_ns if lines is None else lock_ns + self._way(thread, lock)
                        readers = lock.readers
                        if lock.owner is None and not lock.contended and not (write and readers):
                            if codes:
                                fresh += (timer, codes[0], timer, codes[1])
                            if write:
                                lock.owner, lock.no_readers_spin = thread, False
                                if lines is not None:
                                    price += lines.touch_under(lock.which, thread.tid, clock.now)
                            elif thread in readers:
                                readers[thread] += 1
                            else:
                                readers[thread] = 1
                        else:
                            if codes:
                                fresh += (timer, codes[0])
                            if not contention.ask(thread, step, lock):
                                timer = heappop(heap)
                                break
                    elif action == "up":
                        price = unlock_ns if lines is None else unlock_ns + self._way(thread, lock)
                        if codes:
                            fresh.append(timer)
                            fresh.append(codes[2])
                        if write:
                            if lock.owner is not thread:
                                release(lock.value(), thread.tid, True)
                            lock.owner, lock.no_readers_spin = None, False
                        elif (holds := lock.readers.pop(thread, 0)) != 1:
                            self._drop_reader(thread, lock, holds)
                        if lock.contended:
                            price += contention.let_in(lock)
                    elif action == "downgrade":
                        price = self._downgrade(thread, lock)
                    elif action == "try":
                        result, price = self._try(thread, lock, write)
                    else:
                        raise UserError(
                            f"{thread} hands a hold of {step.lock[0]} over: in virtual time a hold "
                            "has one owner; `zaplock check` knows of such designs"
                        )
                elif kind is a_sleep:
                    if thread.background and not self._foreground:
                        self._finish(thread, None)
                        timer = heappop(heap)
                        break
                    if leaves or thread.spun:
                        cpus.leave(thread, SLEEPING)
                    else:
                        thread.state = RESTING
                    thread.result = None
                    if len(fresh) > fresh_max:
                        self.recorder.pack()
                    thread.timer = timer = timer + (step.ns + latency_ns) * ns
                    timer = heappushpop(heap, timer)
                    break
                elif kind is MarkStep:
                    if records:
                        self.recorder.mark(clock.now, thread.code, step)
                    result, price = None, 0
                    if bandwidth is not None:
                        thread.inside += 1 if step.what.endswith("begin") else -1
                        if bandwidth.stops(thread):
                            thread.result, thread.timer = None, timer
                            cpus.stop(thread)
                            bandwidth.park(thread)
                            timer = heappop(heap)
                            break
                else:
                    thread.step, thread.asked_ns = step, clock.now
                    if not self._attempt(thread):
                        timer = heappop(heap)
                        break
                    result, price, thread.left_ns = thread.result, thread.left_ns, 0
                if price:
                    timer += price * ns
                    due = heappushpop(heap, timer)
                    if due is timer:
                        clock.timer = timer
                    else:
                        thread.result = result
                        thread.timer = timer
                        timer = due
                        break

    def _due(self, thread: Thread | Tick | QuotaTick) -> bool:
        """Do what a timer is for that isn't the end of some work; say if the thread goes on."""
        if isinstance(thread, Tick):
            self.cpus.tick(thread)
        elif isinstance(thread, QuotaTick):
            assert self.cpus.bandwidth is not None
            self.cpus.bandwidth.look()
        elif thread.state == SPINNING:
            self._contention.stop_spinning(thread)
        elif thread.state == RESUMING:
            assert thread.resume is not None
            thread.state = RUNNING
            if not thread.resume(thread):
                return False
            if not thread.left_ns:
                return True
            self.clock.set(self.clock.now + thread.left_ns, thread)
            thread.left_ns = 0
        else:
            assert thread.state in (SLEEPING, RESTING), thread
            self.cpus.make_ready(thread)
        return False

    def _turn_to(self, thread: Thread, which: Lock) -> None:
        """Keep the lock that a thread uses now, and the codes of its events on it."""
        lock = self._locks.get(which) or self._new_lock(which)
        thread.last_which, thread.last_lock = which, lock
        thread.read_codes, thread.write_codes = None, None
        if not lock.code:
            return
        common = thread.code | lock.code
        read = (common | ASKED, common | ACQUIRED, common | RELEASED)
        thread.read_codes = read
        thread.write_codes = (read[0] | WRITE, read[1] | WRITE, read[2] | WRITE)

    def _finish(self, thread: Thread, value: Any) -> None:
        thread.value = value
        thread.finished_ns = self.clock.now
        self.cpus.leave(thread, DONE)
        thread.program.close()
        if thread.background:
            return
        self._foreground -= 1
        if not self._foreground:
            for other in self.threads.values():
                asleep = other.state in (SLEEPING, RESTING) and other.resume is None
                if other.background and asleep:
                    self.cpus.forget(other)

    def _new_lock(self, which: Lock) -> TimedLock:
        name, mm = which
        recorded = self._records and name == "mmap_lock"
        code = self.recorder.lock_code(mm) if recorded else 0
        lock = self._locks[which] = TimedLock(which, self.policy, code)
        return lock

    def _way(self, thread: Thread, lock: TimedLock) -> int:
        """Return what the way of a lock's cache line costs, in ns; nothing where none are told."""
        if self._lines is None:
            return 0
        return self._lines.touch(lock.which, thread.tid, self.clock.now, bool(lock.spinners))

    def _downgrade(self, thread: Thread, lock: TimedLock) -> int:
        if lock.owner is not thread:
            downgrade(lock.value(), thread.tid)
        way_ns = self._way(thread, lock)
        lock.downgrade(thread)
        self._record(thread, lock, DOWNGRADED)
        return self.sched.downgrade_ns + self._contention.let_in(lock) + way_ns

    def _drop_reader(self, thread: Thread, lock: TimedLock, holds: int) -> None:
        """End a shared hold that isn't the thread's only one, or came by a downgrade."""
        if not holds:
            release(lock.value(), thread.tid, False)
        lock.readers[thread] = holds
        lock.drop_reader(thread)

    def _try(self, thread: Thread, lock: TimedLock, write: bool) -> tuple[int, int]:
        """Take a lock if nobody holds it in the way or queues; return 1 or 0, and the price."""
        mode, price_ns = WRITE if write else 0, self.sched.lock_ns + self._way(thread, lock)
        self._record(thread, lock, ASKED | mode)
        if lock.queue or not lock.is_free_for(write):
            self._record(thread, lock, NOT_ACQUIRED | mode)
            return 0, price_ns
        lock.grant(thread, write)
        self._record(thread, lock, ACQUIRED | mode)
        return 1, price_ns

    def _record(self, thread: Thread, lock: TimedLock, what: int) -> None:
        if lock.code:
            self.recorder.fresh += (self.clock.timer, thread.code | lock.code | what)

    def _attempt(self, thread: Thread) -> bool:
        """Take the wait step of `thread` if it is ready, or else let it sleep; say which."""
        step, machine = thread.step, self.machine
        killed = isinstance(step, WaitStep) and step.killable and thread.tid in self._signals
        if isinstance(step, WaitStep) and not step.ready(machine, thread.task, *step.args):
            if not killed:
                if thread.resume is None:
                    self._note_span(thread, ASKED)
                    if step.announce is not None:
                        step.announce(machine, thread.task, *step.args)
                thread.resume = self._attempt
                self._channels.setdefault(step.channel, []).append(thread)
                self.cpus.leave(thread, BLOCKED)
                return False
            thread.result = EINTR_RESULT
            self._note_span(thread, NOT_ACQUIRED)
            if step.withdraw is not None and thread.resume is not None:
                step.withdraw(machine, thread.task, *step.args)
        else:
            if isinstance(step, SpanStep):
                if thread.resume is None:
                    self._note_span(thread, ASKED)
                self._note_span(thread, ACQUIRED)
            elif isinstance(step, SpanEnd):
                self._note_span(thread, RELEASED)
            thread.result = step.run(machine, thread.task, *step.args)
            thread.left_ns = int(machine.spent_ns + 0.5) + self._after_step()
            machine.spent_ns = 0
            if isinstance(step, SpanDowngrade) or (isinstance(step, SpanTry) and thread.result):
                self._note_span(thread, ACQUIRED)
        if thread.resume is not None:
            self._long_waits.look_at(thread, self.clock.now)
            thread.resume = None
        return True

    def _touched(self, line: Hashable, tid: int) -> int:
        assert self._lines is not None
        return self._lines.touch(line, tid, self.clock.now + round(self.machine.spent_ns))

    def _note_span(self, thread: Thread, what: int) -> None:
        """Record what happens to a range of a lock as if it were all of the lock."""
        step = thread.step
        if isinstance(step, SpanStep | SpanEnd | SpanTry | SpanDowngrade):
            lock = self._locks.get(step.lock) or self._new_lock(step.lock)
            if lock.code:
                mode = WRITE if step.write else 0
                self.recorder.fresh += (self.clock.timer, thread.code | lock.code | what | mode)

    def _after_step(self) -> int:
        """Wake whom a step has woken or killed; return what that costs the waker."""
        price = 0
        woken = self.machine.woken
        while woken:
            price += self._wake_channel(woken.pop(0))
            if self._signals.are_new:
                self._signals.are_new = False
                price += self._deliver_signals()
        return price

    def _wake_channel(self, channel: tuple[Any, ...]) -> int:
        waiters = self._channels.pop(channel, [])
        asleep = []
        for thread in waiters:
            killed = thread.step.killable and thread.tid in self._signals
            if killed or thread.step.ready(self.machine, thread.task, *thread.step.args):
                self.cpus.wake(thread)
            else:
                asleep.append(thread)
        if asleep:
            self._channels[channel] = asleep
        return self.sched.wakeup_ns * (len(waiters) - len(asleep))

    def _deliver_signals(self) -> int:
        price = 0
        for thread in self.threads.values():
            if thread.tid in self._signals:
                price += self._contention.kill(thread)
        for channel in list(self._channels):
            price += self._wake_channel(channel)
        return price

    def _complain_of_deadlock(self) -> None:
        """Raise NO_DEADLOCK if a thread of the foreground can never go on."""
        stuck = [thread for thread in self.threads.values() if thread.state == BLOCKED]
        if self._foreground:
            waits = "; ".join(f"{thread} in {thread.step}" for thread in stuck)
            raise Violation(Invariant.NO_DEADLOCK, f"nobody can go on: {waits}")

    def check(self) -> None:
        """Assert every invariant of CPUs and locks."""
        self.cpus.check()
        for lock in self._locks.values():
            lock.check()


class _Signals(dict[int, str]):
    """The signals of a machine; a new one makes the engine look, as a step that wakes does."""

    def __init__(self, signals: dict[int, str], woken: list[tuple[Any, ...]]) -> None:
        super().__init__(signals)
        self.are_new = False
        self._woken = woken

    def __setitem__(self, tid: int, signal: str) -> None:
        super().__setitem__(tid, signal)
        self.are_new = True
        self._woken.append(("signal", tid))
