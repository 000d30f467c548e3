"""What happens to those who don't get a semaphore at once: spin, queue, be woken, steal.

The main loop (timed.py) takes and releases a lock that nobody waits for by itself; everything else
comes here. The rules are those of kernel/locking/rwsem.c, told by `RwsemPolicy`:

- Who arrives may steal a lock that is free although others queue, since it is awake and they are
  not; else it may spin, which occupies its CPU: on an owner that runs, or for a while on readers.
  Spinners stand in line (the kernel's osq) and stop when the owner leaves its CPU or their own time
  slice is over.
- Readers are granted the lock by whoever wakes them. A writer at the head is only woken: it has to
  take the lock when it runs, and goes back to sleep if somebody was faster.
- When the head has waited for `handoff_ns`, the next release gives it the lock.

Not covered: the head of the queue spinning on the owner once its handoff is set, and the random
outcome of a race within some 100 ns (a spinner always beats a thread that has yet to wake up).
"""

from __future__ import annotations

from collections.abc import Container

from zaplock.engines.timed.clock import Clock, time_of
from zaplock.engines.timed.cpus import Cpus
from zaplock.engines.timed.event_log import ACQUIRED, NOT_ACQUIRED, WRITE, EventLog
from zaplock.engines.timed.hung_tasks import LongWaits
from zaplock.engines.timed.lines import CacheLines
from zaplock.engines.timed.locks import TimedLock
from zaplock.engines.timed.threads import BLOCKED, RESUMING, SPINNING, Thread
from zaplock.model.rwsem import EINTR_RESULT, LockStep


