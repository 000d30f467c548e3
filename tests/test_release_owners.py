"""What is released is shown to be owned; whatever can't be is refused with the reason."""

from __future__ import annotations

import ctypes
import io
import mmap
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from release_scenes import (
    MIB,
    PAGE,
    others,
    private,
)

from zaplock import buffers
from zaplock.release import (
    ExportedError,
    ReleaseError,
    release,
    release_soon,
)
from zaplock.release.claims import nothing_is_claimed
from zaplock.release.pinned import address_of


def test_a_view_whose_owner_has_moved_is_refused() -> None:
    owner = bytearray(b"x" * MIB)
    view = np.ndarray((MIB,), np.uint8, buffer=owner)  # no export: bytearray may move
    owner.extend(b"y" * 64 * MIB)
    neighbours = others()
    with pytest.raises(ReleaseError, match="points outside of the bytearray"):
        release(view)
    assert all((one == 7).all() for one in neighbours)


class Tensor:
    """Holds memory that it doesn't own, as a tensor of `torch.frombuffer` does."""

    def __init__(self, address: int, length: int) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (length,),
            "typestr": "|u1",
            "version": 3,
        }


class Itself:
    """Says that it stands on itself."""

    @property
    def base(self) -> Itself:
        return self


def strangers() -> dict[str, tuple[Callable[[mmap.mmap], Any], str]]:
    from_memory = ctypes.pythonapi.PyMemoryView_FromMemory
    from_memory.restype = ctypes.py_object
    from_memory.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
    objects = np.array([object()] * 9000, object)
    pointers = (ctypes.py_object * 9000)(*objects)

    def endless(mapping: mmap.mmap) -> Any:
        holder = Tensor(address_of(mapping), len(mapping))
        holder.base = Itself()  # type: ignore[attr-defined]
        return np.asarray(holder)

    return {
        "a tensor's array": (
            lambda m: np.asarray(Tensor(address_of(m), len(m))),
            "stands on a Tensor, and what owns its memory can't be shown",
        ),
        "a tensor": (lambda m: Tensor(address_of(m), len(m)), "no memory to release"),
        "a base without an end": (endless, "stands on a Tensor"),
        "a view of nothing": (lambda m: from_memory(address_of(m), len(m), 0x200), "no owner"),
        "ctypes at an address": (
            lambda m: (ctypes.c_ubyte * len(m)).from_address(address_of(m)),
            "can't be shown",
        ),
        "ctypes of its own": (lambda m: (ctypes.c_ubyte * MIB)(), "can't be shown"),
        "memoryview of ctypes": (lambda m: memoryview((ctypes.c_ubyte * MIB)()), "c_ubyte_Array"),
        "np.void": (lambda m: np.void(b"x" * MIB), "numpy scalar"),
        "a record": (lambda m: np.zeros(3, [("a", "u1", MIB)])[1], "numpy scalar"),
        "read-only array": (lambda m: frozen(np.frombuffer(m, np.uint8)), "read-only"),
        "read-only view of buffers": (lambda m: frozen(buffers.empty(MIB)), "read-only"),
        "toreadonly": (lambda m: memoryview(m).toreadonly(), "read-only"),
        "toreadonly of a bytearray": (lambda m: memoryview(bytearray(MIB)).toreadonly(), "read-o"),
        "objects": (lambda m: objects, "Python objects"),
        "objects in a memoryview": (lambda m: memoryview(objects), "Python objects"),
        "objects as bytes": (lambda m: np.ndarray(MIB // 16, "u1", buffer=objects), "objects"),
        "objects in a record": (lambda m: memoryview(np.zeros(999, "u1,O")), "Python objects"),
        "objects of ctypes": (lambda m: pointers, "Python objects"),
        "objects of ctypes seen": (lambda m: memoryview(pointers), "Python objects"),
    }


def frozen(made: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    made[:] = ord("x")
    made.flags.writeable = False
    return made


@pytest.mark.parametrize("kind", list(strangers()))
@pytest.mark.parametrize("how", [release, lambda thing: release_soon(thing).result()])
def test_what_cannot_be_shown_is_refused_with_the_reason(kind: str, how: Any) -> None:
    mapping = private()
    make, reason = strangers()[kind]
    thing = make(mapping)
    before = bytes(thing) if isinstance(thing, np.void) else b""
    with pytest.raises(ReleaseError, match=reason) as refused:
        how(thing)
    assert "\n" not in str(refused.value)
    assert mapping[:] == b"x" * len(mapping)
    assert (bytes(thing) if isinstance(thing, np.void) else b"") == before
    assert nothing_is_claimed()


def test_a_read_only_file_may_be_zapped_for_it_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"f" * MIB)
    seen = np.memmap(path, np.uint8, mode="r")
    assert release(seen).length == MIB
    assert (seen == ord("f")).all()


def test_other_buffers_that_stay_are_released() -> None:
    stream = io.BytesIO(b"x" * MIB)
    assert release(stream.getbuffer()).length >= MIB - 2 * PAGE
    masked = np.ma.masked_array(np.ones(MIB), mask=False)
    assert release(masked).length >= 8 * MIB - 2 * PAGE
    fortran = np.asfortranarray(np.ones((1000, 1000)))
    assert release(memoryview(fortran)).length >= 8_000_000 - 2 * PAGE


@pytest.mark.parametrize("held", ["buf itself", "base of a foreign buffer", "array"])
def test_a_refused_segment_is_as_it_was(segment: SharedMemory, held: str) -> None:
    buf = segment.buf
    user: object = {
        "buf itself": lambda: buf,
        "base of a foreign buffer": lambda: [buf],
        "array": lambda: np.ndarray((10,), np.uint8, buffer=buf),
    }[held]()
    if held == "array":
        del buf
    with pytest.raises(ExportedError, match="exported pointers"):
        release(segment)
    assert isinstance(release_soon(segment).exception(), ExportedError)
    assert segment.buf[5] == ord("z")
    if held != "array":
        assert buf[5] == ord("z")  # the very object that the user has
        del buf
    del user
    assert release(segment).unmapped


def test_arrow_buffers_on_shared_memory_are_seen(segment: SharedMemory) -> None:
    arrow = pytest.importorskip("pyarrow")
    buf = segment.buf
    holder = arrow.foreign_buffer(address_of(buf), segment.size, base=buf)
    del buf
    with pytest.raises(ExportedError):
        release(segment)
    assert holder.to_pybytes()[:3] == b"zzz"
    del holder
    assert release(segment, unmap=False).length == segment.size
    assert segment.buf[5] == ord("z")
    assert release(segment).unmapped
