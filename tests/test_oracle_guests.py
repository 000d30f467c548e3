"""Kernels in guests judge the model, each under the design of its own release."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from errno import EBUSY, EEXIST, EFAULT, EINVAL, ENOMEM, EOVERFLOW, EPERM
from pathlib import Path

import pytest

from zaplock.cli import main
from zaplock.cli._oracle_sides import CHANGES_MACHINE
from zaplock.designs.linux import design_of, linux
from zaplock.errors import UserError
from zaplock.measure.guest import kernels, qemu
from zaplock.oracle import compare, corpus, memory_group, ops
from zaplock.oracle.campaign import Bench
from zaplock.oracle.generate import Generator
from zaplock.oracle.guest_side import (
    GuestModel,
    GuestSide,
    booted,
    guest_scope,
    hidden_by,
)
from zaplock.oracle.modelside import ModelSide
from zaplock.oracle.ops import FIGURES, Op, Ref
from zaplock.oracle.real import RealSide
from zaplock.oracle.report import Report
from zaplock.oracle.ring import PAGE, RING, TASK_SIZE
from zaplock.oracle.themes import BY_SETTING
from zaplock.oracle.windows import BELOW_RING, UNMAP_ALL, away_from_ring

KERNEL, OLD_KERNEL = "debian:6.12", "debian:6.1"
CORPUS = Path(__file__).parent / "corpus"
PLACE, OTHER = 0x1000_0000, 0x2000_0000


def needs(kernel: str) -> None:
    try:
        qemu.program()
        kernels.find(kernel)
    except UserError as error:
        pytest.skip(str(error))


def runs(kernel: str, *themes: str) -> Iterator[GuestSide]:
    needs(kernel)
    with booted(kernel, themes) as side:
        yield side


@pytest.fixture(scope="module")
def real() -> Iterator[RealSide]:
    side = RealSide()
    yield side
    side.close()


@pytest.fixture(scope="module")
def guest() -> Iterator[GuestSide]:
    yield from runs(KERNEL, "hugetlb", "ksm", "group", "swap")


@pytest.fixture(scope="module")
def old_guest() -> Iterator[GuestSide]:
    yield from runs(OLD_KERNEL, "hugetlb", "ksm")


@pytest.fixture(scope="module")
def guest_with_mounts() -> Iterator[GuestSide]:
    yield from runs(KERNEL, "hugetlbfs", "shmem-sizes", "swap")


def test_shared_memory_of_the_sizes_that_a_guest_allows_agrees(
    guest_with_mounts: GuestSide,
) -> None:
    """Of 32 kB where the file has room, of 2 MiB, 512, 64 and 16 kB where that is advised, too."""
    side, place = guest_with_mounts, 0x4000_0000
    sequence = (
        Op("mmap", (place, 30 * PAGE, 3, 0x31, -1, 0)),
        Op("store", (place,)),
        Op("store", (place + 29 * PAGE,)),
        Op("mmap", (place + HUGE, 200 * PAGE, 3, 0x31, -1, 0)),
        Op("madvise", (place + HUGE, 200 * PAGE, 14)),
        Op("store", (place + HUGE,)),
        Op("store", (place + HUGE + 130 * PAGE,)),
        Op("store", (place + HUGE + 194 * PAGE,)),
        Op("mmap", (place + 2 * HUGE, HUGE, 3, 0x31, -1, 0)),
        Op("madvise", (place + 2 * HUGE, HUGE, 14)),
        Op("store", (place + 3 * HUGE - PAGE,)),
        *UNMAP_ALL,
    )
    steps = side.run(sequence)
    resident = [[vma.figures[0] for vma in step.snapshot.vmas] for step in steps]
    assert [resident[k][-1] for k in (1, 2, 5, 6, 7, 10)] == [32, 36, 512, 576, 608, 2048]
    assert compare.first_divergence(sequence, steps, GuestModel(side).run(sequence)) is None
    scope = replace(guest_scope(side.release), themes=("shmem-sizes",))
    report = Bench(lambda _: GuestModel(side), scope, side).slice(9, sequences=8)
    assert report.agrees, (report.divergences, report.lost)


def test_single_sizes_of_shared_memory_are_for_guests(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(BY_SETTING) < set(CHANGES_MACHINE)  # so that what is saved names them
    assert main(["oracle", "--theme", "shmem-sizes", "--seconds", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "give it a guest of 6.11 or newer" in line


@pytest.mark.parametrize(
    "path", sorted((CORPUS / "debian-6.12").glob("*.json")), ids=lambda p: p.stem
)
def test_what_once_differed_on_6_12_agrees(guest: GuestSide, path: Path) -> None:
    found = Bench(lambda _: GuestModel(guest), real=guest).diverge(
        (*corpus.load(path)[0], *UNMAP_ALL)
    )
    assert found is None, found.differences


@pytest.mark.parametrize(
    "path", sorted((CORPUS / "debian-6.1").glob("*.json")), ids=lambda path: path.stem
)
def test_what_once_differed_on_6_1_agrees(old_guest: GuestSide, path: Path) -> None:
    bench = Bench(lambda _: GuestModel(old_guest), real=old_guest)
    found = bench.diverge((*corpus.load(path)[0], *UNMAP_ALL))
    assert found is None, found.differences


def test_another_kernel_agrees_under_its_own_design(guest: GuestSide) -> None:
    scope = guest_scope(guest.release)
    report: Report = Bench(lambda _: GuestModel(guest), scope, guest).slice(5, sequences=12)
    assert report.agrees, (report.divergences, report.lost)
    assert report.operations > 500


@pytest.mark.parametrize("which", ["guest", "old_guest", "guest_with_mounts"])
def test_a_guest_s_pool_of_huge_pages_agrees(which: str, request: pytest.FixtureRequest) -> None:
    """With 24 pages it is empty now and then; on 6.1 and 6.12 four rules are others than here."""
    side = request.getfixturevalue(which)
    theme = "hugetlbfs" if side.environment.has_mounts else "hugetlb"
    assert side.environment.hugetlb_pages == (19 if side.environment.has_mounts else 24)
    scope = replace(guest_scope(side.release), themes=(theme,))
    report = Bench(lambda _: GuestModel(side), scope, side).slice(8, sequences=12)
    assert report.agrees, (report.divergences, report.lost)
    assert report.operations > 500
    assert any(name == "mmap" and outcome == "ENOMEM" for name, outcome, _ in report.coverage)


def test_what_a_kernel_loses_of_its_pool_is_given_back(guest_with_mounts: GuestSide) -> None:
    """A part of reserved huge pages moves, and the rest stays reserved for good (docs/findings).

    Each time one page of 19 would be gone for the sequences that follow.
    """
    side, place = guest_with_mounts, POOL_S_PLACE
    loses = (
        Op("mmap", (place, 2 * HUGE, 0, 0x4_0032, -1, 0)),
        Op("mremap", (place, HUGE, HUGE, 3, 3 * place)),
    )
    takes_all = (Op("mmap", (place, 19 * HUGE, 3, 0x4_0031, -1, 0)),)
    for shown in (loses, loses, takes_all):
        sequence = (*shown, *UNMAP_ALL)
        steps = side.run(sequence)
        assert steps[len(shown) - 1].outcome.result > 0, steps[0]
        assert compare.first_divergence(sequence, steps, GuestModel(side).run(sequence)) is None


def test_ksmd_and_memory_cgroups_agree_in_a_guest(guest: GuestSide) -> None:
    """cgroup2 has memory.high, too: who is killed has slept before, and nothing else shows.

    In the group beside, 80 of 64 MiB fit, since some may go to swap; beyond that all its members
    are killed.
    """
    side = guest
    for theme, sequences in (("ksm", 12), ("group", 3)):
        scope = replace(guest_scope(side.release), themes=(theme,))
        report = Bench(lambda _: GuestModel(side), scope, side).slice(8, sequences=sequences)
        assert report.agrees, (report.divergences, report.lost)
        assert report.operations > 100
    window, much = 0x1020_0000, ops.MUCH
    shown = (
        Op("mmap", (window, 4 * PAGE, 3, 0x32, -1, 0)),
        Op("madvise", (window, 4 * PAGE, 12)),
        Op("store_value", (window, 7)),
        Op("store_value", (window + PAGE, 7)),
        Op("ksm_scan"),
        *(Op("fill_memory", (size, how)) for size in (ops.LITTLE, much) for how in (0, 1, 2)),
        *(Op("fill_group", (size,)) for size in (ops.LITTLE, ops.MORE, much)),
    )
    steps = side.run(shown)
    assert compare.first_divergence(shown, steps, GuestModel(side).run(shown)) is None
    results = [step.outcome.result for step in steps[-9:]]
    assert results == [0, 0, 0, 9, 9, 9, 0, 0, 9 << 32 | 9]
    less = GuestModel(side)
    less.environment = replace(less.environment, filled_pages=memory_group.LIMIT >> 12)
    differs = compare.first_divergence(shown, steps, less.run(shown))
    assert differs is not None  # a model whose group has nothing in swap is found out
    assert shown[differs.at] == Op("fill_group", (ops.MORE,))
    (vma,) = steps[4].snapshot.vmas
    assert vma.figures[FIGURES.index("KSM")] == 8


def test_ksmd_agrees_where_smaps_does_not_tell_what_is_merged(old_guest: GuestSide) -> None:
    """Before 6.6 what Locked and Rss show of it is compared, and what calls return."""
    scope = replace(guest_scope(old_guest.release), themes=("ksm",))
    report = Bench(lambda _: GuestModel(old_guest), scope, old_guest).slice(8, sequences=8)
    assert report.agrees, (report.divergences, report.lost)
    assert report.operations > 100


def test_a_guest_swaps_to_a_disk_of_its_own(guest_with_mounts: GuestSide) -> None:
    side = guest_with_mounts
    assert side.environment.swap_pages > 16_000
    paged_out = (
        Op("mmap", (PLACE, 4 * PAGE, 3, 0x32, -1, 0)),
        Op("store", (PLACE,)),
        Op("store", (PLACE + PAGE,)),
        Op("madvise", (PLACE, 4 * PAGE, 21)),
        Op("load", (PLACE,)),
    )
    steps = side.run(paged_out)
    swap = FIGURES.index("Swap")
    assert [step.snapshot.vmas[0].figures[swap] for step in steps[2:]] == [0, 8, 4]
    assert compare.first_divergence(paged_out, steps, GuestModel(side).run(paged_out)) is None
    scope = replace(guest_scope(side.release), themes=("swap",))
    report = Bench(lambda _: GuestModel(side), scope, side).slice(8, sequences=20)
    assert report.agrees, (report.divergences, report.lost)
    assert report.operations > 500


def test_a_guest_gives_ksmd_of_the_host_no_work(guest: GuestSide) -> None:
    """QEMU would let its whole memory be mergeable, and disturb whoever uses ksmd beside it."""
    pid = guest._guest_process._guest.process.pid
    flags = re.findall(r"VmFlags:(.*)", Path(f"/proc/{pid}/smaps").read_text())
    assert flags
    assert not any(" mg" in line for line in flags)


@pytest.mark.parametrize(("release", "watches"), [("5.10.0-32", False), ("6.1.0-56", True)])
def test_guests_are_asked_of_userfaultfd_what_they_have(release: str, watches: bool) -> None:
    generator = Generator(3, replace(guest_scope(release), themes=("swap", "pageout")))
    names = {op.name for _ in range(40) for op in generator.sequence()}
    assert "madvise" in names
    assert any(name.startswith("uffd") for name in names) == watches
    assert ("uffd" in guest_scope(release).themes) == watches
    with pytest.raises(UserError, match=r"no UFFDIO_MOVE: theme uffd-move needs 6\.8 or newer"):
        guest_scope(release, ["swap", "uffd-move"])
    assert guest_scope("6.12.117+deb12", ["uffd-move"]).themes == ("uffd-move",)


def test_sizes_that_a_guest_does_not_know_are_refused_for_a_saved_sequence_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its shared memory is of small pages alone, which the model would take for a difference."""
    needs(OLD_KERNEL)
    path = tmp_path / "sizes.json"
    path.write_text('{"themes": ["shmem-sizes"], "operations": [["brk", 0]]}')
    for asked in (["--replay", str(path)], ["--theme", "shmem-sizes"]):
        assert main(["oracle", "--kernel", OLD_KERNEL, *asked]) == 2
        assert (
            capsys.readouterr()
            .err.splitlines()[-1]
            .endswith("has no hugepages-*kB/shmem_enabled: theme shmem-sizes needs 6.11 or newer")
        )


