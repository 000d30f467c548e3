"""All mutable state of a model, in small cells that can be journaled, hashed and restored.

Every change of a model goes through `Cells.put` and `Cells.drop`. With journaling off a write is a
write. With journaling on, each write leaves its inverse and updates a 128-bit hash of the whole
state by that one cell, so that the exhaustive engine can step, look whether it has been here before
and step back, at the price of what changed and not of what there is.

Keys and values must be immutable and hashable, and their `repr` must determine them: the hash of a
cell is taken from it, so that two processes agree on the hash of a state.

`OrderedCells` are cells with integer keys that can be walked in order. They keep their keys in a
plain list with `bisect`: the address spaces that are checked and compared hold a few to a few
hundred keys, and even at 65,530 VMAs an insertion only moves half a megabyte of pointers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class _Absent:
    """The value of a cell that is not there."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
Mark = tuple[int, int]


class _CellHashes(dict[tuple[str, Any, Any], int]):
    """Remember the 128-bit hash of each (container, key, value) that was ever seen."""

    __slots__ = ()

    def __missing__(self, cell: tuple[str, Any, Any]) -> int:
        digest = blake2b(repr(cell).encode(), digest_size=16).digest()
        value = self[cell] = int.from_bytes(digest, "little")
        return value


_HASHES: Final = _CellHashes()


class Store:
    """The journal and the hash over all containers of one model."""

    __slots__ = ("containers", "hash", "hashes", "journal")

    def __init__(self) -> None:
        self.containers: dict[str, Cells[Any, Any]] = {}
        self.journal: list[tuple[Cells[Any, Any], Any, Any]] | None = None
        self.hash = 0
        self.hashes = True

    def start_journal(self, hashes: bool = True) -> None:
        """Keep inverses from now on, and the hash unless nobody asks for it."""
        self.journal = []
        self.hashes = hashes
        self.hash = self.recount() if hashes else 0

    def forget_journal(self) -> None:
        """Drop the inverses: what was written so far stays."""
        assert self.journal is not None, "journaling is off"
        self.journal.clear()

    def recount(self) -> int:
        """Hash the whole state from nothing; equals `hash` while journaling."""
        value = 0
        for container in self.containers.values():
            for key, held in container.data.items():
                value ^= _HASHES[(container.name, key, held)]
        return value

    def mark(self) -> Mark:
        """Return a point to which `undo` can go back."""
        assert self.journal is not None, "journaling is off"
        return len(self.journal), self.hash

    def undo(self, mark: Mark) -> None:
        """Take back every write since `mark`, the latest first."""
        journal = self.journal
        assert journal is not None, "journaling is off"
        length, self.hash = mark
        while len(journal) > length:
            container, key, old = journal.pop()
            container.restore(key, old)

    def changes(self, mark: Mark) -> list[tuple[Cells[Any, Any], Any, Any]]:
        """List what changed since `mark` as (container, key, value now)."""
        assert self.journal is not None, "journaling is off"
        touched = {(cells.name, key): cells for cells, key, _ in self.journal[mark[0] :]}
        return [(cells, key, cells.data.get(key, ABSENT)) for (_, key), cells in touched.items()]

    def snapshot(self) -> frozenset[tuple[str, Any, Any]]:
        """Return the full state as a value, for the exact mode and for tests."""
        return frozenset(
            (container.name, key, held)
            for container in self.containers.values()
            for key, held in container.data.items()
        )

    def note(self, container: Cells[Any, Any], key: Any, old: Any, new: Any) -> None:
        """Journal one write; called by containers only."""
        assert self.journal is not None
        self.journal.append((container, key, old))
        if not self.hashes:
            return
        name = container.name
        if old is not ABSENT:
            self.hash ^= _HASHES[(name, key, old)]
        if new is not ABSENT:
            self.hash ^= _HASHES[(name, key, new)]


class Cells(Generic[K, V]):
    """A named mapping whose writes go through the store."""

    __slots__ = ("data", "name", "store")

    def __init__(self, store: Store, name: str) -> None:
        assert name not in store.containers, f"two containers named {name}"
        self.store = store
        self.name = name
        self.data: dict[K, V] = {}
        store.containers[name] = self

    def __getitem__(self, key: K) -> V:
        return self.data[key]

    def get(self, key: K, default: Any = None) -> Any:
        return self.data.get(key, default)

    def __contains__(self, key: K) -> bool:
        return key in self.data

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[K]:
        return iter(self.data)

    def put(self, key: K, value: V) -> None:
        """Write one cell."""
        if self.store.journal is not None:
            old = self.data.get(key, ABSENT)
            if old is not ABSENT and old == value:
                return
            self.store.note(self, key, old, value)
        self.data[key] = value

    def drop(self, key: K) -> V:
        """Remove one cell and return what it held."""
        if self.store.journal is not None:
            self.store.note(self, key, self.data[key], ABSENT)
        return self.data.pop(key)

    def restore(self, key: K, old: V | _Absent) -> None:
        """Put back what a journaled write replaced."""
        if isinstance(old, _Absent):
            del self.data[key]
        else:
            self.data[key] = old


