"""Visited states on disk: a search that outgrows the memory goes on there, whole and exact.

States that were met lately are in a set, as in `exhaustive`. When that has grown to its share of
the memory it is written out as a sorted run, and emptied. What a level finds is then looked up in
the runs all at once, in order, so the disk is read forwards; what stands there is no new state
(delayed duplicate detection: Stern and Dill 1998). Of a state the run holds its whole value, in a
fixed number of bytes: nothing rests on a hash here either. Runs are merged two by two as they
become many, so that there are few to look into. A frontier that is large is on disk as well.

numpy does the sorting, the look-ups and the merging.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from zaplock.engines.checking.audit import no_forgotten_await
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.exhaustive import (
    SLICE,
    Search,
    SearchLimits,
    SearchProgress,
    Verdict,
)
from zaplock.engines.checking.transitions import TransitionTable
from zaplock.scratch import Scratch

CHUNK: Final = 1 << 16
"""States that are looked up, merged or read back in one go."""

MOST_RUNS: Final = 6
LEAST: Final = 100_000
"""So many states are kept in memory at the least."""

SHARE: Final = 0.6
"""Which part of the memory's limit may be full before states go to the disk."""

MOST: Final = 0.8
"""Which part may be full at any time; Python keeps for the next states what it had for the last."""

Bytes = np.ndarray[Any, np.dtype[np.bytes_]]


@dataclass(frozen=True)
class DiskLimits:
    """Where states may go, and how many there may be in memory, if not as many as fit."""

    directory: Path
    in_memory: int | None = None


def encoded(states: list[int], width: int) -> Bytes:
    """Write states as bytes of one width, in order if the states are."""
    blob = b"".join([state.to_bytes(width, "big") for state in states])
    return np.frombuffer(blob, dtype=f"S{width}")


def decoded(blob: bytes, width: int) -> Iterator[int]:
    """Read states back."""
    from_bytes = int.from_bytes
    return (from_bytes(blob[at : at + width], "big") for at in range(0, len(blob), width))


class Run:
    """A sorted file of states of one width, each once."""

    def __init__(self, path: Path, width: int) -> None:
        self.path = path
        self.width = width
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.states: Bytes = np.frombuffer(self.map, dtype=f"S{width}")

    def __len__(self) -> int:
        return len(self.states)

    def found(self, states: list[int]) -> Iterator[int]:
        """Yield those of some sorted states that stand here."""
        limit = 1 << 8 * self.width
        for first in range(0, len(states), CHUNK):
            asked = [state for state in states[first : first + CHUNK] if state < limit]
            if not asked:
                return
            keys = encoded(asked, self.width)
            at = np.searchsorted(self.states, keys)
            at[at == len(self.states)] = 0
            for index in np.flatnonzero(self.states[at] == keys):
                yield asked[index]
            self.let_go()

    def let_go(self) -> None:
        """Occupy no memory; what was read is in the page cache, and the kernel's to take."""
        self.map.madvise(mmap.MADV_DONTNEED)


