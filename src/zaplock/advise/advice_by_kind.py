"""What can be done about each kind of call that held the lock for long, and what can't.

Advice must never cost data. `zaplock.release` empties pages, so it is for calls that free the very
same pages: munmap, an mmap over them, what an mremap cuts off, MADV_DONTNEED, MADV_FREE and
MADV_DONTNEED_LOCKED. Every other call works on live data, and keeps its meaning: it is made on
parts of its range, once instead of often, or left as it is. `tests/test_advice_followed.py` follows
each piece of advice on real memory and compares its content.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from zaplock.advice import ADVICE
from zaplock.trace.event_kinds import PAGE_FAULT
from zaplock.trace.madvise import ADVISING, advised, call_of

MAP_FIXED, MAP_POPULATE, CLONE_VM = 0x10, 0x8000, 0x100


class Means(StrEnum):
    """How a stall is cured: what whoever follows the advice does."""

    RELEASE = "release"  # the pages go by pieces first: the call frees them anyway
    PIECES = "pieces"  # the same call on parts of the range, with a rest after each
    POPULATE = "populate"  # the pages come by pieces first; content that is there stays
    ONCE = "once"  # the same call less often
    SETTING = "setting"  # something that is set, not called
    READER = "reader"  # somebody else looks at the process: switch that off
    CPU = "cpu"  # the holder had no CPU
    NONE = "none"  # nothing is known to help


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of call: what to do about it, and the measured figures that tell cost and rest.

    `cost` names the figure of `Costs` that grows with the length, `left` the one that stays.
    `topic` is what a runtime's own settings are sorted by ("free", "fill", "fork", "huge pages").
    """

    name: str
    means: Means
    change: str
    cost: str = ""
    left: str = ""
    topic: str = ""


_RELEASE = (
    "give the pages back by pieces first, with a rest after each (MADV_DONTNEED of some MiB; in "
    "Python zaplock.release), then "
)
_PARTS = "make the same call on parts of some MiB, with a rest of 50 us after each"
_FEWER = "call it once for a mapping, when it is made: each call takes the lock exclusively"
_FEWER_RANGES = "give fewer and smaller ranges to each call, with a rest of 50 us after each"
_FILL = (
    "map without it, then MADV_POPULATE_WRITE by pieces with a rest after each (in Python "
    "zaplock.buffers.populate)"
)


def _freeing(name: str, then: str, cost: str) -> Kind:
    return Kind(name, Means.RELEASE, _RELEASE + then, cost, "piece of a release", "free")


def _madvise(advice: int, means: Means, change: str, topic: str = "") -> Kind:
    return Kind(advised("madvise", advice), means, change, topic=topic)


DONTNEED, FREE, DONTNEED_LOCKED = 4, 8, 24
FREEING_ADVICE: Final = (DONTNEED, FREE, DONTNEED_LOCKED)
"""The advice after which nobody may count on the pages' content."""
_PARTWISE: Final = (3, 9, 20, 21, 22, 102, 103)
"""WILLNEED, REMOVE, COLD, PAGEOUT, POPULATE_READ, GUARD_INSTALL and _REMOVE: page by page."""
_WHOLE_HUGE = _PARTS + ", each from one multiple of 2 MiB to another: elsewhere it does nothing"

_MADVISE = {
    **{number: _madvise(number, Means.ONCE, _FEWER) for number in ADVICE},
    **{number: _madvise(number, Means.PIECES, _PARTS) for number in _PARTWISE},
    **{
        number: Kind(
            advised("madvise", number),
            Means.RELEASE,
            "the same by pieces with a rest after each (MADV_DONTNEED of some MiB; in Python "
            "zaplock.release(..., unmap=False))",
            "madvise",
            "piece of a release",
            "free",
        )
        for number in FREEING_ADVICE
    },
    23: Kind(
        advised("madvise", 23), Means.PIECES, _PARTS + " (in Python zaplock.buffers.populate)",
        "MAP_POPULATE", "piece of a populate", "fill",
    ),
    25: _madvise(25, Means.PIECES, _WHOLE_HUGE, "huge pages"),
    100: _madvise(100, Means.NONE, "it is for tests of the kernel"),
    101: _madvise(101, Means.NONE, "it is for tests of the kernel"),
}  # fmt: skip
_UNSEEN_ADVICE = Kind(
    "madvise",
    Means.NONE,
    "which advice it gave is not known here: record from before the call begins",
)

MUNMAP = _freeing("munmap", "the call", "munmap")
_MMAP_OVER = _freeing("mmap over it", "map over the empty range", "mmap over it")
_SHRINK = _freeing("mremap that shrinks", "shrink (the pages that are cut off only)", "mremap")
_POPULATE = Kind(
    "MAP_POPULATE", Means.POPULATE, _FILL, "MAP_POPULATE", "piece of a populate", "fill"
)
_MMAP = Kind(
    "mmap", Means.ONCE, "map more at a time and use it in parts: each call takes the lock "
    "exclusively",
)  # fmt: skip
_FORK = Kind(
    "fork",
    Means.SETTING,
    "posix_spawn or vfork where the child calls exec; else MADV_DONTFORK on big buffers, but only "
    "on those that the child never touches: it doesn't have them",
    "fork",
    "fork without it",
    "fork",
)
_THREAD = Kind("new thread", Means.ONCE, "keep threads and give them work: a pool")
_MLOCK = Kind(
    "mlock", Means.POPULATE, "populate by pieces first (MADV_POPULATE_WRITE; in Python "
    "zaplock.buffers.populate), or mlock2 with MLOCK_ONFAULT", "mlock", "piece of a populate",
    "fill",
)  # fmt: skip
_PROTECT = Kind(
    "mprotect", Means.PIECES, "protect before the pages are there, or " + _PARTS, "mprotect"
)
BRK = Kind(
    "brk",
    Means.SETTING,
    "keep big blocks off the heap (mallopt M_MMAP_THRESHOLD, MALLOC_MMAP_THRESHOLD_), or trim less "
    "often (M_TRIM_THRESHOLD)",
    "brk",
    topic="free",
)
_EXIT = Kind(
    "exit", Means.NONE, "only who looks at the dying process waits: free the biggest buffers "
    "before the end, or let it wait",
)  # fmt: skip
_PARTS_KIND = {name: Kind(name, Means.PIECES, _PARTS) for name in ("msync", "munlock")}
_NO_CURE = "no way is known to shorten this call"

