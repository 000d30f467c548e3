"""Memory of one's own and of others, and a queue that nobody works on, for tests of release."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from zaplock.measure import syscalls as kernel
from zaplock.release import flush, in_background
from zaplock.release.claims import nothing_is_claimed

PAGE = mmap.PAGESIZE
MIB = 1 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


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
