"""The rwsem's queue at the grain of its wake-ups, where a waiter can be overtaken for ever.

Elsewhere a release hands the lock to whom it wakes, in the same instant (`model.rwsem`). Really a
writer that is woken has to run and try; whoever is awake meanwhile may have the lock first. Here
releasing, waking and trying are steps of their own, so that the three queues can be judged:

    4.9 to 5.2   a writer that comes takes a free lock whoever waits (it would spin), and nothing
                 stops it from doing so again and again
    5.3 to 5.10  a first waiter that has waited 4 ms and is woken in vain sets the handoff, and from
                 then on nobody steals (4f23dbc1e657); but readers may join readers past a waiter,
                 and then it is never woken (told in 2f06f702925b)
    5.11 on      a reader that comes joins no readers past a waiter (2f06f702925b, 1a728dff855a)

    7.1 on       the semaphore points to its first waiter (1ea4b473504b). A waiter that is killed
                 takes itself out, wherever it stands, and the count has to say afterwards whether
                 anybody waits still (mended before any release: 68bcd8b6e0b1)

The 4 ms count as passed whenever a first waiter is woken in vain: who is overtaken for ever waits
longer than that, and only such runs are looked for. Not covered: real-time priorities.

Source: kernel/locking/rwsem-xadd.c (4.9), kernel/locking/rwsem.c (5.3, 5.11, 7.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zaplock.model.step import Step, Task, WaitStep, step
from zaplock.model.violations import Invariant, Violation

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.rwsem import RwsemPolicy

LOCK = "rwsem"


class QueuedRwsem(NamedTuple):
    """Who is inside, who waits in order of arrival, who was woken and has not tried yet.

    handoff, waiters: the flags in the count that say a handoff is due, and that somebody waits.
    """

    writer: int = 0
    readers: tuple[int, ...] = ()
    queue: tuple[tuple[int, bool], ...] = ()
    woken: tuple[int, ...] = ()
    handoff: bool = False
    waiters: bool = False


def read(m: Machine) -> QueuedRwsem:
    """Return the semaphore's state."""
    found: QueuedRwsem = m.cells("rwsem_queue").get(LOCK, QueuedRwsem())
    return found


def write(m: Machine, sem: QueuedRwsem) -> None:
    """Set the semaphore's state."""
    if sem.writer and sem.readers:
        raise Violation(Invariant.MUTUAL_EXCLUSION, f"writer {sem.writer} beside {sem.readers}")
    m.cells("rwsem_queue").put(LOCK, sem)


def may_steal(sem: QueuedRwsem, policy: RwsemPolicy, for_write: bool) -> bool:
    """Return whether somebody who comes may take the lock although others wait for it."""
    if sem.writer or sem.handoff:
        return False
    if for_write:
        return policy.writer_spins != "never" and not sem.readers
    if policy.reader_steals == "unheld":
        return not sem.readers
    return policy.reader_steals in ("spinning", "always")


def entered(sem: QueuedRwsem, tid: int, for_write: bool) -> QueuedRwsem:
    """Let a task in; its place in the queue goes, and a handoff that was its own."""
    first = bool(sem.queue) and sem.queue[0][0] == tid
    queue = tuple(waiter for waiter in sem.queue if waiter[0] != tid)
    handoff = sem.handoff and not first
    sem = sem._replace(queue=queue, handoff=handoff, waiters=sem.waiters and bool(queue))
    if for_write:
        return sem._replace(writer=tid)
    return sem._replace(readers=tuple(sorted((*sem.readers, tid))))


def left(sem: QueuedRwsem, tid: int, policy: RwsemPolicy) -> QueuedRwsem:
    """Take a killed waiter out of the queue (rwsem_del_waiter) and, if it was first, wake the next.

    The flags go with the last waiter; "inverted" they go while others wait, and stay when none is
    left. "late" looks whether it was first only when it is out.
    """
    first = sem.queue[0][0] == tid
    queue = tuple(waiter for waiter in sem.queue if waiter[0] != tid)
    woken = tuple(one for one in sem.woken if one != tid)
    sem = sem._replace(queue=queue, woken=woken)
    if bool(queue) == (policy.del_waiter == "inverted"):
        sem = sem._replace(handoff=False, waiters=False)
    wakes = first and policy.del_waiter != "late" and not sem.writer and not sem.readers
    return head_woken(sem, policy) if wakes else sem


