"""Which advice an madvise gave: MADV_COLD and MADV_DONTNEED have nothing in common but the call.

So every operation carries its advice in its name, "madvise(MADV_COLD)", wherever it is told, summed
or blamed. A call whose begin was not seen, or whose advice the recording lacks, is plain "madvise".
The numbers are x86's (include/uapi/asm-generic/mman-common.h).
"""

from __future__ import annotations

from typing import Final

ADVICE: Final = {
    0: "MADV_NORMAL",
    1: "MADV_RANDOM",
    2: "MADV_SEQUENTIAL",
    3: "MADV_WILLNEED",
    4: "MADV_DONTNEED",
    8: "MADV_FREE",
    9: "MADV_REMOVE",
    10: "MADV_DONTFORK",
    11: "MADV_DOFORK",
    12: "MADV_MERGEABLE",
    13: "MADV_UNMERGEABLE",
    14: "MADV_HUGEPAGE",
    15: "MADV_NOHUGEPAGE",
    16: "MADV_DONTDUMP",
    17: "MADV_DODUMP",
    18: "MADV_WIPEONFORK",
    19: "MADV_KEEPONFORK",
    20: "MADV_COLD",
    21: "MADV_PAGEOUT",
    22: "MADV_POPULATE_READ",
    23: "MADV_POPULATE_WRITE",
    24: "MADV_DONTNEED_LOCKED",
    25: "MADV_COLLAPSE",
    100: "MADV_HWPOISON",
    101: "MADV_SOFT_OFFLINE",
    102: "MADV_GUARD_INSTALL",
    103: "MADV_GUARD_REMOVE",
}
OTHER: Final = "an advice unknown to zaplock"
ADVISING: Final = ("madvise", "process_madvise")
"""The calls whose `detail` is an advice."""


def advised(call: str, advice: int) -> str:
    """Name a call with its advice.

    >>> advised("madvise", 20)
    'madvise(MADV_COLD)'
    """
    return f"{call}({ADVICE.get(advice, OTHER)})"


def call_of(operation: str) -> str:
    """Return the call of an operation, without what is told of it in brackets.

    >>> call_of("madvise(MADV_COLD)"), call_of("munmap")
    ('madvise', 'munmap')
    """
    return operation.partition("(")[0]
