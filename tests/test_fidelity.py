"""Designs beside the kernels they stand for: what is predicted, what is measured, who is right."""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zaplock.cli import _fidelity_text as text
from zaplock.cli import fidelity as cli
from zaplock.cli import main
from zaplock.compiled.build import compiler
from zaplock.designs import load
from zaplock.designs.linux import LINUX_4_18, LINUX_6_1, design_of, linux
from zaplock.errors import UserError
from zaplock.lab import fidelity
from zaplock.lab.fidelity import READERS, WRITER, Agreement
from zaplock.lab.forecast import TEARDOWNS, predict
from zaplock.measure.guest import build, host, kernels, qemu
from zaplock.measure.guest import finished_run as guest_verdict
from zaplock.measure.guest.capsule import Capsule
from zaplock.measure.guest.experiment import GuestPlan, GuestRun

CONVOY = (*READERS, WRITER)


MODES = {
    # As real kernels of these releases were seen to hold the lock; what isn't named: W, R.
    "linux-4.9": dict.fromkeys(TEARDOWNS, "W") | {"exit": "R"},
    "linux-4.18": dict.fromkeys(TEARDOWNS, "W") | {"exit": "R"},
    "rfc-v6": {"fixed": "W", "brk": "W", "mremap": "W", "exit": "R"},
    "linux-4.20": {"fixed": "W", "exit": "R"},
    "linux-5.10": {"fixed": "W", "growsdown": "W", "exit": "R"},
    "linux-6.1": {"fixed": "W", "growsdown": "W"},
    "linux-6.12": {"fixed": "W"},
}


@pytest.mark.parametrize("teardown", TEARDOWNS)
@pytest.mark.parametrize("design", MODES)
def test_each_teardown_has_its_modes(design: str, teardown: str) -> None:
    seen = predict(load(design), teardown, READERS)
    letters = [{"exclusive": "W", "shared": "R"}[mode] for mode in fidelity.phases(seen)]
    expected = "R, W" if teardown == "exit" else "W, R"
    assert ", ".join(letters) == MODES[design].get(teardown, expected)


def test_before_the_patch_everybody_waits_for_an_exclusive_hold() -> None:
    seen = predict(LINUX_4_18, "munmap", CONVOY)
    assert fidelity.phases(seen) == ["exclusive"]
    assert fidelity.waiting(seen) == {name: ["teardown"] for name in sorted(CONVOY)}


def test_on_5_10_readers_pass_a_writer_that_fell_asleep_while_mlocked_memory_was_munlocked() -> (
    None
):
    # As real 5.10 was seen to do on one CPU: mmap queues during the exclusive phase and sleeps.
    first = {"fault": 0.001, "proc": 0.002, "mmap": 0.003}
    seen = predict(linux("5.10"), "locked", CONVOY, cpus=1, arrivals=first)
    assert fidelity.waiting(seen) == {name: ["teardown"] for name in sorted(CONVOY)}
    assert seen.ratio("fault") < 0.5 < 0.9 < seen.ratio("mmap")
    # Where it comes to a shared hold it spins, gives up, and with that readers may not pass.
    seen = predict(linux("5.10"), "munmap", CONVOY, cpus=1, arrivals=first)
    assert fidelity.waiting(seen)["proc"] == ["mmap", "teardown"]


def test_nobody_is_left_to_wait_for_an_exit() -> None:
    for release in ("6.1", "6.12", "6.18"):
        assert predict(linux(release), "exit", CONVOY).waits == {}


@pytest.mark.parametrize("share", [0.0002, 0.001, 0.02])
def test_readers_that_come_often_do_not_keep_the_writer_spinning(share: float) -> None:
    # Readers that left once renewed the patience of a spinning writer, which so never queued.
    seen = predict(linux("6.18"), "munmap", CONVOY, period_share=share)
    assert fidelity.waiting(seen)["proc"] == ["mmap", "teardown"]


def row(**changes: object) -> Agreement:
    seen = predict(LINUX_6_1, "munmap", CONVOY)
    fields = {"measured": seen, "predicted": seen, **changes}
    return Agreement("debian:6.1", "linux-6.1", "munmap", True, **fields)  # type: ignore[arg-type]


def test_a_design_agrees_with_itself() -> None:
    assert row().agrees
    assert row().worst_difference == 0


