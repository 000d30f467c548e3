"""ptrace and seccomp, as far as recording a program's system calls needs them (x86-64 Linux).

A seccomp filter stops the traced threads at the calls of a list only; all others run at full speed.
Source: ptrace(2), seccomp(2); the filter's layout is struct sock_filter.
"""

from __future__ import annotations

import contextlib
import ctypes
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
SEEN, NARROW = 0x7A4C, 0x7A4D
"""The messages of EVENT_SECCOMP: a call to be recorded, and a 32-bit one, whose numbers are others.

Any other is of a filter that the program has set for a tracer of its own.
"""

X86_64 = 0xC000003E
_NUMBER, _ARCHITECTURE, _SECOND_ARGUMENT = 0, 4, 24  # offsets in struct seccomp_data
_IOCTL, _FCNTL = 16, 72
_RET_TRACE, _RET_ALLOW = 0x7FF0_0000, 0x7FFF_0000
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_PR_SET_SECCOMP, _MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 22, 2, 38

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]


class Registers(NamedTuple):
    """The number, arguments and result of the system call that a thread is in."""

    number: int
    arguments: tuple[int, ...]
    result: int


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
    (_, _, _, _, _, _, _, r10, r9, r8, rax, _, rdx, rsi, rdi, orig_rax) = words[:16]
    result = rax - (1 << 64) if rax >> 63 else rax
    return Registers(orig_rax, (rdi, rsi, rdx, r10, r8, r9), result)


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


def set_first_argument(tid: int, value: int) -> None:
    """Give a stopped thread another first argument than it has."""
    buffer = ctypes.create_string_buffer(27 * 8)
    ptrace(GETREGS, tid, 0, ctypes.addressof(buffer))
    struct.pack_into("<Q", buffer, _RDI * 8, value)
    ptrace(SETREGS, tid, 0, ctypes.addressof(buffer))


_RAX, _RDI, _ORIG_RAX = 10, 14, 15  # words of struct user_regs_struct


def event_message(tid: int) -> int:
    """Read what an event tells: the new process, or who a thread was before its execve."""
    value = ctypes.c_ulong()
    ptrace(GETEVENTMSG, tid, 0, ctypes.addressof(value))
    return value.value


def filter_of(numbers: list[int], commands: list[int]) -> list[bytes]:
    """Make the filter's lines: what is in neither list goes on at once, but for 32-bit calls."""
    rest = len(commands) + 3  # lines from the comparison with ioctl to the return that allows
    found = [
        struct.pack("<HBBI", _LOAD, 0, 0, _ARCHITECTURE),
        struct.pack("<HBBI", _JUMP_EQUAL, 0, len(numbers) + rest + 3, X86_64),
        struct.pack("<HBBI", _LOAD, 0, 0, _NUMBER),
    ]
    for k, number in enumerate(numbers):
        found.append(struct.pack("<HBBI", _JUMP_EQUAL, len(numbers) - k + rest, 0, number))
    found.append(struct.pack("<HBBI", _JUMP_EQUAL, 1, 0, _IOCTL))
    found.append(struct.pack("<HBBI", _JUMP_EQUAL, 0, rest - 2, _FCNTL))
    found.append(struct.pack("<HBBI", _LOAD, 0, 0, _SECOND_ARGUMENT))
    for k, command in enumerate(commands):
        found.append(struct.pack("<HBBI", _JUMP_EQUAL, len(commands) - k, 0, command))
    found.append(struct.pack("<HBBI", _RETURN, 0, 0, _RET_ALLOW))
    found.append(struct.pack("<HBBI", _RETURN, 0, 0, _RET_TRACE | SEEN))
    found.append(struct.pack("<HBBI", _RETURN, 0, 0, _RET_TRACE | NARROW))
    return found


def stop_at(numbers: list[int], commands: list[int]) -> None:
    """Let this thread, and all that it makes, stop for its tracer at these system calls.

    `commands`: those of ioctl and fcntl, by their second argument.
    """
    lines = filter_of(numbers, commands)
    code = ctypes.create_string_buffer(b"".join(lines))
    program = ctypes.create_string_buffer(
        struct.pack("<HxxxxxxQ", len(lines), ctypes.addressof(code))
    )
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0):
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0):
            code_ = ctypes.get_errno()
            raise OSError(code_, os.strerror(code_))
