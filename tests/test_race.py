"""Races for real: what check finds broken, a driver loses on a kernel that has it, and on no other.

No kernel at hand has these bugs, so the driver is tried on a stand-in: a teardown in several calls,
which does to the second thread what the bug does.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from test_guest import needs

from zaplock.check.protection import bug_of, predict
from zaplock.check.verdicts import find_scenario
from zaplock.cli import main
from zaplock.designs.linux import linux
from zaplock.errors import UserError
from zaplock.linux_version import find
from zaplock.measure.guest.race import RACES, RacePlan, RaceRun, run

SMALL = 8 << 20


def raced(name: str, tries: int, *, stand_in: bool = False) -> RaceRun:
    try:
        return run(RacePlan(name, "host", tries, SMALL, stand_in=stand_in))
    except UserError as error:
        if "C compiler" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("name", RACES)
def test_each_race_is_the_first_scenario_of_a_bug_of_linux(name: str) -> None:
    assert bug_of(name) is not None


@pytest.mark.parametrize("name", RACES)
def test_a_stand_in_that_has_the_bug_loses_and_this_kernel_does_not(name: str) -> None:
    here = find(os.uname().release)
    if here is not None and here.carries("6.5"):  # the last of these bugs is gone
        assert raced(name, 50).lost == 0
    tries = 50
    while not raced(name, tries, stand_in=True).lost:  # whenever the second thread gets to run
        tries *= 4
        assert tries < 20_000


def test_a_guest_of_6_1_loses_nothing_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    needs("debian:6.1")
    options = ["--kernel", "debian:6.1", "--tries", "40", "8M", "--json"]
    assert main(["measure", "--race", "expand", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["lost"], told["tries"], told["complaints"]) == (0, 40, [])
    assert told["release"].startswith("6.1.")
    assert told["predicted"]["verdict"] == "proved"
    (kept,) = told["predicted"]["protections"]
    assert kept["rules"] == ["downgrade_beside_growable", "stack_growth"]
    assert [one["commit"] for one in kept["changes"]] == ["246c320a8cfe", "8d7071af8907"]


def test_what_protects_a_design_is_told_and_what_has_the_bug_has_none() -> None:
    expand = find_scenario("expand")
    assert predict(expand, linux("4.20")).protections == ()
    rules = {version: [one.rules for one in predict(expand, linux(version)).protections]
             for version in ("4.18", "5.10", "6.12")}  # fmt: skip
    assert rules == {
        "4.18": [("do_munmap", "munmap_downgrades")],
        "5.10": [("downgrade_beside_growable",)],
        "6.12": [("stack_growth",)],
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--race", "expnad", "--kernel", "host"], "(did you mean expand?)"),
        (["--race", "expand"], "--race: name the kernel, such as --kernel debian:6.1"),
        (["--race", "expand", "--kernel", "host", "--exact"], "--exact is not for --race"),
        (["--race", "expand", "--kernel", "host", "--repeat", "3"], "--repeat is not for --race"),
        (["--race", "expand", "--kernel", "host", "--teardown", "exit"], "--teardown is not for"),
        (["--race", "expand", "--kernel", "host", "--tries", "0"], "--tries 0 must lie between"),
        (["--race", "expand", "--kernel", "host", "3M"], "give a multiple of 2 MiB, 8M or more"),
        (["--race", "expand", "--kernel", "x=linux-4.2O"], "no design 'linux-4.2O'"),
        (["--tries", "3"], "--tries is for a race"),
    ],
)
def test_what_is_no_race_is_told_in_a_line(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["measure", *options]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