def test_a_kernel_that_cannot_watch_shared_memory_is_not_asked_to() -> None:
    with pytest.raises(UserError, match=r"^5\.10\.0-32 can't watch .*theme uffd needs 5\.19"):
        guest_scope("5.10.0-32", ["uffd"])


def test_what_a_userfaultfd_watches_agrees_on_6_1(old_guest: GuestSide) -> None:
    scope = guest_scope(old_guest.release, ["uffd"])
    report = Bench(lambda _: GuestModel(old_guest), scope, old_guest).slice(6, sequences=16)
    assert report.agrees, (report.divergences, report.lost)
    asked = {(name, outcome) for name, outcome, _ in report.coverage}
    assert {("uffd_continue", "ok"), ("uffd_writeprotect", "ok"), ("uffd_copy", "ok")} <= asked


ACROSS_THE_END = (  # of a file that is sealed against growing
    Op("mmap", (PLACE, 4 * PAGE, 3, 0x8032, -1, 0)),
    Op("add_seals", (0, 4)),
    Op("pwrite", (0, PLACE, 3 * PAGE, 14 * PAGE)),
)
DATED = {  # rule: a sequence that shows it
    "guards": (Op("mmap", (PLACE, PAGE, 3, 0x32, -1, 0)), Op("madvise", (PLACE, PAGE, 102))),
    "merges_untouched": (
        Op("mmap", (PLACE, PAGE, 3, 0x32, -1, 0)),
        Op("store", (PLACE,)),
        Op("mprotect", (PLACE, PAGE, 1)),
        Op("mmap", (PLACE + PAGE, PAGE, 3, 0x32, -1, 0)),
        Op("mprotect", (PLACE, PAGE, 3)),
    ),
    "mremap_checks_first": (
        Op("mmap", (OTHER, PAGE, 3, 0x32, -1, 0)),
        Op("mmap", (PLACE, PAGE, 3, 0x32, -1, 0)),
        Op("mremap", (PLACE, 0, PAGE, 3, OTHER)),
    ),
    "memory_merge": (
        Op("set_memory_merge", (1,)),
        Op("mmap", (PLACE, PAGE, 3, 0x32, -1, 0)),
        Op("mmap", (PLACE + PAGE, PAGE, 3, 0x32, -1, 0)),
    ),
    "moves_many": (
        Op("mmap", (PLACE, 2 * PAGE, 3, 0x32, -1, 0)),
        Op("mprotect", (PLACE, PAGE, 1)),
        Op("mremap", (PLACE, 2 * PAGE, 2 * PAGE, 3, OTHER)),
    ),
    "watches_droppable": (
        Op("mmap", (PLACE, PAGE, 3, 0x38, -1, 0)),
        Op("uffd_register", (PLACE, PAGE, 1)),
    ),
    "advises_itself": (
        Op("mmap", (PLACE, PAGE, 3, 0x32, -1, 0)),
        Op("process_madvise", (PLACE, PAGE, 4)),
    ),
    "reclaims_tables": (
        Op("mmap", (0x4000_0000, 0x40_0000, 3, 0x32, -1, 0)),
        Op("store", (0x4000_0000,)),
        Op("madvise", (0x4000_0000, 0x40_0000, 4)),
    ),
    "dontunmap_resets_offset": (
        Op("mmap", (PLACE, 4 * PAGE, 3, 0x32, -1, 0)),
        Op("store", (PLACE,)),
        Op("mremap", (PLACE, 4 * PAGE, 4 * PAGE, 3, OTHER)),
        Op("mremap", (OTHER, 4 * PAGE, 4 * PAGE, 7, 2 * OTHER)),
        Op("mmap", (OTHER - PAGE, PAGE, 3, 0x32, -1, 0)),
    ),
    "collapse_needs_writable": (
        Op("mmap", (0x4000_0000, 0x20_0000, 3, 0x22, -1, 0)),
        Op("store", (0x4000_0000,)),
        Op("mprotect", (0x4000_0000, 0x20_0000, 1)),
        Op("madvise", (0x4000_0000, 0x20_0000, 25)),
    ),
    "disables_unadvised": (
        Op("set_thp_disable", (1, 2)),
        Op("mmap", (0x4000_0000, 0x20_0000, 3, 0x22, -1, 0)),
        Op("madvise", (0x4000_0000, 0x20_0000, 14)),
        Op("store", (0x4000_0000,)),
    ),
    "write_piece": ACROSS_THE_END,
    "seal_exec_asks_writers": (
        Op("mmap", (PLACE, PAGE, 0, 1, 1, 0)),
        Op("add_seals", (1, 32)),
    ),
    "dontunmap_leaks_locked": (
        Op("mmap", (PLACE, 4 * PAGE, 3, 0x2032, -1, 0)),
        Op("mremap", (PLACE + PAGE, PAGE, PAGE, 7, OTHER)),
    ),
}


