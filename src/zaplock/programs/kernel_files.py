"""Whether code of the kernel's own files may be executed: pipes, sockets, eventfds, /proc, /sys.

No mount says so: it is their file systems' own (SB_I_NOEXEC), and more of them have it with newer
kernels. So the recorder asks the kernel that it runs on, once for each kind, by a file of its own.

Source: fs/exec.c path_noexec, mm/mmap.c do_mmap; 1ed95281c0c7 (6.17, anon_inode).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
from collections.abc import Callable
from functools import cache


def _pipe() -> int:
    reads, writes = os.pipe()
    os.close(writes)
    return reads


def _readable(path: str) -> Callable[[], int]:
    return lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC)


_OWN: dict[str, Callable[[], int]] = {
    "pipe:": _pipe,
    "socket:": lambda: socket.socket(socket.AF_UNIX).detach(),
    "anon_inode:[pidfd]": lambda: os.pidfd_open(os.getpid()),
    "anon_inode:": lambda: os.eventfd(0),
    "mnt:[": _readable("/proc/self/ns/mnt"),
    "net:[": _readable("/proc/self/ns/net"),
    "/proc/": _readable("/proc/self/maps"),
    "/sys/": _readable("/sys/kernel/mm/transparent_hugepage/enabled"),
}
"""How to open a file of one's own of the file system that links beginning so are of."""


def forbids_execution(path: str) -> bool:
    """Return whether the kernel's own file system of this link lets nothing be executed."""
    kind = next((prefix for prefix in _OWN if path.startswith(prefix)), "")
    return bool(kind) and _answer(kind)


@cache
def _answer(kind: str) -> bool:
    try:
        fd = _OWN[kind]()
    except OSError:
        return False
    try:
        prot = mmap.PROT_READ | mmap.PROT_EXEC
        at = _libc.mmap(None, mmap.PAGESIZE, prot, mmap.MAP_PRIVATE, fd, 0)
        if at == _FAILED:
            return ctypes.get_errno() == errno.EPERM
        _libc.munmap(at, mmap.PAGESIZE)
        return False
    finally:
        os.close(fd)


_libc = ctypes.CDLL(None, use_errno=True)  # mmap.mmap asks for the file's length first
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value
