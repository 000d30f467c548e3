"""The agent beside redis, PostgreSQL and a Python service under load: what it finds, what it costs.

    ZAPLOCK_AGENT_MINUTES=30 pytest -s bench/test_agent.py      needs root, redis and PostgreSQL

`ZAPLOCK_AGENT_STALLS` (20) stalls are seeded, of three kinds, over `ZAPLOCK_AGENT_MINUTES` (5):
each has to be found, with its culprit, in the log, the figures and the store. Then all three are
measured with and without the agent in turn, `ZAPLOCK_AGENT_PAIRS` (6) times.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from services import Services, free_port, missing, services
from test_agent import agent, figures, log_of, stalling, until

from zaplock.agent.target_watch import unit_of

STALLS_SEEDED = int(os.environ.get("ZAPLOCK_AGENT_STALLS", "20"))
SECONDS = 60 * float(os.environ.get("ZAPLOCK_AGENT_MINUTES", "5"))
PAIRS = int(os.environ.get("ZAPLOCK_AGENT_PAIRS", "6"))
WINDOW_S = 12
LIMIT_NS = 20_000_000
DEPLOY = Path(__file__).parents[1] / "docs" / "deploy"
TROUBLES = 'zaplock_troubles_total{{unit="{}"}}'
TICK = os.sysconf("SC_CLK_TCK")
pytestmark = pytest.mark.timeout(3 * SECONDS + 600)
MORE = ("--comm", "postgres", "--after", "500ms", "--per-hour", "10000")


@dataclass(frozen=True)
class Stall:
    """A stall that was seeded: `lasted_ns` by the clock of a thread that waited."""

    operation: str
    lasted_ns: int
    begun_ns: int
    ended_ns: int


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Services]:
    if lacking := missing():
        pytest.skip(f"needs Debian's {lacking}")
    with services(tmp_path) as running:
        yield running


def cpu_s(pid: int) -> tuple[float, float]:
    """Return the CPU time of a process, and of its children that ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, children = fields[11:13], fields[13:15]
    return sum(map(int, own)) / TICK, sum(map(int, children)) / TICK


def share(pid: int, seconds: float) -> float:
    """Return the part of a CPU that a process takes over so long."""
    before, begun = cpu_s(pid)[0], time.monotonic()
    time.sleep(seconds)
    return (cpu_s(pid)[0] - before) / (time.monotonic() - begun)


def seed(beside: Services, operation: str, sizes: dict[str, int]) -> Stall:
    """Make a stall of more than 100 ms; the next of the kind has a fitting size."""
    while True:
        lasted_ns, begun_ns, ended_ns = beside.stall(operation, sizes[operation])
        if lasted_ns > 5 * LIMIT_NS:
            if lasted_ns > 15 * LIMIT_NS:
                sizes[operation] //= 2
            return Stall(operation, lasted_ns, begun_ns, ended_ns)
        sizes[operation] *= 2
        time.sleep(3)


