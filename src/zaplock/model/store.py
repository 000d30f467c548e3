"""All mutable state of a model, in small cells that can be journaled, hashed and restored.

Every change of a model goes through `Cells.put` and `Cells.drop`. With journaling off a write is a
write. With journaling on, each write leaves its inverse and updates a 128-bit hash of the whole
state by that one cell, so that the exhaustive engine can step, look whether it has been here before
and step back, at the price of what changed and not of what there is.

Keys and values must be frozen (see `model.frozen`): while there is a journal, and in the checker,
what could be changed in place is refused, and 1 is told from True. The hash of a cell is taken from
the `repr` of its exact value, so that two processes agree on the hash of a state.

Containers that come into being on the way (a file's, a CPU's) belong to an `OnDemand`, which makes
no difference between one that is empty and one that was never asked for.

`OrderedCells` are cells with integer keys that can be walked in order. They keep their keys in a
plain list with `bisect`: the address spaces that are checked and compared hold a few to a few
hundred keys, and even at 65,530 VMAs an insertion only moves half a megabyte of pointers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable, Iterator
from hashlib import blake2b
from typing import Any, Final, Generic, NamedTuple, TypeVar

from zaplock.model.frozen import exact, same

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D", bound=dict[Any, Any])


class Absent:
    """The value of a cell that is not there."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()
Mark = tuple[int, int]


class _CellHashes(dict[tuple[str, Hashable, Hashable], int]):
    """Remember the 128-bit hash of each (container, exact key and value) that was ever seen."""

    __slots__ = ()

    def __missing__(self, cell: tuple[str, Hashable, Hashable]) -> int:
        digest = blake2b(_spelled(cell).encode(), digest_size=16).digest()
        value = self[cell] = int.from_bytes(digest, "little")
        return value


def _spelled(value: Any) -> str:
    """Write an exact value; Python writes no number of many thousand digits but in hex."""
    try:
        return repr(value)
    except ValueError:
        if isinstance(value, tuple):
            return f"({', '.join(map(_spelled, value))})"
        return hex(value)


_HASHES: Final = _CellHashes()


class Kept(NamedTuple):
    """What a store held: each container, its cells and their keys in order; and how many entries
    each of the dicts had that name containers."""

    cells: list[tuple[Cells[Any, Any], dict[Any, Any], list[Any]]]
    counts: list[tuple[dict[Any, Any], int]]


class Store:
    """The journal and the hash over all containers of one model."""

    __slots__ = ("_containers", "families", "hash", "hashes", "journal", "making", "origins")

    def __init__(self) -> None:
        self._containers: dict[str, Cells[Any, Any]] = {}
        self.families: dict[str, OnDemand[Any, Any]] = {}
        self.origins: dict[str, tuple[str, Any]] = {}
        self.making: tuple[str, Any] | None = None
        self.journal: list[tuple[Cells[Any, Any], Any, Any]] | None = None
        self.hash = 0
        self.hashes = True

    @property
    def made(self) -> int:
        """How many containers there are."""
        return len(self._containers)

    def containers(self) -> list[Cells[Any, Any]]:
        """List all containers in the order in which they were made."""
        return list(self._containers.values())

    def register(self, container: Cells[Any, Any]) -> None:
        """Take a container in; called by containers only."""
        assert container.name not in self._containers, f"two containers named {container.name}"
        self._containers[container.name] = container
        if self.making is not None:
            self.origins[container.name] = self.making

    def keep(self) -> Kept:
        """Copy what all containers hold, for `begin_again`."""
        cells = [(one, one.data.copy(), list(one)) for one in self._containers.values()]
        growing: list[dict[Any, Any]] = [
            self._containers,
            self.origins,
            *(one.made for one in self.families.values()),
        ]
        return Kept(cells, [(one, len(one)) for one in growing])

    def begin_again(self, kept: Kept) -> None:
        """Hold what was kept and nothing else: containers that have come since are no more."""
        assert self.journal is None, "a journal knows nothing of it"
        for growing, count in kept.counts:
            while len(growing) > count:
                growing.popitem()  # the latest
        for cells, data, order in kept.cells:
            cells.begin_again(data, order)

    def close(self) -> None:
        """Forget the containers, which name the store as it names them."""
        self._containers.clear()
        self.families.clear()

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
        for container in self.containers():
            for key, held in container.data.items():
                value ^= _HASHES[(container.name, exact(key), exact(held))]
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

    def snapshot(self) -> frozenset[tuple[str, Hashable, Hashable]]:
        """Return the full state as a value, for the exact mode and for tests."""
        return frozenset(
            (container.name, exact(key), exact(held))
            for container in self.containers()
            for key, held in container.data.items()
        )

    def note(self, container: Cells[Any, Any], key: Any, old: Any, new: Any) -> None:
        """Journal one write; called by containers only."""
        assert self.journal is not None
        if not self.hashes:
            self.journal.append((container, key, old))
            return
        name, exact_key = container.name, exact(key)
        change = 0
        if old is not ABSENT:
            change ^= _HASHES[(name, exact_key, exact(old))]
        if new is not ABSENT:
            change ^= _HASHES[(name, exact_key, exact(new))]
        self.journal.append((container, key, old))
        self.hash ^= change


