"""Random lives of buffers in many threads: acquired, viewed, sliced, released, misused, dropped.

    python tests/release_stress.py --sequences 100000 --threads 4 --seed 1

Every buffer has a page of a known pattern mapped right below and right above it (where nobody
else's mapping is), of the same kind, so that the kernel merges them into one VMA with the buffer:
a release that takes a page too many, or acts on addresses that it no longer owns, changes or
unmaps a canary. Every misuse must be a clear exception. At the end nothing may be left in maps or
memory. A failure names its seed and sequence.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import mmap
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

import zaplock.buffers
from zaplock.measure import syscalls
from zaplock.release import ExportedError, ReleaseError, flush, release, release_soon
from zaplock.release.claims import nothing_is_claimed
from zaplock.release.pinned import address_of

PAGE = mmap.PAGESIZE
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
FLAGS = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS
PATTERN = bytes(range(256)) * (PAGE // 256)


class Canary:
    """A page of pattern at a given address, if nothing is mapped there."""

    def __init__(self, address: int) -> None:
        self.address = 0
        try:
            self.address = syscalls.mmap(
                PAGE, flags=FLAGS | syscalls.MAP_FIXED_NOREPLACE, address=address
            )
            ctypes.memmove(self.address, PATTERN, PAGE)
        except OSError:
            pass  # somebody lives there, and has canaries of his own

    def check_and_bury(self) -> None:
        """Raise AssertionError if the pattern is not whole; then unmap it."""
        if self.address:
            assert ctypes.string_at(self.address, PAGE) == PATTERN, hex(self.address)
            syscalls.munmap(self.address, PAGE)
            self.address = 0


@dataclass(slots=True)
class Life:
    """One buffer: how it is handed to release, what was exported from it, its canaries."""

    kind: str
    handle: Any
    length: int
    views: list[Any] = field(default_factory=list)
    canaries: list[Canary] = field(default_factory=list)
    ended: bool = False

    def arguments(self) -> tuple[Any, ...]:
        """Return what release is called with."""
        return (self.handle, self.length) if self.kind == "address" else (self.handle,)


def _private(length: int) -> Any:
    return mmap.mmap(-1, length, flags=PRIVATE)


def _shared(length: int) -> Any:
    return mmap.mmap(-1, length)


def _file(length: int) -> Any:
    descriptor = os.memfd_create("zaplock-stress")
    os.ftruncate(descriptor, length)
    mapping = mmap.mmap(descriptor, length)
    os.close(descriptor)
    return mapping


def _segment(length: int) -> Any:
    segment = SharedMemory(create=True, size=length)
    segment.unlink()
    return segment


KINDS: dict[str, Callable[[int], Any]] = {
    "private": _private,
    "shared": _shared,
    "file": _file,
    "segment": _segment,
    "address": lambda length: syscalls.mmap(length, flags=FLAGS),
    "array": lambda length: zaplock.buffers.empty((length,), np.uint8),
    "background array": lambda length: zaplock.buffers.empty((length,), np.uint8, background=True),
    "malloc": lambda length: np.empty(length, np.uint8),
    "bytearray": bytearray,
}
SPARE = 32 << 20
"""What malloc may keep for itself, in bytes; the lives of 1,000 sequences add up to 400 MB."""
OWNERS = ("private", "shared", "file", "segment", "address")


def buffer_of(life: Life) -> Any:
    """Return something that memoryview and numpy take."""
    if life.kind == "address":
        return (ctypes.c_ubyte * life.length).from_address(life.handle)
    return life.handle.buf if life.kind == "segment" else life.handle


class Actor:
    """One thread's lives, drawn from its own generator."""

    def __init__(
        self, seed: int, number: int, sequences: int, common: list[Life], kinds: Sequence[str]
    ) -> None:
        self.random = random.Random(f"{seed}-{number}")
        self.sequences, self.common, self.kinds = sequences, common, kinds
        self.counts: Counter[str] = Counter()
        self.failure: str = ""
        self.name = f"seed {seed}, thread {number}"

    def run(self) -> None:
        """Live all sequences; note the first failure."""
        for sequence in range(self.sequences):
            try:
                self.one()
            except BaseException as error:
                self.failure = f"{self.name}, sequence {sequence}: {error!r}"
                return

    def one(self) -> None:
        """Acquire one buffer and act on it until its life has ended."""
        life = self.acquire()
        for _ in range(self.random.randrange(1, 7)):
            act = self.random.choice([self.write, self.view, self.misuse, self.empty, self.contend])
            self.counts[act.__name__] += 1
            act(life)
        self.end(life)
        for canary in life.canaries:
            canary.check_and_bury()

    def acquire(self) -> Life:
        pages = self.random.choice([1, 1, 2, 3, 16, 64, 64, 700])
        kind = self.random.choice(self.kinds)
        life = Life(kind, KINDS[kind](pages * PAGE), pages * PAGE)
        self.counts[kind] += 1
        if kind in OWNERS or "array" in kind:
            self.guard(life)
        return life

    def guard(self, life: Life) -> None:
        start = life.handle if life.kind == "address" else self.address(life)
        life.canaries = [Canary(start - PAGE), Canary(start + life.length)]

    def address(self, life: Life) -> int:
        return address_of(buffer_of(life))

    def write(self, life: Life) -> None:
        memoryview(buffer_of(life)).cast("B")[self.random.randrange(life.length)] = 1

    def view(self, life: Life) -> None:
        """Keep an array or a slice, which exports the memory (an address has no exports)."""
        if life.kind == "address":
            return
        if self.random.random() < 0.5:
            life.views.append(np.frombuffer(buffer_of(life), np.uint8)[self.cut(life)])
        else:
            life.views.append(memoryview(buffer_of(life))[self.cut(life)])

    def cut(self, life: Life) -> slice:
        start = self.random.randrange(life.length)
        return slice(start, self.random.randrange(start, life.length) + 1)

    def misuse(self, life: Life) -> None:
        """Release under views, with a bad length, a bad bound, or a strange view of it."""
        attempts: list[Callable[[], Any]] = [
            lambda: release(*life.arguments(), max_stall_ns=5),
            lambda: release(*life.arguments()[:1], 5),
            lambda: release(np.frombuffer(buffer_of(life), np.uint8)[::2]),
            lambda: release(memoryview(buffer_of(life)).toreadonly().tobytes()),
        ]
        if life.views and life.kind in OWNERS:
            attempts.append(lambda: release(*life.arguments()))
        attempt = self.random.choice(attempts)
        refused(attempt, f"misuse of a {life.kind}")

    def empty(self, life: Life) -> None:
        """Give the memory back and go on using it: all of it or, through a view, a part."""
        if life.views and self.random.random() < 0.5:
            release(life.views[-1])
        elif not life.views:
            release(*life.arguments(), unmap=False)
        self.write(life)

    def contend(self, life: Life) -> None:
        """Put an owner where all threads find it, take one from there and release it: some race."""
        if life.kind not in ("private", "shared", "file"):
            return
        other = Life(life.kind, KINDS[life.kind](life.length), life.length)
        memoryview(other.handle)[life.length - 1] = 1
        self.common.append(other)
        try:
            chosen = self.random.choice(self.common)
            release(*chosen.arguments())
            self.counts["race won"] += 1
        except (ReleaseError, ExportedError):
            self.counts["race lost"] += 1
        del self.common[:-16]

    def end(self, life: Life) -> None:
        """Drop the views, end the life in one of its ways; a second end must be refused."""
        life.views.clear()
        if life.kind not in OWNERS:
            life.handle = None
            return
        way = self.random.choice(["release", "release", "soon", "close"])
        self.counts[way] += 1
        if way == "release":
            assert release(*life.arguments()).unmapped
        elif way == "soon":
            assert release_soon(*life.arguments()).result().unmapped
        elif life.kind == "address":
            syscalls.munmap(life.handle, life.length)
        else:
            life.handle.close()
        if life.kind != "address":  # by now its addresses may be somebody else's
            self.second(life)

    def second(self, life: Life) -> None:
        error = refused(lambda: release(*life.arguments()), "a second release")
        assert "released already" in str(error), repr(error)


