"""Lock sequences, faults put in on purpose, and address spaces that are full."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from test_oracle import WINDOW, needs_kernel

from zaplock import advice
from zaplock.designs.linux import LINUX_6_18
from zaplock.engines import sequential
from zaplock.engines.sequential import LockCall
from zaplock.model import tlb
from zaplock.model.machine import Machine
from zaplock.model.step import Task
from zaplock.oracle import committed, huge_pool, lock_sequences, manual, seeded_faults
from zaplock.oracle.campaign import Bench
from zaplock.oracle.compare import first_divergence, result_text
from zaplock.oracle.coverage import Coverage
from zaplock.oracle.modelside import COVERED, ModelSide, model_side
from zaplock.oracle.ops import Op
from zaplock.oracle.real import RealSide
from zaplock.protocols.design import Cx
from zaplock.protocols.mmap import mmap
from zaplock.protocols.mremap import mremap
from zaplock.protocols.teardown import restore_reserve

PAGE = 4096
QUICK = ("merge-nothing", "no-sync", "munmap-keeps-locked", "page-tables-leak", "msync-locked")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    both = Bench(model_side, COVERED)
    yield both
    both.close()


@needs_kernel
@pytest.mark.root
def test_the_kernel_locks_as_the_protocols_say(bench: Bench) -> None:
    model = ModelSide(bench.real.environment)
    themes = replace(COVERED, themes=(*COVERED.themes, "kernel", "kernel"))
    found = lock_sequences.sample(bench.real, model, seed=18, scope=themes)
    assert found.operations > 800
    assert found.lock_operations > 1_000
    assert not found.differences, found.differences[:3]


SHARED = (  # of a write to each page of these the kernel is told, without the lock meanwhile
    (Op("mmap", (WINDOW, 4 * PAGE, 3, 0x31, -1, 0)),),
    (
        Op("mmap", (WINDOW, 4 * PAGE, 3, 0x31, -1, 0)),
        Op("mmap", (WINDOW + 2 * PAGE, PAGE, 3, 0x31, -1, 0)),
    ),
    (
        Op("mmap", (WINDOW, 4 * PAGE, 3, 0x31, -1, 0)),
        Op("madvise", (WINDOW + 2 * PAGE, PAGE, 102)),
    ),
    (Op("mmap", (WINDOW, 4 * PAGE, 3, 0x11, 0, 0)), Op("store", (WINDOW,))),
    (Op("mmap", (WINDOW, 4 * PAGE, 3, 0x11, 2, 0)), Op("store", (WINDOW,))),
    (
        Op("mmap", (WINDOW, 4 * PAGE, 3, 0x31, -1, 0)),
        Op("uffd_register", (WINDOW, 4 * PAGE, 1)),
    ),
)


@needs_kernel
@pytest.mark.root
@pytest.mark.parametrize(
    "mappings",
    SHARED,
    ids=["all anew", "two mappings", "a guard", "dirty in memory", "on a disk", "a monitor"],
)
def test_populating_shared_pages_lets_the_lock_go_as_often_as_the_kernel(
    bench: Bench, mappings: tuple[Op, ...]
) -> None:
    model = ModelSide(bench.real.environment)
    sequence = (*mappings, Op("madvise", (WINDOW, 4 * PAGE, 23)))
    found = lock_sequences.compare(bench.real, model, [sequence])
    assert found.operations == len(sequence)
    assert not found.differences, found.differences


@needs_kernel
@pytest.mark.root
@pytest.mark.parametrize(
    "call",
    [
        Op("pread", (0, WINDOW, 3 * PAGE, 0)),
        Op("pwrite", (0, WINDOW, 3 * PAGE, 0)),
        Op("process_vm_readv", (WINDOW, 3 * PAGE)),
        Op("process_vm_writev", (WINDOW, 5 * PAGE)),
    ],
    ids=lambda call: call.name,
)
def test_the_kernels_own_faults_take_the_mmap_lock(bench: Bench, call: Op) -> None:
    model = ModelSide(bench.real.environment)
    sequence = (
        Op("mmap", (WINDOW, 4 * PAGE, 3, 0x32, -1, 0)),
        Op("store", (WINDOW + 3 * PAGE,)),  # so the mapping has an anon_vma, and faults a VMA lock
        Op("load", (WINDOW,)),
        call,
    )
    found = lock_sequences.compare(bench.real, model, [sequence])
    assert found.operations == len(sequence)
    assert not found.differences, found.differences


@needs_kernel
def test_a_cold_page_that_a_fork_has_shared_is_read_where_it_is(bench: Bench) -> None:
    """MADV_COLD leaves it on a CPU's list, which would hold it: it would be copied, and clean."""
    cold = advice.MADV_COLD
    sequence = (
        Op("mmap", (WINDOW, 4 * PAGE, 3, 0x22, 0, 0)),
        Op("process_vm_writev", (WINDOW, 4 * PAGE)),
        Op("process_vm_writev", (WINDOW + PAGE, 2 * PAGE)),  # so it is active
        Op("fork", ()),
        Op("madvise", (WINDOW + 2 * PAGE, PAGE, cold)),
        Op("process_vm_readv", (WINDOW, 4 * PAGE)),
    )
    model = ModelSide(bench.real.environment)
    assert first_divergence(sequence, bench.real.run(sequence), model.run(sequence)) is None