@pytest.mark.parametrize("rule", DATED)
def test_a_dated_rule_is_seen_on_both_sides_of_its_date(guest: GuestSide, rule: str) -> None:
    """6.12 does as its design says, and otherwise than 6.18's, which other tests have judged."""
    assert getattr(design_of(guest.release).design, rule) != getattr(linux("6.18"), rule)
    sequence = (*DATED[rule], *UNMAP_ALL)
    real = guest.run(sequence)
    assert compare.first_divergence(sequence, real, GuestModel(guest).run(sequence)) is None
    newer = GuestModel(guest)
    newer.design = linux("6.18")
    assert compare.first_divergence(sequence, real, newer.run(sequence)) is not None


HUGE, POOL_S_PLACE = 2 << 20, 0x2000_0000
AT_HUGE = 0x4000_0000


def _zeros(at: int, pages: int) -> tuple[Op, ...]:
    """Make pages of zeros that ksmd may merge."""
    return (
        Op("mmap", (at, pages * PAGE, 3, 0x32, -1, 0)),
        Op("madvise", (at, pages * PAGE, 12)),
        Op("madvise", (at, pages * PAGE, 23)),
    )


BETWEEN_6_1_AND_6_12 = {  # rule: a sequence that shows it
    "uffd_poison": (
        Op("mmap", (PLACE, PAGE, 3, 0x32, -1, 0)),
        Op("uffd_register", (PLACE, PAGE, 1)),
        Op("uffd_poison", (PLACE, PAGE, 0)),
    ),
    "uffd_move": (
        Op("mmap", (PLACE, PAGE, 3, 0x32, -1, 0)),
        Op("mmap", (OTHER, PAGE, 3, 0x32, -1, 0)),
        Op("store", (OTHER,)),
        Op("uffd_register", (PLACE, PAGE, 1)),
        Op("uffd_move", (PLACE, PAGE, OTHER, 0)),
    ),
    "uffd_nothing_above": (Op("uffd_register", (TASK_SIZE - 2 * PAGE, PAGE, 1)),),
    "uffd_sizes_devices": (
        Op("mmap", (PLACE, PAGE, 3, 0x12, ops.ZERO_SLOT, 0)),
        Op("uffd_register", (PLACE, PAGE, 1)),
        Op("uffd_copy", (PLACE, 0)),
    ),
    "uffd_merges_parts": (
        Op("mmap", (PLACE, 8 * PAGE, 3, 0x32, -1, 0)),
        Op("uffd_register", (PLACE, 8 * PAGE, 1)),
        Op("mmap", (PLACE + 5 * PAGE, PAGE, 3, 0x32, -1, 0)),
        Op("uffd_unregister", (PLACE + 4 * PAGE, PAGE)),
    ),
    "uffd_protects_across": (
        Op("mmap", (PLACE, 2 * PAGE, 3, 0x32, -1, 0)),
        Op("uffd_register", (PLACE, 2 * PAGE, 2)),
        Op("mprotect", (PLACE, PAGE, 1)),
        Op("uffd_writeprotect", (PLACE, 2 * PAGE, 1)),
    ),
    "uffd_continues_protected": (
        Op("mmap", (PLACE, PAGE, 3, 0x11, 0, 0)),
        Op("uffd_register", (PLACE, PAGE, 6)),
        Op("uffd_continue", (PLACE, PAGE, 2)),
    ),
    "uffd_prepares_first": (  # what has an anon_vma is copied by a fork, with its page table
        Op("mmap", (PLACE, PAGE, 1, 0x12, 0, 0)),
        Op("load", (PLACE,)),
        Op("uffd_copy", (PLACE, 0)),
        Op("fork"),
    ),
    "counted_grow": (
        Op("shmat", (PLACE, 0)),
        Op("mprotect", (PLACE + PAGE, PAGE, 0)),
        Op("mprotect", (PLACE, 3 * PAGE, 0)),
    ),
    "interleaves_by_weight": (
        Op("mmap", (PLACE, PAGE, 3, 0x32, -1, 0)),
        Op("mbind", (PLACE, PAGE, 6, 1, 0)),
    ),
    "balances_preferred": (
        Op("mmap", (PLACE, PAGE, 3, 0x32, -1, 0)),
        Op("mbind", (PLACE, PAGE, 5 | 0x2000, 1, 0)),
    ),
    "ksm_zeros_first": (
        *_zeros(PLACE, 4),
        Op("ksm_scan"),
        Op("ksm_zero_pages", (1,)),
        *_zeros(OTHER, 2),
        Op("ksm_scan"),
    ),
    "ksm_marks_zeros": (
        Op("ksm_zero_pages", (1,)),
        *_zeros(PLACE, 4),
        Op("ksm_scan"),
        Op("ksm_unmerge"),
    ),
    "ksm_unshares": (*_zeros(PLACE, 4), Op("ksm_scan"), Op("ksm_unmerge")),
    "free_sharing": (
        Op("mmap", (AT_HUGE, HUGE, 3, 0x32, -1, 0)),
        Op("madvise", (AT_HUGE, HUGE, 14)),
        Op("store", (AT_HUGE,)),
        Op("madvise", (AT_HUGE, PAGE, 4)),
        Op("madvise", (AT_HUGE + PAGE, PAGE, 8)),
    ),
    "unmerges_closed": (
        *_zeros(PLACE, 8),
        Op("mprotect", (PLACE + 3 * PAGE, PAGE, 0)),
        Op("ksm_scan"),
        Op("ksm_unmerge"),
        Op("ksm_most", (5,)),
    ),
    "ksm_finds_closed": (
        Op("ksm_most", (3,)),
        *_zeros(PLACE, 12),
        Op("mprotect", (PLACE + 6 * PAGE, PAGE, 0)),
        Op("mlock", (PLACE, 12 * PAGE)),
        Op("ksm_scan"),
    ),
    "finds_zeros": (
        Op("mmap", (AT_HUGE, HUGE, 3, 0x32, -1, 0)),
        Op("madvise", (AT_HUGE, HUGE, 14)),
        Op("madvise", (AT_HUGE, HUGE, 12)),
        Op("store_value", (AT_HUGE, 7)),
        Op("store_value", (AT_HUGE + PAGE, 7)),
        Op("ksm_scan"),
        Op("mmap", (PLACE, PAGE, 3, 0x32, -1, 0)),
        Op("madvise", (PLACE, PAGE, 12)),
        Op("store_value", (PLACE, 7)),
        Op("ksm_scan"),
    ),
}


