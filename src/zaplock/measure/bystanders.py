"""What bystanders do beside a teardown, and the loop that times them.

| name     | who                        | one operation                                           |
|----------|----------------------------|---------------------------------------------------------|
| fault    | a thread of the process    | a write to a fresh page of its own VMA, from user mode  |
| mmap     | a thread of the process    | mmap and munmap of 4 KiB: the lock for write, twice     |
| madvise  | a thread of the process    | MADV_DONTNEED of one page of its own VMA                |
| mprotect | a thread of the process    | mprotect of one page of its own VMA, to and fro         |
| clone    | a thread of the process    | map a thread's stack, protect its guard page, unmap it  |
| proc     | a foreign process, as `ps` | open, read and close /proc/PID/cmdline                  |
| environ  | a foreign process          | the same with /proc/PID/environ                         |
| maps     | a foreign process          | the same with /proc/PID/maps                            |
| smaps    | a foreign process          | the same with /proc/PID/smaps                           |
| rollup   | a foreign process          | the same with /proc/PID/smaps_rollup                    |
| gup      | a foreign process          | process_vm_readv of one byte: get_user_pages on the mm  |

The fault's VMA has its anon_vma before the clock runs: the first fault of a VMA takes the
mmap_lock on every kernel, later ones from 6.4 on only the VMA's lock, and it is those that a
running program has.

The loop is closed: the next operation is due one period after the last began, or at once when
that one took longer. So one operation that waits out a whole teardown counts once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from zaplock.experiment import PROC_FILES
from zaplock.measure import syscalls as sys

FRESH = 128 << 20
"""Bytes of fresh pages that the fault bystander goes round in."""
STACK = 8 << 20
"""Bytes of a thread's stack."""
READ = 64 << 10
"""Bytes that a reader of /proc/PID asks for at a time."""


@dataclass(slots=True)
class MeasuredSamples:
    """When each operation began (CLOCK_MONOTONIC) and how long it took, in nanoseconds."""

    begin_ns: list[int] = field(default_factory=list)
    took_ns: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BystanderOperation:
    """What a bystander does: `ready` before the clock runs, `work` while it does."""

    work: Callable[[], object]
    ready: Callable[[], object] = lambda: None


def own_range(length: int) -> int:
    """Map a range that merges with no neighbour and has its anon_vma; return its address."""
    hole = sys.mmap(length + 2 * sys.PAGE, sys.PROT_NONE)
    address = hole + sys.PAGE
    sys.mprotect(address, length, sys.PROT_READ | sys.PROT_WRITE)
    with contextlib.suppress(OSError):  # a kernel without transparent huge pages
        sys.madvise(address, length, sys.MADV_NOHUGEPAGE)
    sys.memset(address, 1, 1)
    return address


class _Fresh:
    """Go through fresh pages; give them all back, outside the timed part, when none is left."""

    def __init__(self) -> None:
        self.start = own_range(FRESH)
        self.next = self.start

    def ready(self) -> None:
        self.next += sys.PAGE
        if self.next >= self.start + FRESH:
            sys.madvise(self.start + sys.PAGE, FRESH - sys.PAGE, sys.MADV_DONTNEED)
            self.next = self.start + sys.PAGE

    def work(self) -> None:
        sys.memset(self.next, 1, 1)


def _fault() -> BystanderOperation:
    fresh = _Fresh()
    return BystanderOperation(fresh.work, fresh.ready)


def _mmap() -> BystanderOperation:
    return BystanderOperation(lambda: sys.munmap(sys.mmap(sys.PAGE), sys.PAGE))


def _madvise() -> BystanderOperation:
    address = own_range(sys.PAGE)
    return BystanderOperation(lambda: sys.madvise(address, sys.PAGE, sys.MADV_DONTNEED))


def _mprotect() -> BystanderOperation:
    address = own_range(sys.PAGE)

    def work() -> None:
        sys.mprotect(address, sys.PAGE, sys.PROT_READ)
        sys.mprotect(address, sys.PAGE, sys.PROT_READ | sys.PROT_WRITE)

    return BystanderOperation(work)


def _clone() -> BystanderOperation:
    def work() -> None:
        stack = sys.mmap(STACK)
        sys.mprotect(stack, sys.PAGE, sys.PROT_NONE)
        sys.munmap(stack, STACK)

    return BystanderOperation(work)


_INSIDE: dict[str, Callable[[], BystanderOperation]] = {
    "fault": _fault,
    "mmap": _mmap,
    "madvise": _madvise,
    "mprotect": _mprotect,
    "clone": _clone,
}


def inside(name: str) -> BystanderOperation:
    """Return the operation of a bystander that is a thread of the measured process."""
    return _INSIDE[name]()


def foreign(name: str, pid: int, probe: int) -> BystanderOperation:
    """Return the operation of a bystander that looks at process `pid` from outside.

    `probe` is the address of a present page of that process. Raises OSError for a file of /proc
    that can't be read here (smaps_rollup before 4.14).
    """
    if name in PROC_FILES:
        return _proc(f"/proc/{pid}/{PROC_FILES[name]}")
    return _gup(pid, probe)


def _proc(path: str) -> BystanderOperation:
    os.close(os.open(path, os.O_RDONLY))  # later a file that is missing means a process that ended

    def work() -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            while os.read(fd, READ):
                pass
        finally:
            os.close(fd)

    return BystanderOperation(work)


def _gup(pid: int, probe: int) -> BystanderOperation:
    byte = ctypes.create_string_buffer(1)
    local = (sys.iovec * 1)(sys.iovec(ctypes.addressof(byte), 1))
    remote = (sys.iovec * 1)(sys.iovec(probe, 1))
    return BystanderOperation(lambda: sys.read_remote(pid, remote, 1, local))


def loop(
    operation: BystanderOperation, period_ns: int, stopped: Callable[[], bool]
) -> MeasuredSamples:
    """Do the operation once a period until `stopped`; a process that is gone ends it too.

    Any other OSError is raised: a bystander that can't do its work must not look undisturbed.
    """
    clock, samples = time.monotonic_ns, MeasuredSamples()
    ready, work = operation.ready, operation.work
    sys.prctl(sys.PR_SET_TIMERSLACK, 1)
    while not stopped():
        ready()
        begin = clock()
        try:
            work()
        except (ProcessLookupError, FileNotFoundError):
            break
        end = clock()
        samples.begin_ns.append(begin)
        samples.took_ns.append(end - begin)
        if begin + period_ns > end:
            time.sleep((begin + period_ns - end) / 1e9)
    return samples
