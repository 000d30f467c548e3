"""What is handed over stays where it is, and is released once, by the process that has it."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import pytest
from release_scenes import (
    MIB,
    PAGE,
    mapped,
    new_worker,
    nobody_works,
    private,
)

from zaplock import buffers
from zaplock.measure import syscalls as kernel
from zaplock.release import (
    BusyError,
    ExportedError,
    flush,
    in_background,
    pending,
    release,
    release_soon,
)
from zaplock.release.claims import nothing_is_claimed
from zaplock.release.pinned import address_of


def owners() -> dict[str, Callable[[], Any]]:
    return {
        "mmap": private,
        "bytearray": lambda: bytearray(b"x" * 4 * MIB),
        "array.array": lambda: array.array("B", b"x" * 4 * MIB),
        "Mapping": lambda: buffers.Mapping(4 * MIB),
    }


def views(owner: Any) -> dict[str, Any]:
    return {
        "without an export": np.ndarray((3 * MIB,), np.uint8, buffer=owner),
        "a slice of that": np.ndarray((3 * MIB,), np.uint8, buffer=owner)[8:].reshape(8, -1)[1:],
        "frombuffer": np.frombuffer(owner, np.uint8),
        "memoryview": memoryview(owner)[MIB:],
        "ctypes": (ctypes.c_ubyte * 2 * MIB).from_buffer(owner),
        "array of ctypes": np.ctypeslib.as_array((ctypes.c_ubyte * MIB).from_buffer(owner)),
    }


def end(owner: Any) -> None:
    """Close or resize: either raises BufferError while anything is exported."""
    if isinstance(owner, mmap.mmap):
        owner.close()
    else:
        owner += type(owner)(*["B"] * isinstance(owner, array.array), b"y" * 8 * MIB)


@pytest.mark.parametrize("kind", list(owners()))
@pytest.mark.parametrize("view", list(views(bytearray(4 * MIB))))
def test_the_owner_of_a_queued_view_stays(kind: str, view: str) -> None:
    with nobody_works():
        owner = owners()[kind]()
        done = release_soon(views(owner)[view])
        gc.collect()
        assert not done.done(), done.exception()
        with pytest.raises(BufferError):
            end(owner)
    flush()
    assert done.result().length >= 2 * MIB - 2 * PAGE or "array of" in view
    end(owner)  # and not a moment longer


def test_a_queued_owner_cannot_be_closed_or_released_again(segment: SharedMemory) -> None:
    with nobody_works():
        mapping = private()
        first, second = release_soon(mapping), release_soon(segment)
        with pytest.raises(BufferError):
            mapping.close()
        with pytest.raises(BufferError):
            mapping.resize(8 * MIB)
        for thing in (mapping, segment):
            with pytest.raises(BusyError):
                release(thing)
            assert isinstance(release_soon(thing).exception(), BusyError)
    flush()
    assert first.result().unmapped
    assert second.result().unmapped


def test_shared_memory_in_the_form_of_the_manual_stays_while_queued(segment: SharedMemory) -> None:
    with nobody_works():
        view = np.ndarray((segment.size,), np.uint8, buffer=segment.buf)
        done = release_soon(view)
        del view
        with pytest.raises(BufferError):
            segment.close()
    flush()
    assert done.result().length == segment.size
    segment.close()


def test_an_export_made_while_queued_is_seen() -> None:
    with nobody_works():
        mapping = private()
        done = release_soon(mapping)
        view = memoryview(mapping)
    flush()
    assert isinstance(done.exception(), ExportedError)
    assert view[5] == ord("x")


def test_what_is_being_released_is_not_resized() -> None:
    with nobody_works():
        whole = buffers.empty(4 * MIB, np.uint8)
        whole[:] = 5
        done = release_soon(whole[MIB : 2 * MIB])
        with pytest.raises(BusyError):
            buffers.resize(whole, MIB)
        assert (whole == 5).all()
    flush()
    assert done.result().length == MIB


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_a_job_whose_thread_cannot_start_is_not_left_behind(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    new_worker()

    def start(_function: Callable[[], object], _arguments: tuple[()]) -> int:
        raise error

    monkeypatch.setattr(in_background, "start_new_thread", start)
    mapping = private()
    if isinstance(error, RuntimeError):
        assert release_soon(mapping).result(0).unmapped  # the caller did it
        assert mapping.closed
    else:
        with pytest.raises(KeyboardInterrupt):
            release_soon(mapping)
        monkeypatch.undo()
        release_soon(private()).result()
        assert mapping[5] == ord("x")
        mapping.close()
    assert pending() == 0
    assert nothing_is_claimed()


def test_a_callback_may_flush_and_hand_over_more() -> None:
    first, second = private(), private()
    ended = threading.Event()

    def more(_future: object) -> None:
        release_soon(second)
        flush()
        ended.set()

    release_soon(first).add_done_callback(more)
    assert ended.wait()
    assert second.closed


def in_child(story: Callable[[], bool]) -> None:
    """Run a story in a forked child, which must end by itself and well.

    It is told anew where somebody else had come first to addresses that it wants.
    """
    code = ANEW = 3
    while code == ANEW:
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if story() else 1)
            except FileExistsError:
                os._exit(ANEW)
            finally:
                os._exit(2)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0


def test_a_child_never_releases_again_what_is_done() -> None:
    """In a callback the job is done but not yet taken from the queue; its addresses are free."""
    told: list[bool] = []
    while not told:  # any other thread may map its own memory at the free addresses first
        flush()
        mapping, ended = private(8 * MIB), threading.Event()
        start = address_of(mapping)

        def fork(_future: object, start: int = start, ended: threading.Event = ended) -> None:
            try:
                with suppress(FileExistsError):
                    stranger = mapped(8 * MIB, start)
                    told.append(False)
                    in_child(lambda: flush() or (is_whole(stranger) and not pending()))
                    told[-1] = True
                    kernel.munmap(stranger, 8 * MIB)
            finally:
                ended.set()

        release_soon(mapping).add_done_callback(fork)
        del mapping
        assert ended.wait(60)
    assert told == [True]


def is_whole(stranger: int) -> bool:
    return ctypes.string_at(stranger, 8 * MIB) == b"s" * 8 * MIB


def test_a_child_leaves_alone_what_it_cannot_show_to_own() -> None:
    with nobody_works():
        excluded, inherited, raw = private(8 * MIB), private(8 * MIB), mapped(8 * MIB)
        excluded.madvise(mmap.MADV_DONTFORK)
        start = address_of(excluded)
        futures = [release_soon(excluded), release_soon(inherited), release_soon(raw, 8 * MIB)]

        def story() -> bool:
            stranger = mapped(8 * MIB, start)  # lives where the child has a hole
            in_background._here().do_all()
            told = [future.exception(30) for future in futures]
            return (
                is_whole(stranger)
                and is_whole(raw)
                and inherited.closed
                and [error is None for error in told] == [False, True, False]
                and nothing_is_claimed()
            )

        in_child(story)
        excluded.madvise(mmap.MADV_DOFORK)
    flush()
    assert all(future.result().unmapped for future in futures)


RAW_FORK = """
import ctypes, mmap, os
from unittest import mock
from zaplock.release import flush, pending, release_soon, in_background
from zaplock.release.claims import nothing_is_claimed
mapping = mmap.mmap(-1, 1 << 22, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
mapping[:] = b"x" * len(mapping)
with mock.patch.object(in_background._Worker, "has_thread", return_value=True):
    release_soon(mapping)
child = ctypes.PyDLL(None).fork()
if child == 0:
    flush()
    whole = mapping[:] == b"x" * len(mapping)
    os._exit(0 if pending() == 0 and whole and nothing_is_claimed() else 1)
print(os.waitpid(child, 0)[1])
"""


def test_a_child_forked_behind_pythons_back_has_no_jobs() -> None:
    """No hook runs in it: it is known by its process id."""
    done = subprocess.run([sys.executable, "-c", RAW_FORK], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
