"""What the tasks of a system call their locks: one name for each, of one kind of lock.

A lock comes into being when it is first taken, so a name that was meant for another lock, or for
none, would make one that keeps nobody out.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from zaplock.errors import ProtocolError
from zaplock.model.frozen import exact
from zaplock.model.rwsem import LockStep, lock_name
from zaplock.model.spans import SpanEnd, SpanStep, SpanSteps
from zaplock.model.step import Step, Task


class LocksNamed:
    """The locks that steps have named so far, and whether each is one of ranges."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Hashable, bool]] = {}

    def add(self, step: Step[Any], task: Task) -> None:
        """Take in the lock of a step; raises ProtocolError where it is none, or another's name."""
        if not isinstance(step, (LockStep, SpanSteps)):
            return
        lock, of_ranges = step.lock, not isinstance(step, LockStep)
        said = f"{task}: the step {step.name}"
        called = lock_name(lock)
        names, known_of_ranges = self._known.setdefault(lock, (exact(lock), of_ranges))
        if names != exact(lock):
            raise ProtocolError(
                f"{said} takes {lock!r}, which is one lock with another of an equal name: number "
                "locks by whole numbers"
            )
        if of_ranges is not known_of_ranges:
            raise ProtocolError(
                f"{said} takes {called} {'for a range' if of_ranges else 'as a semaphore'}, and "
                f"another {'as a semaphore' if of_ranges else 'for a range'}: the two keep nobody "
                "out from each other; make two classes of locks, or take it in one way"
            )
        if isinstance(step, (SpanStep, SpanEnd)):
            _, start, end, *_ = step.args
            if not start < end:
                raise ProtocolError(
                    f"{said} is of the range {start:#x} to {end:#x} of {called}, which is empty "
                    "and keeps nobody out; the end is the first key behind it"
                )
