"""Where a process has pages of its own, found without a walk over all of them.

Source: PAGEMAP_SCAN (6.7), PROCMAP_QUERY (6.11).
"""

from __future__ import annotations

import ctypes
import fcntl
import struct
from contextlib import suppress
from io import FileIO

from zaplock.model.store import RangeMap
from zaplock.oracle import ring

_PAGEMAP_SCAN, _PROCMAP_QUERY = 0xC060_6610, 0xC068_6611
_REGIONS = 512
_SMALL = 48 << 12
"""What can be walked in the time of one more ioctl."""
_FILE, _PRESENT, _SWAPPED, _ZERO = 1 << 2, 1 << 3, 1 << 4, 1 << 5

Spans = list[tuple[int, int]]


def written_ranges(tid: int, known: RangeMap[bool]) -> Spans:
    """List where a thread's process has mappings with pages of their own that are not known yet.

    One page tells it of its mapping, so what is known costs no walk of its pages unless it is
    small. Before Linux 6.11 the pages themselves are listed.
    """
    with open(f"/proc/{tid}/pagemap", "rb", buffering=0) as pagemap:
        scan = Scan(pagemap.fileno())
        with open(f"/proc/{tid}/maps", "rb", buffering=0) as maps, suppress(OSError):
            return _written_mappings(scan, maps, known)
        pages: Spans = []
        begin = 0
        while begin < ring.TASK_SIZE:
            begin, parts = scan.look(begin, ring.TASK_SIZE)
            for low, high in parts:
                pages += unknown(known, low, high)
        return pages


def _written_mappings(scan: Scan, maps: FileIO, known: RangeMap[bool]) -> Spans:
    """List where mappings have pages of their own outside of known ranges, by their first page.

    Small known ranges are walked with what lies around them.
    """
    found: Spans = []
    low = 0
    runs = known.overlapping(0, ring.TASK_SIZE)
    big = [(start, end) for start, end, _ in runs if end - start > _SMALL]
    for high, after in (*big, (ring.TASK_SIZE, 0)):
        begin, low = low, after
        done = begin
        while begin < high:
            begin, parts = scan.look(begin, high)
            for start, stop in parts:
                for first, last in unknown(known, max(start, done), stop):
                    while max(first, done) < last:  # it may lie in several mappings
                        lowest, end = _mapping_at(maps, max(first, done))
                        found += unknown(known, max(lowest, done), min(end, high))
                        done = end
            begin = max(begin, done)
    return found


class Scan:
    """Looks for anonymous pages of one process, each time with the same buffers."""

    def __init__(self, pagemap: int) -> None:
        self._pagemap = pagemap
        regions = ctypes.create_string_buffer(24 * _REGIONS)
        self._regions = memoryview(regions)
        self._argument = bytearray(struct.pack(
            "<12Q", 96, 0, 0, 0, 0, ctypes.addressof(regions), _REGIONS, 0,
            _FILE | _ZERO, _FILE | _ZERO, _PRESENT | _SWAPPED, _PRESENT,
        ))  # fmt: skip

    def look(self, begin: int, end: int) -> tuple[int, Spans]:
        """Look from `begin` on: how far was looked, and where there are some."""
        struct.pack_into("<3Q", self._argument, 16, begin, end, 0)
        count = fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, self._argument)
        if not count:
            return end, []
        told = self._regions[: 24 * count]
        parts = [(start, stop) for start, stop, _ in struct.iter_unpack("<3Q", told)]
        return struct.unpack_from("<Q", self._argument, 32)[0] if count == _REGIONS else end, parts


def _mapping_at(maps: FileIO, address: int) -> tuple[int, int]:
    """Return where the mapping around an address begins and ends. Raises OSError before 6.11."""
    query = bytearray(struct.pack("<3Q", 104, 0, address).ljust(104, b"\0"))
    fcntl.ioctl(maps, _PROCMAP_QUERY, query)
    start, end = struct.unpack_from("<2Q", query, 24)
    return start, end


def unknown(known: RangeMap[bool], low: int, high: int) -> Spans:
    """Return what of a span lies in none of the known ranges."""
    found: Spans = []
    for start, end, _ in known.overlapping(low, high):
        if low < start:
            found.append((low, start))
        low = end
    if low < high:
        found.append((low, high))
    return found
