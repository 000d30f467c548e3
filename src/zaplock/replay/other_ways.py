"""Other ways of freeing what a program freed with munmap: the same pages, by more calls.

MADV_DONTNEED frees the pages while the mapping stays, which takes the mmap_lock for read, or from
6.17 on only the VMA's lock; the munmap that follows finds nothing to zap. In chunks, either call
lets others in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zaplock.replay.plan import RecordedOperation

CHUNK = 2 << 20
WAYS = ("munmap", "dontneed", "dontneed-chunks", "munmap-chunks")


@dataclass(frozen=True, slots=True)
class FreeingCall:
    """One call of a way: "munmap" or "madvise" of `length` bytes, `at` bytes from the beginning.

    `zaps` says whether it finds pages.
    """

    name: str
    at: int
    length: int
    zaps: bool


@dataclass(frozen=True, slots=True)
class Way:
    """How memory is freed: as the program did ("munmap"), or otherwise, in chunks of so many bytes.

    >>> str(Way("munmap-chunks", 2 << 20))
    'munmap-chunks:2M'
    """

    name: str = "munmap"
    chunk: int = CHUNK

    def __str__(self) -> str:
        whole = self.chunk >> 20 if self.chunk % (1 << 20) == 0 else 0
        size = f"{whole}M" if whole else f"{self.chunk >> 10}K"
        return f"{self.name}:{size}" if self.name.endswith("chunks") else self.name

    def replaces(self, operation: RecordedOperation) -> bool:
        """Return whether an operation is a munmap that is done this way instead."""
        large = operation.length > self.chunk
        return self.name != "munmap" and operation.kind == "munmap" and large

    def calls(self, length: int) -> list[FreeingCall]:
        """List the calls that free a mapping of `length` bytes."""
        if self.name == "munmap":
            return [FreeingCall("munmap", 0, length, True)]
        if self.name == "munmap-chunks":
            return [FreeingCall("munmap", at, part, True) for at, part in self._chunks(length)]
        chunks = [(0, length)] if self.name == "dontneed" else self._chunks(length)
        zaps = [FreeingCall("madvise", at, part, True) for at, part in chunks]
        return [*zaps, FreeingCall("munmap", 0, length, False)]

    def _chunks(self, length: int) -> Iterator[tuple[int, int]]:
        for at in range(0, length, self.chunk):
            yield at, min(self.chunk, length - at)
