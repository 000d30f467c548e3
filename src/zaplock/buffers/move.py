"""The content of one array moved into another, page table by page table.

mremap with MREMAP_FIXED first unmaps what lies at the new address. If it then fails, a hole is left
there, which may be another thread's mapping a moment later: nothing may be written to it, and it
may never be unmapped with the rest. So whatever can be known to fail is copied instead, and after
a failure all the same the mapping that has the hole is kept for ever.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache
from typing import TYPE_CHECKING, Any

from zaplock.buffers.mapping import NoMemoryError
from zaplock.release import syscalls as calls
from zaplock.release.owners import stands_on
from zaplock.release.pace import Pace, pieces
from zaplock.release.pinned import address_of
from zaplock.release.vmas import vmas_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

_kept: list[Any] = []
"""Mappings with a hole, which must not be unmapped."""


class PageMove:
    """The content of one mapping's first bytes on its way to a new array's, which is all zeroes.

    The whole pages of both must be the caller's alone.
    """

    def __init__(self, source: int, new: NDArray[Any], length: int, max_stall_ns: int) -> None:
        self._source, self._target = source, int(new.ctypes.data)
        self._keeper = stands_on(new)
        self._length, self._pages = length, -(-length // calls.PAGE) * calls.PAGE
        self._max_stall_ns = max_stall_ns
        self._done = self._begun = 0

    def run(self) -> None:
        """Move all pages; raise NoMemoryError where that fails (then `undo`)."""
        if _movable(self._source, self._pages):
            pieces(0, self._pages, Pace(self._max_stall_ns), self._move)
        else:
            pieces(0, self._pages, Pace(self._max_stall_ns), self._copy)

    def cut(self) -> None:
        """Have zeroes behind the last byte, where a shrink left some of what it cut off."""
        ctypes.memset(self._target + self._length, 0, self._pages - self._length)

    def undo(self) -> None:
        """Copy back what was moved: the source has its content again."""
        back = self._done
        if self._begun > back and _any_byte(self._target + back, self._begun - back):
            back = self._begun  # interrupted right after the call
        for offset in range(0, back, calls.HUGE):
            length = min(calls.HUGE, back - offset)
            ctypes.memmove(self._source + offset, self._target + offset, length)

    def _move(self, offset: int, length: int) -> None:
        self._begun = offset + length
        failed = calls.move_pages_onto(self._source + offset, length, self._target + offset)
        if failed:
            self._begun = offset
            _kept.append(self._keeper)
            raise NoMemoryError(
                f"{self._length} bytes can't be moved ({os.strerror(failed)}): "
                "the array is as it was"
            )
        self._done = offset + length

    def _copy(self, offset: int, length: int) -> None:
        ctypes.memmove(self._target + offset, self._source + offset, length)


def _any_byte(start: int, length: int) -> bool:
    return bool(ctypes.string_at(start, length).strip(b"\0"))


def _movable(start: int, length: int) -> bool:
    """Tell whether mremap moves this range: one VMA, of ordinary pages, and a kernel that does."""
    try:
        vmas = vmas_in(start, start + length)
    except OSError:
        return False
    one = len(vmas) == 1 and vmas[0].start <= start and start + length <= vmas[0].end
    return one and vmas[0].page_size == calls.PAGE and kernel_moves_pages()


@cache
def kernel_moves_pages() -> bool:
    """Try it on two pages of our own: MREMAP_DONTUNMAP came with 5.7."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    ours, other = (mmap.mmap(-1, calls.PAGE, flags=flags) for _ in range(2))
    ours[0] = 1
    return not calls.move_pages_onto(address_of(ours), calls.PAGE, address_of(other))
