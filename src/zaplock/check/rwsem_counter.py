"""The rwsem of 4.9 to 5.2 at the grain of its counter, where one bug lived.

Everywhere else a semaphore is one cell (`model.rwsem`). Here its count, its queue and its waiters
are cells of their own, and each atomic operation on one of them is a step; what the kernel does
under the wait_lock is several steps, since the fast paths don't take that lock.

The bug: since 70800c3c0cc5 (4.9) the waker lets each reader go (clears its `waiter->task`) before
it has counted them all; only the first is counted beforehand. A reader that runs and leaves at once
takes its one off a count that was never raised for it; the count looks free; a writer that spins
takes the lock beside the other reader. Mended by a9e9bcb45b15 (5.2, and 5.1 stable): first count,
then let go.

Source: kernel/locking/rwsem-xadd.c (4.9 to 5.1). Not covered: owner, the spinner's queue, timeouts,
signals; the wait_lock is a flag that is waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zaplock.model.step import Step, Task, WaitStep, step
from zaplock.model.violations import Invariant, Violation

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.store import Cells

ACTIVE: Final = 1
WAITING: Final = -(1 << 32)
WRITING: Final = WAITING + ACTIVE
ACTIVE_MASK: Final = (1 << 32) - 1

COUNT: Final = "count"
WAIT_LOCK: Final = "wait_lock"
QUEUE: Final = "queue"
INSIDE: Final = "inside"

Waiter = tuple[int, bool]
"""Task id, and whether it wants to write."""


def words(m: Machine) -> Cells[str, int]:
    """Return the semaphore's count, and its wait_lock (the task that has it, or 0)."""
    return m.cells("rwsem_words")


def lists(m: Machine) -> Cells[str, tuple[Waiter, ...]]:
    """Return who is in the queue, and who is inside."""
    return m.cells("rwsem_lists")


def waiting(m: Machine) -> Cells[int, int]:
    """Return each waiter's `waiter->task`: 1 while it has to wait."""
    return m.cells("rwsem_waiting")


def waits(tid: int) -> tuple[str, int]:
    """Name the channel on which a waiter is let go."""
    return ("rwsem waiter", tid)


def held_by_writer(m: Machine, tid: int, queue: tuple[Waiter, ...] = ()) -> None:
    """Let a run begin with one writer inside and these waiters queued."""
    words(m).put(COUNT, WRITING + (WAITING if queue else 0))
    lists(m).put(QUEUE, queue)
    lists(m).put(INSIDE, ((tid, True),))
    for waiter, _ in queue:
        waiting(m).put(waiter, 1)


# Steps


@step
def count_add(m: Machine, _task: Task, amount: int) -> int:
    """Add to the count; return what it is now (atomic_long_add_return)."""
    count: int = words(m).get(COUNT, 0) + amount
    words(m).put(COUNT, count)
    return count


@step
def read_queue(m: Machine, _task: Task) -> tuple[Waiter, ...]:
    """Look at the queue, under the wait_lock."""
    queue: tuple[Waiter, ...] = lists(m).get(QUEUE, ())
    return queue


@step
def queue_add(m: Machine, _task: Task, waiter: Waiter) -> None:
    """Stand at the end of the queue, under the wait_lock."""
    lists(m).put(QUEUE, (*lists(m).get(QUEUE, ()), waiter))
    waiting(m).put(waiter[0], 1)


@step
def queue_remove(m: Machine, _task: Task, tids: tuple[int, ...]) -> None:
    """Take waiters out of the queue, under the wait_lock."""
    queue = lists(m).get(QUEUE, ())
    lists(m).put(QUEUE, tuple(waiter for waiter in queue if waiter[0] not in tids))


@step
def clear_waiter_task(m: Machine, _task: Task, tid: int) -> None:
    """Let one waiter go: from here on it runs (smp_store_release(&waiter->task, NULL))."""
    waiting(m).put(tid, 0)
    m.wake(waits(tid))


@step
def enter(m: Machine, task: Task, write: bool) -> None:
    """Be inside; a writer beside anybody breaks what the semaphore is for."""
    inside = lists(m).get(INSIDE, ())
    if inside and (write or any(writer for _, writer in inside)):
        others = " and ".join(f"{'writer' if w else 'reader'} {tid}" for tid, w in inside)
        raise Violation(
            Invariant.MUTUAL_EXCLUSION,
            f"{task} enters as a {'writer' if write else 'reader'} beside {others}",
        )
    lists(m).put(INSIDE, tuple(sorted((*inside, (task.tid, write)))))


@step
def leave(m: Machine, task: Task, write: bool) -> None:
    """Be outside again."""
    inside = lists(m).get(INSIDE, ())
    lists(m).put(INSIDE, tuple(one for one in inside if one != (task.tid, write)))


def take_wait_lock() -> Step[None]:
    """Take the spin lock around the queue."""
    return WaitStep(lock_wait_lock, (), _wait_lock_free, ("rwsem", WAIT_LOCK))


def _wait_lock_free(m: Machine, _task: Task) -> bool:
    return not words(m).get(WAIT_LOCK, 0)


