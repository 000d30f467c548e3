"""Experiments on pages: zap, free, tables, faults, populate, fork, mprotect, mlock.

Each returns CPU nanoseconds per page (per huge page, per table), and does its own clean-up. User
faults are made by a strided memoryview copy: one C loop that touches one byte of each page.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from statistics import median

from zaplock.experiment import page_of
from zaplock.measure import mappings, memory
from zaplock.measure import syscalls as sys
from zaplock.measure.calibration.clock import spent

MIB = 1 << 20
_HUGE_REPEAT = 3


@contextmanager
def mapped(
    length: int, backing: str, *, populated: bool = True
) -> Iterator[mappings.StudiedMapping]:
    """Give a mapping between guards; what is left of it goes afterwards."""
    mapping = mappings.map_range(length, backing)
    try:
        if populated:
            mappings.populate(mapping)
        yield mapping
    finally:
        sys.munmap(mapping.address, mapping.length)
        if mapping.fd >= 0:
            os.close(mapping.fd)


@contextmanager
def forked() -> Iterator[None]:
    """Have a child that shares every page while the block runs."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    os.close(read_end)
    try:
        yield
    finally:
        os.close(write_end)
        os.waitpid(child, 0)


def _bytes(mapping: mappings.StudiedMapping) -> memoryview:
    array = (ctypes.c_char * mapping.length).from_address(mapping.address)
    return memoryview(array).cast("B")


