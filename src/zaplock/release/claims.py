"""Who is releasing what, so that two threads never release the same thing.

Without this, a thread that lost the race would go on zapping addresses which the winner has
unmapped and the kernel has given to somebody else.

There is no lock: an exception out of a signal handler can strike between taking a lock and being
ready to give it back, and a garbage collection or a signal handler may release in the middle of a
claim. A claim enters itself in a dict, which is one step for everybody, and then looks whether one
that entered earlier is in its way; of any two, the later one sees the earlier. The dict holds weak
references: a claim that nobody holds any more is none, whatever kept it from being ended.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from itertools import count
from typing import Final

from zaplock.release.errors import BusyError

_numbers: Final = count()
_NAP_S: Final = 0.0002
_NAPS: Final = 5_000


class Register:
    """Claims of one kind, in the order in which they were entered."""

    def __init__(self) -> None:
        self._entries: dict[int, weakref.ref[Claim]] = {}

    def enter(self, claim: Claim) -> Claim | None:
        """Enter a claim; return an earlier one that overlaps it, if there is any."""
        self._entries[claim.number] = weakref.ref(claim)
        for number in list(self._entries):
            entry = self._entries.get(number)
            other = entry() if entry is not None else None
            if other is claim:
                return None
            if other is None:
                self._entries.pop(number, None)
            elif other.start < claim.end and claim.start < other.end:
                return other
        return None

    def leave(self, claim: Claim) -> None:
        """Take a claim out; a second time does nothing."""
        self._entries.pop(claim.number, None)

    def forget(self) -> None:
        """Drop all claims: a forked child lacks the threads that made them."""
        self._entries.clear()

    def empty(self) -> bool:
        """Tell whether no claim is held."""
        return all(entry() is None for entry in list(self._entries.values()))


class Claim:
    """A range that one thread has to itself from `take` to `end`; a new one holds nothing."""

    def __init__(self, register: Register) -> None:
        self._register = register
        self.number = next(_numbers)
        self.start = self.end = 0
        self.closing = 0

    def take(self, start: int, end: int, what: str) -> None:
        """Hold a range; raise BusyError where it overlaps one that is held."""
        self.start, self.end = start, end
        for _ in range(_NAPS):
            other = self._register.enter(self)
            if other is None:
                return
            self.let_go()
            if other.closing in (0, threading.get_ident()):
                break
            time.sleep(_NAP_S)  # it is unmapped in this moment: the addresses may be new already
        raise BusyError(f"{what} is being released already, here or in another thread")

    def close(self, unmap: Callable[[], None]) -> None:
        """Unmap the range and let go of it.

        Whoever is given the addresses in between and releases them waits for the second step.
        Letting go first would let a second release of the old mapping get through.
        """
        self.closing = threading.get_ident()
        try:
            unmap()
        finally:
            self.closing = 0
            self.let_go()

    def again(self) -> None:
        """Enter once more after a fork, in a register that was emptied."""
        if self.end:
            self._register.enter(self)

    def let_go(self) -> None:
        """Hold nothing any more; a second time does nothing."""
        self._register.leave(self)


_owners: Final = Register()
_ranges: Final = Register()


def of_owner() -> Claim:
    """Return an empty claim for an object, taken by its identity."""
    return Claim(_owners)


def of_range() -> Claim:
    """Return an empty claim for a range of addresses."""
    return Claim(_ranges)


def forget() -> None:
    """Drop all claims, in a forked child."""
    _owners.forget()
    _ranges.forget()


def nothing_is_claimed() -> bool:
    """Tell whether no release is queued or under way (for tests of quiescence)."""
    return _owners.empty() and _ranges.empty()
