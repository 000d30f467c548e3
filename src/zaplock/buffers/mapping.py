"""A mapping of one's own that numpy arrays stand on, and that goes without a stall.

An `mmap.mmap` is almost all of it: CPython counts the buffers that arrays export from it, refuses
to close it under them, and unmaps it without the GIL when the last one goes. What is added is the
zap before that unmap. So any array, slice, memoryview or tensor made from it keeps it alive, and
whichever of them is dropped last pays for the release, in its own thread or in the background.

The length is rounded up to 2 MiB from there on: the kernel then aligns the mapping (6.7), huge
pages fit, and moving it to another address moves whole page-table pages.
"""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress
from typing import Any

from zaplock.errors import UserError
from zaplock.release import ReleaseError, release_soon
from zaplock.release import syscalls as calls
from zaplock.release.pace import DEFAULT_BOUND_NS, Pace
from zaplock.release.pinned import address_of
from zaplock.release.vmas import require_mapped
from zaplock.release.zap import zap

MAP_HUGETLB = 0x40000
HUGE_KINDS = (None, "thp", "never", "hugetlb")


class MappingError(UserError, ValueError):
    """Report an array or mapping that can't be made as asked."""


class NoMemoryError(UserError, MemoryError):
    """Report that the kernel refused the memory."""


class Mapping(mmap.mmap):
    """Private anonymous memory of `length` bytes, rounded up to whole pages; zero until written.

    `asked` is `length` as it was asked for, `address` where the memory is at this moment.
    `huge` is "thp" (transparent huge pages wanted), "never", "hugetlb" (the reserved pool) or None
    (as the system is set). `name` shows in /proc/PID/maps where the kernel can (5.17,
    CONFIG_ANON_VMA_NAME); `named` tells whether it does. `background` lets the worker of
    `release_soon` do the release. Raises MappingError (a ValueError) for bad arguments,
    NoMemoryError (a MemoryError) for what can't be had.
    """

    asked: int = 0
    huge: str | None = None
    max_stall_ns: int = DEFAULT_BOUND_NS
    background: bool = False
    named: bool = False

    def __new__(
        cls,
        length: int,
        *,
        huge: str | None = None,
        name: str | None = None,
        max_stall_ns: int = DEFAULT_BOUND_NS,
        background: bool = False,
    ) -> Mapping:
        """Map the memory."""
        Pace(max_stall_ns)
        if huge not in HUGE_KINDS:
            raise MappingError(f"huge={huge!r} must be one of {', '.join(map(repr, HUGE_KINDS))}")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (MAP_HUGETLB if huge == "hugetlb" else 0)
        try:
            self = super().__new__(cls, -1, rounded(length, huge), flags=flags)
        except (OSError, OverflowError) as error:
            raise _refusal(length, huge, error) from None
        self.asked = length
        self.huge, self.max_stall_ns, self.background = huge, max_stall_ns, background
        if huge in ("thp", "never"):
            advice = calls.MADV_HUGEPAGE if huge == "thp" else calls.MADV_NOHUGEPAGE
            calls.madvise(self.address, len(self), advice)  # without THP there is nothing to choose
        self.named = name is not None and not calls.name_range(self.address, len(self), name)
        return self

    def __init__(self, *_arguments: object, **_options: object) -> None:
        super().__init__()

    @property
    def address(self) -> int:
        """Return where the memory begins: asked each time, so that it is never out of date."""
        if self.closed:
            raise MappingError("this Mapping is closed: it has no address any more")
        return address_of(self)

    def resize(self, newsize: int) -> None:
        """Refuse: the arrays on a mapping, its alignment and its huge pages go by its size."""
        raise MappingError(
            f"a Mapping can't be resized to {newsize}: zaplock.buffers.resize moves an array's "
            "content to a new one"
        )

    def __del__(self) -> None:
        """Zap, so that the unmap which follows finds no pages (an exit does both)."""
        if sys.is_finalizing() or self.closed:
            return
        if self.background:
            self.background = False
            release_soon(self, max_stall_ns=self.max_stall_ns)
        else:
            self._empty()

    def _empty(self) -> None:
        """Give the pages back; where that can't be done, the unmap does it, with a stall."""
        start = self.address
        end = start + len(self)
        with suppress(ReleaseError):
            zap(start, end, require_mapped(start, end), Pace(self.max_stall_ns))

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Mapping can't be pickled: pickle the array on it, which copies its content"
        )


def rounded(length: int, huge: str | None) -> int:
    """Return the bytes that are mapped for `length` bytes."""
    unit = calls.HUGE if length >= calls.HUGE or huge == "hugetlb" else calls.PAGE
    return max(-(-length // unit) * unit, unit)


def _refusal(length: int, huge: str | None, error: Exception) -> NoMemoryError:
    if huge == "hugetlb":
        return NoMemoryError(
            f"{length} bytes of hugetlb pages can't be mapped ({error}): reserve them with "
            "vm.nr_hugepages, or take huge='thp'"
        )
    return NoMemoryError(f"{length} bytes can't be mapped ({error}): ask for less")
