"""In which order recorded calls may have taken effect: what their times allow, or their threads.

A group is what can't be put into one order beforehand. Its items are tried one after the other:
`candidates` are those that may come next, likeliest first; `take` and `give_back` go on and back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence

from zaplock.programs.places import Footprint, SharedPlaces, Span, reasons
from zaplock.programs.recording import Note, TracedCall
from zaplock.programs.spaces import Fork, Item, Threads

Reasons = frozenset[Span] | None
"""Addresses that decide whether calls get their recorded results."""
EVERYTHING: Reasons = None


class Order(ABC):
    """What is left of a group."""

    @property
    @abstractmethod
    def is_done(self) -> bool:
        """Whether every item has been taken."""

    @abstractmethod
    def candidates(self) -> list[Item]:
        """List what may come next."""

    @abstractmethod
    def take(self, item: Item) -> None:
        """Take a candidate away."""

    @abstractmethod
    def give_back(self, item: Item) -> None:
        """Put back what was taken last."""

    @abstractmethod
    def left(self) -> Hashable:
        """Return what tells this rest of the group from any other of it."""

    def in_the_way(self, item: Item) -> tuple[Span, ...]:
        """Return where what was taken last keeps others from their places, whatever comes."""
        return ()

    def reasons(self, call: TracedCall, got: int) -> Reasons:
        """Return what keeps a call from its recorded result, where it would return `got` now."""
        return EVERYTHING

    def lasts(self, call: TracedCall, got: int) -> bool:
        """Return whether nothing that is left changes why a call has not its recorded result."""
        return False

    def touches(self, item: Item, spans: Reasons) -> bool:
        """Return whether what was taken last changes what lies in these spans."""
        return True


class ByTime(Order):
    """Items of which each began and ended at a line: one may come next if nothing ended before."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._pending = list(items)

    @property
    def is_done(self) -> bool:
        """Whether every item has been taken."""
        return not self._pending

    def candidates(self) -> list[Item]:
        """List what began before anything pending had ended."""
        horizon = min(map(end_of, self._pending))
        began = (item for item in self._pending if item.line <= horizon and not self._is_last(item))
        return sorted(began, key=end_of)

    def _is_last(self, item: Item) -> bool:
        """Return whether an item tells how it ended: behind calls in which somebody was killed."""
        return _tells_end(item) and any(
            other.line < item.line and end_of(other) >= NEVER for other in self._pending
        )

    def take(self, item: Item) -> None:
        """Take a candidate away."""
        self._pending.remove(item)

    def give_back(self, item: Item) -> None:
        """Put back what was taken last."""
        self._pending.append(item)

    def left(self) -> Hashable:
        """Return what tells this rest of the group from any other of it."""
        return frozenset((item.line, type(item)) for item in self._pending)


