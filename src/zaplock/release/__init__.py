"""`zaplock.release(buffer)`: free, fill and move huge memory without stalling the process.

The package is callable, so that `import zaplock; zaplock.release(buffer)` is all that a program
needs; `from zaplock.release import release, release_soon, release_async, flush` gives the parts. It
depends on nothing of zaplock but its errors, and on nothing outside the standard library.

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
from typing import Any

from zaplock.release.errors import BusyError, ExportedError, ReleaseError
from zaplock.release.now import Released, release
from zaplock.release.soon import flush, pending, release_async, release_soon

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


class _Callable(ModuleType):
    """A module that may be called as its main function."""

    def __call__(self, *arguments: Any, **options: Any) -> Released:
        """Call `zaplock.release.release` with the same arguments."""
        return release(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
