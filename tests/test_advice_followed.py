"""Follow each piece of advice on real memory: it must never cost a byte that the call keeps.

For every advice of madvise, on private, shared and file memory: one mapping gets the plain call,
its twin what `zaplock advise` says about a recording of such a call; then their pages are compared.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import zaplock
from zaplock.advise.advice import Advice
from zaplock.advise.advice_by_kind import FREEING_ADVICE, Means
from zaplock.advise.calls import from_recording
from zaplock.advise.costs import Costs
from zaplock.trace.analysis import analyse
from zaplock.trace.handwritten import Log
from zaplock.trace.madvise import ADVICE
from zaplock.trace.summary import summarise

MS = 1_000_000
LENGTH = 4 << 20
PIECE = 2 << 20
HARMFUL = (100, 101)
"""HWPOISON and SOFT_OFFLINE take pages from the machine: they are advised on, not tried."""
COSTS = Costs(
    LENGTH, {"munmap": 5 * MS, "madvise": 5 * MS, "MAP_POPULATE": 5 * MS, "mprotect": 5 * MS}
)
MEMORY = ("private", "shared", "file")


def advice_on(call: str, detail: int, length: int = LENGTH) -> Advice:
    """Ask for advice on a recording in which this call stalled somebody for 20 ms."""
    log = Log()
    log.task(1, "worker", 1, "server")
    log.task(2, "victim", 1, "server")
    log.begin(10 * MS, tid=1, op=call, address=1 << 40, length=length, detail=detail)
    log.asked(10 * MS + 1, tid=1, mm=7, write=True)
    log.acquired(10 * MS + 2, tid=1, mm=7, write=True)
    log.asked(11 * MS, tid=2, mm=7, write=True)
    log.released(31 * MS, tid=1, mm=7, write=True)
    log.end(31 * MS + 1, tid=1, op=call)
    log.acquired(31 * MS + 2, tid=2, mm=7, write=True)
    told = from_recording(summarise(analyse(log.events(), "6.18")), COSTS, least_ns=MS)
    (found,) = (one for one in told.advice if one.seen)
    return found


def content() -> bytes:
    return b"".join(bytes([page % 251 + 1]) * 4096 for page in range(LENGTH // 4096))


def memory(kind: str) -> Iterator[mmap.mmap]:
    """Map memory of a kind twice, each with live data on every page.

    Both begin at a multiple of 2 MiB: of other shared memory the kernel makes no huge pages, and
    where it puts the one is where it need not put the other.
    """
    for _ in range(2):
        passed_over = []
        while beyond := address_of(made := mapped(kind)) % PIECE:
            passed_over += [made, mmap.mmap(-1, beyond)]  # what comes next lies below
        made[:] = content()
        yield made


def mapped(kind: str) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE if kind == "private" else mmap.MAP_SHARED
    if kind != "file":
        return mmap.mmap(-1, LENGTH, flags=flags | mmap.MAP_ANONYMOUS)
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), LENGTH)
        return mmap.mmap(file.fileno(), LENGTH, flags=flags)


def call_plainly(made: mmap.mmap, number: int) -> bool:
    """Say whether this kernel knows the advice for such memory."""
    try:
        made.madvise(number)
    except OSError:
        return False
    return True


def follow(advice: Advice, made: mmap.mmap, number: int) -> None:
    """Do what the advice says instead of the plain call."""
    if advice.means is Means.RELEASE:
        zaplock.release(made, unmap=False)
    elif advice.means is Means.PIECES:
        by_pieces(made, number)
    else:  # the same call, less often
        assert advice.means is Means.ONCE
        made.madvise(number)


def by_pieces(made: mmap.mmap, number: int, start: int = 0, end: int = LENGTH) -> None:
    for at in range(start, end, PIECE):
        made.madvise(number, at, min(PIECE, end - at))


def pages(made: mmap.mmap) -> bytes | None:
    """Read all pages by process_vm_readv's way; None where they may not be read (guards)."""
    try:
        with open("/proc/self/mem", "rb", buffering=0) as mem:
            return os.pread(mem.fileno(), LENGTH, address_of(made))
    except OSError:
        return None


