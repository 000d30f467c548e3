"""Programs of threads: the real kernel's outcomes are among those that the model allows."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import random
import re
import threading
import time
import types
from collections.abc import Generator, Iterator
from errno import EFAULT, EINVAL, ENOMEM
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from processes import children_of_threads, threads_of
from test_oracle import needs_kernel

from zaplock.check.mutations import as_mutated, mutate, mutations_of
from zaplock.cli import main
from zaplock.designs.linux import design_of
from zaplock.engines.sequential import run
from zaplock.model.frames import TAG_SIZE
from zaplock.model.violations import Invariant
from zaplock.oracle import ops
from zaplock.oracle.interleavings import Interleavings
from zaplock.oracle.modelops import apply
from zaplock.oracle.ops import Op
from zaplock.oracle.thread_accesses import given
from zaplock.oracle.thread_campaign import ThreadBench, ThreadReport, hunt
from zaplock.oracle.thread_programs import ELSEWHERE, PAGE, PAGES, WINDOW, ThreadedGenerator
from zaplock.oracle.threaded import ThreadedOutcome, ThreadedProgram, number_of, shown
from zaplock.oracle.whole_operations import OPERATIONS, start
from zaplock.oracle.world import World, limits_of
from zaplock.protocols.design import Cx, Design

ADVICES = ("madvise", "process_madvise")
LOAD = Op("load", (WINDOW,))
SIGSEGV = shown(LOAD, -(11 << 16))
SIGBUS = shown(LOAD, -(7 << 16))
DONTNEED, FREE, POPULATE_READ, POPULATE_WRITE, GUARD_INSTALL = 4, 8, 22, 23, 102


@pytest.fixture(scope="module")
def bench() -> Iterator[ThreadBench]:
    both = ThreadBench(design_of(platform.release()).design)
    yield both
    both.close()


def mapping(flags: int = 0x32, pages: int = 4, prot: int = 3) -> Op:
    return Op("mmap", (WINDOW, pages * PAGE, prot, flags, -1, 0))


@needs_kernel
def test_every_outcome_of_random_programs_is_allowed(bench: ThreadBench) -> None:
    report, slices, deadline = ThreadReport(), 0, time.monotonic() + 200
    while time.monotonic() < deadline and report.outcomes["in order"] <= report.programs:
        # On a busy machine threads may run one after the other, each time in the same order.
        bench.slice(20_19 + slices, report, programs=40)
        slices += 1
    assert report.agrees, report.divergences
    assert report.programs == 40 * slices
    assert report.outcomes["in order"] > report.programs


@needs_kernel
def test_populate_of_a_shared_file_lets_the_lock_go_after_each_page(bench: ThreadBench) -> None:
    """In between the mapping may have become read-only: one page is there, and EINVAL is told."""
    program = ThreadedProgram(
        (mapping(0x31, pages=3),),
        (
            (Op("madvise", (WINDOW, 4 * PAGE, POPULATE_WRITE)),),
            (Op("mprotect", (WINDOW, PAGE, 1)),),
        ),
    )
    explored = Interleavings(bench.real.environment, bench.design, program).explored()
    present = {(one.results[0][0], sum(v.figures[0] for v in one.after.vmas)) for one in explored}
    assert present == {(-ENOMEM, 12), (-EINVAL, 0), (-EINVAL, 4)}
    assert {bench.real.run_threads(program, [[1], [1]]) for _ in range(20)} <= explored


@needs_kernel
def test_populate_goes_on_in_what_was_mapped_behind_it_meanwhile(bench: ThreadBench) -> None:
    """Found on 16 CPUs: it lets go again before it looks at what is behind a shared page."""
    program = ThreadedProgram(
        (mapping(0x31, pages=1),),
        (
            (Op("madvise", (WINDOW, 2 * PAGE, POPULATE_WRITE)),),
            (Op("mmap", (WINDOW, 2 * PAGE, 3, 0x32, -1, 0)),),
        ),
    )
    explored = Interleavings(bench.real.environment, bench.design, program).explored()
    present = {(one.results[0][0], sum(v.figures[0] for v in one.after.vmas)) for one in explored}
    assert present == {(-ENOMEM, 0), (0, 4), (0, 8)}
    assert {bench.real.run_threads(program, [[1], [1]]) for _ in range(20)} <= explored


@needs_kernel
@pytest.mark.parametrize(
    "reads", [Op("load", (WINDOW + PAGE,)), Op("madvise", (WINDOW + PAGE, PAGE, POPULATE_READ))]
)
def test_a_read_fault_maps_what_is_around_its_page_before_it(bench: ThreadBench, reads: Op) -> None:
    """Found on 16 CPUs: what is mapped around a page can be gone when the page itself comes."""
    world = World(bench.real.environment, bench.design)
    world.begin(())
    dropped = Op("madvise", (WINDOW, PAGE, DONTNEED))
    for index, op in enumerate((mapping(0x31, pages=2), Op("store", (WINDOW,)), dropped)):
        apply(world, index, op.name, [value for value in op.args if isinstance(value, int)])
    pages, seen = (WINDOW // PAGE, WINDOW // PAGE + 1), []

    @types.coroutine
    def watched(protocol: Any) -> Generator[Any, Any, Any]:
        """Note after each step which pages are mapped."""
        result = None
        with contextlib.suppress(StopIteration):
            while True:
                result = yield protocol.send(result)
                seen.append([world.space.ptes.at(page) is not None for page in pages])

    cx = Cx(bench.design, world.task, 1, limits_of(bench.real.environment))
    run(world.machine, world.task, watched(start(cx, 0, reads)))
    assert [both for both, _ in itertools.groupby(seen)] == [
        [False, False], [True, False], [True, True],
    ]  # fmt: skip


@needs_kernel
def test_a_store_meets_an_unmap_or_does_not(bench: ThreadBench) -> None:
    """Two outcomes and no third: the model has both, and the kernel stays within them."""
    program = ThreadedProgram(
        (mapping(), Op("store", (WINDOW,))),
        ((Op("munmap", (WINDOW, PAGE)),), (Op("store", (WINDOW,)),)),
    )
    model = Interleavings(bench.real.environment, bench.design, program)
    assert {outcome.results for outcome in model.explored()} == {
        ((0,), (0,)), ((0,), (SIGSEGV,)),
    }  # fmt: skip
    seen = {bench.real.run_threads(program, [[1], [1]]) for _ in range(20)}
    assert seen <= model.explored()


@needs_kernel
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_each_thread_has_a_cpu_of_its_own(bench: ThreadBench) -> None:
    """On one CPU none of them would meet another in the middle of a call."""
    load = (Op("load", (WINDOW,)),)
    program = ThreadedProgram((mapping(),), (load, load))
    a_while = 1 << 29  # turns
    running = threading.Thread(target=bench.real.run_threads, args=(program, [[a_while]] * 2))
    running.start()
    try:
        apart = False  # until both have begun
        while running.is_alive() and not apart:
            for side in children_of_threads(os.getpid()):
                for runner in children_of_threads(side):
                    allowed = cpus_of_threads(runner)
                    apart = apart or (len(set(allowed)) == 2 and all(map(str.isdigit, allowed)))
    finally:
        running.join()
    assert apart


def cpus_of_threads(pid: int) -> list[str]:
    """List where each thread of a process may run."""
    found = list[str]()
    for thread in threads_of(pid):
        with contextlib.suppress(OSError):  # it has ended
            text = Path(f"/proc/{pid}/task/{thread}/status").read_text()
            found += re.findall(r"Cpus_allowed_list:\s*(\S+)", text)
    return found


@needs_kernel
def test_an_outcome_between_two_calls_needs_the_steps(bench: ThreadBench) -> None:
    """mmap(MAP_POPULATE) is mapped before it is filled: protected between, it stays empty."""
    program = ThreadedProgram(
        (mapping(),),
        ((mapping(0x8032),), (Op("mprotect", (WINDOW, 4 * PAGE, 0)),)),
    )
    model = Interleavings(bench.real.environment, bench.design, program)
    between = [
        outcome
        for outcome in model.explored()
        if not model.whole.in_some_order(outcome) and outcome.after.vmas[0].perms == "---p"
    ]
    assert between
    assert all(outcome.after.vmas[0].figures[0] == 0 for outcome in between)


@needs_kernel
def test_a_falsified_outcome_is_not_allowed(bench: ThreadBench) -> None:
    program = ThreadedProgram(
        (mapping(), Op("store", (WINDOW,))),
        ((Op("madvise", (WINDOW, PAGE, DONTNEED)),), (Op("load", (WINDOW,)),)),
    )
    model = Interleavings(bench.real.environment, bench.design, program)
    true = bench.real.run_threads(program, [[0], [0]])
    assert model.judge(true) == "in order"
    assert model.judge(true._replace(results=((0,), (77,)))) == "not allowed"


@needs_kernel
def test_a_fault_that_gives_way_leaves_its_tables(bench: ThreadBench) -> None:
    """Found by threads: a first fault makes page tables before it asks for an anon_vma."""
    boundary = WINDOW + 4 * PAGE
    start = boundary - 3 * PAGE
    program = ThreadedProgram(
        (Op("mmap", (start, 4 * PAGE, 3, 0x12, 0, 0)),
         Op("mmap", (boundary + PAGE, 3 * PAGE, 3, 0x31, -1, 0))),
        ((Op("munmap", (start, 4 * PAGE)),), (Op("store", (boundary,)),)),
    )  # fmt: skip
    model = Interleavings(bench.real.environment, bench.design, program)
    tables = {o.after.counters[11] for o in model.explored() if o.results[1] == (SIGSEGV,)}
    assert tables == {0, 8, 12}  # nothing touched; the upper tables; the whole path


@needs_kernel
def test_a_cpu_may_know_already_where_a_store_goes(bench: ThreadBench) -> None:
    """Found by threads: a page is dropped, and before all CPUs forget it another is in its place.

    The store goes to the old one, whose translation the set-up, or a CPU that ran ahead, had found.
    """
    program = ThreadedProgram(
        (mapping(), Op("uffd_register", (WINDOW, 2 * PAGE, 2)), Op("store", (WINDOW,))),
        (
            (Op("madvise", (WINDOW, PAGE, DONTNEED)),),
            (Op("uffd_copy", (WINDOW, 0)), Op("store", (WINDOW,))),
        ),
    )
    model = Interleavings(bench.real.environment, bench.design, program)
    stored = {outcome for outcome in model.explored() if outcome.results == ((0,), (0, 0))}
    ahead = {outcome for outcome in model._explored_ahead() if outcome.results == ((0,), (0, 0))}
    lost = ops.store_tag(number_of(1, 0)).to_bytes(8, "little")
    assert not any(outcome.after.tags.startswith(lost) for outcome in stored)
    assert any(outcome.after.tags.startswith(lost) for outcome in ahead)
    assert stored < ahead
    seen = {
        bench.real.run_threads(program, [[turns], [turns // 2, turns]], bench.cpus)
        for turns in range(0, 4000, 50)
    }
    assert {model.judge(outcome) for outcome in seen} <= {"in order", "interleaved"}


@needs_kernel
def test_a_cpu_may_mark_a_page_that_its_store_finds_no_more(bench: ThreadBench) -> None:
    """Found by threads: it sets the dirty bit, looks the page up again, and mremap has moved it."""
    program = ThreadedProgram(
        (mapping(), Op("store", (WINDOW,)), Op("madvise", (WINDOW, PAGE, FREE))),
        (
            (Op("store", (WINDOW,)),),
            (Op("mremap", (WINDOW, PAGE, PAGE, 3, ELSEWHERE)),),
        ),
    )
    model = Interleavings(bench.real.environment, bench.design, program)
    dirty = ops.FIGURES.index("Private_Dirty")

    def moved(outcomes: set[ThreadedOutcome]) -> set[int]:
        """What is dirty of the page at its new place, where the store has missed it."""
        missed = {one.after for one in outcomes if one.results == ((SIGSEGV,), (ELSEWHERE,))}
        return {after.vmas[-1].figures[dirty] for after in missed}

    assert moved(model.explored()) == {0}
    assert moved(model._explored_ahead()) == {0, 4}
    seen = {
        bench.real.run_threads(program, [[turns], [turns]], bench.cpus)
        for turns in range(0, 4000, 20)
    }
    assert {model.judge(outcome) for outcome in seen} <= {"in order", "interleaved"}


@needs_kernel
def test_a_move_may_find_the_upper_page_tables_of_a_fault_alone(bench: ThreadBench) -> None:
    """Found by threads: it lets as many exist at the new place."""
    far = 0x2000_0000_0000
    program = ThreadedProgram(
        (Op("mmap", (far, PAGE, 3, 0x32, -1, 0)), Op("mmap", (far + PAGE, PAGE, 3, 0x31, -1, 0))),
        ((Op("load", (far,)),), (Op("mremap", (far + PAGE, PAGE, PAGE, 3, WINDOW)),)),
    )
    model = Interleavings(bench.real.environment, bench.design, program)
    tables = {one.after.counters[ops.COUNTERS.index("VmPTE")] for one in model.explored()}
    assert tables == {12, 16, 24}  # of the load; and one of the new place, or all


@needs_kernel
def test_what_an_unmap_has_detached_may_be_loaded_until_it_is_zapped(bench: ThreadBench) -> None:
    """Found by threads: madvise finds nothing mapped any more, and the page is still there."""
    program = ThreadedProgram(
        (mapping(), Op("store", (WINDOW,))),
        (
            (Op("madvise", (WINDOW, PAGE, GUARD_INSTALL)), Op("load", (WINDOW,))),
            (Op("munmap", (WINDOW, PAGE)),),
        ),
    )
    model = Interleavings(bench.real.environment, bench.design, program)
    results = {outcome.results[0] for outcome in model.explored()}
    (tag,) = {loaded for error, loaded in results if error == -ENOMEM} - {SIGSEGV}
    assert tag > 0
    assert (0, tag) not in results  # what was guarded is gone
    assert not model.violations


@needs_kernel
def test_a_load_gives_what_it_gives_in_some_order_of_whole_operations(bench: ThreadBench) -> None:
    """The kernel can't tell of a model that allows too much: its own rule does."""
    program = ThreadedProgram(
        (mapping(), Op("store", (WINDOW,))),
        ((Op("munmap", (WINDOW, PAGE)),), (Op("load", (WINDOW,)),)),
    )
    model = Interleavings(bench.real.environment, bench.design, program)
    written = {outcome.results[1][0] for outcome in model.explored()} - {SIGSEGV}
    assert len(written) == 1
    assert given(model.whole, (1, 0)) == {SIGSEGV, *written}
    assert not model.violations
    mutant = mutate(bench.design, mutations_of(bench.design)["zap-before-detach"])
    zaps = Interleavings(bench.real.environment, mutant, program, wrap=partial(as_mutated, mutant))
    assert {outcome.results[1][0] for outcome in zaps.explored()} == {SIGSEGV, 0, *written}
    assert [one.invariant for one in zaps.violations] == [Invariant.OLD_CONTENT_OR_SIGSEGV]


