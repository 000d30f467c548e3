"""ptrace and seccomp, as far as recording a program's system calls needs them (x86-64 Linux).

A seccomp filter stops the traced threads at the calls of a list only; all others run at full speed.
Source: ptrace(2), seccomp(2); the filter's layout is struct sock_filter.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import struct
from typing import NamedTuple

CONT, GETREGS, SETREGS, DETACH, SYSCALL = 7, 12, 13, 17, 24
SEIZE, INTERRUPT, LISTEN, GET_SYSCALL_INFO = 0x4206, 0x4207, 0x4208, 0x420E
TRACEME = 0
ATTACHING = (TRACEME, 16, SEIZE)
"""PTRACE_TRACEME, PTRACE_ATTACH, PTRACE_SEIZE."""
GETEVENTMSG = 0x4201
EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_EXIT, EVENT_SECCOMP = 1, 2, 3, 4, 6, 7
EVENT_STOP = 128
_SYSGOOD, _EXITKILL = 1, 1 << 20
OPTIONS = (
    _SYSGOOD
    | _EXITKILL
    | sum(
        1 << event
        for event in (EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_EXIT, EVENT_SECCOMP)
    )
)
SYSCALL_STOP = 0x80 | 5
WALL = 0x4000_0000
SEEN, NARROW, X32 = 0x7A4C, 0x7A4D, 0x7A4E
"""The messages of EVENT_SECCOMP: a call to be recorded, a 32-bit one, one of x32.

Any other is of a filter that the program has set for a tracer of its own.
"""

X86_64, I386 = 0xC000003E, 0x40000003
X32_BIT = 0x4000_0000
"""In the numbers of x32's calls, which are 64-bit ones otherwise. Source: asm/unistd.h."""
_NUMBER, _ARCHITECTURE, _SECOND_ARGUMENT = 0, 4, 24  # offsets in struct seccomp_data
_RET_TRACE, _RET_ALLOW = 0x7FF0_0000, 0x7FFF_0000
_LOAD, _JUMP_EQUAL, _JUMP_FROM, _RETURN = 0x20, 0x15, 0x35, 0x06
_PR_SET_SECCOMP, _MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 22, 2, 38

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]


class Registers(NamedTuple):
    """The number, arguments and result of the system call that a thread is in."""

    number: int
    arguments: tuple[int, ...]
    result: int
    narrow_arguments: tuple[int, ...]
    """What they are if the call is a 32-bit one."""


def ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    """Make a request. Raises ProcessLookupError where the thread is gone."""
    if _libc.ptrace(request, tid, address, data) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def registers(tid: int) -> Registers:
    """Read the registers of a stopped thread."""
    buffer = ctypes.create_string_buffer(27 * 8)
    ptrace(GETREGS, tid, 0, ctypes.addressof(buffer))
    words = struct.unpack("<27Q", buffer.raw)
    (_, _, _, _, rbp, rbx, _, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax) = words[:16]
    result = rax - (1 << 64) if rax >> 63 else rax
    narrow = tuple(word & 0xFFFF_FFFF for word in (rbx, rcx, rdx, rsi, rdi, rbp))
    return Registers(orig_rax, (rdi, rsi, rdx, r10, r8, r9), result, narrow)


@functools.cache
def has_x32() -> bool:
    """Return whether this kernel has calls of x32; without, each of them is ENOSYS."""
    return int(_libc.syscall(X32_BIT | _GETPID)) > 0


_GETPID = 39


def read_memory(tid: int, address: int, length: int) -> bytes:
    """Read what a thread's process has at an address: less where there is less, or none."""
    try:
        with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(length)
    except (OSError, OverflowError, ValueError):
        return b""


def entered(tid: int) -> int | None:
    """Return the architecture of the call that a thread has stopped before, None behind one.

    Source: struct ptrace_syscall_info (5.3).
    """
    buffer = ctypes.create_string_buffer(8)
    ptrace(GET_SYSCALL_INFO, tid, len(buffer), ctypes.addressof(buffer))
    kind, architecture = struct.unpack("<B3xI", buffer.raw)
    return architecture if kind == _ENTRY else None


_ENTRY = 1


def let_go(tid: int) -> bool:
    """Trace a thread no longer, wherever it is; return whether it was still there."""
    number, options = 0, WALL | os.WNOHANG  # it may have stopped, and nobody has been told yet
    while True:
        try:
            known, status = os.waitpid(tid, options)
            if known and not os.WIFSTOPPED(status):
                return False
            is_signal = known and status >> 16 == 0 and os.WSTOPSIG(status) != SYSCALL_STOP
            number = os.WSTOPSIG(status) if is_signal else number
            ptrace(DETACH, tid, 0, number)
            return True
        except ChildProcessError:
            return False
        except ProcessLookupError:  # it runs
            with contextlib.suppress(ProcessLookupError):
                ptrace(INTERRUPT, tid)
            options = WALL


