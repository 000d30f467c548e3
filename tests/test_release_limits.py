"""Memory that is not what it seems, few resources, and the last moments of interpreters."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from release_scenes import (
    MIB,
    PAGE,
    PRIVATE,
    is_there,
    marked,
    private,
)

from zaplock import buffers
from zaplock.release import (
    ReleaseError,
    release,
    release_soon,
    syscalls,
    vmas,
)
from zaplock.release.pace import Pace
from zaplock.release.pinned import address_of
from zaplock.release.zap import zap


def protect(thing: Any, length: int, protection: int) -> None:
    protected = ctypes.CDLL(None).mprotect(
        ctypes.c_void_p(address_of(thing)), ctypes.c_size_t(length), protection
    )
    assert protected == 0


@pytest.mark.parametrize("kernel", ["with MADV_POPULATE_WRITE", "before 5.14"])
@pytest.mark.parametrize("protection", [0, 1])
def test_memory_that_cannot_be_written_is_not_populated(
    monkeypatch: pytest.MonkeyPatch, kernel: str, protection: int
) -> None:
    if kernel == "before 5.14":
        monkeypatch.setattr(syscalls, "madvise", lambda *_arguments: errno.EINVAL)
    mapping = private()
    view = np.frombuffer(mapping, np.uint8)
    protect(mapping, MIB, protection)
    with pytest.raises(ReleaseError, match="not all writable"):
        buffers.populate(view)
    protect(mapping, MIB, 3)
    buffers.populate(view)
    assert (view == ord("x")).all()


def test_populating_on_old_kernels_loses_no_write_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(syscalls, "madvise", lambda *_arguments: errno.EINVAL)
    made = buffers.empty(MIB, np.uint32)
    stop = threading.Event()
    written = []

    def count() -> None:
        value = 0
        while not stop.is_set():
            value += 1
            made[:: PAGE // 4] = value
            if made[0] != value:
                written.append(value)

    thread = threading.Thread(target=count)
    thread.start()
    for _ in range(20):
        buffers.populate(made)
    stop.set()
    thread.join()
    assert not written


def test_addresses_of_somebody_known_are_refused_by_name() -> None:
    libc = ctypes.CDLL(None)
    text = ctypes.cast(libc.malloc, ctypes.c_void_p).value or 0
    data = ctypes.addressof(ctypes.c_char.in_dll(libc, "stdout"))
    for address, name in [
        (text, r"libc.so.6"),
        (data, r"libc.so.6"),
        (id(object), "python"),  # static types of the interpreter
        (id(len("x" * 9) * "y"), "small objects"),
    ]:
        with pytest.raises(ReleaseError, match=name):
            release(address // PAGE * PAGE, PAGE)


def test_the_stacks_of_threads_are_refused() -> None:
    ready, stop = threading.Event(), threading.Event()

    def rest() -> None:
        ready.set()
        stop.wait()

    thread = threading.Thread(target=rest)
    thread.start()
    ready.wait()
    (own,) = vmas.vmas_in(thread.ident or 0, (thread.ident or 0) + 1)
    top = (thread.ident or 0) // PAGE * PAGE + PAGE
    try:
        for start in (own.start, top - 16 * PAGE, top - PAGE):
            with pytest.raises(ReleaseError, match="the stack of a thread"):
                release(start, PAGE)
        beside = private(MIB)  # may lie right below a stack, or above
        assert release(address_of(beside), MIB, unmap=False).length == MIB
    finally:
        stop.set()
        thread.join()


def test_a_sealed_page_is_refused_before_anything_is_lost() -> None:
    number = 462
    story = f"""
import ctypes, mmap
from zaplock.release import ReleaseError, release
from zaplock.release.pace import Pace
from zaplock.release.pinned import address_of
from zaplock.release.zap import zap
m = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m[:] = b"x" * len(m)
start = address_of(m)
sealed = ctypes.CDLL(None, use_errno=True).syscall(
    {number}, ctypes.c_void_p(start + (1 << 19)), ctypes.c_size_t(4096), ctypes.c_ulong(0))
if sealed:
    print("no mseal")
else:
    for arguments in [(m,), (start, len(m))]:
        try:
            release(*arguments)
        except ReleaseError as error:
            print("sealed" in str(error), m[:] == b"x" * len(m))
    print(release(m, unmap=False).left, m[5])
