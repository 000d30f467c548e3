"""A campaign notices that somebody changes the machine's settings under it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_oracle import needs_kernel

from zaplock.cli._oracle_text import print_report
from zaplock.oracle.campaign import Bench, Report
from zaplock.oracle.machine_settings import FOLDERS, changes, read_settings
from zaplock.oracle.modelside import model_side
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
            there = bench.slice(5, sequences=2, shrinking=False)
        after = bench.slice(5, sequences=2, shrinking=False)
    assert there.set_aside > 0
    assert not there.divergences
    assert not there.signatures
    assert after.divergences or after.unsettled  # others may have changed theirs


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
    before = read_settings((folder,))
    assert before == {
        "transparent_hugepage/enabled": "madvise", "transparent_hugepage/khugepaged/defrag": "1",
    }  # fmt: skip
    (folder / "enabled").write_text("[always] madvise never\n")
    now = read_settings((folder,))
    assert changes(before, now) == "transparent_hugepage/enabled went from madvise to always"
    assert not changes(now, now)


def test_reports_of_several_jobs_add_up_what_was_changed() -> None:
    total, other = Report(operations=3), Report(set_aside=1)
    other.unsettled["ksm/run went from 0 to 1"] = 7
    total.merge(other)
    total.merge(other)
    assert (total.unsettled.total(), total.set_aside, total.agrees) == (14, 2, True)
