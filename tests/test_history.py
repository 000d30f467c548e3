"""Linux as a dated list of changes: folds, releases, backports, and the verb that shows them."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest

from zaplock.cli import main
from zaplock.designs import CHANGES, SHIPPED, Change, Design, load
from zaplock.designs.history import changes_between
from zaplock.designs.linux import (
    LINUX_6_18,
    NEWEST,
    design_of,
    linux,
    releases_that_differ,
    same_rules,
)
from zaplock.designs.proposals import PROPOSALS
from zaplock.designs.rules_read import deciding, observe, rules_read
from zaplock.errors import UserError
from zaplock.linux_version import LinuxVersion, find, parse
from zaplock.trace.queue import queue_of
from zaplock.vendor_builds import BUILDS

DIFFERENT = list(releases_that_differ())


@pytest.mark.parametrize("row", CHANGES, ids=lambda row: f"{row.since}-{row.commit}")
def test_a_row_says_when_what_and_by_which_commit(row: Change) -> None:
    assert set(row.rules) <= {field.name for field in fields(Design)}
    assert row.what
    assert not row.what.endswith(".")
    if row.commit is None:
        assert row.doubt, "an id that isn't known needs its reason"
    else:
        assert re.fullmatch("[0-9a-f]{12}", row.commit)
    since = parse(row.since)
    assert since.patch == 0
    for text in row.backported:
        assert parse(text).series < since.series
        assert parse(text).patch > 0
    assert len({parse(text).series for text in row.backported}) == len(row.backported)


def test_the_rows_are_in_the_order_of_their_releases() -> None:
    assert all(parse(a.since) <= parse(b.since) for a, b in pairwise(CHANGES))
    commits = [row.commit for row in CHANGES if row.commit]
    assert len(commits) == len(set(commits))


def test_every_row_with_rules_changes_something() -> None:
    for row in CHANGES:
        if row.rules:
            first = _first_covered(row)
            assert not same_rules(linux(first), linux(_before(first))), row


def _first_covered(row: Change) -> str:
    """Return the first release with a row that the table covers: of what is newer, a stable one."""
    return row.since if parse(row.since).series <= NEWEST.series else row.backported[-1]


def _before(release: str) -> LinuxVersion:
    number = parse(release)
    if number.patch:
        return replace(number, patch=number.patch - 1)
    last = {5: LinuxVersion(4, 20), 6: LinuxVersion(5, 19), 7: LinuxVersion(6, 19)}
    return LinuxVersion(number.major, number.minor - 1) if number.minor else last[number.major]


def test_shipped_names_are_names_of_folds() -> None:
    for name, design in SHIPPED.items():
        if proposal := next((one for one in PROPOSALS if name.endswith(f"-{one}")), ""):
            assert design == PROPOSALS[proposal](SHIPPED[name.removesuffix(f"-{proposal}")])
        elif name.startswith("linux-"):
            assert same_rules(design, linux(design.kernel)), name
        else:
            changed = {"munmap", "munmap_downgrades", "bounds_read", "skip_vm_flags"}
            rules = {field: getattr(linux("4.18"), field) for field in changed}
            assert same_rules(replace(design, **rules), linux("4.18")), name


def test_a_release_has_what_came_before_it() -> None:
    assert linux("6.8").vma_locks
    assert not linux("6.3").vma_locks
    assert linux("5.15").rwsem == linux("6.8").rwsem != linux("5.10").rwsem
    assert (linux("6.12").dontneed_lock, linux("6.17").dontneed_lock) == ("mmap", "vma")
    assert linux("6.12").flush_before_rmap
    assert not linux("6.12").moves_many
    assert (linux("4.9").kernel, linux("6.6.30").name) == ("4.9", "linux-6.6.30")


def test_a_backport_is_in_its_series_from_then_on_and_in_no_other() -> None:
    assert [linux(one).stack_growth for one in ("6.1.36", "6.1.37", "6.1.120")] == [
        "read", "write", "write",
    ]  # fmt: skip
    assert [linux(one).stack_growth for one in ("6.2", "6.4", "6.4.1", "6.5")] == [
        "read", "read", "write", "write",
    ]  # fmt: skip
    assert same_rules(linux("6.1"), SHIPPED["linux-6.1"])
    assert linux("6.1.0").stack_growth == "read"
    assert same_rules(linux("6.1.y"), linux("6.1.999"))


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("6.12.117+deb12-cloud-amd64", "6.12.117"),
        ("6.1.0-56-cloud-amd64", "6.1.y"),
        ("6.8.0-45-generic", "6.8.y"),
        ("5.14.21-150400.24.63-default", "5.14.21"),
        ("5.10.199-190.747.amzn2.x86_64", "5.10.199"),
        ("5.10.66-android12-9-00001-gabc", "5.10.66"),
        ("5.15.167.4-microsoft-standard-WSL2", "5.15.167"),
        ("6.5.6-300.fc39.x86_64", "6.5.6"),
        ("6.6.1-arch1-1", "6.6.1"),
        ("6.13.0-rc3-next", "6.13"),
        ("6.18.44-custom", "6.18.44"),
        ("6.18.0", "6.18"),
    ],
)
def test_distributions_name_their_kernels_in_their_own_ways(release: str, name: str) -> None:
    stand_in = design_of(release)
    assert stand_in.design.name == f"linux-{name}"
    assert bool(stand_in.note) == name.endswith(".y"), "a frozen number doesn't tell the release"


def test_what_a_name_does_not_tell_is_said() -> None:
    assert "changes of later releases" in design_of("4.18.0-477.el8.x86_64").note
    assert design_of("9.3").note.endswith("and taken for it")
    assert same_rules(design_of("9.3").design, DIFFERENT[-1])
    assert design_of("3.10.0-1160.el7").design.name == "linux-4.9"
    with pytest.raises(UserError, match="'vmlinux' begins with no Linux release"):
        design_of("vmlinux")


def test_a_vendors_build_whose_sources_were_read_is_judged_by_what_they_have() -> None:
    first, old, new = (
        design_of(f"4.18.0-{build}.x86_64") for build in ("80.el8", "240.22.1.el8_3", "348.el8")
    )
    assert first.design.rwsem == linux("4.18").rwsem
    assert not old.design.munmap_downgrades
    assert old.design.rwsem == linux("5.10").rwsem
    assert new.design.munmap_downgrades
    assert not new.design.downgrade_beside_growable
    assert new.design.rwsem == linux("5.11").rwsem
    assert "unknown" not in first.note + old.note + new.note
    for between in ("4.18.0-147.el8", "4.18.0-305.el8", "4.18.0-553.el8_10"):
        assert "unknown vendor kernel" in design_of(between).note, between
    assert queue_of("4.18.0-240.el8").readers_spin
    assert not queue_of("4.18.0-80.7.1.el8_0").readers_spin
    assert queue_of("4.18.0-348.7.1.el8_5.x86_64") is queue_of("5.14")


def test_every_commit_of_a_vendors_build_is_in_the_table_and_decides() -> None:
    known = {row.commit: row for row in CHANGES}
    for build in BUILDS:
        assert set(build.changes) <= set(known), build
        design = design_of(build.release).design
        assert deciding(design, {"mremap_flush"}) == [known["eb66ae030829"]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("linux-4.8", "Linux 4.8 is not in the table of changes, which covers 4.9 to"),
        ("linux-5.20", "Linux 5.20 is not in the table"),
        ("linux-6.6.30-generic", "'6.6.30-generic' is no Linux release such as"),
        ("linux-six", "'six' is no Linux release"),
        ("linux", "no design 'linux' (did you mean linux-"),
    ],
)
def test_a_name_of_no_release_is_one_clear_line(name: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as error:
        load(name)
    assert "FILE.py:NAME" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_queue_of_a_recording_is_that_of_its_release() -> None:
    for design in DIFFERENT:
        spins = design.rwsem.reader_steals == "spinning"
        assert queue_of(design.kernel).readers_spin == spins, design.kernel
        fifo = design.rwsem.reader_steals == "never"
        assert queue_of(design.kernel).name.startswith("FIFO") == fifo, design.kernel


def test_every_release_that_differs_is_there_once_and_in_order() -> None:
    versions = [parse(design.kernel) for design in DIFFERENT]
    assert versions == sorted(set(versions))
    assert {parse(_first_covered(row)) for row in CHANGES if row.rules} <= set(versions)
    assert {parse("6.1"), parse("6.1.37")} <= set(versions)


def test_what_was_read_of_a_design_and_which_rows_decided_it() -> None:
    observed = observe(LINUX_6_18)
    assert observed.stack_growth == "write"
    assert observed.rwsem.handoff_ns
    assert observed.name == "linux-6.18"
    assert rules_read(observed) == {"stack_growth", "rwsem"}
    rows = deciding(LINUX_6_18, rules_read(observed))
    assert [(row.since, *row.rules) for row in rows] == [
        ("5.2", "rwsem"), ("5.3", "rwsem"), ("5.3", "rwsem"), ("5.3", "rwsem"), ("5.11", "rwsem"),
        ("6.5", "stack_growth"),
    ]  # fmt: skip
    own = replace(LINUX_6_18, name="mine", stack_growth="read")
    assert deciding(own, ["stack_growth", "rwsem"]) == rows[:-1]


def test_what_lies_between_two_releases() -> None:
    gained, lost = changes_between(linux("6.1.37"), linux("6.3"))
    in_no_stable_one = [
        "d7c0e68dab98", "6cce3314b928", "6fd7353829ca", "11a9b90274f6", "07e8c82b5eff",
        "a1b92a3f1498",
    ]  # fmt: skip
    assert [row.commit for row in gained] == in_no_stable_one
    assert {row.commit for row in lost} >= {"8d7071af8907"}, "6.3 lacks a backport of 6.1's series"


# The verb


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["designs", *argv]) == 0
    return capsys.readouterr().out


def test_the_verb_shows_every_row_between_two_releases(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "linux-4.9", "linux-6.18")
    for row in CHANGES:
        if find(row.since) <= LinuxVersion(6, 18):
            assert f"{row.since:<6} {row.commit or '(id not known)'}  {row.subject}" in out
    told = json.loads(run(capsys, "4.9", "6.18", "--json"))
    assert (told["from"], told["to"], told["lost"]) == ("linux-4.9", "linux-6.18", [])
    assert told["rules"]["do_munmap"] == {"value": "do_vmi_align_munmap", "before": "do_munmap"}
    assert {"since", "commit", "subject", "what", "rules", "backported"} <= set(told["gained"][0])


def test_the_verb_shows_a_stable_release_and_ones_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = run(capsys, "6.1.36", "6.1.37")
    assert "6.5    8d7071af8907" in out
    assert "also in 6.1.37" in out
    assert run(capsys, "5.6", "5.7").startswith("No change of the table lies between")
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from dataclasses import replace\nfrom zaplock.designs.linux import linux\n"
        "MINE = replace(linux('6.6'), name='mine', vma_locks=False)\n"
    )
    out = run(capsys, f"{mine}:MINE")
    assert re.search(r"rule +mine +linux-6.6 ", out)
    assert re.search(r"vma_locks +False +True", out)
    assert main(["designs", "6.6", "6.7", "6.8"]) == 2


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_a_proposal_needs_what_it_stands_on(proposal: str) -> None:
    for release in ("linux-4.9", "linux-6.1", "linux-6.17"):
        with pytest.raises(UserError, match=r"stand on linux-6\.18 or later"):
            load(f"{release}-{proposal}")
    assert load(f"linux-7.1-{proposal}").kernel.startswith("7.1 + ")


@pytest.mark.parametrize(("name", "said"), [
    ("linux-6.1.0-37-amd64", "as a build it is judged as linux-6.1.y"),
    ("linux-6.13-rc3", "as a build it is judged as linux-6.13"),
    ("linux-4.18.0-348.7.1.el8_5.x86_64", "it is judged as linux-4.18.0-348.2.1.el8"),
    ("v6.6", "did you mean linux-6.6?"),
    ("6.6.30", "did you mean linux-6.6.30?"),
    ("linux-6.6.999999", "'6.6.999999' is no Linux release such as 6.6, 6.6.30 or 6.6.y)"),
    ("linux-٦.٦", "is no Linux release"),
    ("linux-66666.6", "is no Linux release"),
])  # fmt: skip
def test_a_name_that_is_none_is_refused_with_the_one_that_was_meant(name: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        load(name)


def test_a_vendors_build_can_be_named_as_reports_name_it() -> None:
    for build in BUILDS:
        assert load(f"linux-{build.release}") == design_of(f"{build.release}.x86_64").design
