"""What owns the memory under a view, shown before anything is touched.

A view says what it stands on (`base`, `obj`, what ctypes keeps). That is only where to look: an
owner counts when it is of a kind that keeps its memory in place while it is held, and when the
view's bytes lie inside the owner's memory at this moment. Anything else is refused:

| owner                         | held in place by                                      |
|-------------------------------|-------------------------------------------------------|
| mmap.mmap, SharedMemory's     | an exported buffer: close and resize raise BufferError|
| bytearray, array.array        | an exported buffer: resizing raises BufferError       |
| io.BytesIO under getbuffer()  | the same                                              |
| numpy array with OWNDATA      | a reference: numpy frees with the last, and `resize`  |
|                               | refuses while there is another one                    |

Not such owners: ctypes objects that own their memory (`ctypes.resize` moves it, whatever is
exported), tensors, Arrow buffers, capsules and other libraries' holders, which may refer to an
mmap that its owner can close, and views of nothing (`PyMemoryView_FromMemory`, `from_address`).
"""

from __future__ import annotations

import array
import ctypes
import io
import mmap
import sys
from typing import Any, Final

from zaplock.release.errors import ReleaseError
from zaplock.release.pinned import Pin, pinned_once

_EXPORTERS: Final = (mmap.mmap, bytearray, array.array, type(io.BytesIO().getbuffer().obj))
_CTYPES: Final = (ctypes.Array, ctypes.Structure, ctypes.Union, ctypes._SimpleCData)
_DEEPEST: Final = 64


def is_array(thing: object) -> bool:
    """Tell whether something is a numpy array (numpy is not imported for that)."""
    return isinstance(thing, _numpy("ndarray"))


def is_scalar(thing: object) -> bool:
    """Tell whether something is a numpy scalar, whose memory nobody else can find."""
    return isinstance(thing, _numpy("generic"))


def plain(thing: Any) -> Any:
    """Return an array as numpy itself sees it, whatever a subclass says."""
    ndarray: Any = _numpy("ndarray")[0]
    return ndarray.view(thing, ndarray)


def bounds(thing: Any) -> tuple[int, int]:
    """Return where the memory of a contiguous array begins and how many bytes it has."""
    seen = plain(thing)
    return int(seen.__array_interface__["data"][0]), int(seen.nbytes)


class Owner:
    """The owner of a view's memory, held from `take` to `let_go`; a new one holds nothing."""

    def __init__(self) -> None:
        self.pin = Pin()
        self._thing: object = None

    def take(self, thing: Any, address: int, length: int) -> None:
        """Find the owner of `length` bytes at `address` under a view, and hold it in place.

        Raises ReleaseError where it can't be shown that they are the owner's.
        """
        self._thing = found = stands_on(thing)
        if not _stays(found):
            below = f"stands on a {type(found).__name__}" if found is not thing else "says no owner"
            raise ReleaseError(
                f"this {type(thing).__name__} {below}, and what owns its memory can't be shown: "
                "release the owner, or the address if it is yours"
            )
        if not is_array(found):
            self.pin.take(found)
        self.check(thing, address, length)

    def check(self, thing: Any, address: int, length: int) -> None:
        """Raise ReleaseError unless `length` bytes at `address` are the owner's at this moment."""
        if is_array(self._thing):
            start, size = bounds(self._thing)
        else:
            start, size = self.pin.address, self.pin.length
        if not (start <= address and address + length <= start + size):
            raise ReleaseError(
                f"this {type(thing).__name__} points outside of the {type(self._thing).__name__} "
                "that it stands on, which was resized or closed since"
            )

    @property
    def is_read_only_mmap(self) -> bool:
        """Tell whether this is a mapping that nobody can have written to: a zap loses nothing."""
        return isinstance(self._thing, mmap.mmap) and self.pin.readonly

    def let_go(self) -> None:
        """Hold nothing any more; a second time does nothing."""
        self.pin.let_go()
        self._thing = None


def stands_on(thing: Any) -> object:
    """Follow what a view says of its memory to an owner, or to where it says nothing more.

    Raises ReleaseError if anything on the way is made of Python objects.
    """
    for _ in range(_DEEPEST):
        _refuse_objects(thing)
        below = None if _stays(thing) else _below(thing)
        if below is None:
            break
        thing = below
    return thing


def _stays(thing: Any) -> bool:
    """Tell whether something owns memory that stays where it is while it is held."""
    if is_array(thing):
        return bool(_numpy("ndarray")[0].flags.__get__(thing).owndata)  # type: ignore[attr-defined]
    return isinstance(thing, _EXPORTERS)


def _below(thing: Any) -> object:
    """Return what a view stands on, as numpy, memoryview or ctypes keep it; None if nothing."""
    if isinstance(thing, memoryview):
        return thing.obj
    if isinstance(thing, _CTYPES):
        if thing._b_base_ is not None:
            return thing._b_base_
        kept = thing._objects.values() if isinstance(thing._objects, dict) else ()
        return next((one for one in kept if isinstance(one, memoryview)), None)
    if is_array(thing):
        return _numpy("ndarray")[0].base.__get__(thing)  # type: ignore[attr-defined]
    return None


def _refuse_objects(thing: Any) -> None:
    if is_array(thing):
        holds = plain(thing).dtype.hasobject
    elif isinstance(thing, (memoryview, *_CTYPES)):
        holds = pinned_once(thing).has_objects
    else:
        holds = False
    if holds:
        raise ReleaseError(
            f"this {type(thing).__name__} holds Python objects: their references would be lost"
        )


def _numpy(name: str) -> tuple[type, ...]:
    module = sys.modules.get("numpy")
    return (getattr(module, name),) if hasattr(module, name) else ()