def skip(tid: int, error: int) -> None:
    """Let the call in which a thread has stopped never be made, and return an error."""
    buffer = ctypes.create_string_buffer(27 * 8)
    ptrace(GETREGS, tid, 0, ctypes.addressof(buffer))
    struct.pack_into("<q", buffer, _RAX * 8, -error)
    struct.pack_into("<q", buffer, _ORIG_RAX * 8, -1)
    ptrace(SETREGS, tid, 0, ctypes.addressof(buffer))


def set_first_argument(tid: int, value: int, *, is_narrow: bool) -> None:
    """Give a stopped thread another first argument than it has; `is_narrow`: in a 32-bit call."""
    buffer = ctypes.create_string_buffer(27 * 8)
    ptrace(GETREGS, tid, 0, ctypes.addressof(buffer))
    struct.pack_into("<Q", buffer, (_RBX if is_narrow else _RDI) * 8, value)
    ptrace(SETREGS, tid, 0, ctypes.addressof(buffer))


_RBX, _RAX, _RDI, _ORIG_RAX = 5, 10, 14, 15  # words of struct user_regs_struct


def event_message(tid: int) -> int:
    """Read what an event tells: the new process, or who a thread was before its execve."""
    value = ctypes.c_ulong()
    ptrace(GETEVENTMSG, tid, 0, ctypes.addressof(value))
    return value.value


class Stops(NamedTuple):
    """Which calls of one architecture stop a thread, by number, with which message.

    `by_command`: those that do so for some second arguments only, the `commands`.
    """

    numbers: list[int]
    by_command: tuple[int, ...]
    commands: list[int]
    message: int


def _lines_of(stops: Stops) -> list[bytes]:
    """Make the lines of a filter for one architecture: what is in no list goes on at once."""
    numbers, commands = stops.numbers, stops.commands
    rest = len(stops.by_command) + len(commands) + 2  # lines between the numbers and what traces
    found = [struct.pack("<HBBI", _LOAD, 0, 0, _NUMBER)]
    for k, number in enumerate(numbers):
        found.append(struct.pack("<HBBI", _JUMP_EQUAL, len(numbers) - k - 1 + rest, 0, number))
    last = len(stops.by_command) - 1
    for k, number in enumerate(stops.by_command):
        no = 0 if k < last else len(commands) + 1
        found.append(struct.pack("<HBBI", _JUMP_EQUAL, last - k, no, number))
    found.append(struct.pack("<HBBI", _LOAD, 0, 0, _SECOND_ARGUMENT))
    for k, command in enumerate(commands):
        found.append(struct.pack("<HBBI", _JUMP_EQUAL, len(commands) - k, 0, command))
    found.append(struct.pack("<HBBI", _RETURN, 0, 0, _RET_ALLOW))
    found.append(struct.pack("<HBBI", _RETURN, 0, 0, _RET_TRACE | stops.message))
    return found


def filter_of(wide: Stops, narrow: Stops) -> list[bytes]:
    """Make a filter of 64-bit and 32-bit calls. All calls of x32 stop: nobody reads them."""
    of_wide, of_narrow = _lines_of(wide), _lines_of(narrow)
    return [
        struct.pack("<HBBI", _LOAD, 0, 0, _ARCHITECTURE),
        struct.pack("<HBBI", _JUMP_EQUAL, 0, len(of_wide) + 3, X86_64),
        struct.pack("<HBBI", _LOAD, 0, 0, _NUMBER),
        struct.pack("<HBBI", _JUMP_FROM, 0, 1, X32_BIT),
        struct.pack("<HBBI", _RETURN, 0, 0, _RET_TRACE | X32),
        *of_wide,
        *of_narrow,
    ]


def stop_at(wide: Stops, narrow: Stops) -> None:
    """Let this thread, and all that it makes, stop for its tracer at these system calls."""
    lines = filter_of(wide, narrow)
    code = ctypes.create_string_buffer(b"".join(lines))
    program = ctypes.create_string_buffer(
        struct.pack("<HxxxxxxQ", len(lines), ctypes.addressof(code))
    )
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0):
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0):
            code_ = ctypes.get_errno()
            raise OSError(code_, os.strerror(code_))