class Contention:
    """The waits of all semaphores. `owed_ns` is what all wake-ups have cost their wakers."""

    def __init__(
        self,
        clock: Clock,
        cpus: Cpus,
        recorder: EventLog,
        long_waits: LongWaits,
        signals: Container[int],
    ) -> None:
        self.signals = signals
        self.clock = clock
        self.cpus = cpus
        self.recorder = recorder
        self.long_waits = long_waits
        self.owed_ns = 0
        self.lines: CacheLines | None = None
        cpus.stop_spinning = self.stop_spinning
        cpus.owner_left = self.owner_left

    def ask(self, thread: Thread, step: LockStep, lock: TimedLock) -> bool:
        """Try to get a lock that isn't there for the taking; if False, `thread` now waits."""
        thread.asked_ns = self.clock.now
        nobody_queues = not lock.queue and lock.is_free_for(step.write)
        if nobody_queues or lock.may_steal(step.write):
            lock.grant(thread, step.write)
            self._record(thread, lock, ACQUIRED, step.write)
            if lock.queue and not step.write:
                self._wake_queue(lock)
            return True
        thread.lock = lock
        thread.step = step
        if lock.may_spin(step.write):
            self._spin(thread, lock)
        else:
            self._queue(thread, lock)
        return False

    def let_in(self, lock: TimedLock) -> int:
        """Hand a lock on after a hold has ended or was downgraded, or a waiter has left.

        Returns what the wake-ups cost whoever did that, in nanoseconds.
        """
        before_ns = self.owed_ns
        if lock.owner is None and not lock.readers:
            lock.no_writers_spin = False
        if lock.handoff_is_due(self.clock.now):
            self._hand_over(lock)
        self._let_spinners_in(lock)
        self._wake_queue(lock)
        if lock.spinners:
            self._look_again(lock)
        return self.owed_ns - before_ns

    def kill(self, thread: Thread) -> int:
        """End the wait of a thread that has a fatal signal, if it is killable; return the cost."""
        before_ns = self.owed_ns
        lock = thread.lock
        if lock is None or not thread.in_queue or not thread.step.killable:
            return 0
        lock.queue.remove(thread)
        lock.count_waiters()
        thread.in_queue = False
        thread.resume = self._killed
        if not thread.woken:
            self._wake(thread)
        self.let_in(lock)
        return self.owed_ns - before_ns

    def stop_spinning(self, thread: Thread) -> None:
        """Send a spinner to the end of the queue: its slice or its patience is over."""
        lock = thread.lock
        assert lock is not None
        assert thread.state == SPINNING, thread
        lock.spinners.remove(thread)
        if thread.step.write and self._is_out_of_patience(thread, lock):
            lock.time_out()
        passes = lock.readers_spin and not thread.step.write
        if (passes or not lock.queue) and lock.is_free_for(thread.step.write):
            # A reader who spun behind a writer on what is now a reader's lock; up to 5.10 it looks
            # at no queue (rwsem_reader_phase_trylock).
            self._enter(thread, lock)
            return
        self._end_spin(thread)
        self._queue(thread, lock)

    def _is_out_of_patience(self, thread: Thread, lock: TimedLock) -> bool:
        """Say whether the time for which a writer spins on readers is over."""
        due_ns = time_of(thread.timer)
        return lock.owner is None and 0 < due_ns <= self.clock.now

    def owner_left(self, owner: Thread) -> None:
        """Send those who spin on an owner to the queue, since the owner left its CPU."""
        locks = list(owner.spun)
        owner.spun.clear()
        for lock in locks:
            if lock.owner is owner:
                for thread in list(lock.spinners):
                    self.stop_spinning(thread)

    def _queue(self, thread: Thread, lock: TimedLock) -> None:
        lock.queue.append(thread)
        lock.contended = True
        thread.saw_no_spin = lock.no_readers_spin or (thread.step.write and lock.no_writers_spin)
        thread.in_queue = True
        self._block(thread)
        if thread.tid in self.signals:
            self.kill(thread)

    def _block(self, thread: Thread) -> None:
        thread.woken = False
        thread.resume = self._try_again
        self.cpus.leave(thread, BLOCKED)

    def _spin(self, thread: Thread, lock: TimedLock) -> None:
        thread.state = SPINNING
        thread.stalled_since_ns = self.clock.now
        thread.timer = 0
        lock.spinners.append(thread)
        lock.contended = True
        self._watch(thread, lock)

    def _watch(self, thread: Thread, lock: TimedLock) -> None:
        """Let a spinner spin on the owner as long as it runs, on readers for a while."""
        if lock.owner is not None:
            thread.timer = 0
            lock.owner.spun[lock] = None
        elif not thread.timer:
            # Its patience counts from when readers came to own the lock: later ones don't renew it.
            self.clock.set(self.clock.now + lock.policy.reader_spin_ns, thread)

    def _end_spin(self, thread: Thread) -> None:
        thread.stalled_ns += self.clock.now - thread.stalled_since_ns

    def _look_again(self, lock: TimedLock) -> None:
        """Let those who still spin look at whom they spin on now."""
        for thread in list(lock.spinners):
            if lock.may_spin(thread.step.write):
                self._watch(thread, lock)
            else:
                self.stop_spinning(thread)

    def _let_spinners_in(self, lock: TimedLock) -> None:
        while lock.spinners and lock.is_free_for(lock.spinners[0].step.write):
            self._enter(lock.spinners.pop(0), lock)

    def _enter(self, thread: Thread, lock: TimedLock) -> None:
        """Give the lock to a spinner, which goes on at once."""
        lock.grant(thread, thread.step.write)
        lock.count_waiters()
        self._end_spin(thread)
        thread.state = RESUMING
        thread.resume = self._has_seen_it
        self.clock.set(self.clock.now, thread)

    def _wake_queue(self, lock: TimedLock) -> None:
        head = lock.head_to_wake()
        if head is None:
            return
        if not head.step.write:
            for reader in lock.readers_to_wake():
                self._grant(reader, lock)
        elif not head.woken:
            self._wake(head)

    def _hand_over(self, lock: TimedLock) -> None:
        head = lock.head_to_wake()
        if head is not None and head.step.write:
            self._grant(head, lock)
        else:
            self._wake_queue(lock)

    def _grant(self, thread: Thread, lock: TimedLock) -> None:
        lock.grant(thread, thread.step.write)
        lock.queue.remove(thread)
        lock.count_waiters()
        thread.in_queue = False
        thread.resume = self._has_it
        if not thread.woken:
            self._wake(thread)

    def _wake(self, thread: Thread) -> None:
        thread.woken = True
        self.owed_ns += self.cpus.sched.wakeup_ns
        self.cpus.wake(thread)

    def _try_again(self, thread: Thread) -> bool:
        """Take the lock, as a woken writer that runs again; sleep on if somebody was faster."""
        lock = thread.lock
        assert lock is not None
        if lock.queue[0] is thread and lock.is_free_for(True):
            lock.grant(thread, True)
            lock.queue.remove(thread)
            lock.count_waiters()
            thread.in_queue = False
            return self._has_it(thread)
        self._block(thread)
        return False

    def _has_seen_it(self, thread: Thread) -> bool:
        """Go on with what one has polled until it was free."""
        return self._has_it(thread, True)

    def _has_it(self, thread: Thread, polled: bool = False) -> bool:
        lock = thread.lock
        assert lock is not None
        thread.result = 0
        thread.left_ns = self.cpus.sched.lock_ns
        if self.lines is not None:
            thread.left_ns += self.lines.touch(lock.which, thread.tid, self.clock.now, polled)
            if thread.step.write:
                thread.left_ns += self.lines.touch_under(lock.which, thread.tid, self.clock.now)
        self._record(thread, lock, ACQUIRED, thread.step.write)
        return self._end_wait(thread)

    def _killed(self, thread: Thread) -> bool:
        lock = thread.lock
        assert lock is not None
        thread.result = EINTR_RESULT
        self._record(thread, lock, NOT_ACQUIRED, thread.step.write)
        return self._end_wait(thread)

    def _end_wait(self, thread: Thread) -> bool:
        self.long_waits.look_at(thread, self.clock.now)
        thread.resume = None
        thread.lock = None
        return True

    def _record(self, thread: Thread, lock: TimedLock, what: int, write: bool) -> None:
        if lock.code:
            mode = WRITE if write else 0
            self.recorder.fresh += (self.clock.timer, thread.code | lock.code | what | mode)
