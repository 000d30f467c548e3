"""Calls of 32-bit programs (i386), read as the 64-bit calls that they are under other numbers.

`int 0x80`, `sysenter` and 32-bit `syscall` have numbers, registers and structures of their own, and
four kinds of calls that the 64-bit ones lack: mmap in one structure, mmap by pages, the calls of
System V behind `ipc`, and ids of 16 bits. All that is told of them here is in 64-bit terms, so
nobody behind has to know.

Source: arch/x86/entry/syscalls/syscall_32.tbl, ipc(2), mmap2(2).
"""

from __future__ import annotations

import struct

from zaplock.model import flags as f
from zaplock.programs.ptrace import Registers, read_memory

_OLD_MMAP, _IPC, _MMAP2 = 90, 117, 192
NUMBERS = {
    2: "fork", 5: "open", 6: "close", 8: "creat", 11: "execve", 23: "setuid", 26: "ptrace",
    41: "dup", 45: "brk", 54: "ioctl", 55: "fcntl", 63: "dup2", 70: "setreuid", 75: "setrlimit",
    _OLD_MMAP: "mmap", 91: "munmap", _IPC: "ipc", 120: "clone", 125: "mprotect", 136: "personality",
    144: "msync", 150: "mlock", 151: "munlock", 152: "mlockall", 153: "munlockall", 163: "mremap",
    164: "setresuid", 172: "prctl", 185: "capset", 190: "vfork", _MMAP2: "mmap", 203: "setreuid",
    208: "setresuid", 213: "setuid", 218: "mincore", 219: "madvise", 221: "fcntl",
    245: "io_setup", 246: "io_destroy", 257: "remap_file_pages", 274: "mbind", 295: "openat",
    310: "unshare", 330: "dup3", 340: "prlimit64", 346: "setns", 354: "seccomp",
    356: "memfd_create", 358: "execveat", 374: "userfaultfd", 376: "mlock2", 380: "pkey_mprotect",
    381: "pkey_alloc", 382: "pkey_free",
    395: "shmget", 396: "shmctl", 397: "shmat", 398: "shmdt", 425: "io_uring_setup", 435: "clone3",
    436: "close_range", 437: "openat2", 440: "process_madvise", 450: "set_mempolicy_home_node",
    453: "map_shadow_stack", 462: "mseal",
}  # fmt: skip
"""The calls of `spelling` by the numbers of i386; ipc is four of them."""
BY_COMMAND = (54, 55, 221)
"""ioctl, fcntl, fcntl64: which of them are recorded, their second argument tells."""

_OF_IPC = {21: "shmat", 22: "shmdt", 23: "shmget", 24: "shmctl"}
_WORD = 0xFFFF_FFFF


def decoded(tid: int, registers: Registers) -> tuple[str, tuple[int, ...], int] | None:
    """Return the name of a 32-bit call, its arguments, and where it puts what it has attached.

    The last is 0 for all but an shmat behind ipc, which returns 0. None for calls that no recording
    has.
    """
    number, arguments = registers.number & _WORD, registers.narrow_arguments
    name = NUMBERS.get(number, "")
    if number == _MMAP2:
        return name, (*arguments[:5], arguments[5] << f.PAGE_SHIFT), 0
    if number == _OLD_MMAP:
        held = read_memory(tid, arguments[0], 24)
        return (name, struct.unpack("<6I", held), 0) if len(held) == 24 else None
    if number == _IPC:
        return _of_ipc(arguments)
    return (name, arguments, 0) if name else None


def _of_ipc(arguments: tuple[int, ...]) -> tuple[str, tuple[int, ...], int] | None:
    """Read call, first, second, third, pointer in the order of the call that they stand for."""
    call, first, second, third, pointer = arguments[:5]
    name = _OF_IPC.get(call & 0xFFFF)
    if name == "shmat":  # version 1 is of another system's programs: EINVAL
        return None if call >> 16 == 1 else (name, (first, pointer, second, 0, 0, 0), third)
    if name == "shmdt":
        return name, (pointer, 0, 0, 0, 0, 0), 0
    return (name, (first, second, third, 0, 0, 0), 0) if name else None


def attached(tid: int, where: int) -> int | None:
    """Return what an shmat behind ipc has put where it was told to; None where it can't be read."""
    held = read_memory(tid, where, 4)
    return struct.unpack("<I", held)[0] if len(held) == 4 else None
