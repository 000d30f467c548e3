"""The table of `make bench`: what is compared with what, what has fallen, what is kept and told."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import __main__ as table
from bench import figures, interpreters, page, rows
from bench.figures import BenchMachine, BenchRun, Figure

ROOT = Path(__file__).parent.parent
HERE = BenchMachine("Some CPU @ 2 GHz", 2, "6.18.44")
RATE = Figure("check", "Spin", "states/s", 2e6, 1e6, "3.11")
TIME = Figure("start", "python", "s", 0.04, 0.01, "3.11")


def run_of(*found: Figure, commit: str = "1" * 40, day: int = 1, **more: Any) -> BenchRun:
    taken = f"2026-11-{day:02}T10:00:00+00:00"
    return BenchRun(commit, taken, more.pop("machine", HERE), 0.5, found, **more)


def test_a_ratio_is_how_many_times_as_fast_as_the_peer() -> None:
    assert RATE.ratio == 2
    assert msgspec.structs.replace(TIME, unit="MiB").ratio == 0.25
    assert TIME.ratio == 0.25


def test_a_tenth_lower_than_the_last_kept_of_this_machine_has_fallen() -> None:
    elsewhere = msgspec.structs.replace(HERE, cpu="Another")
    faster = msgspec.structs.replace(RATE, ours=9e6)
    runs = [run_of(faster), run_of(RATE, TIME, day=2), run_of(faster, machine=elsewhere, day=3)]
    before = figures.last_kept(runs, HERE)
    assert before[RATE.key] == RATE
    held = [msgspec.structs.replace(RATE, ours=1.81e6), msgspec.structs.replace(TIME, ours=0.044)]
    assert figures.fallen(held, before) == []
    fell = [msgspec.structs.replace(RATE, ours=1.79e6), msgspec.structs.replace(TIME, ours=0.045)]
    assert figures.fallen(fell, before) == list(zip(fell, (RATE, TIME)))
    other = msgspec.structs.replace(fell[0], python="3.12")
    assert figures.fallen([other], before) == [], "another Python has no figure yet"


def test_a_python_that_is_a_tenth_slower_than_the_oldest_is_named() -> None:
    newer = [msgspec.structs.replace(RATE, python="3.12", ours=1.7e6),
             msgspec.structs.replace(TIME, python="3.13", ours=0.043)]  # fmt: skip
    assert figures.slower_pythons([newer[0], RATE, TIME, newer[1]]) == [
        "check is 0.85 times as fast on Python 3.12 as on 3.11"
    ]
    assert figures.slower_pythons([newer[0]]) == [], "there is nothing to compare with"
    simpy = Figure("lock", "SimPy", "events/s", 3e6, 1e6, "3.11")
    there = msgspec.structs.replace(simpy, python="3.12", theirs=8e5)
    (told,) = figures.slower_pythons([newer[0], RATE, simpy, there])
    assert told.endswith("as on 3.11: the interpreter is slower (SimPy: 0.80)")
    there = msgspec.structs.replace(there, theirs=9.1e5)
    (told,) = figures.slower_pythons([newer[0], RATE, simpy, there])
    assert told.endswith("as on 3.11: more than anything else that it runs (SimPy: 0.91)")
    beside_another = msgspec.structs.replace(RATE, peer="another", ours=9e6)
    assert figures.slower_pythons([RATE, beside_another]) == [], "both are 3.11's"


def test_another_release_of_the_kernel_is_another_machine() -> None:
    patched = msgspec.structs.replace(HERE, kernel="6.18.45-rt")
    assert patched.name == HERE.name == "some-cpu-2-ghz-2-cpus-linux-6.18"
    assert msgspec.structs.replace(HERE, kernel="6.19.1").name != HERE.name
    assert figures.this_machine().cpus > 0


def test_what_is_kept_is_read_again_the_oldest_first(tmp_path: Path) -> None:
    runs = [run_of(RATE, day=2, accepted="a reason"), run_of(TIME, left_out={"oracle": "no root"})]
    files = [figures.keep(run, tmp_path) for run in runs]
    assert figures.read_runs(tmp_path) == runs[::-1]
    assert files[0].parent.name == HERE.name
    assert files[0].name == "20261102T1000000000-111111111111.json"


def test_the_page_tells_the_last_run_of_each_machine_and_what_was_accepted() -> None:
    slower = msgspec.structs.replace(RATE, ours=1e6)
    newer = msgspec.structs.replace(RATE, python="3.12")
    last = run_of(slower, newer, TIME, day=2, accepted="it counts more", left_out={"report": "no"})
    told = page.text([run_of(RATE), last])
    assert "| check | Spin | states/s | 1,000,000 | 1,000,000 | 1.00 | 2.00 |" in told
    assert "| start | python | s | 0.04 | 0.01 | 0.25 |  |" in told
    assert "- Not measured: report: no" in told
    assert "a ratio fell: it counts more" in told


def test_the_page_of_the_docs_is_that_of_the_kept_runs() -> None:
    assert page.PAGE.read_text() == page.text(figures.read_runs())


def test_the_drawing_has_each_ratio_of_each_commit() -> None:
    runs = [run_of(RATE, TIME), run_of(RATE, commit="2" * 40, day=2)]
    spec = page.drawing(runs).to_dict()
    values = spec["data"]["values"]
    assert [(one["commit"], one["ratio"]) for one in values] == [
        ("11111111", 2), ("11111111", 0.25), ("22222222", 2),
    ]  # fmt: skip


@dataclass
class MadeUp:
    """Rows that give figures by themselves, and a tree that is a commit's."""

    folder: Path
    figures: list[list[Figure]]
    changed: list[str]

    def measured(self, row: str, python: str) -> list[Figure]:
        if row != "lock":
            raise table.CannotMeasure("not here")
        return self.figures.pop(0)

    def runs(self) -> list[BenchRun]:
        return figures.read_runs(self.folder)


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    made = MadeUp(tmp_path / "results", [], [])
    monkeypatch.setattr(table, "measured", made.measured)
    monkeypatch.setattr(
        table, "environment", lambda minor: sys.executable if minor == OWN else None
    )
    monkeypatch.setattr(table, "commit_of_tree", lambda: ("3" * 40, made.changed))
    monkeypatch.setattr(table, "read_runs", made.runs)
    monkeypatch.setattr(table, "this_machine", lambda: HERE)
    monkeypatch.setattr(table, "keep", lambda run: figures.keep(run, made.folder))
    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(page, "write", lambda: None)
    return made


