"""A simulated fleet: the causes that were put in are what the report finds, however it is made."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from killed_worker import kill_the_first_worker

from zaplock.cli import main
from zaplock.cli._json_schemas import FleetReplayJson, FleetSimulatedJson
from zaplock.designs import load
from zaplock.errors import UserError
from zaplock.executors import Here, Processes, divided, executor
from zaplock.fleet.advising import advise_fleet
from zaplock.fleet.ask import ask
from zaplock.fleet.replaying import replay_fleet
from zaplock.fleet.report import CAUSE, FleetReport, changes_of, report
from zaplock.fleet.simulate import Made, days_of, fleet_of, simulate_fleet
from zaplock.fleet_store.store import FleetStore
from zaplock.lab import profiles
from zaplock.views.fleet_page import charts, render

HOSTS, SEED = 120, 4
FEW_HOSTS = 2
FEW = ["--kernel", "6.1", "--most", "1", "--to", "linux-6.18"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A day of 120 hosts, with two variants of each stall."""
    where = str(tmp_path_factory.mktemp("fleet") / "store")
    simulate_fleet(where, HOSTS, days_of(1), Here(), seed=SEED, variants=2)
    return where


@pytest.fixture(scope="module")
def small_made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Made]:
    """A day of few hosts, for what is as true of them as of many; nobody writes to it."""
    where = str(tmp_path_factory.mktemp("small") / "store")
    return where, simulate_fleet(where, FEW_HOSTS, days_of(1), Here(), variants=1)


@pytest.fixture(scope="module")
def small(small_made: tuple[str, Made]) -> str:
    return small_made[0]


@pytest.fixture(scope="module")
def found(fleet: str) -> FleetReport:
    return report(fleet, Here())


def truth_of(where: str) -> Any:
    return json.loads(Path(where, "truth.json").read_text())


def test_the_seeded_causes_are_the_first_in_the_report(fleet: str, found: FleetReport) -> None:
    seeded = truth_of(fleet)["causes"]
    first = found.causes.head(len(seeded)).select("unit", "culprit_process", "culprit_operation")
    assert {tuple(one[name] for name in ("unit", "process", "operation")) for one in seeded} == set(
        first.rows()
    )
    assert found.hosts == HOSTS
    waits = FleetStore(fleet).waits().objects
    assert found.waits == sum(one.name.waits for one in waits)
    assert found.causes["waits"].sum() == found.waits


def test_hosts_that_differ_are_those_that_were_made_so(fleet: str, found: FleetReport) -> None:
    odd = truth_of(fleet)["odd_hosts"]
    assert odd, "choose another seed"
    assert set(found.odd["host"]) == set(odd)


def test_the_report_is_the_same_however_it_is_made(fleet: str, found: FleetReport) -> None:
    assert report(fleet, Processes(2)).to_json() == found.to_json()


