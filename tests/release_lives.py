"""Buffers of all kinds, each with a shadow of every byte and canaries beside it.

The shadow is what the content must be: a private page that was given back reads as zero, a shared
one keeps its content, everything else is as it was written. The canaries are two pages of a known
pattern right below and right above (where nobody else's mapping is), of the same kind, so that the
kernel merges them into one VMA with the buffer.
"""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from random import Random
from typing import Any

import numpy as np

from zaplock import buffers
from zaplock.measure import syscalls
from zaplock.release import Released
from zaplock.release.pinned import address_of

PAGE = mmap.PAGESIZE
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
FLAGS = syscalls.MAP_PRIVATE | syscalls.MAP_ANONYMOUS
PATTERN = bytes(range(256)) * (PAGE // 256)
GUISES: dict[str, Callable[[Any, slice], Any]] = {
    "frombuffer": lambda buffer, cut: np.frombuffer(buffer, np.uint8)[cut],
    "memoryview": lambda buffer, cut: memoryview(buffer)[cut],
    "without an export": lambda buffer, cut: _bare(buffer)[cut],
    "ctypes": lambda buffer, cut: _ctypes(buffer, cut),
    "columns": lambda buffer, cut: _even(_bare(buffer)[cut]).T,
    "structured": lambda buffer, cut: _even(_bare(buffer)[cut]).reshape(-1).view("u1,u1"),
    "masked": lambda buffer, cut: np.ma.masked_array(_bare(buffer)[cut], mask=False),
}


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


def _memmap(length: int) -> Any:
    with tempfile.TemporaryFile() as file:
        file.truncate(length)
        return np.memmap(file, np.uint8, mode="c", shape=(length,))


def _array(length: int) -> Any:
    return buffers.empty((length,), np.uint8)


def _background(length: int) -> Any:
    return buffers.empty((length,), np.uint8, background=True)


KINDS: dict[str, Callable[[int], Any]] = {
    "private": _private,
    "shared": _shared,
    "file": _file,
    "segment": _segment,
    "address": lambda length: syscalls.mmap(length, flags=FLAGS),
    "array": _array,
    "background array": _background,
    "memmap": _memmap,
    "malloc": lambda length: np.zeros(length, np.uint8),
    "bytearray": bytearray,
    "array.array": lambda length: array.array("B", bytes(length)),
}
OWNERS = ("private", "shared", "file", "segment", "address")
SHARED = ("shared", "file", "segment")


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

    def check(self) -> None:
        """Raise AssertionError if the pattern is not whole."""
        if self.address:
            assert ctypes.string_at(self.address, PAGE) == PATTERN, f"canary {self.address:#x}"

    def check_and_bury(self) -> None:
        """Check, then unmap it."""
        if self.address:
            self.check()
            syscalls.munmap(self.address, PAGE)
            self.address = 0


class Heap:
    """Blocks of malloc's, small and large, that others might have: none may ever change."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.blocks = [self.block(number) for number in range(24)]

    def block(self, number: int) -> tuple[int, np.ndarray[Any, Any]]:
        """Allocate a block that is full of its number."""
        size = self.random.choice([40, 700, 5_000, 30_000, 140_000, 400_000])
        return number, np.full(size, number, np.uint8)

    def check(self) -> None:
        """Raise AssertionError if a block has changed."""
        for number, block in self.blocks:
            assert block.tobytes().count(number) == block.size, (
                f"heap block at {block.ctypes.data:#x}"
            )

    def turn_over(self) -> None:
        """Free one and allocate another, so that addresses go from hand to hand."""
        index = self.random.randrange(len(self.blocks))
        self.blocks[index] = self.block(index)


@dataclass(slots=True)
class Life:
    """One buffer: how it is handed to release, its shadow, what was exported from it, canaries."""

    kind: str
    handle: Any
    length: int
    shadow: bytearray = field(default_factory=bytearray)
    views: list[Any] = field(default_factory=list)
    canaries: list[Canary] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shadow = bytearray(self.length)
        if self.kind in OWNERS or "array" in self.kind:
            start = self.address()
            self.canaries = [Canary(start - PAGE), Canary(start + self.length)]

    def arguments(self) -> tuple[Any, ...]:
        """Return what release is called with."""
        return (self.handle, self.length) if self.kind == "address" else (self.handle,)

    def buffer(self) -> Any:
        """Return something that memoryview and numpy take."""
        if self.kind == "address":
            return (ctypes.c_ubyte * self.length).from_address(self.handle)
        return self.handle.buf if self.kind == "segment" else self.handle

    def address(self) -> int:
        """Return where it begins."""
        return self.handle if self.kind == "address" else address_of(self.buffer())

    def is_open(self) -> bool:
        """Tell whether it can still be read."""
        if self.kind == "segment":
            return self.handle._mmap is not None and not self.handle._mmap.closed
        return not (isinstance(self.handle, mmap.mmap) and self.handle.closed)

    def write(self, start: int, content: bytes) -> None:
        """Write to it and to its shadow."""
        memoryview(self.buffer()).cast("B")[start : start + len(content)] = content
        self.shadow[start : start + len(content)] = content

    def given_back(self, done: Released) -> None:
        """Note in the shadow what a release did."""
        if not done.length:
            return
        start = done.address - self.address()
        assert start >= 0
        assert start + done.length <= -(-self.length // PAGE) * PAGE
        if self.kind not in SHARED:
            self.shadow[start : start + done.length] = bytes(min(done.length, self.length - start))

    def check(self) -> None:
        """Raise AssertionError where it isn't what the shadow says."""
        seen = ctypes.string_at(self.address(), self.length)
        if seen != self.shadow:
            wrong = next(i for i in range(self.length) if seen[i] != self.shadow[i])
            raise AssertionError(
                f"{self.kind}: byte {wrong} of {self.length} at {self.address():#x} is "
                f"{seen[wrong]}, not {self.shadow[wrong]}"
            )

    def check_interrupted(self, within: tuple[int, int]) -> None:
        """Take over what a release that was interrupted did: whole pages in a range are zero.

        Raise AssertionError where anything else has changed.
        """
        base = self.address()
        seen = ctypes.string_at(base, self.length)
        for page in range(-(base % PAGE), self.length, PAGE):
            first, last = max(page, 0), min(page + PAGE, self.length)
            inside = within[0] <= page and page + PAGE <= -(-within[1] // PAGE) * PAGE
            if inside and self.kind not in SHARED and not any(seen[first:last]):
                self.shadow[first:last] = bytes(last - first)
        self.check()


def _bare(buffer: Any) -> np.ndarray[Any, Any]:
    return np.ndarray((memoryview(buffer).nbytes,), np.uint8, buffer=buffer)


def _even(made: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return made[: made.size // 2 * 2].reshape(2, -1)


def _ctypes(buffer: Any, cut: slice) -> Any:
    return (ctypes.c_ubyte * (cut.stop - cut.start)).from_buffer(buffer, cut.start)
