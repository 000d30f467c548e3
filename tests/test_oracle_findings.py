"""What was found in kernels: each finding has a page, its sequence, and the program made of it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from zaplock.cli import main
from zaplock.oracle import corpus, huge_pool, reproducer

FINDINGS = Path(__file__).parents[1] / "docs" / "findings"
SEQUENCES = sorted(FINDINGS.glob("*.json"))
LOSE_HUGE_PAGES = ("half-moved-huge-pages", "moved-elsewhere")
RELEASE = tuple(int(part) for part in platform.release().split(".")[:2])


def test_every_finding_has_its_page_its_sequence_and_its_program() -> None:
    names = {path.stem for path in FINDINGS.iterdir()}
    assert len(names) >= 3
    for name in names:
        assert {path.suffix for path in FINDINGS.glob(f"{name}.*")} == {".md", ".json", ".c"}


@pytest.mark.parametrize("path", SEQUENCES, ids=lambda path: path.stem)
def test_the_program_is_what_the_tool_writes(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "reproducer.c"
    assert main(["oracle", "--replay", str(path), "--c", str(target)]) == 0
    assert target.read_text() == path.with_suffix(".c").read_text()


@pytest.mark.skipif(not shutil.which("gcc"), reason="no compiler here")
@pytest.mark.parametrize("path", SEQUENCES, ids=lambda path: path.stem)
def test_the_program_compiles_and_runs(path: Path, tmp_path: Path) -> None:
    program = tmp_path / "reproducer"
    source = path.with_suffix(".c")
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, source], check=True)
    _, free, reserved = huge_pool.pool_figures()
    if path.stem in LOSE_HUGE_PAGES and free > reserved:
        pytest.skip("it would cost this machine huge pages until it is booted")
    told = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert "VmLck with nothing mapped: " in told
    assert "expected" in told
    if RELEASE == (6, 18) and "MAP_HUGETLB" not in source.read_text():
        assert not [line for line in told.splitlines() if ", expected " in line]
    if path.stem == "dontunmap-of-locked-memory" and (5, 7) <= RELEASE < (7, 2):
        assert "VmLck with nothing mapped: 24 kB" in told
    if path.stem == "dirty-huge-page-forgotten":
        assert "a load of 0x40000000 gives " in told


def test_what_c_can_not_say_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fork.json"
    path.write_text('{"operations": [["fork"]]}')
    assert main(["oracle", "--replay", str(path), "--c", str(tmp_path / "x.c")]) == 2
    assert "fork can't be written in C" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("gcc"), reason="no compiler here")
def test_the_program_says_which_result_is_not_the_expected_one(tmp_path: Path) -> None:
    saved, source = tmp_path / "odd.json", tmp_path / "odd.c"
    saved.write_text(
        '{"operations": [["mmap", 0, 8192, 3, 34, -1, 0], ["munmap", 1, 4096], '
        '["mremap", {"op": 0}, 4096, 4096, 3, 1048576], ["madvise", 1048576, 4096, 4], '
        '["store_value", 1048576, 7], ["load", 1048576]]}'
    )
    assert main(["oracle", "--replay", str(saved), "--c", str(source)]) == 0
    text = source.read_text()
    for wrong in ("", "wrong"):
        if wrong:
            text = (
                text.replace("-EINVAL);", "0);").replace("== 7", "== 8").replace("ted 7", "ted 8")
            )
        source.write_text(text)
        program = tmp_path / f"odd{wrong}"
        subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, source], check=True)
        told = subprocess.run([program], check=True, capture_output=True, text=True).stdout
        lines = told.splitlines()
        assert lines[0].startswith("mmap(0, 0x2000, 3, 0x22, -1, 0) = 0x")
        assert lines[0].endswith(", as expected")
        verdict = "expected 0" if wrong else "as expected"
        assert f"munmap(1, 0x1000) = -22 (Invalid argument), {verdict}" in lines
        assert "mremap(op0+0x0, 0x1000, 0x1000, 3, 0x100000) = 0x100000, as expected" in lines
        assert "madvise(0x100000, 0x1000, 4) = 0, as expected" in lines
        verdict = "expected 8" if wrong else "as expected"
        assert f"a load of 0x100000 gives 7, {verdict}" in lines


def test_earlier_results_are_named_in_the_program(tmp_path: Path) -> None:
    path = tmp_path / "named.json"
    path.write_text(
        '{"operations": [["mmap", 0, 8192, 3, 34, -1, 0], ["store", {"op": 0, "delta": 4096}]]}'
    )
    text = reproducer.write(corpus.load(path)[0], "why", "named")
    assert "*(volatile char *)(r[0] + 0x1000) = 1" in text
    assert "MAP_PRIVATE | MAP_ANONYMOUS" in text
