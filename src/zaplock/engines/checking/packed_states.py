"""A state of the whole machine as one Python int, and the footprint of whatever runs on it.

Each cell of the store has a field of bits in the int; the values that a cell was ever seen with are
numbered, and the field holds the number (0: the cell isn't there). So equal ints are equal states
and nothing is left to a hash; a state costs some 100 bytes; a transition is one XOR; "the cells
that this step looks at" is one AND.

New cells take new bits above the old ones and a field that runs out of numbers takes more bits, so
that every int made earlier stays what it was.

`PackedStore` puts recording mappings into the containers of a `Store`: whatever a step reads or
writes, it leaves its footprint. Walking over a container's keys is a read of the container's key
field, which changes whenever a cell comes or goes.

Cf. the collapse compression of Spin (Holzmann 1997), and the memoised `pins` of LTSmin (Blom, van
de Pol, Weber 2010): both store components by number; LTSmin also calls a step's code only once per
value of the cells that it depends on. There the dependencies are declared, here they are observed.
"""

from __future__ import annotations

from collections.abc import Hashable, ItemsView, Iterator, KeysView, ValuesView
from typing import Any, Final

from zaplock.model.store import ABSENT, Cells, OrderedCells, Store

KEYS: Final = "\0keys"
"""The name of the field that holds which keys a container has."""

CHUNK = 6
"""Bits that a field starts with and grows by."""


class StateField:
    """The bits of one cell and the numbering of its values."""

    __slots__ = ("_layout", "codes", "container", "key", "mask", "shifts", "values")

    def __init__(self, layout: StateLayout, container: int, key: Hashable) -> None:
        self._layout = layout
        self.container = container
        self.key = key
        self.codes: dict[Any, int] = {ABSENT: 0}
        self.values: dict[int, Any] = {0: ABSENT}
        self.shifts: list[int] = []
        self.mask = 0
        self.grow()

    def grow(self) -> None:
        """Take one more chunk of bits; older states have zeros there."""
        old = self.mask
        shift = self._layout.take(self)
        self.shifts.append(shift)
        self.mask |= ((1 << CHUNK) - 1) << shift
        if old:
            self._layout.grown.append((old, self.mask))

    def code(self, value: Any) -> int:
        """Return the bits that stand for `value`, already in place."""
        code = self.codes.get(value)
        if code is None:
            code = self._place(self._layout.number(self, value))
            self.codes[value] = code
            self.values[code] = value
        return code

    def _place(self, number: int) -> int:
        while number >> CHUNK * len(self.shifts):
            self.grow()
        low = (1 << CHUNK) - 1
        code = 0
        for shift in self.shifts:
            code |= (number & low) << shift
            number >>= CHUNK
        return code

    def number_of(self, value: Any) -> int:
        """Return the number that stands for `value`."""
        code = self.code(value)
        number = 0
        for place, shift in enumerate(self.shifts):
            number |= (code >> shift & (1 << CHUNK) - 1) << CHUNK * place
        return number