class Cells(Generic[K, V]):
    """A named mapping whose writes go through the store.

    `default` is what stands for a cell that is not there, where whoever uses the cells says so.
    """

    __slots__ = ("data", "default", "name", "store")

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name
        self.default: V | Absent = ABSENT
        self.data: dict[K, V] = {}
        store.register(self)

    def back_with(self, make: Callable[[dict[K, V]], D]) -> D:
        """Keep the cells in what `make` makes of the dict that holds them now; return that.

        For engines: one that wants to see reads and writes, or has its own way to store them, puts
        a dict of its own class here.
        """
        made = make(self.data)
        self.data = made
        return made

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
            if old is not ABSENT and old == value and same(old, value):
                return
            self.store.note(self, key, old, value)
        self.data[key] = value

    def drop(self, key: K) -> V:
        """Remove one cell and return what it held."""
        if self.store.journal is not None:
            self.store.note(self, key, self.data[key], ABSENT)
        return self.data.pop(key)

    def restore(self, key: K, old: V | Absent) -> None:
        """Put back what a journaled write replaced."""
        if isinstance(old, Absent):
            del self.data[key]
        else:
            self.data[key] = old

    def begin_again(self, data: dict[K, V], _order: list[K]) -> None:
        """Hold other cells; called by the store only."""
        self.data.clear()
        self.data.update(data)


class OrderedCells(Cells[int, V]):
    """Cells with integer keys that can be walked in order."""

    __slots__ = ("order",)

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store, name)
        self.order: list[int] = []

    def order_with(self, make: Callable[[list[int]], list[int]]) -> None:
        """Keep the keys in what `make` makes of their list; see `back_with`."""
        self.order = make(self.order)

    def put(self, key: int, value: V) -> None:
        data = self.data
        if key not in data:
            insort(self.order, key)
        if self.store.journal is None:
            data[key] = value
        else:
            super().put(key, value)

    def drop(self, key: int) -> V:
        order = self.order
        del order[bisect_left(order, key)]
        if self.store.journal is None:
            return self.data.pop(key)
        return super().drop(key)

    def restore(self, key: int, old: V | Absent) -> None:
        if isinstance(old, Absent):
            del self.order[bisect_left(self.order, key)]
        elif key not in self.data:
            insort(self.order, key)
        super().restore(key, old)

    def begin_again(self, data: dict[int, V], order: list[int]) -> None:
        super().begin_again(data, order)
        self.order[:] = order

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
        order = self.order
        i = bisect_right(order, point)
        if not i:
            return None
        end, value = self.data[order[i - 1]]
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
        found: list[tuple[int, int, V]] = []
        if low >= high:
            return found
        i = bisect_right(order, low)
        if i:
            end, value = data[order[i - 1]]
            if end > low:
                if end >= high:
                    return [(low, high, value)]
                found.append((low, end, value))
        for k in range(i, len(order)):
            start = order[k]
            if start >= high:
                break
            end, value = data[start]
            found.append((start, end if end < high else high, value))
        return found

    def covers(self, low: int, high: int) -> bool:
        """Return whether every point of [low, high) has a value."""
        order, data = self.order, self.data
        if low >= high:
            return True
        i = bisect_right(order, low)
        if not i:
            return False
        end, _ = data[order[i - 1]]
        if end <= low:
            return False
        while end < high:
            if i == len(order) or order[i] > end:
                return False
            end, _ = data[order[i]]
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
        order, data = self.order, self.data
        i = bisect_left(order, low)
        behind = i  # the first range that starts at or above `high`, once there is a hole
        if i < len(order) and order[i] < high:
            if order[i] == low and data[low][0] == high:
                behind = i + 1  # another value for what is a range already
            else:
                self.clear(low, high)
                behind = i = bisect_left(order, low)
        elif i and data[order[i - 1]][0] > low:
            self.clear(low, high)
            behind = i = bisect_left(order, low)
        first = low
        if i:
            start = order[i - 1]
            end, left = data[start]
            if end == low and (left is value or (left == value and same(left, value))):
                first = start
        if behind < len(order) and order[behind] == high:
            end, right = data[high]
            if right is value or (right == value and same(right, value)):
                self.drop(high)
                high = end
        if first != low and behind != i:
            self.drop(low)
        self.put(first, (high, value))

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


class _Made(dict[K, V]):
    """What was made on demand, by key; asked for another it makes that."""

    __slots__ = ("_family", "_make", "_store")

    def __init__(self, store: Store, family: str, make: Callable[[K], V]) -> None:
        super().__init__()
        self._store, self._family, self._make = store, family, make

    def __missing__(self, key: K) -> V:
        self._store.making = (self._family, key)
        try:
            found = self[key] = self._make(key)
        finally:
            self._store.making = None
        return found


class OnDemand(Generic[K, V]):
    """Things made of containers that are made when they are first asked for, by key.

    One that holds nothing is as good as one that was never made: a walk passes over it, so nothing
    can be told from who asked before.
    """

    __slots__ = ("_is_empty", "made")

    def __init__(
        self, store: Store, family: str, make: Callable[[K], V], is_empty: Callable[[V], bool]
    ) -> None:
        self._is_empty = is_empty
        self.made = _Made(store, family, make)
        store.families[family] = self

    def __getitem__(self, key: K) -> V:
        return self.made[key]

    def items(self) -> list[tuple[K, V]]:
        """List those that hold something, in order of their keys."""
        made = self.made
        # sorted() of what can't be compared would not do: all keys of a family are of one kind.
        return [(key, made[key]) for key in sorted(made) if not self._is_empty(made[key])]  # type: ignore[type-var]

    def values(self) -> list[V]:
        """List the things that hold something, in order of their keys."""
        return [thing for _, thing in self.items()]

    def __iter__(self) -> Iterator[K]:
        return iter([key for key, _ in self.items()])
