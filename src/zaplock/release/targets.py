"""What a caller handed over: which range it is, who owns it, and how the owner lets go.

Owners can be closed: then their range is zapped and unmapped. Views can't: whoever holds an array
may read it at any time, and must not crash; so the memory of a view is given back and the
addresses stay mapped until the last reference goes, which is then cheap.

| handed over              | what it is | after the zap                                      |
|--------------------------|------------|----------------------------------------------------|
| address, length          | an owner   | munmap of exactly that range                       |
| mmap.mmap                | an owner   | its `close()`, which unmaps without the GIL        |
| SharedMemory             | an owner   | its `close()`; the segment lives until `unlink()`  |
| numpy array, memoryview, | a view     | nothing: whole pages inside it are free, and read  |
| any writable buffer      |            | as zero (as the file, if they map one)             |

numpy is not imported: an array is known by its `__array_interface__`.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from zaplock.release import syscalls as calls
from zaplock.release.errors import ExportedError, ReleaseError
from zaplock.release.pinned import Pinned
from zaplock.release.syscalls import PAGE


@dataclass(frozen=True, slots=True)
class Target:
    """A page-aligned range and, for an owner that can be closed, how to close it (None: a view)."""

    start: int
    end: int
    close: Callable[[], None] | None
    let_go: Callable[[], None]
    is_address: bool = False


def find(thing: Any, length: int | None) -> Target:
    """Find the target of `thing` and pin its memory; raise ReleaseError or ExportedError."""
    if isinstance(thing, int) and not isinstance(thing, bool):
        return _address(thing, length)
    if length is not None:
        raise ReleaseError(
            f"length={length!r} belongs to an address: a {type(thing).__name__} knows its own"
        )
    if isinstance(thing, mmap.mmap):
        return _mmap(thing)
    if _is_shared_memory(thing):
        return _shared_memory(thing)
    if hasattr(thing, "__array_interface__"):
        return _array(thing)
    return _view(thing)


def closed_as(thing: Any) -> object:
    """Return the object whose `close` would unmap the memory: a claim knows it by that."""
    return (_mapping_of(thing) or thing) if _is_shared_memory(thing) else thing


def _address(start: int, length: int | None) -> Target:
    if not isinstance(length, int):
        raise ReleaseError(
            f"an address such as {start:#x} needs a length in bytes: release({start:#x}, length)"
        )
    if length <= 0 or start <= 0 or start + length > 1 << 56:
        raise ReleaseError(f"{length} bytes at {start:#x} is not a range of addresses")
    for name, value in (("address", start), ("length", length)):
        if value % PAGE:
            raise ReleaseError(f"{name} {value:#x} is not a multiple of the page size {PAGE}")

    def close() -> None:
        failed = calls.munmap(start, length)
        if failed:
            raise ReleaseError(f"{start:#x} is empty but can't be unmapped: {os.strerror(failed)}")

    return Target(start, start + length, close, lambda: None, is_address=True)


def _mmap(mapping: mmap.mmap) -> Target:
    refuse_exports(mapping)
    pinned = Pinned(mapping)
    end = -(-(pinned.address + pinned.length) // PAGE) * PAGE

    def close() -> None:
        pinned.let_go()  # our own pin is an export as well
        try:
            mapping.close()
        except BufferError as error:
            raise ExportedError(
                f"{error}: the mmap was used while it was released; its memory is free already"
            ) from None

    return Target(pinned.address, end, close, pinned.let_go)


def refuse_exports(mapping: mmap.mmap) -> None:
    """Raise ExportedError if buffers point into an mmap, ReleaseError if it is closed.

    An impossible resize is refused for its size only after CPython has looked for exported buffers,
    so it is a question without an effect. `close` is the only other one that asks.
    """
    try:
        mmap.mmap.resize(mapping, -1)
    except BufferError:
        raise ExportedError(
            "cannot release an mmap with exported pointers: drop the arrays and memoryviews on it "
            "first, or release one of those (its memory goes, its addresses stay)"
        ) from None
    except ValueError as error:
        if "closed" in str(error):
            raise ReleaseError("this mmap is closed: it was released already") from None
    except (TypeError, SystemError):
        pass  # read-only, or no mremap here: no buffers are exported


def _is_shared_memory(thing: object) -> bool:
    module = sys.modules.get("multiprocessing.shared_memory")
    return module is not None and isinstance(thing, module.SharedMemory)


def _shared_memory(segment: Any) -> Target:
    if _mapping_of(segment) is None:
        raise ReleaseError("this SharedMemory is closed: it was released already")
    try:
        if segment._buf is not None:
            segment._buf.release()  # its own export; refused while views of it are exported
        segment._buf = None
        refuse_exports(segment._mmap)
        _refuse_references(segment)
    except BufferError:
        if segment._buf is None:
            segment._buf = memoryview(segment._mmap)  # refused: the segment stays usable
        raise ExportedError(
            f"cannot release SharedMemory {segment.name!r} with exported pointers: "
            "drop the arrays and views on its buf first"
        ) from None
    inner = _mmap(segment._mmap)

    def close() -> None:
        inner.let_go()
        segment.close()

    def let_go() -> None:
        inner.let_go()
        if _mapping_of(segment) is not None:  # not closed: its memory was given back only
            segment._buf = memoryview(segment._mmap)

    return Target(inner.start, inner.end, close, let_go)


def _refuse_references(segment: Any) -> None:
    """Raise BufferError if anything but the segment refers to its mmap.

    `np.ndarray(shape, buffer=segment.buf)`, the form that Python's manual shows, keeps a reference
    but no export: `segment.close()` would pull the memory from under it, and the next access crash.
    """
    alone = SimpleNamespace(_mmap=object())
    if sys.getrefcount(segment._mmap) > sys.getrefcount(alone._mmap):
        raise BufferError


def _mapping_of(segment: Any) -> mmap.mmap | None:
    """Return a segment's mmap. It has no public name, but the same private one since 3.8."""
    mapping: mmap.mmap | None = segment._mmap
    return mapping


def _array(array: Any) -> Target:
    if getattr(array.dtype, "hasobject", False):
        raise ReleaseError(
            f"an array of dtype {array.dtype} holds Python objects: their references would be lost"
        )
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        raise ReleaseError(
            "a strided view is not one range of memory: release its base, or a contiguous slice"
        )
    if not array.flags.writeable and not isinstance(root(array), mmap.mmap):
        raise ReleaseError(
            "a read-only array may be shared by others who rely on its content: it is not released"
        )
    address = array.__array_interface__["data"][0]
    return _inside(address, array.nbytes, lambda: None)


def _view(thing: object) -> Target:
    pinned = Pinned(thing)
    if pinned.readonly and not isinstance(root(thing), mmap.mmap):
        pinned.let_go()
        raise ReleaseError(
            f"this {type(thing).__name__} is read-only: others may rely on its content"
        )
    return _inside(pinned.address, pinned.length, pinned.let_go)


def _inside(address: int, length: int, let_go: Callable[[], None]) -> Target:
    start, end = -(-address // PAGE) * PAGE, (address + length) // PAGE * PAGE
    return Target(start, max(start, end), None, let_go)


def root(thing: Any) -> object:
    """Follow `base` and `obj` to the object that owns a view's memory."""
    while True:
        below = getattr(thing, "base", None)
        if below is None:
            below = getattr(thing, "obj", None) if isinstance(thing, memoryview) else None
        if below is None:
            return thing
        thing = below
