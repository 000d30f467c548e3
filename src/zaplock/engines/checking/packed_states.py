"""A state of the whole machine as one Python int, and the footprint of whatever runs on it.

Each cell of the store has a field of bits in the int; the values that a cell was ever seen with are
numbered, and the field holds the number (0: the cell isn't there). So equal ints are equal states
and nothing is left to a hash; a state costs some 80 bytes; a transition is one XOR; "the cells
that this step looks at" is one AND.

New cells take new bits above the old ones and a field that runs out of numbers takes more bits, so
that every int made earlier stays what it was.

`PackedStore` puts what records (`recording`) behind the containers of a `Store`: whatever a step
reads or writes, it leaves its footprint. Walking over a container's keys is a read of the
container's key field, which changes whenever a cell comes or goes.

Values are numbered by their exact value (`model.frozen`), so 1 and True are two states, and what
could be changed in place is refused.

Cf. the collapse compression of Spin (Holzmann 1997), and the memoised `pins` of LTSmin (Blom, van
de Pol, Weber 2010): both store components by number; LTSmin also calls a step's code only once per
value of the cells that it depends on. There the dependencies are declared, here they are observed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final, cast

from zaplock.engines.checking.footprints import Fields, RecordingDict, RecordingList
from zaplock.model.frozen import ATOMS, exact
from zaplock.model.store import ABSENT, Cells, OrderedCells, Store

KEYS: Final = "\0keys"
"""The name of the field that holds which keys a container has."""

CHUNK = 3
"""Bits that a field starts with and grows by. Most cells have few values, and ints of fewer bits
are masked, hashed and compared in less time."""


class StateField:
    """The bits of one cell and the numbering of its values."""

    __slots__ = (
        "_layout", "cells", "codes", "container", "is_keys", "key", "mask", "shifts", "values",
    )  # fmt: skip

    def __init__(
        self, layout: StateLayout, container: str, cells: dict[Any, Any], key: Hashable
    ) -> None:
        self._layout = layout
        self.container = container
        self.cells = cells
        """All cells of the container."""
        self.key = key
        self.is_keys = isinstance(key, str) and key == KEYS
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
        """Return the bits that stand for `value`, already in place; raises NotFrozen."""
        name = value if type(value) in ATOMS or value is ABSENT or self.is_keys else exact(value)
        code = self.codes.get(name)
        if code is None:
            code = self._place(self._layout.number(self, value))
            self.codes[name] = code
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
        self.bits = reserved
        """How many bits a state has so far. Of chunks in between another process may tell later."""
        self.grown: list[tuple[int, int]] = []

    def take(self, field: StateField) -> int:
        """Give `field` the next free chunk and return its shift."""
        shift = self.reserved + CHUNK * len(self.owners)
        self.own(shift, field)
        return shift

    def own(self, shift: int, field: StateField) -> None:
        """Note whose chunk begins at `shift`, where somebody else has given it out."""
        self.owners[(shift - self.reserved) // CHUNK] = field
        self.bits = max(self.bits, shift + CHUNK)

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
        self.cells: dict[str, dict[Any, Any]] = {}
        self.orders: dict[str, list[int]] = {}
        self.fields: dict[str, Fields] = {}
        self.key_fields: dict[str, StateField] = {}
        self.current = 0
        self.written_mask = 0
        self.announce: Callable[[str], None] | None = None
        self.adopt()

    def adopt(self) -> bool:
        """Take in containers that the store has got since; return whether there were any.

        A step that makes one has used it unseen, and so may have those before it: its caller has
        to let it run again and to forget what it remembers of others.
        """
        if len(self.cells) == self.store.made:
            return False
        new = self.store.containers()[len(self.cells) :]
        for container in new:
            if self.announce is not None:
                self.announce(container.name)
            self._record(container)
            name = container.name
            self.current |= self.key_fields[name].code(self._keys_of(name))
            for key, value in self.cells[name].items():
                self.current |= self.fields[name][key].code(value)
        return True

    def _record(self, container: Cells[Any, Any]) -> None:
        name, layout = container.name, self.layout
        cells = self.cells[name] = container.data
        keys = self.key_fields[name] = StateField(layout, name, cells, KEYS)
        fields = self.fields[name] = Fields(lambda key: StateField(layout, name, cells, key))

        def back(cells: dict[Any, Any]) -> dict[Any, Any]:
            recording = RecordingDict(cells, fields, keys, self.reads, self.writes)
            return cast("dict[Any, Any]", recording)

        def order(keys_in_order: list[int]) -> list[int]:
            self.orders[name] = keys_in_order
            return cast("list[int]", RecordingList(keys_in_order, keys, self.reads, self.writes))

        container.back_with(back)
        if isinstance(container, OrderedCells):
            container.order_with(order)

    def _keys_of(self, container: str) -> Any:
        if not self.cells[container]:
            return ABSENT
        order = self.orders.get(container)
        return frozenset(self.cells[container]) if order is None else tuple(order)

    def field(self, container: str, key: Hashable) -> StateField:
        """Return the field of one cell, or with the key KEYS that of the container's keys."""
        if key == KEYS:
            return self.key_fields[container]
        return self.fields[container][key]

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
        """Take in what was written since `begin`; return old XOR new. Raises NotFrozen.

        `written_mask` has the bits of these cells then, and `writes` is for what comes after.
        """
        before = after = self.current
        written_mask = 0
        for field in self.writes:
            if field.is_keys:
                value = self._keys_of(field.container)
            else:
                value = field.cells.get(field.key, ABSENT)
            code = field.code(value)  # before the mask: it may grow
            written_mask |= field.mask
            after = after & ~field.mask | code
        self.current, self.written_mask = after, written_mask
        self.writes.clear()
        return before ^ after

    def take_back(self, state: int) -> None:
        """Bring what was written and not committed back to what it is in `state`."""
        for field in self.writes:
            self._set(field, field.values[state & field.mask])

    def go_to(self, state: int) -> None:
        """Bring the store into `state`, touching only what differs."""
        state &= ~self.low_mask
        differs = self.current ^ state
        owners, first = self.layout.owners, self.layout.reserved + 1
        while differs:
            # From the top, so that the rest gets smaller.
            field = owners[(differs.bit_length() - first) // CHUNK]
            mask = field.mask
            differs ^= differs & mask
            value = field.values[state & mask]
            if field.is_keys or value is ABSENT:
                self._set(field, value)
            else:
                field.cells[field.key] = value
        self.current = state

    def completed(self, state: int, mask: int) -> int:
        """Return a whole state that agrees with `state` on the bits of `mask`, which has no others.

        Cells that must be there, since the keys under the mask name them, get any value.
        """
        for container, keys in self.key_fields.items():
            value = keys.values[state & keys.mask]
            if value is ABSENT:
                continue
            for key in value:
                field = self.fields[container][key]
                if not field.mask & mask:
                    state |= next(code for code in field.values if code)
        return state

    def _set(self, field: StateField, value: Any) -> None:
        if field.is_keys:
            order = self.orders.get(field.container)
            if order is not None:
                order[:] = () if value is ABSENT else value
        elif value is ABSENT:
            field.cells.pop(field.key, None)
        else:
            field.cells[field.key] = value
