"""The kernel's filters (Documentation/trace/events.rst) that let a target's lock in, and no other.

An mm is told by its own address in the events of `mmap_lock`, and in those of `lock` by that of the
rwsem inside it.
"""

from __future__ import annotations

from collections.abc import Mapping

from zaplock.recorder.lock_events import LockEvents
from zaplock.recorder.stack_sampler import LOCKED
from zaplock.recorder.targets import LearnedMm

RWSEM = "(flags == 2 || flags == 4 || flags == 10 || flags == 12)"
"""LCB_F_READ or LCB_F_WRITE, alone or with LCB_F_RT (include/trace/events/lock.h): a rwsem."""
LOCK_WITHIN = 1024
"""The mmap_lock is the only rwsem in the first bytes of an mm_struct, wherever a kernel has it."""


def mms_of(learned: Mapping[int, LearnedMm]) -> list[int]:
    """List the address spaces."""
    return [one.mm for one in learned.values()]


def locked_of(locks: LockEvents, learned: Mapping[int, LearnedMm]) -> str:
    """Make the filter of the event that tells who got a lock; "" where every lock is recorded."""
    return locks.condition(LOCKED, mms_of(learned))


def locks_of(learned: Mapping[int, LearnedMm]) -> str:
    """Make the filter of what is about these address spaces' locks; "" where there are none."""
    return " || ".join(
        f"(lock_addr >= {mm:#x} && lock_addr < {mm + LOCK_WITHIN:#x})" for mm in mms_of(learned)
    )


def queues_of(learned: Mapping[int, LearnedMm]) -> str:
    """Make the filter of waits for these address spaces' locks; where there are none, for any."""
    near = locks_of(learned)
    return f"{RWSEM} && ({near})" if near else RWSEM