@needs_kernel
def test_a_page_is_empty_before_it_is_guarded(bench: ThreadBench) -> None:
    """MADV_GUARD_INSTALL zaps first: the kernel shows it where there is much to zap."""
    pages = 512
    guarded = Op("madvise", (WINDOW, pages * PAGE, GUARD_INSTALL))
    load = Op("load", (WINDOW,))
    program = ThreadedProgram((mapping(), Op("store", (WINDOW,))), ((guarded,), (load,)))
    model = Interleavings(bench.real.environment, bench.design, program)
    (written,) = {outcome.results[1][0] for outcome in model.explored()} - {SIGSEGV, 0}
    assert given(model.whole, (1, 0)) == {SIGSEGV, 0, written}
    assert not model.violations
    if len(os.sched_getaffinity(0)) < 2:
        return
    filled = (mapping(pages=pages), Op("madvise", (WINDOW, pages * PAGE, POPULATE_WRITE)))
    program = ThreadedProgram((*filled, Op("store", (WINDOW,))), ((guarded,), (load,) * 6))
    seen, rng, deadline = set[int](), random.Random(1), time.monotonic() + 200
    while 0 not in seen and time.monotonic() < deadline:
        delays = [int(2 ** rng.uniform(8, 17)), *(int(2 ** rng.uniform(4, 14)) for _ in range(5))]
        seen |= set(bench.real.run_threads(program, [[1], delays]).results[1])
    assert 0 in seen
    assert len(seen - {0, SIGSEGV}) <= 1


