"""Recorded programs on the model: every return value, and the maps in the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from zaplock.cli import main
from zaplock.oracle import strace
from zaplock.oracle.strace_replay import StraceReplay

FIXTURES = sorted((Path(__file__).parent / "fixtures" / "strace").glob("*.strace"))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_a_program_agrees_to_the_last_mapping(path: Path) -> None:
    verdict = StraceReplay(strace.parse(path)).play()
    assert verdict.calls > 80
    assert not verdict.differing
    assert verdict.maps > 40
    assert not verdict.differing_maps
    assert not verdict.passed_over


def test_a_changed_result_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = FIXTURES[1].read_text()
    broken = text.replace("= 0x7ffff7fc0000", "= 0x7ffff7fc1000", 1)
    assert broken != text
    path = tmp_path / "changed.strace"
    path.write_text(broken)
    assert main(["oracle", "--strace", str(path)]) == 1
    assert "kernel 0x7ffff7fc1000, model 0x7ffff7fc0000" in capsys.readouterr().out


def test_arguments_are_split_outside_brackets() -> None:
    text = '3</a, b>, {one=[1, 2], two="x, y"}, A|B, 21<<26'
    assert list(strace.split_arguments(text)) == [
        "3</a, b>", '{one=[1, 2], two="x, y"}', "A|B", "21<<26",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [("NULL", 0), ("0x10", 16), ("010", 8), ("PROT_READ|PROT_WRITE", 3), ("21<<MAP_HUGE_SHIFT",
     21 << 26), ("MAP_PRIVATE|0x8000 /* MAP_??? */", 0x8002)],
)  # fmt: skip
def test_numbers_are_read_as_strace_writes_them(text: str, value: int) -> None:
    assert strace.number(text) == value


def test_unfinished_calls_count_where_they_ended(tmp_path: Path) -> None:
    path = tmp_path / "two.strace"
    path.write_text(
        "# pid: 1\n# begin: 1000-2000 r--p 00000000 00:00 0\n"
        "1  munmap(0x1000, 4096 <unfinished ...>\n"
        "2  mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7000\n"
        "1  <... munmap resumed>) = 0\n"
        "1  brk(NULL) = 0x9000\n"
    )
    recording = strace.parse(path)
    assert [(call.pid, call.name) for call in recording.calls] == [
        (2, "mmap"), (1, "munmap"), (1, "brk"),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "no call at all\n"])
def test_what_is_no_recording_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "not.strace"
    path.write_text(text)
    assert main(["oracle", "--strace", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
