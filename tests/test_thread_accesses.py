"""What a load or a store beside other threads' calls can give, looked at alone."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from functools import partial

import pytest
from test_oracle import needs_kernel

from zaplock.check.mutations import as_mutated, mutate, mutations_of
from zaplock.designs.linux import design_of
from zaplock.model.violations import Invariant
from zaplock.oracle import ops, thread_accesses
from zaplock.oracle.interleavings import Interleavings
from zaplock.oracle.ops import COUNTERS, FIGURES, Environment, Op
from zaplock.oracle.real import RealSide
from zaplock.oracle.thread_accesses import given, strange
from zaplock.oracle.thread_programs import PAGE, WINDOW
from zaplock.oracle.threaded import FORK_LOAD, ThreadedProgram, number_of

SIGSEGV, SIGBUS = -(11 << 16), -(7 << 16)
DONTNEED, FREE, DONTDUMP, GUARD_INSTALL = 4, 8, 16, 102
MAPPED = Op("mmap", (WINDOW, 4 * PAGE, 3, 0x32, -1, 0))
GUARDED = Op("madvise", (WINDOW, PAGE, GUARD_INSTALL))
LOADED, STORED = Op("load", (WINDOW,)), Op("store", (WINDOW,))
UNMAPPED = Op("munmap", (WINDOW, PAGE))
BEFORE = ops.store_tag(1)
"""What a store that is the second operation of the set-up writes."""

Threads = tuple[tuple[Op, ...], ...]


@pytest.fixture(scope="module")
def environment() -> Iterator[Environment]:
    real = RealSide()
    yield real.environment
    real.close()


def model_of(
    environment: Environment, *threads: tuple[Op, ...], setup: tuple[Op, ...] = (MAPPED, STORED)
) -> Interleavings:
    design = design_of(platform.release()).design
    return Interleavings(environment, design, ThreadedProgram(setup, threads))


def tag(thread: int, index: int) -> int:
    return ops.store_tag(number_of(thread, index))


@needs_kernel
def test_a_page_is_old_or_gone_beside_its_unmap(environment: Environment) -> None:
    model = model_of(environment, (UNMAPPED,), (LOADED,))
    assert given(model.whole, (1, 0)) == {BEFORE, SIGSEGV}


@needs_kernel
def test_who_has_seen_that_a_mapping_is_gone_may_still_read_it(environment: Environment) -> None:
    """The page goes after its mapping does; and a write to it then is lost, and no fault.

    What is read may be 0: the store has faulted a page in where a guard has zapped the first one.
    """
    model = model_of(environment, (UNMAPPED,), (GUARDED, LOADED), (STORED,))
    assert given(model.whole, (1, 1)) == {BEFORE, tag(2, 0), 0, SIGSEGV}
    assert given(model.whole, (2, 0)) == {0, SIGSEGV}
    assert not model.violations


@needs_kernel
def test_who_has_read_what_is_unmapped_may_read_it_again(environment: Environment) -> None:
    """Found by threads: the advice says already that nothing is mapped, and the page is there."""
    model = model_of(environment, (UNMAPPED,), (GUARDED, LOADED, LOADED))
    assert given(model.whole, (1, 2)) == {BEFORE, SIGSEGV}
    assert not model.violations


@needs_kernel
def test_a_fork_comes_in_where_a_guard_install_begins_anew(environment: Environment) -> None:
    """It lets go of the mapping then, whose page is gone, and not guarded yet: the child gets 0."""
    forked = Op(FORK_LOAD, (WINDOW,))
    model = model_of(environment, (forked,), (GUARDED,), (LOADED,))
    assert given(model.whole, (0, 0)) == {BEFORE, 0, SIGSEGV}
    assert model.explored()
    assert not model.violations


@needs_kernel
def test_who_maps_anew_has_waited_until_the_old_page_is_flushed(environment: Environment) -> None:
    """Both hold the mmap_lock: no CPU knows the old page any more when mmap has returned."""
    model = model_of(environment, (UNMAPPED,), (MAPPED, LOADED))
    assert given(model.whole, (1, 1)) == {0, SIGSEGV}


@needs_kernel
def test_a_write_by_an_old_translation_is_lost(environment: Environment) -> None:
    """What is in the page's place by then keeps its content."""
    watched = Op("uffd_register", (WINDOW, PAGE, 1))
    copied = Op("uffd_copy", (WINDOW, 0))
    dropped = Op("madvise", (WINDOW, PAGE, DONTNEED))
    setup = (MAPPED, STORED, watched)
    model = model_of(environment, (dropped,), (copied, STORED, LOADED), setup=setup)
    assert given(model.whole, (1, 2)) == {tag(1, 1), SIGBUS, tag(1, 0)}
    assert not model.violations