@needs_kernel
def test_what_comes_into_a_page_s_place_does_not_keep_its_fault_from_mapping_around(
    bench: ThreadBench,
) -> None:
    """The fault has looked at its entry before, without the page-table lock (handle_pte_fault)."""
    at = 3 * PAGE  # of a file whose pages are cached
    program = ThreadedProgram(
        (
            Op("mmap", (WINDOW, 4 * PAGE, 3, 0x11, 0, at)),
            Op("uffd_register", (WINDOW, 2 * PAGE, 1)),
        ),
        ((Op("uffd_poison", (WINDOW, PAGE, 0)),), (Op("load", (WINDOW,)),)),
    )
    model = Interleavings(bench.real.environment, bench.design, program)
    outcomes = [one for one in model.explored() if one.results[1][0] == SIGBUS]
    assert len(outcomes) == 2  # with what is around the page mapped, and without
    assert not model.violations
    seen = {bench.real.run_threads(program, [[1], [1 << turn % 8]]) for turn in range(40)}
    assert "not allowed" not in {model.judge(one) for one in seen}


WATCHED = (mapping(), Op("uffd_register", (WINDOW, 4 * PAGE, 3)))
_WRITTEN = 2  # of what PAGEMAP_SCAN tells of a page: nobody watches its writes


