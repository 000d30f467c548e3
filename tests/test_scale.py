"""How workloads grow with CPUs: what must follow from the model, and the command's manners."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from processes import children_of, has_ended

from zaplock.cli import main
from zaplock.compiled.build import compiler
from zaplock.designs import load
from zaplock.engines import sequential
from zaplock.engines.timed.lines import CacheLines
from zaplock.errors import UserError
from zaplock.lab import profiles
from zaplock.lab.scale import WORKLOADS, MachineOfTheirs, Point, measure_point, scale
from zaplock.measure import scale as measured_scale
from zaplock.measure.guest.build import compiled
from zaplock.measure.scale import (
    COMPUTE,
    PROGRAM,
    Round,
    cpus_here,
    run_once,
    summed_up,
    usual,
)
from zaplock.model.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from zaplock.model.machine import Machine
from zaplock.model.step import Task
from zaplock.programs.tracer import record
from zaplock.protocols.design import Cx
from zaplock.protocols.mmap import mmap

COSTS = profiles.load(profiles.DEFAULT)


def points(name: str, design: str, cpus: tuple[int, ...], transfer_ns: int = 78) -> list[float]:
    found = scale([load(design)], COSTS, name, cpus, MachineOfTheirs(transfer_ns))
    return [one.per_second for one in found]


def test_a_line_comes_to_one_after_the_other_and_costs_its_owner_nothing() -> None:
    lines = CacheLines(10, far_ns=50, cpus=4, nodes=2)
    assert lines.touch("a", 1, 0) == 0
    assert lines.touch("a", 1, 5) == 0
    assert lines.touch("a", 2, 100) == 10
    assert lines.touch("a", 1, 100) == 20, "behind the one before"
    assert lines.touch("a", 3, 200) == 50, "from the other node"
    assert lines.touch("b", 3, 200) == 0
    assert lines.transfers == 3


def test_a_line_that_somebody_polls_is_taken_back_for_each_write() -> None:
    lines = CacheLines(10)
    assert lines.touch("a", 1, 0, True) == 20
    assert lines.touch("a", 1, 100) == 0
    assert lines.touch("a", 2, 200, True) == 20


def test_writers_that_spin_pay_for_the_way_of_the_lock_and_of_what_is_written_under_it() -> None:
    near, far = (
        points("mmap2", "linux-7.3", (2,), way)[0] / points("mmap2", "linux-7.3", (1,), way)[0]
        for way in (0, 200)
    )
    assert near > 1.01, "what is outside the lock goes side by side"
    assert far < 0.95 * near


def test_a_mapping_that_merges_costs_what_one_that_does_not_merge_costs() -> None:
    spent = []
    for prot in (PROT_READ, PROT_READ | PROT_WRITE):
        machine, cx = Machine(), Cx(load("linux-7.3"), Task(1, 1))
        at, flags = 1 << 40, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        sequential.run(machine, cx.task, mmap(cx, at, 4096, PROT_READ | PROT_WRITE, flags))
        machine.costs, machine.spent_ns = COSTS.costs, 0.0
        sequential.run(machine, cx.task, mmap(cx, at + 4096, 4096, prot, flags))
        spent.append(machine.spent_ns - (len(machine.mm(1).tree) == 1) * COSTS["vma_free"])
        assert len(machine.mm(1).tree) == (2 if prot == PROT_READ else 1)
    assert spent[0] == pytest.approx(spent[1])


def quick(transfer_ns: int, *rates: float) -> Round:
    return Round(
        {("brk1", 1): list(rates), ("brk1", 2): [1.5 * rate for rate in rates],
         (COMPUTE, 1): [10.0] * 5, (COMPUTE, 2): [12.0] * 5},
        transfer_ns,
    )  # fmt: skip


def test_only_rounds_count_in_which_a_line_took_what_it_usually_takes() -> None:
    rounds = [quick(25, 9, 10, 11), quick(150, 1, 1, 1), quick(27, 10, 10, 10)]
    found = summed_up(usual(rounds))
    assert found.transfer_ns == 26
    assert found.rates["brk1", 1].per_second == 10
    assert found.rates["brk1", 2].per_second == 15
    assert found.rates["brk1", 1].milliseconds == 6
    assert found.rates["brk1", 1].low < 10 < found.rates["brk1", 1].high
    assert found.speed == 0.6, "two that compute make 1.2 of what one makes"


def test_a_machine_that_is_too_busy_to_see_anything_is_said_to_be() -> None:
    with pytest.raises(UserError, match=r"brk1 with 1 threads had its CPUs to itself for 2 milli"):
        summed_up([quick(25, 9, 10)])


def test_before_vma_locks_faults_saturate_at_two_transfers_each() -> None:
    for name in ("pft-one", "pft-each"):
        few, many = points(name, "linux-6.3", (1, 24))
        assert many == pytest.approx(1e9 / (2 * 78), rel=0.03)
        assert few < many


def test_after_vma_locks_a_mapping_for_each_thread_scales_and_one_for_all_does_not() -> None:
    one, each = (points(name, "linux-6.4", (1, 24)) for name in ("pft-one", "pft-each"))
    assert one[1] == pytest.approx(1e9 / (2 * 78), rel=0.03)
    assert each[1] == pytest.approx(24 * each[0], rel=0.03)


def test_disjoint_ranges_scale_under_radixvm_and_page_tables_tell_low_from_high() -> None:
    radix = [points(name, "radixvm", (1, 8)) for name in ("regions-low", "regions-high")]
    assert all(many > 6 * one for one, many in radix)
    low, high = (points(name, "cortenmm-rw", (8,))[0] for name in ("regions-low", "regions-high"))
    assert low > 5 * high


def test_without_a_cost_of_lines_readers_scale_as_if_nothing_were_shared() -> None:
    one, many = points("pft-one", "linux-6.3", (1, 16), 0)
    assert many == pytest.approx(16 * one, rel=0.02)


def test_one_thread_makes_what_it_was_said_to_make() -> None:
    found = scale(
        [load("linux-6.3")], COSTS, "pft", (1,), MachineOfTheirs(78),
        single={"pft-one": 900_000, "pft-each": 450_000},
    )  # fmt: skip
    assert found[0].per_second == pytest.approx(900_000, rel=0.01)
    assert found[1].per_second == pytest.approx(450_000, rel=0.01)


def test_threads_that_share_a_core_are_slower() -> None:
    theirs = MachineOfTheirs(0, cores=2, smt_speed=0.5)
    assert [theirs.slowed(cpus) for cpus in (1, 2, 4)] == [1.0, 1.0, 2.0]
    costs = dict(COSTS.costs)
    two, four = (
        measure_point(load("linux-6.4"), costs, "pft-each", n, theirs).per_second for n in (2, 4)
    )
    assert four == pytest.approx(two, rel=0.02)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_runs_under_linux_and_a_rival(name: str) -> None:
    for design in ("linux-7.3", "cortenmm-adv"):
        assert points(name, design, (2,))[0] > 0


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
def test_every_workload_runs_on_this_kernel_too() -> None:
    for name in WORKLOADS:
        if name != "maps" or cpus_here() > 1:
            assert all(rate > 0 for rate in run_once(name, 1, 5)), name


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
def test_the_heap_grows_and_shrinks_by_nothing_but_the_calls_that_are_counted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "brk1.trace"
    assert record([str(compiled(PROGRAM)), "brk1", "1", "200"], path) == 0
    asked = [int(end, 0) for end in re.findall(r"\bbrk\((\w+)\)", path.read_text())]
    grown = max(asked)
    first = asked.index(grown)
    assert len(asked) - first > 20
    assert asked[first:] == [grown, grown - 4096] * ((len(asked) - first) // 2)


@pytest.mark.skipif(compiler() is None or cpus_here() < 2, reason="no C compiler, or one CPU")
def test_a_reader_of_maps_ends_with_whom_it_reads() -> None:
    with subprocess.Popen([str(compiled(PROGRAM)), "maps", "1", "60000"]) as mapper:
        while not (readers := children_of(mapper.pid)):
            assert mapper.poll() is None
        time.sleep(0.1)  # it has begun to read
        mapper.kill()
    until = time.monotonic() + 250
    while not has_ended(readers[0]):
        assert time.monotonic() < until, "the reader goes on"


def test_one_thread_is_always_measured_since_all_is_fitted_to_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what this machine would show if it were always undisturbed."""
    monkeypatch.setattr(measured_scale, "cpus_here", lambda: 2)
    monkeypatch.setattr(measured_scale, "run_once", undisturbed)
    assert main(["scale", "brk1", "--measure", "--cpus", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rates = [
        {one["cpus"]: one["per_second"] for one in told[key]} for key in ("points", "measured")
    ]
    predicted, measured = rates
    assert set(predicted) == set(measured) == {1, 2}
    assert predicted[1] == pytest.approx(measured[1], rel=0.01)
    assert told["transfer_ns"] == 60
    assert (told["cores"], told["smt_speed"]) == (1, 0.7), "two that compute do 1.4 times as much"
    assert told["measured"][0]["milliseconds"] >= measured_scale.ENOUGH


def undisturbed(name: str, threads: int = 0, _milliseconds: int = 0) -> list[float]:
    if name == "transfer":
        return [60.0]
    return [(1.4 if threads == 2 else 1.0) * 500_000] * 20


def test_the_command_tells_inputs_rates_and_ratios(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plot = tmp_path / "scale.svg"
    argv = ["scale", "pft", "--cpus", "1,4", "--single", "900000", "--transfer", "78",
            "--plot", str(plot)]  # fmt: skip
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "a cache line takes 78 ns from CPU to CPU" in out
    assert "pft-each : pft-one" in out
    assert "times linux-6.3's" in out
    assert f"Wrote {plot}" in out
    assert plot.read_text().startswith("<svg")
    assert main([*argv[:-2], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["transfer_ns"] == 78
    assert len(told["points"]) == 8
    assert "linux-7.3,rivals --cpus 1,4 --single 900000 --transfer 78 --plot scale.svg" in out
    assert set(Point("d", "w", 1, 1.0).to_json()) == set(told["points"][0])


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["nothing"], "no workload 'nothing'"),
        (["pft", "--cpus", "0"], "must lie between 1 and 512"),
        (["pft", "--cpus", "two"], "is no list of numbers"),
        (["pft", "--transfer", "-1"], "must lie between"),
        (["pft", "--against", "linux-9"], "is not among the designs"),
        (["pft", "--plot", "x.txt"], "must end in .svg"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    argv: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scale", *argv]) == 2
    err = capsys.readouterr().err
    assert why in err
    assert err.count("\n") == 1
