"""Sorted files of states, each once: what a search that outgrows the memory has visited.

A state is there with its whole value, in a fixed number of bytes. Runs are merged two by two as
they become many, so that there are few to look into. numpy does the sorting, the look-ups and the
merging. `visited_words` keeps words in such runs as well.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from zaplock.engines.checking.hashed import Flags
from zaplock.scratch import Scratch

CHUNK: Final = 1 << 16
"""States that are looked up, merged or read back in one go."""

MOST_RUNS: Final = 6

Bytes = np.ndarray[Any, np.dtype[Any]]
"""States as bytes of one width, or as 64-bit words."""


def encoded(states: list[int], width: int) -> Bytes:
    """Write states as bytes of one width, in order if the states are."""
    blob = b"".join([state.to_bytes(width, "big") for state in states])
    return np.frombuffer(blob, dtype=f"S{width}")


def decoded(blob: bytes, width: int) -> Iterator[int]:
    """Read states back."""
    from_bytes = int.from_bytes
    return (from_bytes(blob[at : at + width], "big") for at in range(0, len(blob), width))


class Run:
    """States in order, each once; in a file, or in memory where there is no path."""

    def __init__(self, states: Bytes, path: Path | None = None, file: mmap.mmap | None = None):
        self.states = states
        self.path = path
        self._map = file

    @classmethod
    def of(cls, path: Path, dtype: Any) -> Run:
        """Return the run that a file holds."""
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return cls(np.frombuffer(mapped, dtype=dtype), path, mapped)

    @property
    def width(self) -> int:
        """How many bytes a state takes."""
        return self.states.dtype.itemsize

    def __len__(self) -> int:
        return len(self.states)

    def holds(self, keys: Bytes) -> Flags:
        """Tell which of some keys, in order, stand here."""
        at = np.searchsorted(self.states, keys)
        at[at == len(self.states)] = 0
        found: Flags = self.states[at] == keys
        self.let_go()
        return found

    def found(self, states: list[int]) -> Iterator[int]:
        """Yield those of some sorted states that stand here."""
        limit = 1 << 8 * self.width
        for first in range(0, len(states), CHUNK):
            asked = [state for state in states[first : first + CHUNK] if state < limit]
            if not asked:
                return
            for index in np.flatnonzero(self.holds(encoded(asked, self.width))):
                yield asked[index]

    def let_go(self) -> None:
        """Occupy no memory by a file; what was read is in the page cache, the kernel's to take."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def remove(self) -> None:
        """Remove its file."""
        if self.path is not None:
            self.path.unlink()


def neighbours(runs: list[Run]) -> int:
    """Return the place of the first of two runs to merge: side by side, the smallest in sum."""
    sums = [len(left) + len(right) for left, right in pairwise(runs)]
    return sums.index(min(sums))


class StatesOnDisk:
    """All runs of one search, in a directory of their own that goes with it."""

    def __init__(self, directory: Path) -> None:
        self._scratch = Scratch("states", directory)
        self.directory = self._scratch.path
        self.runs: list[Run] = []
        self.files = 0

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    def close(self) -> None:
        """Remove everything."""
        self._scratch.close()

    def new_path(self) -> Path:
        """Return the path of a file that isn't there yet."""
        self.files += 1
        return self.directory / str(self.files)

    def take(self, states: Iterable[int], width: int) -> None:
        """Write states out that are in no run."""
        path = self.new_path()
        ordered = sorted(states)
        with path.open("wb") as file:
            for first in range(0, len(ordered), CHUNK):
                file.write(encoded(ordered[first : first + CHUNK], width).tobytes())
        self.runs.append(Run.of(path, f"S{width}"))
        while len(self.runs) > MOST_RUNS:
            self._merge_two(width)

    def found(self, states: list[int]) -> set[int]:
        """Return those of some states that stand in a run."""
        ordered = sorted(states)
        return {state for run in self.runs for state in run.found(ordered)}

    def _merge_two(self, width: int) -> None:
        at = neighbours(self.runs)
        left, right = self.runs[at : at + 2]
        path = self.new_path()
        with path.open("wb") as file:
            for part in merged(left, right, width):
                file.write(part.tobytes())
        self.runs[at : at + 2] = [Run.of(path, f"S{width}")]
        left.remove()
        right.remove()

    def states(self) -> Iterator[list[int]]:
        """Give all states, some at a time."""
        for run in self.runs:
            for first in range(0, len(run), CHUNK):
                part = run.states[first : first + CHUNK]
                yield list(decoded(part.tobytes(), run.width))
            run.let_go()

    def forget(self) -> None:
        """Have no states any more."""
        for run in self.runs:
            run.remove()
        self.runs = []

    def spool(self, states: list[int], width: int) -> Spooled:
        """Write states out to be read back once, in their order."""
        path = self.new_path()
        path.write_bytes(encoded(states, width).tobytes())
        return Spooled(path, width, len(states))


@dataclass(frozen=True)
class Spooled:
    """A part of a frontier on disk."""

    path: Path
    width: int
    count: int

    def __len__(self) -> int:
        return self.count

    def states(self) -> list[int]:
        """Read the states, and remove the file."""
        blob = self.path.read_bytes()
        self.path.unlink()
        return list(decoded(blob, self.width))


def widened(states: Bytes, width: int) -> Bytes:
    """Give states more leading zeros."""
    old = states.dtype.itemsize
    if old == width:
        return np.asarray(states)
    wide = np.zeros((len(states), width), dtype=np.uint8)
    wide[:, width - old :] = np.frombuffer(states.tobytes(), np.uint8).reshape(len(states), old)
    return np.frombuffer(wide.tobytes(), dtype=f"S{width}")


def merged(left: Run, right: Run, width: int) -> Iterator[Bytes]:
    """Merge two runs, which have no state in common, part by part."""
    at, other = 0, 0
    while at < len(left) and other < len(right):
        ours = widened(left.states[at : at + CHUNK], width)
        theirs = widened(right.states[other : other + CHUNK], width)
        last = min(ours[-1], theirs[-1])
        count = int(np.searchsorted(ours, last, "right"))
        others = int(np.searchsorted(theirs, last, "right"))
        yield np.sort(np.concatenate([ours[:count], theirs[:others]]))
        at, other = at + count, other + others
        left.let_go()
        right.let_go()
    for run, start in ((left, at), (right, other)):
        for first in range(start, len(run), CHUNK):
            yield widened(run.states[first : first + CHUNK], width)