def protected_after(model: Interleavings) -> set[ThreadedOutcome]:
    """Return the outcomes in which the page that was copied is still write-protected."""
    copied = [one for one in model.explored() if one.results[0] == (0,)]
    return {one for one in copied if not one.after.regions[16] & _WRITTEN}


@needs_kernel
def test_what_is_filled_while_its_range_is_unregistered_may_stay_write_protected(
    bench: ThreadBench,
) -> None:
    """Found by threads: who fills has the VMA's lock alone, and the protection is taken away first.

    The second UFFDIO_UNREGISTER makes the copy wait for the mmap_lock, which it does not keep.
    """
    copied = (Op("uffd_copy", (WINDOW, 2)),)
    gone = [(Op("uffd_unregister", (WINDOW + at * PAGE, PAGE)),) for at in (0, 1)]
    program = ThreadedProgram(WATCHED, (copied, *gone))
    environment = bench.real.environment
    model = Interleavings(environment, bench.design, program)
    (protected,) = protected_after(model)
    assert model.judge(protected) == "interleaved"
    seen = {
        bench.real.run_threads(program, [[a], [b], [1]], bench.cpus)
        for a in range(0, 4000, 200)
        for b in range(0, 4000, 200)
    }
    assert {model.judge(outcome) for outcome in seen} <= {"in order", "interleaved"}
    under_mmap_lock = Interleavings(environment, design_of("6.8").design, program)
    assert not protected_after(under_mmap_lock)


