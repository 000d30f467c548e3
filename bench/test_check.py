"""zaplock check: states a second, and the way to a verdict against Spin's on the same protocol.

The Promela model (munmap_fault_gup.pml) takes the same steps in the same order. Spin's time counts
from the model's text: `spin -a`, the C compiler, `pan`; ours from the scenario's name: building the
machine, filling the tables, visiting the states. Start-up is left out on both sides (the
interpreter's, and those of spin and cc are what they are), and so is what zaplock compiles once
on a machine, whatever is checked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from statistics import median

import msgspec
import pytest

from zaplock.check.matrix import all_scenarios, matrix
from zaplock.check.on_cluster import Asked, split_over
from zaplock.check.scenarios import InitialMapping, TaskSpec
from zaplock.check.verdicts import check, closed_system, find_design, find_scenario
from zaplock.engines.checking.compiled_levels import levels_library
from zaplock.engines.checking.exhaustive import Verdict, explore
from zaplock.executors import cluster_at

MODEL = Path(__file__).with_name("munmap_fault_gup.pml")
SCENARIO = "munmap-fault-gup"
RUNS = 5


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    levels_library.load(may_compile=True)


def say(line: str) -> None:
    print(f"\n  {line}", end="")


def verdict_of(design: str, crowd: bool = False) -> tuple[Verdict, float]:
    started = time.perf_counter()
    scenario = find_scenario(SCENARIO)
    if crowd:
        more = (TaskSpec(("gup 512 -> old",), "other gup"), TaskSpec(("read 512 -> old",), "read"),
                TaskSpec(("proc 1",), "proc", mm=2))  # fmt: skip
        scenario = msgspec.structs.replace(
            scenario, task=scenario.task + more, map=(*scenario.map, InitialMapping((600, 601))),
            cmdline=512,
        )  # fmt: skip
    verdict = explore(closed_system(scenario, find_design(design)))
    return verdict, time.perf_counter() - started


def spin(folder: Path, *defines: str) -> tuple[bool, int, float]:
    """Return (is safe, states, seconds from the text to the verdict)."""
    started = time.perf_counter()
    subprocess.run(["spin", "-a", *defines, str(MODEL)], cwd=folder, check=True)
    subprocess.run(["cc", "-O2", "-w", "-DSAFETY", "-o", "pan", "pan.c"], cwd=folder, check=True)
    pan = subprocess.run(["./pan", "-m100000"], cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    errors = re.search(r"errors: (\d+)", pan.stdout)
    states = re.search(r"(\d+) states, stored", pan.stdout)
    assert errors is not None
    assert states is not None
    return errors.group(1) == "0", int(states.group(1)), seconds


@pytest.mark.parametrize("design", ["linux-4.9", "linux-4.20", "linux-6.18"])
def test_rate_on_the_shipped_scenario(design: str) -> None:
    rates = []
    for _ in range(RUNS):
        verdict, _ = verdict_of(design)
        assert verdict.answer == "proved"
        rates.append(verdict.states / verdict.seconds)
    say(f"{SCENARIO} under {design}: {verdict.states} states, {median(rates):,.0f} states/s")
    assert median(rates) > 50_000


def test_rate_with_three_more_tasks() -> None:
    verdict, seconds = verdict_of("linux-4.20", crowd=True)
    say(f"six tasks: {verdict.states} states in {seconds:.2f} s, "
        f"{verdict.states / verdict.seconds:,.0f} states/s")  # fmt: skip
    assert verdict.answer == "proved"
    assert verdict.states / verdict.seconds > 50_000


@pytest.mark.skipif(shutil.which("spin") is None, reason="spin is not installed")
def test_spin_says_the_same_and_later(tmp_path: Path) -> None:
    spins = [spin(tmp_path) for _ in range(RUNS)]
    ours = [verdict_of("linux-4.20") for _ in range(RUNS)]
    broken = spin(tmp_path, "-DDOWNGRADE_BEFORE_DETACH")
    ours_broken, _ = verdict_of("linux-4.20/downgrade-before-detach")
    assert all(is_safe for is_safe, _, _ in spins)
    assert all(verdict.answer == "proved" for verdict, _ in ours)
    assert (broken[0], ours_broken.answer) == (False, "broken")
    spin_s, our_s = median(s for *_, s in spins), median(s for _, s in ours)
    say(f"spin: {spins[0][1]} states, {spin_s:.2f} s to the verdict with its compile")
    say(f"zaplock: {ours[0][0].states} states, {our_s:.3f} s: {spin_s / our_s:.1f} times as fast")
    assert our_s < spin_s


def measured(command: list[str], folder: Path) -> tuple[str, float, float]:
    """Run a command; return what it prints, its CPU seconds and the most MiB that it occupied."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return printed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


