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

A target is made empty, takes hold of the memory (`take`), and lets go of it (`let_go`, as often as
one likes): so there is no moment in which an exception leaves something held that nobody knows of.
"""

from __future__ import annotations

import mmap
import os
import sys
from types import SimpleNamespace
from typing import Any

from zaplock.release import owners
from zaplock.release import syscalls as calls
from zaplock.release.errors import ExportedError, ReleaseError
from zaplock.release.owners import Owner
from zaplock.release.pinned import Pin
from zaplock.release.syscalls import PAGE


class Target:
    """A page-aligned range, `start` to `end`, once it was taken.

    `closes` tells whether the memory can be unmapped, `is_address` whether nothing but the caller's
    word says whose it is.
    """

    closes = True
    is_address = False

    def __init__(self) -> None:
        self.start = self.end = 0

    def take(self) -> None:
        """Find the range and hold its memory in place; raise ReleaseError or ExportedError."""
        raise NotImplementedError

    def recheck(self) -> None:
        """Raise unless what was true when the memory was taken still is (it waited in a queue)."""

    def close(self) -> None:
        """Unmap the range."""

    def let_go(self) -> None:
        """Hold nothing any more; a second time does nothing."""


def choose(thing: Any, length: int | None) -> Target:
    """Return the target of `thing`, still empty; raise ReleaseError where there is none."""
    if isinstance(thing, int) and not isinstance(thing, bool):
        return _Address(thing, length)
    if length is not None:
        raise ReleaseError(
            f"length={length!r} belongs to an address: a {type(thing).__name__} knows its own"
        )
    if isinstance(thing, mmap.mmap):
        return _Mmap(thing)
    if _is_shared_memory(thing):
        return _Segment(thing)
    return _View(thing)


def identity(thing: Any) -> int:
    """Return what a claim knows an object by: the one whose `close` unmaps; 0 for a number."""
    if isinstance(thing, int):
        return 0
    return id(_mapping_of(thing) or thing) if _is_shared_memory(thing) else id(thing)


class _Address(Target):
    is_address = True

    def __init__(self, start: int, length: int | None) -> None:
        super().__init__()
        if not isinstance(length, int):
            raise ReleaseError(
                f"an address such as {start:#x} needs a length in bytes: "
                f"release({start:#x}, length)"
            )
        if length <= 0 or start <= 0 or start + length > 1 << 56:
            raise ReleaseError(f"{length} bytes at {start:#x} is not a range of addresses")
        for name, value in (("address", start), ("length", length)):
            if value % PAGE:
                raise ReleaseError(f"{name} {value:#x} is not a multiple of the page size {PAGE}")
        self._wanted = start, start + length

    def take(self) -> None:
        self.start, self.end = self._wanted

    def close(self) -> None:
        failed = calls.munmap(self.start, self.end - self.start)
        if failed:
            raise ReleaseError(
                f"{self.start:#x} is empty but can't be unmapped: {os.strerror(failed)}"
            )


class _Mmap(Target):
    def __init__(self, mapping: mmap.mmap) -> None:
        super().__init__()
        self._mapping = mapping
        self._pin = Pin()

    def take(self) -> None:
        refuse_exports(self._mapping)
        self._pin.take(self._mapping)
        self.start = self._pin.address
        self.end = -(-(self.start + self._pin.length) // PAGE) * PAGE

    def recheck(self) -> None:
        """Look for exports once more, which our own pin hides; the memory is the same or refused.

        Without the pin, for three lines, the mmap may be closed or resized, which is then seen.
        """
        before = self.start, self.end
        self._pin.let_go()
        self.take()
        if before != (self.start, self.end):
            raise ReleaseError("this mmap was resized after it was handed over: it is left alone")

    def close(self) -> None:
        self._pin.let_go()  # our own pin is an export as well
        try:
            self._mapping.close()
        except BufferError as error:
            raise ExportedError(
                f"{error}: the mmap was used while it was released; its memory is free already"
            ) from None

    def let_go(self) -> None:
        self._pin.let_go()


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


class _Segment(Target):
    """A SharedMemory: its mmap, and the memoryview `buf` that it exports to itself.

    Its `buf` is put away while the memory is held, because it hides whether anybody else exports
    the mmap, and made anew when it is let go without having been closed. Nobody sees that: a `buf`
    that anybody else refers to is refused before it is touched.
    """

    def __init__(self, segment: Any) -> None:
        super().__init__()
        self._segment = segment
        self._has_buf = False
        self._inner: _Mmap | None = None

    def take(self) -> None:
        segment = self._segment
        if _mapping_of(segment) is None:
            raise ReleaseError("this SharedMemory is closed: it was released already")
        try:
            if segment._buf is not None:
                _refuse_references(segment, "_buf")
                self._has_buf = True
                segment._buf.release()
                segment._buf = None
            refuse_exports(segment._mmap)
            _refuse_references(segment, "_mmap")
        except BufferError:
            self.let_go()
            raise ExportedError(
                f"cannot release SharedMemory {segment.name!r} with exported pointers: "
                "drop the arrays and views on its buf, and references to buf itself, first"
            ) from None
        self._inner = _Mmap(segment._mmap)
        self._inner.take()
        self.start, self.end = self._inner.start, self._inner.end

    def recheck(self) -> None:
        before = self.start, self.end
        self.let_go()
        self.take()
        if before != (self.start, self.end):
            raise ReleaseError("this SharedMemory changed after it was handed over")

    def close(self) -> None:
        if self._inner is not None:
            self._inner.let_go()
        self._segment.close()

    def let_go(self) -> None:
        if self._inner is not None:
            self._inner.let_go()
            self._inner = None
        if self._has_buf:
            _give_back_buf(self._segment)
            self._has_buf = False


def _refuse_references(segment: Any, name: str) -> None:
    """Raise BufferError if anything but the segment refers to its mmap, or to its buf.

    `np.ndarray(shape, buffer=segment.buf)`, the form that Python's manual shows, keeps a reference
    to the mmap, `torch.frombuffer(segment.buf)` one to the buf, and neither an export:
    `segment.close()` would pull the memory from under them, and the next access crash.
    """
    alone = SimpleNamespace(**{name: object()})
    if sys.getrefcount(getattr(segment, name)) > sys.getrefcount(getattr(alone, name)):
        raise BufferError


def _give_back_buf(segment: Any) -> None:
    mapping = _mapping_of(segment)
    if mapping is None or mapping.closed:
        return
    try:
        segment._buf.nbytes  # noqa: B018 - is it whole?
    except (AttributeError, ValueError):
        segment._buf = memoryview(mapping)


def _mapping_of(segment: Any) -> mmap.mmap | None:
    """Return a segment's mmap. It has no public name, but the same private one since 3.8."""
    mapping: mmap.mmap | None = segment._mmap
    return mapping


