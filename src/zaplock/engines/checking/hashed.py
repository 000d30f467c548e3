"""Open addressing in numpy: many 64-bit keys are put in or looked up at once.

A key has a slot to begin with (Fibonacci hashing: Knuth, vol. 3, 6.4), and looks from there on, in
strides of its own, for itself or a free one. All keys of a batch take a step together, and those
that are not settled take the next. A key takes eight bytes in each slot, of which a set fills three
to six in ten, once it has outgrown its first table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

Words = np.ndarray[Any, np.dtype[np.uint64]]
Places = np.ndarray[Any, np.dtype[np.intp]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

NOTHING: Final = np.uint64((1 << 64) - 1)
"""What a free slot holds, and what a key that is not there is mapped to. Keys are below 2**63."""

_CLAIM: Final = np.uint64(1 << 63)
_SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)
_ONE: Final = np.uint64(1)
_FIRST_BITS: Final = 10
_PART: Final = 1 << 16

SETTLED_BYTES: Final = 88
"""What a key occupies at most while it is put in, beside its slot."""


def cut(words: Words) -> Iterator[Words]:
    """Give words some at a time."""
    for first in range(0, len(words), _PART):
        yield words[first : first + _PART]


class _Slots:
    """What a set and a map have in common: keys in slots."""

    FULL = 6
    """So many slots in ten are full at most."""
    SLOT = 8
    """Bytes of a slot."""

    _slots: Words

    def __init__(self) -> None:
        self._held = 0
        self._resize(_FIRST_BITS)

    def __len__(self) -> int:
        return self._held

    def _resize(self, bits: int) -> None:
        self._bits = bits
        self._slots = np.zeros(0, dtype=np.uint64)  # both tables at once would be the most it takes
        self._slots = np.full(1 << bits, NOTHING)
        self._shift = np.uint64(64 - bits)
        self._last = (1 << bits) - 1

    def _bits_for(self, held: int) -> int:
        bits = self._bits
        while held * 10 > self.FULL << bits:
            bits += 1
        return bits

    def bytes_to_come(self, more: int) -> int:
        """Return how many bytes more it takes at most while `more` keys are put in."""
        bits = self._bits_for(self._held + more)
        added = (1 << bits) - (1 << self._bits) + self._held
        return self.SLOT * added + SETTLED_BYTES * _PART if bits > self._bits else 0

    def _begin(self, keys: Words) -> tuple[Places, Places]:
        """Return where each key is looked for first, and its stride."""
        spread = keys * _SPREAD
        return (spread >> self._shift).view(np.intp), (spread | _ONE).view(np.intp)

    def _settle(self, keys: Words, is_new: Flags, where: Places | None = None) -> None:
        """Give each key a slot; tell which were not there, and where each is now.

        A claim to a free slot is the key's index, and the first in the batch gets it.
        """
        slots, last = self._slots, self._last
        first_at, strides = self._begin(keys)
        left: Places | None = None
        at, wanted = first_at, keys
        while len(at):
            held = slots.take(at)
            goes_on = held != wanted
            free = np.flatnonzero(held == NOTHING)
            if len(free):
                claimed = at.take(free)
                by = free if left is None else left.take(free)
                slots[claimed[::-1]] = by[::-1].view(np.uint64) | _CLAIM
                winner = (slots.take(claimed) ^ _CLAIM).view(np.intp)
                winners = keys.take(winner)
                slots[claimed] = winners
                is_new[by[winner == by]] = True
                goes_on[free] = winners != wanted.take(free)
            if where is not None:
                where[slice(None) if left is None else left] = at
            more = np.flatnonzero(goes_on)
            left = more if left is None else left.take(more)
            wanted = wanted.take(more)
            at = (at.take(more) + strides.take(left)) & last


class HashSet(_Slots):
    """A set of keys."""

    def keys(self) -> Words:
        """Return all keys, in no order."""
        held: Words = self._slots[self._slots != NOTHING]
        return held

    def parts(self) -> Iterator[Words]:
        """Give all keys, some at a time."""
        yield from cut(self.keys())

    def move(self, moved: Callable[[Words], Words]) -> None:
        """Replace each key by another."""
        held = self.keys()
        self._held = 0
        self._resize(_FIRST_BITS)
        for part in cut(held):
            self.add(moved(part))

    def clear(self) -> None:
        """Take all keys out; the slots stay."""
        self._slots.fill(NOTHING)
        self._held = 0

    def add(self, keys: Words) -> Flags:
        """Put keys in; tell of each whether it is new: not there before, nor earlier in `keys`."""
        bits = self._bits_for(self._held + len(keys))
        if bits > self._bits:
            held = self.keys()
            self._resize(bits)
            for part in cut(held):
                self._settle(part, np.zeros(len(part), dtype=bool))
        is_new = np.zeros(len(keys), dtype=bool)
        self._settle(keys, is_new)
        self._held += int(np.count_nonzero(is_new))
        return is_new


class HashMap(_Slots):
    """A map from keys to words. Most look-ups end at their first slot, as most slots are free."""

    FULL = 2
    SLOT = 16

    _values: Words

    def _resize(self, bits: int) -> None:
        self._values = np.zeros(0, dtype=np.uint64)
        super()._resize(bits)
        self._values = np.full(1 << bits, NOTHING)

    def get(self, keys: Words) -> Words:
        """Return what each key is mapped to, or NOTHING."""
        slots, values = self._slots, self._values
        at, strides = self._begin(keys)
        held, found = slots.take(at), values.take(at)
        left = np.flatnonzero((held != keys) & (held != NOTHING))
        while len(left):
            next_at = at[left] = (at.take(left) + strides.take(left)) & self._last
            held, found[left] = slots.take(next_at), values.take(next_at)
            left = left[(held != keys.take(left)) & (held != NOTHING)]
        return found

    def put(self, keys: Words, values: Words) -> None:
        """Map keys that are not there, each once, to values."""
        bits = self._bits_for(self._held + len(keys))
        if bits > self._bits:
            self._lay_out(bits, self._slots != NOTHING)
        where = np.empty(len(keys), dtype=np.intp)
        self._settle(keys, np.zeros(len(keys), dtype=bool), where)
        self._values[where] = values
        self._held += len(keys)

    def drop(self, mask: np.uint64, values: Words) -> None:
        """Take out the keys that are one of some values under a mask."""
        held = self._slots != NOTHING
        kept = held & ~np.isin(self._slots & mask, values)
        if np.count_nonzero(kept) < self._held:
            self._lay_out(self._bits, kept)

    def _lay_out(self, bits: int, kept: Flags) -> None:
        keys, values = self._slots[kept], self._values[kept]
        self._resize(bits)
        self._held = 0
        for part, mapped in zip(cut(keys), cut(values)):
            self.put(part, mapped)
