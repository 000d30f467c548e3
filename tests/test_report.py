"""`zaplock report`: the answer first, and the same figures in every form."""

import io
import json
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from scenes import GIB, MM, MS, crowd, database

from zaplock.cli import main
from zaplock.trace.analysis import analyse
from zaplock.trace.events import Events
from zaplock.trace.handwritten import Log
from zaplock.trace.recording_file import Manifest, write
from zaplock.trace.summary import summarise
from zaplock.views.report_json import longest, report_json
from zaplock.views.report_text import group_table, report_text
from zaplock.views.sentences import answer


def recorded(path: Path, events: Events, kernel: str = "6.18.44") -> str:
    write(path, events, Manifest(kernel=kernel, source="simulation"))
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return recorded(tmp_path / "db.zaplock", database())


def test_the_answer_comes_first(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", file]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "6.18.44: 186 ms, 14 events, none lost"
    assert lines[2].startswith("2 times a task queued for an mmap_lock, 361 ms in all; 2 of these")
    assert "db-alloc (tid 102) in mmap of 4 KiB waited 185 ms for the lock of db (pid 100)" in out
    assert "behind db-free (tid 101) in munmap of 8 GiB, which held it shared after its down" in out
    assert "a writer queued in front" in out
    assert lines[-1].startswith("next: zaplock advise ")


def test_a_report_says_when_and_of_whom_it_was_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = Manifest(started_at="2026-03-01T10:20:30.123456+00:00", host="web7", target="db (100)")
    write(tmp_path / "db.zaplock", database(), about)
    page = tmp_path / "db.html"
    assert main(["report", str(tmp_path / "db.zaplock")]) == 0
    assert "Recorded 2026-03-01 10:20:30 UTC on web7: db (100)." in capsys.readouterr().out
    assert main(["report", str(tmp_path / "db.zaplock"), "--html", str(page)]) == 0
    assert "Recorded 2026-03-01 10:20:30 UTC on web7: db (100)." in page.read_text()


def test_json_has_the_promised_shape(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", file, "--json", "--top", "2"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert printed.err.startswith("next: ")
    assert set(report) == {
        *("kernel", "duration_ns", "lost_events", "holds", "holds_in_part", "waits"),
        *("calls", "slept_behind"),
    }
    assert (report["kernel"], report["lost_events"]) == ("6.18.44", 0)
    assert report["duration_ns"] == 186 * MS + 14_000
    assert report["holds"] == [
        {
            "mm": f"{MM:#x}",
            "tid": 101,
            "comm": "db-free",
            "mode": "shared",
            "start_ns": 12_100,
            "hold_ns": 186 * MS - 12_100,
            "downgraded": True,
            "operation": "munmap",
            "length": 8 * GIB,
        },
        {
            "mm": f"{MM:#x}",
            "tid": 101,
            "comm": "db-free",
            "mode": "exclusive",
            "start_ns": 1_100,
            "hold_ns": 11_000,
            "downgraded": True,
            "operation": "munmap",
            "length": 8 * GIB,
        },
    ]
    ps = report["waits"][1]
    assert {key: ps[key] for key in ("tid", "comm", "mode", "start_ns", "wait_ns")} == {
        "tid": 200,
        "comm": "ps",
        "mode": "shared",
        "start_ns": 10 * MS,
        "wait_ns": 176 * MS + 12_000,
    }
    assert [(part["tid"], part["role"], part["operation"]) for part in ps["blame"]] == [
        (101, "holder", "munmap"),
        (102, "queued-writer", "mmap"),
        (102, "holder", "mmap"),
    ]
    assert set(ps["blame"][0]) == {"tid", "comm", "operation", "length", "role", "share_ns"}


def test_shares_add_up_in_every_wait_of_a_crowd() -> None:
    report = report_json(analyse(crowd(20_000), "6.18"), top=10**9)
    assert len(report["waits"]) > 2_000
    for wait in report["waits"]:
        shares = sum(part["share_ns"] for part in wait["blame"])
        assert shares + wait["unexplained_ns"] == wait["wait_ns"]
    spans = [hold["hold_ns"] for hold in report["holds"]]
    assert spans == sorted(spans, reverse=True)


def test_groups_add_up_to_the_whole() -> None:
    summary = summarise(analyse(crowd(20_000), "6.18"), explain=10**9)
    analysis = summary.analysis
    for groups in (summary.by_operation, summary.by_thread, summary.by_process):
        assert sum(group.holds for group in groups) == len(analysis.holds)
        held = sum(group.exclusive_ns + group.shared_ns for group in groups)
        assert held == int(analysis.holds["hold_ns"].sum())
        assert sum(group.waits for group in groups) == summary.queued
        assert sum(group.waited_ns for group in groups) == summary.waited_ns
        blamed = sum(part.share_ns for found in summary.explained for part in found.blame)
        assert sum(group.caused_ns for group in groups) == blamed
    assert summary.explained_ns == summary.waited_ns
    assert [sum(histogram.counts) for histogram in summary.histograms][2] == summary.queued


def test_a_long_hold_that_nobody_met_is_shown_beside_those_that_were_waited_for() -> None:
    """A fork of 260 ms behind which nobody stood this time; calls of microseconds are counted."""
    log = Log()
    log.task(101, "db-free", 100, "db")
    log.task(300, "db-save", 100, "db")
    log.owner(MM, 100)
    at_ns = 0
    for op, hold_ns in (("clone", 260 * MS), ("mprotect", 3_000)):
        at_ns += 300 * MS
        log.begin(at_ns, tid=300, op=op)
        log.asked(at_ns, tid=300, mm=MM, write=True)
        log.acquired(at_ns, tid=300, mm=MM, write=True)
        log.released(at_ns + hold_ns, tid=300, mm=MM, write=True)
        log.end(at_ns + hold_ns, tid=300, op=op)
    log.begin(1_000 * MS, tid=101, op="munmap")
    log.asked(1_000 * MS, tid=101, mm=MM, write=True)
    log.acquired(1_020 * MS, tid=101, mm=MM, write=True)
    log.released(1_021 * MS, tid=101, mm=MM, write=True)
    log.end(1_021 * MS, tid=101, op="munmap")
    table = group_table("By operation", summarise(analyse(log.events(), "6.18")).by_operation, 9)
    assert {row[0] for row in table.rows} == {"clone", "munmap"}
    assert "1 other that neither waited nor made others wait, nor held it for 1 ms" in table.more


def test_the_longest_are_chosen_and_equals_stay_in_order() -> None:
    import numpy as np

    span = np.array([5, 9, 5, 9, 1, 9], np.int64)
    assert longest(span, 2) == [1, 3]
    assert longest(span, 4) == [1, 3, 5, 0]
    assert longest(span, 99) == [1, 3, 5, 0, 2, 4]
    assert longest(span, 0) == []


def test_losses_are_said_first_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log()
    log.acquired(10, tid=1, mm=MM, write=True, cpu=1)
    log.lost(5 * MS, cpu=1, count=400)
    log.released(6 * MS, tid=1, mm=MM, write=True, cpu=1)
    analysis = analyse(log.events(), "6.18")
    said = next(answer(summarise(analysis)))
    assert said.startswith("EVENTS ARE MISSING: at least 400 in 1 gap,")
    report = report_json(analysis, top=10)
    assert report["lost_events"] == 400
    assert report["holds"] == []
    assert report["gaps"] == [{"cpu": 1, "start_ns": 10, "end_ns": 5 * MS, "count": 400}]
    file = recorded(tmp_path / "gap.zaplock", log.events())
    assert main(["report", file]) == 0
    out = capsys.readouterr().out
    assert "Missing events, the longest gaps" in out
    assert "400 lost" in out
    assert "Nobody" not in out
    assert "of what is missing that is not known" in out


def test_an_empty_recording_is_said_to_be_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", recorded(tmp_path / "empty.zaplock", Log().events())]) == 0
    assert "Nobody waited for an mmap_lock" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_for_other_tools(file: str, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "tables"
    assert main(["report", file, f"--{kind}", str(out)]) == 0
    read = pl.read_csv if kind == "csv" else pl.read_parquet
    holds, waits, blame = (read(out / f"{name}.{kind}") for name in ("holds", "waits", "blame"))
    assert holds.filter(pl.col("operation") == "munmap")["hold_ns"].sum() == 186 * MS - 1_100
    assert waits["wait_ns"].max() == 185 * MS + 4_000
    shares = blame.group_by("wait").agg(pl.col("share_ns").sum()).sort("wait")
    assert shares["share_ns"].to_list() == [waits["wait_ns"][row] for row in shares["wait"]]


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    file = recorded(tmp_path / "db.zaplock", database())
    assert main(["report", file, "--top", "0"]) == 2
    assert "--top 0 is less than 1" in capsys.readouterr().err
    assert main(["report", file, "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "can't be written" in capsys.readouterr().err


def test_any_name_of_a_task_is_printed_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel lets a task call itself anything; markup of the terminal library included."""
    log = Log()
    log.task(1, "[/red] {x}", 1)
    log.asked(0, tid=1, mm=MM, write=True)
    log.acquired(5 * MS, tid=1, mm=MM, write=True)
    log.released(6 * MS, tid=1, mm=MM, write=True)
    assert main(["report", recorded(tmp_path / "odd.zaplock", log.events())]) == 0
    assert capsys.readouterr().out.count("[/red] {x} (tid 1)") >= 4


@pytest.mark.parametrize("width", [80, 160])
def test_a_narrow_terminal_loses_columns_not_names(width: int) -> None:
    out = Console(width=width, file=io.StringIO(), highlight=False)
    out.print(report_text(summarise(analyse(database(), "6.18")), top=5))
    assert isinstance(out.file, io.StringIO)
    table = out.file.getvalue().split("By thread\n")[1]
    assert "db-free (tid 101)" in table.split("By process")[0]
    assert "186 ms" in table
    assert "…" not in table
