"""The real kernel judges the model: what was once different stays the same."""

from __future__ import annotations

import gc
import itertools
import json
import os
import platform
import random
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path

import pytest
from processes import children_of_threads, has_ended
from turns import when_its_turn_comes

from zaplock import advice
from zaplock.cli import main
from zaplock.designs.linux import design_of
from zaplock.engines import sequential
from zaplock.engines.direct import PlainForms
from zaplock.errors import UserError
from zaplock.oracle import (
    bare_process,
    campaign,
    compare,
    corpus,
    huge_mounts,
    huge_pool,
    ksm,
    memory_group,
    ops,
    program,
    ring,
    script,
    seeded_faults,
    shrink,
    stub,
    swap_file,
)
from zaplock.oracle.bare_process import BareProcess, Lost, check_machine, has_swap
from zaplock.oracle.campaign import Bench
from zaplock.oracle.draw import Draw
from zaplock.oracle.draw_arguments import MAKERS, MAKERS_OF_THEMES, WEIGHTS
from zaplock.oracle.draw_neighbours import goes_on
from zaplock.oracle.generate import Generator
from zaplock.oracle.modelops import OPERATIONS, apply
from zaplock.oracle.modelside import COVERED, ModelSide, model_side
from zaplock.oracle.observe import NEW_FIGURES, Parser
from zaplock.oracle.ops import Op, OracleStep, Ref
from zaplock.oracle.program_operations import patient_ns
from zaplock.oracle.real import RealSide
from zaplock.oracle.themes import THEMES
from zaplock.oracle.windows import MOST_FILLED, PAGE, UNMAP_ALL
from zaplock.oracle.world import World

CORPUS_AT = Path(__file__).parent / "corpus"
CORPUS = sorted(CORPUS_AT.glob("*.json"))
WINDOW = 0x1020_0000


def can_run() -> bool:
    try:
        check_machine()
    except UserError:
        return False
    return tuple(int(part) for part in platform.release().split(".")[:2]) >= (6, 17)


needs_kernel = pytest.mark.skipif(
    not can_run(), reason="the rules are those of x86-64 Linux 6.17 and later"
)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    both = Bench(model_side, COVERED)
    yield both
    both.close()


@contextmanager
def bench_of(theme: str) -> Iterator[Bench]:
    """Compare sequences of one theme."""
    with closing(Bench(model_side, replace(COVERED, themes=(theme,)))) as both:
        yield both


@needs_kernel
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_once_differed_agrees(bench: Bench, path: Path) -> None:
    sequence, _ = corpus.load(path)
    found = bench.diverge((*sequence, *UNMAP_ALL))
    assert found is None, found.differences


