"""Huge pages of files in memory that faults and writes make: on mounts, and by shmem_enabled."""

from __future__ import annotations

import os
import subprocess
import sys
from errno import EPERM
from pathlib import Path

import pytest
from test_oracle import CORPUS_AT, bench_of, needs_kernel

from zaplock.cli import main
from zaplock.model.shared_folios import POLICIES
from zaplock.oracle import compare, corpus, ops, script, seeded_faults, shmem_setting, tmpfs_mounts
from zaplock.oracle.machine_settings import shared_huge
from zaplock.oracle.ops import Op
from zaplock.oracle.windows import UNMAP_ALL

KEPT = sorted((CORPUS_AT / "shmem-huge").glob("*.json"))
PAGE, PMD, PLACE = 4096, 2 << 20, 0x2000_0000
is_roots = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and settings are for root to make")


@needs_kernel
@is_roots
def test_huge_pages_of_files_on_tmpfs_agree_and_nobody_else_sees_the_mounts() -> None:
    """Faults and writes make folios by the mount's policy; holes, advice and children meet them."""
    mounted = Path("/proc/self/mountinfo").read_text()
    with tmpfs_mounts.tmpfs_mounts(), bench_of("shmem-huge") as both:
        assert Path("/proc/self/mountinfo").read_text() == mounted
        report = both.slice(seed=32, sequences=24)
        kept = [(*corpus.load(path)[0], *UNMAP_ALL) for path in KEPT]
        found = [one.differences for one in map(both.diverge, kept) if one]
        missed = []
        for fault in seeded_faults.OF_THEMES["shmem-huge"]:
            with seeded_faults.inject(fault):
                missed += [] if any(map(both.diverge, kept)) else [fault.name]
    assert not report.divergences, [(d.sequence, d.differences) for d in report.divergences]
    assert any(key[:2] == ("fallocate", "ok") for key in report.coverage)
    assert not found
    assert not missed


@needs_kernel
@is_roots
def test_a_file_of_tmpfs_has_a_huge_page_after_a_touch_and_cannot_be_sealed() -> None:
    with tmpfs_mounts.tmpfs_mounts(), bench_of("shmem-huge") as both:
        sequence = (
            Op("mmap", (PLACE, PMD, 3, 0x11, 11, 0)),
            Op("store", (PLACE + 5 * PAGE,)),
            Op("add_seals", (11, 2)),
            *UNMAP_ALL,
        )
        steps = both.real.run(sequence)
        assert both.diverge(sequence) is None
    figures = dict(zip(ops.FIGURES, steps[1].snapshot.vmas[0].figures, strict=True))
    assert figures["ShmemPmdMapped"] == PMD >> 10
    assert steps[2].outcome.result == -EPERM


@needs_kernel
@is_roots
def test_shared_memory_with_advice_agrees_and_the_setting_is_given_back() -> None:
    """While the setting is another, so is what a model is told of it; then it is as before."""
    before = shmem_setting.SETTING.read_text()
    with shmem_setting.advised_shared_memory():
        assert POLICIES[shared_huge()] == "advise"
        with bench_of("shmem-advise") as both:
            report = both.slice(seed=33, sequences=8)
            sequence = (
                Op("mmap", (PLACE, 2 * PMD, 3, 0x31, ops.NO_FILE, 0)),
                Op("madvise", (PLACE, PMD, 14)),
                Op("store", (PLACE,)),
                Op("store", (PLACE + PMD,)),
                *UNMAP_ALL,
            )
            steps = both.real.run(sequence)
            assert both.diverge(sequence) is None
        assert main(["oracle", "--theme", "shmem-advise", "--seconds", "1"]) == 2
    assert shmem_setting.SETTING.read_text() == before
    assert not report.divergences, [(d.sequence, d.differences) for d in report.divergences]
    assert steps[3].snapshot.vmas[0].figures[0] == PMD >> 10
    assert steps[3].snapshot.vmas[1].figures[0] == PAGE >> 10


@needs_kernel
def test_a_file_on_a_mount_that_nobody_has_lent_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence = (Op("mmap", (0, PMD, 3, 1, 11, 0)),)
    path = tmp_path / "lent.json"
    path.write_text(corpus.dump(sequence, "no theme is named"))
    assert main(["oracle", "--replay", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a mount that the theme shmem-huge is lent" in line


@is_roots
def test_a_script_makes_the_files_where_the_sequence_has_them() -> None:
    sequence = (
        Op("mmap", (0, PMD, 3, 1, 12, 0)),
        Op("ftruncate", (12, 5 * PAGE)),
        Op("pwrite", (14, 0, 0, 0)),
    )
    text = script.write(compare.Divergence(sequence, 1, ("none",)))
    ran = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert [line.rpartition(" = ")[2] for line in ran.stdout.splitlines()][1:3] == ["0x0", "0x0"]