@pytest.mark.parametrize("which", ["old_guest", "guest"])
def test_rules_between_6_1_and_6_12_are_seen_on_both_sides(
    which: str, request: pytest.FixtureRequest
) -> None:
    """Either kernel does as its own design says, and otherwise where one rule is the other's."""
    side = request.getfixturevalue(which)
    mine = design_of(side.release).design
    others = linux("6.12" if which == "old_guest" else "6.1")
    for rule, shown in BETWEEN_6_1_AND_6_12.items():
        sequence = (*shown, *UNMAP_ALL)
        real = side.run(sequence)
        model = GuestModel(side)
        agrees = compare.first_divergence(sequence, real, model.run(sequence))
        assert agrees is None, (rule, agrees)
        assert getattr(mine, rule) != getattr(others, rule), rule
        model.design = replace(mine, **{rule: getattr(others, rule)})
        assert compare.first_divergence(sequence, real, model.run(sequence)) is not None, rule


def _of_a_child_s_part(advice: int) -> tuple[Op, ...]:
    """Give an advice for eight of the pages of a huge page that parent and child have both.

    Its first page the parent has alone, and no more than 512 entries map it.
    """
    return (
        Op("mmap", (AT_HUGE, HUGE, 3, 0x32, -1, 0)),
        Op("madvise", (AT_HUGE, HUGE, 14)),
        Op("store", (AT_HUGE,)),
        Op("madvise", (AT_HUGE + PAGE, 299 * PAGE, 4)),
        Op("madvise", (AT_HUGE, PAGE, 10)),
        Op("into_child"),
        Op("madvise", (AT_HUGE + 300 * PAGE, 8 * PAGE, advice)),
    )