"""
    done = subprocess.run([sys.executable, "-c", story], capture_output=True, text=True)
    if done.stdout == "no mseal\n":
        pytest.skip("no mseal before Linux 6.10")
    assert (done.stdout, done.stderr) == ("True True\nTrue True\n0 0\n", "")


@contextmanager
def no_descriptors() -> Iterator[None]:
    """No file can be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_without_descriptors_what_is_owned_goes_and_addresses_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unheard: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unheard.append)
    mapping, queued, whole = private(), private(), buffers.empty(4 * MIB, np.uint8, populate=True)
    whole[:] = 4
    start = marked(mapping)
    with no_descriptors():
        with pytest.raises(ReleaseError, match="Too many open files"):
            release(start, len(mapping))
        kept = mapping[5]
        done = release(mapping)
        later = release_soon(queued).result()
        grown = buffers.resize(whole, 8 * MIB)
        del whole
    assert kept == ord("x")
    assert done.unmapped
    assert later.unmapped
    assert not is_there(start, 4 * MIB)
    assert (grown[: 4 * MIB] == 4).all()
    assert not unheard


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Eight huge pages may be had from the pool for a while."""
    pool = Path("/proc/sys/vm/nr_overcommit_hugepages")
    before = pool.read_text()
    try:
        pool.write_text(str(max(8, int(before))))
        mmap.mmap(-1, 16 * MIB, flags=PRIVATE | 0x40000).close()
        yield
    except OSError:
        pytest.skip("no hugetlb pages can be had here")
    finally:
        with suppress(OSError):
            pool.write_text(before)


@pytest.mark.usefixtures("huge_pages")
def test_what_a_huge_page_keeps_is_counted() -> None:
    whole = buffers.empty(8 * MIB, np.uint8, huge="hugetlb", populate=True)
    assert release(whole, max_stall_ns=100_000).left == 0
    assert not whole.any()
    whole[:] = 1
    done = release(whole[PAGE : 5 * MIB])  # one whole huge page, and parts of two
    assert done.left == done.length - 2 * MIB
    assert not whole[2 * MIB : 4 * MIB].any()
    assert whole[: 2 * MIB].all()
    assert whole[4 * MIB :].all()
    whole[:] = np.arange(8 * MIB, dtype=np.uint32).astype(np.uint8)
    copy = whole.copy()
    assert (buffers.resize(whole, 4 * MIB) == copy[: 4 * MIB]).all()


SUB = """
import test.support
story = '''
import mmap
import os
from zaplock import buffers
from zaplock.release import release_soon, flush
m = mmap.mmap(-1, 1 << 22, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
assert release_soon(m).result().unmapped and m.closed
flush()
'''
assert test.support.run_in_subinterp(story) == 0
import _xxsubinterpreters as interpreters
for isolated in (True, False):
    one = interpreters.create(isolated=isolated)
    interpreters.run_string(one, story)
    interpreters.destroy(one)
print("whole")
"""


def test_subinterpreters_release_without_a_thread() -> None:
    pytest.importorskip("_xxsubinterpreters")
    done = subprocess.run([sys.executable, "-c", SUB], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("whole\n", 0), done.stderr


EARLY = """
import atexit
def late():
    held.clear()
    release_soon(mapping)
    flush()
atexit.register(late)  # runs after zaplock's own flush
import mmap
import os
from zaplock import buffers
from zaplock.release import release_soon, flush
held = [buffers.empty(1 << 22, "u1", populate=True, background=True) for _ in range(5)]
mapping = mmap.mmap(-1, 1 << 22, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
release_soon(mmap.mmap(-1, 1 << 22))
del held[0]
"""


def test_what_ends_after_the_last_flush_is_released_by_who_drops_it() -> None:
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True)
        assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)


@pytest.mark.parametrize("fails_at", [None, 0, 2])
def test_pieces_are_whole_huge_pages_and_what_stays_is_counted(
    monkeypatch: pytest.MonkeyPatch, fails_at: int | None
) -> None:
    """As in a pool of huge pages; before 5.18 the kernel refuses them."""
    seen: list[tuple[int, int]] = []

    def madvise(address: int, length: int, _advice: int) -> int:
        if len(seen) == fails_at:
            return errno.EINVAL
        seen.append((address, length))
        return 0

    monkeypatch.setattr(syscalls, "madvise", madvise)
    monkeypatch.setattr(syscalls, "munlock", lambda *_arguments: errno.EINVAL)
    start, end = 100 * MIB + PAGE, 120 * MIB + 5 * PAGE
    pool = [vmas.MappedVma(98 * MIB, 130 * MIB, "/anon_hugepage (deleted)", 2 * MIB)]
    left = zap(start, end, pool, Pace(100_000))
    assert all(address % (2 * MIB) == length % (2 * MIB) == 0 for address, length in seen)
    assert left == end - start - sum(length for _, length in seen)
    if fails_at is None:
        assert sum(length for _, length in seen) == 18 * MIB


def test_asking_whose_an_address_is_waits_for_nobody() -> None:
    """Under a userfaultfd whoever touches a page that is missing waits for it to be provided."""
    number = 323 if os.uname().machine == "x86_64" else 282
    story = f"""
import ctypes, fcntl, struct
from zaplock.measure import syscalls
from zaplock.release import release
descriptor = ctypes.CDLL(None).syscall({number}, 0)
if descriptor < 0:
    print("not allowed")
else:
    fcntl.ioctl(descriptor, 0xC018AA3F, bytearray(struct.pack("<3Q", 0xAA, 0, 0)))
    start = syscalls.mmap(1 << 22)
    fcntl.ioctl(descriptor, 0xC020AA00, bytearray(struct.pack("<4Q", start, 1 << 22, 1, 0)))
    print(release(start, 1 << 22).unmapped)
"""
    done = subprocess.run([sys.executable, "-c", story], capture_output=True, text=True)
    if done.stdout == "not allowed\n":
        pytest.skip("userfaultfd is not allowed here")
    assert (done.stdout, done.stderr) == ("True\n", "")
