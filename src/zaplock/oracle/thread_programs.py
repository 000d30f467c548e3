"""Random programs of two to four threads that meet on a few pages.

A set-up maps two or three ranges and writes to some of their pages; then each thread does up to
three operations. All that they can hit lies in one window across a boundary of page tables, small
enough that most operations concern what others work on; in half of the programs one page is
written to first and half of the operations begin there, so that what one thread takes away another
looks at meanwhile. Some mappings grow down: a store below them makes them longer.

A part of the programs has a kind: what is drawn more often in it (`_KINDS`). In "heap" brk is
called and the window is the heap's beginning; in "stack" there is a mapping that grows down, and
they meet below it; in "forks" threads fork children that look; in "watched" a userfaultfd watches a
range; in "kernel" the kernel itself uses the memory; in "files" most mappings are of files, which
are cut and punched. And a third of all are duels: one thread
accesses a page that the call of another one covers, and hardly more, so that a search is short.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from zaplock.advice import MADV_DONTNEED, MADV_GUARD_INSTALL, MADV_REMOVE
from zaplock.oracle import ops, ring
from zaplock.oracle.ops import Op
from zaplock.oracle.threaded import FORK_LOAD, ThreadedProgram

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
    "mlockall": 1, "munlockall": 1, "remap_file_pages": 1, "process_madvise": 2,
}  # fmt: skip
_KINDS: dict[str, dict[str, int]] = {
    "": {},
    "stack": {"store": 30},
    "heap": {"brk": 60},
    "forks": {FORK_LOAD: 40},
    "watched": {
        "uffd_copy": 25, "uffd_zeropage": 10, "uffd_writeprotect": 15, "uffd_move": 12,
        "uffd_poison": 6, "uffd_unregister": 8, "uffd_register": 8,
    },
    "kernel": {"process_vm_readv": 20, "process_vm_writev": 20, "pread": 15},
    "files": {"madvise": 14, "ftruncate": 6, "load": 6, "pread": 3},
}  # fmt: skip
"""By kind of program: what is drawn beside _MIX, how often."""
_ONE_OF_A_KIND, _ONE_DUEL = 2, 3  # in so many programs
_ACCESSES = ("load", "store", "load", "store", "process_vm_readv", FORK_LOAD)
_ADVICE = (4, 4, 4, 4, 8, 8, 20, 22, 23, 23, 102, 102, 103, 3, 16, 18, 9, 14, 17, 12)
_FILES = (0, 1)
_FIXED, _FIXED_NOREPLACE = 0x10, 0x10_0000
_UFFD_MODES = (1, 1, 2, 3, 3)  # missing pages, writes to protected ones, both
HEAP_PAGES = 6


class ThreadedGenerator:
    """Make programs for a seed; equal seeds make equal programs."""

    def __init__(self, seed: int, heap: int = WINDOW) -> None:
        """Begin with a seed; `heap`: where the process's heap begins."""
        self.random = random.Random(seed)
        self._waits = random.Random(f"waits {seed}")  # how often one ran does not change the next
        self.heap = heap
        self._window = WINDOW
        self._contended = -1  # the page, counted from the window; -1 where there is none
        self._names = {
            kind: [name for name, weight in (_MIX | more).items() for _ in range(weight)]
            for kind, more in _KINDS.items()
        }
        self.kind = ""

    def program(self) -> ThreadedProgram:
        """Make the next program."""
        self.kind = self.random.choice(list(_KINDS)) if self._one_in(_ONE_OF_A_KIND) else ""
        self._window = self.heap if self.kind == "heap" else WINDOW
        duel = self._one_in(_ONE_DUEL)
        self._contended = self.random.randrange(PAGES) if duel or self._one_in(2) else -1
        setup = [self._mapping() for _ in range(self.random.randint(1, 2 if duel else 3))]
        if self.kind == "stack":
            setup = [self._stack()]
        if self.kind == "heap":
            setup = [_brk(self), *setup[:1], _brk(self)][: self.random.randint(1, 3)]
        if self.kind == "watched":
            setup.append(self._operation("uffd_register"))
        if self._contended >= 0 and self.kind != "stack":
            setup.append(Op("store", (self._window + PAGE * self._contended,)))
        if not duel:
            setup += [self._operation("store") for _ in range(self.random.randint(1, 4))]
        if self._one_in(4):
            setup.append(self._operation(self.random.choice(_PREPARING)))
        if duel:
            return ThreadedProgram(tuple(setup), self._duel())
        count = self.random.choice((2, 2, 2, 3, 3, 4))
        most = max(1, MOST_OPERATIONS // count)
        threads = tuple(
            tuple(self._any() for _ in range(self.random.randint(1, most))) for _ in range(count)
        )
        return ThreadedProgram(tuple(setup), threads)

    def _duel(self) -> tuple[tuple[Op, ...], ...]:
        """Let a thread access the page that they contend for, and others do one thing each."""
        access = self.random.choice(_ACCESSES)
        arguments = (self._window + PAGE * self._contended, PAGE)
        looks = Op(access, arguments if access == "process_vm_readv" else arguments[:1])
        others = [(self._any(),) for _ in range(self.random.choice((1, 1, 2)))]
        return (looks,), *others

    def _stack(self) -> Op:
        """Map what grows down, and let threads contend for the page below it."""
        pages = self.random.randint(1, 3)
        self._contended = self.random.randrange(PAGES - pages)
        start = self._window + PAGE * (self._contended + 1)
        return Op("mmap", (start, PAGE * pages, 3, 0x32 | _GROWSDOWN, ops.NO_FILE, 0))

    def delays(self, threaded: ThreadedProgram) -> list[list[int]]:
        """Choose how many turns each thread waits before each operation: none to some 10 us."""
        return [
            [int(2 ** self._waits.uniform(0, 14)) for _ in thread] for thread in threaded.threads
        ]

    def _any(self) -> Op:
        return self._operation(self.random.choice(self._names[self.kind]))

    def _operation(self, name: str) -> Op:
        if name in ("mmap", "brk"):
            return self._mapping() if name == "mmap" else _brk(self)
        return Op(name, _MAKERS[name](self))

    def _one_in(self, number: int) -> bool:
        return self.random.randrange(number) == 0

    def _page(self) -> int:
        page = self.random.randrange(PAGES)
        if self._contended >= 0 and self._one_in(2):
            page = self._contended
        return self._window + PAGE * page

    def _range(self) -> tuple[int, int]:
        return self._page(), PAGE * self.random.randint(1, 4)

    def _mapping(self) -> Op:
        start, length = self._page(), PAGE * self.random.randint(1, PAGES)
        of_files = self.kind == "files"
        flags = self.random.choice((0x2, 0x1, 0x1) if of_files else (0x2, 0x2, 0x2, 0x1))
        flags |= _FIXED_NOREPLACE if self._one_in(10) else _FIXED
        flags |= 0x8000 if self._one_in(6) else 0
        flags |= 0x2000 if self._one_in(12) else 0
        if self._one_in(8):
            start, flags = 0, flags & ~(_FIXED | _FIXED_NOREPLACE)
        slot = ops.NO_FILE
        if self._one_in(4) != of_files:
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


def _brk(g: ThreadedGenerator) -> Op:
    return Op("brk", (g.heap + PAGE * g.random.randrange(HEAP_PAGES),))


def _advice(g: ThreadedGenerator) -> int:
    """Choose an advice; guards where a userfaultfd write-protects a file never end on kernels.

    (docs/findings/guard-of-protected-pages.md)
    """
    given = g.random.choice(_ADVICE)
    if g.kind == "files" and g._one_in(2):
        given = MADV_REMOVE
    return MADV_DONTNEED if g.kind == "watched" and given == MADV_GUARD_INSTALL else given


_MAKERS: dict[str, Callable[[ThreadedGenerator], tuple[int, ...]]] = {
    "load": lambda g: (g._page(),),
    "store": lambda g: (g._page(),),
    "munmap": ThreadedGenerator._range,
    "mprotect": lambda g: (*g._range(), g.random.choice((0, 1, 3, 3))),
    "madvise": lambda g: (*g._range(), _advice(g)),
    "mremap": _mremap,
    "mlock": ThreadedGenerator._range,
    "mlock2": lambda g: (*g._range(), 1),
    "munlock": ThreadedGenerator._range,
    "msync": lambda g: (*g._range(), g.random.choice((1, 4))),
    "ftruncate": lambda g: (g.random.choice(_FILES), PAGE * g.random.randrange(6)),
    "mseal": lambda g: (*g._range(), 0),
    "mlockall": lambda g: (g.random.choice((2, 2, 4 | 2)),),
    "munlockall": lambda g: (),
    "remap_file_pages": lambda g: (*g._range(), 0, g.random.randrange(3), 0),
    "process_madvise": lambda g: (*g._range(), _advice(g)),
    FORK_LOAD: lambda g: (g._page(),),
    "uffd_register": lambda g: (*g._range(), g.random.choice(_UFFD_MODES)),
    "uffd_unregister": ThreadedGenerator._range,
    "uffd_copy": lambda g: (g._page(), g.random.choice((0, 0, 2))),
    "uffd_zeropage": lambda g: (*g._range(), 0),
    "uffd_poison": lambda g: (*g._range(), 0),
    "uffd_writeprotect": lambda g: (*g._range(), g.random.choice((0, 1, 1))),
    "uffd_move": lambda g: (g._page(), PAGE, g._page(), g.random.choice((0, 2))),
    "process_vm_readv": ThreadedGenerator._range,
    "process_vm_writev": ThreadedGenerator._range,
    "pread": lambda g: (g.random.choice(_FILES), *g._range(), PAGE * g.random.randrange(4)),
}  # fmt: skip

DRAWN = frozenset({"mmap", "brk", *_MAKERS})
"""What programs are made of."""