@pytest.mark.skipif(shutil.which("spin") is None, reason="spin is not installed")
@pytest.mark.parametrize("disk", [False, True])
def test_ten_million_states_with_spin_beside_it(disk: bool, tmp_path: Path) -> None:
    """Three tasks that pin pages instead of one; what is compared is exhausting, not compiling."""
    subprocess.run(["spin", "-a", "-DGUPS=3", str(MODEL)], cwd=tmp_path, check=True)
    build = ["cc", "-O2", "-w", "-DSAFETY", "-DMEMLIM=4000", "-o", "pan", "pan.c"]
    subprocess.run(build, cwd=tmp_path, check=True)
    pan, spin_s, spin_mib = measured(["./pan", "-m100000", "-w24"], tmp_path)
    stored = re.search(r"(\d+) states, stored", pan)
    assert stored is not None
    text = (resources.files("zaplock.check") / "scenario_files" / f"{SCENARIO}.toml").read_text()
    gup = text[text.rindex("[[task]]") :]
    more = "".join(gup.replace('"gup"', f'"gup {number}"') for number in (2, 3))
    (tmp_path / "crowd.toml").write_text(text + more)
    where = ["--disk", str(tmp_path), "--max-memory", "600"] if disk else []
    command = [sys.executable, "-m", "zaplock", "check", "crowd.toml", "--design", "linux-4.20",
               "--queue", "any", "--max-seconds", "3600", "--json", *where]  # fmt: skip
    printed, our_s, our_mib = measured(command, tmp_path)
    states = json.loads(printed)["states"]
    assert json.loads(printed)["verdict"] == "proved"
    assert states > 10_000_000
    say(f"spin: {stored[1]} states, {spin_s:.1f} s of CPU, {spin_mib:.0f} MiB")
    say(f"zaplock{' on disk' if disk else ''}: {states} states, {our_s:.1f} s of CPU, "
        f"{states / our_s:,.0f}/s, {our_mib:.0f} MiB")  # fmt: skip


CROWD = """
import msgspec
from zaplock.check.scenarios import InitialMapping, TaskSpec, shipped_scenarios
base = shipped_scenarios()["munmap-fault-gup"]
more = [("gup 512 -> old", f"gup {number}") for number in (2, 3, 4)]
more += [("read 512 -> old", f"read {number}") for number in (1, 2)]
CROWD = msgspec.structs.replace(
    base, name="crowd", task=base.task + tuple(TaskSpec((do,), name) for do, name in more),
    map=(*base.map, InitialMapping((600, 601))), cmdline=512,
)
"""


@pytest.mark.parametrize("disk", [False, True])
def test_five_million_states_over_two_dask_workers(disk: bool, tmp_path: Path) -> None:
    """The same verdict and number of states as one process has, in less memory each."""
    import distributed

    (tmp_path / "crowd.py").write_text(CROWD)
    asked = Asked(f"{tmp_path}/crowd.py:CROWD", "linux-6.18", disk=tmp_path if disk else None)
    command = [sys.executable, "-m", "zaplock", "check", asked.scenario, "--design", asked.design,
               "--queue", "any", "--json"]  # fmt: skip
    printed, _, alone_mib = measured(command, tmp_path)
    one = json.loads(printed)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as dask,
        cluster_at(dask.scheduler_address) as cluster,
    ):
        started = time.perf_counter()
        split = check(
            find_scenario(asked.scenario), find_design(asked.design), queue="any",
            elsewhere=split_over(cluster, asked),
        )  # fmt: skip
        seconds = time.perf_counter() - started
        status = [Path(f"/proc/{worker.pid}/status") for worker in dask.workers.values()]
        peaks = [int(re.findall(r"VmHWM:\s+(\d+)", each.read_text())[0]) >> 10 for each in status]
    say(f"{split.states} states: {alone_mib:.0f} MiB alone; two Dask workers"
        f"{' on disk' if disk else ''}: {seconds:.1f} s, {peaks} MiB")  # fmt: skip
    assert (split.verdict, split.states) == (one["verdict"], one["states"])
    assert max(peaks) <= 0.6 * alone_mib


def test_the_whole_matrix() -> None:
    started = time.perf_counter()
    cells = matrix(None)
    seconds = time.perf_counter() - started
    states = sum(cell.states for cell in cells)
    say(f"{len(all_scenarios())} scenarios under 8 designs, one process: {len(cells)} verdicts, "
        f"{states} states, {seconds:.1f} s")  # fmt: skip
    assert all(cell.agrees for cell in cells)
    assert seconds < 300