OWN = sys.version_info[1]


def bench(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    return table.main()


def own(figure: Figure, ours: float) -> Figure:
    return msgspec.structs.replace(figure, ours=ours, python=f"3.{OWN}")


def test_a_run_is_kept_unless_a_ratio_fell_twice_or_files_differ(
    made_up: MadeUp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = own(RATE, 2e6), own(RATE, 1e6)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.4, 9.0, 4.0))
    made_up.figures = [[good]]
    assert bench(monkeypatch) == 0
    assert [run.figures for run in made_up.runs()] == [(good,)]
    assert "not measured: oracle: not here" in capsys.readouterr().out

    made_up.figures = [[bad], [bad]]
    assert bench(monkeypatch) == 1
    assert "check beside Spin" in capsys.readouterr().out
    assert len(made_up.runs()) == 1

    made_up.figures, made_up.changed = [[bad], [good]], ["src/zaplock/units.py"]
    assert bench(monkeypatch) == 0, "another program was in the way the first time"
    assert "src/zaplock/units.py differs" in capsys.readouterr().out
    assert len(made_up.runs()) == 1

    made_up.figures, made_up.changed = [[good]], []
    monkeypatch.setattr(os, "getloadavg", lambda: (15.2, 9.0, 4.0))
    assert bench(monkeypatch) == 0
    assert "a load of 15.2 on 2 CPUs" in capsys.readouterr().out
    monkeypatch.setattr(os, "getloadavg", lambda: (0.4, 9.0, 4.0))
    assert len(made_up.runs()) == 1

    made_up.figures = [[good]]
    assert bench(monkeypatch, "lock") == 0
    assert "some rows only" in capsys.readouterr().out

    made_up.figures = [[bad], [bad]]
    assert bench(monkeypatch, "--accept", "it does more") == 0
    assert {run.accepted for run in made_up.runs()} >= {"it does more"}


@pytest.mark.parametrize(
    ("status", "error"), [(rows.NOT_HERE, table.CannotMeasure), (1, table.RowFailed)]
)
def test_a_row_that_fails_is_not_one_that_is_not_to_be_had(
    status: int, error: type[Exception], tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho the reason >&2\nexit {status}\n")
    python.chmod(0o755)
    with pytest.raises(error, match="the reason"):
        table.measured("lock", str(python))


def test_a_row_that_does_not_exist_is_refused_in_a_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "lok"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"'lok'; there are {', '.join(rows.ROWS)}")


def test_another_python_gets_what_is_locked_and_no_more() -> None:
    wanted = interpreters.needed((ROOT / "constraints.txt").read_text())
    assert wanted.count("==") == len(interpreters.NEEDED)
    assert wanted.count("--hash=") >= len(interpreters.NEEDED)
    assert interpreters.environment(OWN) == sys.executable
