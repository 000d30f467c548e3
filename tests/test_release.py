"""Releasing memory: what goes, what stays, what is refused. The kernel's own maps are the judge."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import sys
import threading
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest
from release_scenes import MIB, PAGE, PRIVATE, far, is_there, mapped, marked

import zaplock
from zaplock.errors import UserError
from zaplock.release import (
    BusyError,
    ExportedError,
    Released,
    ReleaseError,
    claims,
    flush,
    pending,
    release,
    release_async,
    release_soon,
    syscalls,
)
from zaplock.release.claims import nothing_is_claimed
from zaplock.release.pace import Pace, pieces
from zaplock.release.pinned import address_of
from zaplock.release.vmas import _read, vmas_in


def resident(start: int, length: int) -> int:
    """Count the pages of a range that are present, as the kernel's pagemap shows them."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        entries = os.pread(pagemap.fileno(), length // PAGE * 8, start // PAGE * 8)
    present = np.frombuffer(entries, np.uint64) >> np.uint64(62)
    return int((present != 0).sum())


class Raw:
    """A mapping made by the system call alone, as a C library would; its holes stay holes."""

    def __init__(self, length: int) -> None:
        self.address, self.length = far(length), length


@pytest.fixture
def mapping() -> mmap.mmap:
    made = mmap.mmap(-1, 8 * MIB, flags=PRIVATE)
    made[:] = b"x" * len(made)
    return made


def test_the_package_is_the_function(mapping: mmap.mmap) -> None:
    done = zaplock.release(mapping)  # type: ignore[operator]
    assert isinstance(done, Released)
    assert mapping.closed


def test_an_mmap_is_zapped_unmapped_and_closed(mapping: mmap.mmap) -> None:
    start, length = marked(mapping), len(mapping)
    assert resident(start, length) == length // PAGE
    done = release(mapping)
    assert (done.address, done.length, done.unmapped, done.left) == (start, length, True, 0)
    assert done.nr_pieces >= 2
    assert mapping.closed
    assert not is_there(start, length)


def test_an_mmap_may_be_emptied_and_kept(mapping: mmap.mmap) -> None:
    start, length = address_of(mapping), len(mapping)
    assert not release(mapping, unmap=False).unmapped
    assert resident(start, length) == 0
    mapping[5] = 7  # and it works again
    assert bytes(mapping[4:7]) == b"\0\7\0"
    mapping.close()


def test_an_address_is_unmapped_and_nothing_beside_it() -> None:
    raw = Raw(4 * MIB)
    middle = raw.address + MIB
    assert release(middle, 2 * MIB).unmapped
    assert not vmas_in(middle, middle + 2 * MIB)
    assert resident(raw.address, MIB) == resident(middle + 2 * MIB, MIB) == MIB // PAGE
    release(raw.address, MIB)
    release(middle + 2 * MIB, MIB)


def test_a_range_of_many_vmas_goes_whole() -> None:
    raw = Raw(4 * MIB)
    protect = ctypes.CDLL(None).mprotect
    for page in range(0, raw.length // PAGE, 64):
        protect(ctypes.c_void_p(raw.address + page * PAGE), ctypes.c_size_t(PAGE), 1)
    assert len(vmas_in(raw.address, raw.address + raw.length)) == 32
    done = release(raw.address, raw.length)
    assert done.nr_pieces >= 32
    assert not vmas_in(raw.address, raw.address + raw.length)


def test_locked_memory_goes_too() -> None:
    raw = Raw(MIB)
    if ctypes.CDLL(None).mlock(ctypes.c_void_p(raw.address), ctypes.c_size_t(raw.length)):
        pytest.skip("RLIMIT_MEMLOCK is too low here")
    assert release(raw.address, raw.length).left == 0
    assert not vmas_in(raw.address, raw.address + raw.length)


def test_an_array_gives_its_memory_back_and_stays_readable() -> None:
    array = np.ones(MIB)
    pages = array.nbytes // PAGE - 1
    done = release(array)
    assert not done.unmapped
    assert resident(done.address, done.length) == 0
    assert done.length // PAGE >= pages
    assert array.sum() * 8 < 2 * PAGE  # what is left stands in the pages at both ends
    array[:] = 2
    assert array.sum() == 2 * MIB


def test_a_slice_of_an_array_takes_only_its_own_pages(mapping: mmap.mmap) -> None:
    array = np.frombuffer(mapping, np.uint8)
    release(array[MIB + 1 : 2 * MIB + 1])
    assert array[MIB] == array[MIB + 1] == ord("x")  # their page is shared with the neighbours
    assert not array[MIB + PAGE : 2 * MIB].any()
    assert array[2 * MIB] == array[2 * MIB + 5] == ord("x")


def test_a_memmap_shows_its_file_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"f" * MIB)
    private = np.memmap(path, np.uint8, mode="c")
    private[:] = 0
    release(private)
    assert bytes(private[:3]) == b"fff"
    shared = np.memmap(path, np.uint8, mode="r+")
    shared[:] = 9
    release(shared)
    assert (shared == 9).all()


