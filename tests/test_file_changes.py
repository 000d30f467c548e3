"""Files in memory that somebody cuts, punches or fills while others fault, walk and merge."""

from __future__ import annotations

import platform
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from test_oracle import needs_kernel

from zaplock import AddressSpace
from zaplock.advice import MADV_DONTNEED, MADV_POPULATE_WRITE, MADV_REMOVE
from zaplock.designs.linux import design_of
from zaplock.engines.sequential import run
from zaplock.model.file_changes import begin_change, end_change
from zaplock.model.flags import MAP_PRIVATE, MAP_SHARED, PAGE_SIZE
from zaplock.model.step import Step, WaitStep
from zaplock.oracle.interleavings import Interleavings
from zaplock.oracle.locked_pages import lock_pages, present_pages
from zaplock.oracle.ops import Op, store_tag
from zaplock.oracle.thread_campaign import ThreadBench
from zaplock.oracle.thread_programs import PAGE, WINDOW
from zaplock.oracle.threaded import ThreadedOutcome, ThreadedProgram
from zaplock.protocols.madvise import madvise
from zaplock.protocols.mlock import mlock
from zaplock.protocols.rmap import truncate
from zaplock.protocols.uprobes import BREAKPOINT, uprobe_register

PUNCHED = Op("madvise", (WINDOW, PAGE, MADV_REMOVE))


class Waiting:
    """A call that is taken step by step up to where it has to wait."""

    def __init__(self, space: AddressSpace, call: Coroutine[Any, Any, int]) -> None:
        self.space, self.call = space, call
        self.step: Step[Any] | None = None
        self.result: int | None = None
        self.go_on()

    def go_on(self) -> None:
        """Go on to the next wait, or to the end."""
        machine, task = self.space.machine, self.space.task
        step, self.step, value = self.step, None, None
        try:
            while True:
                if step is not None:
                    if isinstance(step, WaitStep) and not step.ready(machine, task, *step.args):
                        self.step = step
                        return
                    value = step.run(machine, task, *step.args)
                step = self.call.send(value)
        except StopIteration as end:
            self.result = end.value

    @property
    def holds(self) -> set[str]:
        """The locks that are held while it waits."""
        machine = self.space.machine
        classes = {lock[0] for lock, sem in machine.locks.data.items() if sem.readers or sem.writer}
        return classes | ({"VMA"} if any(machine.vma_readers.data.values()) else set())


def do(space: AddressSpace, step: Step[None]) -> None:
    step.run(space.machine, space.task, *step.args)


def shared_memory(release: str, pages: int) -> tuple[AddressSpace, int, int]:
    """Map a file in memory: the address space, where, and the file."""
    space = AddressSpace(design_of(release).design)
    file = space.file(pages * PAGE_SIZE)
    return space, space.mmap(pages * PAGE_SIZE, flags=MAP_SHARED, file=file), file


# Faults in a hole


@pytest.mark.parametrize("release", ["4.19", "5.10", "6.6", "6.18", "7.3"])
def test_a_fault_in_a_hole_waits_under_no_lock(release: str) -> None:
    space, at, file = shared_memory(release, 1)
    do(space, begin_change(file, 0, 1))
    fault = Waiting(space, space.design.page_fault(space.cx, at, True))
    assert fault.step is not None
    assert fault.step.channel == ("punch", file)
    assert not fault.holds
    do(space, end_change(file))
    fault.go_on()
    assert fault.result == 0
    space.write(at, 7)
    assert space.read(at) == 7
    space.check()


@pytest.mark.parametrize("release", ["5.10", "6.18"])
def test_who_has_let_go_once_waits_in_the_hold(release: str) -> None:
    """First for the punch that it has met, under the mmap_lock then for the next ones."""
    space, at, file = shared_memory(release, 1)
    held = []
    do(space, begin_change(file, 0, 1))
    fault = Waiting(space, space.design.page_fault(space.cx, at, True))
    while fault.result is None:
        held.append(fault.holds)
        do(space, end_change(file))
        do(space, begin_change(file, 0, 1))
        fault.go_on()
    with_vma_lock = [set()] if space.design.vma_locks else []
    assert held == [*with_vma_lock, set(), {"mmap_lock"}]
    assert fault.result == 0  # and the access comes again
    do(space, end_change(file))
    space.write(at, 7)
    space.check()


