"""Make every page of a range present, piece by piece, so that the filling stalls nobody.

MAP_POPULATE holds the mmap_lock for read for seconds, and everybody queues behind the first writer.
MADV_POPULATE_WRITE (5.14: 4ca9b3859dac) takes it for read as well, so it is cut into pieces and
rested after like a zap. Content that is there stays.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from zaplock.release import syscalls as sys
from zaplock.release.errors import ReleaseError
from zaplock.release.pace import DEFAULT_BOUND_NS, Pace, pieces

FIRST: Final = 1 << 20
PAGE_NS: Final = 2_500
"""What populating a page is taken to cost at most: some ten times as much as freeing it."""


def fill(start: int, end: int, max_stall_ns: int = DEFAULT_BOUND_NS) -> Pace:
    """Populate a page-aligned range for writing; return what the pace saw.

    Raises ReleaseError where the range is not writable memory, MemoryError where memory ran out.
    """
    pace = Pace(max_stall_ns, length=FIRST, page_ns=PAGE_NS)
    pieces(start, end, pace, _populate)
    return pace


def _populate(address: int, length: int) -> None:
    failed = sys.madvise(address, length, sys.MADV_POPULATE_WRITE)
    if failed == errno.EINVAL:  # a kernel before 5.14, or memory that can't be written
        failed = _touch(address, length)
        if failed:
            raise ReleaseError(
                f"{address:#x} to {address + length:#x} is not all writable memory: "
                "it can't be populated"
            )
    elif failed in (errno.ENOMEM, errno.EFAULT):
        raise MemoryError(f"{length} bytes at {address:#x} could not be populated")
    elif failed:
        raise ReleaseError(f"{address:#x} can't be populated: {os.strerror(failed)}")


def _touch(address: int, length: int) -> int:
    """Have each page for writing; return 0 or the errno of the first that can't be."""
    pages = range(address, address + length, sys.PAGE)
    return next((failed for failed in map(sys.write_nothing, pages) if failed), 0)