@needs_kernel
def test_pages_are_filled_one_by_one(bench: ThreadBench) -> None:
    """Who looks at them meanwhile finds the first, and not the second."""
    filled = (Op("uffd_zeropage", (WINDOW, 2 * PAGE, 0)),)
    looks = (Op("load", (WINDOW,)), Op("load", (WINDOW + PAGE,)))
    program = ThreadedProgram(WATCHED, (filled, looks))
    model = Interleavings(bench.real.environment, bench.design, program)
    assert {one.results[1] for one in model.explored()} == {
        (SIGBUS, SIGBUS), (SIGBUS, 0), (0, SIGBUS), (0, 0),
    }  # fmt: skip
    assert not model.violations


READ_ONE = Op("pread", (0, WINDOW, PAGE, PAGE))


@needs_kernel
def test_who_cuts_a_file_amid_a_read_ends_the_read_there(bench: ThreadBench) -> None:
    """Each page of it is read only if the file still reaches there (shmem_file_read_iter)."""
    cut = (Op("ftruncate", (0, PAGE)),)
    read = Op("pread", (0, WINDOW, 3 * PAGE, 0))
    model = Interleavings(
        bench.real.environment, bench.design, ThreadedProgram((mapping(),), ((read,), cut))
    )
    explored = model.explored()
    assert {one.results[0][0] for one in explored} == {PAGE, 2 * PAGE, 3 * PAGE}
    assert {bench.real.run_threads(model.threaded, [[64], [64]]) for _ in range(20)} <= explored