def test_memoryviews_and_other_buffers(mapping: mmap.mmap) -> None:
    view = memoryview(mapping)
    release(view[: 4 * MIB])
    assert view[4 * MIB - 1] == 0
    assert view[4 * MIB] == ord("x")
    view.release()
    mapping.close()
    big = bytearray(b"y" * MIB)
    release(big)
    assert big.count(0) >= MIB - 2 * PAGE


def test_shared_memory_is_closed_and_lives_on_by_its_name() -> None:
    segment = SharedMemory(create=True, size=4 * MIB)
    segment.buf[:4] = b"keep"
    other = SharedMemory(segment.name)
    try:
        assert release(segment).unmapped
        assert segment.buf is None
        assert bytes(other.buf[:4]) == b"keep"
        with pytest.raises(ReleaseError, match="closed"):
            release(segment)
    finally:
        other.unlink()
        release(other)


def test_exports_are_refused_and_nothing_is_lost(mapping: mmap.mmap) -> None:
    array = np.frombuffer(mapping, np.uint8)
    with pytest.raises(BufferError, match="exported pointers") as refused:
        release(mapping)
    assert isinstance(refused.value, UserError)
    assert array.min() == ord("x")
    del array
    assert release(mapping).unmapped


@pytest.mark.parametrize("kind", ["slice", "array without an export", "frombuffer"])
def test_shared_memory_with_users_is_refused_and_usable(kind: str) -> None:
    segment = SharedMemory(create=True, size=MIB)
    segment.buf[:] = b"z" * MIB
    user: object = {
        "slice": lambda: segment.buf[10:20],
        "array without an export": lambda: np.ndarray((10,), np.uint8, buffer=segment.buf),
        "frombuffer": lambda: np.frombuffer(segment.buf, np.uint8),
    }[kind]()
    with pytest.raises(ExportedError, match="exported pointers"):
        release(segment)
    assert segment.buf[MIB - 1] == ord("z")
    del user
    segment.unlink()
    assert release(segment).unmapped


@pytest.mark.parametrize(
    ("thing", "length", "message"),
    [
        (4096, None, "needs a length"),
        (4096, -4096, "not a range"),
        (0, 4096, "not a range"),
        (1 << 60, 4096, "not a range"),
        (4097, 4096, "multiple of the page size"),
        (4096, 100, "multiple of the page size"),
        (4096, 4096, "nothing is mapped"),
        (b"x" * MIB, None, "read-only"),
        ("text", None, "no memory to release"),
        (3.5, None, "no memory to release"),
        (True, None, "no memory to release"),
        (None, None, "no memory to release"),
        (bytearray(MIB), 5, "belongs to an address"),
        (np.zeros((MIB, 2))[:, 1], None, "strided"),
        (np.broadcast_to(np.zeros(5), (5, 5)), None, "strided"),
        (np.array([object()] * 9000), None, "Python objects"),
        (memoryview(np.zeros((9, 9)))[::2], None, "can't be released"),
    ],
)
def test_misuse_is_one_clear_line(thing: object, length: int | None, message: str) -> None:
    with pytest.raises(ReleaseError, match=message) as error:
        release(thing, length)
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)


def test_a_read_only_array_is_not_ours_to_zap() -> None:
    array = np.ones(MIB)
    array.flags.writeable = False
    with pytest.raises(ReleaseError, match="read-only"):
        release(array)
    assert array.all()


@pytest.mark.parametrize("bound", [0, -1, 99_999, 1.5e6, "5ms", None])
def test_a_bound_that_cannot_be_kept_is_refused(mapping: mmap.mmap, bound: object) -> None:
    with pytest.raises(ReleaseError, match="max_stall_ns"):
        release(mapping, max_stall_ns=bound)  # type: ignore[arg-type]
    assert not mapping.closed


