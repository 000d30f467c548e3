"""Wide levels that are divided among several workers, or whose words go to the disk.

A worker owns the states whose store's contents fall to it by their hash. So it numbers its own
contents only, remembers what steps do with those only, and a step that moves its task and nothing
else stays at home. Each worker numbers contents and lays out words as it likes: a parcel says how
its words are laid out, and which contents the numbers stand for that it has not sent before. The
receiver translates it by a look-up in a table.

Frontiers are lists of parts, each in memory or in a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from zaplock.engines.checking.exhaustive import SLICE
from zaplock.engines.checking.hashed import Flags, Places, Words
from zaplock.engines.checking.positions import POSITION_BITS
from zaplock.engines.checking.sorted_runs import CHUNK, StatesOnDisk
from zaplock.engines.checking.visited_words import RECENT, VisitedWords
from zaplock.engines.checking.wide_levels import Outgrown, WideLevels

if TYPE_CHECKING:
    from zaplock.engines.checking.exhaustive import Search

_NONE: Final = np.zeros(0, dtype=np.uint64)
_UNKNOWN: Final = np.uint64((1 << 64) - 1)


def owner_of(store: int, jobs: int) -> int:
    """Return which worker has the states with these contents; the same in every process."""
    return (hash(store) * 0x9E3779B97F4A7C15 >> 40) % jobs


class WordParcel(NamedTuple):
    """Words for another worker, which knows the sender's numbers by what it was sent before.

    layout: the width and the shift of each task's position. low: bits below the number. numbers,
    stores: of contents that are sent for the first time, and what they are, packed.
    """

    sender: int
    many: int
    layout: tuple[tuple[int, int], ...]
    low: int
    numbers: bytes
    stores: bytes
    words: bytes

    def add_to(self, stores: dict[int, int]) -> None:
        """Add the contents that are sent for the first time to those of the sender's numbers."""
        if self.stores:
            numbers = np.frombuffer(self.numbers, dtype=np.intp).tolist()
            stores.update(zip(numbers, unpack(self.stores)))

    def states(self, stores: Mapping[int, int]) -> list[int]:
        """Return the states that the words stand for, by the contents of each number."""
        states = []
        for word in np.frombuffer(self.words, dtype=np.uint64).tolist():
            state = stores[word >> self.low]
            for index, (width, shift) in enumerate(self.layout):
                state |= (word >> shift & (1 << width) - 1) << POSITION_BITS * index
            states.append(state)
        return states