@pytest.mark.parametrize(("rule", "advice"), [("cold_sharing", 20), ("free_sharing", 8)])
@pytest.mark.parametrize("which", ["guest", "real"])
def test_what_others_map_is_guessed_to_6_14_and_known_since(
    which: str, rule: str, advice: int, request: pytest.FixtureRequest
) -> None:
    side = request.getfixturevalue(which)
    model: ModelSide = GuestModel(side) if which != "real" else ModelSide(side.environment)
    mine = model.design
    if getattr(mine, rule) not in ("guess", "address space"):
        pytest.skip(f"{mine.kernel} neither guesses nor knows")
    sequence = (*_of_a_child_s_part(advice), *UNMAP_ALL)
    real = side.run(sequence)
    agrees = compare.first_divergence(sequence, real, model.run(sequence))
    assert agrees is None, agrees
    others = {"guess": "address space", "address space": "guess"}[getattr(mine, rule)]
    model.design = replace(mine, **{rule: others})
    assert compare.first_divergence(sequence, real, model.run(sequence)) is not None


GIVEN_UP_AND_WANTED_AGAIN = (  # the pool has 24: what was given up is somebody else's to 6.8
    Op("mmap", (POOL_S_PLACE, HUGE, 3, 0x4_0032, -1, 0)),
    Op("store", (POOL_S_PLACE,)),
    Op("madvise", (POOL_S_PLACE, HUGE, 4)),
    Op("mmap", (2 * POOL_S_PLACE, 24 * HUGE, 3, 0x4_0031, -1, 0)),
    Op("store", (POOL_S_PLACE,)),
)
BOTH_PAGES_AT_ONCE = (  # as above, of a mapping that is filled in one go
    Op("mmap", (POOL_S_PLACE, 2 * HUGE, 3, 0x4_8032, -1, 0)),
    Op("munmap", (POOL_S_PLACE, 2 * HUGE)),
    Op("mmap", (2 * POOL_S_PLACE, 25 * HUGE, 3, 0x4_0031, -1, 0)),
)
NO_PAGE_LEFT = (  # so no anon_vma to 6.8, and a fork copies no page table
    Op("mmap", (POOL_S_PLACE, HUGE, 3, 0x4_4032, -1, 0)),
    Op("store", (POOL_S_PLACE,)),
    Op("munmap", (POOL_S_PLACE, HUGE)),
    Op("mmap", (2 * POOL_S_PLACE, 24 * HUGE, 3, 0x4_0031, -1, 0)),
    Op("mmap", (POOL_S_PLACE, HUGE, 3, 0x4_4032, -1, 0)),
    Op("store", (POOL_S_PLACE,)),
    Op("fork", ()),
)
HINT_INSIDE = (Op("mmap", (POOL_S_PLACE + PAGE, HUGE, 3, 0x4_0022, -1, 0)),)
KEPT_AND_LOST = (  # of a mount that keeps two: afterwards the pool is short of one to 6.13
    Op("mmap", (POOL_S_PLACE, HUGE, 3, 0x4002, 9, 0)),
    Op("store", (POOL_S_PLACE,)),
    Op("munmap", (POOL_S_PLACE, HUGE)),
    Op("mmap", (2 * POOL_S_PLACE, 19 * HUGE, 3, 0x4_0031, -1, 0)),
)
OF_POOLS = {
    "zap_restores_reserve": ("old_guest", GIVEN_UP_AND_WANTED_AGAIN),
    "huge_fault_takes_page_first": ("old_guest", NO_PAGE_LEFT),
    "huge_hints_round_down": ("guest", HINT_INSIDE),
    "kept_pages_leak": ("guest_with_mounts", KEPT_AND_LOST),
}


def test_a_mapping_filled_at_once_gives_its_pages_back_once_to_6_8(old_guest: GuestSide) -> None:
    real = old_guest.run(BOTH_PAGES_AT_ONCE)
    assert real[-1].outcome.result == -ENOMEM
    model = GuestModel(old_guest).run(BOTH_PAGES_AT_ONCE)
    assert compare.first_divergence(BOTH_PAGES_AT_ONCE, real, model) is None


