"""Sequences about files on mounts of hugetlbfs that have shares of the pool (theme "hugetlbfs").

They work in eight huge pages of 2 MiB of one gigabyte, with two files of one mount and a file each
of two others (ops.MOUNTS), a memfd, and memory without a file. Mappings, faults, fallocate and
children want more than the shares have; what is cut, punched and unmapped comes back.
"""

from __future__ import annotations

from zaplock import advice
from zaplock.model import flags as f
from zaplock.oracle import ops
from zaplock.oracle.draw import Draw
from zaplock.oracle.huge_makers import Maker, makers
from zaplock.oracle.ops import Argument, Ref

PAGE, PMD = f.PAGE_SIZE, f.PMD_SIZE
WINDOW, PLACES = 0x2000_0000, 8
_ADVICE = (
    *[advice.MADV_DONTNEED] * 5, *[advice.MADV_REMOVE] * 5, 22, 23, 23, advice.MADV_FREE, 20, 24,
    102, 103, advice.MADV_COLLAPSE, 3, 10, 11, 14, 15, 12, 13, 18, 19, 99,
)  # fmt: skip


def _slot(d: Draw) -> int:
    return d.random.choice((*d.scope.shares * 3, 5))


def _address(d: Draw) -> Argument:
    r = d.random.random()
    place = WINDOW + PMD * d.random.randrange(PLACES)
    if r < 0.80:
        return place
    if r < 0.88:
        return place + PAGE * d.random.randrange(512)
    if r < 0.98 and d.chosen:
        return Ref(d.random.choice(d.chosen[-6:]), PMD * d.random.choice((0, 0, 0, 1, 2)))
    return place + d.random.choice((1, PAGE - 1))


def _length(d: Draw) -> int:
    r = d.random.random()
    if r < 0.85:
        return PMD * d.random.choice((1, 1, 2, 2, 3, 4))
    if r < 0.93:
        return PMD * d.random.choice((5, 6, 7))
    return d.random.choice((PAGE, PMD - PAGE, PMD + PAGE, 3 * PMD + PAGE, 0, 1 << 40))


def _mmap(d: Draw) -> tuple[Argument, ...]:
    shared = d.chance(55)
    flags = (f.MAP_SHARED if shared else f.MAP_PRIVATE) | (f.MAP_FIXED if d.chance(60) else 0)
    for flag, percent in ((f.MAP_POPULATE, 6), (f.MAP_LOCKED, 3), (f.MAP_FIXED_NOREPLACE, 4),
                          (f.MAP_GROWSDOWN, 1)):  # fmt: skip
        flags |= flag if d.chance(percent) else 0
    if d.chance(2):
        flags = flags & ~3 | d.random.choice((0, 3, 8))
    if d.chance(25) or (d.moves and not shared):
        flags |= f.MAP_NORESERVE
    slot, offset, length = ops.NO_FILE, 0, _length(d)
    if d.chance(10):
        flags |= f.MAP_ANONYMOUS | f.MAP_HUGETLB
    elif d.chance(6):
        flags |= f.MAP_ANONYMOUS
        length = PAGE * d.random.randint(1, 4)
    else:
        slot = _slot(d)
        flags |= f.MAP_HUGETLB if d.chance(20) else 0
        offset = PMD * d.random.choice((0, 0, 0, 0, 1, 1, 2, 3)) + (PAGE if d.chance(2) else 0)
    address = 0 if not flags & f.MAP_FIXED and d.chance(60) else _address(d)
    return address, length, d.prot(), flags, slot, offset


def _madvise(d: Draw) -> tuple[Argument, ...]:
    address, length = _address(d), _length(d)
    if isinstance(address, Ref):
        length = min(length, 3 * PMD)  # above may lie the ring, which no seal keeps from advice
    return address, min(length, 7 * PMD), d.random.choice(_ADVICE)


def _fallocate(d: Draw) -> tuple[Argument, ...]:
    mode = d.random.choice((0, 0, 0, 1, 1, 3, 3, 3))
    if d.chance(4):
        mode = d.random.choice((2, 4, 8, 0x10, 0x40, 0x100))
    offset, length = PMD * d.random.choice((0, 0, 1, 1, 2, 3)), PMD * d.random.randint(1, 4)
    if d.chance(20):
        offset += PAGE * d.random.randrange(512)
        length = PAGE * d.random.choice((1, 7, 511, 512, 513, 1024))
        if d.chance(50):
            offset += d.random.choice((4, 8, 0x800))
            length -= d.random.choice((4, 8))
    if d.chance(3):
        wrong = ((-PMD, PMD), (0, 0), (0, -PMD), ((1 << 63) - PMD, 2 * PMD))
        offset, length = d.random.choice(wrong)
    return _slot(d), mode, offset, length


def _truncate(d: Draw) -> tuple[Argument, ...]:
    return _slot(d), PMD * d.random.choice((0, 0, 1, 1, 2, 3, 5)) + (PAGE if d.chance(8) else 0)


def _bound(d: Draw) -> list[int]:
    """List the files whose mount has a limit, of which statfs says what is left."""
    return [slot for slot in d.scope.shares if ops.MOUNTS[ops.MOUNT_OF[slot]].most >= 0]


def _touched(d: Draw) -> Argument:
    if d.chance(20) and d.chosen:
        return Ref(d.random.choice(d.chosen[-6:]), PMD * d.random.choice((0, 0, 1, 2)))
    place = WINDOW + PMD * d.random.randrange(PLACES)
    return place if d.chance(80) else place + PAGE * d.random.randrange(512)


MAKERS: dict[str, Maker] = {
    **makers(_address, _length, _touched),
    "mmap": _mmap,
    "madvise": _madvise,
    "ftruncate": _truncate,
    "fallocate": _fallocate,
    "huge_room": lambda d: (d.random.choice(_bound(d)),),
    "mincore": lambda d: (_address(d), d.random.choice((PAGE, 64 * PAGE, PMD))),
}
"""How arguments are chosen; operations that are not here have none."""