class DividedLevels(WideLevels):
    """What worker `number` of `jobs` has of a search, or all of it, with files if there are any.

    fits: how many words its hash set has before they become a run. look: called before each batch.
    """

    def __init__(
        self,
        search: Search,
        frontier: list[int],
        *,
        fits: int = RECENT,
        files: StatesOnDisk | None = None,
        number: int = 0,
        jobs: int = 1,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self.number = number
        self.jobs = jobs
        self.files = files
        self.look = look
        self.owners: Places = np.zeros(0, dtype=np.intp)
        self.ahead: list[Words | Path] = []
        """Parts of this level that come after the frontier."""
        self.next: list[Words | Path] = []
        self.away: list[Words] = []
        """Words of this level that belong to others."""
        self.told: Flags = np.zeros(0, dtype=bool)
        """Which numbers have been sent with what they stand for."""
        self.numbers_of: dict[int, Words] = {}
        """Own numbers by those of a sender."""
        self.kept = VisitedWords(fits, files, self._are_own if jobs > 1 else None)
        super().__init__(search, frontier, self.kept)
        self.kept.counted = search.states

    def remember(self, states: list[int]) -> None:
        """Take in states that were visited before."""
        super().remember(states)
        self.kept.relieve()

    def _owners_of(self, words: Words) -> Places:
        stores = self.words.stores
        if len(self.owners) < len(stores):
            more = [owner_of(store, self.jobs) for store in stores[len(self.owners) :]]
            self.owners = np.append(self.owners, np.array(more, dtype=np.intp))
        return self.owners.take((words >> np.uint64(self.words.low)).view(np.intp))

    def _are_own(self, words: Words) -> Flags:
        own: Flags = self._owners_of(words) == self.number
        return own

    def level(self) -> bool:
        """Explore all parts of a level and make what they find the next one; see `WideLevels`."""
        while self.has_frontier():
            if self.search.is_at_limit(len(self.frontier) + sum(map(len, self.found))):
                return False
            self.look()
            self.expand()
            if sum(map(len, self.found)) >= CHUNK or len(self.kept.recent) >= self.kept.fits:
                self.settle(self.next)
        self.settle(self.next)
        self.ahead, self.next = self.next, []
        self.has_frontier()
        return True

    def has_frontier(self) -> bool:
        """Return whether there is something to explore, and begin with its next part."""
        while not len(self.frontier) and self.ahead:
            self.frontier = self._read(self.ahead.pop(0))
        return bool(len(self.frontier))

    def settle(self, parts: list[Words | Path]) -> None:
        """Put those of the words that were found which really are new into a frontier."""
        new = self.kept.unseen(np.concatenate([_NONE, *self.found]))
        self.found = []
        if len(new):
            parts.append(self._written(new))
        self.kept.relieve()

    def _written(self, words: Words) -> Words | Path:
        if self.files is None or len(words) <= SLICE:
            return words
        path = self.files.new_path()
        words.tofile(path)
        return path

    def _read(self, part: Words | Path) -> Words:
        if not isinstance(part, Path):
            return part
        words = np.fromfile(part, dtype=np.uint64)
        part.unlink()
        return words

    def move(self, moved: Callable[[Words], Words]) -> None:
        """Replace all words that there are."""
        super().move(moved)
        self.ahead = [self._written(moved(self._read(part))) for part in self.ahead]
        self.next = [self._written(moved(self._read(part))) for part in self.next]
        self.away = [moved(part) for part in self.away]

    def given_back(self) -> Iterator[list[int]]:
        """Give all states that were visited, some at a time, and have them no more."""
        yield from super().given_back()
        for run in self.kept.runs:
            run.remove()

    def left(self) -> tuple[list[int], list[int]]:
        """Return the states left of this level, and those of the next that were found."""
        self.settle(self.next)
        left = [self.frontier, *map(self._read, self.ahead)]
        found = map(self._read, self.next)
        states = self.words.states
        return [one for part in left for one in states(part)], [
            one for part in found for one in states(part)
        ]

    def bytes_to_come(self) -> int:
        """Return what the next slice, and sending what is for others, may take at most."""
        return super().bytes_to_come() + 3 * sum(part.nbytes for part in self.away)

    def _take(self, words: Words, changes: Words) -> Words:
        """Go where the changes lead; return the words kept here that may be new."""
        found = super()._take(words, changes)
        if self.jobs == 1:
            return found
        own = self._are_own(found)
        self.away.append(found[~own])
        return found[own]

    def parcels(self) -> list[tuple[int, WordParcel]]:
        """Pack what this level has found for each of the others."""
        words = np.concatenate([_NONE, *self.away])
        self.away = []
        owners = self._owners_of(words)
        of_each = [(owner, words[owners == owner]) for owner in range(self.jobs)]
        return [(owner, self._parcel(part)) for owner, part in of_each if len(part)]

    def _parcel(self, words: Words) -> WordParcel:
        layout = self.words
        is_new = np.zeros(len(layout.stores), dtype=bool)
        is_new[(words >> np.uint64(layout.low)).view(np.intp)] = True
        is_new[: len(self.told)] &= ~self.told
        numbers = np.flatnonzero(is_new)
        is_new[: len(self.told)] |= self.told
        self.told = is_new
        stores = [layout.stores[number] for number in numbers.tolist()]
        return WordParcel(
            self.number, len(words), tuple(zip(layout.widths, layout.shifts)), layout.low,
            numbers.tobytes(), pack(stores) if stores else b"", words.tobytes(),
        )  # fmt: skip

    def receive(self, parcel: WordParcel, stores: Mapping[int, int]) -> None:
        """Take words in that another worker has found; raises Outgrown, and has none of them then.

        stores: contents by the sender's numbers.
        """
        words = np.frombuffer(parcel.words, dtype=np.uint64)
        while True:
            try:
                own = self._translated(parcel, words, stores)
            except Outgrown:
                self.lay_out_anew()
                continue
            break
        self.found.append(own[self.kept.add(own)])

    def receive_states(self, states: list[int]) -> None:
        """Take states in that another worker has found; raises Outgrown, and has none then."""
        while True:
            try:
                words = self.words.words(states)
            except Outgrown:
                self.lay_out_anew()
                continue
            break
        self.found.append(words[self.kept.add(words)])

    def _translated(self, parcel: WordParcel, words: Words, stores: Mapping[int, int]) -> Words:
        numbers = (words >> np.uint64(parcel.low)).view(np.intp)
        known = self.numbers_of.get(parcel.sender, _NONE)
        size = int(numbers.max()) + 1
        if size > len(known):
            more = np.full(max(size, 2 * len(known)) - len(known), _UNKNOWN)
            known = self.numbers_of[parcel.sender] = np.append(known, more)
        own: Words = known[numbers]
        for number in np.unique(numbers[own == _UNKNOWN]).tolist():
            known[number] = self.words.number(stores[number])
        own = known[numbers] << np.uint64(self.words.low)
        return self.words.laid_out(own, words, parcel.layout)


def pack(states: list[int]) -> bytes:
    """Write ints one after another, all as wide as the widest."""
    width = (max(states).bit_length() + 7) // 8
    body = b"".join([state.to_bytes(width, "little") for state in states])
    return width.to_bytes(4, "little") + body


def unpack(blob: bytes) -> list[int]:
    """Read what `pack` wrote."""
    width = int.from_bytes(blob[:4], "little")
    return [int.from_bytes(blob[at : at + width], "little") for at in range(4, len(blob), width)]