def test_holes_and_special_memory_are_refused() -> None:
    raw = Raw(3 * MIB)
    release(raw.address + MIB, MIB)
    with pytest.raises(ReleaseError, match=f"nothing is mapped at {raw.address + MIB:#x}"):
        release(raw.address, raw.length)
    assert resident(raw.address, MIB) == MIB // PAGE  # refused before anything is lost
    release(raw.address, MIB)
    release(raw.address + 2 * MIB, MIB)
    lines = Path("/proc/self/maps").read_text().splitlines()
    (stack,) = (line for line in lines if line.endswith("[stack]"))
    start, end = (int(bound, 16) for bound in stack.split()[0].split("-"))
    with pytest.raises(ReleaseError, match=r"\[stack\]"):
        release(start, end - start)


def test_a_second_release_is_refused(mapping: mmap.mmap) -> None:
    release(mapping)
    with pytest.raises(ReleaseError, match="released already"):
        release(mapping)
    raw = Raw(MIB)
    release(raw.address, raw.length)
    with pytest.raises(ReleaseError, match="released already"):
        release(raw.address, raw.length)


def test_of_many_threads_one_releases() -> None:
    for _ in range(50):
        mapping = mmap.mmap(-1, 4 * MIB, flags=PRIVATE)
        mapping[:] = b"x" * len(mapping)
        line, outcomes = threading.Barrier(8), []

        def contend() -> None:
            line.wait()  # noqa: B023
            try:
                outcomes.append(release(mapping).unmapped)  # noqa: B023
            except ReleaseError:
                outcomes.append(False)  # noqa: B023

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == [False] * 7 + [True]
    assert nothing_is_claimed()


def test_what_is_claimed_is_busy() -> None:
    first, second, third = (claims.of_range() for _ in range(3))
    first.take(0, 10, "0 to 10")
    second.take(10, 20, "10 to 20")
    for start, end in [(9, 12), (0, 1), (19, 30)]:
        with pytest.raises(BusyError, match="being released already"):
            third.take(start, end, "this")
    first.let_go()
    first.let_go()
    third.take(0, 10, "0 to 10")
    assert not nothing_is_claimed()
    del second, third
    assert nothing_is_claimed()  # what nobody holds is not claimed


