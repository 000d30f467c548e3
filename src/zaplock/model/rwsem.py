"""The reader/writer semaphore, as pure functions from state to state.

A lock's state is one immutable value in the cell `machine.locks[lock]`: who holds it, who queues.
The engines decide WHEN a task asks; the functions here say what then happens, by the policy of a
kernel (`RwsemPolicy`). Sources: kernel/locking/rwsem.c of 4.9 (rwsem-xadd.c), 5.3 (rewrite,
commits 4f23dbc1e657 "handoff", d3681e269fff "wake up almost all readers", cf69482d62d9 and
7d43f1ce9dd0 for spinning) and 5.11 (reader spinning removed, 617f3ef95177).

The steps that a protocol awaits stand at the end: `down_read(lock)` and so on.

Not covered here: the grain of the semaphore's own counter (see check.rwsem_counter, where that
is checked) and real-time priorities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EINTR
from functools import cache, wraps
from typing import TYPE_CHECKING, Literal

import msgspec

from zaplock.errors import ProtocolError
from zaplock.model.choices import require_choices
from zaplock.model.step import TAKEN_ALONE, Step, Task, watching
from zaplock.model.violations import Invariant, Violation

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

Lock = tuple[str, int]
"""A lock's name: ("mmap_lock", mm), ("i_mmap", file), ..."""


def lock_name(lock: Lock) -> str:
    """Write a lock: the first of its class by the class alone, others with their number."""
    if type(lock) is not tuple or len(lock) != 2 or not isinstance(lock[0], str):
        raise ProtocolError(
            f"{lock!r} is no lock; make a class of locks, MINE = LockClass('mine'), and take "
            "MINE(1), or ('mmap_lock', cx.mm)"
        )
    name, number = lock
    return name if number == 1 else f"{name} {number}"


class Rwsem(msgspec.Struct, frozen=True):
    """Who holds a semaphore and who waits for it. Task ids; 0 is nobody.

    `queue` is in order of arrival, (tid, is_writer) each. `downgraded` is the reader, if any, that
    came by its shared hold through `downgrade_write`. `no_readers_spin` is RWSEM_RD_NONSPINNABLE of
    5.3 to 5.10, and `saw_no_spin` those in the queue who found it set when they joined.
    """

    writer: int = 0
    readers: tuple[int, ...] = ()
    queue: tuple[tuple[int, bool], ...] = ()
    downgraded: int = 0
    no_readers_spin: bool = False
    saw_no_spin: tuple[int, ...] = ()


FREE = Rwsem()


@dataclass(frozen=True)
class RwsemPolicy:
    """How a kernel's semaphore treats those who come, wait and leave.

    reader_steals: may an arriving reader enter past a queue? "never" (4.9 to 5.2), "spinning"
        (5.3 to 5.10: it spins on a running writer-owner, and enters a lock that is free or has
        readers past the queue, until a writer's spin on readers times out), "unheld"
        (5.11 on: unless the lock is reader-owned by another reader already), "always" (no kernel:
        readers go first, and writers starve).
    wakes: readers woken when the head is a reader: "leading" (the run at the head) or "all" (up to
        `max_readers_woken` of them anywhere in the queue).
    writer_spins: "writer" (on a running writer-owner only), "any" (up to `reader_spin_ns` on a
        reader-owned lock too) or "never" (a kernel built without RWSEM_SPIN_ON_OWNER; then writers
        don't steal either).
    counts_first: are the readers of a wake-up counted before any of them runs (a9e9bcb45b15)?
    handoff_ns: after waiting this long the first waiter gets the lock handed over; None: never.
    del_waiter: does a killed waiter that leaves the queue keep its books "right"? "inverted"
        (1ea4b473504b alone: the flags go while others wait) and "late" (it looks whether it was
        first when it is out; in a version of that patch) were mended before any release.
    """

    name: str = field(compare=False)
    reader_steals: Literal["never", "spinning", "unheld", "always"]
    wakes: Literal["leading", "all"]
    writer_spins: Literal["writer", "any", "never"]
    reader_spin_ns: int = 25_000
    handoff_ns: int | None = None
    max_readers_woken: int = 256
    counts_first: bool = True
    del_waiter: Literal["right", "inverted", "late"] = "right"

    def __post_init__(self) -> None:
        require_choices(self)

    def __str__(self) -> str:
        return f"rwsem {self.name}"


