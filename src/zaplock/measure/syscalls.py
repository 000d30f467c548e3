"""The system calls that an experiment needs, through libc and ctypes.

A call through `ctypes.CDLL` releases the GIL while it runs, so a thread that waits in the kernel
for the mmap_lock keeps no other Python thread from running: threads of one interpreter can be real
bystanders. What Python adds is the way in and out (about a microsecond a call) and, when several
threads return at once, a short wait for the GIL; `zaplock measure` takes the typical duration of
an idle phase away and reports the worst of that phase, so both can be seen.

Errors are OSError with the call's name. Constants are those of x86-64 and arm64 Linux.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

from zaplock import system_calls
from zaplock.advice import *  # noqa: F403  (MADV_*)
from zaplock.system_calls import FAILED

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
HUGE: Final = 2 << 20

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 0x01, 0x02, 0x10, 0x20
MAP_GROWSDOWN, MAP_NORESERVE, MAP_HUGETLB = 0x0100, 0x4000, 0x40000
MAP_FIXED_NOREPLACE = 0x100000
MLOCK_ONFAULT = 1
PR_SET_PDEATHSIG, PR_SET_TIMERSLACK, PR_SET_PTRACER = 1, 29, 0x59616D61
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3

_libc: Final = ctypes.CDLL(None, use_errno=True)
_VOID = ctypes.c_void_p
_SIZE = ctypes.c_size_t
_INT = ctypes.c_int


class iovec(ctypes.Structure):
    """One piece of memory for process_vm_readv."""

    _fields_ = [("base", _VOID), ("length", _SIZE)]


def bind(name: str, result: Any, *arguments: Any) -> Any:
    """Return libc's function with its types set; calling it releases the GIL."""
    function = getattr(_libc, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


_mmap, _munmap, _mremap, _madvise, _mprotect, _mlock2, _munlock, _brk = (
    system_calls.bind(_libc, name)
    for name in ("mmap", "munmap", "mremap", "madvise", "mprotect", "mlock2", "munlock", "brk")
)
_sbrk = bind("sbrk", _VOID, ctypes.c_ssize_t)
_prctl = bind("prctl", _INT, _INT, *[ctypes.c_ulong] * 4)
_mallopt = bind("mallopt", _INT, _INT, _INT)
_malloc = bind("malloc", _VOID, _SIZE)
_free = bind("free", None, _VOID)
_readv = bind(
    "process_vm_readv",
    ctypes.c_ssize_t,
    _INT,
    ctypes.POINTER(iovec),
    ctypes.c_ulong,
    ctypes.POINTER(iovec),
    ctypes.c_ulong,
    ctypes.c_ulong,
)
memset = bind("memset", _VOID, _VOID, _INT, _SIZE)
"""libc's memset(address, byte, length): the cheapest way to touch a page without the GIL."""


def _fail(name: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{name}: {os.strerror(number)}")


def mmap(
    length: int,
    prot: int = PROT_READ | PROT_WRITE,
    flags: int = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
    *,
    address: int = 0,
    fd: int = -1,
    offset: int = 0,
) -> int:
    """Map memory and return its address."""
    result = _mmap(address, length, prot, flags, fd, offset)
    if result == FAILED:
        raise _fail("mmap")
    return int(result)


def munmap(address: int, length: int) -> None:
    """Unmap a range."""
    if _munmap(address, length):
        raise _fail("munmap")


def mremap(address: int, length: int, new_length: int) -> None:
    """Shrink (or grow in place) a mapping."""
    if _mremap(address, length, new_length, 0, None) == FAILED:
        raise _fail("mremap")


def madvise(address: int, length: int, advice: int) -> None:
    """Advise on a range."""
    if _madvise(address, length, advice):
        raise _fail("madvise")


def mprotect(address: int, length: int, prot: int) -> None:
    """Change the protection of a range."""
    if _mprotect(address, length, prot):
        raise _fail("mprotect")


def mlock(address: int, length: int, *, onfault: bool = False) -> None:
    """Lock a range in memory, now or (`onfault`) page by page as it is touched."""
    if _mlock2(address, length, MLOCK_ONFAULT if onfault else 0):
        raise _fail("mlock2")


def munlock(address: int, length: int) -> None:
    """Unlock a range."""
    if _munlock(address, length):
        raise _fail("munlock")


def heap_end() -> int:
    """Return the program break as libc knows it."""
    return int(_sbrk(0))


def brk(address: int) -> None:
    """Move the program break."""
    if _brk(address):
        raise _fail("brk")


def keep_malloc_off_the_heap(spare: int = 64 << 20) -> None:
    """Give malloc `spare` bytes of heap ahead, so that it neither grows nor trims it for a while.

    Otherwise malloc could allocate above a heap that an experiment has grown and will cut off.
    """
    _mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    _mallopt(M_TOP_PAD, spare)
    _mallopt(M_MMAP_THRESHOLD, 1 << 20)
    _free(_malloc(1 << 19))  # the first request that does not fit makes it grow by the pad


def read_remote(pid: int, pieces: Any, nr_pieces: int, local: Any) -> int:
    """Call process_vm_readv: get_user_pages on another mm, under its mmap_lock for read."""
    copied = int(_readv(pid, local, 1, pieces, nr_pieces, 0))
    if copied < 0:
        raise _fail("process_vm_readv")
    return copied


def prctl(option: int, value: int) -> None:
    """Set a property of this thread; failures are ignored, since all uses are niceties."""
    _prctl(option, value, 0, 0, 0)