@needs_kernel
def test_the_model_says_the_same_as_plain_functions(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator(8, COVERED)
    sequences = [generator.sequence() for _ in range(24)]
    forms = PlainForms(sequential._take)
    monkeypatch.setattr(sequential, "PLAIN_FORMS", forms)
    awaited = [bench.model.run(sequence) for sequence in sequences]
    assert forms.runs_left
    forms.runs_left = 0
    assert [bench.model.run(sequence) for sequence in sequences] == awaited
    assert len(forms) > 100


@needs_kernel
def test_a_sequence_leaves_nothing_to_the_garbage_collector(bench: Bench) -> None:
    sequence = (*Generator(8, COVERED).sequence(), Op("fork"), Op("into_child"))
    bench.model.run(sequence)
    gc.collect()
    gc.disable()
    try:
        bench.model.run(sequence)
        assert gc.collect() == 0
    finally:
        gc.enable()


@needs_kernel
def test_what_is_observed_again_is_the_same_snapshot(bench: Bench) -> None:
    page = ring.PAGE
    steps = bench.real.run(
        (
            Op("mmap", (WINDOW, 2 * page, 3, 0x32, ops.NO_FILE, 0)),
            Op("munmap", (WINDOW + 1, page)),  # EINVAL
            Op("store", (WINDOW,)),
            Op("store", (WINDOW,)),  # other content
            Op("load", (WINDOW,)),
            Op("fork"),
            Op("munmap", (WINDOW, 2 * page)),
        )
    )
    seen = [step.snapshot for step in steps]
    same = [after is before for before, after in itertools.pairwise(seen)]
    assert same == [True, False, False, True, False, False]
    assert seen[3].vmas is seen[2].vmas
    assert seen[3].tags != seen[2].tags
    assert seen[5] == seen[4], "and the child's was read in between"
    assert seen[6].vmas == ()


@needs_kernel
def test_what_moves_where_nothing_was_is_seen_though_all_else_is_as_before(bench: Bench) -> None:
    page, above = ring.PAGE, ring.RING + ring.RING_SIZE + 4 * ring.PAGE
    places = (above, above + 2 * page, ring.RING - 16 * page, above)
    nothing = Op("munmap", (WINDOW + 1, page))  # EINVAL
    sequence = [Op("mmap", (place, page, 0, 0x32, ops.NO_FILE, 0)) for place in (WINDOW, places[0])]
    for was, now in itertools.pairwise(places):
        sequence += [nothing, nothing, Op("mremap", (was, page, page, 3, now))]
    found = bench.diverge((*sequence, nothing, *UNMAP_ALL))
    assert found is None, found.differences
    moved = [
        [vma.start for vma in step.snapshot.vmas]
        for op, step in zip(sequence, bench.real.run(tuple(sequence)), strict=True)
        if op.name == "mremap"
    ]
    assert moved == [[WINDOW, place] for place in places[1:]]


@needs_kernel
def test_every_page_that_may_not_be_read_tells_so(bench: Bench) -> None:
    page, refused = ring.PAGE, -(11 << 16 | 2)
    populated = 0x8032
    sequence = (
        Op("mmap", (WINDOW, 16 * page, 3, populated, ops.NO_FILE, 0)),
        Op("madvise", (WINDOW, 4 * page, advice.MADV_DONTDUMP)),
        Op("mprotect", (WINDOW, 12 * page, 0)),  # two neighbours, and what may be read
        Op("mprotect", (WINDOW + 6 * page, 2 * page, 1)),
        Op("mprotect", (WINDOW + 9 * page, page, 2)),  # to be written only: x86 reads it
        Op("madvise", (WINDOW + 2 * page, 3 * page, advice.MADV_DONTNEED)),
    )
    found = bench.diverge((*sequence, *UNMAP_ALL))
    assert found is None, found.differences
    told = [
        [one < 0 for one in memoryview(step.snapshot.tags).cast("q")]
        for step in bench.real.run(sequence)
    ]
    is_refused = [True] * 12 + [False] * 4
    assert told[0] == told[1] == [False] * 16
    assert told[2] == is_refused
    for k in (6, 7, 9):
        is_refused[k] = False
    assert told[4] == is_refused
    assert told[5] == [*is_refused[:2], *is_refused[5:]]
    last = bench.real.run(sequence)[-1].snapshot.tags
    assert set(memoryview(last).cast("q")) == {0, refused}


def test_an_observation_that_is_as_before_needs_one_before() -> None:
    parser = Parser()
    with pytest.raises(ValueError, match="nothing before"):
        parser.same_again()
    with pytest.raises(ValueError, match="nothing before"):
        parser.snapshot(None, bytes(16), None)


def test_what_is_parsed_by_its_changes_is_what_is_parsed_whole() -> None:
    pick, kept = random.Random(5), Parser()
    starts: list[int] = []
    before: list[bytes] = []
    for _ in range(300):
        if starts and pick.random() < 0.4:
            starts.remove(pick.choice(starts))
        else:
            starts = sorted({*starts, pick.randrange(1, 30) * ring.PAGE})
        locked = frozenset(pick.sample([*starts, ring.RING], pick.randint(0, 2)) if starts else ())
        texts = [_smaps_of(start, start in locked) for start in (*starts, ring.RING)]
        found = kept.snapshot(_changed(before, texts), bytes(16), _STATUS)
        whole = Parser().snapshot(_changed([], texts), bytes(16), _STATUS)
        assert found == whole
        assert [vma.start for vma in found.vmas] == starts
        assert (found.counters[2] < 0) == (ring.RING in locked)
        before = texts


def test_changes_that_begin_or_end_within_a_record_are_refused() -> None:
    smaps = _smaps_of(ring.PAGE, False)
    for head in ((8, 0), (0, 8), (8, 8), (len(smaps) + 8, 0), (0, len(smaps) + 8)):
        parser = Parser()
        parser.snapshot(_changed([], [smaps]), bytes(16), _STATUS)
        with pytest.raises(ValueError, match="is not in list"):
            parser.snapshot(ring.SMAPS_HEAD.pack(*head) + smaps, bytes(16), _STATUS)


def test_a_number_that_outgrows_its_column_is_read_whole() -> None:
    def told(*, peak: int, swap: int) -> bytes:
        kb = {"VmPeak": peak, "VmSwap": swap}
        names = (*ops.COUNTERS, "VmHWM", "VmExe", "VmLib")
        lines = "".join(f"{name}:\t{kb.get(name, 0):8} kB\n" for name in names)
        return f"Name:\tx\n{lines}".encode()

    parser, swap_at = Parser(), ops.COUNTERS.index("VmSwap")
    smaps = _changed([], [_smaps_of(ring.PAGE, False)])
    wide = 1 << 33  # ten digits, where eight have room
    for peak, swap in ((7, 5), (wide, 5), (7, wide), (99_999_999, 5), (wide, wide), (12, 34)):
        counters = parser.snapshot(smaps, bytes(16), told(peak=peak, swap=swap)).counters
        assert (counters[0], counters[swap_at]) == (peak, swap)
        smaps = None


@needs_kernel
def test_mappings_that_outgrow_what_is_kept_of_smaps_and_its_buffer(bench: Bench) -> None:
    """Some 35 are kept and compared, some 46 fit the buffer; they come and go one by one."""
    places = [WINDOW + 2 * number * ring.PAGE for number in range(60)]
    fill = [Op("mmap", (at, ring.PAGE, 3, 0x32, ops.NO_FILE, 0)) for at in places]
    empty = [Op("munmap", (at, ring.PAGE)) for at in places[::-1]]
    sequence = (*fill, Op("store", (WINDOW,)), *empty)
    found = bench.diverge((*sequence, *UNMAP_ALL))
    assert found is None, found.differences
    counts = [len(step.snapshot.vmas) for step in bench.real.run(sequence)]
    assert counts == [*range(1, 61), 60, *range(59, -1, -1)]


@needs_kernel
def test_what_the_bare_process_tells_of_changes_is_what_it_tells_whole(bench: Bench) -> None:
    """It forgets after each observation what it was; then all of the next one is written down."""
    real, generator = bench.real, Generator(20, COVERED)
    forgets = program.Look(ring.OBSERVE, ring.OBSERVE + ring.keep_nothing())
    differed = 0
    for _ in range(20):
        sequence = generator.sequence()
        if ops.shows_references(sequence) or ops.shows_lazyfree(sequence):
            continue  # these have observations of their own
        by_changes = real.run(sequence)
        short = real._child.observed_length()
        built = program.build(sequence, real._names, forgets)
        real._run(built.code)
        whole = real._steps(sequence, built)
        found = compare.first_divergence(sequence, by_changes, whole)
        assert found is None, found.differences
        differed += real._child.observed_length() > 2 * short
    assert differed > 5


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("Rss: 4 kB", "Rss: 4 MB", "not one number a line"),
        ("Rss: 4 kB", "Rss: four kB", "not one number a line"),
        ("Rss: 4 kB\n", "", "no Rss in"),
        ("Private_Hugetlb: 4 kB\n", "", "no Private_Hugetlb in"),
    ],
)
def test_figures_that_no_known_kernel_tells_are_refused(was: str, now: str, told: str) -> None:
    smaps = _smaps_of(ring.PAGE, False)
    assert was.encode() in smaps
    text = _changed([], [smaps.replace(was.encode(), now.encode())])
    with pytest.raises(ValueError, match=told):
        Parser().snapshot(text, bytes(16), _STATUS)


@pytest.mark.parametrize("name", NEW_FIGURES)
def test_a_figure_that_a_kernel_does_not_tell_is_0(name: str) -> None:
    smaps, place = _smaps_of(ring.PAGE, False), ops.FIGURES.index(name)
    for text, kb in ((smaps, 4), (smaps.replace(f"{name}: 4 kB\n".encode(), b""), 0)):
        (vma,) = Parser().snapshot(_changed([], [text]), bytes(16), _STATUS).vmas
        assert vma.figures[place] == kb
        assert vma.figures[ops.FIGURES.index("Hugetlb")] == 8


