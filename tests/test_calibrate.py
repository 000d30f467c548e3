"""Calibration: real experiments give every unit; the sums come out; the file can be loaded."""

import json
from pathlib import Path

import msgspec
import pytest

from zaplock.cli import main
from zaplock.cli._designs import parse_cpu_max
from zaplock.cli.calibrate import cases, checked
from zaplock.errors import UserError
from zaplock.lab.profiles import UNITS, load, predict
from zaplock.measure import memory
from zaplock.measure.calibrate import calibrate, merged
from zaplock.measure.calibration import derive, pages
from zaplock.measure.guest.calibration import CALL, SIZES, guest_costs, units
from zaplock.trace.teardown_outcome import TeardownOutcome

GIB = 1 << 30

RAW = {
    "unmap_anonymous": 100.0, "unmap_zero": 12.0, "unmap_file": 90.0, "unmap_table": 1034.0,
    "zap_shared_anonymous": 40.0, "fault_anonymous": 900.0, "fault_zero": 500.0,
    "fault_file": 700.0, "fault_reuse": 450.0, "fault_copy": 1200.0, "populate": 600.0,
    "fork_page": 50.0, "protect_page": 40.0, "unmap_thp": 5000.0, "zap_shared_thp": 1500.0,
    "fault_thp": 90_000.0, "call": 100.0, "call_one": 150.0, "call_three": 200.0,
    "getppid": 200.0, "brk": 290.0, "msync": 400.0, "vma_loop": 200.0, "vma_make": 2360.0,
    "vma_split": 1400.0, "vma_merge": 1300.0, "vma_unmap": 900.0, "vma_make_again": 2360.0,
    "vma_unmap_at_once": 300.0, "protect_absent": 1000.0, "protect_present": 1280.0,
    "protect_remote": 2280.0, "read_cmdline": 1500.0, "read_null": 400.0, "gup_page": 100.0,
    "write_alone": 300.0, "write_and_read": 600.0, "hand_over": 2600.0,
    "write_to_sleeper": 1300.0, "hand_over_remote": 5600.0,
}  # fmt: skip
"""A round's raw figures, chosen so that every difference is easy to see."""


def test_what_is_measured_together_is_shared_out_and_adds_up() -> None:
    units = derive.units(RAW)
    assert set(units) == set(UNITS)
    table = units["free_table"] / 512
    assert units["zap_anon"] + units["free_anon"] + table == pytest.approx(RAW["unmap_anonymous"])
    assert units["zap_anon"] + table == pytest.approx(RAW["zap_shared_anonymous"])
    assert units["zap_zero"] + table == pytest.approx(RAW["unmap_zero"])
    assert units["zap_zero"] + units["free_table"] == pytest.approx(RAW["unmap_table"])
    assert units["zap_file"] + units["free_file"] + table == pytest.approx(RAW["unmap_file"])
    fault = units["fault_minor"] + units["fault_anon"]
    assert fault == pytest.approx(RAW["fault_anonymous"])


def test_each_call_is_a_difference_to_one_that_does_less() -> None:
    units = derive.units(RAW)
    assert units["syscall"] == 100
    assert units["lock"] + units["unlock"] == 40  # 290 - 150 - 100
    assert units["vma_find"] == 60  # 400 - 200 - 100 - 40
    assert units["vma_alloc"] == 2360 - 200 - 100 - 40 - 60
    assert units["flush"] == 1280 - 1000 - 2 * 40
    assert units["flush_remote"] == 1000
    assert (units["wakeup"], units["wakeup_latency"]) == (1000, 5600 - 600 - 1000)


def test_noise_never_makes_a_cost_negative_and_what_is_not_measured_says_so() -> None:
    noisy = {**RAW, "protect_present": 900.0, "brk": 100.0, "fault_zero": 300.0}
    assert min(derive.units(noisy).values()) >= 0
    notes = derive.notes(RAW)
    assert "thp" in notes["zap_hugetlb"]
    assert "RLIMIT_MEMLOCK" in notes["mlock_page"]
    assert derive.units(RAW)["zap_hugetlb"] == derive.units(RAW)["zap_thp"]


