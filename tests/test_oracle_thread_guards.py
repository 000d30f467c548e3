"""Guards beside threads that fill what they empty: the call begins anew, as the kernel's does."""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator
from errno import EFAULT, ENOMEM
from pathlib import Path
from typing import Any

import pytest
from test_oracle import needs_kernel

from zaplock import AddressSpace
from zaplock.advice import MADV_GUARD_INSTALL, MADV_POPULATE_WRITE
from zaplock.designs.linux import design_of
from zaplock.engines.sequential import run
from zaplock.model.step import Step
from zaplock.oracle import corpus
from zaplock.oracle.interleavings import Interleavings
from zaplock.oracle.modelside import ModelSide
from zaplock.oracle.observe import Snapshot
from zaplock.oracle.ops import Op
from zaplock.oracle.ring import GUARD, PRESENT
from zaplock.oracle.thread_campaign import ThreadBench
from zaplock.oracle.thread_programs import ELSEWHERE, PAGE, WINDOW
from zaplock.oracle.threaded import ThreadedOutcome, ThreadedProgram
from zaplock.protocols.design import Cx, Protocol
from zaplock.protocols.driver import ioctl
from zaplock.protocols.gup import get_user_pages, put_page
from zaplock.protocols.madvise import madvise
from zaplock.protocols.teardown import tlb_finish_mmu, unmap_page_range
from zaplock.protocols.zap_range import gather_zap

FINDINGS = Path(__file__).parents[1] / "docs" / "findings"
MAYMOVE, FIXED, DONTUNMAP = 1, 2, 4
GUARDED = Op("madvise", (WINDOW, 2 * PAGE, MADV_GUARD_INSTALL))
FILLED = Op("madvise", (WINDOW + PAGE, PAGE, MADV_POPULATE_WRITE))
SETUP = (Op("mmap", (WINDOW, 2 * PAGE, 3, 0x32, -1, 0)), Op("store", (WINDOW + PAGE,)))


@pytest.fixture(scope="module")
def bench() -> Iterator[ThreadBench]:
    both = ThreadBench(design_of(platform.release()).design)
    yield both
    both.close()


def moved(flags: int) -> Op:
    return Op("mremap", (WINDOW, 2 * PAGE, 2 * PAGE, MAYMOVE | FIXED | flags, ELSEWHERE))


def outcomes(bench: ThreadBench, *threads: Op) -> set[ThreadedOutcome]:
    """Look at every interleaving of threads that do one thing each."""
    program = ThreadedProgram(SETUP, tuple((op,) for op in threads))
    model = Interleavings(bench.real.environment, bench.design, program)
    reached = model.explored()
    assert not model.violations
    assert {model.judge(outcome) for outcome in reached} <= {"in order", "interleaved"}
    return reached


def pages(after: Snapshot, kind: int) -> set[int]:
    """Return the addresses of the pages of a kind."""
    return {
        at
        for start, stop, categories in struct.iter_unpack("<3Q", after.regions)
        if categories & kind
        for at in range(start, stop, PAGE)
    }


@needs_kernel
def test_guards_that_begin_anew_are_also_where_others_have_moved_them_from(
    bench: ThreadBench,
) -> None:
    """Found by threads: a first guard is moved away, and its old place is guarded, too."""
    places = {WINDOW, WINDOW + PAGE, ELSEWHERE}
    found = {
        frozenset(pages(outcome.after, PRESENT))
        for outcome in outcomes(bench, GUARDED, FILLED, moved(DONTUNMAP))
        if outcome.results[0] == (0,) and pages(outcome.after, GUARD) == places
    }
    assert found == {frozenset(), frozenset({ELSEWHERE + PAGE})}


@needs_kernel
def test_it_takes_two_calls_that_keep_each_other_from_coming_through(bench: ThreadBench) -> None:
    """Where nobody fills the page again, all guards are put in under one hold."""
    for outcome in outcomes(bench, GUARDED, moved(DONTUNMAP)):
        assert len(pages(outcome.after, GUARD)) == 2


