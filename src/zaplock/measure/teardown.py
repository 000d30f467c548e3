"""The ways in which a program gives a big mapping back, each one system call.

| way       | call                                                  | mmap_lock on 6.18          |
|-----------|-------------------------------------------------------|----------------------------|
| munmap    | munmap of the whole range                             | write, then downgraded     |
| growsdown | munmap below a MAP_GROWSDOWN neighbour                | as munmap (5.10-6.4: write)|
| fixed     | mmap(MAP_FIXED, PROT_NONE) over the range             | write to the end           |
| brk       | brk back to where the heap began                      | write, then downgraded     |
| mremap    | mremap to its first page                              | write, then downgraded     |
| dontneed  | madvise(MADV_DONTNEED)                                | the VMA's lock (one VMA)   |
| exit      | exit of the process                                   | read, then write           |

A new way is one more entry in `WAYS` and in `experiment.TEARDOWNS`. `exit` is timed by the parent
(zaplock.measure.measure), from the child's last clock reading to the moment at which its pidfd
becomes readable.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from zaplock.experiment import BACKINGS
from zaplock.measure import syscalls as sys
from zaplock.measure.mappings import StudiedMapping, map_heap, map_range


def _munmap(mapping: StudiedMapping) -> None:
    sys.munmap(mapping.address, mapping.length)


def _fixed(mapping: StudiedMapping) -> None:
    flags = sys.MAP_PRIVATE | sys.MAP_ANONYMOUS | sys.MAP_NORESERVE | sys.MAP_FIXED
    sys.mmap(mapping.length, sys.PROT_NONE, flags, address=mapping.address)


def _brk(mapping: StudiedMapping) -> None:
    if sys.heap_end() != mapping.end:
        raise RuntimeError("the heap has grown above the mapping under study")
    sys.brk(mapping.address)


def _mremap(mapping: StudiedMapping) -> None:
    sys.mremap(mapping.address, mapping.length, BACKINGS[mapping.backing].page)


def _dontneed(mapping: StudiedMapping) -> None:
    sys.madvise(mapping.address, mapping.length, sys.MADV_DONTNEED)


def _exit(_mapping: StudiedMapping) -> None:
    os._exit(0)


WAYS: dict[str, Callable[[StudiedMapping], None]] = {
    "munmap": _munmap,
    "growsdown": _munmap,
    "fixed": _fixed,
    "brk": _brk,
    "mremap": _mremap,
    "dontneed": _dontneed,
    "exit": _exit,
}


def prepare(way: str, length: int, backing: str) -> StudiedMapping:
    """Map what this way of teardown is to take down, without populating it."""
    if way == "brk":
        return map_heap(length, backing)
    mapping = map_range(length, backing)
    if way == "growsdown":
        _map_growing_neighbour(mapping)
    return mapping


def _map_growing_neighbour(mapping: StudiedMapping) -> None:
    flags = sys.MAP_PRIVATE | sys.MAP_ANONYMOUS | sys.MAP_FIXED | sys.MAP_GROWSDOWN
    sys.mmap(4 * sys.PAGE, sys.PROT_READ | sys.PROT_WRITE, flags, address=mapping.end)
    sys.memset(mapping.end, 1, 4 * sys.PAGE)