def write_touch(mapping: mappings.StudiedMapping, step: int) -> Callable[[], object]:
    """Return a call that writes one byte in each `step` of the mapping, from user mode."""
    view, ones = _bytes(mapping), b"\1" * (mapping.length // step)

    def touch() -> None:
        view[::step] = ones

    return touch


def read_touch(mapping: mappings.StudiedMapping, step: int) -> Callable[[], object]:
    """Return a call that reads one byte in each `step` of the mapping, from user mode."""
    view = _bytes(mapping)
    return lambda: bytes(view[::step])


def _munmap(length: int, backing: str, *, part: int, keeper: bool) -> int:
    """Unmap the first `part` bytes of a populated mapping, of which a child may keep every page."""
    with mapped(length, backing) as mapping, forked() if keeper else nullcontext():
        return spent(lambda: sys.munmap(mapping.address, part))


def unmap(length: int, backing: str, *, keeper: bool = False) -> float:
    """Cost of munmap per page: zap, free and the page tables' share.

    While a forked child keeps every page (`keeper`) no page is freed.
    """
    return _munmap(length, backing, part=length, keeper=keeper) / (length // page_of(backing))


def unmap_huge(length: int, backing: str, *, keeper: bool = False) -> float:
    """Cost of munmap per huge page, the call itself taken away.

    Huge pages are few: of 256 the call would be a fifth of what a page costs. It is taken from a
    munmap of one page, the caches as the making of all has left them. Each page is freed with 512
    struct pages, most of them in no cache, so that one munmap says little: of some the median.
    """
    page = page_of(backing)
    one = _munmap(length, backing, part=page, keeper=keeper)
    whole = median(
        _munmap(length, backing, part=length, keeper=keeper) for _ in range(_HUGE_REPEAT)
    )
    return max(0.0, (whole - one) / (length // page - 1))


def unmap_sparse(nr_tables: int) -> float:
    """Cost of munmap per page table that holds one zero page."""
    with mapped(nr_tables * sys.HUGE, "zero", populated=False) as mapping:
        read_touch(mapping, sys.HUGE)()
        took = spent(lambda: sys.munmap(mapping.address, mapping.length))
    return took / nr_tables


def fault(length: int, backing: str) -> float:
    """Cost of a user fault on a fresh page of this backing (file: write to a cached page)."""
    step = page_of(backing)
    with mapped(length, backing, populated=False) as mapping:
        if mapping.fd >= 0:
            os.posix_fallocate(mapping.fd, 0, length)
        touch = (read_touch if backing == "zero" else write_touch)(mapping, step)
        first, again = spent(touch), spent(touch)
    return (first - again) / (length // step)


def fault_reuse(length: int) -> float:
    """Cost of a write fault that finds its page alone again: its other owner, a child, has gone."""
    with mapped(length, "anonymous") as mapping:
        touch = write_touch(mapping, sys.PAGE)
        with forked():
            pass
        first, again = spent(touch), spent(touch)
    return (first - again) / (length // sys.PAGE)


def fault_copy(length: int) -> float:
    """Cost of a write fault on a page that a child shares: copy on write."""
    with mapped(length, "anonymous") as mapping:
        touch = write_touch(mapping, sys.PAGE)
        with forked():
            first, again = spent(touch), spent(touch)
    return (first - again) / (length // sys.PAGE)


def populate(length: int) -> float:
    """Cost of MADV_POPULATE_WRITE per page."""
    with mapped(length, "anonymous", populated=False) as mapping:
        took = spent(lambda: sys.madvise(mapping.address, length, sys.MADV_POPULATE_WRITE))
    return took / (length // sys.PAGE)


def fork(length: int) -> float:
    """Cost of fork per page: with the mapping populated, less without."""

    def took() -> int:
        def fork_once() -> None:
            if os.fork() == 0:
                os._exit(0)

        spent_ns = spent(fork_once)
        os.wait()
        return spent_ns

    without = took()
    with mapped(length, "anonymous"):
        return (took() - without) / (length // sys.PAGE)


def protect(length: int) -> float:
    """Cost of mprotect per page, to read-only."""
    with mapped(length, "anonymous") as mapping:
        took = spent(lambda: sys.mprotect(mapping.address, length, sys.PROT_READ))
    return took / (length // sys.PAGE)


def lock_pages(length: int) -> tuple[float, float]:
    """Cost of mlock and of munlock per present page."""
    with mapped(length, "anonymous") as mapping:
        locked = spent(lambda: sys.mlock(mapping.address, length))
        unlocked = spent(lambda: sys.munlock(mapping.address, length))
    return locked / (length // sys.PAGE), unlocked / (length // sys.PAGE)


def experiments(scale: int) -> dict[str, float]:
    """Run all experiments on `scale` MiB of pages; what can't be had here is left out."""
    length = scale * MIB
    raw = {
        "unmap_anonymous": unmap(8 * length, "anonymous"),
        "unmap_zero": unmap(32 * length, "zero"),
        "unmap_file": unmap(length, "file"),
        "zap_shared_anonymous": unmap(length, "anonymous", keeper=True),
        "unmap_table": unmap_sparse(1024),
        "fault_anonymous": fault(length, "anonymous"),
        "fault_zero": fault(length, "zero"),
        "fault_file": fault(length, "file"),
        "fault_reuse": fault_reuse(length // 4),
        "fault_copy": fault_copy(length // 4),
        "populate": populate(length),
        "fork_page": fork(length),
        "protect_page": protect(length),
    }
    raw |= _huge("thp", 8 * length) | _huge("hugetlb", _of_the_pool(8 * length))
    with suppress(OSError):  # RLIMIT_MEMLOCK: units that stay unmeasured, and say so
        raw["mlock_page"], raw["munlock_page"] = lock_pages(length // 4)
    return raw


def _of_the_pool(most: int) -> int:
    """Return how much of the pool can be mapped: of few pages the call is the larger part."""
    length = most
    while length > 64 * MIB and not memory.fits(length, "hugetlb"):
        length //= 2
    return length


def _huge(backing: str, length: int) -> dict[str, float]:
    """Run the experiments on huge pages; empty where there are none."""
    if backing == "hugetlb" and not memory.fits(length, backing):
        return {}
    try:
        return {
            f"unmap_{backing}": unmap_huge(length, backing),
            f"zap_shared_{backing}": unmap_huge(length, backing, keeper=True),
            f"fault_{backing}": fault(length // 4, backing),
        }
    except OSError:
        return {}
