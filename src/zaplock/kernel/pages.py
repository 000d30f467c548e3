"""Walk the kernel's ring-buffer pages: where each event begins and when it happened.

A page is a header (time stamp, number of bytes committed, loss flags) and a run of events, each
with a 32-bit head: 5 bits of type or length, 27 bits of time since the event before
(kernel/trace/ring_buffer.c, include/linux/ring_buffer.h). Where an event begins is only known from
the one before, so a page must be walked; but pages don't depend on each other. So all pages step
together: one numpy operation moves every page to its next event.

The heads, by their 5 bits:

0         data; the next word is its length, 4 for that word included
1 to 28   data of 4 times that many bytes
29        a discarded event (the next word is its length) or, with time 0, the unused end of a page;
          a discarded event's time 1 stands for none (`rb_event_discard`)
30        time extend: the next word is the upper part of the time since the event before
31        absolute time stamp of 59 bits; the upper 5 come from the time before (6.0 and later)

Losses: bit 31 of `commit` says that events before this page were overwritten, bit 30 that their
number stands behind the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.kernel.layouts import PageLayout

_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_MISSED, _STORED, _LENGTH = 1 << 31, 1 << 30, (1 << 27) - 1
_STAMP_BITS = 59


@dataclass(frozen=True, slots=True)
class Found:
    """The data events of some pages, page by page and in order within a page.

    `offset` is each event's first byte within the pages' bytes, `time_ns` its time and `page` its
    page. `losses` has a row (time_ns, count or -1) for each gap, at the page's own time.
    """

    offset: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    page: NDArray[np.int64]
    losses: tuple[tuple[int, int], ...]


def walk(raw: NDArray[np.uint8], layout: PageLayout) -> Found:
    """Find every data event in whole pages, laid end to end."""
    nr_pages = len(raw) // layout.page_size
    words = raw[: nr_pages * layout.page_size].view(np.uint32)
    start = np.arange(nr_pages, dtype=np.int64) * layout.page_size
    time_ns = words[start >> 2].astype(np.int64) | (words[(start >> 2) + 1].astype(np.int64) << 32)
    commit = words[(start + layout.commit_offset) >> 2].astype(np.int64)
    data = start + layout.data_offset
    end = data + np.minimum(commit & _LENGTH, layout.page_size - layout.data_offset)
    losses = _losses(words, layout, time_ns, commit, end)
    return Found(*_step(words, data, end, time_ns.copy()), losses)


def _losses(
    words: NDArray[np.uint32],
    layout: PageLayout,
    time_ns: NDArray[np.int64],
    commit: NDArray[np.int64],
    end: NDArray[np.int64],
) -> tuple[tuple[int, int], ...]:
    found = []
    for page in np.flatnonzero(commit & _MISSED):
        stored = bool(commit[page] & _STORED)
        at = int(end[page]) >> 2
        lost = int(words[at]) | (int(words[at + 1]) << 32) if stored else -1
        found.append((int(time_ns[page]), lost))
    return tuple(found)


def _step(
    words: NDArray[np.uint32],
    at: NDArray[np.int64],
    end: NDArray[np.int64],
    time_ns: NDArray[np.int64],
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Move all pages from event to event; `at` is where each page's next event begins."""
    nr_pages = len(at)
    page = np.flatnonzero(at < end)
    at, end, time_ns = at[page], end[page], time_ns[page]
    offsets, times, pages = [], [], []
    while len(page):
        head = words[at >> 2]
        kind = (head & 31).astype(np.int64)
        time_ns = time_ns + (head >> 5)
        length = (kind << 2) + 4
        data: NDArray[Any] | slice = slice(None)
        first = at + 4
        odd = np.flatnonzero((kind == 0) | (kind >= _PADDING))
        if len(odd):
            time_ns[odd], length[odd], first[odd] = _odd_heads(
                kind[odd], head[odd], words[(at[odd] >> 2) + 1], time_ns[odd], at[odd]
            )
            data = np.flatnonzero(kind < _PADDING)
        offsets.append(first[data])
        times.append(time_ns[data])
        pages.append(page[data])
        at = at + length
        more = at < end
        if not more.all():
            at, end, time_ns, page = at[more], end[more], time_ns[more], page[more]
    return _page_by_page(offsets, times, pages, nr_pages)


def _odd_heads(
    kind: NDArray[np.int64],
    head: NDArray[np.uint32],
    word: NDArray[np.uint32],
    time_ns: NDArray[np.int64],
    at: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Give time, length and first byte of the data where the next word matters."""
    delta = (head >> 5).astype(np.int64)
    high = word.astype(np.int64)
    long, padding = kind == 0, kind == _PADDING
    extend, stamp = kind == _TIME_EXTEND, kind == _TIME_STAMP
    length = np.select([long | padding, extend | stamp], [high + 4, np.full_like(high, 8)])
    # The unused end of a page: beyond every page, so that this page is done.
    length[padding & (delta == 0)] = 1 << 40
    before = time_ns - delta
    upper = (before >> _STAMP_BITS) << _STAMP_BITS
    absolute = (high << 27) + delta + upper
    absolute = np.where(absolute < before - (1 << 58), absolute + (1 << _STAMP_BITS), absolute)
    time_ns = np.select(
        [extend, stamp, padding & (delta == 1)], [time_ns + (high << 27), absolute, before], time_ns
    )
    return time_ns, length, at + np.where(long, 8, 4)


def _page_by_page(
    offsets: list[NDArray[np.int64]],
    times: list[NDArray[np.int64]],
    pages: list[NDArray[np.int64]],
    nr_pages: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Turn "the n-th event of each page" into "each page's events"."""
    if not offsets:
        nothing = np.empty(0, np.int64)
        return nothing, nothing.copy(), nothing.copy()
    offset, time_ns, page = np.concatenate(offsets), np.concatenate(times), np.concatenate(pages)
    # An event's place is its page's first place plus how many of its page came before it.
    first = np.zeros(nr_pages + 1, np.int64)
    np.cumsum(np.bincount(page, minlength=nr_pages), out=first[1:])
    place = np.empty(len(page), np.int64)
    filled = first[:-1].copy()
    start = 0
    for step in pages:
        place[start : start + len(step)] = filled[step]
        filled[step] += 1
        start += len(step)
    return tuple(_scattered(column, place) for column in (offset, time_ns, page))  # type: ignore[return-value]


def _scattered(column: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
    out = np.empty_like(column)
    out[place] = column
    return out