def in_store(stall: Stall, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The store's rows of that stall with the right culprit."""
    return [
        row for row in rows
        if row["culprit_operation"] == stall.operation
        and row["culprit_process"] == row["process"]
        and row["wait_ns"] >= LIMIT_NS
        and row["begun_ns"] <= stall.ended_ns
        and row["begun_ns"] + row["wait_ns"] >= stall.begun_ns
    ]  # fmt: skip


def rows_of(store: Path) -> list[dict[str, Any]]:
    files = [str(path) for path in store.glob("waits/**/*.parquet")]
    frame = pl.read_parquet(files, hive_partitioning=False) if files else pl.DataFrame()
    return frame.with_columns(begun_ns=pl.col("time").to_physical()).to_dicts() if files else []


def counted(text: str) -> Counter[str]:
    """Waits of the limit or longer in the figures, by the operation that the culprit was in."""
    found = Counter[str]()
    for labels, bucket, value in re.findall(
        r'^zaplock_wait_seconds_bucket\{(.*?)le="(.*?)".*?\} (\S+)', text, re.MULTILINE
    ):
        operation = re.findall(r'culprit_operation="(.*?)"', labels)[0]
        found[operation] += int(float(value)) * {"0.02": -1, "+Inf": 1}.get(bucket, 0)
    return found


def test_the_agent_beside_three_services(beside: Services, tmp_path: Path) -> None:
    redis, _, service = beside.pids
    sizes = {"munmap": 4096, "mprotect": 8192, "mremap": 4096}
    for operation in sizes:  # how large each must be here, before anybody looks
        seed(beside, operation, sizes)
    with agent(tmp_path, service, "-p", str(redis), *MORE) as (process, port):
        until(lambda: figures(port).get("zaplock_watched_processes", 0) >= 4)
        time.sleep(5)
        idle = share(process.pid, SECONDS / 6)
        stalls, loaded = [], list[float]()
        with beside.load():
            time.sleep(3)
            loaded.append(share(process.pid, SECONDS / 12))
            every_s = SECONDS * 3 / 4 / STALLS_SEEDED
            for number, operation in zip(range(STALLS_SEEDED), itertools.cycle(sizes)):
                next_s = time.monotonic() + every_s
                stalls.append(seed(beside, operation, sizes))
                print(number, stalls[-1].operation, stalls[-1].lasted_ns / 1e6, "ms", flush=True)
                time.sleep(max(0, next_s - time.monotonic()))
        until(lambda: figures(port).get("zaplock_spool_bytes") == 0, 300)
        status = Path(f"/proc/{process.pid}/status").read_text()
        seen, cpu = figures(port), cpu_s(process.pid)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            in_figures = counted(answer.read().decode())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    told = [line for line in log_of(tmp_path) if line["event"] == "trouble"]
    rows = rows_of(tmp_path / "store")
    stored = [in_store(stall, rows) for stall in stalls]
    logged = [
        any(line["recording"] in {row["recording"] for row in found}
            and line["culprit_operation"] == stall.operation for line in told)
        for stall, found in zip(stalls, stored)
    ]  # fmt: skip
    wanted = Counter(stall.operation for stall in stalls)
    for stall, found, line in zip(stalls, stored, logged):
        if not (found and line):
            near = [
                (row["process"], row["operation"], row["wait_ns"] / 1e6, row["culprit_operation"])
                for row in rows
                if row["wait_ns"] >= LIMIT_NS / 2
                and row["begun_ns"] <= stall.ended_ns + 10**9
                and row["begun_ns"] + row["wait_ns"] >= stall.begun_ns
            ]
            print("not as it was:", stall, line, near)
    print(json.dumps({
        "seeded": len(stalls),
        "shortest_ms": min(stall.lasted_ns for stall in stalls) / 1e6,
        "right in the store": sum(map(bool, stored)),
        "right in the log": sum(logged),
        "in the figures": {name: [in_figures[name], count] for name, count in wanted.items()},
        "recordings": seen.get("zaplock_recordings_total"),
        "idle_cpu_percent": round(100 * idle, 3),
        "loaded_cpu_percent": round(100 * loaded[0], 3),
        "cpu_s": cpu,
        "rss_kb": int(re.findall(r"VmRSS:\s+(\d+)", status)[0]),
        "peak_kb": int(re.findall(r"VmHWM:\s+(\d+)", status)[0]),
        "buffers_mb": seen["zaplock_buffer_bytes"] / 2**20,
        "lost_events": seen["zaplock_lost_events_total"],
    }))  # fmt: skip
    assert all(stored)
    assert all(logged)
    assert all(in_figures[name] >= count for name, count in wanted.items())
    assert seen["zaplock_buffer_bytes"] < 16 << 20
    assert int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) < 60_000


def test_what_it_costs_the_services(beside: Services, tmp_path: Path) -> None:
    """In turn with and without the agent, so that what else the machine does is in both."""
    redis, _, service = beside.pids
    ratios: dict[str, list[float]] = {}
    with beside.load() as load:
        time.sleep(3)
        for pair in range(PAIRS):
            rates: dict[bool, dict[str, float]] = {}
            for watched in (True, False) if pair % 2 else (False, True):
                if not watched:
                    rates[watched] = load.rates(WINDOW_S)
                    continue
                with agent(tmp_path, service, "-p", str(redis), *MORE) as (process, port):
                    until(lambda port=port: figures(port).get("zaplock_watched_processes", 0) >= 4)
                    time.sleep(2)
                    rates[watched] = load.rates(WINDOW_S)
                    process.send_signal(signal.SIGTERM)
                    process.wait(60)
            for name in rates[True]:
                ratios.setdefault(name, []).append(rates[True][name] / rates[False][name])
            print(pair, {name: round(each[-1], 3) for name, each in ratios.items()}, flush=True)
    print(json.dumps({
        "ratio": round(statistics.geometric_mean(
            statistics.median(each) for each in ratios.values()), 3),
        "medians": {name: round(statistics.median(each), 3) for name, each in ratios.items()},
    }))  # fmt: skip


