"""What three in four sequences of a theme begin with, so that there is something to work on."""

from __future__ import annotations

from zaplock import advice
from zaplock.oracle import ops
from zaplock.oracle.draw import Draw
from zaplock.oracle.ops import Op
from zaplock.oracle.themes import BY_SETTING
from zaplock.oracle.windows import (
    HUGE_SOURCE,
    HUGE_WINDOW,
    PAGE,
    PMD,
    SOURCE,
    WATCHED_PAGES,
    WINDOW,
)

_HUGE_PAGES = (  # of the theme "huge"
    Op("mmap", (HUGE_WINDOW, 3 * PMD, 3, 0x32, ops.NO_FILE, 0)),
    Op("madvise", (HUGE_WINDOW, 3 * PMD, 14)),
)
_TO_MOVE = (  # of the theme "uffd-move"
    Op("mmap", (WINDOW, WATCHED_PAGES * PAGE, 3, 0x32, ops.NO_FILE, 0)),
    Op("uffd_register", (WINDOW, WATCHED_PAGES * PAGE, 3)),
    Op("mmap", (SOURCE, 8 * PAGE, 3, 0x32, ops.NO_FILE, 0)),
    Op("madvise", (SOURCE, 6 * PAGE, 23)),
)
_HUGE_TO_MOVE = (  # of the theme "uffd-huge"
    Op("mmap", (HUGE_WINDOW, 2 * PMD, 3, 0x32, ops.NO_FILE, 0)),
    Op("uffd_register", (HUGE_WINDOW, 2 * PMD, 3)),
    Op("mmap", (HUGE_SOURCE, 2 * PMD, 3, 0x32, ops.NO_FILE, 0)),
    Op("madvise", (HUGE_SOURCE, 2 * PMD, advice.MADV_HUGEPAGE)),
    Op("store", (HUGE_SOURCE,)),
    Op("store", (HUGE_SOURCE + PMD + 7 * PAGE,)),
)
_TO_MERGE = (  # of the theme "ksm"
    Op("mmap", (WINDOW, WATCHED_PAGES * PAGE, 3, 0x32, ops.NO_FILE, 0)),
    Op("madvise", (WINDOW, WATCHED_PAGES * PAGE, advice.MADV_MERGEABLE)),
)
_HUGE_TO_MERGE = (
    Op("mmap", (HUGE_WINDOW, 3 * PMD, 3, 0x32, ops.NO_FILE, 0)),
    Op("madvise", (HUGE_WINDOW, 3 * PMD, advice.MADV_HUGEPAGE)),
    Op("madvise", (HUGE_WINDOW, 3 * PMD, advice.MADV_MERGEABLE)),
)
_TO_FREE = (  # of the theme "lazyfree"
    Op("mmap", (WINDOW, WATCHED_PAGES * PAGE, 3, 0x32, ops.NO_FILE, 0)),
    Op("madvise", (WINDOW, WATCHED_PAGES * PAGE, advice.MADV_POPULATE_WRITE)),
    Op("madvise", (WINDOW, WATCHED_PAGES * PAGE, advice.MADV_FREE)),
)


def _huge_of_file(d: Draw) -> tuple[Op, ...]:
    """Make a mapping of a file in memory, or of shared memory, in which huge pages fit."""
    flags, slot = d.random.choice(((0x31, ops.NO_FILE), (0x31, ops.NO_FILE), (0x11, 0), (0x12, 0)))
    where = HUGE_WINDOW + PMD * d.random.randrange(3)
    mapped = (
        Op("mmap", (HUGE_WINDOW, 3 * PMD, 3, flags, slot, 0)),
        Op("store", (where + PAGE * d.random.randrange(16),)),
    )
    collapsed = (Op("madvise", (where, PMD, advice.MADV_COLLAPSE)),)
    if not d.watches:
        return (*mapped, *collapsed)
    mode = d.random.choice((1, 4, 5) if slot == 0 else (1,)) | 2 * d.protects * d.chance(80)
    watched = (Op("uffd_register", (where, PMD, mode)),)
    return (*mapped, *watched) if d.chance(50) else (*mapped, *collapsed, *watched)


