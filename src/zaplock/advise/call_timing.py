"""The process in which calls are timed: `python -m zaplock.advise.call_timing`, started by `costs`.

Each call works on a fresh mapping of 4 KiB pages, all present; its duration is about what everybody
else would wait, since all of them hold the mmap_lock (or, for MADV_DONTNEED on 6.18, the VMA's
lock) from beginning to end. The median of three counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

from zaplock.measure import mappings, syscalls, teardown
from zaplock.measure.json_children import die_with_parent, quiet_interpreter, read_orders, tell
from zaplock.measure.mappings import StudiedMapping
from zaplock.release import release
from zaplock.release.fill import fill

REPEAT = 3
MAP_POPULATE = 0x8000
TEARDOWNS = {
    "munmap": "munmap",
    "mmap over it": "fixed",
    "brk": "brk",
    "mremap": "mremap",
    "madvise": "dontneed",
}


def timed(work: Callable[[], object]) -> int:
    """Return how long a call takes, in nanoseconds."""
    began = time.monotonic_ns()
    work()
    return time.monotonic_ns() - began


def full(length: int, backing: str = "anonymous") -> StudiedMapping:
    """Return a mapping with every page present."""
    mapping = mappings.map_range(length, backing)
    mappings.populate(mapping)
    return mapping


def torn_down(way: str, length: int, backing: str = "anonymous") -> int:
    """Time one teardown."""
    mapping = teardown.prepare(way, length, backing)
    mappings.populate(mapping)
    took = timed(lambda: teardown.WAYS[way](mapping))
    if way in ("fixed", "mremap", "dontneed"):
        syscalls.munmap(mapping.address, mapping.length)
    return took


def on_full(length: int, work: Callable[[StudiedMapping], object]) -> int:
    """Time a call on a full mapping, which is unmapped afterwards."""
    mapping = full(length)
    try:
        return timed(lambda: work(mapping))
    finally:
        syscalls.munmap(mapping.address, mapping.length)


def populated(length: int) -> int:
    """Time an mmap with MAP_POPULATE."""
    flags = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | MAP_POPULATE
    made: list[int] = []
    took = timed(lambda: made.append(syscalls.mmap(length, flags=flags)))
    syscalls.munmap(made[0], length)
    return took


def fork() -> None:
    """Fork a child that ends at once."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def piece_of_release(length: int) -> int:
    """Return the longest piece of a paced release."""
    mapping = full(length)
    return release(mapping.address, mapping.length).longest_piece_ns


def piece_of_fill(length: int) -> int:
    """Return the longest piece of a paced fill."""
    mapping = mappings.map_range(length, "anonymous")
    longest = fill(mapping.address, mapping.end).longest_ns
    syscalls.munmap(mapping.address, mapping.length)
    return longest


def experiments(length: int) -> dict[str, Callable[[], int]]:
    """List what is timed, by name."""
    found: dict[str, Callable[[], int]] = {
        name: lambda way=way: torn_down(way, length)  # type: ignore[misc]
        for name, way in TEARDOWNS.items()
    }
    read_only = syscalls.PROT_READ
    return {
        **found,
        "munmap of huge pages": lambda: torn_down("munmap", length, "thp"),
        "MAP_POPULATE": lambda: populated(length),
        "mprotect": lambda: on_full(
            length, lambda mapping: syscalls.mprotect(mapping.address, length, read_only)
        ),
        "mlock": lambda: on_full(length, lambda mapping: syscalls.mlock(mapping.address, length)),
        "fork": lambda: on_full(length, lambda _mapping: fork()),
        "fork without it": lambda: timed(fork),
        "piece of a release": lambda: piece_of_release(length),
        "piece of a populate": lambda: piece_of_fill(length),
    }


def main() -> None:
    """Take the length, tell each figure; what this kernel or user may not do is left out."""
    die_with_parent()
    quiet_interpreter()
    for name, experiment in experiments(read_orders()["length"]).items():
        try:
            tell(name=name, took_ns=int(median(experiment() for _ in range(REPEAT))))
        except (OSError, RuntimeError):
            continue
    tell(done=True)


if __name__ == "__main__":
    main()
