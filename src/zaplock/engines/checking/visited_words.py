"""Visited words in few bytes: those met lately in a hash set, older ones in sorted runs.

A hash set in numpy fills three to six slots in ten, and is there twice while it grows. So where
memory counts it holds the latest words only. When it is full, those that are kept here become a
sorted run of eight bytes a word, in memory or in a file, and it begins anew. What the set didn't
know is looked up in the runs some ten thousand words at a time, in order. Cf. `on_disk`, which does
the same with states that are ints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from zaplock.engines.checking.hashed import Flags, HashSet, Words, cut
from zaplock.engines.checking.sorted_runs import (
    MOST_RUNS,
    Run,
    StatesOnDisk,
    merged,
    neighbours,
)

RECENT: Final = 450_000
"""So many words are in the hash set before they become a run: with a batch more it has 8 MiB."""

_WORD: Final = 8


class VisitedWords:
    """A set of words. What `add` calls new may be in a run; `unseen` tells, and counts.

    fits: how many words the set has before they become a run. is_own: tells which words are kept
    here; others are forgotten with the set. files: where runs are written to, None for memory.
    """

    def __init__(
        self,
        fits: int = RECENT,
        files: StatesOnDisk | None = None,
        is_own: Callable[[Words], Flags] | None = None,
    ) -> None:
        self.fits = fits
        self.files = files
        self.is_own = is_own
        self.recent = HashSet()
        self.runs: list[Run] = []
        self.counted = 0

    def __len__(self) -> int:
        return self.counted

    def add(self, words: Words) -> Flags:
        """Put words in; tell of each whether the set didn't have it, nor an earlier one here."""
        return self.recent.add(words)

    def unseen(self, words: Words) -> Words:
        """Return those of some words that `add` called new that are in no run, in their order."""
        if self.runs and len(words):
            words = words[~self._are_in_runs(words)]
        self.counted += len(words)
        return words

    def _are_in_runs(self, words: Words) -> Flags:
        """Tell which of some words are in a run; they are looked up in order."""
        order = np.argsort(words)
        keys, known = words[order], np.zeros(len(words), dtype=bool)
        for run in self.runs:
            known[order] |= run.holds(keys)
        return known

    def relieve(self) -> None:
        """Let a full set become a run. Nothing that it called new may wait for `unseen`."""
        if len(self.recent) < self.fits:
            return
        words = self.recent.keys()
        self.recent.clear()
        words.sort()
        words = self._kept(words)
        if len(words):
            self.runs.append(self._run(iter([words])))
        if len(self.runs) > MOST_RUNS:
            at = neighbours(self.runs)
            left, right = self.runs[at : at + 2]
            self.runs[at : at + 2] = [self._run(merged(left, right, _WORD))]
            left.remove()
            right.remove()

    def _kept(self, words: Words) -> Words:
        """Return those of some words that are kept here and in no run yet."""
        if self.is_own is not None:
            words = words[self.is_own(words)]
        return words[~self._are_in_runs(words)]

    def _run(self, parts: Iterator[Words]) -> Run:
        if self.files is None:
            return Run(np.concatenate(list(parts)))
        path = self.files.new_path()
        with path.open("wb") as file:
            for part in parts:
                part.tofile(file)
        return Run.of(path, np.uint64)

    def parts(self) -> Iterator[Words]:
        """Give all words that are kept here, some at a time, each once."""
        for run in self.runs:
            yield from cut(run.states)
            run.let_go()
        for part in cut(np.sort(self.recent.keys())):
            kept = self._kept(part)
            if len(kept):
                yield kept

    def move(self, moved: Callable[[Words], Words]) -> None:
        """Replace each word by another; their order stays."""
        runs = self.runs
        self.runs = [self._run(map(moved, cut(run.states))) for run in runs]
        for run in runs:
            run.remove()
        self.recent.move(moved)

    def bytes_to_come(self, more: int) -> int:
        """Return how many bytes more it takes at most while `more` words are put in."""
        kept = 3 * len(self.recent)
        if self.files is None and len(self.runs) == MOST_RUNS:
            at = neighbours(self.runs)
            kept += 2 * sum(map(len, self.runs[at : at + 2]))
        return self.recent.bytes_to_come(more) + _WORD * kept