def _smaps_of(start: int, locked: bool) -> bytes:
    names = [*(name for name in ops.FIGURES if name != "Hugetlb"), *ops.HUGETLB_OF_SMAPS]
    figures = "".join(f"{name}: 4 kB\n" for name in names)
    flags = "rd wr lo" if locked else "rd wr"
    return f"{start:x}-{start + ring.PAGE:x} rw-p 0 00:00 0\n{figures}VmFlags: {flags}\n".encode()


_STATUS = "".join(
    ["Name: x\n", *(f"{name}: 0 kB\n" for name in (*ops.COUNTERS, "VmHWM", "VmExe", "VmLib"))]
).encode()


def _changed(before: list[bytes], now: list[bytes]) -> bytes:
    """Tell of records of smaps what the bare process does: those that are not as before."""
    low = high = 0
    most = min(len(before), len(now))
    while low < most and before[low] == now[low]:
        low += 1
    while high < most - low and before[-1 - high] == now[-1 - high]:
        high += 1
    between = now[low : len(now) - high]
    head = (sum(map(len, now[:low])), sum(map(len, now[len(now) - high :])))
    return ring.SMAPS_HEAD.pack(*head) + b"".join(between)


@needs_kernel
@pytest.mark.skipif(has_swap(), reason="what is paged out goes to the swap that there is")
@pytest.mark.parametrize(
    "path", sorted((CORPUS_AT / "no-swap").glob("*.json")), ids=lambda path: path.stem
)
def test_what_is_paged_out_where_there_is_no_swap(bench: Bench, path: Path) -> None:
    sequence, _ = corpus.load(path)
    found = bench.diverge((*sequence, *UNMAP_ALL))
    assert found is None, found.differences


