"""The system calls of a release, through libc and ctypes, which drops the GIL around each.

The package stands alone (it depends on nothing of zaplock but its errors), so it has its own five
calls. They return errno instead of raising, because most callers decide by it. Constants are those
of x86-64 and arm64 Linux (include/uapi/asm-generic/mman-common.h).
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
HUGE: Final = 2 << 20
"""Bytes under one page-table page of 4 KiB pages, and of a transparent huge page on x86-64."""

MADV_DONTNEED: Final = 4
MADV_HUGEPAGE: Final = 14
MADV_NOHUGEPAGE: Final = 15
MADV_POPULATE_WRITE: Final = 23  # 5.14: 4ca9b3859dac
MADV_DONTNEED_LOCKED: Final = 24  # 5.18: 9457056ac426
MREMAP_MAYMOVE: Final = 1
MREMAP_FIXED: Final = 2
MREMAP_DONTUNMAP: Final = 4  # 5.7: e346b3813067
PR_SET_VMA: Final = 0x53564D41
PR_SET_VMA_ANON_NAME: Final = 0

_libc: Final = ctypes.CDLL(None, use_errno=True)
_FAILED: Final = 2**64 - 1


def _bind(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_libc, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


_madvise = _bind("madvise", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_munmap = _bind("munmap", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_munlock = _bind("munlock", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_prctl = _bind("prctl", ctypes.c_int, ctypes.c_int, *[ctypes.c_ulong] * 3, ctypes.c_char_p)
_mremap = _bind(
    "mremap",
    ctypes.c_void_p,
    ctypes.c_void_p,
    *[ctypes.c_size_t] * 2,
    ctypes.c_int,
    ctypes.c_void_p,
)


def madvise(address: int, length: int, advice: int) -> int:
    """Advise on a range; return 0 or the errno."""
    return ctypes.get_errno() if _madvise(address, length, advice) else 0


def munmap(address: int, length: int) -> int:
    """Unmap a range; return 0 or the errno."""
    return ctypes.get_errno() if _munmap(address, length) else 0


def munlock(address: int, length: int) -> int:
    """Undo mlock on a range; return 0 or the errno."""
    return ctypes.get_errno() if _munlock(address, length) else 0


def move_pages_onto(source: int, length: int, target: int) -> int:
    """Move the pages of `source` onto the range at `target`; both stay mapped; 0 or the errno.

    mremap with MREMAP_DONTUNMAP: page-table pages move whole where both addresses have the same
    offset in 2 MiB, so the lock is held for write 0.2 ms for 2 GiB instead of 5 ms.
    """
    flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
    moved = _mremap(source, length, length, flags, target)
    return ctypes.get_errno() if moved == _FAILED else 0


def name_range(address: int, length: int, name: str) -> int:
    """Name anonymous memory in /proc/PID/maps (5.17, CONFIG_ANON_VMA_NAME); 0 or the errno."""
    failed = _prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, address, length, name.encode())
    return ctypes.get_errno() if failed else 0