def _huge_by_faults(d: Draw) -> tuple[Op, ...]:
    """Map a file that may have huge pages, mostly where they fit, and use a page or two of it."""
    slot, flags = d.huge_slot(), d.random.choice((0x11, 0x11, 0x11, 0x12))
    advises = d.chance(80 if d.theme in BY_SETTING else 40)
    if d.theme in BY_SETTING and d.chance(60):
        slot, flags = ops.NO_FILE, 0x31
    at = HUGE_WINDOW + PAGE * d.random.choice((0, 0, 0, 0, 1, 16, 500))
    where = HUGE_WINDOW + PMD * d.random.randrange(3) + PAGE * d.random.choice((0, 1, 20, 511))
    offset = d.random.choice((0, 0, 0, PMD, PAGE)) if slot != ops.NO_FILE else 0
    made = [Op("mmap", (at, 3 * PMD, 3, flags, slot, offset))]
    if slot in (0, 1):
        made.append(Op("ftruncate", (slot, 4 * PMD - PAGE * d.random.choice((0, 0, 7, 600)))))
    if advises:
        made.append(Op("madvise", (HUGE_WINDOW, 3 * PMD, advice.MADV_HUGEPAGE)))
    if d.watches:
        mode = d.random.choice((1, 4, 5)) | 2 * d.protects * d.chance(80)
        made.append(Op("uffd_register", (where & -PMD, PMD, mode)))
    made.append(Op(d.random.choice(("load", "store")), (where,)))
    return tuple(made)


def _read_before_written(d: Draw) -> tuple[Op, ...]:
    """Populate huge pages for reading, which gives an anon_vma that later merges and forks show."""
    first = d.random.randrange(3)
    length = PMD * d.random.randint(1, 3 - first)
    return (Op("madvise", (HUGE_WINDOW + PMD * first, length, advice.MADV_POPULATE_READ)),)


def _holes_mapped_twice(d: Draw) -> tuple[Op, ...]:
    """Map a file in memory in two places that has no page yet: what is read of it is clean."""
    flags, behind = d.random.choice((0x11, 0x11, 0x12)), WINDOW + WATCHED_PAGES * PAGE
    return (
        Op("ftruncate", (0, 0)),
        Op("ftruncate", (0, 16 * PAGE)),
        Op("mmap", (WINDOW, WATCHED_PAGES * PAGE, 3, 0x11, 0, 0)),
        Op("mmap", (behind, 8 * PAGE, 3, flags, 0, 0)),
    )


def beginning(d: Draw) -> tuple[Op, ...]:
    """Make what three in four sequences of a theme begin with."""
    if d.theme == "uffd-huge":
        return _HUGE_TO_MOVE
    if d.merges == "huge":
        return _HUGE_TO_MERGE
    if d.theme == "collapse-file":
        return _huge_of_file(d)
    if d.makes_shared_huge:
        return _huge_by_faults(d)
    if d.is_huge:
        return (*_HUGE_PAGES, *_read_before_written(d)) if d.chance(30) else _HUGE_PAGES
    if d.theme == "uffd-move" or (d.theme == "swap" and d.chance(30)):
        return _TO_MOVE if d.watches else ()
    if d.theme == "ksm":
        return _TO_MERGE
    if d.theme == "lazyfree":
        return _TO_FREE
    if d.theme == "dirty":
        return _holes_mapped_twice(d)
    if not d.watches:
        return ()
    flags, slot = d.random.choice(((0x32, ops.NO_FILE), (0x31, ops.NO_FILE), (0x11, 0),
                                   (0x12, 0), (0x32, ops.NO_FILE)))  # fmt: skip
    mode = d.random.choice((1, 4, 5) if slot == 0 else (1,))
    mode |= 2 * d.protects * d.chance(80)
    length = WATCHED_PAGES * PAGE
    return (
        Op("mmap", (WINDOW, length, 3, flags, slot, 0)),
        Op("uffd_register", (WINDOW, length, mode)),
    )