def test_a_design_without_the_downgrade_is_told_from_one_with_it() -> None:
    wrong = row(predicted=predict(LINUX_4_18, "munmap", CONVOY))
    assert not wrong.modes
    assert not wrong.waits  # before the patch nobody stands behind the queued writer
    assert not wrong.agrees
    assert text.cells(wrong)[-1] == "DIFFER"
    assert "(predicted: W)" in text.cells(wrong)[4]


def test_a_wait_half_as_long_as_predicted_is_a_difference() -> None:
    seen = predict(LINUX_6_1, "munmap", CONVOY)
    half = {name: wait // 2 for name, wait in seen.worst_wait_ns.items()}
    shorter = row(measured=replace(seen, worst_wait_ns=half))
    assert shorter.modes
    assert shorter.waits
    assert not shorter.ratios
    assert shorter.worst_difference == pytest.approx(0.5, abs=0.01)


def test_who_waits_for_a_hold_shorter_than_the_bystanders_period_is_not_judged() -> None:
    # 64 huge pages on 6.12 are gone in 140 us: in one run a queued mmap comes just then, in the
    # next it does not.
    seen = predict(LINUX_6_1, "hugetlb", CONVOY)
    nobody = replace(seen, waits={}, worst_wait_ns={})
    met = replace(seen, waits={"mmap": ("teardown",)}, worst_wait_ns={"mmap": seen.hold_ns})
    for measured, predicted in ((met, nobody), (nobody, met), (nobody, nobody)):
        short = row(measured=measured, predicted=predicted, period_ns=seen.hold_ns + 1)
        assert short.agrees is None
        assert text.cells(short)[-1] == "not judged"
        (said, *_) = text.sentences([short], [])
        assert "who waits is not judged; try a larger --guest-size" in said
        assert text.as_json([short], [], [])["agree"] is None
    long = row(measured=met, predicted=nobody, period_ns=seen.hold_ns)
    assert long.agrees is False, "as long as a period: everybody comes once"
    other_modes = replace(row(period_ns=1 << 40), predicted=predict(LINUX_4_18, "munmap", CONVOY))
    assert other_modes.agrees is False, "modes are seen however short the hold"


def test_the_section_replaces_itself_and_nothing_else() -> None:
    rows = [row()]
    section = text.section(rows, [], ["debian:6.12 left out: no network"])
    once = text.with_section("# Fidelity\n\nbefore\n", section)
    again = text.with_section(once + "\nbehind\n", text.section(rows, [], []))
    assert once.startswith("# Fidelity\n\nbefore\n\n" + text.BEGIN)
    assert "left out" in once
    assert "left out" not in again
    assert again.count(text.BEGIN) == again.count(text.END) == 1
    assert again.startswith("# Fidelity\n\nbefore\n")
    assert again.endswith("behind\n")


def test_the_model_reports_those_hung_whom_khungtaskd_reports() -> None:
    said = ["INFO: task gup:81 blocked for more than 1 seconds.", "INFO: task madvise:83 blocked"]
    hung = fidelity.compare_hung("6.1.0-56-cloud-amd64", "debian:6.1", said)
    assert hung.agrees
    assert hung.measured == ("gup", "madvise")
    assert "process_vm_rw" in hung.predicted_message
    assert not fidelity.compare_hung("6.1.0", "debian:6.1", said[:1]).agrees


def test_a_guest_maps_so_much_that_somebody_can_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """khungtaskd reports nobody who waited for less than a second, whatever its kernel does."""
    sizes = []

    def done(plan: GuestPlan) -> GuestRun:
        sizes.append(plan.length >> 20)
        end_ns = plan.length // (32 << 20) * 700_000_000  # 32 MiB hold the lock for 0.7 s
        ops = np.array([[1, 2], [10, 10 + end_ns]], np.int64).tobytes()
        facts = f"begin_ns=5\nend_ns={end_ns * 3}\n".encode()
        return GuestRun(plan, Capsule({"facts": facts, "lane/mmap/5/6": ops}))

    monkeypatch.setattr(cli, "_done", done)
    cli._hung_run(GuestPlan(32 << 20))
    assert sizes == [32, 160]


def test_an_exact_guest_agrees_with_its_design(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        qemu.program(), build.probe(), kernels.find("debian:6.1")
    except UserError as error:
        pytest.skip(str(error))
    target = tmp_path / "fidelity.md"
    command = ["fidelity", "--kernels", "debian:6.1", "--teardowns", "brk", "--no-hung", "--json"]
    assert main([*command, "--write", str(target)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["agree"]
    assert [one["measured"]["modes"] for one in shown["rows"]] == [["exclusive", "shared"]] * 2
    assert shown["rows"][1]["measured"]["waits"]["proc"] == ["mmap", "teardown"]
    design = shown["rows"][1]["design"]
    assert re.fullmatch(r"linux-6\.1(\.\d+|\.y)?", design)
    assert f"| debian:6.1 | {design} | brk | queued | W, R |" in target.read_text()


@pytest.mark.root
@pytest.mark.parametrize("teardown", TEARDOWNS)
def test_this_machines_kernel_holds_the_lock_in_the_predicted_modes(teardown: str) -> None:
    if os.geteuid() != 0 or compiler() is None:
        pytest.skip("needs root and a C compiler")
    done = host.run(GuestPlan(256 << 20, teardown=teardown, bystanders=READERS, period_ns=200_000))
    predicted = predict(design_of(done.capsule.facts["release"]).design, teardown, READERS)
    assert fidelity.phases(guest_verdict.read(done)) == fidelity.phases(predicted)


def test_guests_side_by_side_are_told_of_in_the_order_in_which_they_were_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [f"/no/such/vmlinuz-{number}" for number in (3, 1, 2)]
    assert main(["fidelity", "--kernels", ",".join(names), "--teardowns", "munmap"]) == 2
    told = capsys.readouterr().err
    places = [told.index(f"{name} left out: ") for name in names]
    assert places == sorted(places)


def test_kernels_that_cannot_be_had_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fidelity", "--kernels", "/no/such/vmlinuz", "--teardowns", "munmap"]) == 2
    assert "/no/such/vmlinuz left out: kernel /no/such/vmlinuz can't be read" in (
        capsys.readouterr().err
    )
    huge = ["--teardowns", "hugetlb", "--host-size", "4T"]
    assert main(["fidelity", "--kernels", "host", *huge]) == 2
    assert "host left out: 4 TiB of hugetlb backing needs 2097152 free huge pages" in (
        capsys.readouterr().err
    )
    assert main(["fidelity", "--teardowns", "burn"]) == 2
    assert "no teardown 'burn'" in capsys.readouterr().err


def test_who_waits_among_readers_of_proc_threads_and_forks_changes_with_the_releases() -> None:
    readers, behind_writer, clone, fork = fidelity.WAITERS
    first = {name: 0.01 * nth for nth, name in enumerate((WRITER, *readers, "clone", "fork"), 1)}
    kept = {
        "6.1": {"environ", "maps", "rollup", "smaps"},
        "6.18": {"environ", "rollup", "smaps"},
        "7.3": {"environ", "rollup"},
    }
    for release, names in kept.items():
        assert predict(linux(release), "munmap", readers, arrivals=first).waits == {}
        seen = fidelity.waiting(predict(linux(release), "munmap", behind_writer, arrivals=first))
        assert set(seen) == {WRITER, *names}
        assert all(seen[name] == ["mmap", "teardown"] for name in names)
    for beside, writer in ((clone, "clone"), (fork, "fork")):
        seen = predict(linux("7.3"), "munmap", beside, arrivals=first | {"proc": 0.2})
        assert fidelity.waiting(seen)[writer] == ["teardown"]
        assert fidelity.waiting(seen)["proc"] == sorted([writer, "teardown"])


def test_the_two_sections_stand_beside_each_other() -> None:
    both = text.with_section("", text.section([row()], [], []))
    waiters = replace(row(), beside=("maps", "mmap"))
    both = text.with_section(both, text.waiters_section([waiters], []), text.WAITERS)
    assert "| debian:6.1 | maps, mmap | " in both
    again = text.with_section(both, text.section([], [], []))
    assert text.BEGIN in again
    assert text.marks(text.WAITERS)[0] in again
    assert "| debian:6.1 | maps, mmap | " in again


def test_a_section_is_written_only_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a checkout, whose page has one."""
    page = tmp_path / "docs" / "fidelity.md"
    page.parent.mkdir()
    page.write_text("by hand")
    monkeypatch.chdir(tmp_path)
    section = text.section([row()], [], [])
    assert cli._write(argparse.Namespace(write=None), section) is None
    assert page.read_text() == "by hand"
    assert cli._write(argparse.Namespace(write="docs/fidelity.md"), section) == Path(
        "docs/fidelity.md"
    )
    assert page.read_text().startswith("by hand")
    assert section in page.read_text()


def test_waiters_and_teardowns_are_two_questions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fidelity", "--waiters", "--teardowns", "brk"]) == 2
    assert capsys.readouterr().err.startswith("zaplock fidelity: --teardowns brk")
