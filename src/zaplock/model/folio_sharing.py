"""Whether others map a folio, too: what a kernel takes for the answer, and what is so.

Only the counts of its pages were there to tell until large folios knew who maps them (6.15). So
advice has had six ways to find out, each of which is wrong elsewhere.

Sources: mm/madvise.c (madvise_cold_or_pageout_pte_range, madvise_free_pte_range), mm/huge_memory.c
madvise_free_huge_pmd, include/linux/mm.h (page_mapcount, folio_estimated_sharers,
folio_likely_mapped_shared, folio_maybe_mapped_shared). The commits: designs.changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from zaplock.model.shared_huge import IN_MEMORY
from zaplock.model.shared_huge import KIND as SHARED_HUGE

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.mm import Mm

Sharing = Literal[
    "page", "all pages", "first page once", "first page twice", "guess", "address space"
]
"""By what an advice finds out whether others map a folio, too, and lets it be then.

"page": whether the page that it came to is mapped once. "all pages": whether all of them together
are (a huge entry counts once, so what small entries map is never one's own). "first page once":
whether the folio's first page is mapped once, "first page twice": whether that is mapped no more
than once. "guess": whether neither the first page is mapped twice nor the folio more often than it
has pages. "address space": whether no other address space maps any of it.
"""


class SharedFolios(NamedTuple):
    """What an advice does about folios that others map, too.

    small: by what it finds them where small entries map them. huge: where a huge entry does.
    splits_whole: it splits also those that small entries map as a whole, and ends at the first that
    others map for that page table; else it splits what its range covers in part, and goes on.
    """

    small: Sharing
    huge: Sharing
    splits_whole: bool


def is_shared(m: Machine, space: Mm, head: int, pages: int, page: int, sharing: Sharing) -> bool:
    """Return whether others map the folio of frames [head, head + pages), as a kernel tells that.

    page: the frame of it that the kernel came to.
    """
    first = _maps_of_page(m, head)
    match sharing:
        case "page":
            return _maps_of_page(m, page) != 1
        case "all pages":
            counted_often = (pages - 1) * _huge_entries(m, head, pages)
            return maps_of_folio(m, head, pages) - counted_often != 1
        case "first page once":
            return first != 1
        case "first page twice":
            return first > 1
        case "guess":
            return first > 1 or maps_of_folio(m, head, pages) > pages
        case "address space":
            return is_mapped_elsewhere(m, space, head, pages)


def is_mapped_elsewhere(m: Machine, space: Mm, head: int, pages: int) -> bool:
    """Return whether another address space maps any of frames [head, head + pages)."""
    return any(
        start + pte.delta < head + pages and head < end + pte.delta
        for other in m.mms.values()
        if other.mm != space.mm
        for start, (end, pte) in other.ptes.data.items()
        if pte.kind in _OF_FOLIOS
    )


_OF_FOLIOS = ("anon", "thp", *IN_MEMORY)


def maps_of_folio(m: Machine, head: int, pages: int) -> int:
    """Return how often the pages of a folio are mapped together; a huge entry maps each of them."""
    runs = m.frames.overlapping(head, head + pages)
    return sum((end - start) * frame.maps for start, end, frame in runs)


def _maps_of_page(m: Machine, pfn: int) -> int:
    frame = m.frames.at(pfn)
    return frame.maps if frame is not None else 0


def _huge_entries(m: Machine, head: int, pages: int) -> int:
    """Return how many huge entries map a folio, in all address spaces."""
    return sum(
        pte.kind in ("thp", SHARED_HUGE)
        and start + pte.delta <= head
        and head + pages <= end + pte.delta
        for space in m.mms.values()
        for start, (end, pte) in space.ptes.data.items()
    )
