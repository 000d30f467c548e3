"""A set of words in as many shards as there are cores: each core adds to its own, at the same time.

Which shard has a word is said by other bits of a hash than where it stands there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from zaplock.engines.checking.cores import Cores
from zaplock.engines.checking.hashed import Flags, HashSet, Words, cut

_SPREAD: Final = np.uint64(0xD6E8FEB86659FD93)
_HALF: Final = np.uint64(32)


class ShardedSet:
    """A set of words; `add` is as `HashSet.add`, by all cores."""

    def __init__(self, cores: Cores) -> None:
        self.cores = cores
        self.shards = [HashSet() for _ in range(cores.count)]

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def add(self, keys: Words, meanwhile: Callable[[], None] | None = None) -> Flags:
        """Put keys in; tell of each whether it is new: not there before, nor earlier in `keys`.

        meanwhile: what the caller's thread can do until the cores have done that.
        """
        is_new = np.zeros(len(keys), dtype=bool)

        def add_own(number: int) -> None:
            if len(self.shards) == 1:
                is_new[:] = self.shards[0].add(keys)
            else:
                own = np.flatnonzero(self._shard_of(keys) == number)
                is_new[own] = self.shards[number].add(keys.take(own))

        self.cores.each(add_own, meanwhile)
        return is_new

    def _shard_of(self, keys: Words) -> Words:
        return (keys * _SPREAD >> _HALF) * np.uint64(len(self.shards)) >> _HALF

    def keys(self) -> Words:
        """Return all keys, in no order."""
        return np.concatenate([shard.keys() for shard in self.shards])

    def parts(self) -> Iterator[Words]:
        """Give all keys, some at a time."""
        for shard in self.shards:
            yield from cut(shard.keys())

    def clear(self) -> None:
        """Take all keys out; the slots stay."""
        for shard in self.shards:
            shard.clear()

    def move(self, moved: Callable[[Words], Words]) -> None:
        """Replace each key by another."""
        held = self.keys()
        self.shards = [HashSet() for _ in self.shards]
        for part in cut(held):
            self.add(moved(part))

    def bytes_to_come(self, more: int) -> int:
        """Return how many bytes more it takes at most while `more` keys are put in."""
        return sum(shard.bytes_to_come(more) for shard in self.shards)
