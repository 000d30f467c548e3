"""A campaign notices that somebody changes the machine's settings under it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from test_oracle import needs_kernel
from turns import when_its_turn_comes

from zaplock.cli._oracle_text import print_report
from zaplock.errors import UserError
from zaplock.oracle import ksm
from zaplock.oracle.campaign import Bench
from zaplock.oracle.generate import Generator
from zaplock.oracle.machine_settings import (
    FOLDERS,
    changes,
    check_settings,
    huge_faults,
    read_settings,
)
from zaplock.oracle.modelside import COVERED, model_side
from zaplock.oracle.ops import Op
from zaplock.oracle.report import Report
from zaplock.oracle.scope import Scope
from zaplock.oracle.seeded_faults import FAULTS, inject

HARMLESS = FOLDERS[0] / "khugepaged/max_ptes_swap"  # here khugepaged collapses nothing from swap
NAME = "transparent_hugepage/khugepaged/max_ptes_swap"
needs_setting = pytest.mark.skipif(
    not os.access(HARMLESS, os.W_OK), reason=f"needs a {HARMLESS} that may be written to"
)


@contextmanager
def changed() -> Iterator[str]:
    """Have another value in a setting; give what is said about that."""
    before = HARMLESS.read_text().strip()
    other = str(int(before) + 1)
    HARMLESS.write_text(other)
    try:
        yield f"{NAME} went from {before} to {other}"
    finally:
        HARMLESS.write_text(before)


@pytest.fixture
def bench() -> Iterator[Bench]:
    both = Bench(model_side)
    yield both
    both.close()


@needs_kernel
@needs_setting
def test_what_runs_under_other_settings_is_not_counted(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    with changed() as told:
        report = bench.slice(5, sequences=2)
    assert [one for one in report.unsettled if told in one]
    assert sum(report.unsettled.values()) > 0
    assert not report.operations
    assert not report.coverage
    assert not report.agrees  # of nothing nothing follows
    print_report(report, False)
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("NOT COUNTED: ")
    assert told in line


@needs_kernel
@needs_setting
def test_a_difference_under_other_settings_is_set_aside(bench: Bench) -> None:
    fault = next(one for one in FAULTS if one.name == "merge-nothing")
    with inject(fault):
        with changed():
            there = bench.slice(5, sequences=6, shrinking=False)
        after = bench.slice(5, sequences=6, shrinking=False)
    assert there.set_aside > 0
    assert not there.divergences
    assert not there.signatures
    assert after.divergences or after.unsettled  # others may have changed theirs


@needs_kernel
@needs_setting
def test_a_setting_that_was_changed_back_has_been_noticed(bench: Bench) -> None:
    fault = next(one for one in FAULTS if one.name == "merge-nothing")
    sequence = Generator(5).sequence()
    with inject(fault):
        found = bench.diverge(sequence)
        for seed in range(6, 40):
            if found:
                break
            sequence = Generator(seed).sequence()
            found = bench.diverge(sequence)
        assert found is not None

        def amid_changes() -> object:
            with changed():
                pass
            return bench.diverge(sequence)

        again, disturbed = bench.in_peace(sequence, amid_changes)
    assert again == found
    assert f"{NAME} was written to" in disturbed


@needs_kernel
@pytest.mark.parametrize("theme", ["huge", "pageout", "collapse"])
def test_what_a_sequence_itself_does_to_memory_disturbs_nothing(theme: str) -> None:
    """It pages out, splits and collapses: a difference beside that counts all the same."""
    fault = next(one for one in FAULTS if one.name == "merge-nothing")
    with closing(Bench(model_side, replace(COVERED, themes=(theme,)))) as bench, inject(fault):
        slices = (bench.slice(seed, sequences=5, shrinking=False) for seed in range(40))
        assert any(report.signatures for report in slices)  # others may disturb some


@needs_kernel
def test_a_damon_that_looks_disturbs(bench: Bench) -> None:
    """It clears the marks of who was used, and pages out what is idle."""
    watch = bench.real.surroundings(())
    before = watch.look()
    damons = [name for name in before.counters if name.startswith("kdamond ")]
    if not damons:
        pytest.skip("no DAMON is at work")
    deadline = time.monotonic() + 100
    while watch.since(before) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    disturbed = watch.disturbed(before, ())
    assert any(name in disturbed for name in damons)
    assert watch.since(before).counters != before.counters


MERGEABLE = """
import mmap, sys
memory = mmap.mmap(-1, 64 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(12)
for page in range(64):
    memory[page * 4096 : page * 4096 + 8] = bytes(8)
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def another_with_mergeable_memory() -> Iterator[int]:
    """Have a process with pages of zeros that ksmd may merge; give its number."""
    child = subprocess.Popen(
        [sys.executable, "-c", MERGEABLE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        yield child.pid
    finally:
        child.communicate()


@needs_kernel
def test_mergeable_memory_of_others_is_no_difference() -> None:
    try:
        ksm.check_ksm()
    except UserError as error:
        pytest.skip(str(error))
    page, window = 4096, 0x1020_0000
    sequence = (
        Op("mmap", (window, 4 * page, 3, 0x32, -1, 0)),
        Op("madvise", (window, 4 * page, 12)),
        Op("store_value", (window, 0)),  # equal to no other page of its own
        Op("ksm_scan"),
    )
    with when_its_turn_comes(ksm.ksmd):
        bench = Bench(model_side, Scope(themes=("ksm",)))
        try:
            with another_with_mergeable_memory() as pid:
                found, disturbed = bench.in_peace(sequence, lambda: bench.diverge(sequence))
        finally:
            bench.close()
    assert found is not None
    is_shared_now = "ksm_scan: KSM, Private_Dirty, Pss, Pss_Dirty, Shared_Dirty"
    assert found.signature == is_shared_now
    assert f"({pid})" in disturbed


def test_who_has_ksmd_scan_waits_for_those_with_mergeable_memory(tmp_path: Path) -> None:
    for name in ("run", "sleep_millisecs"):
        (tmp_path / name).touch()
    scan, merge = Op("ksm_scan"), Op("madvise", (0, 4096, 12))
    scanning, merging, third = (ksm.MergingTurn(tmp_path) for _ in range(3))
    order = []

    def scans() -> None:
        with scanning.of((scan,)):
            order.append("scan")

    with merging.of((merge,)), third.of((merge,)):  # these do not wait for each other
        waiting = threading.Thread(target=scans)
        waiting.start()
        waiting.join(0.05)
        order.append("merge")
    waiting.join()
    with scanning.of((scan,)), third.of((Op("brk", (0,)),)):
        order.append("what merges nothing waits for nobody")
    assert order == ["merge", "scan", "what merges nothing waits for nobody"]
    for turn in (scanning, merging, third):
        turn.close()


def test_huge_pages_of_a_kind_that_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    def setting(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert huge_faults(tmp_path) == 0  # a kernel without
    setting("enabled", "[always] madvise never\n")
    setting("use_zero_page", "1\n")
    assert huge_faults(tmp_path) == 2
    setting("hugepages-2048kB/enabled", "always inherit [madvise] never\n")
    check_settings(tmp_path)
    assert huge_faults(tmp_path) == 1
    setting("hugepages-64kB/enabled", "always [inherit] madvise never\n")
    with pytest.raises(UserError, match=r"hugepages-64kB/enabled is inherit .* echo never >"):
        check_settings(tmp_path)


def test_settings_are_what_can_be_set_and_says_more_than_how_fast(tmp_path: Path) -> None:
    folder = tmp_path / "transparent_hugepage"
    (folder / "khugepaged").mkdir(parents=True)
    for name, text, mode in (
        ("enabled", "always [madvise] never\n", 0o644),
        ("hpage_pmd_size", "2097152\n", 0o444),
        ("khugepaged/defrag", "1\n", 0o644),
        ("khugepaged/scan_sleep_millisecs", "10000\n", 0o644),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(mode)
    before = read_settings((folder,), ())
    assert before == {
        "transparent_hugepage/enabled": "madvise", "transparent_hugepage/khugepaged/defrag": "1",
    }  # fmt: skip
    (folder / "enabled").write_text("[always] madvise never\n")
    now = read_settings((folder,), ())
    assert changes(before, now) == "transparent_hugepage/enabled went from madvise to always"
    assert not changes(now, now)


def test_reports_of_several_jobs_add_up_what_was_changed() -> None:
    total, other = Report(operations=3), Report(set_aside=1)
    other.unsettled["ksm/run went from 0 to 1"] = 7
    total.merge(other)
    total.merge(other)
    assert (total.unsettled.total(), total.set_aside, total.agrees) == (14, 2, True)


@needs_kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can lose root's rights")
@pytest.mark.parametrize("theme", ["shm", "hugetlbfs", "swap"])
def test_root_in_a_container_is_not_told_to_be_root(theme: str) -> None:
    libc, drop = ctypes.CDLL(None), 24  # PR_CAPBSET_DROP: gone with the next exec

    def lose_rights() -> None:
        for capability in range(64):
            libc.prctl(drop, capability)

    command = [sys.executable, "-P", "-m", "zaplock", "oracle", "--theme", theme]
    source = str(Path(ksm.__file__).parents[2])
    done = subprocess.run(
        [*command, "--seconds", "0.1"],
        preexec_fn=lose_rights,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": source},
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "run it as root outside of any container" in done.stderr


KDAMOND = next(Path("/sys/kernel/mm/damon/admin/kdamonds").glob("*/pid"), None)


@needs_kernel
@pytest.mark.skipif(KDAMOND is None, reason="needs a thread of DAMON's")
def test_who_reads_of_damon_at_the_same_time_disturbs_no_look(bench: Bench) -> None:
    """Its files refuse whoever reads while another one does."""
    assert KDAMOND is not None
    code = (
        f"import os\nfile = os.open({str(KDAMOND)!r}, os.O_RDONLY)\nprint(flush=True)\n"
        "while True:\n try: os.pread(file, 64, 0)\n except OSError: pass"
    )
    watch = bench.real.surroundings(())
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as reader:
        try:
            assert reader.stdout is not None
            reader.stdout.readline()
            looks = [watch.look().counters for _ in range(300)]
        finally:
            reader.kill()
    assert len({frozenset(look) for look in looks}) == 1
