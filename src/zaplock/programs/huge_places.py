"""Where shared memory goes on a machine that has huge pages for it, which no recording tells.

What is as long as a huge page and shared (anonymous, a segment, a memfd, a file of tmpfs) is placed
so that huge pages fit, if shmem_enabled says so or the mount does: in a gap that is longer by a
huge page less a page, unless the hint was free or the place fits by chance. Only 2 MiB are tried,
not what hugepages-*kB/shmem_enabled allow beside them.

Source: mm/shmem.c shmem_get_unmapped_area.
"""

from __future__ import annotations

import errno

from zaplock.model import flags as f
from zaplock.programs.arguments import numbers
from zaplock.programs.calls import CALLS, mapped_file, mmap_call
from zaplock.programs.recorded_world import LiveSpace, StraceWorld
from zaplock.programs.recording import TracedCall
from zaplock.programs.segments import segment_of, shmat_call
from zaplock.programs.text import number
from zaplock.protocols.placement import unaligned_area

_NO = -errno.EINVAL
_IN_MEMORY = ("shmem", "disk")
"""Kinds of files that a path is taken for which may lie in tmpfs."""


def placed_for_huge_pages(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    """Run what the kernel has placed for huge pages; an error where it has not."""
    return _BY_NAME[call.name](world, live, call)


def _mmap(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    _, length, _, flags = numbers(call, 4)
    if flags & (f.MAP_FIXED | f.MAP_FIXED_NOREPLACE | f.MAP_HUGETLB | f.MAP_32BIT):
        return _NO
    offset = 0
    if not flags & f.MAP_ANONYMOUS:
        backing = world.machine.files.get(mapped_file(world, live, call))
        if backing is None or backing.kind not in _IN_MEMORY:
            return _NO
        offset = number(call.arguments[5])
    elif not flags & f.MAP_SHARED:
        return _NO
    if _place(world, live, length, offset) != call.result:
        return _NO
    return mmap_call(world, live, call, call.result)


def _shmat(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    _, address, flags = numbers(call, 3)
    _, file = segment_of(world, live, call)
    if address or file is None:
        return _NO
    if _place(world, live, world.machine.files[file].size, 0) != call.result:
        return _NO
    told = (call.arguments[0], hex(call.result), hex(flags))
    return shmat_call(world, live, call._replace(arguments=told))


def _mremap(world: StraceWorld, live: LiveSpace, call: TracedCall) -> int:
    address, length, new_length, flags = numbers(call, 4)
    moved = next((v for v in world.vmas(live) if v.start <= address < v.end), None)
    if flags & f.MREMAP_FIXED or moved is None or not moved.flags & f.VM_SHARED or not moved.file:
        return _NO
    if world.machine.files[moved.file].kind not in _IN_MEMORY:
        return _NO
    offset = (moved.pgoff << f.PAGE_SHIFT) + address - moved.start
    if _place(world, live, new_length, offset) != call.result:
        return _NO
    told = [hex(n) for n in (address, length, new_length, flags | f.MREMAP_FIXED, call.result)]
    return CALLS["mremap"](world, live, call._replace(arguments=tuple(told)))


def _place(world: StraceWorld, live: LiveSpace, length: int, offset: int) -> int:
    """Return where shared memory goes; an error where nothing is aligned for it."""
    length, offset = f.page_align(length), offset % f.PMD_SIZE
    if length < f.PMD_SIZE or (offset and offset + length < 2 * f.PMD_SIZE):
        return _NO
    world.use(live)
    space = world.machine.mm(live.mm)
    padded = length + f.PMD_SIZE - f.PAGE_SIZE
    found = unaligned_area(world.machine, space, 0, padded, 0)
    return found if found < 0 else found + (offset - found) % f.PMD_SIZE


_BY_NAME = {"mmap": _mmap, "mremap": _mremap, "shmat": _shmat}
PLACED_FOR_HUGE_PAGES = frozenset(_BY_NAME)