@needs_kernel
def test_fixed_buffers_agree_where_an_io_uring_can_be_had(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    switch = tmp_path / "io_uring_disabled"
    monkeypatch.setattr(bare_process, "IO_URING_DISABLED", switch)
    switch.write_text("2\n")
    assert main(["oracle", "--theme", "uring", "--seconds", "0.1"]) == 2
    assert "kernel.io_uring_disabled is 2: set it to 0" in capsys.readouterr().err
    monkeypatch.undo()
    try:
        bare_process.check_io_uring()
    except UserError:
        pytest.skip("no io_uring here")
    for path in (CORPUS_AT / "uring").glob("*.json"):
        found = bench.diverge((*corpus.load(path)[0], *UNMAP_ALL))
        assert found is None, found.differences


@needs_kernel
def test_random_sequences_agree(bench: Bench) -> None:
    report = bench.slice(seed=20_18, sequences=60)
    assert report.operations > 2_900
    assert not report.divergences, [(d.sequence, d.differences) for d in report.divergences]
    assert not report.lost, report.lost


@needs_kernel
def test_two_real_kernels_agree_with_each_other() -> None:
    both = Bench(campaign.against_itself)
    try:
        assert both.slice(seed=7, sequences=30).agrees
    finally:
        both.close()


@needs_kernel
def test_a_sequence_has_as_many_operations_as_the_ring_has_room_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """560 stores run and agree; 700 are refused in one line that says how many fit."""
    path = tmp_path / "stores.json"
    first = Op("mmap", (WINDOW, ring.PAGE, 3, 0x32, ops.NO_FILE, 0))
    path.write_text(corpus.dump((first, *[Op("store", (WINDOW,))] * 560), ""))
    assert main(["oracle", "--replay", str(path)]) == 0
    path.write_text(corpus.dump((first, *[Op("store", (WINDOW,))] * 700), ""))
    assert main(["oracle", "--replay", str(path)]) == 2
    told = capsys.readouterr().err
    assert "155,648 fit, which are about 608 operations: take some out of it" in told


@needs_kernel
def test_the_kernels_own_books_are_checked(bench: Bench) -> None:
    """MREMAP_DONTUNMAP of locked memory: VmLck stays too high when nothing is mapped any more."""
    path = Path(__file__).parent / "corpus" / "kernel-dontunmap-of-locked-memory.json"
    sequence, _ = corpus.load(path)
    fault = compare.leftovers(sequence, bench.real.run(sequence))
    assert fault is not None
    assert "leftover VmLck 24 kB" in fault.differences


@needs_kernel
def test_a_broken_model_is_found_shrunk_and_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge rule is taken away; the divergence shrinks to a few lines that run on their own."""
    from zaplock.model import vma

    monkeypatch.setattr(vma, "can_merge", lambda *_: False)
    report = bench.slice(seed=3, sequences=4)
    found = report.divergences[0]
    assert len(found.sequence) <= 8
    assert any(line.startswith(("maps", "end")) for line in found.differences)
    text = script.write(found)
    ran = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert f"op{found.at} {found.sequence[found.at]}" in ran.stdout


@pytest.mark.parametrize(("slot", "mounts"), [(5, False), (7, True)])
def test_a_script_mounts_hugetlbfs_only_for_files_that_lie_there(slot: int, mounts: bool) -> None:
    """Others need no root."""
    sequence = (Op("mmap", (0, 2 << 20, 3, 1, slot, 0)),)
    text = script.write(compare.Divergence(sequence, 0, ("none",)))
    assert ("\nmounts = " in text) == mounts
    assert text.count("files.append(os.memfd_create(") == len(ops.FILES) - 2 + (2 if mounts else 1)


@needs_kernel
def test_the_command_that_comes_next_leads_to_the_same_divergence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zaplock.model import vma

    monkeypatch.setattr(vma, "can_merge", lambda *_: False)
    run = ["oracle", "--seconds", "1", "--seed", "3", "--theme", "move"]

    def following(argv: list[str]) -> list[str]:
        assert main(argv) == 1
        return shlex.split(capsys.readouterr().out.rpartition("next: zaplock ")[2])

    assert following(run) == shlex.split("oracle --seed 3 --theme move --save out/oracle")
    replay = following([*run, "--save", str(tmp_path / "a folder")])
    again = following(replay)
    assert again == [*replay, "--save", "out/oracle"]


@needs_kernel
def test_faults_are_caught_with_their_codes(bench: Bench) -> None:
    sequence = (
        Op("mmap", (WINDOW, 0x1000, 0, 0x32, -1, 0)),
        Op("load", (WINDOW,)),
        Op("store", (0,)),
        Op("load", (0x1234_5678_9000_0000,)),
    )
    results = [step.outcome.result for step in bench.real.run(sequence)]
    told = [compare.result_text(result) for result in results[1:]]
    assert told == ["SIGSEGV (code 2)", "SIGSEGV (code 1)", "SIGSEGV (code 128)"]


def test_equal_seeds_make_equal_sequences() -> None:
    one, other = Generator(5, COVERED), Generator(5, COVERED)
    assert [one.sequence() for _ in range(5)] == [other.sequence() for _ in range(5)]
    assert one.sequence() != Generator(6, COVERED).sequence()


def test_shrinking_keeps_what_is_needed() -> None:
    """Of ten operations the failure needs the third and the eighth, which refers to the third."""
    sequence = tuple(
        Op("munmap", (Ref(2, 0x1000), 0x5000))
        if k == 7
        else Op("mmap", (0, 0x3000, 3, 0x22, -1, 0))
        for k in range(10)
    )

    def fails(tried: tuple[Op, ...]) -> bool:
        return any(
            op.name == "munmap" and isinstance(op.args[0], Ref) and op.args[1] for op in tried
        )

    short = shrink.shrink(sequence, [0] * 10, fails)
    assert [op.name for op in short] == ["mmap", "munmap"]
    assert short[1].args == (Ref(0, 0x1000), 1)


def test_a_removed_operation_is_spelled_out() -> None:
    sequence = (Op("brk", (0,)), Op("brk", (Ref(0, 0x2000),)))
    assert shrink.keep(sequence, [0x5000, 0x7000], [1]) == (Op("brk", (0x7000,)),)


def test_sequences_survive_their_file(tmp_path: Path) -> None:
    sequence = Generator(9).sequence()
    path = tmp_path / "sequence.json"
    path.write_text(corpus.dump(sequence, "why not"))
    assert corpus.load(path) == (sequence, "why not")
    assert corpus.themes_of(path) == frozenset()
    path.write_text(corpus.dump(sequence, "why not", {"swap", "huge"}))
    assert corpus.load(path) == (sequence, "why not")
    assert corpus.themes_of(path) == {"huge", "swap"}
    path.write_text(corpus.dump(sequence, "why not", {"swop"}))
    with pytest.raises(UserError, match=r"no theme 'swop' \(did you mean swap\?\)"):
        corpus.themes_of(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense", "not a sequence of operations"),
        (
            '{"operations": [["mmapp", 1]]}',
            "operation 0: no operation 'mmapp' (did you mean mmap?)",
        ),
        ('{"operations": [["munmap", 1]]}', "has 1 arguments and takes 2: addr, length"),
        ('{"operations": [["brk", {"op": 0}]]}', "refers to operation 0, not an earlier one"),
        ('{"operations": [["brk", "x"]]}', "has the argument 'x', not a number"),
    ],
)
def test_a_broken_file_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    assert main(["oracle", "--replay", str(path)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [["--seconds", "0"], ["--jobs", "0"], ["--theme", "poetry"], ["--replay", "/none"]]
)
def test_bad_arguments_are_one_clear_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["oracle", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(not shutil.which("as"), reason="no assembler here")
def test_the_stub_is_what_its_source_says(tmp_path: Path) -> None:
    source = Path(stub.__file__).with_name("stub.S")
    assembled, binary = tmp_path / "stub.o", tmp_path / "stub.bin"
    subprocess.run(["as", "-o", assembled, source], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", assembled, binary], check=True)
    assert binary.read_bytes() == stub.CODE
    symbols = subprocess.run(["nm", assembled], check=True, capture_output=True, text=True).stdout
    for line in symbols.splitlines():
        offset, _, name = line.split()
        if name.startswith("op_"):
            assert getattr(stub, name[3:].upper()) == int(offset, 16)


@needs_kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="a pool of huge pages is for root to make")
def test_huge_pages_from_a_pool_agree_and_are_given_back() -> None:
    before = huge_pool.given_pages()
    with huge_pool.huge_pages():
        _, free, reserved = huge_pool.pool_figures()
        assert free - reserved >= huge_pool.PAGES  # whatever the kernel has lost before
        with bench_of("hugetlb") as both:
            report = both.slice(seed=31, sequences=30)
            kept = [corpus.load(path)[0] for path in (CORPUS_AT / "huge-pool").glob("*.json")]
            found = [both.diverge((*sequence, *UNMAP_ALL)) for sequence in kept]
    assert kept
    assert found == [None] * len(kept)
    assert huge_pool.given_pages() == before
    assert not report.divergences, [(d.sequence, d.differences) for d in report.divergences]
    assert any(key[1] == "ok" and key[0] == "store" for key in report.coverage)


@needs_kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="a pool of huge pages is for root to make")
def test_pages_of_a_gigabyte_agree_and_are_given_back() -> None:
    sizes = (huge_pool.SIZE, huge_pool.GIGANTIC)
    before = [huge_pool.given_pages(size) for size in sizes]
    try:
        with huge_pool.pages_of_both_sizes(), bench_of("gigantic") as both:
            report = both.slice(seed=4, sequences=6)
            kept = [corpus.load(path)[0] for path in (CORPUS_AT / "gigantic").glob("*.json")]
            found = [both.diverge((*sequence, *UNMAP_ALL)) for sequence in kept]
    except UserError as error:
        pytest.skip(str(error))
    assert found == [None] * 7
    assert [huge_pool.given_pages(size) for size in sizes] == before
    assert not report.divergences, [(d.sequence, d.differences) for d in report.divergences]
    assert any(key[1] == "ok" and key[0] == "store" for key in report.coverage)


@needs_kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="a pool and mounts are for root to make")
def test_files_on_mounts_with_shares_of_the_pool_agree_and_are_given_back() -> None:
    """Two files of one mount use up its four pages; what is cut, punched and unmapped comes back.

    The mounts are attached nowhere, and go with whoever has them.
    """
    before, mounted = huge_pool.given_pages(), Path("/proc/self/mountinfo").read_text()
    with huge_mounts.pages_and_mounts(), bench_of("hugetlbfs") as both:
        assert Path("/proc/self/mountinfo").read_text() == mounted
        report = both.slice(seed=31, sequences=12)
        kept = [corpus.load(path)[0] for path in (CORPUS_AT / "hugetlbfs").glob("*.json")]
        found = [both.diverge((*sequence, *UNMAP_ALL)) for sequence in kept]
        one_mount = (
            Op("fallocate", (7, 0, 0, 3 << 21)),
            Op("fallocate", (8, 1, 0, 2 << 21)),
            Op("huge_room", (7,)),
            Op("ftruncate", (7, 1 << 21)),
            Op("huge_room", (8,)),
        )
        results = [step.outcome.result for step in both.real.run(one_mount)]
        assert both.diverge(one_mount) is None
    assert results == [0, -ENOSPC, 0, 0, 2]
    assert found == [None] * 4
    assert huge_pool.given_pages() == before
    assert not report.divergences, [(d.sequence, d.differences) for d in report.divergences]
    assert not report.lost
    assert any(key[:2] == ("fallocate", "ENOSPC") for key in report.coverage)


def test_a_theme_whose_pages_no_kernel_has_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huge_pool, "POOLS", tmp_path)
    assert main(["oracle", "--theme", "gigantic"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the theme gigantic needs huge pages of 1024 MiB" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="a pool of huge pages is for root to make")
def test_a_pool_of_huge_pages_is_given_back_by_whoever_is_killed() -> None:
    before, owed = huge_pool.given_pages(), huge_pool.owed_pages()
    borrower = (
        "import time; from zaplock.oracle.huge_pool import huge_pages\n"
        "with huge_pages(2): print('has them', flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", borrower], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        during = huge_pool.given_pages()
        process.kill()
    assert said == b"has them\n"
    assert during == before + owed + 2
    deadline = time.monotonic() + 250
    while huge_pool.given_pages() != before:
        assert time.monotonic() < deadline, "the pool still has what the dead one borrowed"
        time.sleep(0.01)


@needs_kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="ksmd is for root to start")
def test_ksmd_is_at_rest_again_after_a_campaign_was_killed(tmp_path: Path) -> None:
    """Also where ksmd was working just then, or a sequence about to start it."""
    try:
        ksm.check_ksm()
    except UserError as error:
        pytest.skip(str(error))
    before = ksm_settings()
    for _ in range(3):
        command = [sys.executable, "-P", "-m", "zaplock", "oracle", "--theme", "ksm"]
        source = str(Path(campaign.__file__).parents[2])
        with subprocess.Popen(
            [*command, "--seconds", "99"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": source},
        ) as oracle:
            deadline = time.monotonic() + 250
            while (ksm.KSM / "run").read_text() != "1\n":
                assert time.monotonic() < deadline, "ksmd was never started"
            oracle.kill()
        deadline = time.monotonic() + 250
        while ksm_settings() != before:
            assert time.monotonic() < deadline, "ksmd is not as it was"
            time.sleep(0.01)
    time.sleep(0.5)
    assert ksm_settings() == before


def ksm_settings() -> list[str]:
    return [(ksm.KSM / name).read_text() for name in ("run", *ksm.SETTINGS)]


def test_what_is_lent_is_given_back_when_the_last_user_is_gone(tmp_path: Path) -> None:
    """The one who asked for it is killed; a process that uses it lives on for a while."""
    asks = (
        "import subprocess, sys, time; from zaplock.oracle import kept\n"
        'note = \'keep(lambda: open(sys.argv[1], "w").close() or 1, '
        'lambda _: __import__("os").unlink(sys.argv[1]))\'\n'
        "with kept.kept(note, sys.argv[1]):\n"
        "    user = subprocess.Popen(['sleep', '99'], pass_fds=kept.ends())\n"
        "    print(user.pid, flush=True); time.sleep(99)"
    )
    taken = tmp_path / "taken"
    command = [sys.executable, "-c", asks, str(taken)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        user = int(process.stdout.readline())
        process.kill()
    time.sleep(0.5)
    assert taken.exists(), "given back under whoever uses it"
    os.kill(user, signal.SIGKILL)
    deadline = time.monotonic() + 250
    while taken.exists():
        assert time.monotonic() < deadline, "never given back"
        time.sleep(0.01)


@needs_kernel
def test_collapsed_memory_agrees() -> None:
    with bench_of("collapse") as both:
        report = both.slice(seed=32, sequences=30)
    assert not report.divergences, [(d.sequence, d.differences) for d in report.divergences]


@needs_kernel
def test_collapsed_files_in_memory_agree(bench: Bench) -> None:
    """Shared memory as a huge page: who maps it how, and what holes and neighbours make of it."""
    with bench_of("collapse-file") as both:
        report = both.slice(seed=32, sequences=30)
    assert not report.divergences, [(d.sequence, d.differences) for d in report.divergences]
    names = (
        "a-hole-cuts-a-huge-page-in-halves",
        "huge-page-of-a-file-comes-back",
        "move-of-a-part-makes-a-table-for-nothing",
    )
    kept = [corpus.load(CORPUS_AT / f"{name}.json")[0] for name in names]
    for fault in seeded_faults.OF_THEMES["collapse-file"]:
        with seeded_faults.inject(fault):
            found = [one for one in map(bench.diverge, kept) if one is not None]
        assert found, fault.name


@needs_kernel
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("work", ["--seconds 99", "--trace -- sleep 99"])
def test_an_oracle_that_is_ended_leaves_no_file_and_no_process(
    work: str, how: signal.Signals, tmp_path: Path
) -> None:
    command = [sys.executable, "-P", "-m", "zaplock", "oracle", *work.split()]
    source = str(Path(campaign.__file__).parents[2])
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": source, "TMPDIR": str(tmp_path)},
    ) as oracle:
        others = children_of(oracle.pid)
        if "--seconds" in work:
            others += children_of(others[0])  # the bare process
        oracle.send_signal(how)
    deadline = time.monotonic() + 250
    while not all(map(has_ended, others)):
        assert time.monotonic() < deadline, "a process outlived it"
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def children_of(pid: int) -> list[int]:
    """Wait until a process has children."""
    deadline = time.monotonic() + 250
    while time.monotonic() < deadline:
        if found := children_of_threads(pid):
            return found
        time.sleep(0.01)
    raise AssertionError(f"{pid} has no children")


def test_every_theme_says_how_often_an_operation_comes() -> None:
    assert tuple(WEIGHTS) == THEMES
    for theme, weights in WEIGHTS.items():
        assert MAKERS.keys() | MAKERS_OF_THEMES.get(theme, {}).keys() >= weights.keys()


def test_what_goes_on_beside_another_mapping_is_told_in_words() -> None:
    """Behind the last offset comes the first; two files' mappings lie side by side."""
    drawn = Draw(random.Random(1), COVERED)
    drawn.add(Op("mmap", (PAGE << 16, 2 * PAGE, 3, 0x12, 0, (1 << 64) - PAGE)))
    went_on = [goes_on(drawn) or () for _ in range(40)]
    assert {one[0] for one in went_on} == {(PAGE << 16) + 2 * PAGE}
    assert {one[5] for one in went_on} == {PAGE}
    assert len({one[4] for one in went_on}) > 1


def test_no_sequence_fills_gigabytes() -> None:
    """What an operation may fault in is bounded, in every theme and however far it reaches.

    Of huge pages the pool bounds it, and there is little else in the theme "gigantic".
    """
    for theme in THEMES:
        generator = Generator(8, replace(COVERED, themes=(theme,)))
        for op in (op for _ in range(20) for op in generator.sequence()):
            if op.name == "mmap" and isinstance(op.args[1], int) and op.args[1] < 1 << 63:
                pooled = int(str(op.args[3])) & 0x4_0000 or op.args[4] in ops.HUGE_FILES
                filled = int(str(op.args[3])) & 0xA000 and not (theme == "gigantic" and pooled)
                assert op.args[1] < MOST_FILLED or not filled, op
                if theme == "gigantic" and not pooled:
                    assert op.args[1] < MOST_FILLED, op
            if op.name == "madvise" and op.args[2] in (22, 23) and theme != "gigantic":
                assert int(str(op.args[1])) < MOST_FILLED or int(str(op.args[1])) > 1 << 40, op


def test_an_operation_that_the_model_lacks_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(OPERATIONS, "pwrite")
    path = tmp_path / "write.json"
    for operation, lack in (
        (["pwrite", 0, 4096, 8, 0], "pwrite"),
        (["fallocate", ops.DISK_SLOT, 0, 0, 4096], "fallocate of file 2, which is on a disk"),
    ):
        path.write_text(json.dumps({"operations": [operation]}))
        assert main(["oracle", "--replay", str(path)]) == 2
        assert f"the model has no {lack}: leave it out" in capsys.readouterr().err


@needs_kernel
@pytest.mark.skipif(has_swap(), reason="where there is swap nothing tells what is lazily free")
def test_faults_in_what_is_lazily_free_are_found(bench: Bench) -> None:
    kept, _ = corpus.load(CORPUS_AT / "no-swap" / "lazily-free.json")
    assert bench.diverge(kept) is None
    for fault in seeded_faults.OF_THEMES["lazyfree"]:
        with seeded_faults.inject(fault):
            found = bench.diverge(kept)
        assert found is not None, fault.name
        assert "LazyFree" in found.signature, fault.name


FREED_BY_A_CHILD = """
import ctypes, mmap, os, re
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # a page waits on its CPU's list
shared = mmap.mmap(-1, 4 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
shared.write(bytes(4 * 4096))
address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
def lazily_free():
    mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).madvise(20)  # works that list off
    blocks = re.split("(?m)^(?=[0-9a-f]+-)", open("/proc/self/smaps").read())
    (block,) = (one for one in blocks if one and int(one.split("-")[0], 16) <= address
                < int(one.split("-")[1].split()[0], 16))
    return re.search("LazyFree: *([0-9]+)", block)[1]
reading, writing = os.pipe()
if not os.fork():
    shared.madvise(8, 0, 2 * 4096)
    os.write(writing, lazily_free().encode())
    os._exit(0)
print(os.read(reading, 99).decode(), lazily_free())
"""


@needs_kernel
@pytest.mark.skipif(has_swap(), reason="where there is swap nothing tells what is lazily free")
def test_what_a_child_frees_lazily_its_parent_keeps(bench: Bench) -> None:
    """Both map the pages; MADV_FREE cleans the entries of who gives it, and nobody else's."""
    told = subprocess.run([sys.executable, "-c", FREED_BY_A_CHILD], capture_output=True, check=True)
    world = World(bench.model.environment, bench.model.design)
    world.begin(frozenset())
    apply(world, 0, "mmap", (WINDOW, 4 * 4096, 3, 0x32, ops.NO_FILE, 0))
    apply(world, 1, "madvise", (WINDOW, 4 * 4096, 23))
    parent = world.view
    parent.shows_lazyfree = True
    apply(world, 2, "into_child", ())
    apply(world, 3, "madvise", (WINDOW, 2 * 4096, 8))
    at = ops.FIGURES.index("LazyFree")
    seen = [
        next(vma.figures[at] for vma in view.snapshot().vmas if vma.start == WINDOW)
        for view in (world.view, parent)
    ]
    assert seen == [int(one) for one in told.stdout.split()] == [8, 0]


@needs_kernel
@pytest.mark.skipif(has_swap(), reason="where there is swap pages age on every CPU")
def test_faults_in_which_pages_were_used_are_found(bench: Bench) -> None:
    """Each rule of accessed bits and marks shows in smaps after a write to clear_refs."""
    kept = [corpus.load(path)[0] for path in sorted((CORPUS_AT / "references").glob("*.json"))]
    assert len(kept) >= 5
    assert not any(map(bench.diverge, kept))
    for fault in seeded_faults.OF_THEMES["references"]:
        with seeded_faults.inject(fault):
            found = [one.signature for one in map(bench.diverge, kept) if one is not None]
        assert found, fault.name
        assert all("Referenced" in signature for signature in found), (fault.name, found)


@needs_kernel
def test_faults_in_which_pages_are_dirty_are_found(bench: Bench) -> None:
    """Who has written is shown by each entry and by the page, in Private_ and Shared_Dirty."""
    kept = [corpus.load(path)[0] for path in sorted((CORPUS_AT / "dirty").glob("*.json"))]
    assert len(kept) >= 9
    told = [bench.diverge((*sequence, *UNMAP_ALL)) for sequence in kept]
    assert not any(told), [one.differences for one in told if one]
    for fault in seeded_faults.OF_THEMES["dirty"]:
        with seeded_faults.inject(fault):
            found = [one.signature for one in map(bench.diverge, kept) if one is not None]
        assert found, fault.name
        assert all("_Dirty" in signature for signature in found), (fault.name, found)


@needs_kernel
def test_writeback_of_a_file_on_a_disk_is_no_difference(bench: Bench) -> None:
    """Its pages count as dirty on both sides, by whom they are mapped; only copies of it do not."""
    at = WINDOW
    mapped = Op("mmap", (at, 3 * 4096, 3, 0x11, ops.DISK_SLOT, 0))
    sequence = (mapped, Op("store", (at,)), Op("msync", (at, 4096, 4)), Op("load", (at + 4096,)))
    for side in (bench.real, bench.model):
        figures = side.run(sequence)[-1].snapshot.vmas[0].figures
        told = dict(zip(ops.FIGURES, figures, strict=True))
        dirt = [told[name] for name in ops.DIRT]
        assert dirt == [0, 0, 0, told["Rss"]], dirt
        assert told["Pss_Dirty"] == told["Pss"] == told["Rss"] >= 12


@needs_kernel
def test_who_maps_a_page_too_takes_his_share_of_it(bench: Bench) -> None:
    """A page of a file is mapped three times, and copied by the one who may not write to it."""
    at, copy = WINDOW, WINDOW + 0x30000
    pages_of_file = ((at, 4, 0x11, 0), (at + 0x10000, 2, 0x11, 1), (at + 0x20000, 1, 0x11, 1))
    mapped = [
        Op("mmap", (start, pages * 4096, 3, kind, 0, first * 4096))
        for start, pages, kind, first in (*pages_of_file, (copy, 1, 0x12, 1))
    ]
    used = [Op("store", (place,)) for place in (at, at + 4096, copy)]
    used += [Op("load", (start,)) for start, *_ in pages_of_file]
    for side in (bench.real, bench.model):
        vmas = side.run((*mapped, *used))[-1].snapshot.vmas
        told = [dict(zip(ops.FIGURES, vma.figures, strict=True)) for vma in vmas[:4]]
        assert [one["Rss"] for one in told] == [8, 8, 4, 4]
        assert [one["Pss"] for one in told] == [5, 5, 1, 4]  # 4 + 4/3, 4 + 4/3, 4/3
        assert [one["Pss_Dirty"] for one in told] == [5, 5, 1, 4]


@needs_kernel
def test_soft_dirty_marks_follow_who_writes_and_what_moves(bench: Bench) -> None:
    """What Linux 7.3 (debian:7.3) showed after each of these, in VmFlags and by PAGEMAP_SCAN."""
    page, at, far = 4096, WINDOW, WINDOW + (64 << 20)
    environment = replace(bench.real.environment, shows_soft_dirty=True, shows_references=False)
    model = ModelSide(environment, design_of("7.3").design)
    sequence = (
        Op("mmap", (at, 3 * page, 3, 0x32, -1, 0)),
        Op("store", (at,)),
        Op("store", (at + page,)),
        Op("clear_refs", (4,)),
        Op("store", (at,)),  # marks the page, not the mapping
        Op("load", (at + 2 * page,)),
        Op("mremap", (at + page, page, page, 3, far)),  # what has moved counts as written
        Op("mmap", (at + 3 * page, page, 3, 0x32, -1, 0)),  # what merges is marked as a whole
    )
    steps = model.run(sequence)

    def marked(index: int) -> tuple[list[bool], list[bool]]:
        shown = steps[index].snapshot
        regions = struct.iter_unpack("<3Q", shown.regions)
        pages = [
            bool(categories & ring.SOFT_DIRTY)
            for start, end, categories in regions
            for _ in range((end - start) // page)
        ]
        return ["sd" in vma.flags for vma in shown.vmas], pages

    assert marked(2) == ([True], [True, True])
    assert marked(3) == ([False], [False, False])
    assert marked(4) == ([False], [True, False])
    assert marked(5) == ([False], [True, False, False])
    assert marked(6) == ([False, False, False], [True, False, True])
    assert marked(7)[0] == [False, True, False]


@needs_kernel
def test_who_outgrows_a_memory_cgroup_is_killed_and_the_group_goes() -> None:
    """A child within the limit ends by itself, one beyond it by SIGKILL; its parent goes on."""
    try:
        memory_group.check_group()
    except UserError as error:
        pytest.skip(str(error))
    fills = tuple(
        Op("fill_memory", (size, how)) for size in (ops.LITTLE, ops.MUCH) for how in (0, 1, 2)
    )
    sequence = (
        Op("mmap", (WINDOW, 8192, 3, 0x32, -1, 0)),
        Op("store", (WINDOW,)),
        *fills,
        Op("fill_group", (ops.LITTLE,)),
        Op("fill_group", (ops.MUCH,)),
        Op("store", (WINDOW,)),
        *UNMAP_ALL,
    )
    with memory_group.memory_group() as group:
        beside = Path(memory_group.filled_by()).parent
        assert beside.parent == group.parent
        with bench_of("group") as both:
            assert both.real.environment.group_pages == memory_group.LIMIT // 4096
            found = both.diverge(sequence)
            results = [step.outcome.result for step in both.real.run(sequence)[2:10]]
            member = 9 << 32 if both.real.environment.kills_all else 0
            unlimited = ModelSide(replace(both.real.environment, group_pages=0))
            differs = compare.first_divergence(
                sequence, both.real.run(sequence), unlimited.run(sequence)
            )
    assert found is None, found.differences
    assert results == [0, 0, 0, 9, 9, 9, 0, 9 | member]
    assert differs is not None  # a model without the limit is found out
    assert differs.at == 5
    assert not group.exists()
    assert not beside.exists()


_LENDS_A_GROUP = """
import os, signal
from zaplock.oracle.memory_group import filled_by, memory_group
with memory_group() as path:
    print(path, filled_by(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_memory_cgroup_goes_when_whoever_made_it_is_killed() -> None:
    try:
        memory_group.check_group()
    except UserError as error:
        pytest.skip(str(error))
    killed = subprocess.run(
        [sys.executable, "-c", _LENDS_A_GROUP], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    group, joined = map(Path, killed.stdout.split())
    deadline = time.monotonic() + 250
    while (group.exists() or joined.exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not group.exists()
    assert not joined.exists()


def test_a_machine_without_memory_cgroups_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("proc /proc proc rw 0 0\n")
    assert memory_group.hierarchy(mounts) is None
    mounts.write_text("cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n")
    assert memory_group.hierarchy(mounts) == Path("/sys/fs/cgroup/memory")
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    mounts.write_text(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    assert memory_group.hierarchy(mounts) == tmp_path
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="theme group makes a memory cgroup"):
        memory_group.check_group()


@needs_kernel
def test_faults_in_how_a_userfaultfd_moves_huge_pages_are_found(bench: Bench) -> None:
    kept, _ = corpus.load(CORPUS_AT / "huge-pages-that-a-userfaultfd-moves.json")
    assert bench.diverge(kept) is None
    for fault in seeded_faults.OF_THEMES["uffd-huge"]:
        with seeded_faults.inject(fault):
            found = bench.diverge(kept)
        assert found is not None, fault.name
        assert found.signature.startswith(("uffd_move", "load")), (fault.name, found.signature)


@needs_kernel
def test_equal_pages_become_one_and_ksmd_is_given_back() -> None:
    """ksmd runs where a sequence asks for it; each fault in what undoes its work is found."""
    try:
        ksm.check_ksm()
    except UserError as error:
        pytest.skip(str(error))
    names = ("run", "pages_shared", *ksm.SETTINGS)
    before = [(ksm.KSM / name).read_text() for name in names]
    kept = [corpus.load(path)[0] for path in sorted((CORPUS_AT / "ksm").glob("*.json"))]
    with when_its_turn_comes(ksm.ksmd), bench_of("ksm") as both:
        found = [both.diverge((*sequence, *UNMAP_ALL)) for sequence in kept]
        report = both.slice(seed=5, sequences=6)
        missed = []
        for fault in seeded_faults.OF_THEMES["ksm"]:
            with seeded_faults.inject(fault):
                if not any(map(both.diverge, kept)):
                    missed.append(fault.name)
    assert [one and one.differences for one in found] == [None] * len(kept)
    assert not report.divergences, [(d.sequence, d.differences) for d in report.divergences]
    assert not missed
    assert [(ksm.KSM / name).read_text() for name in names] == before


def test_ksmd_is_not_taken_from_whoever_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("run", "1"), ("pages_shared", "0")):
        (tmp_path / name).write_text(value)
    monkeypatch.setattr(ksm, "KSM", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UserError, match=r"run is 1 and theme ksm needs 0"):
        ksm.check_ksm()
    assert main(["oracle", "--theme", "ksm", "--jobs", "2"]) == 2
    assert "leave --jobs out of theme ksm" in capsys.readouterr().err


@needs_kernel
def test_a_machine_without_time_loses_a_sequence_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bare processes that are made next may get no CPU, either."""
    real, run, starved = RealSide(), BareProcess.run, [4]

    def run_late(process: BareProcess, program: bytes) -> int:
        starved[0] -= 1
        if starved[0] >= 0:
            raise Lost("a program was still running after 10 s")
        return run(process, program)

    monkeypatch.setattr(BareProcess, "run", run_late)
    try:
        with pytest.raises(Lost):
            real.run((Op("brk", (0,)),))
        assert real.run((Op("brk", (0,)),))[0].outcome.result == real.environment.start_brk
        starved[0] = 100
        with pytest.raises(UserError, match="no bare process gets far enough"):
            real.run((Op("brk", (0,)),))
    finally:
        real.close()


@needs_kernel
def test_what_a_slow_disk_still_writes_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs after a paging out is a divergence only if seconds of waiting don't mend it."""
    paged_out = (Op("mmap", (0, 4096, 3, 0x22, -1, 0)), Op("madvise", (0, 4096, 21)))
    in_time, waited = RealSide.run, list[bool]()

    def run_late(
        side: RealSide, sequence: tuple[Op, ...], *, patient: bool = False
    ) -> list[OracleStep]:
        *before, last = in_time(side, sequence, patient=patient)
        waited.append(patient)
        ends = patient and sequence is paged_out
        late = last.outcome._replace(result=last.outcome.result + (not ends))
        return [*before, last._replace(outcome=late)]

    bench = Bench(model_side)
    monkeypatch.setattr(RealSide, "run", run_late)
    try:
        for settling_ns in ((), (1,)):
            swaps = bench.real._names._replace(settling_ns=settling_ns)
            monkeypatch.setattr(bench.real, "_names", swaps)
            assert (bench.diverge(paged_out) is None) == bool(settling_ns)
        assert bench.diverge(paged_out[:1])  # nothing is paged out
        assert bench.diverge((*paged_out, Op("brk", (0,))))  # it goes on after that time
    finally:
        bench.close()
    assert waited == [False, False, True, False, False, True]


@pytest.mark.parametrize("pageouts", [1, 2, 7, 60, 1000])
def test_a_sequence_waits_for_a_slow_disk_in_the_time_that_it_has(pageouts: int) -> None:
    waits = patient_ns([Op("madvise", (0, 4096, 21))] * pageouts + [Op("brk", (0,))])
    assert 2_000_000_000 < pageouts * sum(waits) <= 5_000_000_000
    assert patient_ns([Op("brk", (0,))]) == ()


@needs_kernel
@pytest.mark.by_chance  # what comes back while the disk is busy writing it can't go again
def test_swap_agrees_and_is_given_back() -> None:
    """A small file is made for it; what is paged out shows, comes back, and is shared by fork."""
    if os.geteuid() or has_swap():
        pytest.skip("needs root, and a machine that does not swap")
    before = Path("/proc/swaps").read_text()
    page, place, other = 4096, 0x1020_0000, 0x3000_0000
    os.sync()  # a fresh installation, say
    try:
        with swap_file.swap_file(4 << 20):
            bench = Bench(model_side)
            try:
                assert bench.real.environment.swap_pages > 500
                for kind, slot in ((0x32, -1), (0x11, 0), (0x12, 0)):
                    found = bench.diverge(
                        (
                            Op("mmap", (place, 8 * page, 3, kind, slot, 0)),
                            Op("store", (place + page,)),
                            Op("store", (place + 3 * page,)),
                            Op("madvise", (place, 8 * page, 21)),
                            Op("fork"),
                            Op("load", (place + page,)),
                            Op("mremap", (place, 8 * page, 8 * page, 3, other)),
                            Op("store", (other + 3 * page,)),
                            Op("pread", (0, place, 0, page)),  # of nothing
                            Op("madvise", (other, 8 * page, 21)),
                            Op("mlock", (other, 2 * page)),
                            *UNMAP_ALL,
                        )
                    )
                    assert found is None, found.differences
                for path in [*(CORPUS_AT / "swap").glob("*.json")] * 3:  # each was a matter of time
                    found = bench.diverge((*corpus.load(path)[0], *UNMAP_ALL))
                    assert found is None, (path.name, found.differences)
            finally:
                bench.close()
    except UserError as error:
        pytest.skip(str(error))
    assert Path("/proc/swaps").read_text() == before
