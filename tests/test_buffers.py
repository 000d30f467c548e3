"""Arrays on mappings of their own behave as arrays; only their end differs."""

from __future__ import annotations

import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
from release_scenes import is_there, marked

import zaplock
from zaplock.buffers import (
    Mapping,
    MappingError,
    NoMemoryError,
    borrowed,
    empty,
    move,
    populate,
    resize,
)
from zaplock.errors import UserError
from zaplock.release import flush, release, syscalls
from zaplock.release.vmas import vmas_in

MIB = 1 << 20
PAGE = syscalls.PAGE


def resident(array: np.ndarray[Any, Any]) -> int:
    """Count the bytes of a page-aligned array that are present."""
    start, nr_pages = array.ctypes.data, array.nbytes // PAGE
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(start // PAGE * 8)
        entries = np.frombuffer(pagemap.read(nr_pages * 8), np.uint64)
    return int(((entries >> np.uint64(62)) != 0).sum()) * PAGE


@pytest.mark.parametrize("shape", [(), 7, (3, 4), (0,), (5, 0), (1 << 20,)])
@pytest.mark.parametrize("dtype", ["f8", "u1", "M8[ns]", "S5", [("a", "i4"), ("b", "f2")]])
def test_an_array_like_any_other(shape: Any, dtype: Any) -> None:
    array = empty(shape, dtype)
    like = np.zeros(shape, dtype)
    assert type(array) is np.ndarray
    assert (array.shape, array.dtype, array.strides) == (like.shape, like.dtype, like.strides)
    assert array.flags.writeable
    assert array.flags.aligned
    assert (array == like).all()


def test_views_keep_it_alive_and_the_last_one_ends_it() -> None:
    array = empty(4 * MIB, np.uint8, populate=True)
    start = marked(array)
    view = array[MIB : 2 * MIB].reshape(-1, 16)
    window = memoryview(view)
    del array, view
    gc.collect()
    assert is_there(start, 4 * MIB)
    del window
    assert not is_there(start, 4 * MIB)


def test_the_pages_go_before_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unmap at the last reference must find nothing left to free."""
    array = empty(8 * MIB, np.uint8, populate=True)
    start, zapped = marked(array), list[tuple[int, int]]()
    real = syscalls.madvise

    def madvise(address: int, length: int, advice: int) -> int:
        assert is_there(start, 8 * MIB)
        zapped.append((address, length))
        return real(address, length, advice)

    monkeypatch.setattr(syscalls, "madvise", madvise)
    del array
    assert sum(length for _, length in zapped) == 8 * MIB
    assert not is_there(start, 8 * MIB)


def test_the_background_worker_ends_it_as_well() -> None:
    array = empty(8 * MIB, np.uint8, populate=True, background=True)
    start = marked(array)
    del array
    flush()
    assert not is_there(start, 8 * MIB)


def test_finalizers_and_pickles_are_as_ever() -> None:
    array = empty((100, 100))
    array[:] = np.arange(100)
    ended = []
    weakref.finalize(array, ended.append, True)
    copy = pickle.loads(pickle.dumps(array, protocol=5))
    assert (copy == array).all()
    with pytest.raises(TypeError, match="pickle the array"):
        pickle.dumps(Mapping(PAGE))
    assert not ended
    del array
    assert ended == [True]


def test_released_by_hand_it_stays_valid_memory() -> None:
    array = empty(4 * MIB, np.uint8, populate=True)
    array[:] = 5
    done = zaplock.release(array)  # type: ignore[operator]
    assert not done.unmapped
    assert resident(array) == 0
    assert not array.any()
    array[:] = 6
    assert (array == 6).all()


def test_populate_brings_pages_and_keeps_content() -> None:
    array = empty(8 * MIB, np.uint8, huge="never")
    array[5] = 1
    assert resident(array) == PAGE
    populate(array, max_stall_ns=1_000_000)
    assert resident(array) == 8 * MIB
    assert (array[5], array[6]) == (1, 0)
    ordinary = np.ones(MIB, np.uint8)
    populate(ordinary[5:-5])
    assert ordinary.all()


@pytest.mark.parametrize("new", [1, 1000, 3 * MIB, 4 * MIB, 4 * MIB + 1, 16 * MIB, 0])
def test_resize_moves_the_content(new: int) -> None:
    old = empty(4 * MIB, np.uint8, populate=True)
    pattern = np.arange(old.size, dtype=np.uint32).astype(np.uint8)
    old[:] = pattern
    array = resize(old, new)
    keep = min(new, old.size)
    assert array.shape == (new,)
    assert (array[:keep] == pattern[:keep]).all()
    assert not array[keep:].any()
    assert not old.any()  # still valid memory
    old[:] = 1
    assert (array[:keep] == pattern[:keep]).all()


def test_what_a_shrink_cut_off_does_not_come_back() -> None:
    array = empty(2 * PAGE, np.uint8)
    array[:] = 7
    assert resize(resize(array, 10), 2 * PAGE).sum() == 70


def test_resize_copies_where_the_kernel_cannot_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(move, "kernel_moves_pages", lambda: False)
    array = empty((2, MIB))
    array[:] = 3
    assert (resize(array, (4, MIB))[:2] == 3).all()


def test_a_block_borrows() -> None:
    with borrowed((MIB,), "f8", populate=True) as array:
        array[:] = 1
        view = array[5:]
    assert not view.any()
    start = marked(array)
    del array, view
    assert not is_there(start, 8 * MIB)
    with pytest.raises(ZeroDivisionError), borrowed(10) as array:
        array[0] = 1 / 0


def test_huge_pages_and_names_are_asked_for() -> None:
    array = empty(4 * MIB, np.uint8, huge="thp", name="test", populate=True)
    assert resident(array) == 4 * MIB
    assert array.ctypes.data % (2 * MIB) == 0
    mapping = Mapping(MIB, name="ledger")
    named = vmas_in(mapping.address, mapping.address + 1)[0].name
    assert named == ("[anon:ledger]" if mapping.named else "")


def test_a_mapping_serves_other_libraries() -> None:
    mapping = Mapping(MIB)
    array = np.frombuffer(mapping, np.float32)
    with pytest.raises(BufferError, match="exported pointers"):
        release(mapping)
    del array
    assert release(mapping).unmapped


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: empty(-1), "negative"),
        (lambda: empty((3, -1)), "negative"),
        (lambda: empty(3, object), "Python objects"),
        (lambda: empty(3, huge="big"), "huge='big'"),
        (lambda: empty(3, max_stall_ns=0), "max_stall_ns"),
        (lambda: resize(np.ones(5), 3), "made by zaplock.buffers.empty"),
        (lambda: resize(empty(9)[1:], 3), "whole array"),
        (lambda: populate(np.ones((4, 4))[:, 1]), "one range"),
        (lambda: populate(np.empty(0)), "one range"),
        (lambda: populate(np.frombuffer(b"x" * 9000, np.uint8)), "read-only"),
    ],
)
def test_misuse_is_one_clear_line(attempt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        attempt()
    assert isinstance(error.value, UserError)


def test_too_much_memory_is_a_memory_error() -> None:
    for count in (1 << 50, 1 << 61):
        with pytest.raises(MemoryError) as error:
            empty(count, np.uint8)
        assert isinstance(error.value, NoMemoryError)


def test_strange_types_of_shapes_are_refused() -> None:
    with pytest.raises((TypeError, MappingError)):
        empty("many")  # type: ignore[arg-type]
