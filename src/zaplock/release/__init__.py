"""`zaplock.release(buffer, length=None, *, max_stall_ns=5_000_000, unmap=True)` frees huge memory.

Nobody in the process is stalled by it: pages go in paced pieces. `buffer` is a numpy array, a
memoryview or another writable buffer, an `mmap.mmap`, a `SharedMemory`, or an address with its
`length` in bytes; `max_stall_ns` is how long anybody should have to wait at most; `unmap=False`
keeps the addresses. Returns a `Released`; raises ReleaseError, BusyError or ExportedError.

The package is a module that can be called. It also has `release_soon` (a worker does it; a future),
`release_async` (to be awaited), `flush` (wait for all) and `pending` (how many there are); `from
zaplock.release import release, release_soon, ...` works as well. It depends on nothing of zaplock
but its errors, and on nothing outside the standard library.

    pace      how much at a time: measured against a bound on anybody's wait
    zap       MADV_DONTNEED by pieces, VMA by VMA
    targets   what was handed over, how it is closed
    owners    what owns the memory under a view, and how that is shown
    pinned    memory held in place
    not_yours addresses that are known to be somebody else's
    claims    who is releasing what
    hold      claimed, pinned, worked on, let go
    now       release
    job       a release that waits for its turn, and its future
    soon      the background worker
"""

from __future__ import annotations

import sys
from types import ModuleType

from zaplock.release.errors import BusyError, ExportedError, ReleaseError
from zaplock.release.in_background import flush, pending, release_async, release_soon
from zaplock.release.in_caller import Released, release
from zaplock.release.pace import DEFAULT_BOUND_NS

__all__ = [
    "BusyError",
    "ExportedError",
    "ReleaseError",
    "Released",
    "flush",
    "pending",
    "release",
    "release_async",
    "release_soon",
]


class ReleaseModule(ModuleType):
    """A module that may be called as its main function; its parts are listed for type checkers."""

    flush = staticmethod(flush)
    pending = staticmethod(pending)
    release = staticmethod(release)
    release_async = staticmethod(release_async)
    release_soon = staticmethod(release_soon)

    def __call__(
        self,
        buffer: object,
        length: int | None = None,
        *,
        max_stall_ns: int = DEFAULT_BOUND_NS,
        unmap: bool = True,
    ) -> Released:
        """Free the memory of a buffer without stalling anybody: `zaplock.release.release`."""
        return release(buffer, length, max_stall_ns=max_stall_ns, unmap=unmap)


sys.modules[__name__].__class__ = ReleaseModule