def test_what_the_agent_does_not_load() -> None:
    """polars, altair and pyarrow are the child's; figures for docs/fleet.md."""
    program = (
        "import re, sys, time\n"
        "begin = time.process_time()\n"
        "import zaplock.agent.main_loop, zaplock.agent.metrics\n"
        "metrics = zaplock.agent.metrics.Metrics()\n"
        "heavy = [n for n in ('polars', 'altair', 'pyarrow', 'pandas') if n in sys.modules]\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "print(heavy, int(peak) >> 10, 'MiB', time.process_time() - begin, 's')\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    print(out)
    assert out.startswith("[] ")


def asked(port: int, what: str, **more: str) -> Any:
    """Ask Prometheus something."""
    query = urllib.parse.urlencode(more)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{what}?{query}") as answer:
        told = json.load(answer)
    assert told["status"] == "success"
    return told["data"]


@contextlib.contextmanager
def prometheus(folder: Path, target: int) -> Iterator[int]:
    """Run Debian's Prometheus with the rules of docs/deploy, every second instead of every 15."""
    text = (DEPLOY / "prometheus.yml").read_text()
    text = text.replace("15s", "1s\n  evaluation_interval: 1s").replace("9464", str(target))
    folder.mkdir()
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(DEPLOY / "rules.yml", folder)
    port = free_port()
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}",
               f"--storage.tsdb.path={folder / 'data'}", "--enable-feature=exemplar-storage",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield port
        finally:
            process.terminate()


def test_prometheus_scrapes_it_and_the_alert_fires(tmp_path: Path) -> None:
    """The rules, the alert and every question of the dashboard, on what a real agent tells."""
    if lacking := [name for name in ("prometheus", "promtool") if shutil.which(name) is None]:
        pytest.skip(f"needs Debian's {', '.join(lacking)}")
    with (
        stalling() as victim,
        agent(tmp_path, victim.pid) as (process, port),
        prometheus(tmp_path / "prometheus", port) as asks,
    ):
        until(lambda: figures(port).get("zaplock_watched_processes") == 1)

        def up() -> bool:
            with contextlib.suppress(OSError):
                return [one["value"][1] for one in asked(asks, "query", query="up")["result"]] == [
                    "1"
                ]
            return False

        until(up)
        time.sleep(3)
        seeded = 0
        while figures(port).get(TROUBLES.format(unit_of(victim.pid)), 0) < 5:
            victim.stall()
            seeded += 1
            time.sleep(2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read()
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
        )

        def firing() -> list[dict[str, Any]]:
            alerts = asked(asks, "alerts")["alerts"]
            return [one for one in alerts if one["state"] == "firing"]

        until(firing, 30)
        rule = asked(asks, "query", query="unit:zaplock_waited:ratio_rate5m")["result"]
        span = {"start": str(time.time() - 600), "end": str(time.time())}
        exemplars = asked(asks, "query_exemplars", query="zaplock_wait_seconds_bucket", **span)
        dashboard = json.loads((DEPLOY / "dashboard.json").read_text())
        shown = {
            f"{panel['title']}: {target['expr'][:40]}": len(
                asked(asks, "query", query=target["expr"])["result"]
            )
            for panel in dashboard["panels"]
            for target in panel["targets"]
        }
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        told = {
            "stalls": seeded,
            "promtool": (checked.returncode, checked.stdout.decode(), checked.stderr.decode()),
            "alerts": [(one["labels"], one["annotations"]) for one in firing()],
            "rule": [(one["metric"], one["value"][1]) for one in rule],
            "exemplars": sum(len(one["exemplars"]) for one in exemplars),
            "dashboard": shown,
        }
        print(json.dumps(told, indent=1))
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    assert [labels["alertname"] for labels, _ in told["alerts"]] == ["MmapLockStalls"]
    assert float(rule[0]["value"][1]) > 0
    assert exemplars
    assert all(shown.values())
