"""Where sequences work, and how much of the address space and of memory they may touch.

The small windows lie across page-table boundaries, so that mappings meet, split, merge and share
page tables all the time. The ring of the bare process is kept out of the way.
"""

from __future__ import annotations

from zaplock.oracle import ring
from zaplock.oracle.ops import Op, Ref, arguments_of

PAGE, PMD, PUD, PGD = ring.PAGE, 1 << 21, 1 << 30, 1 << 39
WINDOW = 0x1020_0000 - 16 * PAGE  # sixteen pages below a boundary of page-table pages
WINDOW_PAGES = 28
WATCHED_PAGES = 16  # from WINDOW on, in the theme of userfaultfd
SOURCE = WINDOW + (WATCHED_PAGES + 2) * PAGE  # of pages to be moved
HUGE_WINDOW = 0x2000_0000  # where huge pages fit: four page-middle-directory entries
HUGE_SOURCE = HUGE_WINDOW + 2 * PMD  # of huge pages to be moved
FAR_WINDOWS = (  # as WINDOW, below boundaries of page tables of every level, and one at its start
    WINDOW + 64 * PMD, PUD - 16 * PAGE, PGD - 16 * PAGE, PGD + PUD - 16 * PAGE, 3 * PGD,
)  # fmt: skip
LONG = (PMD - 16 * PAGE, PMD, PMD + 16 * PAGE, 3 * PMD, PUD // 4, PUD - PMD, PUD, PUD + PMD)
MOST_FILLED = 16 << 20  # bytes that one operation may fault in
MOST_GUARDED = 64 << 20
MOST_REGISTERED = 1 << 20
BELOW_RING = 8 << 20  # bytes between where the kernel begins to map and the ring, at least

_ABOVE = ring.RING + ring.RING_SIZE
UNMAP_ALL = (  # how every sequence ends
    Op("munmap", (_ABOVE, ring.TASK_SIZE - _ABOVE)),
    Op("munmap", (PAGE, ring.RING - PAGE)),
)


def away_from_ring(op: Op) -> Op:
    """Make an operation's range short where it might reach the ring of a process without mseal."""
    names = arguments_of(op.name)
    if op.name.startswith("process_vm"):  # short, or refused
        return op
    if "addr" not in names or "length" not in names:
        return op
    arguments, at = list(op.args), names.index("length")
    start, length = arguments[names.index("addr")], arguments[at]
    assert isinstance(length, int)
    if length > PAGE and (isinstance(start, Ref) or start + length >= ring.RING - BELOW_RING):
        arguments[at] = min(length, BELOW_RING >> 1) if isinstance(start, Ref) else PAGE
    if op.name == "mremap" and isinstance(arguments[2], int) and arguments[2] > BELOW_RING >> 1:
        arguments[2] = PAGE
    return Op(op.name, tuple(arguments))