@pytest.mark.parametrize("rule", OF_POOLS)
def test_a_dated_rule_of_huge_pages_is_seen_in_a_guest(
    rule: str, request: pytest.FixtureRequest
) -> None:
    which, sequence = OF_POOLS[rule]
    side = request.getfixturevalue(which)
    real = side.run(sequence)
    model = GuestModel(side)
    newer = getattr(linux("6.18"), rule)
    assert getattr(model.design, rule) != newer
    assert compare.first_divergence(sequence, real, model.run(sequence)) is None
    model.design = replace(model.design, **{rule: newer})
    assert compare.first_divergence(sequence, real, model.run(sequence)) is not None


REFUSED = {  # release: what guests showed of the pool's reserve, and what statfs left (see below)
    "6.12.117": (0, 6, 4),
    "6.17.13": (-2, 2, 3),
    "6.19.14": (-2, 6, 3),
    "7.2.13": (-2, 6, 3),
    "7.3.4": (0, 6, 3),
}


@pytest.mark.parametrize("release", REFUSED)
def test_what_a_mount_loses_where_the_pool_is_empty_depends_on_the_release(
    release: str, real: RealSide
) -> None:
    """A mapping that wants six pages of a mount that keeps two; a fault of one that keeps none."""
    environment = replace(real.environment, hugetlb_pages=3, has_mounts=True)
    model = ModelSide(environment, linux(release))
    model.promised = []
    wanted = (Op("mmap", (POOL_S_PLACE, 6 * HUGE, 3, 0x11, 9, 0)), Op("huge_room", (9,)))
    steps = model.run(wanted)
    assert steps[0].outcome.result == -ENOMEM
    lost = model.promised[-1].huge_reserved - model.promised[0].huge_reserved
    faulting = (
        Op("mmap", (2 * POOL_S_PLACE, 3 * HUGE, 3, 0x4_0031, -1, 0)),
        Op("mmap", (POOL_S_PLACE, HUGE, 3, 0x4011, 7, 0)),
        Op("store", (POOL_S_PLACE,)),
        Op("huge_room", (7,)),
    )
    left = steps[1].outcome.result, model.run(faulting)[-1].outcome.result
    assert (lost, *left) == REFUSED[release]


MERGED_AS_CHANGED = (  # with what is new, and so marked, by what has lost its mark
    Op("mmap", (0, 12 * PAGE, 0, 0x22, -1, 0)),
    Op("clear_refs", (1,)),
    Op("mmap", (Ref(0, PAGE), 4 * PAGE, 7, 0x32, -1, 0)),
    Op("mprotect", (Ref(0, 5 * PAGE), 1, 7)),
)
MERGED_AS_TAKEN_OVER = (
    Op("mmap", (0x1020_3000, 14 * PAGE, 1, 0x22, -1, 0)),
    Op("clear_refs", (1,)),
    Op("mmap", (0, 10 * PAGE, 1, 0x22, -1, 0)),
    Op("mremap", (Ref(2, 5 * PAGE), 1, 1, 3, 0x1020_9000)),
)


@pytest.mark.parametrize("merged", [MERGED_AS_CHANGED, MERGED_AS_TAKEN_OVER])
def test_soft_dirty_marks_get_lost_in_merges_before_6_19(
    guest: GuestSide, merged: tuple[Op, ...]
) -> None:
    """6.19.14 and 7.0.13 kept them; 6.1.192, 6.16.12 and 6.17.13 did as 6.12.117 does."""
    real = guest.run(merged)
    assert compare.first_divergence(merged, real, GuestModel(guest).run(merged)) is None
    newer = GuestModel(guest)
    newer.design = replace(newer.design, merges_keep_mark=True)
    found = compare.first_divergence(merged, real, newer.run(merged))
    assert found is not None
    assert "flags" in found.signature


def test_which_kernels_forget_that_a_huge_page_is_dirty(real: RealSide) -> None:
    """After MADV_FREE and a write, mprotect leaves it clean on 6.6 to 7.2 without the mend."""
    kernels_seen = ("6.1.0-56", "6.12.117+deb12", "6.16.12", "6.19.14", "7.1.13", "7.2.13", "7.3.4")
    seen = []
    for release in kernels_seen:
        steps = ModelSide(real.environment, design_of(release).design).run(
            (
                Op("mmap", (OTHER, 2 << 20, 3, 0x32, ops.NO_FILE, 0)),
                Op("madvise", (OTHER, 2 << 20, 14)),
                Op("store", (OTHER,)),
                Op("madvise", (OTHER, 2 << 20, 8)),
                Op("store", (OTHER,)),
                Op("mprotect", (OTHER, 2 << 20, 1)),
            )
        )
        figures = steps[-1].snapshot.vmas[0].figures
        seen.append(dict(zip(FIGURES, figures, strict=True))["Private_Dirty"])
    assert seen == [2048, 2048, 0, 0, 0, 2048, 2048]


def test_which_kernels_forget_that_shared_huge_pages_are_dirty(real: RealSide) -> None:
    """As 6.17.13 did in a guest, and this host's. Of the second page its entry alone knows."""
    place = 0x2000_0000
    written = (
        Op("mmap", (place, 3 * HUGE, 2, 1, 12, 0)),
        Op("pwrite", (0, place + HUGE, 1, 0)),
        Op("madvise", (place, 2 * HUGE, 23)),
        Op("mprotect", (place, 2 * HUGE, 0)),
    )
    dirty = {
        release: ModelSide(real.environment, linux(release)).run(written)[-1].snapshot.vmas[0]
        for release in ("6.17.13", "6.18.44")
    }
    at = FIGURES.index("Private_Dirty")
    assert [vma.figures[at] for vma in dirty.values()] == [2048, 4096]


CONTINUED_BEYOND = (
    Op("mmap", (OTHER, 4 * PAGE, 3, 0x11, 0, 14 * PAGE)),
    Op("uffd_register", (OTHER, 4 * PAGE, 4)),
    Op("uffd_continue", (OTHER + 3 * PAGE, PAGE, 0)),
)


