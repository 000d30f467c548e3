"""Where operations work: the ranges of memory that are chosen for them."""

from __future__ import annotations

from zaplock.oracle import ring
from zaplock.oracle.draw import Draw
from zaplock.oracle.ops import Argument, Ref
from zaplock.oracle.windows import (
    BELOW_RING,
    HUGE_SOURCE,
    HUGE_WINDOW,
    MOST_REGISTERED,
    PAGE,
    PMD,
    PUD,
    SOURCE,
    WATCHED_PAGES,
    WINDOW,
)


def any_range(d: Draw) -> tuple[Argument, int]:
    """Choose an address and a length in bytes."""
    return d.address(), d.extent()


def range_off_ring(d: Draw) -> tuple[Argument, int]:
    """Choose a range that doesn't reach the ring, for what no seal keeps from it."""
    address, length = any_range(d)
    return address, off_ring(d, address, length)


def off_ring(d: Draw, address: Argument, length: int, most: int = 1 << 64) -> int:
    """Make a length short if it is at least `most`, or reaches the ring, where no seal helps."""
    reaches_ring = isinstance(address, Ref) or address + length >= ring.RING
    wraps = length > (1 << 64) - (1 << 40) and (isinstance(address, Ref) or address > 0)
    if length >= (min(most, BELOW_RING) if reaches_ring else most) and not wraps:
        return PAGE * d.random.randint(1, 8)
    return length


def all_memory(d: Draw) -> tuple[Argument, int]:
    """Choose a range, seldom one as long as all the memory that a process may have."""
    return d.address(), d.extent(wild=True)


def access(d: Draw) -> tuple[Argument, ...]:
    """Choose where to read or write: the beginning of a page, since that is where tags are."""
    where = d.address()
    if isinstance(where, Ref):
        return (where if d.made[where.op].name != "brk" else d.page(),)
    return (where & -PAGE,)


def page_and_length(d: Draw) -> tuple[Argument, int]:
    """Choose where a system call copies to or from: whole pages, and some bytes of a last one.

    No earlier result: where that is an errno, this would begin within a page.
    """
    (where,) = access(d)
    where = d.page() if isinstance(where, Ref) else where
    return where, PAGE * d.random.randint(0, 6) + d.random.choice((0, 0, 8, 2048, 3))


def remote(d: Draw) -> tuple[Argument, int]:
    """Choose what is read or written as if it were another process's."""
    where, length = page_and_length(d)
    return where, 1 << 63 if d.chance(2) else length


def to_register(d: Draw) -> tuple[Argument, int]:
    """Choose a fixed buffer: one that RLIMIT_MEMLOCK, which counts for a whole user, lets pass."""
    address, length = range_off_ring(d)
    return address, length if length > PUD else min(length, MOST_REGISTERED)


def watched(d: Draw) -> tuple[Argument, int]:
    """Choose a range for a userfaultfd: mostly where one watches from the beginning on."""
    if d.chance(20) or d.makes_shared_huge or d.theme in (
        "uffd-huge", "collapse-file", "hugetlb",
    ):  # fmt: skip
        return any_range(d)
    return WINDOW + PAGE * d.random.randrange(WATCHED_PAGES), PAGE * d.random.choice((1, 1, 2, 4))


def pages_to_move(d: Draw) -> tuple[Argument, ...]:
    """Choose where UFFDIO_MOVE brings pages, how much, from where, and its mode."""
    if d.theme == "uffd-huge":
        return _move_huge_pages(d)
    source = d.page() if d.chance(20) else SOURCE + PAGE * d.random.randrange(8)
    return *watched(d), source, d.random.choice((0, 0, 0, 2, 2, 1, 4))


def _move_huge_pages(d: Draw) -> tuple[Argument, ...]:
    """Choose pages to move: whole huge pages, parts of them, and there and back again."""
    target = HUGE_WINDOW + PMD * d.random.randrange(2)
    source = HUGE_SOURCE + PMD * d.random.randrange(2)
    if d.chance(15):
        target, source = source, target
    length = d.random.choice((PMD, PMD, PMD, PAGE, 4 * PAGE, PMD - PAGE, PMD + PAGE, 2 * PMD))
    if d.chance(40):
        target += PAGE * d.random.choice((1, 7, 511, d.random.randrange(512)))
    if d.chance(40):
        source += PAGE * d.random.choice((1, 7, 511, d.random.randrange(512)))
    return target, length, source, d.random.choice((0, 0, 0, 2, 2, 2, 1, 4))
