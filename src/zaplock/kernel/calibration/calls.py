"""Experiments on single calls: system call, lock, VMA work, TLB flush, gup, /proc reader.

A call through ctypes costs as much as the work itself, so each figure is a difference to a call
that takes the same way but does less: a C function that does nothing, a system call that takes
no lock (getppid), one that takes the mmap_lock and leaves (brk to where it is), one that also
finds a VMA (msync of an anonymous page).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zaplock.kernel import syscalls as sys
from zaplock.kernel.bystanders import own_range
from zaplock.kernel.calibration.clock import each, spent
from zaplock.kernel.calibration.pages import mapped

NR_VMAS = 500
MS_ASYNC = 1

_INT, _VOID, _SIZE = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
_nothing = sys.bind("getpagesize", _INT)
_nothing_one = sys.bind("labs", ctypes.c_long, ctypes.c_long)
_getppid = sys.bind("getppid", _INT)
_brk = sys.bind("brk", _INT, _VOID)
_msync = sys.bind("msync", _INT, _VOID, _SIZE, _INT)


def plain() -> dict[str, float]:
    """Cost of an empty system call, one with the lock, one that also finds a VMA."""
    address, heap = own_range(sys.PAGE), sys.heap_end()
    calls = {
        "call": lambda: _nothing(),
        "call_one": lambda: _nothing_one(1),
        "call_three": lambda: sys.memset(address, 0, 0),
        "getppid": lambda: _getppid(),
        "brk": lambda: _brk(heap),
        "msync": lambda: _msync(address, sys.PAGE, MS_ASYNC),
    }
    return {name: each(call) for name, call in calls.items()}


def _pairs(nr_vmas: int) -> tuple[int, list[int]]:
    """Reserve room for `nr_vmas` VMAs of two pages with a page between them."""
    hole = sys.mmap(4 * sys.PAGE * nr_vmas, sys.PROT_NONE)
    sys.munmap(hole, 4 * sys.PAGE * nr_vmas)
    return hole, [hole + (4 * i + 1) * sys.PAGE for i in range(nr_vmas)]


def vmas() -> dict[str, float]:
    """Cost per call of making, splitting, merging and unmapping VMAs one by one, and in one go."""
    hole, places = _pairs(NR_VMAS)
    flags = sys.MAP_PRIVATE | sys.MAP_ANONYMOUS | sys.MAP_FIXED_NOREPLACE
    both = sys.PROT_READ | sys.PROT_WRITE

    def all_of(call: Callable[[int], object]) -> Callable[[], None]:
        def run() -> None:
            for place in places:
                call(place)

        return run

    make = all_of(lambda at: sys.mmap(2 * sys.PAGE, both, flags, address=at))
    split = all_of(lambda at: sys.madvise(at + sys.PAGE, sys.PAGE, sys.MADV_DONTFORK))
    merge = all_of(lambda at: sys.madvise(at + sys.PAGE, sys.PAGE, sys.MADV_DOFORK))
    unmap = all_of(lambda at: sys.munmap(at, 2 * sys.PAGE))
    loop = all_of(lambda at: sys.memset(at, 0, 0))
    raw = {"vma_loop": spent(loop), "vma_make": spent(make), "vma_split": spent(split)}
    raw |= {"vma_merge": spent(merge), "vma_unmap": spent(unmap)}
    make()
    raw["vma_unmap_at_once"] = spent(lambda: sys.munmap(hole, 4 * sys.PAGE * NR_VMAS))
    return {name: took / NR_VMAS for name, took in raw.items()}


def _toggle(address: int) -> Callable[[], None]:
    def pair() -> None:
        sys.mprotect(address, sys.PAGE, sys.PROT_READ)
        sys.mprotect(address, sys.PAGE, sys.PROT_READ | sys.PROT_WRITE)

    return pair


@contextmanager
def _runner(cpu: int) -> Iterator[None]:
    """Have another thread of this process run in user mode on `cpu` while the block runs."""
    stopped = threading.Event()
    length = 64 << 20
    buffer = sys.mmap(length)

    def burn() -> None:
        os.sched_setaffinity(0, {cpu})
        while not stopped.is_set():
            sys.memset(buffer, 1, length)  # long calls, so that it rarely asks for the GIL

    thread = threading.Thread(target=burn, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        sys.munmap(buffer, length)


def flushes() -> dict[str, float]:
    """Cost of a pair of mprotect calls on an absent page, a present one, and with a second CPU."""
    absent, present = own_range(sys.PAGE), own_range(sys.PAGE)
    sys.madvise(absent, sys.PAGE, sys.MADV_DONTNEED)
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus[:1])
    try:
        raw = {"protect_absent": each(_toggle(absent), 500)}
        raw["protect_present"] = each(_toggle(present), 500)
        if len(cpus) > 1:
            with _runner(cpus[1]):
                raw["protect_remote"] = each(_toggle(present), 500)
    finally:
        os.sched_setaffinity(0, cpus)
    return raw


def readers() -> dict[str, float]:
    """Cost of reading /proc/self/cmdline and /dev/null, and of gup per page."""
    raw = {}
    for name, path in (("read_cmdline", "/proc/self/cmdline"), ("read_null", "/dev/null")):
        fd = os.open(path, os.O_RDONLY)
        raw[name] = each(lambda fd=fd: os.pread(fd, 4096, 0))  # type: ignore[misc]
        os.close(fd)
    return raw | {"gup_page": _gup_page(256)}


def _gup_page(nr_pages: int) -> float:
    byte = ctypes.create_string_buffer(nr_pages)
    local = (sys.iovec * 1)(sys.iovec(ctypes.addressof(byte), nr_pages))
    with mapped(nr_pages * sys.PAGE, "anonymous") as mapping:
        pages = range(mapping.address, mapping.end, sys.PAGE)
        remote = (sys.iovec * nr_pages)(*(sys.iovec(page, 1) for page in pages))
        many = each(lambda: sys.read_remote(os.getpid(), remote, nr_pages, local), 50)
        one = each(lambda: sys.read_remote(os.getpid(), remote, 1, local), 50)
    return (many - one) / (nr_pages - 1)


def experiments() -> dict[str, float]:
    """Run all experiments."""
    return plain() | vmas() | flushes() | readers()
