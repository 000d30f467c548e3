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
_REGIONS, _FEW, _MOST_HOLES, _SMALL = 2048, 64, 128, 1 << 20
_FILE, _PRESENT, _SWAPPED, _ZERO = 1 << 2, 1 << 3, 1 << 4, 1 << 5


def written_ranges(tid: int, known: RangeMap[bool]) -> list[tuple[int, int]]:
    """List where a thread's process has mappings with pages of their own that are not known yet.

    One page tells it of its mapping, so what is known and what is big costs no walk of its pages.
    Where there are many known parts, or before Linux 6.11, the pages themselves are listed.
    """
    with open(f"/proc/{tid}/pagemap", "rb", buffering=0) as pagemap:
        runs = [(low, high) for low, high, _ in known.overlapping(0, ring.TASK_SIZE)]
        if len(runs) <= _MOST_HOLES:
            with open(f"/proc/{tid}/maps", "rb", buffering=0) as maps, suppress(OSError):
                return _written_mappings(pagemap, maps, runs)
        pages: list[tuple[int, int]] = []
        begin = 0
        while begin < ring.TASK_SIZE:
            begin, parts = _scan(pagemap, begin, ring.TASK_SIZE, _REGIONS)
            pages += parts
        return beyond(pages, runs)


def _written_mappings(
    pagemap: FileIO, maps: FileIO, known: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """List where mappings have pages of their own outside of known ranges, by their first page.

    Small known ranges are walked with what lies around them: that costs less than one more ioctl.
    """
    found: list[tuple[int, int]] = []
    big = [span for span in known if span[1] - span[0] > _SMALL]
    for low, high in beyond([(0, ring.TASK_SIZE)], big):
        begin = done = low
        while begin < high:
            begin, parts = _scan(pagemap, begin, high, _FEW)
            for start, stop in beyond(parts, known):
                while max(start, done) < stop:  # it may lie in several mappings
                    first, last = _mapping_at(maps, max(start, done))
                    found += beyond([(max(first, done), min(last, high))], known)
                    done = last
    return found


def _scan(pagemap: FileIO, begin: int, end: int, most: int) -> tuple[int, list[tuple[int, int]]]:
    """Look for anonymous pages from `begin` on: how far was looked, and where they are.

    `most`: 1 for the first page alone, else how many ranges of them.
    """
    regions = ctypes.create_string_buffer(24 * most)
    argument = bytearray(struct.pack(
        "<12Q", 96, 0, begin, end, 0, ctypes.addressof(regions), most, most == 1,
        _FILE | _ZERO, _FILE | _ZERO, _PRESENT | _SWAPPED, _PRESENT,
    ))  # fmt: skip
    count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument)
    parts = [
        (start, stop) for start, stop, _ in struct.iter_unpack("<3Q", regions.raw[: 24 * count])
    ]
    walked = struct.unpack_from("<Q", argument, 32)[0] if count == most else end
    return walked, parts


def _mapping_at(maps: FileIO, address: int) -> tuple[int, int]:
    """Return where the mapping around an address begins and ends. Raises OSError before 6.11."""
    query = bytearray(struct.pack("<3Q", 104, 0, address).ljust(104, b"\0"))
    fcntl.ioctl(maps, _PROCMAP_QUERY, query)
    start, end = struct.unpack_from("<2Q", query, 24)
    return start, end


def beyond(spans: list[tuple[int, int]], known: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what of sorted spans lies in none of the known ones, which are sorted, too."""
    found = []
    k = 0
    for begin, end in spans:
        low = begin
        while k < len(known) and known[k][1] <= low:
            k += 1
        at = k
        while at < len(known) and known[at][0] < end:
            if low < known[at][0]:
                found.append((low, known[at][0]))
            low = max(low, known[at][1])
            at += 1
        if low < end:
            found.append((low, end))
    return found
