"""What is released is owned, and stays where it is to the last page; all else is refused."""

from __future__ import annotations

import array
import ctypes
import errno
import gc
import io
import mmap
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zaplock import buffers
from zaplock.kernel import syscalls as kernel
from zaplock.release import (
    BusyError,
    ExportedError,
    ReleaseError,
    flush,
    pending,
    release,
    release_soon,
    soon,
    syscalls,
    vmas,
)
from zaplock.release.claims import nothing_is_claimed
from zaplock.release.pinned import address_of

PAGE = mmap.PAGESIZE
MIB = 1 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def private(length: int = 4 * MIB) -> mmap.mmap:
    made = mmap.mmap(-1, length, flags=PRIVATE)
    made[:] = b"x" * length
    return made


def others(nr: int = 16) -> list[np.ndarray[Any, Any]]:
    """Allocate as somebody else would: the kernel gives away whatever addresses are free."""
    return [np.full(MIB // 4, 7, np.uint8) for _ in range(nr)]


@pytest.fixture
def segment() -> Iterator[SharedMemory]:
    made = SharedMemory(create=True, size=2 * MIB)
    made.buf[:] = b"z" * made.size
    yield made
    made.unlink()


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nobody takes jobs from the queue until the patch is undone."""
    new_worker()
    monkeypatch.setattr(soon._Worker, "has_thread", lambda self: True)
    yield monkeypatch
    monkeypatch.undo()
    flush()
    assert nothing_is_claimed()


def new_worker() -> None:
    """Have a worker without a thread; the old one's ends."""
    flush()
    before, soon._worker = soon._worker, soon._Worker(alone=False)
    before.thread = None
    before.wake.put(None)


def work(no_worker: pytest.MonkeyPatch) -> None:
    """Have the queue worked through."""
    no_worker.undo()
    flush()


# Mappings that move


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


def test_what_is_being_released_is_not_resized(no_worker: pytest.MonkeyPatch) -> None:
    whole = buffers.empty(4 * MIB, np.uint8)
    whole[:] = 5
    done = release_soon(whole[MIB : 2 * MIB])
    with pytest.raises(BusyError):
        buffers.resize(whole, MIB)
    assert (whole == 5).all()
    work(no_worker)
    assert done.result().length == MIB


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


# Whatever is queued is held in place


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
        owner += type(owner)(*["B"] * isinstance(owner, array.array), b"y" * 64 * MIB)


@pytest.mark.parametrize("kind", list(owners()))
@pytest.mark.parametrize("view", list(views(bytearray(4 * MIB))))
def test_the_owner_of_a_queued_view_stays(
    no_worker: pytest.MonkeyPatch, kind: str, view: str
) -> None:
    owner = owners()[kind]()
    done = release_soon(views(owner)[view])
    gc.collect()
    assert not done.done(), done.exception()
    with pytest.raises(BufferError):
        end(owner)
    work(no_worker)
    assert done.result().length >= 2 * MIB - 2 * PAGE or "array of" in view
    end(owner)  # and not a moment longer


def test_a_queued_owner_cannot_be_closed_or_released_again(
    no_worker: pytest.MonkeyPatch, segment: SharedMemory
) -> None:
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
    work(no_worker)
    assert first.result().unmapped
    assert second.result().unmapped


def test_shared_memory_in_the_form_of_the_manual_stays_while_queued(
    no_worker: pytest.MonkeyPatch, segment: SharedMemory
) -> None:
    view = np.ndarray((segment.size,), np.uint8, buffer=segment.buf)
    done = release_soon(view)
    del view
    with pytest.raises(BufferError):
        segment.close()
    work(no_worker)
    assert done.result().length == segment.size
    segment.close()


def test_an_export_made_while_queued_is_seen(no_worker: pytest.MonkeyPatch) -> None:
    mapping = private()
    done = release_soon(mapping)
    view = memoryview(mapping)
    work(no_worker)
    assert isinstance(done.exception(), ExportedError)
    assert view[5] == ord("x")


def test_a_view_whose_owner_has_moved_is_refused() -> None:
    owner = bytearray(b"x" * MIB)
    view = np.ndarray((MIB,), np.uint8, buffer=owner)  # no export: bytearray may move
    owner.extend(b"y" * 64 * MIB)
    neighbours = others()
    with pytest.raises(ReleaseError, match="points outside of the bytearray"):
        release(view)
    assert all((one == 7).all() for one in neighbours)


# Jobs that can't be queued


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_a_job_whose_thread_cannot_start_is_not_left_behind(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    new_worker()

    def start(self: threading.Thread) -> None:
        raise error

    monkeypatch.setattr(threading.Thread, "start", start)
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
    assert ended.wait(30)
    assert second.closed


# A forked child


def in_child(story: Callable[[], bool]) -> None:
    """Run a story in a forked child, which must end by itself and well."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if story() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_never_releases_again_what_is_done() -> None:
    """In a callback the job is done but not yet taken from the queue; its addresses are free."""
    flush()
    mapping, results, ended = private(8 * MIB), [], threading.Event()
    start = address_of(mapping)

    def fork(_future: object) -> None:
        stranger = mmap.mmap(-1, 8 * MIB, flags=PRIVATE)
        stranger[:] = b"s" * len(stranger)
        child = os.fork()
        if child == 0:
            flush()
            same = address_of(stranger) == start
            os._exit(0 if same and stranger[:] == b"s" * len(stranger) and not pending() else 1)
        results.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        ended.set()

    release_soon(mapping).add_done_callback(fork)
    del mapping
    assert ended.wait(30)
    assert results == [0]


def test_a_child_leaves_alone_what_it_cannot_show_to_own(no_worker: pytest.MonkeyPatch) -> None:
    excluded, inherited, raw = private(8 * MIB), private(8 * MIB), mapped(8 * MIB)
    excluded.madvise(mmap.MADV_DONTFORK)
    start = address_of(excluded)
    futures = [release_soon(excluded), release_soon(inherited), release_soon(raw, 8 * MIB)]

    def story() -> bool:
        stranger = mapped(8 * MIB, start)  # lives where the child has a hole
        work(no_worker)
        told = [future.exception(30) for future in futures]
        return (
            ctypes.string_at(stranger, 8 * MIB) == b"s" * 8 * MIB
            and ctypes.string_at(raw, 8 * MIB) == b"s" * 8 * MIB
            and inherited.closed
            and [error is None for error in told] == [False, True, False]
            and nothing_is_claimed()
        )

    in_child(story)
    excluded.madvise(mmap.MADV_DOFORK)
    work(no_worker)
    assert all(future.result().unmapped for future in futures)


def mapped(length: int, address: int = 0) -> int:
    """Map memory by the system call alone, at an address where nothing is, and fill it."""
    start = kernel.mmap(length, flags=PRIVATE | bool(address) * 0x100000, address=address)
    ctypes.memset(start, ord("s"), length)
    return start


def test_a_child_forked_behind_pythons_back_has_no_jobs(no_worker: pytest.MonkeyPatch) -> None:
    """No hook runs in it: it is known by its process id."""
    mapping = private()
    release_soon(mapping)
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        work(no_worker)
        flush()
        os._exit(0 if pending() == 0 and mapping[5] == ord("x") and nothing_is_claimed() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# What owns the memory can't be shown


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
        "a base without an end": (endless, "stands on a Itself"),
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


def test_pil_images_and_other_strange_arrays_are_refused() -> None:
    image = pytest.importorskip("PIL.Image").new("RGB", (2000, 2000))
    with pytest.raises(ReleaseError, match="no memory to release"):
        release(image)


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


# Shared memory


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


# Populating


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


# Addresses


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
from zaplock.release.pinned import address_of
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


# Few resources


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
    start = address_of(mapping)
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
    assert not syscalls.is_mapped(start, PAGE)
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


def test_a_block_leaves_nothing_behind() -> None:
    for nr_bytes in (1, 10_000, PAGE, 3 * MIB + 5):
        with buffers.borrowed(nr_bytes, np.uint8) as lent:
            lent[:] = 9
        assert not lent.any()


# The interpreter's ends


SUB = """
import test.support
story = '''
import mmap
from zaplock import buffers
from zaplock.kernel import syscalls as kernel
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
    done = subprocess.run([sys.executable, "-c", SUB], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("whole\n", 0), done.stderr


EARLY = """
import atexit
def late():
    held.clear()
    release_soon(mapping)
    flush()
atexit.register(late)  # runs after zaplock's own flush
import mmap
from zaplock import buffers
from zaplock.kernel import syscalls as kernel
from zaplock.release import release_soon, flush
held = [buffers.empty(1 << 22, "u1", populate=True, background=True) for _ in range(5)]
mapping = mmap.mmap(-1, 1 << 22, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
release_soon(mmap.mmap(-1, 1 << 22))
del held[0]
"""


def test_what_ends_after_the_last_flush_is_released_by_who_drops_it() -> None:
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, timeout=60)
        assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)