RWSEM_4_9 = RwsemPolicy("4.9 to 5.2", "never", "leading", "writer", counts_first=False)
RWSEM_5_3 = RwsemPolicy("5.3 to 5.10", "spinning", "all", "any", handoff_ns=4_000_000)
RWSEM_5_11 = RwsemPolicy("5.11 on", "unheld", "all", "any", handoff_ns=4_000_000)


def held(sem: Rwsem, tid: int) -> Literal["", "read", "write"]:
    """Return how `tid` holds the semaphore."""
    if sem.writer == tid:
        return "write"
    return "read" if tid in sem.readers else ""


def is_free_for(sem: Rwsem, write: bool) -> bool:
    """Return whether the holders, queue apart, would let a reader or writer in."""
    return not sem.writer and not (write and sem.readers)


def acquire(sem: Rwsem, tid: int, write: bool) -> Rwsem:
    """Give the semaphore to `tid`, who must be free to have it; its place in the queue goes.

    With its lock, who saw that readers may not spin forbids it again; a writer who didn't allows it
    (rwsem_set_owner, rwsem_disable_reader_optspin, rwsem_mark_wake).
    """
    assert is_free_for(sem, write), (sem, tid, write)
    queue = sem.queue
    if queue:
        queue = tuple(waiter for waiter in queue if waiter[0] != tid)
    forbids, saw = tid in sem.saw_no_spin, _unless(sem.saw_no_spin, tid)
    if write:
        return Rwsem(tid, (), queue, 0, forbids, saw)
    forbids = forbids or sem.no_readers_spin
    return Rwsem(0, _with(sem.readers, tid), queue, sem.downgraded, forbids, saw)


def enqueue(sem: Rwsem, tid: int, write: bool, policy: RwsemPolicy | None = None) -> Rwsem:
    """Put `tid` at the end of the queue, by the rules of a policy where there are any.

    Where readers spin (5.3 to 5.10), a writer that comes beside shared holders has spun on them
    until its patience was over before it queues: then readers may not spin any more
    (rwsem_set_nonspinnable). One that comes while a writer has the lock goes to sleep as that does.
    """
    forbids = sem.no_readers_spin
    if policy and policy.reader_steals == "spinning" and policy.writer_spins == "any":
        forbids = forbids or (write and bool(sem.readers))
    saw = (*sem.saw_no_spin, tid) if forbids else sem.saw_no_spin
    queue = (*sem.queue, (tid, write))
    return Rwsem(sem.writer, sem.readers, queue, sem.downgraded, forbids, saw)


def leave_queue(sem: Rwsem, tid: int) -> Rwsem:
    """Take a waiter that was killed out of the queue."""
    queue = tuple(waiter for waiter in sem.queue if waiter[0] != tid)
    saw = _unless(sem.saw_no_spin, tid)
    return Rwsem(sem.writer, sem.readers, queue, sem.downgraded, sem.no_readers_spin, saw)


def release(sem: Rwsem, tid: int, write: bool) -> Rwsem:
    """End the hold of `tid`; a hold that isn't there, or of the other mode, is a violation."""
    mode = held(sem, tid)
    if mode != ("write" if write else "read"):
        wanted = "up_write" if write else "up_read"
        raise Violation(Invariant.LOCK_MODE, f"task {tid} does {wanted} but holds {mode or 'not'}")
    if write:  # up_write clears the owner, and with it the bit
        return Rwsem(0, (), sem.queue, 0, False, sem.saw_no_spin)
    downgraded = 0 if sem.downgraded == tid else sem.downgraded
    readers = _without(sem.readers, tid)
    return Rwsem(0, readers, sem.queue, downgraded, sem.no_readers_spin, sem.saw_no_spin)


def hand_over(sem: Rwsem, tid: int, to: int) -> Rwsem:
    """Make a shared hold of `tid` one of `to`, who will end it (up_read_non_owner)."""
    if held(sem, tid) != "read":
        raise Violation(
            Invariant.LOCK_MODE, f"task {tid} hands a shared hold over but holds not for read"
        )
    downgraded = to if sem.downgraded == tid else sem.downgraded
    readers = _with(_without(sem.readers, tid), to)
    return Rwsem(0, readers, sem.queue, downgraded, sem.no_readers_spin, sem.saw_no_spin)


def downgrade(sem: Rwsem, tid: int) -> Rwsem:
    """Turn the exclusive hold of `tid` into a shared one without a gap."""
    if sem.writer != tid:
        raise Violation(
            Invariant.LOCK_MODE, f"task {tid} does downgrade_write but does not hold for write"
        )
    return Rwsem(0, (tid,), sem.queue, tid, sem.no_readers_spin, sem.saw_no_spin)


