"""Which VMAs lie in a range: asked of the kernel without stalling anybody.

The PROCMAP_QUERY ioctl (6.11: ed5d583a88a9) finds one VMA by its address; on older kernels the
text of /proc/self/maps is read. On 6.18 reading maps takes no mmap_lock; before, either takes it
for read, for microseconds. `smaps`, which would also tell what is locked or registered with
userfaultfd, holds it for as long as its walk takes, so those are found by trying.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from zaplock.release.errors import ReleaseError
from zaplock.release.syscalls import HUGE, PAGE, is_mapped

_QUERY: Final = struct.Struct("<9Q4I2Q")  # struct procmap_query of include/uapi/linux/fs.h
_QUERY_NUMBER: Final = (3 << 30) | (_QUERY.size << 16) | (ord("f") << 8) | 17
_COVERING_OR_NEXT: Final = 0x10
_NAME_SIZE: Final = 4096


@dataclass(frozen=True, slots=True)
class MappedVma:
    """One VMA: its bounds, its name in maps ("" if anonymous) and the size of its pages."""

    start: int
    end: int
    name: str
    page_size: int = PAGE


def vmas_in(start: int, end: int) -> list[MappedVma]:
    """Return the VMAs that overlap a range, in order of address; their bounds are not cut to it."""
    try:
        return list(_queried(start, end))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL, errno.EPERM):
            raise
        return list(_read(start, end))


def _queried(start: int, end: int) -> Iterator[MappedVma]:
    name = ctypes.create_string_buffer(_NAME_SIZE)
    maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while start < end:
            vma = _query(maps, start, name)
            if vma is None or vma.start >= end:
                return
            yield vma
            start = vma.end
    finally:
        os.close(maps)


def _query(maps: int, address: int, name: ctypes.Array[ctypes.c_char]) -> MappedVma | None:
    asked = (
        _QUERY.size,
        _COVERING_OR_NEXT,
        address,
        *[0] * 8,
        _NAME_SIZE,
        0,
        ctypes.addressof(name),
        0,
    )
    answer = bytearray(_QUERY.pack(*asked))
    try:
        fcntl.ioctl(maps, _QUERY_NUMBER, answer)
    except FileNotFoundError:
        return None
    fields = _QUERY.unpack(answer)
    named = fields[11] > 0
    return MappedVma(
        fields[3],
        fields[4],
        name.value.decode(errors="replace") if named else "",
        fields[6],
    )


def _read(start: int, end: int) -> Iterator[MappedVma]:
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            bounds, _, _, _, _, *name = line.split(maxsplit=5)
            first, last = (int(bound, 16) for bound in bounds.split("-"))
            if first < end and last > start:
                named = name[0].rstrip("\n") if name else ""
                page_size = HUGE if named.startswith("/anon_hugepage") else PAGE
                yield MappedVma(first, last, named, page_size)


def require_mapped(start: int, end: int, *, certain: bool = False) -> list[MappedVma]:
    """Return the VMAs of a range that is mapped without a hole.

    Raises ReleaseError otherwise: a hole is somebody else's next mapping, which one munmap over the
    whole range would take away. Where the kernel can't be asked for VMAs (no descriptor left, no
    /proc), the range counts as one VMA, unless `certain` is wanted.
    """
    try:
        found = vmas_in(start, end)
    except OSError as error:
        if certain:
            raise ReleaseError(
                f"what is mapped at {start:#x} can't be asked of /proc/self/maps "
                f"({error.strerror}): it is left alone"
            ) from None
        found = [MappedVma(start, end, "")] if start < end and is_mapped(start, end - start) else []
    reached = start
    for vma in found:
        if vma.start > reached:
            break
        reached = vma.end
    if reached < end:
        raise ReleaseError(
            f"nothing is mapped at {reached:#x} in {start:#x} to {end:#x}: "
            "it was released already, or was never yours"
        )
    return found