def head_woken(sem: QueuedRwsem, policy: RwsemPolicy) -> QueuedRwsem:
    """Wake the first waiter: a writer may try then, readers are let in with those behind them."""
    if not sem.queue:
        return sem
    first, for_write = sem.queue[0]
    if for_write:
        return sem._replace(woken=tuple(sorted({*sem.woken, first})))
    if sem.writer:  # one was quicker
        return sem._replace(handoff=sem.handoff or policy.handoff_ns is not None)
    for tid, is_writer in sem.queue:
        if is_writer and policy.wakes == "leading":
            break
        if not is_writer:
            sem = entered(sem, tid, False)
    return sem


# Steps


@step
def ask(m: Machine, task: Task, for_write: bool, policy: RwsemPolicy) -> bool:
    """Get in at once, by the fast path or by stealing, or else stand at the end of the queue."""
    sem = read(m)
    free = not sem.writer and not (for_write and sem.readers)
    if free and (not sem.waiters or may_steal(sem, policy, for_write)):
        sem = entered(sem, task.tid, for_write)
        if not for_write and sem.queue and not sem.queue[0][1]:
            sem = head_woken(sem, policy)
        write(m, sem)
        return True
    write(m, sem._replace(queue=(*sem.queue, (task.tid, for_write)), waiters=True))
    return False


@step
def leave_queue(m: Machine, task: Task, policy: RwsemPolicy) -> bool:
    """Leave the queue, being killed; False for a reader that was let in meanwhile."""
    sem = read(m)
    if task.tid in sem.readers:
        return False
    write(m, left(sem, task.tid, policy))
    return True


@step
def try_again(m: Machine, task: Task, policy: RwsemPolicy) -> bool:
    """Try, as a writer that was woken; a first waiter who fails asks for the handoff."""
    sem = read(m)
    sem = sem._replace(woken=tuple(tid for tid in sem.woken if tid != task.tid))
    first = sem.queue[0][0] == task.tid
    if not sem.writer and not sem.readers and (first or not sem.handoff):
        write(m, entered(sem, task.tid, True))
        return True
    hands_over = first and policy.handoff_ns is not None
    write(m, sem._replace(handoff=sem.handoff or hands_over))
    return False


@step
def let_go(m: Machine, task: Task, for_write: bool) -> bool:
    """End a hold; return whether somebody has to be woken."""
    sem = read(m)
    readers = tuple(tid for tid in sem.readers if tid != task.tid)
    sem = sem._replace(writer=0) if for_write else sem._replace(readers=readers)
    write(m, sem)
    return sem.waiters and not sem.readers


@step
def wake_head(m: Machine, _task: Task, policy: RwsemPolicy) -> None:
    """rwsem_wake: by now somebody else may be inside."""
    write(m, head_woken(read(m), policy))


def sleep(tid: int, for_write: bool) -> Step[None]:
    """Sleep until woken as a writer, or let in as a reader."""
    return WaitStep(_go_on, (tid, for_write), _is_called, ("rwsem waiter", tid))


def _is_called(m: Machine, _task: Task, tid: int, for_write: bool) -> bool:
    sem = read(m)
    return tid in (sem.woken if for_write else sem.readers)


def _go_on(_m: Machine, _task: Task, _tid: int, _for_write: bool) -> None:
    return None


# Protocols


async def hold_once(task: Task, for_write: bool, policy: RwsemPolicy) -> None:
    """Get the lock, by whatever it takes, and give it back."""
    if not await ask(for_write, policy):
        await sleep(task.tid, for_write)
        while for_write and not await try_again(policy):
            await sleep(task.tid, for_write)
    await end_hold(for_write, policy)


async def end_hold(for_write: bool, policy: RwsemPolicy) -> None:
    """Give the lock back, and wake who waits."""
    if await let_go(for_write):
        await wake_head(policy)


async def hold_unless_killed(task: Task, for_write: bool, policy: RwsemPolicy) -> None:
    """Get the lock at once and give it back, or wait until a fatal signal comes, at any time."""
    if await ask(for_write, policy) or not await leave_queue(policy):
        await end_hold(for_write, policy)


async def hold_again_and_again(task: Task, for_write: bool, policy: RwsemPolicy) -> None:
    """Get the lock and give it back for ever."""
    while True:
        await hold_once(task, for_write, policy)