@needs_kernel
def test_a_mapping_may_be_watched_before_mmap_has_populated_it(environment: Environment) -> None:
    """Found by threads: then nothing is there, whoever looks gets SIGBUS, and mmap tells nobody."""
    populated = Op("mmap", (WINDOW, PAGE, 3, 0x8031, -1, 0))
    watched = Op("uffd_register", (WINDOW, PAGE, 1))
    model = model_of(environment, (populated,), (watched, LOADED))
    model.explored()
    assert given(model.whole, (1, 1)) == {BEFORE, 0, SIGBUS}
    assert not model.violations


@needs_kernel
def test_a_guard_does_not_keep_a_cpu_from_what_another_guard_takes_away(
    environment: Environment,
) -> None:
    """Found by threads: one has zapped and not flushed, the other finds it empty, and guards it."""
    model = model_of(environment, (GUARDED,), (GUARDED, STORED))
    model.explored()
    assert given(model.whole, (1, 1)) == {SIGSEGV, 0}
    assert not model.violations
    assert given(model_of(environment, (GUARDED, STORED)).whole, (0, 1)) == {SIGSEGV}


@needs_kernel
def test_what_is_to_be_guarded_is_emptied_as_often_as_it_takes(environment: Environment) -> None:
    stores = (STORED, LOADED, STORED, LOADED)
    model = model_of(environment, (GUARDED,), stores)
    assert given(model.whole, (1, 1)) == {tag(1, 0), 0, SIGSEGV}
    assert given(model.whole, (1, 3)) == {tag(1, 2), 0, SIGSEGV}


@needs_kernel
def test_a_child_looks_some_time_after_the_fork(environment: Environment) -> None:
    """What is shared may have changed by then."""
    shared = Op("mmap", (WINDOW, PAGE, 3, 0x31, -1, 0))
    model = model_of(environment, (Op(FORK_LOAD, (WINDOW,)),), (UNMAPPED,), setup=(shared, STORED))
    assert given(model.whole, (0, 0)) == {BEFORE, SIGSEGV}
    model = model_of(environment, (Op(FORK_LOAD, (WINDOW,)),), (STORED,), setup=(shared, STORED))
    assert given(model.whole, (0, 0)) == {BEFORE, tag(1, 0)}


@needs_kernel
def test_a_read_of_pages_may_read_what_it_has_written_itself(environment: Environment) -> None:
    """Page by page: what is stored over the first copy is copied on, to the third page, too."""
    setup = (Op("mmap", (WINDOW, 4 * PAGE, 3, 0x11, 1, PAGE)),)
    copied = Op("pread", (1, WINDOW, 3 * PAGE, 0))
    model = model_of(
        environment, (STORED, Op("load", (WINDOW + 2 * PAGE,))), (copied,), setup=setup
    )
    loaded = {outcome.results[0][1] for outcome in model.explored()}
    assert tag(0, 0) in loaded
    assert not model.violations