def wake(sem: Rwsem, policy: RwsemPolicy) -> tuple[Rwsem, tuple[int, ...]]:
    """Hand the semaphore to those whom a release or downgrade wakes, and name them.

    A head that is a writer is granted when nobody holds; a head that is a reader is granted with
    the readers that the policy wakes along with it. After a downgrade only readers can be, and only
    when the HEAD is one: a queued writer in front keeps every reader behind it (the convoy).
    """
    if not sem.queue:
        return sem, ()
    tid, write = sem.queue[0]
    if write:
        return (acquire(sem, tid, True), (tid,)) if is_free_for(sem, True) else (sem, ())
    if sem.writer:
        return sem, ()
    granted = readers_to_wake(sem, policy)
    for reader in granted:
        sem = acquire(sem, reader, False)
    return sem, granted


def readers_to_wake(sem: Rwsem, policy: RwsemPolicy) -> tuple[int, ...]:
    """Name the queued readers that are woken together when the head is a reader."""
    if policy.wakes == "all":
        readers = [tid for tid, write in sem.queue if not write]
        return tuple(readers[: policy.max_readers_woken])
    leading = []
    for tid, write in sem.queue:
        if write:
            break
        leading.append(tid)
    return tuple(leading)


def may_enter_past_queue(sem: Rwsem, policy: RwsemPolicy, write: bool) -> bool:
    """Return whether somebody who arrives may take a lock that others queue for.

    Writers steal while they are awake (they spin); the timed engine decides that by who is on a
    CPU. Here: readers. Not covered: the handoff, which comes with a wake-up in vain, and (5.3 to
    5.10) a reader that spun through an exclusive hold and enters whatever the bit says
    (rwsem_reader_phase_trylock), or gave up spinning because it had to leave its CPU.
    """
    if write or sem.writer:
        return False
    if policy.reader_steals == "spinning":
        return policy.writer_spins != "never" and not sem.no_readers_spin
    if policy.reader_steals == "unheld":
        return not sem.readers
    return policy.reader_steals == "always"


def _with(readers: tuple[int, ...], tid: int) -> tuple[int, ...]:
    # A reader may hold it twice (a fault inside a read); sorted, so equal sets are equal.
    return tuple(sorted((*readers, tid))) if readers else (tid,)


def _unless(tids: tuple[int, ...], tid: int) -> tuple[int, ...]:
    return tuple(one for one in tids if one != tid) if tids else tids


def _without(readers: tuple[int, ...], tid: int) -> tuple[int, ...]:
    i = readers.index(tid)
    return readers[:i] + readers[i + 1 :]


class LockStep(Step[int]):
    """Ask for, give back or downgrade a lock. What waiting means is the engine's business.

    `action` is "down", "try", "up", "downgrade" or "hand-over" (to the task `to`); `write` the
    mode. The result of "down" is 0, or -EINTR where `killable` and the task has a fatal signal; of
    "try" 1 or 0; of the others 0.
    `acquires`: are reads that follow kept behind it? Only memory that isn't sequentially consistent
    shows the difference (`model.words`).
    """

    __slots__ = ("acquires", "action", "killable", "lock", "to", "write")

    def __init__(
        self,
        action: str,
        lock: Lock,
        write: bool,
        killable: bool = False,
        acquires: bool = True,
        to: int = 0,
    ) -> None:
        super().__init__(_at_once, (action, lock, write, to))
        self.to = to
        self.acquires = acquires
        self.action = action
        self.lock = lock
        self.write = write
        self.killable = killable

    @property
    def name(self) -> str:
        if self.action == "downgrade":
            return "downgrade_write"
        if self.action == "hand-over":
            return "hand_over_read"
        mode = "write" if self.write else "read"
        prefix = "down" if self.action == "try" else self.action
        suffix = "_trylock" if self.action == "try" else "_killable" if self.killable else ""
        return f"{prefix}_{mode}{suffix}{'' if self.acquires else '_relaxed'}"

    def __repr__(self) -> str:
        to = f", to task {self.to}" if self.to else ""
        return f"{self.name}({lock_name(self.lock)}{to})"


@cache
def _only_holder(tid: int, write: bool) -> Rwsem:
    return acquire(FREE, tid, write)


