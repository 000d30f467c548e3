"""The system calls of a release, through libc and ctypes, which drops the GIL around each.

The package stands alone (it depends on nothing of zaplock but its errors and the catalogue of
calls), so it has its own few calls. They return errno instead of raising, because most callers
decide by it. Constants are those of x86-64 and arm64 Linux
(include/uapi/asm-generic/mman-common.h).
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, ClassVar, Final

from zaplock.advice import MADV_DONTNEED as MADV_DONTNEED
from zaplock.advice import MADV_DONTNEED_LOCKED as MADV_DONTNEED_LOCKED
from zaplock.advice import MADV_HUGEPAGE as MADV_HUGEPAGE
from zaplock.advice import MADV_NOHUGEPAGE as MADV_NOHUGEPAGE
from zaplock.advice import MADV_POPULATE_WRITE as MADV_POPULATE_WRITE
from zaplock.system_calls import FAILED, bind

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
HUGE: Final = 2 << 20
"""Bytes under one page-table page of 4 KiB pages, and of a transparent huge page on x86-64."""

MS_ASYNC: Final = 1
MREMAP_MAYMOVE: Final = 1
MREMAP_FIXED: Final = 2
MREMAP_DONTUNMAP: Final = 4  # 5.7: e346b3813067
PR_SET_VMA: Final = 0x53564D41
PR_SET_VMA_ANON_NAME: Final = 0

_ARM: Final = os.uname().machine == "aarch64"
_NR_FUTEX: Final = 98 if _ARM else 202
_NR_GET_ROBUST_LIST: Final = 100 if _ARM else 274
_FUTEX_WAKE_OP_PRIVATE: Final = 5 | 128
_OR_NOTHING: Final = 2 << 28 | 1 << 24 | 0xFFF
"""FUTEX_OP(OR, 0, CMP_NE, -1), encoded: *address |= 0, atomically."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _bind(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_libc, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


_madvise = bind(_libc, "madvise")
_munmap = bind(_libc, "munmap")
_munlock = bind(_libc, "munlock")
_prctl = _bind("prctl", ctypes.c_int, ctypes.c_int, *[ctypes.c_ulong] * 3, ctypes.c_char_p)
_mremap = bind(_libc, "mremap")
_msync = bind(_libc, "msync")
_syscall = _bind("syscall", ctypes.c_long, *[ctypes.c_long] * 7)


class _Object(ctypes.Structure):
    """Dl_info."""

    _fields_: ClassVar = [
        ("file_name", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol_name", ctypes.c_char_p),
        ("symbol", ctypes.c_void_p),
    ]


_dladdr = _bind("dladdr", ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(_Object))


def madvise(address: int, length: int, advice: int) -> int:
    """Advise on a range; return 0 or the errno."""
    return ctypes.get_errno() if _madvise(address, length, advice) else 0


def munmap(address: int, length: int) -> int:
    """Unmap a range; return 0 or the errno."""
    return ctypes.get_errno() if _munmap(address, length) else 0


def munlock(address: int, length: int) -> int:
    """Undo mlock on a range; return 0 or the errno."""
    return ctypes.get_errno() if _munlock(address, length) else 0


def is_mapped(address: int, length: int) -> bool:
    """Tell whether a range has no hole, without a descriptor: an msync that starts nothing."""
    return not _msync(address, length, MS_ASYNC)


def write_nothing(address: int) -> int:
    """Have a page for writing by an atomic OR with 0 of its first word; return 0 or the errno.

    The kernel does it (FUTEX_WAKE_OP, 2.6.14), so memory that can't be written gives EFAULT, no
    signal, and a write of another thread is not lost. A waiter for that word may be woken for
    nothing, which futexes allow.
    """
    failed = _syscall(_NR_FUTEX, address, _FUTEX_WAKE_OP_PRIVATE, 0, 0, address, _OR_NOTHING)
    return ctypes.get_errno() if failed < 0 else 0


def mremap_in_place(address: int, length: int) -> int:
    """Ask to resize a range to the length that it has: does nothing; return 0 or the errno."""
    moved = _mremap(address, length, length, 0, None)
    return ctypes.get_errno() if moved == FAILED else 0


def robust_list_of(task: int) -> int:
    """Return where a thread's list of robust futexes begins (in its descriptor); 0 without one."""
    head, size = ctypes.c_void_p(), ctypes.c_size_t()
    failed = _syscall(
        _NR_GET_ROBUST_LIST, task, ctypes.addressof(head), ctypes.addressof(size), 0, 0, 0
    )
    return 0 if failed else head.value or 0


def object_at(address: int) -> str | None:
    """Return the file name of the loaded program or library that an address is part of, if any."""
    found = _Object()
    if not _dladdr(address, ctypes.byref(found)):
        return None
    return os.fsdecode(found.file_name or b"")


def move_pages_onto(source: int, length: int, target: int) -> int:
    """Move the pages of `source` onto the range at `target`; both stay mapped; 0 or the errno.

    mremap with MREMAP_DONTUNMAP: page-table pages move whole where both addresses have the same
    offset in 2 MiB, so the lock is held for write 0.2 ms for 2 GiB instead of 5 ms.
    """
    flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
    moved = _mremap(source, length, length, flags, target)
    return ctypes.get_errno() if moved == FAILED else 0


def name_range(address: int, length: int, name: str) -> int:
    """Name anonymous memory in /proc/PID/maps (5.17, CONFIG_ANON_VMA_NAME); 0 or the errno."""
    failed = _prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, address, length, name.encode())
    return ctypes.get_errno() if failed else 0
