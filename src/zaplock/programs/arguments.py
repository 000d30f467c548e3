"""The arguments of a recorded call as numbers, and what is said where one is not recorded."""

from __future__ import annotations

from zaplock.programs.recording import TracedCall
from zaplock.programs.text import number

_MASK = (1 << 64) - 1


class NotRecorded(ValueError):
    """A fact that a call needs is not in the recording; `str` says which."""


def numbers(call: TracedCall, count: int) -> list[int]:
    """Return the first arguments of a call as unsigned numbers."""
    if len(call.arguments) < count:
        raise ValueError(f"{call.name} has {len(call.arguments)} arguments and takes {count}")
    return [number(argument) & _MASK for argument in call.arguments[:count]]