def _at_once(
    machine: Machine, task: Task, action: str, lock: Lock, write: bool, to: int = 0
) -> int:
    """Do a lock operation that cannot have to wait: the sequential engine's whole rwsem."""
    sem = machine.locks.data.get(lock, FREE)
    if sem is FREE and (action == "down" or action == "try"):
        machine.locks.put(lock, _only_holder(task.tid, write))
        return 1 if action == "try" else 0
    if action == "up" and sem is _only_holder(task.tid, write):
        machine.locks.put(lock, FREE)
        return 0
    if action == "down" or action == "try":
        if not is_free_for(sem, write):
            if action == "try":
                return 0
            raise Violation(
                Invariant.NO_DEADLOCK, f"{task} waits for {lock_name(lock)}, held by {sem}"
            )
        machine.locks.put(lock, acquire(sem, task.tid, write))
        return 1 if action == "try" else 0
    if action == "up":
        done = release(sem, task.tid, write)
    elif action == "hand-over":
        done = hand_over(sem, task.tid, to)
    else:
        done = downgrade(sem, task.tid)
    machine.locks.put(lock, FREE if done == FREE else done)  # itself, by which it is known at once
    return 0


def _kept(make: Callable[[Lock], LockStep]) -> Callable[[Lock], LockStep]:
    """Make each lock's step once, except for whoever watches steps being made.

    One that is alone needs no step at all.
    """
    kept, one = cache(make), make(("any", 0))
    action, write, killable = one.action, one.write, one.killable

    def at_once(machine: Machine, task: Task, lock: Lock) -> int:
        if killable and ends_wait(machine, task, lock, write):
            return EINTR_RESULT
        return _at_once(machine, task, action, lock, write)

    def down_at_once(machine: Machine, task: Task, lock: Lock) -> int:
        if machine.locks.data.get(lock, FREE) is not FREE:
            return at_once(machine, task, lock)
        machine.locks.put(lock, _only_holder(task.tid, write))
        return 0

    def up_at_once(machine: Machine, task: Task, lock: Lock) -> int:
        if machine.locks.data.get(lock, FREE) is not _only_holder(task.tid, write):
            return at_once(machine, task, lock)
        machine.locks.put(lock, FREE)
        return 0

    @wraps(make)
    def step_of(lock: Lock) -> LockStep:
        return kept(lock) if watching.watch is None else make(lock)

    TAKEN_ALONE[step_of] = {"down": down_at_once, "up": up_at_once}.get(action, at_once)
    return step_of


def ends_wait(machine: Machine, task: Task, lock: Lock, write: bool) -> bool:
    """Return whether a fatal signal ends a killable wait at once.

    A free lock is taken even by a task that is being killed: only a wait looks at signals.
    """
    if not machine.has_fatal_signal(task.tid):
        return False
    return not is_free_for(machine.locks.data.get(lock, FREE), write)


@_kept
def down_read(lock: Lock) -> LockStep:
    """Wait for a shared hold, uninterruptibly."""
    return LockStep("down", lock, False)


@_kept
def down_read_killable(lock: Lock) -> LockStep:
    """Wait for a shared hold; -EINTR on a fatal signal."""
    return LockStep("down", lock, False, killable=True)


@_kept
def down_read_relaxed(lock: Lock) -> LockStep:
    """Wait for a shared hold without ACQUIRE: what is read under it may have been read before."""
    return LockStep("down", lock, False, acquires=False)


@_kept
def down_write(lock: Lock) -> LockStep:
    """Wait for an exclusive hold, uninterruptibly."""
    return LockStep("down", lock, True)


@_kept
def down_write_killable(lock: Lock) -> LockStep:
    """Wait for an exclusive hold; -EINTR on a fatal signal."""
    return LockStep("down", lock, True, killable=True)


@_kept
def down_read_trylock(lock: Lock) -> LockStep:
    """Take a shared hold if that needs no waiting; 1 if so."""
    return LockStep("try", lock, False)


@_kept
def down_write_trylock(lock: Lock) -> LockStep:
    """Take an exclusive hold if that needs no waiting; 1 if so."""
    return LockStep("try", lock, True)


@_kept
def up_read(lock: Lock) -> LockStep:
    """End a shared hold."""
    return LockStep("up", lock, False)


@_kept
def up_write(lock: Lock) -> LockStep:
    """End an exclusive hold."""
    return LockStep("up", lock, True)


@_kept
def downgrade_write(lock: Lock) -> LockStep:
    """Turn an exclusive hold into a shared one without a gap."""
    return LockStep("downgrade", lock, True)


def hand_over_read(lock: Lock, tid: int) -> LockStep:
    """Let another task, by its id, end a shared hold: it is that task's from now on."""
    return LockStep("hand-over", lock, False, to=tid)


EINTR_RESULT = -EINTR
