"""Arrays on mappings of their own: made, filled, moved, given back.

They are plain `numpy.ndarray` objects (any dtype without Python objects), so every numpy call,
pickle (by value), copy, view and `weakref.finalize` behaves as always. Only their end differs: the
last reference's end frees the memory in paced pieces instead of in one stall.

There is no NEP 49 allocator handler, which would do the same for every array of a program. Its
`PyDataMem_SetHandler` wants C functions that numpy calls for each allocation, however small, in
any thread, with or without the GIL, up to the interpreter's last moment. ctypes can make such
pointers, but each call would enter Python: slow for small arrays, a deadlock where numpy allocates
without the GIL, a crash at exit. It takes compiled code, and zaplock installs none. Arrays whose
end is felt are few and huge: they are made by `empty`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

from zaplock.buffers.mapping import Mapping, MappingError
from zaplock.buffers.move import PageMove
from zaplock.release import release
from zaplock.release import syscalls as calls
from zaplock.release.fill import fill
from zaplock.release.hold import MemoryHold
from zaplock.release.owners import Owner, stands_on
from zaplock.release.pace import DEFAULT_BOUND_NS, Pace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray

    Scalar = TypeVar("Scalar", bound=np.generic)

Shape = int | tuple[int, ...]


class ArrayOptions(TypedDict, total=False):
    """What `empty` and `borrowed` take beside shape and dtype; see `empty`."""

    huge: str | None
    populate: bool
    name: str | None
    max_stall_ns: int
    background: bool


@overload
def empty(shape: Shape, **options: Unpack[ArrayOptions]) -> NDArray[np.float64]: ...
@overload
def empty(
    shape: Shape, dtype: type[Scalar] | np.dtype[Scalar], **options: Unpack[ArrayOptions]
) -> NDArray[Scalar]: ...
@overload
def empty(
    shape: Shape, dtype: DTypeLike, **options: Unpack[ArrayOptions]
) -> NDArray[np.generic]: ...
def empty(
    shape: Shape,
    dtype: DTypeLike = float,
    *,
    huge: str | None = None,
    populate: bool = False,
    name: str | None = None,
    max_stall_ns: int = DEFAULT_BOUND_NS,
    background: bool = False,
) -> NDArray[Any]:
    """Return an array of zeroes on its own mapping; its last reference releases it, stall-free.

    - `huge`: "thp" asks for transparent huge pages (released some ten times as fast; price: up to
      2 MiB of memory for each page touched), "hugetlb" takes reserved ones (price: they must be
      reserved), "never" excludes both, None leaves it to the system.
    - `populate`: have every page now, as by `populate`. Price: all the memory, at once.
    - `name`: what /proc/PID/maps calls it, where the kernel can. No price.
    - `max_stall_ns`: the bound for populating and releasing. Price of a low one: total time.
    - `background`: let the worker thread release it. Price: the memory is free a little later.

    Each array costs a mapping (`vm.max_map_count` allows 65,530) and, from 2 MiB on, addresses
    rounded up to 2 MiB. Raises MappingError or NoMemoryError.
    """
    import numpy as np

    kind = np.dtype(dtype)
    if kind.hasobject:
        raise MappingError(
            f"dtype {kind} holds Python objects, which can't be zapped: use np.empty"
        )
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(size < 0 for size in sizes):
        raise MappingError(f"shape {shape} has a negative size")
    count = math.prod(sizes)
    if count * kind.itemsize == 0:
        return np.empty(sizes, kind)  # no memory: nothing to release
    length = count * kind.itemsize
    mapping = Mapping(
        length, huge=huge, name=name, max_stall_ns=max_stall_ns, background=background
    )
    if populate:
        fill(mapping.address, mapping.address + _pages(length), max_stall_ns)
    return np.frombuffer(mapping, kind, count).reshape(sizes)


def populate(array: NDArray[np.generic], *, max_stall_ns: int = DEFAULT_BOUND_NS) -> None:
    """Make every page of an array present, in paced pieces; its content stays.

    Works on any contiguous writable array whose memory's owner can be shown (as for `release`).
    Price: all its memory at once, and some more total time than touching it from one thread that
    nobody waits for. Raises ReleaseError where the pages can't be written.
    """
    start, length = _range(array)
    _require_writable(array)
    owner = Owner()
    try:
        try:
            owner.take(array, start, length)
            first = start // calls.PAGE * calls.PAGE
            fill(first, first + _pages(start + length - first), max_stall_ns)
        finally:
            owner.let_go()
    finally:  # once more, if a signal handler raised inside the first
        owner.let_go()


def resize(
    array: NDArray[Scalar], shape: Shape, *, max_stall_ns: int | None = None
) -> NDArray[Scalar]:
    """Return an array of another shape with the content of `array`, whose pages move there.

    Nothing is copied: mremap moves page tables (5.7; older kernels copy). What is new reads as
    zero. Price: the old array and its views lose the content, they read as zeroes but stay valid
    memory; nobody may write to them meanwhile. Raises MappingError if `array` isn't a whole array
    made by `empty`, BusyError while it is being released, NoMemoryError where the pages can't be
    moved; whatever it raises, `array` keeps its content.
    """
    start, length = _range(array)
    _require_writable(array)
    old = stands_on(array)
    if not isinstance(old, Mapping) or (old.address, old.asked) != (start, length):
        raise MappingError("only a whole array made by zaplock.buffers.empty can be resized")
    bound_ns = max_stall_ns or old.max_stall_ns
    new = empty(
        shape,
        array.dtype,
        huge=old.huge,
        max_stall_ns=bound_ns,
        background=old.background,
    )
    hold, move = MemoryHold(), PageMove(start, new, min(length, new.nbytes), bound_ns)
    try:
        try:
            try:
                hold.take(memoryview(old), None)
                move.run()
                hold.work(Pace(bound_ns), unmap=False)
                move.cut()
            finally:
                hold.let_go()
        finally:  # once more, if a signal handler raised inside the first
            hold.let_go()
    except BaseException:
        move.undo()
        raise
    return new


@overload
def borrowed(
    shape: Shape, **options: Unpack[ArrayOptions]
) -> AbstractContextManager[NDArray[np.float64]]: ...
@overload
def borrowed(
    shape: Shape, dtype: type[Scalar] | np.dtype[Scalar], **options: Unpack[ArrayOptions]
) -> AbstractContextManager[NDArray[Scalar]]: ...
@overload
def borrowed(
    shape: Shape, dtype: DTypeLike, **options: Unpack[ArrayOptions]
) -> AbstractContextManager[NDArray[np.generic]]: ...
@contextmanager
def borrowed(
    shape: Shape, dtype: DTypeLike = float, **options: Unpack[ArrayOptions]
) -> Iterator[NDArray[Any]]:
    """Lend an array for a block; at its end the memory is free, whoever still holds a view.

    Options are those of `empty`. Price: a view that outlives the block reads zeroes, and what is
    written to it is memory again; the addresses stay mapped until the last view goes.
    """
    array = empty(shape, dtype, **options)
    mapping = stands_on(array)
    try:
        yield array
    finally:
        if isinstance(mapping, Mapping):
            release(memoryview(mapping), max_stall_ns=mapping.max_stall_ns)


def _require_writable(array: NDArray[Any]) -> None:
    if not array.flags.writeable:
        raise MappingError("this array is read-only: it can't be populated or resized")


def _range(array: NDArray[Any]) -> tuple[int, int]:
    if not (array.flags.c_contiguous or array.flags.f_contiguous) or not array.nbytes:
        raise MappingError("an empty array, or a strided view, is not one range of memory")
    return array.ctypes.data, array.nbytes


def _pages(length: int) -> int:
    return -(-length // calls.PAGE) * calls.PAGE