CHARGED = (
    ("shared memory is charged as a whole", (Op("mmap", (WINDOW, 4 * PAGE, 3, 0x31, -1, 0)),)),
    (
        "without reserve page by page",
        (Op("mmap", (WINDOW, 4 * PAGE, 3, 0x4031, -1, 0)), Op("store", (WINDOW,))),
    ),
    (
        "a hole in a memfd when it is filled",
        (Op("mmap", (WINDOW, 4 * PAGE, 3, 0x11, 0, 12 * PAGE)), Op("store", (WINDOW,))),
    ),
    (
        "private memory when it becomes writable",
        (Op("mmap", (WINDOW, 4 * PAGE, 1, 0x32, -1, 0)), Op("mprotect", (WINDOW, PAGE, 3))),
    ),
    (
        "6.18 keeps what a moving mremap has cut off",
        (
            Op("mmap", (WINDOW, 4 * PAGE, 3, 0x32, -1, 0)),
            Op("mremap", (WINDOW, 4 * PAGE, PAGE, 3, WINDOW + 8 * PAGE)),
        ),
    ),
    (
        "6.18 keeps what a refused mapping was charged",
        (
            Op("mmap", (WINDOW, 2 * PAGE, 3, 0x32, -1, 0)),
            Op("mmap", (WINDOW, 4 * PAGE, 3, 0x80012, 2, 0)),
        ),
    ),
)


@needs_kernel
@pytest.mark.parametrize(("rule", "sequence"), CHARGED, ids=[rule for rule, _ in CHARGED])
def test_memory_is_promised_as_the_kernel_does_it(
    bench: Bench, rule: str, sequence: tuple[Op, ...]
) -> None:
    """Others change Committed_AS too: some run must agree, and it must have changed."""
    model = ModelSide(bench.real.environment)
    ended = (*sequence, Op("munmap", (WINDOW, 32 * PAGE)))
    assert any(committed.compare(bench.real, model, ended) is None for _ in range(100)), rule
    figures, _ = bench.real.run_promised(ended)
    assert len(set(figures)) > 1, rule


@needs_kernel
def test_a_forgotten_charge_is_noticed(bench: Bench) -> None:
    from dataclasses import replace

    from zaplock.designs.linux import LINUX_6_18

    model = ModelSide(
        bench.real.environment,
        replace(LINUX_6_18, mremap_forgets_charge=False, mmap_forgets_charge=False),
    )
    _, sequence = CHARGED[-2]
    found = [committed.compare(bench.real, model, sequence) for _ in range(5)]
    assert ("+0 pages", "-3 pages") in {(one.kernel, one.model) for one in found if one}


@needs_kernel
@pytest.mark.root
def test_another_lock_mode_is_noticed(bench: Bench) -> None:
    """munmap that forgets to downgrade: everything else about it stays the same."""
    from dataclasses import replace

    from zaplock.designs.linux import LINUX_6_18
    from zaplock.protocols.munmap import do_vmi_align_munmap

    async def never_downgrades(cx, start, length, events, downgrade=False):  # type: ignore[no-untyped-def]
        return await do_vmi_align_munmap(cx, start, length, events, False)

    broken = replace(LINUX_6_18, do_munmap=never_downgrades)
    sequence = (
        Op("mmap", (WINDOW, 4 * PAGE, 3, 0x32, -1, 0)),
        Op("store", (WINDOW,)),
        Op("munmap", (WINDOW, 2 * PAGE)),
    )
    model = ModelSide(bench.real.environment, broken)
    assert first_divergence(sequence, bench.real.run(sequence), model.run(sequence)) is None
    found = lock_sequences.compare(bench.real, model, [sequence]).differences[0]
    assert (found.at, found.kernel[:3], found.model[:2]) == (2, "WDr", "Ww")


def test_letters_stand_for_what_was_done() -> None:
    calls = [
        LockCall("down", True, "mmap_lock"),
        LockCall("down", True, "i_mmap"),
        LockCall("downgrade", False, "mmap_lock"),
        LockCall("up", False, "mmap_lock"),
        LockCall("failed", False, "mmap_lock"),
        LockCall("try", False, "mmap_lock"),
        LockCall("up", False, "mmap_lock"),
    ]
    assert lock_sequences.letters_of(calls) == "WDrRr"


