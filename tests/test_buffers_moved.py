"""Arrays that change their size or end keep their hands off everybody else's memory."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap

import numpy as np
import pytest
from release_scenes import (
    MIB,
    PAGE,
    PRIVATE,
    mapped,
    others,
)

from zaplock import buffers
from zaplock.release import (
    syscalls,
)
from zaplock.release.pinned import address_of


def test_a_mapping_cannot_be_resized_and_its_address_is_never_stale() -> None:
    mapping = buffers.Mapping(4 * MIB)
    with pytest.raises(buffers.MappingError, match="can't be resized"):
        mapping.resize(8 * MIB)
    wall = mmap.mmap(-1, 4 * MIB, flags=PRIVATE)  # what grows over it has to move
    before = mapping.address
    mmap.mmap.resize(mapping, 64 * MIB)  # the base class's own, behind our back
    assert mapping.address == address_of(mapping)
    neighbours = others()
    del mapping
    gc.collect()
    assert all((one == 7).all() for one in neighbours)
    assert before
    del wall


def test_only_a_whole_array_is_resized() -> None:
    whole = buffers.empty(4 * MIB, np.uint8)
    whole[:] = 5
    for part in (whole[: 2 * MIB], whole[1:], whole[:-1], whole[: 4 * MIB - PAGE]):
        with pytest.raises(buffers.MappingError, match="whole array"):
            buffers.resize(part, MIB)
    whole.flags.writeable = False
    with pytest.raises(buffers.MappingError, match="read-only"):
        buffers.resize(whole, MIB)
    assert (whole == 5).all()
    whole.flags.writeable = True
    assert (buffers.resize(whole.reshape(2, -1), 4 * MIB) == 5).all()


def test_a_move_that_fails_leaves_the_array_and_the_hole_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel unmaps the new address before it can fail: somebody may live there at once."""
    real, calls, strangers = syscalls.move_pages_onto, [], []

    def fails(source: int, length: int, target: int) -> int:
        calls.append(target)
        if len(calls) < 3:
            return real(source, length, target)
        syscalls.munmap(target, length)
        strangers.append((mapped(length, target), length))
        return errno.ENOMEM

    monkeypatch.setattr(buffers.move, "kernel_moves_pages", lambda: True)
    monkeypatch.setattr(syscalls, "move_pages_onto", fails)
    old = buffers.empty(64 * MIB, np.uint8)
    old[:] = np.arange(64 * MIB, dtype=np.uint32).astype(np.uint8)
    copy = old.copy()
    with pytest.raises(MemoryError, match="the array is as it was"):
        buffers.resize(old, 64 * MIB)
    gc.collect()
    assert (old == copy).all()
    ((stranger, length),) = strangers
    assert ctypes.string_at(stranger, length) == b"s" * length


def test_a_block_leaves_nothing_behind() -> None:
    for nr_bytes in (1, 10_000, PAGE, 3 * MIB + 5):
        with buffers.borrowed(nr_bytes, np.uint8) as lent:
            lent[:] = 9
        assert not lent.any()