@needs_kernel
def test_a_pinned_page_stays_so_while_the_lock_is_let_go_for_the_next(bench: ThreadBench) -> None:
    """A first write to a shared page lets the mmap_lock go; what was pinned before it counts."""
    written = Op("process_vm_writev", (WINDOW, 2 * PAGE))
    covered = Op("mmap", (WINDOW, 2 * PAGE, 1, 0x32, -1, 0))
    program = ThreadedProgram((mapping(0x31, pages=2),), ((written,), (covered,)))
    model = Interleavings(bench.real.environment, bench.design, program)
    explored = model.explored()
    assert {one.results[0][0] for one in explored} == {-EFAULT, PAGE, 2 * PAGE}
    assert {bench.real.run_threads(program, [[64], [64]]) for _ in range(20)} <= explored


@needs_kernel
def test_a_page_may_be_lost_amid_the_copy_to_it(bench: ThreadBench) -> None:
    """Nothing holds it meanwhile: what was copied of it counts, to the byte."""
    gone = (Op("munmap", (WINDOW, PAGE)),)
    model = Interleavings(
        bench.real.environment, bench.design, ThreadedProgram((mapping(),), ((READ_ONE,), gone))
    )
    explored = model.explored()
    assert {one.results[0][0] for one in explored} == {-EFAULT, TAG_SIZE, PAGE}
    assert {bench.real.run_threads(model.threaded, [[64], [64]]) for _ in range(20)} <= explored


@needs_kernel
def test_a_copy_goes_on_in_an_empty_page(bench: ThreadBench) -> None:
    """A page dropped amid the copy comes anew, without what had been copied before."""
    dropped = (Op("madvise", (WINDOW, PAGE, DONTNEED)),)
    model = Interleavings(
        bench.real.environment, bench.design, ThreadedProgram((mapping(),), ((READ_ONE,), dropped))
    )
    explored = model.explored()
    tags = {one.after.tags for one in explored}
    assert len(tags) == 3  # no page, an empty one, what was read
    assert bytes(TAG_SIZE) in tags
    assert {bench.real.run_threads(model.threaded, [[64], [64]]) for _ in range(20)} <= explored


MUTATIONS = (
    "no-mmap-lock", "downgrade-before-detach", "no-vma-write-lock", "zap-before-detach",
    "tables-before-zap",  # whose code ends in a KeyError
)  # fmt: skip


@needs_kernel
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_in_the_locking_is_found(name: str) -> None:
    design: Design = design_of(platform.release()).design
    mutant = mutate(design, mutations_of(design)[name])
    assert hunt(mutant, partial(as_mutated, mutant), limit_s=240.0).told


def test_equal_seeds_make_equal_programs_of_what_threads_can_do() -> None:
    first, second = ThreadedGenerator(7), ThreadedGenerator(7)
    for _ in range(200):
        program = first.program()
        first.delays(program)  # how often one has run changes nothing
        assert program == second.program()
        assert 2 <= len(program.threads) <= 4
        everything = [*program.setup, *(op for thread in program.threads for op in thread)]
        if any(op.name == "uffd_writeprotect" for op in everything):  # it would never end
            assert not any(
                op.args[2:3] == (GUARD_INSTALL,) for op in everything if op.name in ADVICES
            )
        for op in everything:
            assert op.name in OPERATIONS
            if op.name in ("load", "store"):
                assert WINDOW <= op.args[0] < max(WINDOW + PAGES * PAGE, ELSEWHERE)  # type: ignore[operator]


@needs_kernel
def test_the_verb_runs_threads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["oracle", "--threads", "--seconds", "0.5", "--seed", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["programs"] > 0
    assert not told["divergences"]


def test_threads_and_guests_don_t_mix(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["oracle", "--threads", "--kernel", "debian:6.1"]) == 2
    assert main(["oracle", "--kernel", "debian:6.1", "--locks"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_tag_is_what_a_torn_page_shows() -> None:
    read = Op("pread", (0, WINDOW, 2 * PAGE, 0))
    assert [shown(read, done) for done in (0, PAGE, PAGE + 480, 1)] == [
        0, PAGE, PAGE + TAG_SIZE, TAG_SIZE,
    ]  # fmt: skip
    assert shown(Op("load", (WINDOW,)), PAGE + 480) == PAGE + 480