class OrderedCells(Cells[int, V]):
    """Cells with integer keys that can be walked in order."""

    __slots__ = ("order",)

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store, name)
        self.order: list[int] = []

    def put(self, key: int, value: V) -> None:
        if key not in self.data:
            insort(self.order, key)
        super().put(key, value)

    def drop(self, key: int) -> V:
        del self.order[bisect_left(self.order, key)]
        return super().drop(key)

    def restore(self, key: int, old: V | _Absent) -> None:
        if isinstance(old, _Absent):
            del self.order[bisect_left(self.order, key)]
        elif key not in self.data:
            insort(self.order, key)
        super().restore(key, old)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def at_or_before(self, key: int) -> int | None:
        """Return the greatest key that is not above `key`."""
        i = bisect_right(self.order, key)
        return self.order[i - 1] if i else None

    def before(self, key: int) -> int | None:
        """Return the greatest key below `key`."""
        i = bisect_left(self.order, key)
        return self.order[i - 1] if i else None

    def at_or_after(self, key: int) -> int | None:
        """Return the smallest key that is not below `key`."""
        i = bisect_left(self.order, key)
        return self.order[i] if i < len(self.order) else None

    def between(self, low: int, high: int) -> list[int]:
        """List the keys from `low` up to, not including, `high`."""
        return self.order[bisect_left(self.order, low) : bisect_left(self.order, high)]

    def check(self) -> None:
        """Assert that the order and the mapping agree."""
        assert self.order == sorted(self.data), self.name


class RangeMap(OrderedCells[tuple[int, V]]):
    """Half-open integer ranges with a value each; equal neighbours are one range.

    A run of any length is one cell: 320 GB of page-table entries cost as much as one. The cell of a
    range is start -> (end, value), and its form is canonical: two maps that give the same value at
    every point have the same cells, whatever happened to them before.
    """

    __slots__ = ()

    def at(self, point: int) -> V | None:
        """Return the value at `point`, or None in a hole."""
        i = bisect_right(self.order, point)
        if not i:
            return None
        end, value = self.data[self.order[i - 1]]
        return value if point < end else None

    def run_at(self, point: int) -> tuple[int, int, V] | None:
        """Return (start, end, value) of the range around `point`, or None in a hole."""
        i = bisect_right(self.order, point)
        if not i:
            return None
        start = self.order[i - 1]
        end, value = self.data[start]
        return (start, end, value) if point < end else None

    def overlapping(self, low: int, high: int) -> list[tuple[int, int, V]]:
        """List the ranges inside [low, high) as (start, end, value), clipped to it."""
        order, data = self.order, self.data
        i = bisect_right(order, low)
        found: list[tuple[int, int, V]] = []
        if i:
            end, value = data[order[i - 1]]
            if end > low:
                found.append((low, min(end, high), value))
        while i < len(order) and order[i] < high:
            start = order[i]
            if start > low:
                end, value = data[start]
                found.append((start, min(end, high), value))
            i += 1
        return found if low < high else []

    def covers(self, low: int, high: int) -> bool:
        """Return whether every point of [low, high) has a value."""
        order = self.order
        i = max(bisect_right(order, low) - 1, 0)
        while low < high:
            if i == len(order) or order[i] > low:
                return False
            end, _ = self.data[order[i]]
            if end <= low:
                return False
            low = end
            i += 1
        return True

    def any_in(self, low: int, high: int) -> bool:
        """Return whether any point of [low, high) has a value."""
        i = bisect_left(self.order, high)
        return i > 0 and low < high and self.data[self.order[i - 1]][0] > low

    def total(self, low: int, high: int) -> int:
        """Count the points in [low, high) that have a value."""
        return sum(end - start for start, end, _ in self.overlapping(low, high))

    def clear(self, low: int, high: int) -> None:
        """Make [low, high) a hole; an empty range changes nothing."""
        if low >= high:
            return
        order, data = self.order, self.data
        i = bisect_left(order, low)
        if i:
            start = order[i - 1]
            end, value = data[start]
            if end > low:
                self.put(start, (low, value))
                if end > high:
                    self.put(high, (end, value))
                    return
        while i < len(order) and order[i] < high:
            end, value = self.drop(order[i])
            if end > high:
                self.put(high, (end, value))
                return

    def set(self, low: int, high: int, value: V) -> None:
        """Give every point of [low, high) this value."""
        assert low < high, (self.name, low, high)
        self.clear(low, high)
        order, data = self.order, self.data
        i = bisect_left(order, low)
        if i:
            start = order[i - 1]
            end, left = data[start]
            if end == low and left == value:
                low = start
        if i < len(order) and order[i] == high:
            end, right = data[high]
            if right == value:
                self.drop(high)
                high = end
        self.put(low, (high, value))

    def check(self) -> None:
        """Assert order, disjointness and canonical form."""
        super().check()
        previous: tuple[int, V] | None = None
        for start in self.order:
            end, value = self.data[start]
            assert start < end, (self.name, start, end)
            if previous is not None:
                assert previous[0] <= start, f"{self.name}: ranges overlap at {start:#x}"
                merged = previous[0] == start and previous[1] == value
                assert not merged, f"{self.name}: two ranges at {start:#x} should be one"
            previous = end, value
