"""The agent beside redis and a Python service: what it finds, what it costs.

    pytest -s bench/test_agent.py        needs root and Debian's redis-server

`ZAPLOCK_AGENT_STALLS` (20) stalls are seeded; redis is measured with and without the agent in turn.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_agent import Victim, agent, figures, log_of, stalling, until

STALLS_SEEDED = int(os.environ.get("ZAPLOCK_AGENT_STALLS", "20"))
PAIRS = int(os.environ.get("ZAPLOCK_AGENT_PAIRS", "8"))
PORT = 16399
TICK = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def victim() -> Iterator[Victim]:
    with stalling() as victim:
        yield victim


@pytest.fixture
def redis() -> Iterator[int]:
    if shutil.which("redis-server") is None:
        pytest.skip("needs Debian's redis-server")
    command = ["redis-server", "--port", str(PORT), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        time.sleep(1)
        yield process.pid
        process.terminate()


def throughput() -> float:
    """Return redis's SETs a second."""
    run = ["redis-benchmark", "-p", str(PORT), "-t", "set", "-n", "150000", "-q", "--csv"]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    return float(re.findall(r'"SET","([\d.]+)"', out)[0])


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process and its children that ended have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICK


def test_the_agent_beside_redis_and_a_service(victim: Victim, redis: int, tmp_path: Path) -> None:
    with agent(tmp_path, victim.pid, "-p", str(redis), "--after", "500ms") as (process, port):
        until(lambda: figures(port).get("zaplock_watched_processes") == 2)
        time.sleep(2)
        begin_s, begun = cpu_s(process.pid), time.monotonic()
        time.sleep(20)
        idle = (cpu_s(process.pid) - begin_s) / (time.monotonic() - begun)
        load = subprocess.Popen(
            ["redis-benchmark", "-p", str(PORT), "-t", "set", "-n", "100000000", "-c", "2", "-q"],
            stdout=subprocess.DEVNULL,
        )
        seeded = []
        for number in range(STALLS_SEEDED):
            seeded.append(victim.stall(3072 + 256 * (number % 4)))
            time.sleep(3)
        until(lambda: figures(port).get("zaplock_spool_bytes") == 0, 300)
        load.kill()
        load.wait()
        status = Path(f"/proc/{process.pid}/status").read_text()
        buffers = figures(port)["zaplock_buffer_bytes"]
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    found = [line for line in log_of(tmp_path) if line["event"] == "trouble"]
    own = [line["wait_ns"] for line in found if line["culprit_operation"] == "munmap"]
    print(json.dumps({
        "seeded": len(seeded), "shortest_ms": min(seeded) / 1e6, "recordings": len(found),
        "right": len(own),
        "idle_cpu_percent": round(100 * idle, 3),
        "rss_kb": int(re.findall(r"VmRSS:\s+(\d+)", status)[0]),
        "peak_kb": int(re.findall(r"VmHWM:\s+(\d+)", status)[0]),
        "buffers_mb": buffers / 2**20,
    }))  # fmt: skip
    assert len(own) >= len(seeded)


def test_what_it_costs_redis(redis: int, tmp_path: Path) -> None:
    """In turn with and without the agent, so that what else the machine does is in both."""
    watched, alone = [], []
    for pair in range(PAIRS):
        with agent(tmp_path, redis) as (process, port):
            until(lambda port=port: figures(port).get("zaplock_watched_processes") == 1)
            watched.append(throughput())
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        alone.append(throughput())
        print(pair, watched[-1], alone[-1])
    ratios = sorted(one / other for one, other in zip(watched, alone))
    print(json.dumps({
        "ratio_of_medians": round(statistics.median(watched) / statistics.median(alone), 3),
        "median_of_ratios": round(statistics.median(ratios), 3), "ratios": ratios,
    }))  # fmt: skip


def test_what_the_agent_does_not_load() -> None:
    """polars, altair and pyarrow are the child's; figures for docs/fleet.md."""
    program = (
        "import re, sys, time\n"
        "begin = time.process_time()\n"
        "import zaplock.agent.watcher, zaplock.agent.metrics\n"
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
