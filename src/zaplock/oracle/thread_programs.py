"""Random programs of two to four threads that meet on a few pages.

A set-up maps two or three ranges and writes to some of their pages; then each thread does up to
three operations. All that they can hit lies in one window across a boundary of page tables, small
enough that most operations concern what others work on; in half of the programs one page is
written to first and half of the operations begin there, so that what one thread takes away another
looks at meanwhile. Some mappings grow down: a store below them makes them longer.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from zaplock.oracle import ops, ring
from zaplock.oracle.ops import Op
from zaplock.oracle.threaded import ThreadedProgram

PAGE = ring.PAGE
PAGES = 8
WINDOW = 0x1020_0000 - 4 * PAGE
ELSEWHERE = 0x1040_0000
MOST_OPERATIONS = 6  # of all threads together
_GROWSDOWN = 0x100
_PREPARING = ("mprotect", "mlock", "madvise", "mseal")  # what is done with what is mapped

_MIX = {
    "load": 14, "store": 22, "munmap": 10, "mmap": 10, "mprotect": 12, "madvise": 16, "mremap": 8,
    "mlock": 5, "mlock2": 2, "munlock": 3, "msync": 1, "ftruncate": 4, "mseal": 1,
}  # fmt: skip
_ADVICE = (4, 4, 4, 4, 8, 8, 20, 22, 23, 23, 102, 102, 103, 3, 16, 18, 9)
_FILES = (0, 1)


class ThreadedGenerator:
    """Make programs for a seed; equal seeds make equal programs."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._contended = -1  # the page, counted from WINDOW; -1 where there is none
        self._names = [name for name, weight in _MIX.items() for _ in range(weight)]

    def program(self) -> ThreadedProgram:
        """Make the next program."""
        self._contended = self.random.randrange(PAGES) if self._one_in(2) else -1
        setup = [self._mapping() for _ in range(self.random.randint(1, 3))]
        if self._contended >= 0:
            setup.append(Op("store", (WINDOW + PAGE * self._contended,)))
        setup += [self._operation("store") for _ in range(self.random.randint(1, 4))]
        if self._one_in(4):
            setup.append(self._operation(self.random.choice(_PREPARING)))
        count = self.random.choice((2, 2, 2, 3, 3, 4))
        most = max(1, MOST_OPERATIONS // count)
        threads = tuple(
            tuple(self._any() for _ in range(self.random.randint(1, most))) for _ in range(count)
        )
        return ThreadedProgram(tuple(setup), threads)

    def delays(self, threaded: ThreadedProgram) -> list[list[int]]:
        """Choose how many turns each thread waits before each operation: none to some 10 us."""
        return [
            [int(2 ** self.random.uniform(0, 14)) for _ in thread] for thread in threaded.threads
        ]

    def _any(self) -> Op:
        return self._operation(self.random.choice(self._names))

    def _operation(self, name: str) -> Op:
        return Op(name, _MAKERS[name](self)) if name != "mmap" else self._mapping()

    def _one_in(self, number: int) -> bool:
        return self.random.randrange(number) == 0

    def _page(self) -> int:
        page = self.random.randrange(PAGES)
        if self._contended >= 0 and self._one_in(2):
            page = self._contended
        return WINDOW + PAGE * page

    def _range(self) -> tuple[int, int]:
        return self._page(), PAGE * self.random.randint(1, 4)

    def _mapping(self) -> Op:
        start, length = self._page(), PAGE * self.random.randint(1, PAGES)
        flags = self.random.choice((0x2, 0x2, 0x2, 0x1)) | 0x10
        flags |= 0x8000 if self._one_in(6) else 0
        flags |= 0x2000 if self._one_in(12) else 0
        if self._one_in(8):
            start, flags = 0, flags & ~0x10
        slot = ops.NO_FILE
        if self._one_in(4):
            slot = self.random.choice(_FILES)
        else:
            flags |= 0x20
            flags |= _GROWSDOWN if flags & 2 and self._one_in(8) else 0
        offset = PAGE * self.random.randrange(3) if slot >= 0 else 0
        return Op("mmap", (start, length, self.random.choice((3, 3, 3, 1, 0)), flags, slot, offset))


def _mremap(g: ThreadedGenerator) -> tuple[int, ...]:
    (start, length), pick = g._range(), g.random
    flags = pick.choice((0, 1, 1, 3, 3, 5, 7))
    new = length if flags & 4 or g._one_in(2) else PAGE * pick.randint(1, 5)
    target = g._page() if g._one_in(2) else ELSEWHERE + PAGE * pick.randrange(4)
    return start, length, new, flags, target if flags & 6 else 0


_MAKERS: dict[str, Callable[[ThreadedGenerator], tuple[int, ...]]] = {
    "load": lambda g: (g._page(),),
    "store": lambda g: (g._page(),),
    "munmap": ThreadedGenerator._range,
    "mprotect": lambda g: (*g._range(), g.random.choice((0, 1, 3, 3))),
    "madvise": lambda g: (*g._range(), g.random.choice(_ADVICE)),
    "mremap": _mremap,
    "mlock": ThreadedGenerator._range,
    "mlock2": lambda g: (*g._range(), 1),
    "munlock": ThreadedGenerator._range,
    "msync": lambda g: (*g._range(), g.random.choice((1, 4))),
    "ftruncate": lambda g: (g.random.choice(_FILES), PAGE * g.random.randrange(6)),
    "mseal": lambda g: (*g._range(), 0),
}  # fmt: skip
