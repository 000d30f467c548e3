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

from zaplock.measure import syscalls as sys
from zaplock.measure.bystanders import own_range
from zaplock.measure.calibration.clock import INNER, each, spent
from zaplock.measure.calibration.pages import mapped

NR_VMAS = 500
MS_ASYNC = 1

_INT, _VOID, _SIZE = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
_nothing = sys.bind("getpagesize", _INT)
_nothing_one = sys.bind("labs", _INT, _VOID)
_nothing_three = sys.bind("llabs", _INT, _VOID, _SIZE, _INT)
_getppid = sys.bind("getppid", _INT)
_brk = sys.bind("brk", _INT, _VOID)
_msync = sys.bind("msync", _INT, _VOID, _SIZE, _INT)


def plain() -> dict[str, float]:
    """Cost of an empty system call, one with the lock, one that also finds a VMA."""
    address, heap = own_range(sys.PAGE), sys.heap_end()
    calls = {
        "call": lambda: _nothing(),
        "call_one": lambda: _nothing_one(heap),
        "call_three": lambda: _nothing_three(address, sys.PAGE, MS_ASYNC),
        "getppid": lambda: _getppid(),
        "brk": lambda: _brk(heap),
        "msync": lambda: _msync(address, sys.PAGE, MS_ASYNC),
    }
    return {name: each(call) for name, call in calls.items()}


def _idle(address: int, length: int, number: int) -> None:
    """Do nothing, at the price of any wrapper in zaplock.measure.syscalls."""
    if _nothing_three(address, length, number) == -1:
        raise OSError


def _all_of(places: list[int], call: Callable[[int], object]) -> Callable[[], None]:
    def run() -> None:
        for place in places:
            call(place)

    return run


def vmas() -> dict[str, float]:
    """Cost per call of making, splitting, merging and unmapping VMAs one by one, and in one go."""
    room = 4 * sys.PAGE * NR_VMAS  # for each VMA its two pages and one on either side
    hole = sys.mmap(room, sys.PROT_NONE)
    sys.munmap(hole, room)
    places = [hole + (4 * i + 1) * sys.PAGE for i in range(NR_VMAS)]
    flags = sys.MAP_PRIVATE | sys.MAP_ANONYMOUS | sys.MAP_FIXED_NOREPLACE
    both, page = sys.PROT_READ | sys.PROT_WRITE, sys.PAGE
    make = _all_of(places, lambda at: sys.mmap(2 * page, both, flags, address=at))
    story = {
        "vma_loop": _all_of(places, lambda at: _idle(at, page, 0)),
        "vma_make": make,
        "vma_split": _all_of(places, lambda at: sys.madvise(at + page, page, sys.MADV_DONTFORK)),
        "vma_merge": _all_of(places, lambda at: sys.madvise(at + page, page, sys.MADV_DOFORK)),
        "vma_unmap": _all_of(places, lambda at: sys.munmap(at, 2 * page)),
        "vma_make_again": make,
        "vma_unmap_at_once": lambda: sys.munmap(hole, room),
    }
    tellings = [{name: spent(act) for name, act in story.items()} for _ in range(INNER)]
    return {name: min(told[name] for told in tellings) / NR_VMAS for name in story}


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
