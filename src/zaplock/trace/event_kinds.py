"""What an event says happened; without numpy, for a recorder that has to stay small."""

from __future__ import annotations

from enum import IntEnum


class EventKind(IntEnum):
    """What happened. The columns that carry a meaning are named; the others are 0."""

    ASKED = 0  # mmap_lock_start_locking: mm, write
    ACQUIRED = 1  # mmap_lock_acquire_returned: mm, write, success
    RELEASED = 2  # mmap_lock_released: mm, write
    OP_BEGIN = 3  # a system call begins: op, address, length, detail
    OP_END = 4  # it returned: op, result
    FAULT_BEGIN = 5  # a page fault of a user access: address, detail (the error code)
    FAULT_END = 6
    SCHED_OUT = 7  # tid leaves its cpu: detail is prev_state (0 = preempted, still runnable)
    SCHED_IN = 8  # tid runs on cpu
    WAKEUP = 9  # somebody on cpu wakes tid: detail is who (0: not known)
    CONTENTION_BEGIN = 10  # lock:contention_begin: address (of the lock), detail (flags)
    CONTENTION_END = 11  # lock:contention_end: address, result
    # Events of cpu (-1: of all) are missing before this time: length says how many (-1: unknown),
    # detail since when (0: since that cpu's last event).
    LOST = 12


IN_INTERRUPT = 0x08 | 0x10 | 0x40
"""In an event's common_flags: TRACE_FLAG_HARDIRQ, _SOFTIRQ and _NMI (include/linux/trace_events.h).

Whoever is on the CPU then is not who did it: a timer that wakes a task interrupts another one.
"""

NO_OP = -1
"""`op` of an event that is no system call."""

IN_PART = 1
"""`result` of an ASKED, ACQUIRED or OP_BEGIN that nobody saw happen: it was already so when the
recording began (`FoundTask`). Its time is the earliest at which it is known to have been so."""

HOLD_UNSEEN = 2
"""`result` of an ACQUIRED that only ends a wait: when the lock was let go of nobody saw, since the
lock events weren't on yet."""

PAGE_FAULT = "page fault"
"""The name under which a fault stands among the operations."""
