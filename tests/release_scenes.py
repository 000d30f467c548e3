"""Memory of one's own and of others, and a queue that nobody works on, for tests of release."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from zaplock.measure import syscalls as kernel
from zaplock.release import flush, in_background
from zaplock.release.claims import nothing_is_claimed
from zaplock.release.pinned import address_of

PAGE = mmap.PAGESIZE
MIB = 1 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
FAR = itertools.count(1 << 37, 1 << 26)
"""Addresses that are given to nobody who doesn't ask for them.

A kernel looks for room from its highest address down, or from a third of the way up.
"""


def private(length: int = 4 * MIB) -> mmap.mmap:
    made = mmap.mmap(-1, length, flags=PRIVATE)
    made[:] = b"x" * length
    return made


def others(nr: int = 16) -> list[np.ndarray[Any, Any]]:
    """Allocate as somebody else would: the kernel gives away whatever addresses are free."""
    return [np.full(MIB // 4, 7, np.uint8) for _ in range(nr)]


def mapped(length: int, address: int = 0) -> int:
    """Map memory by the system call alone, at an address where nothing is, and fill it."""
    start = kernel.mmap(length, flags=PRIVATE | bool(address) * 0x100000, address=address)
    ctypes.memset(start, ord("s"), length)
    return start


def far(length: int) -> int:
    """Map memory where nobody else is given any, so that its addresses stay free afterwards."""
    return mapped(length, next(FAR))


def marked(memory: int | mmap.mmap | np.ndarray[Any, Any], length: int = 0) -> int:
    """Mark memory, so that it is told from what others map there afterwards; return its address.

    It is left out of core dumps, as nothing else of this process is.
    """
    address = memory if isinstance(memory, int) else address_of(memory)
    length = length or memoryview(memory).nbytes  # type: ignore[arg-type]
    kernel.madvise(address, length, mmap.MADV_DONTDUMP)
    assert is_there(address, length)
    return address


def is_there(start: int, length: int) -> bool:
    """Tell whether anything that was marked is still mapped in a range."""
    first = last = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            first, last = (int(bound, 16) for bound in bounds.groups())
        elif "dd" in line.split() and first < start + length and start < last:
            return True  # a line of VmFlags
    return False


def new_worker() -> None:
    """Have a worker without a thread; the old one's ends."""
    flush()
    before, in_background._worker = in_background._worker, in_background._Worker(alone=False)
    before.pid = 0
    before.wake.put(None)


@contextmanager
def nobody_works() -> Iterator[None]:
    """Leave every job in the queue, until the next flush."""
    new_worker()
    with mock.patch.object(in_background._Worker, "has_thread", return_value=True):
        yield
    assert not nothing_is_claimed()