def test_a_seed_gives_the_same_store(fleet: str, tmp_path: Path) -> None:
    few = [fleet_of(HOSTS, SEED)[:2], fleet_of(2, SEED)]
    assert few[0] == few[1]
    again = tmp_path / "again"
    code = (  # in a process of its own, where nothing lies at the same address
        "from zaplock.executors import Here\n"
        "from zaplock.fleet.simulate import days_of, simulate_fleet\n"
        f"simulate_fleet({str(again)!r}, 2, days_of(1), Here(), seed={SEED}, variants=2)\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    files = [path.relative_to(again) for path in sorted(again.rglob("*.*")) if path.is_file()]
    same = [path for path in files if path.name != "truth.json"]
    assert len(same) > 10
    for path in same:
        assert (again / path).read_bytes() == Path(fleet, path).read_bytes()
    with pytest.raises(UserError, match="is a store already"):
        simulate_fleet(str(again), 2, days_of(1), Here())


def test_a_torn_recording_is_told(small_made: tuple[str, Made], tmp_path: Path) -> None:
    whole, made = small_made
    where = shutil.copytree(whole, str(tmp_path / "store"))
    next(Path(where, "manifest").rglob("*.json")).write_bytes(b"{")
    found = report(where, Here())
    assert found.recordings == made.recordings - 1
    for caveats in (found.caveats, ask(where, "SELECT 1").caveats):
        assert ["1 torn object" in line for line in caveats] == [True]


def test_duckdb_answers(fleet: str, found: FleetReport) -> None:
    answer = ask(fleet, "SELECT count(*), count(DISTINCT host), sum(wait_ns)::BIGINT FROM waits")
    assert answer.rows == ((found.waits, found.hosts, found.waited_ns),)
    joined = ask(
        fleet,
        "SELECT max(r.worst_ns) - max(w.wait_ns) FROM recordings r JOIN waits w USING (recording)",
    )
    assert joined.rows == ((0,),)
    assert ask(fleet, "SELECT 1 AS a").to_json() == [{"a": 1}]
    with pytest.raises(UserError, match="DESCRIBE"):
        ask(fleet, "SELECT nothing FROM waits")


def test_another_kernel_spares_what_it_is_known_to_spare(fleet: str, found: FleetReport) -> None:
    replayed = replay_fleet(
        fleet, Here(), profiles.load(profiles.DEFAULT), designs=[load("linux-6.18")],
        kernel="5.15", most=2,
    )  # fmt: skip
    assert not replayed.failed
    assert replayed.to_json().keys() == FleetReplayJson.__annotations__.keys()
    rows = {
        (one["unit"], one["design"], one["free_by"]): one
        for one in replayed.rows.iter_rows(named=True)
    }
    # MADV_DONTNEED takes a VMA's lock from 6.17 on; what waits for an mmap still does.
    assert rows["cache.service", "linux-6.18", "munmap"]["share"] == 1
    assert rows["search.service", "linux-5.15", "dontneed-chunks:2M"]["share"] > 0.9
    assert 0 < min(one["share"] for key, one in rows.items() if key[1] == "linux-6.18") < 0.9
    whole = found.by_kernel.filter(pl.col("kernel") == "5.15")["caused_ns"].item()
    assert replayed.caused_ns == whole
    assert all(abs(one["spared_ns"]) <= one["caused_ns"] for one in rows.values() if one["share"])
    first, *rest = advise_fleet(found, replayed)
    assert first.what == "upgrade Linux 5.15 to 6.18"
    assert {one.unit for one in rest} >= {"search.service", "cache.service"}

    def promised(causes: pl.DataFrame) -> int:
        advice = advise_fleet(dataclasses.replace(found, causes=causes), replayed)
        return sum(one.spares_ns or 0 for one in advice if one.unit == "search.service")

    twins = found.causes.with_columns(pl.col("culprit_process") + "-2")
    assert promised(found.causes) > 0
    assert abs(promised(pl.concat([found.causes, twins])) - promised(found.causes)) < 10
    with pytest.raises(UserError, match=r"no recordings of Linux 4\.4"):
        replay_fleet(fleet, Here(), profiles.load(profiles.DEFAULT), kernel="4.4")


def test_what_changed_is_told_by_host_and_day() -> None:
    day = [f"2026-01-{number:02d}" for number in range(1, 15)]
    cause = {name: name for name in CAUSE}
    rows = [
        {"day": one, "host": "a", **cause, "unit": unit, "caused_ns": caused}
        for one in day
        for unit, caused in (
            ("new", 500 if one > day[6] else 0), ("gone", 0 if one > day[6] else 400), ("same", 100)
        )
    ]  # fmt: skip
    changes = changes_of(pl.DataFrame(rows))
    assert changes is not None
    assert changes.select("unit", "before_ns", "now_ns").rows() == [
        ("new", 0, 500),
        ("gone", 400, 0),
    ]
    assert changes_of(pl.DataFrame(rows[-21:])) is None, "the week before isn't known"


def test_the_page_works_offline(found: FleetReport) -> None:
    page = render(found)
    assert "Who makes others wait" in page
    assert "search.service" in page
    assert "data:image/svg+xml" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<script>") == 2, "its tables' own, which the policy names by their hashes"
    assert page.count("sha256-") == 2


def test_a_unit_without_waits_under_a_kernel_has_its_square(found: FleetReport) -> None:
    """Squares that aren't there would let the next ones stand in their place."""
    drawn = next(chart for chart in charts(found) if "by unit and kernel" in chart.title).light
    picture = base64.b64decode(drawn.partition(",")[2]).decode()
    bars = re.findall(r'aria-label="waited at least: ([^;]+); waits: (\d+)', picture)
    keys = [found.lengths[name].n_unique() for name in ("unit", "kernel", "from_ns")]
    assert len(bars) == math.prod(keys)
    waits = [int(count) for _, count in bars]
    assert sum(waits) == found.lengths["waits"].sum()
    assert 0 in waits


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    tasks = [(str(tmp_path), item) for item in range(5)]
    assert list(Processes(2).map(kill_the_first_worker, tasks)) == [0, 1, 4, 9, 16]
    assert (tmp_path / "died").exists()


def test_parts_keep_their_order() -> None:
    assert divided([], 3) == []
    assert divided(list(range(7)), 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert divided([1], 8) == [[1]]


def test_a_mistake_is_answered_in_one_line(
    fleet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in (
        (["report", str(tmp_path)], "has no waits"),
        (["report", fleet, "--day", "tomorrow"], "YYYY-MM-DD"),
        (["report", fleet, "--day", "1999-01-01"], "has no waits of those days"),
        (["report", fleet, "--top", "0"], "at least one row"),
        (["report", fleet, "--jobs", "0"], "--jobs"),
        (["report", fleet, "--jobs", "2", "--cluster", "tcp://127.0.0.1:1"], "one of them"),
        (["ask", fleet, "DROP TABLE x"], "DuckDB can't answer"),
        (["replay", fleet, "--to", "linux-7000"], "linux-7000"),
        (["replay", fleet, "--most", "0"], "--most"),
        (["simulate", fleet], "is a store already"),
        (["simulate", str(tmp_path / "s"), "--hosts", "0"], "at least one"),
        (["simulate", "nosuch://x"], "nosuch"),
    ):
        assert main(["fleet", *arguments]) == 2, arguments
        printed = capsys.readouterr()
        assert said in printed.err
        assert printed.err.count("\n") == 1
        assert not printed.out


def test_each_question_ends_with_the_next(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["report", small],
        ["ask", small, "SELECT host FROM waits LIMIT 1"],
        ["replay", small, *FEW],
    ):
        assert main(["fleet", *arguments]) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("next: zaplock fleet ")


def test_each_answer_is_json_too(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whose fields are held against the schema (conftest.py)."""

    def told(*arguments: str) -> Any:
        assert main(["fleet", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert told("report", small)["hosts"] == FEW_HOSTS
    assert told("ask", small, "SELECT 1 AS one") == [{"one": 1}]
    odd = "SELECT 'nan'::double AS n, [1, NULL] AS l, {'a': 1} AS s, 1.50::DECIMAL(4,2) AS d"
    assert told("ask", small, odd) == [{"n": "nan", "l": [1, None], "s": {"a": 1}, "d": "1.50"}]
    assert main(["fleet", "ask", small, "SELECT 1 AS a, 2 AS a", "--json"]) == 2
    assert "two columns are called 'a'" in capsys.readouterr().err
    assert told("advise", small, *FEW)[0]["what"]
    assert FleetSimulatedJson.__annotations__.keys() == set(Made.__slots__)


def test_without_the_extra_the_way_out_is_told(small: str) -> None:
    program = (
        "import sys\n"
        "for name in ('duckdb', 'fsspec', 'distributed'): sys.modules[name] = None\n"
        "from zaplock.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    for arguments in (["fleet", "report", small], ["fleet", "ask", small, "SELECT 1"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "pip install 'zaplock[fleet]'" in done.stderr
    with executor(1) as workers:
        assert workers.workers == 1


def test_a_cluster_that_loses_a_worker_makes_the_same_report(
    fleet: str, found: FleetReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distributed

    monkeypatch.setattr("zaplock.executors._CONNECT_S", 120)  # it is there, however late it answers
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
        executor(1, cluster.scheduler_address) as workers,
    ):
        killed: list[str] = []

        def kill_one(line: str) -> None:
            if not killed:
                killed.append(line)
                worker = next(iter(cluster.workers.values()))
                os.kill(worker.pid, signal.SIGKILL)

        assert workers.workers == 2
        made = report(fleet, workers, progress=kill_one)
    assert killed
    assert made.to_json() == found.to_json()
    monkeypatch.setattr("zaplock.executors._CONNECT_S", 0.2)
    nobody = "tcp://127.0.0.1:1"
    with pytest.raises(UserError, match="no Dask scheduler answers"), executor(1, nobody):
        pass
