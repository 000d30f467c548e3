"""Memory that is being released: claimed and held in place from the first moment to the last.

    hold = MemoryHold()
    try:
        try:
            hold.take(thing, length)      claims the object, pins its memory, claims the range
            hold.work(pace, unmap=True)   zaps, unmaps
        finally:
            hold.let_go()
    finally:
        hold.let_go()

The second `let_go` is for an exception (from a signal handler) that strikes inside the first. A
hold that waits in a queue is the same hold: nobody can close, move or release the memory, from
the line that handed it over to the last page.
"""

from __future__ import annotations

import errno
from typing import Any

from zaplock.release import claims, targets
from zaplock.release import syscalls as calls
from zaplock.release.errors import ReleaseError
from zaplock.release.not_yours import refuse_known
from zaplock.release.pace import Pace
from zaplock.release.targets import Target
from zaplock.release.vmas import MappedVma, require_mapped
from zaplock.release.zap import zap


class MemoryHold:
    """A claim on an object, a pin on its memory and a claim on the range; empty when new.

    `intact` tells whether the memory is pinned and nothing of it was unmapped or let go.
    """

    def __init__(self) -> None:
        self._thing: Any = None
        self._owner, self._range = claims.of_owner(), claims.of_range()
        self.target = Target()
        self.intact = False

    def take(self, thing: Any, length: int | None) -> None:
        """Hold `thing`; raise BusyError, ExportedError or ReleaseError where that can't be."""
        self._thing = thing  # the identity that is claimed stays its own
        key = targets.identity(thing)
        if key:
            self._owner.take(key, key + 1, f"this {type(thing).__name__}")
        self.target = target = targets.choose(thing, length)
        target.take()
        self._range.take(target.start, target.end, f"{target.start:#x} to {target.end:#x}")
        self.intact = True

    def recheck(self) -> None:
        """Raise unless all is as it was when it was taken."""
        self.intact = False
        self.target.recheck()
        self.intact = True

    def work(self, pace: Pace, *, unmap: bool) -> tuple[int, bool]:
        """Zap, then unmap an owner; return the bytes that stay and whether it is unmapped."""
        target = self.target
        unmap = unmap and target.closes
        vmas = require_mapped(target.start, target.end, certain=target.is_address)
        if target.is_address:
            refuse_known(target.start, target.end, vmas)
        if unmap:
            _refuse_sealed(target, vmas)
        left = zap(target.start, target.end, vmas, pace)
        if unmap:
            self.intact = False
            self._range.close(target.close)
        return left, unmap

    def after_fork(self) -> None:
        """Claim once more what the child has of its parent's memory."""
        self._owner.again()
        self._range.again()

    def let_go(self) -> None:
        """Hold nothing any more; a second time does nothing."""
        self.intact = False
        try:
            self.target.let_go()
        finally:
            self._range.let_go()
            self._owner.let_go()
        self._thing, self.target = None, Target()  # a future must not keep what it was about


def _refuse_sealed(target: Target, vmas: list[MappedVma]) -> None:
    """Raise ReleaseError if a page is sealed (mseal, 6.10): it can never be unmapped.

    An mremap to the same length does nothing, and is refused for a sealed VMA like every change.
    """
    for vma in vmas:
        start, end = max(target.start, vma.start), min(target.end, vma.end)
        if calls.mremap_in_place(start, end - start) == errno.EPERM:
            raise ReleaseError(
                f"{start:#x} to {end:#x} is sealed and can't be unmapped: nothing was released; "
                "unmap=False gives the pages back and keeps the addresses"
            )