class StatesOnDisk:
    """All runs of one search, in a directory of their own that goes with it."""

    def __init__(self, directory: Path, *, apart: bool = False) -> None:
        # What a worker that died has put apart, others may still read: it goes with the whole.
        self._scratch = Scratch("states", directory, sweeps=not apart)
        self.directory = self._scratch.path
        self.runs: list[Run] = []
        self.files = 0

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    def close(self) -> None:
        """Remove everything."""
        self._scratch.close()

    def apart(self) -> StatesOnDisk:
        """Return the same runs with a directory below for those to come; it goes with this one."""
        part = StatesOnDisk(self.directory, apart=True)
        part.runs = list(self.runs)
        return part

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
        self.runs.append(Run(path, width))
        while len(self.runs) > MOST_RUNS:
            self._merge_two(width)

    def found(self, states: list[int]) -> set[int]:
        """Return those of some states that stand in a run."""
        ordered = sorted(states)
        return {state for run in self.runs for state in run.found(ordered)}

    def _merge_two(self, width: int) -> None:
        pairs = list(zip(self.runs, self.runs[1:]))
        left, right = min(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
        path = self.new_path()
        with path.open("wb") as file:
            for part in merged(left, right, width):
                file.write(part.tobytes())
        at = self.runs.index(left)
        self.runs[at : at + 2] = [Run(path, width)]
        for run in (left, right):  # another worker may have merged it, too
            run.path.unlink(missing_ok=True)

    def spool(self, states: list[int], width: int) -> Spooled:
        """Write states out to be read back once, in their order."""
        path = self.new_path()
        path.write_bytes(encoded(states, width).tobytes())
        return Spooled(path, width)


@dataclass(frozen=True)
class Spooled:
    """A part of a frontier on disk."""

    path: Path
    width: int

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


class SearchOnDisk(Search):
    """An exploration whose visited states and frontier go to the disk as they become many."""

    def __init__(
        self,
        table: TransitionTable,
        limits: SearchLimits,
        all_violations: bool,
        progress: Callable[[SearchProgress], None] | None,
        disk: DiskLimits,
    ) -> None:
        super().__init__(table, limits, all_violations, progress)
        self.disk = disk
        self.old = StatesOnDisk(disk.directory)
        self.fits = disk.in_memory

    @property
    def states(self) -> int:
        """How many states were visited."""
        return len(self.old) + len(self.visited)

    def until(self, enough: int | None) -> list[int]:
        """Explore level by level to the end, a violation or a limit."""
        if self.table.initial_violation is not None:
            self.note(self.table.initial_violation)
            return []
        frontier: list[list[int] | Spooled] = [[self.table.initial]]
        while frontier:
            frontier = self._next_level(frontier)
            if self.limit or (self.found and not self.all_violations):
                return []
            self.depth += 1
        return []

    def _next_level(self, frontier: list[list[int] | Spooled]) -> list[list[int] | Spooled]:
        level: list[list[int] | Spooled] = []
        found: list[int] = []
        for part in frontier:
            states = part.states() if isinstance(part, Spooled) else part
            for first in range(0, len(states), SLICE):
                if self.is_at_limit(len(states) - first + len(found)):
                    return []
                found += self.expand(states[first : first + SLICE])
                if len(found) >= CHUNK or self._is_full():
                    self._settle(found, level)
                    found = []
        self._settle(found, level)
        return level

    def set_apart(self) -> None:
        """Write own runs from now on; those that there are can be read by every worker."""
        self.old = self.old.apart()

    def close(self) -> None:
        """Remove everything from the disk."""
        self.old.close()

    def settled(self, found: list[int]) -> list[int]:
        """Take out what stands on disk, and let everything go there if the memory is full."""
        before = self.old.found(found) if self.old.runs else set()
        if before:
            self.visited -= before
            found = [state for state in found if state not in before]
        if self._is_full():
            self.old.take(self.visited, self._width)
            self.visited.clear()
            self.table.auditor.look_in()
        return found

    def _settle(self, found: list[int], level: list[list[int] | Spooled]) -> None:
        """Keep what is new as a part of the next frontier."""
        found = self.settled(found)
        if found:
            spools = bool(self.old.runs) and len(found) > SLICE
            level.append(self.old.spool(found, self._width) if spools else found)

    def _is_full(self) -> bool:
        held = len(self.visited)
        if self.fits is not None and held >= self.fits:
            return True
        if self.disk.in_memory is not None or held < LEAST:
            return False
        share = SHARE if self.fits is None else MOST
        if self.memory_ahead() < share * self.memory:
            return False
        self.fits = self.fits or held
        return True

    @property
    def _width(self) -> int:
        return (self.table.packed.layout.bits + 7) // 8


def explore_on_disk(
    configuration: Configuration,
    disk: DiskLimits,
    limits: SearchLimits = SearchLimits(),
    *,
    all_violations: bool = False,
    progress: Callable[[SearchProgress], None] | None = None,
) -> Verdict:
    """Explore as `exhaustive.explore` does, with the states that don't fit into memory on disk."""
    with no_forgotten_await():
        table = TransitionTable(configuration)
        search = SearchOnDisk(table, limits, all_violations, progress, disk)
        try:
            return search.run()
        finally:
            search.close()
            table.close()
