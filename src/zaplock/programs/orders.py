"""In which order recorded calls may have taken effect: what their times allow, or their threads.

A group is what can't be put into one order beforehand. Its items are tried one after the other:
`candidates` are those that may come next, likeliest first; `take` and `give_back` go on and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from zaplock.programs.recording import Note, TracedCall
from zaplock.programs.spaces import Fork, Item, Threads
from zaplock.programs.text import number


class Order(Protocol):
    """What is left of a group."""

    @property
    def is_done(self) -> bool:
        """Whether every item has been taken."""

    def candidates(self) -> list[Item]:
        """List what may come next."""

    def take(self, item: Item) -> None:
        """Take a candidate away."""

    def give_back(self, item: Item) -> None:
        """Put back what was taken last."""

    def decides(self, item: Item) -> bool:
        """Return whether it may help to take something else in the place of an item."""


class ByTime:
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

    def decides(self, item: Item) -> bool:
        """Return True: what follows may depend on any of them."""
        return True


class ByThread:
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

    @property
    def is_done(self) -> bool:
        """Whether every item has been taken."""
        return all(at == len(self._queues[pid]) for pid, at in self._at.items())

    def candidates(self) -> list[Item]:
        """List the next item of each thread that has been made."""
        heads = (self._head(pid) for pid in self._queues)
        ready = [item for item in heads if item is not None and self._is_made(item)]
        wanted = [span for item in ready for span in _placed(item)]

        def lateness(item: Item) -> tuple[int, ...]:
            if isinstance(item, Fork) or (isinstance(item, Note) and item.kind == "end"):
                return 3, item.line  # others have come to their end by then, mostly
            freed = _freed(item)
            if not freed:
                return 0, item.line
            is_wanted = any(low < freed[1] and freed[0] < high for low, high in wanted)
            return (1, item.line) if is_wanted else (2, freed[0])

        return sorted(ready, key=lateness)

    def take(self, item: Item) -> None:
        """Take a candidate away."""
        self._at[self._threads.of(item)] += 1

    def give_back(self, item: Item) -> None:
        """Put back what was taken last."""
        self._at[self._threads.of(item)] -= 1

    def decides(self, item: Item) -> bool:
        """Return whether an item makes room, and so decides where what follows may go."""
        return _freed(item) is not None

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


def _placed(item: Item) -> list[tuple[int, int]]:
    """Return where an mmap has gone, an empty list for any other item."""
    if not isinstance(item, TracedCall) or item.name != "mmap" or item.result <= 0:
        return []
    try:
        return [(item.result, item.result + number(item.arguments[1]))]
    except (ValueError, IndexError):
        return []


def _freed(item: Item) -> tuple[int, int] | None:
    """Return the addresses that a call may free; None where it frees none."""
    if not isinstance(item, TracedCall) or item.name not in ("munmap", "mremap", "brk"):
        return None
    try:
        start = number(item.arguments[0])
        return start, start + (number(item.arguments[1]) if item.name != "brk" else 1)
    except (ValueError, IndexError):
        return 0, 0
