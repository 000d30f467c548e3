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

import numpy as np
from numpy.typing import NDArray

from zaplock.recorder.layouts import PageLayout

_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_MISSED, _STORED, _LENGTH = 1 << 31, 1 << 30, (1 << 27) - 1
_STAMP_BITS = 59
_WORDS = np.array([0, *range(2, 30), 0, 2, 2], np.int64)
"""How many words an event takes, by its 5 bits; 0 where the next word must be asked."""
_BEYOND = 1 << 40


@dataclass(frozen=True, slots=True)
class PageEvents:
    """The data events of some pages, page by page and in order within a page.

    `offset` is each event's first byte within the pages' bytes and `time_ns` its time. `losses` has
    a row (time_ns, count or -1) for each gap, at the page's own time.
    """

    offset: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    losses: tuple[tuple[int, int], ...]


def walk(raw: NDArray[np.uint8], layout: PageLayout) -> PageEvents:
    """Find every data event in whole pages, laid end to end."""
    nr_pages = len(raw) // layout.page_size
    words = raw[: nr_pages * layout.page_size].view(np.uint32)
    start = np.arange(nr_pages, dtype=np.int64) * layout.page_size
    time_ns = words[start >> 2].astype(np.int64) | (words[(start >> 2) + 1].astype(np.int64) << 32)
    commit = words[(start + layout.commit_offset) >> 2].astype(np.int64)
    data = start + layout.data_offset
    end = data + np.minimum(commit & _LENGTH, layout.page_size - layout.data_offset)
    losses = _losses(words, layout, time_ns, commit, end)
    at, head, count = _heads(words, data >> 2, end >> 2)
    kind = (head & 31).astype(np.uint8)
    happened = _times(words, at, head, kind, time_ns, count)
    offset = (at << 2) + 4
    offset[kind == 0] += 4
    if (data_only := kind < _PADDING).all():
        return PageEvents(offset, happened, losses)
    return PageEvents(offset[data_only], happened[data_only], losses)


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


def _heads(
    words: NDArray[np.uint32], at: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int64]]:
    """Move all pages from head to head, together.

    Gives each head's place (in words) and value, page by page, and how many each page has.
    """
    nr_pages = len(at)
    page = np.flatnonzero(at < end)
    at, end = at[page], end[page]
    count = np.zeros(nr_pages, np.int64)
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]] = []
    while len(page):
        head = words.take(at)
        length = _WORDS.take(head & 31)
        if not length.all():
            _ask_next_word(words, at, head, length)
        steps.append((page, at, head))
        at = at + length
        more = at < end
        if not more.all():
            count[page[~more]] = len(steps)
            page, at, end = page[more], at[more], end[more]
    # A page's n-th head goes to the page's first place plus n.
    first = np.cumsum(count) - count
    places = np.empty(int(count.sum()), np.int64)
    heads = np.empty(len(places), np.uint32)
    for number, (page, at, head) in enumerate(steps):
        place = first[page] + number
        places[place], heads[place] = at, head
    return places, heads, count


def _ask_next_word(
    words: NDArray[np.uint32],
    at: NDArray[np.int64],
    head: NDArray[np.uint32],
    length: NDArray[np.int64],
) -> None:
    """Set the length of long and of discarded events; of a page's unused end, beyond every page."""
    odd = np.flatnonzero(length == 0)
    following = words.take(at[odd] + 1, mode="clip").astype(np.int64)
    length[odd] = 1 + (following >> 2)
    length[odd[head[odd] == _PADDING]] = _BEYOND
    # A word that makes no sense must not make this loop endless.
    length[length < 1] = _BEYOND


def _times(
    words: NDArray[np.uint32],
    at: NDArray[np.int64],
    head: NDArray[np.uint32],
    kind: NDArray[np.uint8],
    base_ns: NDArray[np.int64],
    count: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Add up the time of every head since its page began."""
    delta = (head >> 5).astype(np.int64)
    odd = np.flatnonzero(kind >= _PADDING)
    if len(odd):
        high = words.take(at[odd] + 1, mode="clip").astype(np.int64) << 27
        delta[odd[kind[odd] == _TIME_EXTEND]] += high[kind[odd] == _TIME_EXTEND]
        delta[odd[(kind[odd] == _PADDING) & (delta[odd] == 1)]] = 0
    has = count > 0
    first = (np.cumsum(count) - count)[has]
    base_ns, count = base_ns[has], count[has]
    stamped = odd[kind[odd] == _TIME_STAMP] if len(odd) else odd
    if len(stamped):
        absolute = delta[stamped] + high[kind[odd] == _TIME_STAMP]
        _resolve_stamps(delta, stamped, absolute, first, base_ns)
    total = np.cumsum(delta)
    start = base_ns - (total[first] - delta[first])
    happened: NDArray[np.int64] = total + np.repeat(start, count)
    return happened


def _resolve_stamps(
    delta: NDArray[np.int64],
    stamped: NDArray[np.int64],
    absolute: NDArray[np.int64],
    first: NDArray[np.int64],
    base_ns: NDArray[np.int64],
) -> None:
    """Turn absolute stamps into times since the head before. They are rare: one at a time."""
    for row, stamp in zip(stamped.tolist(), absolute.tolist()):
        page = int(np.searchsorted(first, row, side="right")) - 1
        before = int(base_ns[page]) + int(delta[first[page] : row].sum())
        now = ((before >> _STAMP_BITS) << _STAMP_BITS) | stamp
        if now < before - (1 << (_STAMP_BITS - 1)):
            now += 1 << _STAMP_BITS
        delta[row] = now - before
