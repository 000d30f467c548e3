"""Sequences about huge pages of 1 GiB beside those of 2 MiB (the theme "gigantic").

They work in four gigabytes above a boundary of 512 GiB. Most lengths and addresses are whole
gigabytes, one in three is not. The pool has two such pages, so it is often empty. Each page that is
touched costs up to a third of a second, so few operations touch some. What is written is mostly at
the beginning of 2 MiB, as the comparison reads no more of a gigabyte (`ring.LONG_REGION`).

Nothing that may move crosses a boundary of 512 GiB, nor one of 1 GiB where its pages have 2 MiB: a
kernel may move pages to where nothing is mapped then, and lose them (see
docs/findings/moved-elsewhere).
Where there are children pages of 1 GiB are shared: whether fork copies private ones (6.18.44) is up
to what the page of the child's page table held before (copy_hugetlb_page_range asks as if it were a
table of 2 MiB pages how many share it, and that is not set in others).

What a moved mapping loses of its reserve (huge_makers) would be a gigabyte.
"""

from __future__ import annotations

from zaplock import advice
from zaplock.model import flags as f
from zaplock.oracle import ops
from zaplock.oracle.draw import Draw
from zaplock.oracle.huge_makers import Maker, makers
from zaplock.oracle.ops import Argument, Ref

PAGE, PMD, PUD = f.PAGE_SIZE, f.PMD_SIZE, f.PUD_SIZE
PLACES = 4
WINDOW = 1 << 39
_SIZES = (0, f.PMD_SHIFT, f.PUD_SHIFT, f.PUD_SHIFT, 16, 31, 34)
_ADVICE = (
    *[advice.MADV_DONTNEED] * 4, *[advice.MADV_REMOVE] * 4, 22, 23, advice.MADV_FREE, 20, 102, 103,
    24, advice.MADV_COLLAPSE, 3, 10, 11, 14, 15, 16, 17, 18, 19, 12, 13, 1, 2, 99,
)  # fmt: skip
_POPULATES = (22, 23)