class StateLayout:
    """Which field owns which bits. `grown` lists (old mask, new mask) of fields that took more."""

    def __init__(self, reserved: int) -> None:
        self.owners: dict[int, StateField] = {}
        self.reserved = reserved
        self.grown: list[tuple[int, int]] = []

    def take(self, field: StateField) -> int:
        """Give `field` the next free chunk and return its shift."""
        chunk = len(self.owners)
        self.owners[chunk] = field
        return self.reserved + CHUNK * chunk

    def own(self, shift: int, field: StateField) -> None:
        """Note whose chunk begins at `shift`, where somebody else has given it out."""
        self.owners[(shift - self.reserved) // CHUNK] = field

    def number(self, field: StateField, value: Any) -> int:
        """Number a value that `field` has not had before."""
        return len(field.codes)

    def owner(self, bit: int) -> StateField:
        """Return the field that holds this bit."""
        return self.owners[(bit - self.reserved) // CHUNK]


class PackedStore:
    """The store of one machine, read and written as ints, with footprints.

    `current` is the int of the state that the store is in. The low `reserved` bits of an int are
    the caller's (positions of tasks) and mean nothing here.
    """

    def __init__(self, store: Store, reserved: int, layout: StateLayout | None = None) -> None:
        self.layout = layout or StateLayout(reserved)
        self.low_mask = (1 << reserved) - 1
        self.reads: set[StateField] = set()
        self.writes: set[StateField] = set()
        self.store = store
        self.containers: list[Cells[Any, Any]] = []
        self.key_fields: list[StateField] = []
        self.current = 0
        self.adopt()

    def adopt(self) -> bool:
        """Take in containers that the store has got since; return whether there were any.

        A step that makes one has used it unseen: its caller has to let it run again.
        """
        new = list(self.store.containers.values())[len(self.containers) :]
        for container in new:
            number = len(self.containers)
            self.containers.append(container)
            keys = StateField(self.layout, number, KEYS)
            self.key_fields.append(keys)
            _install(self, number, container, keys)
            self.current |= keys.code(_keys_of(container))
            for key, value in dict.items(container.data):
                self.current |= self.field(number, key).code(value)
        return bool(new)

    def field(self, container: int, key: Hashable) -> StateField:
        """Return the field of one cell, or with the key KEYS that of the container's keys."""
        if key == KEYS:
            return self.key_fields[container]
        fields: dict[Any, StateField] = self.containers[container].data.fields  # type: ignore[attr-defined]
        return fields[key]

    def begin(self) -> None:
        """Forget the footprint recorded so far."""
        self.reads.clear()
        self.writes.clear()

    def read_mask(self) -> int:
        """Return the bits of all cells read or written since `begin`."""
        mask = 0
        for field in self.reads:
            mask |= field.mask
        return mask

    def commit(self) -> int:
        """Take in what was written since `begin`; return old XOR new."""
        before = after = self.current
        for field in self.writes:
            container = self.containers[field.container]
            if field.key is KEYS:
                value: Any = _keys_of(container)
            else:
                value = dict.get(container.data, field.key, ABSENT)
            code = field.code(value)  # before the mask: it may grow
            after = after & ~field.mask | code
        self.current = after
        return before ^ after

    def go_to(self, state: int) -> None:
        """Bring the store into `state`, touching only what differs."""
        state &= ~self.low_mask
        differs = self.current ^ state
        owner = self.layout.owner
        while differs:
            field = owner((differs & -differs).bit_length() - 1)
            differs &= ~field.mask
            value = field.values[state & field.mask]
            container = self.containers[field.container]
            if field.key is KEYS:
                if isinstance(container, OrderedCells):
                    list.__setitem__(container.order, slice(None), () if value is ABSENT else value)
            elif value is ABSENT:
                dict.__delitem__(container.data, field.key)
            else:
                dict.__setitem__(container.data, field.key, value)
        self.current = state


def _keys_of(container: Cells[Any, Any]) -> Any:
    if not dict.__len__(container.data):
        return ABSENT
    if isinstance(container, OrderedCells):
        return tuple(list.__iter__(container.order))
    return frozenset(dict.__iter__(container.data))


class _Fields(dict[Any, StateField]):
    """The fields of one container, made when a key is first met."""

    __slots__ = ("container", "layout")

    def __init__(self, layout: StateLayout, container: int) -> None:
        super().__init__()
        self.layout = layout
        self.container = container

    def __missing__(self, key: Any) -> StateField:
        field = self[key] = StateField(self.layout, self.container, key)
        return field


def _install(
    packed: PackedStore, number: int, container: Cells[Any, Any], keys: StateField
) -> None:
    container.data = _RecordingDict(container.data, packed, number, keys)
    if isinstance(container, OrderedCells):
        container.order = _RecordingList(container.order, packed, keys)


class _RecordingDict(dict[Any, Any]):
    """The cells of a container, leaving a footprint. Walks are in a fixed order."""

    __slots__ = ("fields", "keys_field", "reads", "writes")

    def __init__(
        self, data: dict[Any, Any], packed: PackedStore, number: int, keys: StateField
    ) -> None:
        super().__init__(data)
        self.fields = _Fields(packed.layout, number)
        self.keys_field = keys
        self.reads = packed.reads
        self.writes = packed.writes

    def __getitem__(self, key: Any) -> Any:
        self.reads.add(self.fields[key])
        return dict.__getitem__(self, key)

    def get(self, key: Any, default: Any = None) -> Any:
        self.reads.add(self.fields[key])
        return dict.get(self, key, default)

    def __contains__(self, key: Any) -> bool:
        self.reads.add(self.fields[key])
        return dict.__contains__(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        field = self.fields[key]
        self.reads.add(field)
        self.writes.add(field)
        if not dict.__contains__(self, key):
            self.reads.add(self.keys_field)
            self.writes.add(self.keys_field)
        dict.__setitem__(self, key, value)

    def _leave(self, key: Any) -> None:
        field = self.fields[key]
        self.reads |= {field, self.keys_field}
        self.writes |= {field, self.keys_field}

    def __delitem__(self, key: Any) -> None:
        self._leave(key)
        dict.__delitem__(self, key)

    def pop(self, key: Any, *default: Any) -> Any:
        self._leave(key)
        return dict.pop(self, key, *default)

    def __len__(self) -> int:
        self.reads.add(self.keys_field)
        return dict.__len__(self)

    def __bool__(self) -> bool:
        return len(self) > 0

    def __iter__(self) -> Iterator[Any]:
        self.reads.add(self.keys_field)
        # The order of insertion differs between paths to one state; a step must not see it.
        return iter(sorted(dict.__iter__(self), key=repr))

    def keys(self) -> KeysView[Any]:  # type: ignore[override]
        return KeysView(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        return ValuesView(self)

    def items(self) -> ItemsView[Any, Any]:  # type: ignore[override]
        return ItemsView(self)

    def __eq__(self, other: object) -> bool:
        return dict(self.items()) == other

    def _behind_the_store(self, *_args: Any, **_kwargs: Any) -> Any:
        raise TypeError("a cell is written through Cells.put and Cells.drop only")

    __hash__ = None
    setdefault = update = clear = popitem = _behind_the_store


class _RecordingList(list[int]):
    """The keys of an ordered container; any look at them is a read of the key field."""

    __slots__ = ("keys_field", "reads")

    def __init__(self, order: list[int], packed: PackedStore, keys: StateField) -> None:
        super().__init__(order)
        self.keys_field = keys
        self.reads = packed.reads

    def __getitem__(self, index: Any) -> Any:
        self.reads.add(self.keys_field)
        return list.__getitem__(self, index)

    def __len__(self) -> int:
        self.reads.add(self.keys_field)
        return list.__len__(self)

    def __iter__(self) -> Iterator[int]:
        self.reads.add(self.keys_field)
        return list.__iter__(self)

    def __contains__(self, key: object) -> bool:
        self.reads.add(self.keys_field)
        return list.__contains__(self, key)

    def __eq__(self, other: object) -> bool:
        return list(self) == other

    __hash__ = None