class _View(Target):
    closes = False

    def __init__(self, thing: Any) -> None:
        super().__init__()
        self._thing = thing
        self._pin = Pin()
        self._owner = Owner()
        self._bytes = 0, 0

    def take(self) -> None:
        thing = self._thing
        if owners.is_scalar(thing):
            raise ReleaseError(
                f"a numpy scalar ({type(thing).__name__}) does not show whose memory it has: "
                "release the array it comes from"
            )
        address, length, writable = self._array() if owners.is_array(thing) else self._buffer()
        if not writable and not isinstance(owners.stands_on(thing), mmap.mmap):
            raise _read_only(thing)
        self._owner.take(thing, address, length)
        if not writable and not self._owner.is_read_only_mmap:
            raise _read_only(thing)
        self._bytes = address, length
        self.start = -(-address // PAGE) * PAGE
        self.end = max((address + length) // PAGE * PAGE, self.start)

    def recheck(self) -> None:
        self._owner.check(self._thing, *self._bytes)

    def let_go(self) -> None:
        self._owner.let_go()
        self._pin.let_go()

    def _array(self) -> tuple[int, int, bool]:
        array = owners.plain(self._thing)
        if array.dtype.hasobject:
            raise ReleaseError(
                f"an array of dtype {array.dtype} holds Python objects: "
                "their references would be lost"
            )
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            raise ReleaseError(
                "a strided view is not one range of memory: release its base, or a contiguous slice"
            )
        return *owners.bounds(array), array.flags.writeable

    def _buffer(self) -> tuple[int, int, bool]:
        self._pin.take(self._thing)
        return self._pin.address, self._pin.length, not self._pin.readonly


def _read_only(thing: Any) -> ReleaseError:
    return ReleaseError(
        f"this {type(thing).__name__} is read-only: others may rely on its content, "
        "so it is not released"
    )
