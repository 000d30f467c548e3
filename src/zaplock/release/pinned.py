"""The memory under an object, held in place while it is worked on.

A memoryview is the pin: while it is held, `mmap.mmap`, `bytearray` and `array.array` refuse to
close, resize or let go of the memory, so nobody can have the addresses reused under a release
that is queued or under way. Its end is C code: an exception between any two lines may drop it, but
can't leak it. The address, which Python does not tell, is asked for through PyObject_GetBuffer.
"""

from __future__ import annotations

import ctypes
import re
from typing import Any, ClassVar, Final

from zaplock.release.errors import ReleaseError


class _Buffer(ctypes.Structure):
    """Py_buffer of the stable ABI (3.11)."""

    _fields_: ClassVar = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_get = ctypes.pythonapi.PyObject_GetBuffer
_get.restype, _get.argtypes = (
    ctypes.c_int,
    [ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int],
)
_let_go = ctypes.pythonapi.PyBuffer_Release
_let_go.restype, _let_go.argtypes = None, [ctypes.POINTER(_Buffer)]
_ANY_CONTIGUOUS: Final = 0x0080 | 0x0010 | 0x0008  # PyBUF_ANY_CONTIGUOUS, with strides and shape
_FIELD_NAME: Final = re.compile(":[^:]*:")


class Pin:
    """A hold on one contiguous buffer, from `take` to `let_go`; a new one holds nothing.

    `address`, `length` in bytes, `readonly` and `has_objects` (references inside) tell of it.
    """

    def __init__(self) -> None:
        self._view: memoryview | None = None
        self._asked = _Buffer()
        self.address = self.length = 0
        self.readonly = self.has_objects = False

    def take(self, thing: Any) -> None:
        """Hold the buffer of `thing`; raise ReleaseError where it has none in one piece."""
        try:
            self._view = memoryview(thing)
            self._find_address(self._view)
        except TypeError:
            raise ReleaseError(
                f"{type(thing).__name__} has no memory to release: give an address and a length, "
                "an mmap, a numpy array, a memoryview or a SharedMemory"
            ) from None
        except (BufferError, ValueError) as error:
            raise ReleaseError(f"this {type(thing).__name__} can't be released: {error}") from None
        self.length, self.readonly = self._view.nbytes, self._view.readonly
        self.has_objects = "O" in _FIELD_NAME.sub("", self._view.format)

    def let_go(self) -> None:
        """Hold nothing any more; a second time does nothing."""
        _let_go(ctypes.byref(self._asked))
        if self._view is not None:
            self._view.release()
            self._view = None

    def _find_address(self, view: memoryview) -> None:
        _get(view, ctypes.byref(self._asked), _ANY_CONTIGUOUS)
        self.address = self._asked.buf or 0
        _let_go(ctypes.byref(self._asked))


def address_of(thing: Any) -> int:
    """Return where the buffer of an object begins at this moment."""
    return pinned_once(thing).address


def pinned_once(thing: Any) -> Pin:
    """Hold the buffer of an object for a moment; return what was seen of it."""
    pin = Pin()
    try:
        try:
            pin.take(thing)
        finally:
            pin.let_go()
    finally:  # once more, if a signal handler raised inside the first
        pin.let_go()
    return pin
