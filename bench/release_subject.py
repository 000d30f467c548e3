"""The measured process of the release bench: maps, populates, tears down or fills, tells.

Its dialogue is that of zaplock.measure.subject: orders in, `ready` out; `go` in, `done` with the
samples out. The range lies at a fixed low address, where the kernel puts nothing by itself, so
that a neighbour can map beside it and nobody is given its addresses after the unmap.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from bench.release_neighbours import operation
from zaplock.measure import mappings, syscalls, teardown
from zaplock.measure.bystanders import BystanderOperation, MeasuredSamples, loop, own_range
from zaplock.measure.json_children import die_with_parent, quiet_interpreter, read_orders, tell
from zaplock.measure.mappings import StudiedMapping
from zaplock.release import release
from zaplock.release.fill import fill

ADDRESS = 0x1000_0000_0000
FLAGS = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS | syscalls.MAP_NORESERVE
CHUNK = 32 << 20
MAP_POPULATE = 0x8000
SETTLE_S = 0.02


class Bystander(threading.Thread):
    """A thread that does one bystander's work until it is told to stop."""

    def __init__(self, name: str, work: BystanderOperation, period_ns: int) -> None:
        super().__init__(name=name, daemon=True)
        self.operation, self.period_ns = work, period_ns
        self.samples, self.stopped = MeasuredSamples(), False

    def run(self) -> None:
        """Loop until stopped."""
        self.samples = loop(self.operation, self.period_ns, lambda: self.stopped)


def _in_pieces(mapping: StudiedMapping) -> None:
    for start in range(mapping.address, mapping.end, CHUNK):
        syscalls.munmap(start, min(CHUNK, mapping.end - start))


def _in_a_thread(mapping: StudiedMapping) -> None:
    thread = threading.Thread(target=teardown.WAYS["munmap"], args=[mapping])
    thread.start()
    thread.join()


def _dontneed(mapping: StudiedMapping) -> None:
    teardown.WAYS["dontneed"](mapping)
    teardown.WAYS["munmap"](mapping)


def _mmap_populate(mapping: StudiedMapping) -> None:
    flags = FLAGS | syscalls.MAP_FIXED | MAP_POPULATE
    syscalls.mmap(mapping.length, flags=flags, address=mapping.address)


WAYS: dict[str, Callable[[StudiedMapping, int], object]] = {
    "munmap": lambda mapping, _bound: teardown.WAYS["munmap"](mapping),
    "munmap by 32 MiB": lambda mapping, _bound: _in_pieces(mapping),
    "munmap in a thread": lambda mapping, _bound: _in_a_thread(mapping),
    "MADV_DONTNEED": lambda mapping, _bound: _dontneed(mapping),
    "MAP_POPULATE": lambda mapping, _bound: _mmap_populate(mapping),
    "release": lambda mapping, bound: release(mapping.address, mapping.length, max_stall_ns=bound),
    "populate": lambda mapping, bound: fill(mapping.address, mapping.end, bound),
}
FILLS = ("MAP_POPULATE", "populate")


def force_mmap_lock(mapping: StudiedMapping) -> int:
    """Make MADV_DONTNEED take the mmap_lock for read, as before 6.18: register a userfaultfd.

    A VMA under userfaultfd is excluded from the per-VMA path of madvise. No event is asked for, so
    nothing else changes. Returns the descriptor, which must stay open.
    """
    number = 323 if os.uname().machine == "x86_64" else 282
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(number, os.O_CLOEXEC)
    if descriptor < 0:
        raise RuntimeError("userfaultfd is not allowed: run as root")
    fcntl.ioctl(descriptor, 0xC018AA3F, bytearray(struct.pack("<3Q", 0xAA, 0, 0)))
    region = struct.pack("<4Q", mapping.address, mapping.length, 1, 0)  # MISSING
    fcntl.ioctl(descriptor, 0xC020AA00, bytearray(region))
    return int(descriptor)


def build(orders: dict[str, Any]) -> StudiedMapping:
    """Map the range, with every page present unless it is to be filled."""
    mapping = StudiedMapping(ADDRESS, orders["length"], orders["backing"])
    syscalls.mmap(
        mapping.length, flags=FLAGS | syscalls.MAP_FIXED_NOREPLACE, address=mapping.address
    )
    mappings.advise_huge(mapping)
    if "fork" in orders["bystanders"]:
        syscalls.madvise(mapping.address, mapping.length, syscalls.MADV_DONTFORK)
    if orders["way"] not in FILLS:
        mappings.populate(mapping)
    if orders["force_chunks"]:
        force_mmap_lock(mapping)
    return mapping


def run(orders: dict[str, Any]) -> None:
    """Live through one experiment."""
    mapping = build(orders)
    threads = [
        Bystander(name, operation(name, mapping), orders["period_ns"])
        for name in orders["bystanders"]
    ]
    for thread in threads:
        thread.start()
    tell(ready=True, probe=own_range(syscalls.PAGE))
    read_orders()  # go
    begin_ns = time.monotonic_ns()
    WAYS[orders["way"]](mapping, orders["max_stall_ns"])
    end_ns = time.monotonic_ns()
    time.sleep(SETTLE_S)
    for thread in threads:
        thread.stopped = True
    for thread in threads:
        thread.join()
    samples = {one.name: [one.samples.begin_ns, one.samples.took_ns] for one in threads}
    tell(done=True, samples=samples, begin_ns=begin_ns, end_ns=end_ns)


def main() -> None:
    """Take orders once."""
    die_with_parent()
    quiet_interpreter()
    try:
        run(read_orders())
    except (OSError, RuntimeError) as error:
        tell(error=f"the experiment failed: {error}")


if __name__ == "__main__":
    main()
