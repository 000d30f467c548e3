"""Mappings that come to lie beside another one as its next part would: where rules of merging show.

Chance alone seldom puts two mappings of files side by side whose flags are equal and whose offsets
go on, or moves a mapping of huge pages to where another one ends.
"""

from __future__ import annotations

from zaplock.oracle import ops
from zaplock.oracle.draw import Draw
from zaplock.oracle.ops import Argument
from zaplock.oracle.windows import MOST_FILLED, PAGE

_FIXED, _MAYMOVE, _MREMAP_FIXED = 0x10, 1, 2
_LATELY = 12  # operations back
_WORD = (1 << 64) - 1


def goes_on(d: Draw) -> tuple[Argument, ...] | None:
    """Choose an mmap that goes on where one of a file ends, of that file or of another one."""
    of_files = [
        [value for value in op.args if isinstance(value, int)]
        for op in d.made[-_LATELY:]
        if op.name == "mmap" and ops.is_slot(_number(op.args[4]))
    ]
    ends = [one for one in of_files if len(one) == 6 and one[3] & _FIXED and one[1] < MOST_FILLED]
    if not ends:
        return None
    start, length, prot, flags, slot, offset = d.random.choice(ends)
    length = -(-length // PAGE) * PAGE
    if d.chance(60) and slot not in ops.HUGE_FILES:
        slot = d.slot()
    pages = d.random.randint(1, 4) if slot not in ops.HUGE_FILES else length // PAGE
    return start + length & _WORD, PAGE * pages, prot, flags, slot, offset + length & _WORD


def beside(d: Draw) -> tuple[Argument, ...] | None:
    """Choose an mremap that moves a mapping to where another one ends."""
    if len(d.fixed) < 2:
        return None
    (start, pages), (other, others) = d.random.sample(d.fixed[-8:], 2)
    length, target = pages * PAGE, other + others * PAGE
    if start < target + length and target < start + length:
        return None
    return start, length, length, _MAYMOVE | _MREMAP_FIXED, target


def _number(value: Argument) -> int:
    return value if isinstance(value, int) else ops.NO_FILE
