"""The memory under an object, held in place while it is worked on.

`Pinned` takes the object's buffer as C code would (PyObject_GetBuffer). While it is held,
`mmap.mmap`, `bytearray` and `memoryview` refuse to close, resize or let go of the memory, so no
other thread can have the addresses reused under a release that is under way. It works for
read-only memory as well, which ctypes' `from_buffer` does not.
"""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import ClassVar

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
_ANY_CONTIGUOUS = 0x0080 | 0x0010 | 0x0008  # PyBUF_ANY_CONTIGUOUS, with strides and shape


class Pinned:
    """One contiguous buffer: `address`, `length` in bytes, `readonly`. A context manager."""

    def __init__(self, thing: object) -> None:
        self._buffer = _Buffer()
        try:
            _get(thing, ctypes.byref(self._buffer), _ANY_CONTIGUOUS)
        except TypeError:
            raise ReleaseError(
                f"{type(thing).__name__} has no memory to release: give an address and a length, "
                "an mmap, a numpy array, a memoryview or a SharedMemory"
            ) from None
        except (BufferError, ValueError) as error:
            raise ReleaseError(f"this {type(thing).__name__} can't be released: {error}") from None
        self.address = int(self._buffer.buf or 0)
        self.length = int(self._buffer.len)
        self.readonly = bool(self._buffer.readonly)

    def __enter__(self) -> Pinned:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Give the buffer back; a second call does nothing."""
        _let_go(ctypes.byref(self._buffer))