def test_rules_that_newer_kernels_have_shown(real: RealSide) -> None:
    """As 7.3.4 did in a guest: no registration that ends write protection, no page in a guard's
    place; 6.19.14: no end.
    """
    watched = (
        Op("mmap", (PLACE, PAGE, 3, 0x32, -1, 0)),
        Op("uffd_register", (PLACE, PAGE, 3)),
        Op("uffd_register", (PLACE, PAGE, 1)),
    )
    behind_a_hole = (
        Op("mmap", (0x4000_0000, 0x40_0000, 3, 0x32, -1, 0)),
        Op("store", (0x4020_0000,)),
        Op("madvise", (0x4000_0000, 0x40_0000, 25)),
    )
    in_a_guard_s_place = (
        Op("mmap", (PLACE, PAGE, 3, 0x32, -1, 0)),
        Op("uffd_register", (PLACE, PAGE, 1)),
        Op("madvise", (PLACE, PAGE, 102)),
        Op("uffd_copy", (PLACE, 0)),
    )
    old, new = (ModelSide(real.environment, linux(release)) for release in ("6.18", "7.3"))
    assert old.run(in_a_guard_s_place)[-1].outcome.result == 0
    assert new.run(in_a_guard_s_place)[-1].outcome.result == -EEXIST
    assert old.run(CONTINUED_BEYOND)[-1].outcome.result == -EINVAL
    assert new.run(CONTINUED_BEYOND)[-1].outcome.result == -EFAULT
    assert old.run(watched)[-1].outcome.result == 0
    assert new.run(watched)[-1].outcome.result == -EBUSY
    huge = FIGURES.index("AnonHugePages")
    assert old.run(behind_a_hole)[-1].snapshot.vmas[0].figures[huge] == 0
    assert new.run(behind_a_hole)[-1].snapshot.vmas[0].figures[huge] == 2048


def test_guards_in_a_file_keep_its_mappings_apart_before_6_19(real: RealSide) -> None:
    """As guests of 6.16.12, 6.17.13 and 6.19.14 did: each had got an anon_vma of its own."""
    guarded = (
        Op("mmap", (PLACE, 8 * PAGE, 3, 1, 0, 0)),
        Op("madvise", (PLACE, 4 * PAGE, 1)),
        Op("madvise", (PLACE, PAGE, 102)),
        Op("madvise", (PLACE + 5 * PAGE, PAGE, 102)),
        Op("madvise", (PLACE, 4 * PAGE, 0)),
    )
    seen = {
        release: len(ModelSide(real.environment, linux(release)).run(guarded)[-1].snapshot.vmas)
        for release in ("6.16.12", "6.17.13", "6.18.36", "6.18.37", "6.19.14")
    }
    assert list(seen.values()) == [2, 2, 2, 1, 1]


def test_segments_of_huge_pages_are_watched_up_to_7_0(real: RealSide) -> None:
    """As guests of 7.0.13, 7.1.13 and 7.2.13 did."""
    environment = replace(real.environment, hugetlb_pages=8)
    watched = (
        Op("huge_shmat", (POOL_S_PLACE, 0)),
        Op("uffd_register", (POOL_S_PLACE, HUGE, 1)),
    )
    given = [
        ModelSide(environment, linux(release)).run(watched)[-1].outcome.result
        for release in ("7.0.13", "7.1.13", "7.2.13")
    ]
    assert given == [0, -EINVAL, -EINVAL]


def test_a_collapse_of_no_whole_huge_page_is_none_from_7_2_on(real: RealSide) -> None:
    """As guests of 7.1.13, 7.2.13 and 7.3.4 did."""
    in_the_last = (
        Op("mmap", (0x4000_0000, 0x40_0000, 3, 0x32, -1, 0)),
        Op("store", (0x4000_0000,)),
        Op("madvise", (0x4030_0000, PAGE, 25)),
    )
    given = [
        ModelSide(real.environment, linux(release)).run(in_the_last)[-1].outcome.result
        for release in ("7.1.13", "7.2.13", "7.3.4")
    ]
    assert given == [-EINVAL, 0, 0]


def test_rules_whose_first_release_a_guest_has_shown(real: RealSide) -> None:
    """As guests of 6.16.12, 6.17.13, 6.19.14, 7.0.13, 7.1.13, 7.2.13 and 7.3.4 did."""
    releases = ("6.16.12", "6.17.13", "6.19.14", "7.0.13", "7.1.13", "7.2.13", "7.3.4")
    environment = replace(real.environment, hugetlb_pages=8)
    models = [ModelSide(environment, linux(release)) for release in releases]
    unknown_advice = (Op("process_madvise", (0, 0, 6)),)
    sealed_device = (
        Op("mmap", (PLACE, PAGE, 1, 0x12, 3, 0)),
        Op("mseal", (PLACE, PAGE, 0)),
        Op("madvise", (PLACE, PAGE, 4)),
    )
    huge = (
        Op("mmap", (POOL_S_PLACE, HUGE, 3, 0x4_0032, -1, 0)),
        Op("madvise", (POOL_S_PLACE, HUGE, 11)),
    )
    device = (Op("mmap", (0, HUGE + PAGE, 3, 2, 3, 0)),)

    def ends(sequence: tuple[Op, ...]) -> list[int]:
        return [model.run(sequence)[-1].outcome.result for model in models]

    assert ends(unknown_advice) == [0, 0, 0, 0, 0, -EINVAL, -EINVAL]
    assert ends(sealed_device) == [0, -EPERM, -EPERM, -EPERM, -EPERM, -EPERM, -EPERM]
    assert ends(huge) == [0, 0, 0, -EINVAL, -EINVAL, -EINVAL, -EINVAL]
    assert [bool(place % HUGE) for place in ends(device)] == [True, True] + [False] * 5


