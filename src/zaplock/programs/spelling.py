"""Write a stopped thread's call as strace would.

Numbers stay numbers; only what lies behind a pointer or a descriptor is spelled out.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Callable

from zaplock.programs.ptrace import read_memory as _read
from zaplock.programs.text import CONSTANTS, LIMITS
from zaplock.system_calls import SYSTEM_CALLS
from zaplock.untrusted_names import read_text

CHANGES_PRIVILEGES = ("setuid", "setreuid", "setresuid", "capset", "unshare", "setns")
PLAIN = (
    "mmap", "mprotect", "munmap", "brk", "mremap", "msync", "mincore", "madvise", "shmget", "shmat",
    "shmdt", "shmctl", "dup", "dup2", "dup3", "close", "close_range", "io_uring_setup", "mlock",
    "munlock", "mlockall", "munlockall",
    "remap_file_pages", "mlock2", "pkey_mprotect", "pkey_alloc", "pkey_free", "mseal",
    "io_destroy", "personality", "arch_prctl",
    "map_shadow_stack", "fork", "vfork", "userfaultfd", "set_mempolicy_home_node", "seccomp",
    "ptrace", *CHANGES_PRIVILEGES,
)  # fmt: skip
"""Calls that the replay reads as plain numbers."""
SPELLED = (
    "clone", "clone3", "io_setup", "execve", "execveat", "mbind", "open", "openat", "openat2",
    "creat",
    "memfd_create", "prctl", "setrlimit", "prlimit64", "process_madvise",
)  # fmt: skip
COMMANDS = {
    0xAA00: "USERFAULTFD_IOC_NEW", 0xC020_AA00: "UFFDIO_REGISTER", 0x8010_AA01: "UFFDIO_UNREGISTER",
    0: "F_DUPFD", 1030: "F_DUPFD_CLOEXEC", 1033: "F_ADD_SEALS",
}  # fmt: skip
"""What is seen of ioctl (what decides which ranges a userfaultfd watches) and of fcntl."""
NUMBERS = {name: SYSTEM_CALLS[name].number for name in (*PLAIN, *SPELLED)}
_ACCESS = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")


def call_text(tid: int, name: str, arguments: tuple[int, ...], *, is_narrow: bool = False) -> str:
    """Write a call that a thread is about to make; `is_narrow`: a 32-bit one."""
    spell = (_SPELL_NARROW if is_narrow else _SPELL).get(name)
    told = (
        spell(tid, arguments)
        if spell
        else list(map(hex, arguments[: len(SYSTEM_CALLS[name].arguments)]))
    )
    if name == "mmap":
        told[4] = _descriptor(tid, arguments[4])
    return f"{name}({', '.join(told)})"


def is_recorded(name: str, arguments: tuple[int, ...]) -> bool:
    """Return whether a call is one of those that are recorded."""
    if name in BY_COMMAND:
        return arguments[1] & 0xFFFF_FFFF in COMMANDS
    return name in NUMBERS


BY_COMMAND = ("ioctl", "fcntl")

OPENS = ("userfaultfd", "open", "openat", "openat2", "creat", "memfd_create", "dup", "dup2", "dup3")


def result_text(tid: int, name: str, result: int) -> str:
    """Write what a call returned."""
    if (name in OPENS and result >= 0) or (name in ("ioctl", "fcntl") and result > 0):
        return _descriptor(tid, result)
    if -4096 < result < 0:
        code = errno.errorcode.get(-result, "")
        return f"-1 {code} ({os.strerror(-result)})" if code else str(result)
    return hex(result % (1 << 64)) if name in ("mmap", "mremap", "brk", "shmat") else str(result)


def _descriptor(tid: int, fd: int) -> str:
    number = struct.unpack("<i", struct.pack("<I", fd & 0xFFFF_FFFF))[0]
    if number < 0:
        return str(number)
    try:
        path = os.readlink(f"/proc/{tid}/fd/{number}")
        if path == "anon_inode:[pidfd]":  # as strace -yy has it
            told = read_text(f"/proc/{tid}/fdinfo/{number}").partition("\nPid:")[2].split()[:1]
            path = f"pid:{told[0]}" if told else path
        elif path.startswith("/") and os.path.isdir(f"/proc/{tid}/fd/{number}"):
            path += "/"
        return f"{number}<{_UNCLEAR.sub(_octal, path)}>"
    except OSError:
        return str(number)


_UNCLEAR = re.compile(r'[\x00-\x1f\\<>"]')


def _octal(character: re.Match[str]) -> str:
    return f"\\{ord(character[0]):03o}"


def _string(tid: int, address: int) -> str:
    """Read a string of at most 4096 bytes, page by page, as strace would write it."""
    text = b""
    while address and b"\0" not in text and len(text) < 4096:
        part = _read(tid, address + len(text), 4096 - (address + len(text)) % 4096)
        if not part:
            break
        text += part
    shown = text.partition(b"\0")[0].decode(errors="replace")
    return '"' + shown.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _io_setup(tid: int, a: tuple[int, ...], word: str = "<Q") -> list[str]:
    """Write a new context, which is where its ring is mapped; before the call it is 0."""
    size = struct.calcsize(word)
    held = _read(tid, a[1], size)
    context = f"[{struct.unpack(word, held)[0]:#x}]" if len(held) == size else hex(a[1])
    return [str(a[0]), context]


def _clone(tid: int, a: tuple[int, ...]) -> list[str]:
    return [f"flags={a[0]:#x}"]


def _clone3(tid: int, a: tuple[int, ...]) -> list[str]:
    held = _read(tid, a[0], 8)
    return [f"{{flags={struct.unpack('<Q', held)[0] if len(held) == 8 else 0:#x}}}", str(a[1])]


def _openat(tid: int, a: tuple[int, ...]) -> list[str]:
    return [hex(a[0]), _string(tid, a[1]), _ACCESS[a[2] & 3]]


def _openat2(tid: int, a: tuple[int, ...]) -> list[str]:
    """Write how a file is opened as far as it decides about mappings."""
    held = _read(tid, a[2], 8)
    flags = struct.unpack("<Q", held)[0] if len(held) == 8 else 0
    return [hex(a[0]), _string(tid, a[1]), f"{{flags={_ACCESS[flags & 3]}}}", str(a[3])]


def _prctl(tid: int, a: tuple[int, ...]) -> list[str]:
    told = [hex(value) for value in a[:5]]
    if a[0] == CONSTANTS["PR_SET_VMA"] and a[4]:
        told[4] = _string(tid, a[4])
    return told


def _limit(tid: int, address: int, pair: str = "<QQ") -> str:
    size = struct.calcsize(pair)
    held = _read(tid, address, size) if address else b""
    if len(held) < size:
        return hex(address) if address else "NULL"
    soft, hard = (
        _UNLIMITED if pair == "<II" and one == _NARROW_UNLIMITED else one
        for one in struct.unpack(pair, held)
    )
    return f"{{rlim_cur={soft}, rlim_max={hard}}}"


_UNLIMITED, _NARROW_UNLIMITED = (1 << 64) - 1, (1 << 32) - 1


def _resource(number: int) -> str:
    return f"RLIMIT_{LIMITS[number].upper()}" if number in LIMITS else str(number)


def _prlimit64(tid: int, a: tuple[int, ...]) -> list[str]:
    """Write whose limit is meant as 0 where it is the caller's own process, whatever namespace."""
    told = read_text(f"/proc/{tid}/status")
    own = (told.partition(f"\n{key}:")[2].partition("\n")[0].split() for key in ("NSpid", "NStgid"))
    return [
        "0" if any(ids[-1:] == [str(a[0])] for ids in own) else str(a[0]),
        _resource(a[1]),
        _limit(tid, a[2]),
        hex(a[3]),
    ]


