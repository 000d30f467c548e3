"""What threads without a common time leave each other: who maps and frees which addresses.

What a kernel placed where it did was free then, and no place that is looked at before it was. So
some orders of what is left can't come about, which shows long before they have been tried: a page
that is mapped and that nobody frees next is mapped by nobody else; a hole that nobody fills any
more takes whatever fits. Conclusions are drawn only where all addresses are told by the calls.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from zaplock.model import flags as f
from zaplock.programs.recording import UNKNOWN, TracedCall
from zaplock.programs.spaces import Item
from zaplock.programs.text import number

Span = tuple[int, int]
"""Addresses [start, end)."""

_UNTOLD = ("shmat", "shmdt", "io_setup", "io_destroy", "remap_file_pages")
"""Calls that map or unmap what their arguments don't tell."""


class Footprint(NamedTuple):
    """What a call does to addresses: those that it maps where they were free, replaces, frees."""

    mapped: tuple[Span, ...] = ()
    replaced: tuple[Span, ...] = ()
    freed: tuple[Span, ...] = ()

    def touches(self, spans: Iterable[Span]) -> bool:
        """Return whether any of its addresses are in one of these spans."""
        changed = (*self.mapped, *self.replaced, *self.freed)
        return bool(changed) and any(_meet(span, own) for span in spans for own in changed)


NOTHING = Footprint()


def footprint(item: Item) -> Footprint | None:
    """Return what an item does to addresses; None where it doesn't tell."""
    if not isinstance(item, TracedCall) or item.result < 0:
        return NOTHING
    if item.name in _UNTOLD or item.result >= UNKNOWN:
        return None if item.name in (*_UNTOLD, *_FOOTPRINTS) else NOTHING
    try:
        return _FOOTPRINTS[item.name](item) if item.name in _FOOTPRINTS else NOTHING
    except (ValueError, IndexError):
        return None


def _of_mmap(call: TracedCall) -> Footprint:
    span = (call.result, call.result + f.page_align(number(call.arguments[1])))
    is_fixed = number(call.arguments[3]) & f.MAP_FIXED
    return Footprint(replaced=(span,)) if is_fixed else Footprint(mapped=(span,))


def _of_munmap(call: TracedCall) -> Footprint:
    start = number(call.arguments[0])
    return Footprint(freed=((start, start + f.page_align(number(call.arguments[1]))),))


def _of_mremap(call: TracedCall) -> Footprint:
    old, old_length, new_length = (number(argument) for argument in call.arguments[:3])
    end, new_end = old + f.page_align(old_length), call.result + f.page_align(new_length)
    if call.result != old:
        is_fixed = number(call.arguments[3]) & f.MREMAP_FIXED
        span = ((call.result, new_end),)
        freed = ((old, end),) if end > old else ()
        return Footprint((), span, freed) if is_fixed else Footprint(span, (), freed)
    if new_end < end:
        return Footprint(freed=((new_end, end),))
    return Footprint(mapped=((end, new_end),)) if new_end > end else NOTHING


_FOOTPRINTS = {"mmap": _of_mmap, "mmap2": _of_mmap, "munmap": _of_munmap, "mremap": _of_mremap}


class SharedPlaces:
    """Who of several threads maps and frees what, by their queues of items."""

    def __init__(self, queues: Mapping[int, Sequence[Item]]) -> None:
        told = {pid: [footprint(item) for item in queue] for pid, queue in queues.items()}
        self._is_told = all(one is not None for footprints in told.values() for one in footprints)
        self._footprints = {pid: [one or NOTHING for one in own] for pid, own in told.items()}
        ends = {
            address
            for own in self._footprints.values()
            for one in own
            for span in (*one.mapped, *one.replaced, *one.freed)
            for address in span
        }
        self._cuts = sorted(ends)
        self._events: list[dict[int, list[tuple[int, bool]]]] = [{} for _ in self._cuts]
        """For each piece between two cuts, where in its queue each thread maps or frees it."""
        self._fillers: list[dict[int, int]] = [{} for _ in self._cuts]
        """... and where it does so for the last time with any mapping."""
        self._emptiers: list[dict[int, int]] = [{} for _ in self._cuts]
        for pid, own in self._footprints.items():
            for at, one in enumerate(own):
                self._add(pid, at, one)

    def _add(self, pid: int, at: int, one: Footprint) -> None:
        for k in self._pieces(one.mapped):
            self._events[k].setdefault(pid, []).append((at, True))
        for k in self._pieces(one.freed):
            self._events[k].setdefault(pid, []).append((at, False))
            self._emptiers[k][pid] = at
        for k in self._pieces((*one.mapped, *one.replaced)):
            self._fillers[k][pid] = at

    def _pieces(self, spans: Sequence[Span]) -> Iterator[int]:
        for low, high in spans:
            first = max(bisect_right(self._cuts, low) - 1, 0)
            yield from range(first, bisect_left(self._cuts, high))

    def footprint(self, pid: int, at: int) -> Footprint:
        """Return what an item of a queue does."""
        return self._footprints[pid][at]

    def is_in_the_way(self, pid: int, at: int, reached: Mapping[int, int]) -> bool:
        """Return whether to map now what an item maps would keep others from their places for good.

        `reached`: of each thread, how many of its items have come, this one among them.
        """
        return self._is_told and any(
            self._stays_needed(k, reached) for k in self._pieces(self._footprints[pid][at].mapped)
        )

    def _stays_needed(self, piece: int, reached: Mapping[int, int]) -> bool:
        """Return whether somebody maps a piece next, and nobody frees it before."""
        is_needed = False
        for pid, events in self._events[piece].items():
            k = bisect_left(events, (reached[pid], False))
            if k < len(events):
                if not events[k][1]:
                    return False
                is_needed = True
        return is_needed

    def lasts(self, span: Span, *, free: bool, reached: Mapping[int, int]) -> bool:
        """Return whether nobody will fill a span that is free, or free one that is not."""
        last = self._fillers if free else self._emptiers
        return self._is_told and not any(
            at >= reached[pid] for k in self._pieces((span,)) for pid, at in last[k].items()
        )


def reasons(call: TracedCall, got: int) -> tuple[Span, ...] | None:
    """Return where a call may look for its place, so that it went elsewhere; None if unknown.

    `got`: where it would go instead. As long as nothing there changes it does not go where the
    recording has it, since what goes down from above takes the first place that is free: the first
    of these spans is free where `got` is above, and else it is not.
    """
    if call.name not in ("mmap", "mmap2", "mremap") or got < 0 or call.result < 0:
        return None
    try:
        address = number(call.arguments[0])
        length = f.page_align(number(call.arguments[2 if call.name == "mremap" else 1]))
        flags = number(call.arguments[3])
    except (ValueError, IndexError):
        return None
    if call.name != "mremap" and flags & (f.MAP_32BIT | f.MAP_HUGETLB | f.MAP_FIXED):
        return None
    beside = f.PMD_SIZE if length >= f.PMD_SIZE else 0  # what is laid to fit huge pages
    start = max(got, call.result)
    here = (start - beside, start + length + beside)
    return (here, (address, address + length)) if address else (here,)


def _meet(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]
