"""Sequences about files on mounts of hugetlbfs that have shares of the pool (theme "hugetlbfs").

They work in eight huge pages of 2 MiB of one gigabyte, with two files of one mount and a file each
of two others (ops.MOUNTS), a memfd, and memory without a file. Mappings, faults, fallocate and
children want more than the shares have; what is cut, punched and unmapped comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock import advice
from zaplock.model import flags as f
from zaplock.oracle import ops
from zaplock.oracle.huge_makers import Maker, makers
from zaplock.oracle.ops import Argument, Ref

if TYPE_CHECKING:
    from zaplock.oracle.generate import Generator

PAGE, PMD = f.PAGE_SIZE, f.PMD_SIZE
WINDOW, PLACES = 0x2000_0000, 8
WEIGHTS = {"mmap": 26, "munmap": 8, "mprotect": 5, "load": 7, "store": 14, "mremap": 6,
           "madvise": 14, "ftruncate": 5, "huge_fallocate": 9, "huge_room": 6, "mlock": 1,
           "munlock": 1, "mincore": 1, "fork": 3, "into_child": 2, "msync": 1,
           "mseal": 1}  # fmt: skip
_ADVICE = (
    *[advice.MADV_DONTNEED] * 5, *[advice.MADV_REMOVE] * 5, 22, 23, 23, advice.MADV_FREE, 20, 24,
    102, 103, advice.MADV_COLLAPSE, 3, 10, 11, 14, 15, 12, 13, 18, 19, 99,
)  # fmt: skip


def _slot(g: Generator) -> int:
    return g.random.choice((*g.scope.shares * 3, 5))


def _address(g: Generator) -> Argument:
    r = g.random.random()
    place = WINDOW + PMD * g.random.randrange(PLACES)
    if r < 0.80:
        return place
    if r < 0.88:
        return place + PAGE * g.random.randrange(512)
    if r < 0.98 and g.chosen:
        return Ref(g.random.choice(g.chosen[-6:]), PMD * g.random.choice((0, 0, 0, 1, 2)))
    return place + g.random.choice((1, PAGE - 1))


def _length(g: Generator) -> int:
    r = g.random.random()
    if r < 0.85:
        return PMD * g.random.choice((1, 1, 2, 2, 3, 4))
    if r < 0.93:
        return PMD * g.random.choice((5, 6, 7))
    return g.random.choice((PAGE, PMD - PAGE, PMD + PAGE, 3 * PMD + PAGE, 0, 1 << 40))


def _mmap(g: Generator) -> tuple[Argument, ...]:
    shared = g.chance(55)
    flags = (f.MAP_SHARED if shared else f.MAP_PRIVATE) | (f.MAP_FIXED if g.chance(60) else 0)
    for flag, percent in ((f.MAP_POPULATE, 6), (f.MAP_LOCKED, 3), (f.MAP_FIXED_NOREPLACE, 4),
                          (f.MAP_GROWSDOWN, 1)):  # fmt: skip
        flags |= flag if g.chance(percent) else 0
    if g.chance(2):
        flags = flags & ~3 | g.random.choice((0, 3, 8))
    if g.chance(25) or (g.moves and not shared):
        flags |= f.MAP_NORESERVE
    slot, offset, length = ops.NO_FILE, 0, _length(g)
    if g.chance(10):
        flags |= f.MAP_ANONYMOUS | f.MAP_HUGETLB
    elif g.chance(6):
        flags |= f.MAP_ANONYMOUS
        length = PAGE * g.random.randint(1, 4)
    else:
        slot = _slot(g)
        flags |= f.MAP_HUGETLB if g.chance(20) else 0
        offset = PMD * g.random.choice((0, 0, 0, 0, 1, 1, 2, 3)) + (PAGE if g.chance(2) else 0)
    address = 0 if not flags & f.MAP_FIXED and g.chance(60) else _address(g)
    return address, length, g.prot(), flags, slot, offset


def _madvise(g: Generator) -> tuple[Argument, ...]:
    address, length = _address(g), _length(g)
    if isinstance(address, Ref):
        length = min(length, 3 * PMD)  # above may lie the ring, which no seal keeps from advice
    return address, min(length, 7 * PMD), g.random.choice(_ADVICE)


def _fallocate(g: Generator) -> tuple[Argument, ...]:
    mode = g.random.choice((0, 0, 0, 1, 1, 3, 3, 3))
    if g.chance(4):
        mode = g.random.choice((2, 4, 8, 0x10, 0x40, 0x100))
    offset, length = PMD * g.random.choice((0, 0, 1, 1, 2, 3)), PMD * g.random.randint(1, 4)
    if g.chance(20):
        offset += PAGE * g.random.randrange(512)
        length = PAGE * g.random.choice((1, 7, 511, 512, 513, 1024))
    if g.chance(3):
        wrong = ((-PMD, PMD), (0, 0), (0, -PMD), ((1 << 63) - PMD, 2 * PMD))
        offset, length = g.random.choice(wrong)
    return _slot(g), mode, offset, length


def _truncate(g: Generator) -> tuple[Argument, ...]:
    return _slot(g), PMD * g.random.choice((0, 0, 1, 1, 2, 3, 5)) + (PAGE if g.chance(8) else 0)


def _bound(g: Generator) -> list[int]:
    """List the files whose mount has a limit, of which statfs says what is left."""
    return [slot for slot in g.scope.shares if ops.MOUNTS[ops.MOUNT_OF[slot]].most >= 0]


def _touched(g: Generator) -> Argument:
    if g.chance(20) and g.chosen:
        return Ref(g.random.choice(g.chosen[-6:]), PMD * g.random.choice((0, 0, 1, 2)))
    place = WINDOW + PMD * g.random.randrange(PLACES)
    return place if g.chance(80) else place + PAGE * g.random.randrange(512)


MAKERS: dict[str, Maker] = {
    **makers(_address, _length, _touched),
    "mmap": _mmap,
    "madvise": _madvise,
    "ftruncate": _truncate,
    "huge_fallocate": _fallocate,
    "huge_room": lambda g: (g.random.choice(_bound(g)),),
    "mincore": lambda g: (_address(g), g.random.choice((PAGE, 64 * PAGE, PMD))),
}
"""How arguments are chosen; operations that are not here have none."""