_CALLS = {
    "munmap": MUNMAP,
    "brk": BRK,
    "mprotect": _PROTECT,
    "pkey_mprotect": _PROTECT,
    "mlock": _MLOCK,
    "mlock2": _MLOCK,
    "mlockall": _MLOCK,
    "fork": _FORK,
    "clone3": _FORK,  # a thread's takes the lock of nobody: dup_mmap does
    "vfork": _THREAD,
    "execve": Kind("exec", Means.NONE, _EXIT.change),
    "execveat": Kind("exec", Means.NONE, _EXIT.change),
    "exit": _EXIT,
    "exit_group": _EXIT,
    "mincore": Kind(
        "mincore", Means.PIECES, _PARTS + "; cachestat (6.5) needs no lock of the process"
    ),
    "mbind": Kind("mbind", Means.ONCE, "set the policy before the pages are there"),
    "shmdt": Kind(
        "shmdt", Means.PIECES, "MADV_DONTNEED by pieces with a rest after each, then the call (the "
        "segment keeps the data)",
    ),
    "munlockall": _PARTS_KIND["munlock"],
    **_PARTS_KIND,
    **{
        f"UFFDIO_{name}": Kind(f"UFFDIO_{name}", Means.PIECES, _PARTS)
        for name in ("COPY", "ZEROPAGE", "CONTINUE", "WRITEPROTECT", "MOVE", "POISON")
    },
    "io_uring_register": Kind(
        "io_uring_register", Means.POPULATE, "have the pages of the buffers there first: "
        "MADV_POPULATE_WRITE by pieces (in Python zaplock.buffers.populate), of huge pages where "
        "that is possible; then register them, few at a time", topic="fill",
    ),
    "core dump": Kind(
        "core dump", Means.SETTING, "dump less (/proc/PID/coredump_filter, ulimit -c)",
    ),
    "NUMA balancing": Kind(
        "NUMA balancing", Means.SETTING, "bind the threads and the memory (numactl), or switch it "
        "off (kernel.numa_balancing=0)",
    ),
    "mmu_notifier_register": Kind(
        "mmu_notifier_register", Means.ONCE, "make the virtual machine (open the device) before the"
        " process has many mappings",
    ),
    PAGE_FAULT: Kind(
        PAGE_FAULT, Means.POPULATE, "have the pages there before they are used: "
        "MADV_POPULATE_WRITE by pieces (in Python zaplock.buffers.populate)", topic="fill",
    ),
}  # fmt: skip

QUEUED = Kind(
    "queued writer",
    Means.ONCE,
    "it did nothing but wait in front: shorten the hold that it waits for, or make such calls less "
    "often",
)
NO_CPU = Kind(
    "holder without a CPU",
    Means.CPU,
    "the holder was not running: give it CPU (cpu.max of its cgroup, fewer runnable threads, a "
    "higher weight), or move to Linux 6.18, where a task is throttled only on its way to user mode;"
    " smaller pieces would not help",
)
ASLEEP = Kind(
    "holder asleep",
    Means.NONE,
    "the holder slept while it had the lock (a page lock, I/O, reclaim, a monitor): smaller pieces "
    "would not help",
)
OTHER_REASON = Kind(
    "longer than its size explains",
    Means.NONE,
    "its size is not the reason: the holder had no CPU or slept. `zaplock record --sched` tells "
    "which; smaller pieces would not help",
)
UNNAMED = Kind(
    "a call that is not recorded",
    Means.NONE,
    "record again with --stacks to see what it was",
)


def kind_of(operation: str, detail: int, length: int) -> Kind:
    """Say what can be done about an operation, as `trace.calls` names it; "" is none."""
    call = call_of(operation)
    if call in ADVISING:
        return _advice_kind(operation, call)
    if call == "mmap":
        if detail & MAP_POPULATE:
            return _POPULATE
        return _MMAP_OVER if detail & MAP_FIXED else _MMAP
    if call == "mremap" and 0 < detail < length:
        return _SHRINK
    if call == "clone":
        return _THREAD if detail & CLONE_VM else _FORK
    if not operation:
        return UNNAMED
    return _CALLS.get(call) or Kind(operation, Means.NONE, _NO_CURE)


def _advice_kind(operation: str, call: str) -> Kind:
    found = next(
        (kind for number, kind in _MADVISE.items() if operation == advised(call, number)), None
    )
    if found is None:
        return _UNSEEN_ADVICE
    # Its ranges are another process's affair, and not in a recording.
    return found if call == "madvise" else Kind(operation, Means.PIECES, _FEWER_RANGES)