def test_the_first_difference_is_named() -> None:
    sequence = (Op("munmap", (0, 1)), Op("munmap", (0, 2)))
    kernel = lock_sequences.PRELUDE + "WDr" + lock_sequences.MARK + "Ww" + lock_sequences.MARK
    assert lock_sequences.first_difference(sequence, kernel, ["WDr", "Ww"]) is None
    found = lock_sequences.first_difference(sequence, kernel, ["WDr", "WDr"])
    assert found is not None
    assert found.at == 1


@needs_kernel
@pytest.mark.parametrize("name", QUICK)
def test_a_fault_is_found_and_taken_out_again(bench: Bench, name: str) -> None:
    fault = next(fault for fault in seeded_faults.FAULTS if fault.name == name)
    found = seeded_faults.hunt(bench, fault, seed=2, limit_s=240)
    assert found.signature, f"{name} ({fault.rule}) was not found"
    assert bench.slice(seed=4, sequences=4).agrees


def test_there_are_thirty_faults_with_names_of_their_own() -> None:
    assert len({fault.name for fault in seeded_faults.FAULTS}) == len(seeded_faults.FAULTS) >= 30
    for fault in seeded_faults.FAULTS:
        assert hasattr(fault.where, fault.attribute), f"{fault.name} breaks what is not there"


@needs_kernel
def test_a_full_address_space_refuses_alike(bench: Bench) -> None:
    """One more mapping fits, a split does not: 65,530 and 65,531 are two limits."""
    sequence = (
        Op("crowd", (1,)),
        Op("mmap", (WINDOW, 4 * PAGE, 3, 0x32, -1, 0)),
        Op("mprotect", (WINDOW + PAGE, PAGE, 1)),
        Op("munmap", (WINDOW + PAGE, PAGE)),
        Op("mmap", (WINDOW + 8 * PAGE, PAGE, 3, 0x32, -1, 0)),
        Op("mmap", (WINDOW + 16 * PAGE, PAGE, 3, 0x32, -1, 0)),
        Op("madvise", (WINDOW, PAGE, 10)),
        Op("mremap", (WINDOW, PAGE, PAGE, 3, WINDOW + 32 * PAGE)),
        Op("munmap", (WINDOW, PAGE)),
    )
    real = bench.real.run(sequence)
    assert bench.diverge(sequence) is None
    told = [result_text(step.outcome.result) for step in real]
    assert told[2:4] == ["ENOMEM", "ENOMEM"]
    assert told[5] == "ENOMEM"
    assert told[6] == "EAGAIN"


@needs_kernel
def test_coverage_tells_what_never_happened(bench: Bench) -> None:
    coverage = Coverage()
    sequence = (Op("mmap", (WINDOW, PAGE, 3, 0x32, -1, 0)), Op("munmap", (WINDOW + 1, PAGE)))
    coverage.add(sequence, bench.real.run(sequence), bench.real.environment.baseline)
    outcomes = {name: dict(counts) for name, counts in coverage.outcomes().items()}
    assert outcomes == {"mmap": {"ok": 1}, "munmap": {"EINVAL": 1}}
    rare = manual.missing(outcomes, least=1)
    assert "munmap EINVAL: 0" not in rare
    assert "munmap ok: 0" in rare
    assert not set(manual.OUT_OF_REACH) & {
        (name, error) for name, errors in manual.WANTED.items() for error in errors
    }


UNDER_LIMITS = """
from dataclasses import replace
from zaplock.oracle.campaign import Bench
from zaplock.oracle.modelside import COVERED, model_side
both = Bench(model_side, replace(COVERED, themes=("limits", "lock", "grow")))
report = both.slice(seed=3, sequences=30)
both.close()
print([(found.sequence, found.differences) for found in report.divergences], report.lost)
"""