def test_a_small_pool_and_a_large_one_say_the_same_of_a_huge_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call, 30 us with cold caches, is a fifth of a munmap of 256 pages and half of 64."""

    def munmap(_length: int, _backing: str, *, part: int, keeper: bool) -> int:
        return 30_000 + (part >> 21) * (300 if keeper else 500)

    monkeypatch.setattr(pages, "_munmap", munmap)
    for mib in (64, 512, 2048):
        assert pages.unmap_huge(mib << 20, "hugetlb") == 500
        assert pages.unmap_huge(mib << 20, "hugetlb", keeper=True) == 300


def test_one_disturbed_round_moves_no_median() -> None:
    bad = {name: 50 * value for name, value in RAW.items()}
    assert dict(merged([RAW, bad, RAW]).costs) == dict(merged([RAW]).costs)
    assert merged([RAW, bad, RAW]).spread["free_table"][1] > 10_000


def test_this_machine_is_calibrated_and_the_profile_is_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["calibrate", "--rounds", "2", "--scale", "16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    profile = load("this-machine")
    assert told["file"] == str(tmp_path / "zaplock" / "profiles" / "this-machine.toml")
    assert told["costs"] == profile.costs
    assert set(profile.spread) == set(UNITS)
    assert profile.kernel in profile.description
    # Nothing that a machine does is free, and nothing takes it a millisecond a page.
    for unit in ("zap_zero", "free_table", "fault_minor", "fault_anon", "syscall", "vma_alloc"):
        assert 0.1 < profile[unit] < 1_000_000, (unit, profile[unit])
    assert profile["fault_thp"] > profile["fault_anon"]
    assert predict(profile, GIB, "zero") < predict(profile, GIB)


def test_a_check_lays_the_prediction_beside_the_measurement(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["calibrate", "--check", "zero:64M anonymous:32M", "--profile", "epyc-6.18"]
    assert main([*arguments, "--repeat", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["backing"] for row in rows] == ["zero", "anonymous"]
    assert [row["size"] for row in rows] == [64 << 20, 32 << 20]
    for row in rows:
        assert row["error"] == pytest.approx(row["predicted_ns"] / row["measured_ns"] - 1)
        assert row["cpu_error"] == pytest.approx(row["predicted_ns"] / row["cpu_ns"] - 1)
    assert main([*arguments, "--repeat", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["backing", "size", "predicted"]
    assert {len(line) for line in lines[:4]} == {len(lines[1])}  # as wide as its rule
    assert [line.split()[0] for line in lines[2:4]] == ["zero", "anonymous"]


def test_a_unit_costs_nothing_to_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--units"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert set(UNITS) <= listed


@pytest.mark.parametrize("text", ["gold:1G", "zero", "zero:", "zero:1Q"])
def test_a_list_to_check_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        cases(text)


@pytest.mark.parametrize(
    "arguments",
    ["--rounds 0", "--scale 1", "--scale 99999999", "--output /proc/no/p.toml", "--output /tmp",
     "--check gold:1G", "--check zero:4M --profile pdp-11"],
)  # fmt: skip
def test_bad_input_ends_with_one_line_and_code_2(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", *arguments.split()]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.skipif(memory.room() > 80 << 30, reason="this machine has the memory for it")
def test_more_memory_than_there_is_is_not_taken() -> None:
    with pytest.raises(UserError, match=r"can be used now"):
        calibrate(rounds=1, scale_mib=16384)  # an experiment takes eight times that


def guest_took(anonymous: int, zero: int, call: int) -> dict[str, list[int]]:
    """Make what a guest would have told whose pages and calls cost so many nanoseconds."""
    each = {"anonymous": anonymous, "zero": zero}
    return {
        backing: [length // 4096 * each[backing] + call for length in sizes]
        for backing, sizes in SIZES.items()
    }


def test_a_round_that_takes_too_long_says_what_there_is_to_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zaplock.measure.calibrate.ROUND_LIMIT_S", 0.0)
    with pytest.raises(UserError, match=r"experiments of 16 MiB took over 0 s: .* --scale"):
        calibrate(rounds=1, scale_mib=16)


def test_a_guests_profile_makes_the_munmaps_that_it_was_made_of() -> None:
    base = load("e5-2680-rfc")
    costs, notes = units(guest_costs(guest_took(4000, 450, 50_000)), base.costs, base.name)
    assert set(costs) == set(notes) == set(UNITS)
    made = msgspec.structs.replace(base, costs=costs)
    for backing, sizes in SIZES.items():
        for length, took_ns in zip(sizes, guest_took(4000, 450, 50_000)[backing]):
            assert predict(made, length, backing) == pytest.approx(took_ns, rel=0.01)
    assert costs["zap_anon"] / costs["free_anon"] == pytest.approx(
        base["zap_anon"] / base["free_anon"], rel=0.01
    )
    guessed = {unit for unit, note in notes.items() if "not measured" in note}
    assert guessed == set(UNITS) - {"zap_anon", "free_anon", "zap_zero", "free_table", *CALL}


def test_a_guest_that_counts_no_instructions_is_refused() -> None:
    with pytest.raises(UserError, match="counts no instructions"):
        guest_costs({**guest_took(4000, 450, 50_000), "zero": [9, 5]})


@pytest.mark.parametrize("release", ["6.12.117", "6.18.1"])
def test_a_quota_is_predicted_under_the_kernels_own_design(release: str) -> None:
    """The caller waits ten times as long under either, with the lock in hand or without it."""
    profile, length = load("e5-2680-rfc"), 2 << 30
    extra = {"size": length, "backing": "anonymous", "cpu_ns": 60_000_000}
    row = TeardownOutcome("here", (), None, None, 600_000_000, {}, extra=extra)
    cpu_ns = predict(profile, length)
    assert checked(profile, release, [row], None).predicted_ns == cpu_ns
    under = checked(profile, release, [row], parse_cpu_max("10000/100000"))
    assert under.predicted_ns == pytest.approx(10 * cpu_ns, abs=100_000_000)
    assert under.measured_ns == 600_000_000
    assert under.cpu_error == pytest.approx(cpu_ns / 60_000_000 - 1)


def test_what_a_check_in_a_guest_lacks_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, said in (
        (["--cpu-max", "10000/100000"], "--cpu-max is for --check"),
        (["--check", "--kernel", "debian:6.1"], "needs a list of its own"),
        (["--rounds", "2", "--kernel", "debian:6.1"], "are for this machine"),
    ):
        assert main(["calibrate", *arguments]) == 2
        assert said in capsys.readouterr().err
