"""Who is releasing what at this moment, so that two threads never release the same thing.

Without this, a thread that lost the race would go on zapping addresses which the winner has
unmapped and the kernel has given to somebody else. The lock is re-entrant, because a garbage
collection may run a finalizer, which releases, in the middle of a claim; each change is a single
operation of a dict, so such a nested claim sees a consistent state. A fork takes the lock first,
and the child forgets the claims of threads that it does not have.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zaplock.release.errors import BusyError

_lock = threading.RLock()
_claimed: dict[int, tuple[int, int]] = {}
_owners: set[int] = set()


@contextmanager
def claimed_owner(owner: object) -> Iterator[None]:
    """Hold an object (by identity) for one thread; raise BusyError if another one has it."""
    key = id(owner)
    kind = type(owner).__name__
    del owner  # references are counted below; the caller holds one
    with _lock:
        if key in _owners:
            raise BusyError(f"this {kind} is being released by another thread: release it once")
        _owners.add(key)
    try:
        yield
    finally:
        with _lock:
            _owners.discard(key)


@contextmanager
def claimed_range(start: int, end: int) -> Iterator[RangeClaim]:
    """Hold a range for one thread; raise BusyError where it overlaps one that is held."""
    claim = RangeClaim()
    with _lock:
        for first, last in list(_claimed.values()):
            if first < end and start < last:
                raise BusyError(
                    f"{start:#x} to {end:#x} is busy: {first:#x} to {last:#x} is being released"
                )
        _claimed[id(claim)] = (start, end)
    try:
        yield claim
    finally:
        claim.end()


class RangeClaim:
    """A range that is held; unmapping it and letting go of it are one step for everybody else.

    Otherwise a new mapping at the old addresses could be refused as busy, or a second release of
    the old one get through.
    """

    def end(self, unmap: Callable[[], None] = lambda: None) -> None:
        """Unmap the range and let go of it."""
        with _lock:
            try:
                unmap()
            finally:
                _claimed.pop(id(self), None)


def nothing_is_claimed() -> bool:
    """Tell whether no release is under way (for tests of quiescence)."""
    with _lock:
        return not _claimed and not _owners


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _claimed.clear()
    _owners.clear()


_before: Callable[[], object] = lambda: _lock.acquire()  # noqa: E731
_after: Callable[[], None] = lambda: _lock.release()  # noqa: E731
os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_fork_in_child)
