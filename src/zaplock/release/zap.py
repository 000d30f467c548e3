"""Give the pages of a range back, piece by piece, leaving the addresses mapped.

MADV_DONTNEED inside one VMA takes that VMA's lock only on Linux 6.18 and later; before, and over
several VMAs, the mmap_lock for read. So a piece never crosses a VMA boundary. One call for the
whole range would be the fastest, and is not safe: whoever changes the VMA meanwhile (an mmap that
merges with it, mprotect, fork) waits for it with the mmap_lock held for write, and everybody
behind it.

process_madvise would take many pieces in one call, which the GIL would like; but on 6.18, once one
piece of the vector found its VMA contended, the call keeps the mmap_lock to the end of the vector
(seen here: stalls of half the whole time with two calls), so it is not used.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from zaplock.release import syscalls as sys
from zaplock.release.errors import ReleaseError
from zaplock.release.pace import Pace, pieces
from zaplock.release.vmas import MappedVma


def zap(start: int, end: int, vmas: list[MappedVma], pace: Pace) -> int:
    """Free the pages of a page-aligned range; return how many bytes could not be.

    Those are device memory, and the parts of a huge page of the pool at either end. What is read
    afterwards is zero in private anonymous memory; the file's content in a file mapping. Raises
    ReleaseError if the range is unmapped by somebody else meanwhile.
    """
    freed = 0

    def work(address: int, length: int) -> None:
        nonlocal freed
        _free(address, length)
        freed += length

    for vma in vmas:
        size = vma.page_size
        first = -(-max(start, vma.start) // size) * size
        with suppress(_CannotBeZapped):
            pieces(first, min(end, vma.end) // size * size, pace, work, size)
        if vma.end < end:
            pace.rest()
    return end - start - freed


class _CannotBeZapped(Exception):
    """MADV_DONTNEED is not for this VMA: PFN mappings, and huge pages of the pool before 5.18."""


def _free(address: int, length: int) -> None:
    failed = sys.madvise(address, length, sys.MADV_DONTNEED)
    if failed == errno.EINVAL:
        failed = _free_locked(address, length)
    if failed == errno.EINVAL:
        raise _CannotBeZapped
    if failed == errno.ENOMEM:
        raise ReleaseError(
            f"{address:#x} was unmapped by somebody else while it was being released: "
            "what remains is left alone"
        )
    if failed:
        raise ReleaseError(
            f"{address:#x} can't be emptied ({os.strerror(failed)}): what remains is left alone"
        )


def _free_locked(address: int, length: int) -> int:
    """Free mlocked pages: in one call since 5.18, before that unlocked first (a write hold)."""
    failed = sys.madvise(address, length, sys.MADV_DONTNEED_LOCKED)
    if failed == errno.EINVAL and not sys.munlock(address, length):
        failed = sys.madvise(address, length, sys.MADV_DONTNEED)
    return failed
