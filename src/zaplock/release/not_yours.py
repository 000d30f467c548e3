"""Addresses that are known to be somebody else's, whatever the caller says.

An address and a length are the caller's word for a range that it mapped itself. Nobody can prove
that, but much that is not can be told by its name: what the kernel names (heap, stack, vdso),
programs and libraries with their data, the stacks of threads, and the pools of Python's small
objects at both ends of the range (the pages of an array's neighbours, when a length is wrong).
A part of malloc's that has no name is not known here.
"""

from __future__ import annotations

import os
import struct
import threading
from array import array
from typing import Final

from zaplock.release import syscalls as calls
from zaplock.release.errors import ReleaseError
from zaplock.release.syscalls import PAGE
from zaplock.release.vmas import MappedVma, vmas_in

_POOL: Final = 16 << 10
"""POOL_SIZE of Objects/obmalloc.c since Python 3.10."""
_ARENA: Final = 1 << 20
_HEADER: Final = struct.Struct("IIPPPIIII")
"""struct pool_header: count and padding, freeblock, next, prev, arena, size class, next offset,
largest next offset."""
_OVERHEAD: Final = 48
_CLASSES: Final = 32


def refuse_known(start: int, end: int, vmas: list[MappedVma]) -> None:
    """Raise ReleaseError if any of a range is known to belong to somebody else."""
    for vma in vmas:
        first, last = max(start, vma.start), min(end, vma.end)
        owner = _kernels(vma) or _library(first) or _library(last - 1)
        if owner:
            raise _refusal(first, last, owner)
    try:
        stacks, pool = _stacks(), _pool_in(start, end)
    except OSError as error:
        raise ReleaseError(
            f"whose {start:#x} to {end:#x} is can't be asked of /proc/self ({error.strerror}): "
            "it is left alone"
        ) from None
    for low, high in stacks:
        if low < end and start < high:
            raise _refusal(max(low, start), min(high, end), "the stack of a thread")
    if pool:
        raise _refusal(pool, pool + _POOL, "memory of Python's small objects")


def _refusal(first: int, last: int, owner: str) -> ReleaseError:
    return ReleaseError(f"{first:#x} to {last:#x} is {owner}: release only what you mapped")


def _kernels(vma: MappedVma) -> str:
    special = vma.name.startswith("[") and not vma.name.startswith("[anon")
    return vma.name if special else ""


def _library(address: int) -> str:
    name = calls.object_at(address)
    return f"a part of {os.path.basename(name) or 'the program'}" if name is not None else ""


def _stacks() -> list[tuple[int, int]]:
    """Return the stacks of all threads: each holds its thread's descriptor in its last page.

    The kernel knows a descriptor by the list of robust futexes that glibc registers in it. A guard
    below the stack makes its start that of the VMA.
    """
    found = []
    for task in os.listdir("/proc/self/task"):
        inside = calls.robust_list_of(int(task))
        if inside and int(task) != os.getpid():
            found += _around(inside)
    for ident in {thread.ident for thread in threading.enumerate()}:
        if ident and ident != threading.main_thread().ident:
            found += _around(ident)
    return found


def _around(inside: int) -> list[tuple[int, int]]:
    top = inside // PAGE * PAGE + PAGE
    return [(vma.start, top) for vma in vmas_in(inside, inside + 1) if vma.start <= inside]


def _pool_in(start: int, end: int) -> int:
    """Return the address of a pool of small objects within an arena's length of either end; or 0.

    A pool tells its size class twice, which other memory does by chance once in 2**40 or so. Pages
    that are not there are not read: under a userfaultfd that would wait for whoever provides them.
    """
    first = range(start // _POOL * _POOL, min(end, start + _ARENA), _POOL)
    last = range(max(first.stop, end - _ARENA) // _POOL * _POOL, end, _POOL)
    known = _Known()
    with (
        open("/proc/self/mem", "rb", buffering=0) as memory,
        open("/proc/self/pagemap", "rb", buffering=0) as pagemap,
    ):
        if not _is_pool(memory.fileno(), id(known) // _POOL * _POOL):
            return 0  # another allocator, or another layout
        there = [*_there(pagemap.fileno(), first), *_there(pagemap.fileno(), last)]
        return next((base for base in there if _is_pool(memory.fileno(), base)), 0)


def _there(pagemap: int, bases: range) -> list[int]:
    """Return those addresses whose page is present or swapped out."""
    if not bases:
        return []
    length = bases[-1] + PAGE - bases[0]
    entries = array("Q", os.pread(pagemap, length // PAGE * 8, bases[0] // PAGE * 8))
    return [base for base, entry in zip(bases, entries[:: _POOL // PAGE]) if entry >> 62]


class _Known:
    """An object in a pool, to see what a pool looks like here."""

    __slots__ = ()


def _is_pool(memory: int, base: int) -> bool:
    try:
        header = os.pread(memory, _HEADER.size, base)
    except OSError:
        return False  # not readable: a guard page, or a device
    if len(header) < _HEADER.size:
        return False
    used, padding, free, _next, _prev, _arena, kind, offset, last = _HEADER.unpack(header)
    size = 16 * (kind + 1)
    return (
        kind < _CLASSES
        and padding == 0
        and 0 < used <= (_POOL - _OVERHEAD) // size
        and last == _POOL - size
        and _OVERHEAD <= offset <= _POOL
        and (offset - _OVERHEAD) % size == 0
        and bool(free % 16 == 0)
    )