@needs_kernel
@pytest.mark.parametrize(
    "limits",
    [
        {resource.RLIMIT_MEMLOCK: (4096, 65536)},
        {resource.RLIMIT_AS: (8 << 30, 8 << 30), resource.RLIMIT_DATA: (4 << 30, 4 << 30)},
        {resource.RLIMIT_STACK: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)},
    ],
    ids=["little to lock", "bounded", "a stack without end"],
)
def test_the_callers_limits_are_the_models(limits: dict[int, tuple[int, int]]) -> None:
    """Soft and hard ones; without one for stacks the layout is another, and memory still ends."""

    def limit() -> None:
        for what, bounds in limits.items():
            resource.setrlimit(what, bounds)

    done = subprocess.run(
        [sys.executable, "-P", "-c", UNDER_LIMITS],
        preexec_fn=limit, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("[] []", "")


HUGE_PLACE, HUGE_PAGE = 0x2000_0000, 2 << 20
OWNED = (  # mapped, shared with a child and written, given up in part, moved whole, punched
    Op("mmap", (HUGE_PLACE, 3 * HUGE_PAGE, 3, 0x4_0032, -1, 0)),
    Op("store", (HUGE_PLACE,)),
    Op("load", (HUGE_PLACE + HUGE_PAGE,)),
    Op("fork", ()),
    Op("store", (HUGE_PLACE + HUGE_PAGE,)),
    Op("madvise", (HUGE_PLACE, HUGE_PAGE, 4)),
    Op("munmap", (HUGE_PLACE + 2 * HUGE_PAGE, HUGE_PAGE)),
    Op("mremap", (HUGE_PLACE, 2 * HUGE_PAGE, 2 * HUGE_PAGE, 3, HUGE_PLACE + 8 * HUGE_PAGE)),
    Op("store", (HUGE_PLACE + 8 * HUGE_PAGE,)),
    Op("mmap", (HUGE_PLACE, 2 * HUGE_PAGE, 3, 0x4_0031, -1, 0)),
    Op("store", (HUGE_PLACE,)),
    Op("madvise", (HUGE_PLACE, HUGE_PAGE, 9)),
    Op("load", (HUGE_PLACE,)),
    Op("mmap", (HUGE_PLACE + 4 * HUGE_PAGE, HUGE_PAGE, 3, 0x4_4032, -1, 0)),
    Op("store", (HUGE_PLACE + 4 * HUGE_PAGE,)),
    Op("munmap", (HUGE_PLACE, 16 * HUGE_PAGE)),
)


@needs_kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="a pool of huge pages is for root to make")
def test_huge_pages_are_promised_as_the_kernel_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others use the pool, too: some run must agree, and none where a zap promises none."""
    with huge_pool.huge_pages(16):
        real = RealSide()
        try:
            model = ModelSide(real.environment)
            assert any(committed.compare(real, model, OWNED) is None for _ in range(100))
            monkeypatch.setattr(restore_reserve, "run", lambda *_args: None)
            found = [committed.compare(real, model, OWNED) for _ in range(3)]
        finally:
            real.close()
    assert all(one is not None and one.at <= 5 for one in found), found


PEAK_AND_LESS = (  # three huge pages that come and go, and the mark is taken away
    Op("mmap", (HUGE_PLACE, 3 * HUGE_PAGE, 3, 0x32, -1, 0)),
    Op("madvise", (HUGE_PLACE, 3 * HUGE_PAGE, 14)),
    Op("madvise", (HUGE_PLACE, 3 * HUGE_PAGE, 23)),
    Op("madvise", (HUGE_PLACE, 3 * HUGE_PAGE, 4)),
    Op("clear_refs", (5,)),
)


@needs_kernel
def test_the_peak_of_resident_memory_is_where_the_kernel_notes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On one CPU VmHWM is off by less than a huge page; a model that notes none differs."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        bench = Bench(model_side)
    finally:
        os.sched_setaffinity(0, allowed)
    try:
        peaks = [step.snapshot.peak for step in bench.real.run(PEAK_AND_LESS)]
        found = bench.diverge(PEAK_AND_LESS)
        monkeypatch.setattr(tlb, "note_peak", lambda *_args: None)
        broken = bench.diverge(PEAK_AND_LESS)
    finally:
        bench.close()
    assert found is None, found.differences
    assert peaks[-2][0] > 2 * HUGE_PAGE >> 10
    assert peaks[-1][1] < HUGE_PAGE >> 10
    assert broken is not None
    assert (broken.at, broken.signature) == (3, "madvise: VmHWM")


def test_an_mremap_of_a_part_loses_what_the_rest_had_reserved() -> None:
    """Found in a kernel: whoever moves a part keeps only that, and nobody gives the rest back."""
    machine = Machine()
    machine.globals.put("hugetlb_free", 8)
    cx = Cx(LINUX_6_18, Task(1, 1, "mover"))

    def reserved() -> int:
        return int(machine.globals.get("hugetlb_reserved", 0))

    length, target = 4 * HUGE_PAGE, HUGE_PLACE + 16 * HUGE_PAGE
    assert sequential.run(machine, cx.task, mmap(cx, HUGE_PLACE, length, 3, 0x4_0032)) > 0
    assert reserved() == 4
    moved = mremap(cx, HUGE_PLACE, HUGE_PAGE, HUGE_PAGE, 3, target)
    assert sequential.run(machine, cx.task, moved) == target
    for start in (HUGE_PLACE, target):
        assert sequential.run(machine, cx.task, cx.design.munmap(cx, start, length)) == 0
    assert (machine.globals.get("hugetlb_free"), reserved()) == (8, 3)
