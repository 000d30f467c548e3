"""Read some fields of a few events, one after the other, without numpy.

For what a recorder has to know while it records: which address space its own read asked for. What
is told of many events is `pages` and `decode`; both walk a page by the same rules (`pages` has
them), and a test holds the two together.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from zaplock.recorder.layouts import EventLayout, Layouts, PageLayout

_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_STAMP_BITS = 59
_LENGTH = (1 << 27) - 1


def events_of(pages: bytes, layout: PageLayout) -> Iterator[tuple[int, int]]:
    """Yield each data event of whole pages: its first byte in `pages`, and when (ns)."""
    for start in range(0, len(pages) // layout.page_size * layout.page_size, layout.page_size):
        yield from _in_page(pages, start, layout)


def _in_page(pages: bytes, start: int, layout: PageLayout) -> Iterator[tuple[int, int]]:
    (time_ns,) = struct.unpack_from("=Q", pages, start)
    (commit,) = struct.unpack_from("=I", pages, start + layout.commit_offset)
    at = start + layout.data_offset
    end = at + min(commit & _LENGTH, layout.page_size - layout.data_offset)
    while at + 8 <= end:
        head, following = struct.unpack_from("=II", pages, at)
        kind, delta = head & 31, head >> 5
        if kind == _TIME_EXTEND:
            time_ns += delta + (following << 27)
            at += 8
        elif kind == _TIME_STAMP:
            time_ns = _stamped(time_ns, delta + (following << 27))
            at += 8
        elif kind == _PADDING:
            if not delta:  # the unused end of the page
                return
            time_ns += delta if delta > 1 else 0
            at += 4 + (following & ~3)
        else:
            time_ns += delta
            yield at + 8 - 4 * bool(kind), time_ns
            at += 4 + 4 * kind if kind else 4 + (following & ~3)


def _stamped(before_ns: int, stamp: int) -> int:
    """Return an absolute time, of which a stamp has the lower bits."""
    now_ns = before_ns >> _STAMP_BITS << _STAMP_BITS | stamp
    return now_ns + (now_ns < before_ns - (1 << (_STAMP_BITS - 1))) * (1 << _STAMP_BITS)


def numbers_of(pages: bytes, layouts: Layouts, name: str) -> Iterator[tuple[int, int]]:
    """Yield a field of each event that has it, and when (ns): an unsigned number."""
    known: dict[int, EventLayout] = {layout.id: layout for layout in layouts.events}
    for at, time_ns in events_of(pages, layouts.page):
        layout = known.get(int.from_bytes(pages[at : at + 2], "little"))
        field = layout.field(name) if layout else None
        if field:
            first = at + field.offset
            yield int.from_bytes(pages[first : first + field.size], "little"), time_ns
