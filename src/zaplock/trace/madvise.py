"""Which advice an madvise gave: MADV_COLD and MADV_DONTNEED have nothing in common but the call.

So every operation carries its advice in its name, "madvise(MADV_COLD)", wherever it is told, summed
or blamed. A call whose begin was not seen, or whose advice the recording lacks, is plain "madvise".
"""

from __future__ import annotations

from typing import Final

from zaplock.advice import ADVICE, MADV_POPULATE_READ, MADV_POPULATE_WRITE

OTHER: Final = "an advice unknown to zaplock"
ADVISING: Final = ("madvise", "process_madvise")
"""The calls whose `detail` is an advice."""
NOT_SEEN: Final = -1
"""The `detail` of a call whose begin was not seen, and whose advice nothing else told."""

POPULATES: Final = -2
"""The `detail` of a call whose begin was not seen, and which makes pages: a stack tells no more."""
_TOLD = ADVICE | {POPULATES: f"{ADVICE[MADV_POPULATE_READ]} or {ADVICE[MADV_POPULATE_WRITE]}"}


def advised(call: str, advice: int) -> str:
    """Name a call with its advice.

    >>> advised("madvise", 20)
    'madvise(MADV_COLD)'
    """
    return f"{call}({_TOLD.get(advice, OTHER)})"


def with_advice(call: str, detail: int) -> str:
    """Name a call as it is told: with its advice, if it has one that is known.

    >>> with_advice("madvise", 21), with_advice("madvise", NOT_SEEN), with_advice("munmap", 0)
    ('madvise(MADV_PAGEOUT)', 'madvise', 'munmap')
    """
    return advised(call, detail) if call in ADVISING and detail != NOT_SEEN else call


def call_of(operation: str) -> str:
    """Return the call of an operation, without what is told of it in brackets.

    >>> call_of("madvise(MADV_COLD)"), call_of("munmap")
    ('madvise', 'munmap')
    """
    return operation.partition("(")[0]