@needs_kernel
@pytest.mark.parametrize(("release", "late"), [("6.15", False), ("6.16", False), ("6.17", True)])
def test_a_locked_page_may_still_be_the_old_one_where_the_flush_comes_after_the_vmas_lock(
    environment: Environment, release: str, late: bool
) -> None:
    """Found by threads: MADV_DONTNEED has let go of the VMA when it flushes (6.17)."""
    zapped, locked = Op("madvise", (WINDOW, PAGE, DONTNEED)), Op("mlock2", (WINDOW, PAGE, 1))
    program = ThreadedProgram((MAPPED, STORED), ((zapped,), (LOADED, locked, LOADED)))
    model = Interleavings(environment, design_of(release).design, program)
    results = {outcome.results for outcome in model.explored()}
    assert not model.violations
    # Where it is locked first, MADV_DONTNEED gives -EINVAL.
    zapped_first = {thread for first, thread in results if first == (0,)}
    assert (BEFORE, 0, 0) in zapped_first
    assert ((BEFORE, 0, BEFORE) in zapped_first) == late


@needs_kernel
@pytest.mark.parametrize(("release", "late"), [("6.15", False), ("6.16", True), ("6.17", True)])
def test_who_has_written_to_a_page_marks_it_again_only_behind_the_flush(
    environment: Environment, release: str, late: bool
) -> None:
    """Found by threads: MADV_FREE flushes behind all VMAs (6.16), so a write is not noticed."""
    apart = Op("madvise", (WINDOW + PAGE, PAGE, DONTDUMP))
    freed, stored = Op("madvise", (WINDOW, 2 * PAGE, FREE)), Op("store", (WINDOW + PAGE,))
    setup = (Op("mmap", (WINDOW, 2 * PAGE, 3, 0x32, -1, 0)), apart)
    program = ThreadedProgram(setup, ((freed,), (STORED, stored, STORED)))
    model = Interleavings(environment, design_of(release).design, program)
    dirty = FIGURES.index("Private_Dirty")
    left = {tuple(vma.figures[dirty] for vma in one.after.vmas) for one in model.explored()}
    assert not model.violations
    assert {(4, 4), (4, 0), (0, 0)} <= left
    assert ((0, 4) in left) == late


@needs_kernel
def test_a_store_that_finds_another_page_than_it_has_seen_begins_anew(
    environment: Environment,
) -> None:
    """Found by threads: the mapping has its anon_vma by then, and may be read-only when it is back.

    So it stays accounted for (VM_ACCOUNT), though nobody has written to it, or the page is there.
    """
    setup = (Op("mmap", (WINDOW, PAGE, 0, 0x32, -1, 0)), Op("mprotect", (WINDOW, PAGE, 3)))
    closed = Op("mprotect", (WINDOW, PAGE, 1))
    model = model_of(environment, (STORED,), (LOADED, closed), setup=setup)
    left = {
        ("ac" in one.after.vmas[0].flags, one.after.counters[COUNTERS.index("RssAnon")])
        for one in model.explored()
        if one.results == ((SIGSEGV,), (0, 0))
    }
    assert left == {(False, 0), (True, 0), (True, 4)}
    assert not model.violations


@needs_kernel
def test_a_page_that_goes_before_its_mapping_is_still_told_of(environment: Environment) -> None:
    design = design_of(platform.release()).design
    mutant = mutate(design, mutations_of(design)["zap-before-detach"])
    program = ThreadedProgram(
        (MAPPED, STORED), ((UNMAPPED,), (LOADED,), (Op("mlock", (WINDOW + 2 * PAGE, PAGE)),))
    )
    zaps = Interleavings(environment, mutant, program, wrap=partial(as_mutated, mutant))
    zaps.explored()
    (found,) = zaps.violations
    assert found.invariant == Invariant.OLD_CONTENT_OR_SIGSEGV
    assert "load(0x101fc000) of thread 1 gave 0, in every order" in str(found)


@needs_kernel
def test_a_search_that_comes_to_its_limit_tells_of_nothing(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(environment, (UNMAPPED,), (LOADED,))
    assert strange(model.whole, (1, 0), {BEFORE, 77}) == ({77}, {BEFORE, SIGSEGV})
    monkeypatch.setattr(thread_accesses, "MOST_MOVES", 2)
    assert strange(model.whole, (1, 0), {BEFORE, 77})[0] == set()
