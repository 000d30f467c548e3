"""What the themes of huge pages share in choosing arguments ("gigantic", "hugetlbfs").

Each has addresses and lengths of its own. In half of their sequences mappings may move, and private
ones reserve nothing then: a kernel loses for good what the rest of a moved mapping had reserved
(docs/findings/half-moved-huge-pages).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zaplock.oracle.ops import Argument

if TYPE_CHECKING:
    from zaplock.oracle.generate import Generator

Maker = Callable[["Generator"], tuple[Argument, ...]]
"""Choose the arguments of an operation."""


def makers(
    address: Callable[[Generator], Argument],
    length: Callable[[Generator], int],
    touched: Callable[[Generator], Argument],
) -> dict[str, Maker]:
    """Return the makers of operations on a range, and of touches; operations not here have none."""

    def of_range(g: Generator) -> tuple[Argument, int]:
        return address(g), length(g)

    def mremap(g: Generator) -> tuple[Argument, ...]:
        if not g.moves:  # in its place
            return address(g), length(g), length(g), 0, 0
        flags = g.random.choice((0, 1, 1, 3, 3, 3, 5, 7, 2))
        old, new = length(g), length(g)
        new = old if g.chance(55) else new
        return address(g), old, new, flags, address(g) if flags & 6 else 0

    return {
        "mremap": mremap,
        "munmap": of_range,
        "mprotect": lambda g: (*of_range(g), g.prot()),
        "mlock": of_range,
        "munlock": of_range,
        "msync": lambda g: (*of_range(g), g.random.choice((1, 2, 4))),
        "mseal": lambda g: (*of_range(g), 0),
        "load": lambda g: (touched(g),),
        "store": lambda g: (touched(g),),
    }
