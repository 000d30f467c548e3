"""What the themes of huge pages share in choosing arguments ("gigantic", "hugetlbfs").

Each has addresses and lengths of its own. In half of their sequences mappings may move, and private
ones reserve nothing then: a kernel loses for good what the rest of a moved mapping had reserved
(docs/findings/half-moved-huge-pages).
"""

from __future__ import annotations

from collections.abc import Callable

from zaplock.oracle.draw import Draw
from zaplock.oracle.ops import Argument

Maker = Callable[[Draw], tuple[Argument, ...]]
"""Choose the arguments of an operation."""


def makers(
    address: Callable[[Draw], Argument],
    length: Callable[[Draw], int],
    touched: Callable[[Draw], Argument],
) -> dict[str, Maker]:
    """Return the makers of operations on a range, and of touches; operations not here have none."""

    def of_range(d: Draw) -> tuple[Argument, int]:
        return address(d), length(d)

    def mremap(d: Draw) -> tuple[Argument, ...]:
        if not d.moves:  # in its place
            return address(d), length(d), length(d), 0, 0
        flags = d.random.choice((0, 1, 1, 3, 3, 3, 5, 7, 2))
        old, new = length(d), length(d)
        new = old if d.chance(55) else new
        return address(d), old, new, flags, address(d) if flags & 6 else 0

    return {
        "mremap": mremap,
        "munmap": of_range,
        "mprotect": lambda d: (*of_range(d), d.prot()),
        "mlock": of_range,
        "munlock": of_range,
        "msync": lambda d: (*of_range(d), d.random.choice((1, 2, 4))),
        "mseal": lambda d: (*of_range(d), 0),
        "load": lambda d: (touched(d),),
        "store": lambda d: (touched(d),),
    }
