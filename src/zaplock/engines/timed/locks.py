"""The semaphores of a timed run: holders, queue and spinners, changed in place.

`zaplock.model.rwsem` has the rules as pure functions of immutable values; a timed run takes and
gives back locks millions of times and would spend most of its time on making these values. So a
`TimedLock` holds the same facts in lists, follows the same rules (tests/test_timed_locks.py runs
both side by side), and makes the value when a step asks for it: `LockView` stands in for the cell
container `machine.locks` while the engine runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zaplock.engines.timed.threads import Thread
from zaplock.model.rwsem import FREE, Lock, Rwsem, RwsemPolicy

DOWNGRADED = 1 << 20


def _holds(count: int) -> int:
    return count - DOWNGRADED + 1 if count >= DOWNGRADED else count


class TimedLock:
    """One semaphore. `code` is its part of an event's code, 0 if it isn't recorded.

    `readers` counts the holds of each reader: a fault inside a read holds it twice. A hold that
    came by a downgrade counts as `DOWNGRADED`. `contended` says whether anybody queues or spins.

    `no_readers_spin` and `no_writers_spin` are the bits RWSEM_RD_NONSPINNABLE and
    RWSEM_WR_NONSPINNABLE of 5.3 to 5.10 (7d43f1ce9dd0): a writer whose spin on readers timed out
    sets both. Another writer's lock clears both, a new reader or the last one's end the second.
    A writer that saw either when it queued sets the first again with its lock.
    """

    __slots__ = (
        "code", "contended", "no_readers_spin", "no_writers_spin", "owner", "policy", "queue",
        "readers", "spinners", "which",
    )  # fmt: skip

    def __init__(self, which: Lock, policy: RwsemPolicy, code: int) -> None:
        self.which = which
        self.policy = policy
        self.code = code
        self.owner: Thread | None = None
        self.readers: dict[Thread, int] = {}
        self.contended = False
        self.queue: list[Thread] = []
        self.spinners: list[Thread] = []
        self.no_readers_spin = self.no_writers_spin = False

    @property
    def readers_spin(self) -> bool:
        """Whether this kernel's readers spin at all."""
        return self.policy.reader_steals == "spinning" and self.policy.writer_spins != "never"

    def time_out(self) -> None:
        """Note that a writer spun on readers until its patience was over."""
        if self.readers_spin and self.readers:
            self.no_readers_spin = self.no_writers_spin = True

    def is_free_for(self, write: bool) -> bool:
        """Return whether the holders, queue apart, would let a reader or writer in."""
        return self.owner is None and not (write and self.readers)

    def grant(self, thread: Thread, write: bool) -> None:
        """Make `thread` a holder."""
        assert self.is_free_for(write), (self.which, thread)
        self.no_writers_spin = False
        if write:
            self.owner = thread
            self.no_readers_spin = thread.in_queue and thread.saw_no_spin
        else:
            self.readers[thread] = self.readers.get(thread, 0) + 1
            self.no_readers_spin |= thread.in_queue and thread.saw_no_spin

    def downgrade(self, thread: Thread) -> None:
        """Turn the exclusive hold of `thread` into a shared one."""
        assert self.owner is thread, (self.which, thread)
        self.owner = None
        self.readers[thread] = DOWNGRADED

    def drop_reader(self, thread: Thread) -> None:
        """End one shared hold of `thread`, who has one; the downgraded one goes first."""
        holds = self.readers[thread]
        holds -= DOWNGRADED if holds >= DOWNGRADED else 1
        if holds:
            self.readers[thread] = holds
        else:
            del self.readers[thread]

    def count_waiters(self) -> None:
        """Note whether anybody still queues or spins."""
        self.contended = bool(self.queue or self.spinners)

    def head_to_wake(self) -> Thread | None:
        """Return the first waiter if the holders would let it in."""
        if self.queue and self.is_free_for(self.queue[0].step.write):
            return self.queue[0]
        return None

    def readers_to_wake(self) -> list[Thread]:
        """List the queued readers that are granted together with a reader at the head."""
        if self.policy.wakes == "all":
            readers = [waiter for waiter in self.queue if not waiter.step.write]
            return readers[: self.policy.max_readers_woken]
        leading = []
        for waiter in self.queue:
            if waiter.step.write:
                break
            leading.append(waiter)
        return leading

    def handoff_is_due(self, now_ns: int) -> bool:
        """Return whether the first waiter has waited so long that nobody may steal any more."""
        after_ns = self.policy.handoff_ns
        return (
            after_ns is not None
            and bool(self.queue)
            and now_ns - self.queue[0].asked_ns >= after_ns
        )

    def may_steal(self, write: bool) -> bool:
        """Return whether somebody who arrives now may enter past the queue.

        A writer who finds the lock free is awake, the queue's head is not yet. A handoff that is
        due needs no test here: then a release leaves nothing to steal.
        """
        if write:
            return self.policy.writer_spins != "never" and self.is_free_for(True)
        if self.owner is not None or self.policy.reader_steals == "never":
            return False
        if self.policy.reader_steals == "always":
            return True
        if self.readers_spin:  # rwsem_try_read_lock_unqueued() looks at no queue
            return not self.no_readers_spin
        return not self.readers

    def may_spin(self, write: bool) -> bool:
        """Return whether somebody who arrives now spins for the lock before it queues."""
        if self.owner is not None:
            if not write and (not self.readers_spin or self.no_readers_spin):
                return False
            return self.policy.writer_spins != "never" and self.owner.on_cpu
        return write and self.policy.writer_spins == "any" and not self.no_writers_spin

    def value(self) -> Rwsem:
        """Return the state as the immutable value that steps see."""
        return Rwsem(
            self.owner.tid if self.owner else 0,
            tuple(
                sorted(reader.tid for reader, n in self.readers.items() for _ in range(_holds(n)))
            ),
            tuple((waiter.tid, waiter.step.write) for waiter in self.queue),
            next((reader.tid for reader, n in self.readers.items() if n >= DOWNGRADED), 0),
        )

    def check(self) -> None:
        """Assert that nobody sleeps for a lock that it could have."""
        assert self.owner is None or not self.readers, self
        assert self.contended == bool(self.queue or self.spinners), self
        for waiter in (*self.queue, *self.spinners):
            assert waiter.lock is self, waiter
        head = self.head_to_wake()
        assert head is None or head.woken, f"{head} sleeps for {self.which}, which is free"

    def __repr__(self) -> str:
        return f"{self.which[0]}({self.owner or list(self.readers) or 'free'}, queue {self.queue})"


class LockView(dict[Lock, Rwsem]):
    """What steps see in `machine.locks` while the timed engine runs: values made when asked for."""

    def __init__(self, locks: dict[Lock, TimedLock], before: Iterable[Lock]) -> None:
        super().__init__(dict.fromkeys(before, FREE))
        self._locks = locks

    def __getitem__(self, lock: Lock) -> Rwsem:
        return self._locks[lock].value() if lock in self._locks else super().__getitem__(lock)

    def get(self, lock: Lock, default: Any = None) -> Any:
        return self._locks[lock].value() if lock in self._locks else super().get(lock, default)

    def __contains__(self, lock: object) -> bool:
        return lock in self._locks or super().__contains__(lock)

    def __setitem__(self, lock: Lock, value: Rwsem) -> None:
        raise AssertionError(f"{lock} is changed by a step that is no LockStep")

    def settled(self) -> dict[Lock, Rwsem]:
        """Return the values as they are now, in a plain mapping."""
        return {**self, **{which: lock.value() for which, lock in self._locks.items()}}
