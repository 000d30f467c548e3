"""Why a stack was taken, and what its addresses are; without numpy, for the recorder."""

from __future__ import annotations

from enum import IntEnum

Chain = tuple[tuple[int, ...], tuple[int, ...]]
"""The addresses of a kernel stack and of a user stack, innermost first."""


class StackReason(IntEnum):
    """Why a stack was taken."""

    LOCKED = 0
    SAMPLED = 1
    QUEUED = 2
    SLEEPS = 3
    READY = 4