def refused(attempt: Callable[[], Any], what: str) -> Exception:
    """Return the one-line error of an attempt; raise AssertionError if it was not refused."""
    try:
        attempt()
    except (ReleaseError, ExportedError) as error:
        return error
    raise AssertionError(f"{what} went through")


def footprint() -> tuple[int, int]:
    """Return the number of mappings and the resident bytes of this process."""
    flush()
    gc.collect()
    with open("/proc/self/maps") as maps:
        nr_maps = sum(1 for _ in maps)
    with open("/proc/self/statm") as statm:
        return nr_maps, int(statm.read().split()[1]) * PAGE


def stress(
    sequences: int, threads: int, seed: int, kinds: Sequence[str] = tuple(KINDS)
) -> Counter[str]:
    """Run `sequences` lives over `threads` threads; raise AssertionError at anything wrong."""
    common: list[Life] = []
    share = -(-sequences // threads)
    actors = [Actor(seed, number, share, common, kinds) for number in range(threads)]
    running = [threading.Thread(target=actor.run) for actor in actors]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    common.clear()
    failures = [actor.failure for actor in actors if actor.failure]
    assert not failures, failures
    flush()
    assert nothing_is_claimed()
    counts: Counter[str] = sum((actor.counts for actor in actors), Counter())
    return counts


def main() -> int:
    """Run the whole of it and say what was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sequences", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    stress(200, args.threads, args.seed + 1)  # malloc's arenas and the worker are there from now on
    before, began = footprint(), time.monotonic()
    counts = stress(args.sequences, args.threads, args.seed)
    after = footprint()
    print(f"{args.sequences} sequences in {time.monotonic() - began:.0f} s: {dict(counts)}")
    print(f"mappings {before[0]} -> {after[0]}, resident {before[1] >> 10} -> {after[1] >> 10} KiB")
    return 0 if after[0] <= before[0] + 8 and after[1] <= before[1] + SPARE else 1


if __name__ == "__main__":
    sys.exit(main())
