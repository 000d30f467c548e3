"""A simulated teardown is read by the same report as a recording of a real kernel."""

from pathlib import Path

import numpy as np
import pytest

from zaplock.cli import main
from zaplock.designs.load import load as design_named
from zaplock.lab.experiment import SimulatedExperiment
from zaplock.lab.profiles import load
from zaplock.lab.teardown import Teardown, run
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.recording_file import Manifest, write

GIB = 1 << 30
"""Of a mapping whose every page is mapped: 31 ms of zapping a GiB by the RFC's own figures."""


def teardown(design: str, *bystanders: str) -> Teardown:
    experiment = SimulatedExperiment(4 * GIB, bystanders=bystanders)
    return run(design_named(design), experiment, load("e5-2680-rfc"))


def worst(analysis: Analysis, comm: str) -> list[tuple[str, str, int]]:
    """Tell who is to blame for the longest wait of a task, with its share in per cent."""
    tids = [task.tid for task in analysis.events.tasks.values() if task.comm == comm]
    rows = np.flatnonzero(np.isin(analysis.waits["tid"], tids))
    row = int(rows[np.argmax(analysis.waits["wait_ns"][rows])])
    found, wait_ns = analysis.explain(row), int(analysis.waits["wait_ns"][row])
    tasks = analysis.events.tasks
    return [
        (tasks[blame.tid].comm, blame.role, round(100 * blame.share_ns / wait_ns))
        for blame in found.blame
        if blame.share_ns * 20 > wait_ns
    ]


def test_under_4_9_ps_waits_for_the_exclusive_munmap() -> None:
    one = teardown("linux-4.9", "fault", "proc")
    analysis = analyse(one.events, one.design.kernel)
    assert worst(analysis, "ps") == [("munmap", "holder", 100)]


def test_under_the_rfc_ps_waits_in_a_convoy_behind_an_mmap() -> None:
    one = teardown("rfc-v6", "fault", "proc", "mmap")
    analysis = analyse(one.events, one.design.kernel)
    assert worst(analysis, "ps") == [("munmap", "holder", 50), ("mmap", "queued-writer", 50)]
    assert worst(analysis, "mmap") == [("munmap", "holder", 100)]


@pytest.mark.parametrize("form", [["--json"], ["--html", "page.html"], ["--perfetto", "x.pftrace"]])
def test_every_form_takes_it(
    form: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = teardown("linux-6.18", "proc", "mmap")
    monkeypatch.chdir(tmp_path)
    about = Manifest(kernel=one.design.kernel, source="simulation")
    write("run.zaplock", one.events, about)
    assert main(["report", "run.zaplock", *form]) == 0
    for name in form[1:]:
        assert Path(name).stat().st_size > 1_000
