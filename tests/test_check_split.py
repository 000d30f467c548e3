"""A check over several workers, of this machine or of a cluster, finds what one process finds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from crews import explore_split
from toys import random_configuration, random_ranges

from zaplock.check import on_cluster
from zaplock.check.matrix import matrix
from zaplock.check.on_cluster import Asked, split_over
from zaplock.check.verdicts import CheckResult, check, closed_system, find_design, find_scenario
from zaplock.cli import main
from zaplock.engines.checking import divided_levels, exhaustive, wide_levels
from zaplock.engines.checking.exhaustive import Verdict, explore
from zaplock.engines.checking.on_disk import DiskLimits
from zaplock.errors import UserError
from zaplock.executors import Cluster, cluster_at
from zaplock.oracle.bare_process import check_machine
from zaplock.oracle.campaign import SLICE, Bench, Report, run_on, slice_seed
from zaplock.oracle.modelside import COVERED, model_side

MINE = """
from zaplock.check.scenarios import shipped_scenarios
OWN = shipped_scenarios()["expand"]
"""


def _can_judge() -> bool:
    try:
        check_machine()
    except UserError:
        return False
    return True


needs_kernel = pytest.mark.skipif(not _can_judge(), reason="the oracle can't judge this kernel")


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    import distributed

    with (
        pytest.MonkeyPatch.context() as patch,
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
    ):
        patch.setattr("zaplock.executors._CONNECT_S", 120)  # it is there, however late it answers
        yield cluster


@pytest.fixture(scope="module")
def cluster(dask: Any) -> Iterator[Cluster]:
    with cluster_at(dask.scheduler_address) as found:
        yield found


def found_by(verdict: Verdict) -> tuple[Any, ...]:
    results = [sorted(map(repr, ends)) for ends in verdict.results]
    return (
        verdict.answer, verdict.states, verdict.transitions, verdict.depth, verdict.endings,
        verdict.never, verdict.limit, verdict.loops, results, sorted(map(str, verdict.violations)),
    )  # fmt: skip


def told(found: CheckResult) -> tuple[CheckResult, list[str]]:
    texts = sorted(map(str, found.violations))
    alike = replace(found, seconds=0, audit=type(found.audit)(), violation=None, violations=())
    return alike, texts


@pytest.mark.parametrize("queue", ["any", "fair"])
@pytest.mark.parametrize(
    ("scenario", "design"),
    [("expand", "linux-4.20"), ("expand", "linux-4.18"), ("fork-child", "linux-6.18")],
)
def test_a_cluster_finds_what_one_process_finds(
    cluster: Cluster, scenario: str, design: str, queue: Any
) -> None:
    """Verdict, number of states, counterexample."""
    asked = find_scenario(scenario), find_design(design)
    alone = check(*asked, queue=queue)
    split = check(*asked, queue=queue, elsewhere=split_over(cluster, Asked(scenario, design)))
    assert told(split) == told(alone)


def test_workers_keep_their_part_on_disk(cluster: Cluster, tmp_path: Path) -> None:
    asked, seen = Asked("expand", "linux-4.18", disk=tmp_path), set[Path]()
    plain = check(find_scenario("expand"), find_design("linux-4.18"), queue="any")
    on_disk = check(
        find_scenario("expand"), find_design("linux-4.18"), queue="any",
        elsewhere=split_over(cluster, asked), progress=lambda _: seen.update(tmp_path.iterdir()),
    )  # fmt: skip
    assert len(seen) == 2, "each worker has a directory of its own there"
    assert told(on_disk) == told(plain)


@pytest.mark.parametrize("in_memory", [1, 40])
def test_every_worker_keeps_its_part_on_disk(in_memory: int, tmp_path: Path) -> None:
    """Each with files of its own."""
    system = closed_system(find_scenario("expand"), find_design("linux-4.18"), True)
    plain = explore(system, all_violations=True)
    split = explore_split(system, 3, all_violations=True, disk=DiskLimits(tmp_path, in_memory))
    assert (split.answer, split.states, split.transitions, split.endings) == (
        plain.answer, plain.states, plain.transitions, plain.endings,
    )  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("bits", "worth", "size"), [(63, 1 << 60, 20_000), (17, 1 << 60, 7), (63, 30, 3)]
)
def test_workers_hand_words_over(
    bits: int, worth: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lays words out and numbers contents on its own, or goes on state by state."""
    for name, value in (("WORD_BITS", bits), ("ENOUGH_SEEN", worth), ("BATCH", size)):
        monkeypatch.setattr(wide_levels, name, value)
    monkeypatch.setattr(divided_levels, "SLICE", size // 3)
    handed_over = multiprocessing.Value("l", 0)
    inner = divided_levels.DividedLevels.parcels

    def parcels(part: divided_levels.DividedLevels) -> Any:
        packed = inner(part)
        with handed_over.get_lock():
            handed_over.value += sum(parcel.many for _, parcel in packed)
        return packed

    monkeypatch.setattr(divided_levels.DividedLevels, "parcels", parcels)
    for seed in (0, 1, 3, 4):
        make = random_ranges if seed == 4 else random_configuration
        fair, every = seed % 2 == 0, seed % 3 != 0
        monkeypatch.setattr(exhaustive, "WIDE", 1 << 60)
        plain = found_by(explore(make(seed, fair), all_violations=every))
        monkeypatch.setattr(exhaustive, "WIDE", 1 + seed % 3)
        disk = DiskLimits(tmp_path, 1 + 4 * seed) if seed % 2 else None
        split = explore_split(make(seed, fair), 2 + seed % 2, all_violations=every, disk=disk)
        assert found_by(split) == plain, seed
    assert handed_over.value
    assert not list(tmp_path.iterdir())


def test_a_worker_that_dies_is_no_loss(
    dask: Any, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check begins again: part of the states are gone with the worker."""
    monkeypatch.setattr(on_cluster, "_LOOK_S", 0.1)
    killed: list[int] = []

    def kill_one(progress: Any) -> None:
        if not killed and progress.depth > 5:
            killed.append(next(iter(dask.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    asked = find_scenario("expand"), find_design("linux-4.18")
    split = check(
        *asked, queue="any", elsewhere=split_over(cluster, Asked("expand", "linux-4.18")),
        progress=kill_one,
    )  # fmt: skip
    assert killed
    assert told(split) == told(check(*asked, queue="any"))


def test_a_worker_with_other_code_is_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its ints mean isn't what they mean here."""
    monkeypatch.setattr(on_cluster, "__version__", "0.0.0")
    search = split_over(cluster, Asked("expand", "linux-4.18"))
    with pytest.raises(UserError, match="makes another table of the same scenario"):
        check(find_scenario("expand"), find_design("linux-4.18"), elsewhere=search)


def test_own_files_are_found_from_the_workers_directories(
    dask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    there = ["--cluster", dask.scheduler_address, "--queue", "any"]
    assert main(["check", "mine.py:OWN", "--design", "linux-4.20", *there]) == 1
    assert "NO_VMA_OVER_FREED_TABLES" in capsys.readouterr().out
    assert main(["check", "mine.py:OWN", "--jobs", "2", *there]) == 2
    assert "two places to work in" in capsys.readouterr().err
    assert main(["check", "expand", "--exact", *there]) == 2
    assert "leave --jobs, --cluster and --disk out" in capsys.readouterr().err


def test_a_cluster_whose_workers_do_not_come_back_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import distributed

    monkeypatch.setattr("zaplock.executors._REPLACED_S", 1)
    with (
        distributed.LocalCluster(
            n_workers=1, processes=False, dashboard_address=":0", silence_logs=50
        ) as small,
        cluster_at(small.scheduler_address) as found,
    ):
        assert len(found.processes()) == 1
        small.scale(0)
        deadline = time.monotonic() + 120
        while found._client.nthreads():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(UserError, match="has had no worker for 1 s: start 'dask worker'"):
            found.processes()


def test_the_matrix_is_the_same_from_a_cluster(cluster: Cluster) -> None:
    asked: tuple[list[str], list[str]] = (["expand", "noreplace"], ["linux-4.18", "linux-4.20"])
    cells = [replace(cell, seconds=0) for cell in matrix(None, *asked)]
    assert [replace(cell, seconds=0) for cell in matrix(cluster.futures(), *asked)] == cells


def test_a_sweep_of_cpus_is_the_same_from_anywhere(
    dask: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, printed = ["scale", "brk1", "--cpus", "1,2", "--json"], []
    for more in ([], ["--jobs", "2"], ["--cluster", dask.scheduler_address]):
        assert main([*asked, *more]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]


@needs_kernel
def test_a_campaign_on_a_cluster_compares_what_one_here_compares(
    cluster: Cluster, dask: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slice by slice; no side is left on a worker."""

    def there() -> Report:
        *_, whole = run_on(cluster, model_side, seconds=0.3, seed=7, scope=COVERED)
        return whole

    report = undisturbed(there)
    slices = report.sequences // SLICE
    assert slices >= 2
    alone = Report()
    with closing(Bench(model_side, COVERED)) as here:
        for number in range(slices):
            alone.merge(undisturbed(partial(here.slice, slice_seed(7, number))))
    assert (report.operations, report.coverage) == (alone.operations, alone.coverage)
    assert (report.signatures, report.lost) == (alone.signatures, alone.lost)
    for worker in dask.workers.values():
        threads = Path(f"/proc/{worker.pid}/task").glob("*/children")
        assert not any(one.read_text() for one in threads)
    for more in (["--theme", "swap"], ["--threads"], ["--kernel", "debian:6.1"]):
        assert main(["oracle", "--cluster", dask.scheduler_address, *more]) == 2
        assert "--cluster" in capsys.readouterr().err


def undisturbed(run: Callable[[], Report]) -> Report:
    """Run until nobody changes the machine's settings meanwhile, as other tests do."""
    report = next((one for one in (run() for _ in range(50)) if not one.unsettled), None)
    assert report is not None
    return report


def test_a_theme_that_needs_root_is_refused_by_workers_that_are_not(
    cluster: Cluster, dask: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their segments of shared memory would be everybody's."""
    is_root = not os.geteuid()
    if is_root:
        cluster.each(os.seteuid, 65534)
    try:
        asked = ["oracle", "--theme", "shm", "--seconds", "0.1"]
        assert main([*asked, "--cluster", dask.scheduler_address]) == 2
    finally:
        if is_root:
            cluster.each(os.seteuid, 0)
    assert "run it as root" in capsys.readouterr().err
