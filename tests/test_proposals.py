"""The proposals of 2026: what was argued on the list, as designs with verdicts and prices."""

import subprocess
import sys
from pathlib import Path

import pytest

from zaplock.check.bugs import PROMISES
from zaplock.check.matrix import check_row, unexpected
from zaplock.check.verdicts import check, find_design, find_scenario
from zaplock.designs import load
from zaplock.designs.catalogue import GROUPS, named
from zaplock.designs.proposals_2026 import PROPOSALS_2026
from zaplock.engines.timed.engine import TimedEngine
from zaplock.lab import profiles
from zaplock.lab.experiment import SimulatedExperiment
from zaplock.lab.teardown import run
from zaplock.model.machine import Machine
from zaplock.model.rwsem import RWSEM_5_11
from zaplock.model.step import SleepStep, Task, step
from zaplock.model.violations import Invariant
from zaplock.model.vma import Vma
from zaplock.protocols.locking import vma_end_read, vma_start_read, vma_start_write

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
ABOUT_THEM = (
    "major-munmap", "major-fork", "fork-served", "fork-pfn", "fork-guard", "fork-guarded",
    "fork-first-write", "remote-two", "munmap+fork", "fork-copy",
)  # fmt: skip
BASE = "linux-7.3"

BROKEN = [
    ("fork-served", "wilcox-2026-05-hold", Invariant.NO_DEADLOCK, 13),
    ("major-fork", "wilcox-2026-05-hold", Invariant.DISK_APART, 13),
    ("major-munmap", "wilcox-2026-05-hold", Invariant.DISK_APART, 15),
    ("fork-pfn", "shi-2026-05-fork", Invariant.OLD_CONTENT_OR_SIGSEGV, 3),
    ("fork-guarded", "shi-2026-05-fork", Invariant.FORBIDDEN_OUTCOME, 30),
    ("fork-guard", "song-2026-05-fork", Invariant.OLD_CONTENT_OR_SIGSEGV, 27),
    ("remote-two", "riel-2026-06-remote-v1", Invariant.OLD_CONTENT_OR_SIGSEGV, 37),
]
"""What the list can use: where, under which proposal, which rule, in how many steps at most."""


@pytest.mark.parametrize(("scenario", "proposal", "rule", "most"), BROKEN)
def test_a_proposal_that_breaks_has_a_short_counterexample_and_its_release_none(
    scenario: str, proposal: str, rule: Invariant, most: int
) -> None:
    found = check(find_scenario(scenario), find_design(f"{BASE}-{proposal}"))
    assert found.violation is not None
    assert found.violation.invariant is rule
    assert len(found.groups or found.schedule) <= most
    assert check(find_scenario(scenario), find_design(BASE)).verdict == "proved"


@pytest.mark.parametrize("scenario", ABOUT_THEM)
def test_every_proposal_has_the_verdict_that_its_rules_say(scenario: str) -> None:
    names = [BASE, *(f"{BASE}-{one}" for one in PROPOSALS_2026)]
    names.append(f"{BASE}-wilcox-2026-05-hold+song-2026-05-fork")
    cells = check_row(scenario, names)
    assert not unexpected(cells), [(c.design, c.verdict, c.invariants, c.why) for c in cells]


def test_two_proposals_together_mend_what_one_of_them_breaks() -> None:
    both = find_design(f"{BASE}-wilcox-2026-05-hold+song-2026-05-fork")
    for scenario in ("fork-served", "major-fork"):
        assert check(find_scenario(scenario), both).verdict == "proved"
    assert check(find_scenario("major-munmap"), both).verdict == "broken"
    looks_elsewhere = find_design(f"{BASE}-wilcox-2026-05-hold+riel-2026-06-remote")
    assert check(find_scenario("fork-served"), looks_elsewhere).verdict == "proved"


def test_no_release_waits_for_a_disk_with_the_lock_in_its_hands() -> None:
    for promise in PROMISES:
        if "disk" in promise.says:
            assert promise.keeps(load(BASE))
            assert promise.keeps(load("linux-4.9"))


def test_ps_no_longer_waits_out_the_zap_where_a_remote_read_locks_the_vma() -> None:
    experiment = SimulatedExperiment(1 << 30, bystanders=("proc", "mmap"))
    profile = profiles.load(profiles.DEFAULT)
    before, after = (
        run(load(name), experiment, profile).outcome
        for name in (BASE, f"{BASE}-riel-2026-06-remote")
    )
    assert before.stalls["proc"].max_ns > before.shared_hold_ns * 0.8
    assert after.stalls["proc"].max_ns == 0
    assert after.stalls["mmap"].max_ns > after.shared_hold_ns * 0.8


def test_a_fork_waits_for_the_disk_only_where_a_fault_holds_the_vma_meanwhile() -> None:
    told = subprocess.run(
        [sys.executable, EXAMPLES / "major_faults.py"], capture_output=True, text=True, check=True
    )
    stalls = {line.split()[0]: line.split(maxsplit=1)[1] for line in told.stdout.splitlines()[1:]}
    assert stalls[BASE].startswith("0 ns")
    assert stalls[f"{BASE}-song-2026-04-retry"].startswith("0 ns")
    assert stalls[f"{BASE}-wilcox-2026-05-hold"].startswith("970 us")
    assert stalls[f"{BASE}-wilcox-2026-05-hold+song-2026-05-fork"].startswith("0 ns")
    assert told.stdout in (EXAMPLES.parent / "proposals.md").read_text().replace("\n    ", "\n")


def test_readers_that_keep_coming_do_not_keep_a_vma_writer_out_for_ever() -> None:
    machine = Machine()
    engine = TimedEngine(machine, policy=RWSEM_5_11)
    machine.vmas.put(1, Vma(1, 0, 4096, 0))
    times = {}

    @step
    def note(m: Machine, task: Task) -> None:
        times[task.name] = engine.now_ns

    async def read() -> None:
        for _ in range(100):
            if await vma_start_read(1):
                await SleepStep(1000)
                await vma_end_read(1)
            await SleepStep(10)

    async def write() -> None:
        await SleepStep(5000)
        await vma_start_write(1)
        await note()

    for tid in (1, 2, 3):
        engine.spawn(Task(tid, 1), read(), at_ns=tid * 300)
    engine.spawn(Task(4, 1, "writer"), write())
    engine.run()
    assert times["writer"] < 10_000


def test_a_group_stands_for_its_designs() -> None:
    assert named(["linux-6.18", "proposals"])[0] == "linux-6.18"
    assert set(named(["proposals"])) == set(GROUPS["proposals"]())
    assert all(load(name).name == name for names in GROUPS.values() for name in names())
