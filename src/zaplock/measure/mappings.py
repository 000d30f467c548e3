"""The mapping under study: reserved, mapped, cut into VMAs, every page present.

It lies between two inaccessible pages, so that no neighbour merges with it and a bystander's small
mappings never extend it. Pages come from MADV_POPULATE_* (5.14), a GiB at a time on as many threads
as there are CPUs; older kernels are touched page by page through memset.
What a page of each backing is stands in `zaplock.experiment`.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from zaplock.experiment import page_of
from zaplock.measure import syscalls as sys
from zaplock.untrusted_names import read_text

CHUNK = 1 << 30
_READ_WRITE = sys.PROT_READ | sys.PROT_WRITE
_PRIVATE = sys.MAP_PRIVATE | sys.MAP_ANONYMOUS | sys.MAP_NORESERVE


@dataclass(frozen=True, slots=True)
class StudiedMapping:
    """A range of this process and the file behind it (-1: none)."""

    address: int
    length: int
    backing: str
    fd: int = -1

    @property
    def end(self) -> int:
        """First address behind the mapping."""
        return self.address + self.length


def map_range(length: int, backing: str) -> StudiedMapping:
    """Map `length` bytes between two guard pages, without populating them."""
    hole = sys.mmap(length + 2 * sys.HUGE, sys.PROT_NONE)
    address = (hole + sys.HUGE) // sys.HUGE * sys.HUGE  # guards of up to 2 MiB on either side
    flags, fd = _PRIVATE | sys.MAP_FIXED, -1
    if backing == "file":
        flags, fd = sys.MAP_SHARED | sys.MAP_FIXED, os.memfd_create("zaplock")
        os.ftruncate(fd, length)
    if backing == "hugetlb":
        flags |= sys.MAP_HUGETLB
    sys.mmap(length, _READ_WRITE, flags, address=address, fd=fd)
    mapping = StudiedMapping(address, length, backing, fd)
    advise_huge(mapping)
    return mapping


def map_heap(length: int, backing: str) -> StudiedMapping:
    """Grow the heap by `length` bytes; in steps, since overcommit judges each step by itself."""
    sys.keep_malloc_off_the_heap()
    start = -(-sys.heap_end() // sys.HUGE) * sys.HUGE
    for end in [*range(start, start + length, CHUNK), start + length]:
        sys.brk(end)
    mapping = StudiedMapping(start, length, backing)
    advise_huge(mapping)
    return mapping


def advise_huge(mapping: StudiedMapping) -> None:
    """Ask for huge pages where they are wanted and for none where they are not."""
    if mapping.backing in ("anonymous", "zero", "thp"):
        advice = sys.MADV_HUGEPAGE if mapping.backing == "thp" else sys.MADV_NOHUGEPAGE
        try:
            sys.madvise(mapping.address, mapping.length, advice)
        except OSError:
            if mapping.backing == "thp":  # a kernel without THP has none to switch off
                raise


def cut(mapping: StudiedMapping, nr_vmas: int) -> None:
    """Cut the mapping into `nr_vmas` VMAs: every second piece becomes MADV_DONTFORK."""
    unit = page_of(mapping.backing)
    pieces = mapping.length // unit
    edges = [mapping.address + pieces * i // nr_vmas * unit for i in range(nr_vmas + 1)]
    for begin, end in list(itertools.pairwise(edges))[1::2]:
        sys.madvise(begin, end - begin, sys.MADV_DONTFORK)


def populate(
    mapping: StudiedMapping, progress: Callable[[int], None] = lambda _length: None
) -> None:
    """Make every page present; `progress` is told the bytes of each piece that is done."""
    starts = range(mapping.address, mapping.end, CHUNK)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pieces = [(start, min(CHUNK, mapping.end - start)) for start in starts]
        for (_, length), _ in zip(
            pieces, pool.map(lambda piece: _populate(mapping, *piece), pieces)
        ):
            progress(length)


def _populate(mapping: StudiedMapping, address: int, length: int) -> None:
    if mapping.fd >= 0:
        os.posix_fallocate(mapping.fd, address - mapping.address, length)
    reading = mapping.backing in ("zero", "file")
    try:
        sys.madvise(address, length, sys.MADV_POPULATE_READ if reading else sys.MADV_POPULATE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _touch(mapping, address, length, reading)


def _touch(mapping: StudiedMapping, address: int, length: int, reading: bool) -> None:
    """Populate on a kernel before 5.14, page by page."""
    for page in range(address, address + length, page_of(mapping.backing)):
        if reading:
            ctypes.c_char.from_address(page).value  # noqa: B018  (the read is the point)
        else:
            sys.memset(page, 1, 1)


def huge_bytes(address: int) -> int:
    """Return how much of the VMA at `address` is mapped by transparent huge pages, in bytes."""
    inside = False
    for line in read_text("/proc/self/smaps").splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            begin, _, end = first.partition("-")
            inside = int(begin, 16) <= address < int(end, 16)
        elif inside and first == "AnonHugePages:":
            return int(line.split()[1]) * 1024
    return 0