def _process_madvise(tid: int, a: tuple[int, ...], pair: str = "<QQ") -> list[str]:
    count, size = min(a[2], 1024), struct.calcsize(pair)
    held = _read(tid, a[1], size * count)
    pairs = struct.iter_unpack(pair, held[: len(held) // size * size])
    told = ", ".join(f"{{iov_base={base:#x}, iov_len={length}}}" for base, length in pairs)
    return [_descriptor(tid, a[0]), f"[{told}]", str(a[2]), str(a[3]), str(a[4])]


def _ioctl(tid: int, a: tuple[int, ...]) -> list[str]:
    """Write what a userfaultfd is to watch, or no longer."""
    held = _read(tid, a[2], 24)
    told = hex(a[2])
    if len(held) == 24:
        start, length, mode = struct.unpack("<3Q", held)
        told = f"{{range={{start={start:#x}, len={length:#x}}}, mode={mode:#x}}}"
    return [_descriptor(tid, a[0]), COMMANDS.get(a[1] & 0xFFFF_FFFF, hex(a[1])), told]


def _fcntl(tid: int, a: tuple[int, ...]) -> list[str]:
    command = a[1] & 0xFFFF_FFFF
    return [_descriptor(tid, a[0]), COMMANDS.get(command, hex(command)), hex(a[2])]


def _mbind(tid: int, a: tuple[int, ...]) -> list[str]:
    """Write the mask of nodes as its words, where it can be read."""
    bits = a[4] - 1
    told = [hex(value) for value in a[:6]]
    if a[3] and 0 < bits <= 1 << 15:
        length = (bits + 63) // 64 * 8
        held = _read(tid, a[3], length)
        if len(held) == length:
            words = (f"{word:#x}" for (word,) in struct.iter_unpack("<Q", held))
            told[3] = f"[{', '.join(words)}]"
    return told


_SPELL: dict[str, Callable[[int, tuple[int, ...]], list[str]]] = {
    "clone": _clone,
    "clone3": _clone3,
    "io_setup": _io_setup,
    "execve": lambda tid, a: [_string(tid, a[0])],
    "execveat": lambda tid, a: [hex(a[0]), _string(tid, a[1])],
    "open": lambda tid, a: [_string(tid, a[0]), _ACCESS[a[1] & 3]],
    "openat": _openat,
    "openat2": _openat2,
    "creat": lambda tid, a: [_string(tid, a[0]), "O_WRONLY"],
    "fcntl": _fcntl,
    "ioctl": _ioctl,
    "mbind": _mbind,
    "memfd_create": lambda tid, a: [_string(tid, a[0]), hex(a[1])],
    "prctl": _prctl,
    "setrlimit": lambda tid, a: [_resource(a[0]), _limit(tid, a[1])],
    "prlimit64": _prlimit64,
    "process_madvise": _process_madvise,
}
_SPELL_NARROW: dict[str, Callable[[int, tuple[int, ...]], list[str]]] = {
    **_SPELL,
    "io_setup": lambda tid, a: _io_setup(tid, a, "<I"),
    "setrlimit": lambda tid, a: [_resource(a[0]), _limit(tid, a[1], "<II")],
    "process_madvise": lambda tid, a: _process_madvise(tid, a, "<II"),
}
"""Where structures of 32-bit programs are others."""
