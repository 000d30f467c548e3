"""perf events (perf_event_open(2)): the kernel takes samples with call stacks into rings we map.

What a trace instance cannot do, these can: a stack of 127 frames, of the kernel and of the program
at once; the program's registers; only the tasks of a process and of the children that it will have;
and what file a process maps as code, told when it happens. A ring belongs to one CPU; the events of
that CPU write into it. Everything ends with the descriptors, so also when the process is killed.

Records are decoded by `stack_samples`. Sources: include/uapi/linux/perf_event.h, and
kernel/events/core.c for which events may share a ring.

Not covered: 32-bit programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
import select
import struct
from collections.abc import Iterable
from dataclasses import dataclass

SOFTWARE, TRACEPOINT = 1, 2
CPU_CLOCK, DUMMY = 0, 9
TID, TIME, CALLCHAIN, REGS_USER, STACK_USER, IDENTIFIER = 2, 4, 32, 1 << 12, 1 << 13, 1 << 16
INHERIT, EXCLUDE_IDLE, MMAP, COMM, TASK, WATERMARK = (1 << bit for bit in (1, 7, 8, 9, 13, 14))
SAMPLE_ID_ALL, NO_KERNEL_CHAIN, NO_USER_CHAIN, MMAP2, COMM_EXEC, USE_CLOCKID = (
    1 << bit for bit in (18, 21, 22, 23, 24, 25)
)
DISABLED = 1
_ENABLE, _DISABLE, _SET_OUTPUT = 0x2400, 0x2401, 0x2405
_SET_FILTER, _ID = 0x40082406, 0x80082407
_CLOEXEC = 8
_NUMBERS = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "s390x": 331, "ppc64le": 319}
_STACK_POINTERS = {"x86_64": 7, "aarch64": 31}
"""The number of the stack pointer in arch/*/include/uapi/asm/perf_regs.h."""
_ATTRIBUTES = struct.Struct("=IIQQQQQIIQQQQIiQIHH")
_HEAD, _TAIL = 1024, 1032
"""Where a ring's first page has data_head and data_tail."""


PLAIN = IDENTIFIER | TID | TIME | CALLCHAIN


@dataclass(frozen=True, slots=True)
class Event:
    """What to sample: a kind and number of event, how often, what of it, and with which flags."""

    kind: int
    number: int
    period: int = 1
    flags: int = 0
    sample: int = PLAIN
    stack_bytes: int = 0
    """How much of the user stack is copied, with REGS_USER | STACK_USER in `sample`."""

    def attributes(self, watermark: int) -> bytes:
        """Lay it out as a struct perf_event_attr of version 5."""
        registers = 1 << _STACK_POINTERS[platform.machine()] if self.stack_bytes else 0
        return _ATTRIBUTES.pack(
            self.kind, _ATTRIBUTES.size, self.number, self.period, self.sample, 0,
            self.flags | DISABLED | WATERMARK | USE_CLOCKID, watermark, 0, 0, 0, 0, registers,
            self.stack_bytes, 1, 0, 0, 0, 0,
        )  # fmt: skip


def caller_can_be_had() -> bool:
    """Say whether the word at the program's stack pointer can be taken on this machine."""
    return platform.machine() == "x86_64"


def open_event(event: Event, tid: int, cpu: int, watermark: int) -> int:
    """Open an event of a thread (-1: of everybody) on a CPU; it begins switched off.

    Raises OSError as the kernel says, ENOSYS on a machine whose number is not known here.
    """
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    attributes = ctypes.create_string_buffer(event.attributes(watermark))
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.syscall(number, attributes, tid, cpu, -1, _CLOEXEC))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor


def why_not(error: OSError) -> str:
    """Say why the kernel gives no perf events, and the way out."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return (
            "perf events are forbidden here (kernel.perf_event_paranoid, or a container's seccomp "
            "profile): run as root, in a container with --privileged"
        )
    if error.errno == errno.EMFILE:
        return "there are too many files open for perf events: raise 'ulimit -n'"
    return f"this kernel gives no perf events ({error.strerror}): CONFIG_PERF_EVENTS"


class Ring:
    """The ring of one CPU and the events that write into it. Close it, or end the process."""

    def __init__(self, cpu: int, owner: Event, size: int) -> None:
        """Map a ring of `size` bytes (a power of two) for an event of everybody on that CPU."""
        self.cpu = cpu
        self._size = size
        self._files = [open_event(owner, -1, cpu, size // 4)]
        try:
            self._pages = mmap.mmap(self._files[0], mmap.PAGESIZE + size)
        except OSError:
            os.close(self._files[0])
            raise

    @property
    def file(self) -> int:
        """A descriptor that becomes readable when a quarter of the ring is full."""
        return self._files[0]

    def add(self, event: Event, tids: Iterable[int] = (-1,), condition: str = "") -> list[int]:
        """Let an event write into this ring too, for these threads; return the samples' ids.

        A thread that is gone by now is left out.
        """
        ids = []
        for tid in tids:
            try:
                file = open_event(event, tid, self.cpu, self._size // 4)
            except ProcessLookupError:
                continue
            self._files.append(file)
            fcntl.ioctl(file, _SET_OUTPUT, self._files[0])
            if condition:
                set_filter(file, condition)
            ids.append(_number(file))
        return ids

    def remove(self, ids: Iterable[int]) -> None:
        """End the events of these ids; the kernel gives no event a second condition."""
        wanted = set(ids)
        for file in [one for one in self._files[1:] if _number(one) in wanted]:
            self._files.remove(file)
            os.close(file)

    def enable(self) -> None:
        """Switch all its events on."""
        for file in self._files:
            fcntl.ioctl(file, _ENABLE, 0)

    def disable(self) -> None:
        """Switch all its events off."""
        for file in self._files:
            with contextlib.suppress(OSError):
                fcntl.ioctl(file, _DISABLE, 0)

    def drain(self) -> bytes:
        """Take whole records, as many as there are now."""
        head, tail = struct.unpack_from("=QQ", self._pages, _HEAD)
        if head == tail:
            return b""
        first, last = tail % self._size, head % self._size
        base = mmap.PAGESIZE
        if first < last:
            taken = self._pages[base + first : base + last]
        else:
            taken = self._pages[base + first : base + self._size] + self._pages[base : base + last]
        struct.pack_into("=Q", self._pages, _TAIL, head)
        return taken

    def close(self) -> None:
        """End its events. Twice does no harm."""
        if self._files:
            self._pages.close()
        for file in self._files:
            os.close(file)
        self._files = []


def _number(file: int) -> int:
    return int(struct.unpack("=Q", fcntl.ioctl(file, _ID, bytes(8)))[0])


def set_filter(file: int, condition: str) -> None:
    """Let samples of a tracepoint in only where a condition on its fields holds."""
    fcntl.ioctl(file, _SET_FILTER, condition.encode() + b"\0")


def allow_many_files() -> None:
    """Raise this process's limit of open files as far as it may be: an event is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def wait_for(rings: Iterable[Ring], seconds: float, or_for: int) -> None:
    """Sleep until a ring is a quarter full, `or_for` can be read, or so long."""
    poll = select.poll()
    poll.register(or_for, select.POLLIN)
    for ring in rings:
        poll.register(ring.file, select.POLLIN)
    poll.poll(seconds * 1000)


def online_cpus() -> list[int]:
    """List the CPUs that are on."""
    with open("/sys/devices/system/cpu/online") as file:
        return numbers(file.read())


def numbers(text: str) -> list[int]:
    """Read a list of ranges such as '0-3,6'.

    >>> numbers("0-3,6")
    [0, 1, 2, 3, 6]
    """
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