def _address(d: Draw) -> Argument:
    """Choose an address: mostly of a whole gigabyte, else of 2 MiB, of a page, or of neither."""
    r = d.random.random()
    place = WINDOW + PUD * d.random.randrange(PLACES)
    if r < 0.60:
        return place
    if r < 0.75:
        far = 3 if d.moves else 511
        return place + PMD * d.random.choice((1, 2, 3, far, d.random.randint(1, far)))
    if r < 0.82:
        return place + PAGE * d.random.randrange((4 * PMD if d.moves else PUD) // PAGE)
    if r < 0.97 and d.chosen:
        return Ref(
            d.random.choice(d.chosen[-6:]),
            d.random.choice((0, 0, 0, PUD, PMD, 0 if d.moves else -PUD)),
        )
    return place + d.random.choice((0, 1, PAGE - 1))


def _length(d: Draw) -> int:
    r = d.random.random()
    if r < 0.62:
        return PUD
    if r < 0.74:
        return PUD * d.random.randint(2, 3)
    if r < 0.90:
        return PMD * d.random.choice((1, 1, 2, 3, 4))
    return d.random.choice((PAGE, PUD - PAGE, PUD + PAGE, PUD - PMD, PUD + PMD, 0, 1 << 40))


def _small(d: Draw) -> int:
    """Choose a length of which nothing is filled that isn't huge."""
    return PMD * d.random.choice((1, 1, 2, 3, 4)) - PAGE * d.chance(15)


def _mmap(d: Draw) -> tuple[Argument, ...]:
    shared = d.chance(40)
    flags = (f.MAP_SHARED if shared else f.MAP_PRIVATE) | (f.MAP_FIXED if d.chance(55) else 0)
    for flag, percent in ((f.MAP_POPULATE, 4), (f.MAP_LOCKED, 3), (f.MAP_32BIT, 3),
                          (f.MAP_FIXED_NOREPLACE, 4), (f.MAP_GROWSDOWN, 1),
                          (f.MAP_STACK, 2)):  # fmt: skip
        flags |= flag if d.chance(percent) else 0
    if d.chance(3):
        flags = flags & ~3 | d.random.choice((0, 3, 8))
    if d.chance(35) or (d.moves and not shared):
        flags |= f.MAP_NORESERVE
    slot, offset, r = ops.NO_FILE, 0, d.random.random()
    if r < 0.45:
        flags |= f.MAP_ANONYMOUS | f.MAP_HUGETLB | f.PUD_SHIFT << f.MAP_HUGE_SHIFT
        if d.forks and flags & f.MAP_PRIVATE:
            flags ^= f.MAP_PRIVATE | f.MAP_SHARED
        length = _length(d)
    elif r < 0.58:
        flags |= f.MAP_ANONYMOUS | f.MAP_HUGETLB | d.random.choice((0, 21)) << f.MAP_HUGE_SHIFT
        length = _small(d)
    elif r < 0.62:
        sizes = _SIZES[4:] if d.forks else _SIZES
        flags |= f.MAP_ANONYMOUS | f.MAP_HUGETLB | d.random.choice(sizes) << f.MAP_HUGE_SHIFT
        length = _small(d)
    elif r < 0.68:
        flags |= f.MAP_ANONYMOUS
        length = PAGE * d.random.randint(1, 4)
    else:
        slot = d.random.choice((5, 6, 6, 6))
        flags |= f.MAP_HUGETLB if d.chance(20) else 0
        grain = ops.HUGE_FILES[slot][1]
        if slot == 6 and d.forks and flags & f.MAP_PRIVATE:
            flags ^= f.MAP_PRIVATE | f.MAP_SHARED
        length = _length(d) if slot == 6 else _small(d)
        offset = grain * d.random.choice((0, 0, 0, 1, 1, 2)) + (PMD if d.chance(5) else 0)
    address = 0 if not flags & f.MAP_FIXED and d.chance(50) else _address(d)
    return address, length, d.prot(), flags, slot, offset


def _madvise(d: Draw) -> tuple[Argument, ...]:
    chosen = d.random.choice(_ADVICE)
    length = d.random.choice((PAGE, PMD, PUD)) if chosen in _POPULATES else _length(d)
    address = _address(d)
    if isinstance(address, Ref) and not _is_gigantic(d, address):
        length = min(length, 3 * PMD)  # above may lie the ring, which no seal keeps from advice
    return address, min(length, PUD) if isinstance(address, Ref) else length, chosen


def _is_gigantic(d: Draw, address: Ref) -> bool:
    """Return whether an earlier result is where a mapping of 1 GiB pages begins."""
    op = d.made[address.op]
    flags = op.args[3] if op.name == "mmap" and not address.delta else 0
    return isinstance(flags, int) and flags >> f.MAP_HUGE_SHIFT & f.MAP_HUGE_MASK == f.PUD_SHIFT


def _truncate(d: Draw) -> tuple[Argument, ...]:
    slot = d.random.choice((5, 6, 6))
    grain = ops.HUGE_FILES[slot][1]
    return slot, grain * d.random.choice((0, 0, 1, 1, 2, 3)) + (PAGE if d.chance(8) else 0)


def _touched(d: Draw) -> Argument:
    """Choose where to read or write: where the comparison looks, or anywhere at a page."""
    place = WINDOW + PUD * d.random.randrange(PLACES)
    if d.chance(20) and d.chosen:
        return Ref(d.random.choice(d.chosen[-6:]), d.random.choice((0, 0, PMD)))
    if d.chance(50):
        return place
    return place + (PMD if d.chance(70) else PAGE) * d.random.randrange(512)


MAKERS: dict[str, Maker] = {
    **makers(_address, _length, _touched),
    "mmap": _mmap,
    "madvise": _madvise,
    "ftruncate": _truncate,
    "mlock": lambda d: (_address(d), _small(d)),
    "mincore": lambda d: (_address(d), d.random.choice((PAGE, 64 * PAGE, 4000 * PAGE, PUD))),
}
"""How arguments are chosen; operations that are not here have none."""