class ByThread(Order):
    """Items of threads that have no common time: each thread's own order, behind its creation.

    `threads`: which thread has made which, and who runs in whose stead. Calls that free memory come
    late among the candidates, for what is placed before them can't have gone to where they make
    room: first those that make it where another thread's next mapping went, then the lowest, which
    fewest others would take.
    """

    def __init__(self, items: Sequence[Item], threads: Threads) -> None:
        self._threads = threads
        self._queues: dict[int, list[Item]] = {}
        for item in sorted(items, key=_line):
            self._queues.setdefault(threads.of(item), []).append(item)
        self._at = dict.fromkeys(self._queues, 0)
        self._places = SharedPlaces(self._queues)

    @property
    def is_done(self) -> bool:
        """Whether every item has been taken."""
        return all(at == len(self._queues[pid]) for pid, at in self._at.items())

    def candidates(self) -> list[Item]:
        """List the next item of each thread that has been made."""
        ready = [item for item in map(self._head, self._queues) if item and self._is_made(item)]
        does = {item.line: self._footprint(item) for item in ready}
        wanted = [span for one in does.values() for span in one.mapped]

        def lateness(item: Item) -> tuple[int, ...]:
            if isinstance(item, Fork) or (isinstance(item, Note) and item.kind == "end"):
                return 3, item.line  # others have come to their end by then, mostly
            freed = does[item.line].freed
            if not freed:
                return 0, item.line
            is_wanted = does[item.line].touches(wanted)
            return (1, item.line) if is_wanted else (2, freed[0][0])

        return sorted(ready, key=lateness)

    def take(self, item: Item) -> None:
        """Take a candidate away."""
        self._at[self._threads.of(item)] += 1

    def give_back(self, item: Item) -> None:
        """Put back what was taken last."""
        self._at[self._threads.of(item)] -= 1

    def left(self) -> Hashable:
        """Return what tells this rest of the group from any other of it."""
        return tuple(self._at.values())

    def in_the_way(self, item: Item) -> tuple[Span, ...]:
        """Return where what was taken last keeps others from their places, whatever comes."""
        pid = self._threads.of(item)
        is_so = self._places.is_in_the_way(pid, self._at[pid] - 1, self._at)
        return self._footprint(item, 1).mapped if is_so else ()

    def reasons(self, call: TracedCall, got: int) -> Reasons:
        """Return what keeps a call from its recorded result, where it would return `got` now."""
        found = reasons(call, got)
        return EVERYTHING if found is None else frozenset(found)

    def lasts(self, call: TracedCall, got: int) -> bool:
        """Return whether nothing that is left changes why a call has not its recorded result."""
        found = reasons(call, got)
        if found is None or len(found) > 1:
            return False
        return self._places.lasts(found[0], free=got > call.result, reached=self._at)

    def touches(self, item: Item, spans: Reasons) -> bool:
        """Return whether what was taken last changes what lies in these spans."""
        return spans is None or self._footprint(item, 1).touches(spans)

    def _footprint(self, item: Item, back: int = 0) -> Footprint:
        """Return what the next item of its thread does, or with `back` what the last one did."""
        pid = self._threads.of(item)
        return self._places.footprint(pid, self._at[pid] - back)

    def _head(self, pid: int) -> Item | None:
        at = self._at.get(pid, 0)
        queue = self._queues.get(pid, ())
        return queue[at] if at < len(queue) else None

    def _is_made(self, item: Item) -> bool:
        """Return whether all threads behind this one have come to where they made the next."""
        makers = self._threads.makers
        pid = makers.get(self._threads.of(item), 0)
        while pid:
            head = self._head(pid)
            if head is not None and head.line < item.line:
                return False
            pid = makers.get(pid, 0)
        return True


def groups(items: Sequence[Item], threads: Threads, *, has_times: bool) -> Iterator[list[Item]]:
    """Cut the items of a space into groups, each of which is behind the one before it."""
    return by_time(items) if has_times else by_thread(items, threads)


def by_time(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Cut the items of a space into groups that don't overlap in time."""
    group: list[Item] = []
    last = -1
    for item in sorted(items, key=_line):
        if group and item.line > last:
            yield group
            group, last = [], -1
        group.append(item)
        last = max(last, min(end_of(item), NEVER))
    if group:
        yield group


def by_thread(items: Sequence[Item], threads: Threads) -> Iterator[list[Item]]:
    """Cut the items of a space into those before it had a second thread, and the rest."""
    ordered = sorted(items, key=_line)
    first = min(threads.made_at.values(), default=1 << 60)
    alone = sum(item.line < first for item in ordered)
    yield from ([item] for item in ordered[:alone])
    if ordered[alone:]:
        yield ordered[alone:]


NEVER = 1 << 59
"""Behind every line: where a call ends whose end is not in the recording."""


def _tells_end(item: Item) -> bool:
    return isinstance(item, Note) and item.kind == "end"


def end_of(item: Item) -> int:
    """Return the line at which an item has ended."""
    return item.line if isinstance(item, Note) else item.end


def _line(item: Item) -> int:
    return item.line