def test_a_fault_beside_the_hole_does_not_wait() -> None:
    space, at, file = shared_memory("6.18", 3)
    do(space, begin_change(file, 1, 2))
    for page in (0, 2):
        space.write(at + page * PAGE_SIZE, 7)
    do(space, end_change(file))
    space.check()


@pytest.mark.parametrize("release", ["6.1", "6.18"])
@pytest.mark.parametrize("populates", [madvise, mlock])
def test_what_populates_waits_under_no_lock_and_goes_on_from_there(
    release: str, populates: Any
) -> None:
    space, at, file = shared_memory(release, 3)
    do(space, begin_change(file, 1, 2))
    more = (MADV_POPULATE_WRITE,) if populates is madvise else ()
    call = Waiting(space, populates(space.cx, at, 3 * PAGE_SIZE, *more))
    assert call.step is not None
    assert call.step.channel == ("punch", file)
    assert not call.holds
    assert space.counters()["rss_shmem"] == 1
    do(space, end_change(file))
    call.go_on()
    assert call.result == 0
    assert space.counters()["rss_shmem"] == 3
    space.check()


def test_a_uprobe_waits_until_the_hole_is_punched() -> None:
    space = AddressSpace(design_of("6.18").design)
    file = space.file(PAGE_SIZE)
    at = space.mmap(PAGE_SIZE, file=file, flags=MAP_PRIVATE)
    do(space, begin_change(file, 0, 1))
    call = Waiting(space, uprobe_register(space.cx, file, 0))
    assert call.result is None
    assert call.holds == {"mmap_lock"}
    do(space, end_change(file))
    call.go_on()
    assert call.result == 1
    assert space.read(at) == BREAKPOINT


def test_who_cuts_a_file_waits_until_its_hole_is_punched() -> None:
    space, _, file = shared_memory("6.18", 3)
    do(space, begin_change(file, 1, 2))
    call = Waiting(space, truncate(space.cx, file, 0))
    assert call.result is None
    do(space, end_change(file))
    call.go_on()
    assert call.result == 0
    assert run(space.machine, space.task, truncate(space.cx, file, PAGE_SIZE)) == 0


# Every interleaving


@pytest.fixture(scope="module")
def bench() -> Iterator[ThreadBench]:
    both = ThreadBench(design_of(platform.release()).design)
    yield both
    both.close()


def explored(bench: ThreadBench, setup: tuple[Op, ...], *threads: Op) -> set[ThreadedOutcome]:
    """Look at every interleaving of threads that do one thing each: no rule is broken."""
    program = ThreadedProgram(setup, tuple((op,) for op in threads))
    model = Interleavings(bench.real.environment, bench.design, program)
    reached = model.explored()
    assert not model.violations
    assert model.judge(next(iter(reached))) != "not known"
    return reached


@needs_kernel
def test_a_page_that_is_mapped_around_a_fault_goes_with_its_hole(bench: ThreadBench) -> None:
    """A fault may map it while it is in the page cache still: it is taken out again."""
    setup = (Op("mmap", (WINDOW, 2 * PAGE, 3, 0x31, -1, 0)), Op("store", (WINDOW,)))
    reached = explored(bench, setup, PUNCHED, Op("load", (WINDOW,)))
    old = {outcome for outcome in reached if outcome.results[1] == (store_tag(1),)}
    assert old
    assert reached - old
    assert not any(present_pages(outcome.after) for outcome in old)


@needs_kernel
def test_a_page_that_is_filled_where_one_was_dropped_goes_too(bench: ThreadBench) -> None:
    """Found by threads: UFFDIO_COPY comes between the two times that a hole is looked through."""
    setup = (Op("mmap", (WINDOW, PAGE, 3, 0x8011, 1, 0)), Op("uffd_register", (WINDOW, PAGE, 1)))
    reached = explored(bench, setup, PUNCHED, Op("uffd_copy", (WINDOW, 0)))
    copied = {outcome for outcome in reached if outcome.results[1] == (0,)}
    assert {bool(present_pages(outcome.after)) for outcome in copied} == {True, False}


