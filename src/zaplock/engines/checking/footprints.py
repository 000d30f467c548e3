"""What stands behind the cells of a store while it is packed: a look leaves its footprint.

These are no subclasses of dict and list: C code reads past the methods of a subclass. What is not
written here does not exist, so any other way to look at cells is an error and never a look unseen;
tests/test_footprints.py tries every method that dict and list have.

A walk is in a fixed order, since the order of insertion differs between paths to one state.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any, NoReturn

from zaplock.errors import ProtocolError
from zaplock.model.frozen import exact

if TYPE_CHECKING:
    from zaplock.engines.checking.packed_states import StateField


class Fields(dict[Any, "StateField"]):
    """The fields of one container, made when a key is first met."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[Any], StateField]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, key: Any) -> StateField:
        exact(key)
        field = self[key] = self.make(key)
        return field


class RecordingDict:
    """The cells of a container, leaving a footprint."""

    __slots__ = ("_cells", "_fields", "_keys", "_reads", "_writes")

    def __init__(
        self,
        cells: dict[Any, Any],
        fields: Fields,
        keys: StateField,
        reads: set[StateField],
        writes: set[StateField],
    ) -> None:
        self._cells = cells
        self._fields = fields
        self._keys = keys
        self._reads = reads
        self._writes = writes

    def __getitem__(self, key: Any) -> Any:
        self._reads.add(self._fields[key])
        return self._cells[key]

    def get(self, key: Any, default: Any = None) -> Any:
        self._reads.add(self._fields[key])
        return self._cells.get(key, default)

    def __contains__(self, key: Any) -> bool:
        self._reads.add(self._fields[key])
        return key in self._cells

    def __setitem__(self, key: Any, value: Any) -> None:
        field = self._fields[key]
        self._reads.add(field)
        self._writes.add(field)
        if key not in self._cells:
            self._reads.add(self._keys)
            self._writes.add(self._keys)
            if field.key is not key:
                _must_be_same(field.key, key)
            key = field.key
        self._cells[key] = value

    def __delitem__(self, key: Any) -> None:
        self._leave(key)
        del self._cells[key]

    def pop(self, key: Any, *default: Any) -> Any:
        self._leave(key)
        return self._cells.pop(key, *default)

    def _leave(self, key: Any) -> None:
        field = self._fields[key]
        self._reads |= {field, self._keys}
        self._writes |= {field, self._keys}

    def __len__(self) -> int:
        self._reads.add(self._keys)
        return len(self._cells)

    def __iter__(self) -> Iterator[Any]:
        self._reads.add(self._keys)
        return iter(sorted(self._cells, key=repr))

    def __reversed__(self) -> Iterator[Any]:
        return iter(list(self)[::-1])

    def keys(self) -> KeysView[Any]:
        return KeysView(self)

    def values(self) -> ValuesView[Any]:
        return ValuesView(self)

    def items(self) -> ItemsView[Any, Any]:
        return ItemsView(self)

    def copy(self) -> dict[Any, Any]:
        return dict(self.items())

    def __eq__(self, other: object) -> bool:
        return bool(self.copy() == (other.copy() if isinstance(other, RecordingDict) else other))

    def __or__(self, other: Any) -> dict[Any, Any]:
        return self.copy() | dict(other.items())

    def __ror__(self, other: Any) -> dict[Any, Any]:
        return dict(other.items()) | self.copy()

    def __repr__(self) -> str:
        return repr(self.copy())

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise TypeError("cells can't be pickled or copied whole: read them one by one")

    __hash__ = None  # type: ignore[assignment]


class RecordingList:
    """The keys of an ordered container; any look at them is a read of the key field."""

    __slots__ = ("_keys", "_order", "_reads", "_writes")

    def __init__(
        self, order: list[int], keys: StateField, reads: set[StateField], writes: set[StateField]
    ) -> None:
        self._order = order
        self._keys = keys
        self._reads = reads
        self._writes = writes

    def _read(self) -> list[int]:
        self._reads.add(self._keys)
        return self._order

    def __getitem__(self, index: Any) -> Any:
        self._reads.add(self._keys)
        return self._order[index]

    def __len__(self) -> int:
        self._reads.add(self._keys)
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        return iter(tuple(self._read()))

    def __reversed__(self) -> Iterator[int]:
        return reversed(tuple(self._read()))

    def __contains__(self, key: object) -> bool:
        return key in self._read()

    def index(self, *args: Any) -> int:
        return self._read().index(*args)

    def count(self, key: Any) -> int:
        return self._read().count(key)

    def copy(self) -> list[int]:
        return self._read().copy()

    def insert(self, index: int, key: int) -> None:
        self._writes.add(self._keys)
        self._read().insert(index, key)

    def __delitem__(self, index: Any) -> None:
        self._writes.add(self._keys)
        del self._read()[index]

    def __add__(self, other: Any) -> list[int]:
        return self.copy() + list(other)

    def __radd__(self, other: Any) -> list[int]:
        return list(other) + self.copy()

    def __mul__(self, times: int) -> list[int]:
        return self.copy() * times

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return bool(self.copy() == _plain(other))

    def __lt__(self, other: Any) -> bool:
        return bool(self.copy() < _plain(other))

    def __le__(self, other: Any) -> bool:
        return bool(self.copy() <= _plain(other))

    def __gt__(self, other: Any) -> bool:
        return bool(self.copy() > _plain(other))

    def __ge__(self, other: Any) -> bool:
        return bool(self.copy() >= _plain(other))

    def __repr__(self) -> str:
        return repr(self.copy())

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise TypeError("cells can't be pickled or copied whole: read them one by one")

    __hash__ = None  # type: ignore[assignment]


def _plain(other: Any) -> Any:
    return other.copy() if isinstance(other, RecordingList) else other


def _must_be_same(known: Any, key: Any) -> None:
    if exact(known) != exact(key):
        raise ProtocolError(
            f"{key!r} and {known!r} are one key to Python, but not to the checker: use one of them"
        )