def address_of(made: mmap.mmap) -> int:
    import ctypes

    view = (ctypes.c_char * LENGTH).from_buffer(made)
    try:
        return ctypes.addressof(view)
    finally:
        del view


@pytest.mark.parametrize("kind", MEMORY)
@pytest.mark.parametrize("number", [one for one in ADVICE if one not in HARMFUL])
def test_followed_advice_leaves_what_the_call_leaves(number: int, kind: str) -> None:
    advice = advice_on("madvise", number)
    plain, followed = memory(kind)
    if not call_plainly(plain, number):
        pytest.skip(f"{ADVICE[number]} is not for {kind} memory on this kernel")
    follow(advice, followed, number)
    after, instead = pages(plain), pages(followed)
    if ADVICE[number] == "MADV_FREE":
        assert instead is not None
        assert set(instead) <= {0} | set(content())
    else:
        assert instead == after
    if number not in (*FREEING_ADVICE, 9, 102):
        assert instead == content(), "live data were lost"


def huge_bytes() -> int:
    """Return how much of this process's memory is mapped by huge pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kinds = ("AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:")
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(kinds))


def test_only_pieces_between_multiples_of_2_mib_are_collapsed() -> None:
    """As the advice says; and no others, though the kernel reports success for them, too."""
    advice, number = advice_on("madvise", 25), 25
    assert advice.means is Means.PIECES
    assert "from one multiple of 2 MiB to another" in advice.change
    made, _ = memory("shared")  # of which nobody else makes huge pages
    before = huge_bytes()
    try:
        by_pieces(made, number, PIECE // 2, LENGTH - PIECE // 2)
        assert huge_bytes() == before
        by_pieces(made, number)
    except OSError as error:
        pytest.skip(f"no MADV_COLLAPSE here: {error}")
    assert huge_bytes() == before + LENGTH
    assert pages(made) == content()


@pytest.mark.parametrize("number", ADVICE)
def test_only_advice_that_frees_is_answered_with_a_release(number: int) -> None:
    found = advice_on("madvise", number)
    frees = number in FREEING_ADVICE
    assert (found.means is Means.RELEASE) == frees
    assert ("zaplock.release" in found.change) == frees
    assert ("MADV_DONTNEED" in found.change) == frees


@pytest.mark.parametrize("number", [*FREEING_ADVICE, 20, 99, -1])
def test_foreign_ranges_and_unknown_advice_are_never_released(number: int) -> None:
    for found in (advice_on("process_madvise", number), advice_on("madvise", 1 << 40)):
        assert found.means is not Means.RELEASE
        assert "release" not in found.change


def test_only_the_tail_of_a_shrinking_mremap_is_given_back() -> None:
    shrinks = advice_on("mremap", LENGTH // 2)
    assert shrinks.means is Means.RELEASE
    assert "cut off only" in shrinks.change
    for new in (LENGTH, 2 * LENGTH):
        moves = advice_on("mremap", new)
        assert moves.means is Means.NONE
        assert "release" not in moves.change


def test_a_range_is_empty_before_it_is_unmapped() -> None:
    """munmap's advice: give back, then unmap; nothing else is touched."""
    assert advice_on("munmap", 0).means is Means.RELEASE
    beside, goes = memory("private")
    assert zaplock.release(goes).unmapped
    assert pages(beside) == content()


def test_populating_by_pieces_keeps_content() -> None:
    assert advice_on("mmap", 0x8022).means is Means.POPULATE
    plain, followed = memory("private")
    array = zaplock.buffers.empty((LENGTH,), "u1")
    array[:] = 7
    zaplock.buffers.populate(array)
    assert bytes(array) == b"\x07" * LENGTH
    assert pages(plain) == pages(followed) == content()


def test_protection_by_pieces_ends_as_one_call_does() -> None:
    import ctypes

    assert advice_on("mprotect", 1).means is Means.PIECES
    (made, _) = memory("private")
    start, libc = address_of(made), ctypes.CDLL(None, use_errno=True)
    for at in range(start, start + LENGTH, PIECE):
        assert libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(PIECE), 1) == 0
    assert pages(made) == content()
    assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(LENGTH), 3) == 0