@needs_kernel
@pytest.mark.parametrize(
    "merges",
    [
        Op("munlockall", ()),
        Op("mprotect", (WINDOW, 2 * PAGE, 3)),
        Op("uffd_unregister", (WINDOW, 4 * PAGE)),
    ],
    ids=str,
)
@pytest.mark.parametrize("walks", [PUNCHED, Op("ftruncate", (1, 0))], ids=str)
def test_a_walk_of_the_rmap_meets_no_vma_that_has_merged(
    bench: ThreadBench, merges: Op, walks: Op
) -> None:
    """Found by threads, as a use of a VMA that was freed."""
    parts = {
        "munlockall": Op("mlock", (WINDOW + PAGE, PAGE)),
        "mprotect": Op("mprotect", (WINDOW, 2 * PAGE, 1)),
        "uffd_unregister": Op("uffd_register", (WINDOW + PAGE, 2 * PAGE, 1)),
    }
    setup = (Op("mmap", (WINDOW, 4 * PAGE, 3, 0x11, 1, 0)), parts[merges.name])
    explored(bench, setup, walks, merges)


@needs_kernel
def test_the_kernel_waits_for_a_hole_as_the_model_does(bench: ThreadBench) -> None:
    """Found by threads: fewer page tables are left than where the fault has kept its lock."""
    setup = (
        Op("mmap", (0x101FF000, 0x7000, 1, 0x31, -1, 0)),
        Op("mmap", (0, 0x5000, 3, 1, 0, 0x2000)),
        Op("store", (0x101FF000,)),
        Op("store", (0x10201000,)),
    )
    threads = (
        (Op("mseal", (0x10201000, 0x1000, 0)), Op("madvise", (0x101FF000, 0x3000, 0x16))),
        (
            Op("madvise", (0x101FF000, 0x4000, 9)),
            Op("mremap", (0x10202000, 0x3000, 0x3000, 3, 0x10400000)),
        ),
        (Op("store", (0x101FF000,)),),
    )
    program = ThreadedProgram(setup, threads)
    model = Interleavings(bench.real.environment, bench.design, program)
    seen = {
        bench.real.run_threads(program, [[1, 1], [turns, 1], [1]], bench.cpus)
        for turns in range(0, 8000, 40)
    }
    assert {model.judge(outcome) for outcome in seen} <= {"in order", "interleaved"}


# Pages that somebody has locked


def test_a_fault_maps_around_its_page_what_nobody_has_locked() -> None:
    space, at, file = shared_memory("6.18", 3)
    for page in range(3):
        space.write(at + page * PAGE_SIZE, 7)
    space.madvise(at, 3 * PAGE_SIZE, MADV_DONTNEED)
    do(space, lock_pages(((file, 1),), True))
    assert space.read(at) == 7
    assert space.counters()["rss_shmem"] == 2
    do(space, lock_pages(((file, 1),), False))
    assert space.read(at + PAGE_SIZE) == 7
    assert space.counters()["rss_shmem"] == 3
    space.check()


@needs_kernel
def test_a_page_may_be_left_out_where_another_thread_has_it_locked(bench: ThreadBench) -> None:
    """Found by threads: a store through another mapping has it locked while it faults."""
    setup = (
        Op("mmap", (0x101FC000, 0x4000, 1, 0x12, 1, 0x1000)),
        Op("mmap", (0x10201000, 0x4000, 3, 0x11, 1, 0x2000)),
    )
    stored, loaded = Op("store", (0x10202000,)), Op("load", (0x101FD000,))
    program = ThreadedProgram(setup, ((stored,), (loaded,)))
    model = Interleavings(bench.real.environment, bench.design, program)
    all_mapped = {0x101FC000, 0x101FD000, 0x101FE000, 0x10202000}
    assert any(present_pages(one.after) >= all_mapped for one in model.explored())
    seen = {bench.real.run_threads(program, [[turns], [90]], bench.cpus) for turns in range(1, 180)}
    assert {model.judge(outcome) for outcome in seen} <= {"in order", "interleaved"}