def test_what_moves_on_7_3_merges_less(real: RealSide) -> None:
    """As 7.3.4 did in a guest, where 7.2.13 did as before: two rules that a campaign found."""
    all_watched = (
        Op("mmap", (OTHER, 16 * PAGE, 0, 0x22, -1, 0)),
        Op("uffd_register", (OTHER, 16 * PAGE, 1)),
        Op("mremap", (OTHER + 6 * PAGE, PAGE, PAGE, 3, OTHER + 10 * PAGE)),
    )
    written_to = (
        Op("mmap", (OTHER, 8 * PAGE, 3, 0x8002, 0, 15 * PAGE)),
        Op("mremap", (OTHER + 6 * PAGE, PAGE, 2 * PAGE, 1, 0)),
        Op("mmap", (0, 9 * PAGE, 3, 2, 0, 12 * PAGE)),
    )
    of_zero = tuple(
        (
            Op("mmap", (0, PAGE, 3, touched | 2, ops.FILES.index("zero"), 3 * PAGE)),
            Op("mremap", (Ref(0, 0), PAGE, PAGE, 3, OTHER)),
            Op("mmap", (OTHER + PAGE, PAGE, 3, 0x12, ops.FILES.index("zero"), 4 * PAGE)),
        )
        for touched in (0x8000, 0)
    )
    old, new = (ModelSide(real.environment, linux(release)) for release in ("7.2.13", "7.3.4"))
    before, after = (side.run(all_watched)[-1].snapshot.vmas for side in (old, new))
    assert ["um" in vma.flags for vma in before] == [False, False]
    assert ["um" in vma.flags for vma in after] == [True, True, False, True]
    lengths = [
        [vma.end - vma.start >> 12 for vma in side.run(written_to)[-1].snapshot.vmas][-2:]
        for side in (old, new)
    ]
    assert lengths == [[1, 11], [9, 2]]
    counts = [
        [len(side.run(sequence)[-1].snapshot.vmas) for side in (old, new)] for sequence in of_zero
    ]
    assert counts == [[1, 2], [2, 2]]  # what was never touched has the offset of its new place


BEYOND_THE_END = (
    Op("mmap", (OTHER, 4 * PAGE, 3, 0x11, 0, 14 * PAGE)),
    Op("uffd_register", (OTHER, 4 * PAGE, 1)),
    Op("uffd_copy", (OTHER + 3 * PAGE, 0)),
)
NO_PAGE_S_ADDRESS = (Op("mremap", (OTHER, PAGE, PAGE, 3, PLACE + 1)),)
A_TERABYTE = (
    Op("mmap", (OTHER, PAGE, 3, 0x32, -1, 0)),
    Op("uring_register", (OTHER, 1 << 40)),
)
SHOWN = {  # release: what each sequence's last operation gave in a guest (the host's is 6.18)
    "6.1": (2 * PAGE, -EFAULT, -EINVAL, -EFAULT, -EFAULT),
    "6.12": (-EPERM, -EFAULT, -EINVAL, -EFAULT, -EFAULT),
    "6.12.117": (-EPERM, -EFAULT, 0, -EFAULT, -EFAULT),
    "6.16.12": (2 * PAGE, -EFAULT, -EINVAL, -EINVAL, -EFAULT),
    "6.19.14": (2 * PAGE, -EFAULT, -EINVAL, -EINVAL, -EFAULT),
    "7.0.13": (2 * PAGE, -EFAULT, 0, -EINVAL, -EFAULT),
    "7.1.13": (2 * PAGE, -ENOMEM, 0, -EINVAL, -EFAULT),
    "7.2.13": (-EPERM, -ENOMEM, 0, -EINVAL, -EOVERFLOW),
    "7.3.4": (-EPERM, -ENOMEM, 0, -EINVAL, -EOVERFLOW),
}


@pytest.mark.parametrize("release", SHOWN)
def test_errors_that_have_changed_are_those_of_each_release(real: RealSide, release: str) -> None:
    least = real.environment.mmap_min_addr
    below_the_least = (
        Op("mmap", (least, PAGE, 3, 0x11, 0, 0)),
        Op("uffd_register", (least - PAGE, 2 * PAGE, 1)),
    )
    model = ModelSide(real.environment, linux(release))
    sequences = (ACROSS_THE_END, BEYOND_THE_END, below_the_least, NO_PAGE_S_ADDRESS, A_TERABYTE)
    assert tuple(model.run(one)[-1].outcome.result for one in sequences) == SHOWN[release]


def test_what_dontunmap_leaves_is_not_accounted_from_6_15_to_6_17(real: RealSide) -> None:
    kept = (
        Op("mmap", (PLACE, 4 * PAGE, 3, 0x32, -1, 0)),
        Op("mremap", (PLACE + PAGE, PAGE, PAGE, 7, OTHER)),
    )
    seen = {
        release: ModelSide(real.environment, linux(release)).run(kept)[-1].snapshot.vmas[0].flags
        for release in ("6.14", "6.15", "6.17.6", "6.18")
    }
    assert ["ac" in flags for flags in seen.values()] == [True, False, True, True]


def test_what_an_old_kernel_does_not_show_is_left_out() -> None:
    assert any(hidden_by("6.1.0-56-cloud-amd64"))
    assert not any(hidden_by("6.12.117+deb12-cloud-amd64"))


def test_sequences_keep_away_from_a_ring_that_nothing_seals() -> None:
    generator = Generator(11, guest_scope("6.1.0"))
    for op in (op for _ in range(100) for op in generator.sequence()[:-2]):
        if op.name in ("munmap", "mprotect", "madvise", "mlock") and isinstance(op.args[0], int):
            assert op.args[0] + min(op.args[1], PAGE) < RING or op.args[1] <= PAGE  # type: ignore[operator]
    shortened = away_from_ring(Op("munmap", (Ref(0), TASK_SIZE)))
    assert shortened.args[1] < BELOW_RING  # type: ignore[operator]


def test_a_kernel_that_does_not_boot_is_one_clear_line(tmp_path: object) -> None:
    with pytest.raises(UserError, match="debian:six"), booted("debian:six"):
        pass