def test_the_memory_cannot_go_away_under_a_release(
    mapping: mmap.mmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's `close` in the middle must not unmap what is still being zapped."""
    refused = []
    real = syscalls.madvise

    def madvise(address: int, length: int, advice: int) -> int:
        try:
            mapping.close()
        except BufferError:
            refused.append(address)
        return real(address, length, advice)

    monkeypatch.setattr(syscalls, "madvise", madvise)
    done = release(mapping)
    assert len(refused) == done.nr_pieces
    assert done.unmapped


def test_the_interpreter_runs_on_beside_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python code in another thread goes on while the kernel frees: the GIL is not held.

    Nothing else lets another thread run meanwhile: nobody is asked for the GIL in the test's time.
    """
    ticks, inside, seen = [0], list[int](), 0
    stop = threading.Event()
    real = syscalls.madvise

    def count() -> None:
        while not stop.is_set():
            ticks[0] += 1
            time.sleep(0)

    def madvise(address: int, length: int, advice: int) -> int:
        before = ticks[0]
        done = real(address, length, advice)
        inside.append(ticks[0] - before)
        return done

    thread, interval = threading.Thread(target=count), sys.getswitchinterval()
    thread.start()
    sys.setswitchinterval(1000)
    end = time.monotonic() + 250
    try:
        while seen <= 100 and time.monotonic() < end:  # it may have to wait for a CPU
            mapping = mmap.mmap(-1, 64 * MIB, flags=PRIVATE)
            real(address_of(mapping), len(mapping), syscalls.MADV_POPULATE_WRITE)
            monkeypatch.setattr(syscalls, "madvise", madvise)
            release(mapping)
            monkeypatch.undo()
            seen = sum(inside)
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
    assert seen > 100


def test_soon_hands_over_and_flush_waits() -> None:
    made = [mmap.mmap(-1, 4 * MIB, flags=PRIVATE) for _ in range(10)]
    futures = [release_soon(mapping) for mapping in made]
    flush()
    assert pending() == 0
    assert all(future.result().unmapped for future in futures)
    assert all(mapping.closed for mapping in made)
    with pytest.raises(ReleaseError, match="closed"):
        release_soon(made[0]).result()
    with pytest.raises(ReleaseError, match="max_stall_ns"):
        release_soon(made[0], max_stall_ns=0)


def test_a_full_queue_makes_the_caller_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from zaplock.release import in_background

    flush()
    monkeypatch.setattr(in_background, "BOUND", 0)
    mapping = mmap.mmap(-1, MIB, flags=PRIVATE)
    assert release_soon(mapping).done()
    assert mapping.closed


def test_async_leaves_the_loop_running(mapping: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release waits until the loop has turned ten times meanwhile: it would wait for ever."""
    turned, in_time = threading.Event(), list[bool]()
    real = syscalls.madvise

    def madvise(address: int, length: int, advice: int) -> int:
        in_time.append(turned.wait(60))
        return real(address, length, advice)

    async def both() -> Released:
        task = asyncio.ensure_future(release_async(mapping))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()
        turned.set()
        return await task

    monkeypatch.setattr(syscalls, "madvise", madvise)
    assert asyncio.run(both()).unmapped
    assert in_time
    assert all(in_time)


def test_a_forked_child_releases_what_its_parent_had_queued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The child has the parent's mappings and queue but not its worker, and must not hang."""
    from zaplock.release import in_background

    flush()
    monkeypatch.setattr(in_background._Worker, "has_thread", lambda self: True)
    mapping = mmap.mmap(-1, 2 * MIB, flags=PRIVATE)
    release_soon(mapping)
    assert pending() == 1
    child = os.fork()
    if child == 0:
        monkeypatch.undo()
        flush()
        os._exit(0 if mapping.closed and pending() == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    monkeypatch.undo()
    flush()
    assert mapping.closed


def test_a_child_forked_in_the_middle_frees_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's worker holds the mapping at the fork, in a thread that the child lacks."""
    flush()
    mapping = mmap.mmap(-1, 8 * MIB, flags=PRIVATE)
    mapping[:] = b"x" * len(mapping)
    start, length = marked(mapping), len(mapping)
    real, inside, forked = syscalls.madvise, threading.Event(), threading.Event()

    def madvise(address: int, length: int, advice: int) -> int:
        inside.set()
        forked.wait()
        return real(address, length, advice)

    monkeypatch.setattr(syscalls, "madvise", madvise)
    future = release_soon(mapping)
    inside.wait()
    child = os.fork()
    if child == 0:
        monkeypatch.undo()
        flush()
        left = is_there(start, length) and resident(start, length)
        os._exit(1 if left or pending() else 0)
    forked.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert future.result().unmapped


def test_what_waits_at_exit_is_flushed() -> None:
    import subprocess
    import sys

    story = (
        "import atexit, mmap, zaplock\n"
        "m = mmap.mmap(-1, 1 << 26)\n"
        "atexit.register(lambda: print(m.closed))\n"  # runs last: registered before the worker's
        "from zaplock.release import release_soon\n"
        "release_soon(m)\n"
    )
    done = subprocess.run([sys.executable, "-c", story], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_both_ways_to_ask_for_vmas_agree() -> None:
    raw = Raw(MIB)
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(raw.address), ctypes.c_size_t(PAGE), 1)
    beyond = mapped(MIB, raw.address + 2 * MIB)
    ends = raw.address - 16 * MIB, raw.address + 16 * MIB
    found = vmas_in(*ends)
    assert found == list(_read(*ends))
    assert [vma.start for vma in found] == [raw.address, raw.address + PAGE, beyond]
    release(raw.address, raw.length)
    release(beyond, MIB)


def test_pieces_follow_the_cost_and_never_outgrow_the_bound() -> None:
    pace = Pace(1_000_000)
    pace.learn(pace.length, 50_000)  # 98 ns a page
    assert pace.length == 4 * MIB
    for _ in range(10):
        pace.learn(pace.length, pace.length // PAGE * 98)
    assert 11 * MIB <= pace.length <= 14 * MIB  # a third of a millisecond
    for _ in range(20):
        pace.learn(pace.length, 1)  # an empty stretch
    assert pace.length // PAGE * 150 <= 1_000_000  # even if the next one is full
    for _ in range(20):
        pace.learn(pace.length, 10**9)
    assert pace.length == 256 << 10


def test_pieces_cover_a_range_once_and_keep_to_page_tables() -> None:
    seen: list[tuple[int, int]] = []
    start, end = 3 * PAGE, 64 * MIB + 5 * PAGE
    pieces(start, end, Pace(), lambda address, length: seen.append((address, length)))
    assert seen[0][0] == start
    assert sum(length for _, length in seen) == end - start
    edges = [address + length for address, length in seen]
    assert [address for address, _ in seen[1:]] == edges[:-1]
    assert all(edge % (2 * MIB) == 0 for edge in edges[:-1])