def lock_wait_lock(m: Machine, task: Task) -> None:
    """Take the wait_lock."""
    words(m).put(WAIT_LOCK, task.tid)


@step
def drop_wait_lock(m: Machine, _task: Task) -> None:
    """Give the spin lock around the queue back."""
    words(m).put(WAIT_LOCK, 0)
    m.wake(("rwsem", WAIT_LOCK))


def wait_to_be_let_go(tid: int) -> Step[None]:
    """Sleep until the waker has cleared `waiter->task`."""
    return WaitStep(let_go, (), _let_go, waits(tid))


def _let_go(m: Machine, task: Task) -> bool:
    return not waiting(m).get(task.tid, 0)


def let_go(_m: Machine, _task: Task) -> None:
    """Wake up."""


def spin_for_write() -> Step[None]:
    """Spin, without queueing, until the count looks free, and take it in the same instant."""
    return WaitStep(steal, (), _looks_free, ("rwsem", COUNT))


def _looks_free(m: Machine, _task: Task) -> bool:
    return words(m).get(COUNT, 0) in (0, WAITING)


def steal(m: Machine, _task: Task) -> None:
    """Take a count that looks free."""
    words(m).put(COUNT, words(m).get(COUNT, 0) + WRITING)


# Protocols


async def down_read(task: Task, counts_first: bool) -> None:
    """Get a shared hold."""
    if await count_add(ACTIVE) < 0:
        await rwsem_down_read_failed(task, counts_first)
    await enter(False)


async def rwsem_down_read_failed(task: Task, counts_first: bool) -> None:
    """Queue as a reader and sleep."""
    await take_wait_lock()
    first = not await read_queue()
    await queue_add((task.tid, False))
    count = await count_add((WAITING if first else 0) - ACTIVE)
    if count == WAITING or (count > WAITING and first):
        await rwsem_mark_wake(counts_first, True)
    await drop_wait_lock()
    await wait_to_be_let_go(task.tid)


async def up_read(counts_first: bool) -> None:
    """End a shared hold; wake somebody if nobody is left inside."""
    await leave(False)
    count = await count_add(-ACTIVE)
    if count < -1 and not count & ACTIVE_MASK:
        await rwsem_wake(counts_first)


async def down_write_spinning() -> None:
    """Get an exclusive hold by spinning (rwsem_optimistic_spin)."""
    await spin_for_write()
    await enter(True)


async def up_write(counts_first: bool) -> None:
    """End an exclusive hold and wake whoever waits."""
    await leave(True)
    if await count_add(-WRITING) < 0:
        await rwsem_wake(counts_first)


async def rwsem_wake(counts_first: bool) -> None:
    """Wake the head of the queue, under the wait_lock."""
    await take_wait_lock()
    if await read_queue():
        await rwsem_mark_wake(counts_first, True)
    await drop_wait_lock()


async def rwsem_mark_wake(counts_first: bool, wake_writer: bool) -> None:
    """Let the head of the queue go: a writer, or the readers that lead.

    `counts_first` is the mended form: count all of them, then let them go.
    """
    queue = await read_queue()
    if queue[0][1]:
        if wake_writer:
            await clear_waiter_task(queue[0][0])
        return
    if not await grant_first_reader():
        return
    readers = leading_readers(queue)
    rest = len(readers) - 1, len(readers) == len(queue)
    if counts_first:
        await queue_remove(readers)
        await count_rest(*rest)
        for tid in readers:
            await clear_waiter_task(tid)
        return
    for tid in readers:
        await queue_remove((tid,))
        await clear_waiter_task(tid)
    await count_rest(*rest)


async def grant_first_reader() -> bool:
    """Count one reader in advance, so that no writer steals; False if one has."""
    while await count_add(ACTIVE) - ACTIVE < WAITING:
        if await count_add(-ACTIVE) + ACTIVE < WAITING:
            return False
    return True


async def count_rest(readers: int, emptied: bool) -> None:
    """Count the readers that were not counted in advance; nobody waits any more if `emptied`."""
    adjustment = readers * ACTIVE - (WAITING if emptied else 0)
    if adjustment:
        await count_add(adjustment)


def leading_readers(queue: tuple[Waiter, ...]) -> tuple[int, ...]:
    """Name the readers at the head of the queue."""
    readers = []
    for tid, write in queue:
        if write:
            break
        readers.append(tid)
    return tuple(readers)


async def reader(task: Task, counts_first: bool) -> None:
    """Read once."""
    await down_read(task, counts_first)
    await up_read(counts_first)


async def queued_reader(task: Task, counts_first: bool) -> None:
    """Go on as a reader that was queued before the run began."""
    await wait_to_be_let_go(task.tid)
    await enter(False)
    await up_read(counts_first)


async def spinning_writer(counts_first: bool) -> None:
    """Write once, got by spinning."""
    await down_write_spinning()
    await up_write(counts_first)


async def leaving_writer(counts_first: bool) -> None:
    """Go on as the writer that was inside when the run began."""
    await up_write(counts_first)