@needs_kernel
def test_guards_that_begin_anew_may_find_their_mapping_gone(bench: ThreadBench) -> None:
    """What moves has a part of the guards, and the call says that nothing is mapped."""
    found = {
        frozenset(pages(outcome.after, GUARD))
        for outcome in outcomes(bench, GUARDED, FILLED, moved(0))
        if outcome.results[0] == (-ENOMEM,)
    }
    assert found == {frozenset(), frozenset({ELSEWHERE})}


@needs_kernel
def test_the_kernel_does_so_too(bench: ThreadBench) -> None:
    program = ThreadedProgram(SETUP, ((GUARDED,), (FILLED,) * 3, (moved(DONTUNMAP),)))
    model = Interleavings(bench.real.environment, bench.design, program)
    seen = {
        bench.real.run_threads(program, [[turns], [1] * 3, [turns // 2]], bench.cpus)
        for turns in range(0, 4000, 100)
    }
    assert {model.judge(outcome) for outcome in seen} <= {"in order", "interleaved"}


# Faults that somebody undoes


def run_against(space: AddressSpace, heap: int, call: Protocol, fault: str, times: int) -> int:
    """Run a call whose page somebody takes away right after its fault, so many times."""
    result: Any = None
    while True:
        try:
            step = call.send(result)
        except StopIteration as end:
            space.check()
            return int(end.value)
        result = step.run(space.machine, space.task, *step.args)
        if step.name == fault and times:
            times -= 1
            run(space.machine, space.task, zap_page(space.cx, heap))


async def zap_page(cx: Cx, address: int) -> None:
    """Zap a page under no lock: the call that runs has a hold of its own."""
    gather = await gather_zap(cx.mm, address, address + PAGE)
    await unmap_page_range(cx, gather, address, address + PAGE)
    await tlb_finish_mmu(cx, gather)


@pytest.mark.parametrize("times", [0, 1, 2, 5])
def test_a_page_is_there_after_it_was_populated_however_often_it_went(times: int) -> None:
    """Both zaps of a page may come into one call; it undoes them."""
    space = AddressSpace()
    heap = space.mmap(PAGE)
    call = madvise(space.cx, heap, PAGE, MADV_POPULATE_WRITE)
    assert run_against(space, heap, call, "fault_range", times) == 0
    assert space.counters()["rss_anon"] == 1


@pytest.mark.parametrize("times", [0, 1, 2, 5])
def test_a_page_is_pinned_however_often_it_goes_after_its_fault(times: int) -> None:
    space = AddressSpace()
    heap = space.mmap(PAGE)
    call = get_user_pages(space.cx, space.cx.mm, heap, True)
    frame = run_against(space, heap, call, "fault_entry", times)
    assert frame > 0
    run(space.machine, space.task, as_protocol(put_page(frame)))


async def as_protocol(step: Step[None]) -> None:
    await step


def test_what_a_device_has_mapped_can_not_be_pinned() -> None:
    """It is no page, and is refused where it is found: its fault would change nothing."""
    space = AddressSpace()
    heap = space.mmap(PAGE)
    assert run(space.machine, space.task, ioctl(space.cx, 0, heap, True)) == 0
    call = get_user_pages(space.cx, space.cx.mm, heap, True)
    assert run(space.machine, space.task, call) == -EFAULT


@needs_kernel
def test_guards_come_to_an_end_where_a_zap_leaves_markers(bench: ThreadBench) -> None:
    """The kernel never ends there (docs/findings/guard-of-protected-pages.md)."""
    model = ModelSide(bench.real.environment, bench.design)
    try:
        steps = model.run(corpus.load(FINDINGS / "guard-of-protected-pages.json")[0])
    finally:
        model.close()
    assert steps[-1].outcome.result == 0
    assert pages(steps[-1].snapshot, GUARD) == {1 << 28}
