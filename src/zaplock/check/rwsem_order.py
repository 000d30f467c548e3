"""Does a reader that gets the rwsem see what the writer before it has done?

The semaphore at the grain of its words, as in `rwsem_counter`, but in memory that may be weak: the
count, a waiter's `task` and what the lock protects are words of `model.words`, and each access has
the order that the kernel gives it. A writer is inside at the beginning; it writes, and leaves. A
reader comes meanwhile.

Two bugs, each a read with no ACQUIRE. A reader that finds the queue empty and the writer gone has
the lock at once (4b486b535c33, 4.20): it read the count with nothing that keeps later reads behind
(e1b98fa31664, 5.3). And a reader that finds its `waiter->task` cleared before it sleeps went on
likewise, since ever (99143f82a255, 5.3). On arm64 the first let page faults use a VMA that munmap
had detached. Each has a scenario of its own, in which the other is mended. x86 keeps its reads in
order, so neither is found under "tso".

Source: kernel/locking/rwsem-xadd.c (4.20 to 5.2), kernel/locking/rwsem.c (5.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zaplock.check.rwsem_counter import ACTIVE, WAITING, WRITING
from zaplock.engines.checking.configuration import Configuration, TaskProgram
from zaplock.engines.checking.memory import with_memory
from zaplock.model.machine import Machine
from zaplock.model.rwsem import Lock, down_write, up_write
from zaplock.model.step import Task, step
from zaplock.model.violations import Invariant, Violation
from zaplock.model.words import (
    READ_ONCE,
    WRITE_ONCE,
    MemoryModel,
    atomic_add_return,
    smp_load_acquire,
    smp_mb,
    smp_store_release,
)

if TYPE_CHECKING:
    from zaplock.protocols.design import Design

COUNT: Final = "sem->count"
WAITER: Final = "waiter->task"
PROTECTED: Final = "protected"
WAIT_LOCK: Final[Lock] = ("wait_lock", 1)

DONE: Final = 1
"""What the writer leaves in the word that the semaphore protects."""


def leaving_writer_and_reader(design: Design, memory: MemoryModel, queued: bool) -> Configuration:
    """A writer is inside and leaves; a reader comes, or is in the queue and not asleep yet."""
    leaves, wakes = design.read_leaves_queue, design.read_wakes if queued else "acquire"
    writer, reader = Task(1, 1, "writer"), Task(2, 1, "reader")

    async def reads() -> None:
        if queued:
            await wait_for_turn(wakes)
        else:
            await down_read(leaves, wakes)
        await look(await READ_ONCE(PROTECTED))

    programs = TaskProgram(writer, leave), TaskProgram(reader, reads)
    words = {COUNT: WRITING + (WAITING if queued else 0), WAITER: int(queued), PROTECTED: 0}
    readers = {"reader": (COUNT, WAITER, PROTECTED), "writer": ()}
    return with_memory(Configuration(Machine, programs), memory, words, readers)


async def leave() -> None:
    """Write, and end an exclusive hold (up_write: RELEASE)."""
    await WRITE_ONCE(PROTECTED, DONE)
    if await atomic_add_return(COUNT, -WRITING, "release") < 0:
        await down_write(WAIT_LOCK)
        await mark_wake()
        await up_write(WAIT_LOCK)


async def mark_wake() -> None:
    """Hand the lock to the reader in the queue, if it is there still."""
    if await READ_ONCE(WAITER):
        await atomic_add_return(COUNT, ACTIVE - WAITING, "relaxed")
        await smp_store_release(WAITER, 0)


async def down_read(leaves: str, wakes: str) -> None:
    """Get a shared hold; the slow way where a writer is inside."""
    if await atomic_add_return(COUNT, ACTIVE, "acquire") >= 0:
        return
    await down_write(WAIT_LOCK)
    if leaves != "no":
        read_count = smp_load_acquire if leaves == "acquire" else READ_ONCE
        if await read_count(COUNT) >= 0:
            await up_write(WAIT_LOCK)
            return
    await WRITE_ONCE(WAITER, 1)
    if await atomic_add_return(COUNT, WAITING - ACTIVE) == WAITING:
        await mark_wake()  # the writer has left before it could see anybody waiting
    await up_write(WAIT_LOCK)
    await wait_for_turn(wakes)


async def wait_for_turn(wakes: str) -> None:
    """Look, and sleep, until the waker has cleared `waiter->task`."""
    read_waiter = smp_load_acquire if wakes == "acquire" else READ_ONCE
    while True:
        await smp_mb()  # set_current_state
        if not await read_waiter(WAITER):
            return


@step
def look(_m: Machine, task: Task, seen: int) -> None:
    """Hold what was read under the lock against what was done under it before."""
    if seen != DONE:
        raise Violation(
            Invariant.HOLDER_SEES,
            f"{task} holds the lock for read after the writer, and reads {seen}, "
            f"what was there before the writer wrote {DONE}",
        )
