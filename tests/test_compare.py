"""`zaplock compare`: the figures of the RFC, the convoy, and what is said about them."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from zaplock.cli import main
from zaplock.designs import SHIPPED
from zaplock.errors import UserError
from zaplock.lab import profiles
from zaplock.lab.call_log import FunctionCall
from zaplock.lab.compare import Comparison, compare
from zaplock.lab.experiment import SimulatedExperiment, checked
from zaplock.lab.teardown import run
from zaplock.protocols.design import Cx
from zaplock.trace.teardown_outcome import Stalls, TeardownOutcome
from zaplock.views import function_graph, outcomes

GIB = 1 << 30
RFC = profiles.load("e5-2680-rfc")
READERS, WITH_WRITER = ("fault", "proc"), ("fault", "proc", "mmap")


def outcome(design: str, size: int, block: tuple[str, ...], **more) -> TeardownOutcome:
    return run(SHIPPED[design], SimulatedExperiment(size, bystanders=block, **more), RFC).outcome


@pytest.fixture(scope="module")
def at_80g() -> Comparison:
    return compare(list(SHIPPED.values()), SimulatedExperiment(80 * GIB), RFC)


def rows(comparison: Comparison, block: tuple[str, ...]) -> dict[str, TeardownOutcome]:
    return {row.design: row for row in comparison.block(block)}


# The figures


def test_80_gb_are_held_for_as_long_as_the_rfc_says(at_80g: Comparison) -> None:
    found = rows(at_80g, READERS)
    assert found["linux-4.9"].exclusive_hold_ns == pytest.approx(2_485_700_000, rel=0.01)
    assert found["linux-4.9"].shared_hold_ns == 0
    assert found["rfc-v6"].exclusive_hold_ns <= 20_000
    assert found["rfc-v6"].shared_hold_ns == pytest.approx(2_485_700_000, rel=0.01)


def test_320_gb_take_18_seconds_on_the_other_machine() -> None:
    experiment = SimulatedExperiment(320 * GIB, bystanders=("fault",))
    row = run(SHIPPED["linux-4.9"], experiment, profiles.load("e5-2680-320g")).outcome
    assert 17.9e9 <= row.exclusive_hold_ns <= 18.1e9


def test_readers_stall_for_the_exclusive_hold_only(at_80g: Comparison) -> None:
    for design, row in rows(at_80g, READERS).items():
        worst_ns = max(stalls.max_ns for stalls in row.stalls.values())
        if design in ("linux-4.9", "linux-4.18"):
            assert worst_ns >= 0.99 * row.exclusive_hold_ns, design
        else:
            assert worst_ns < 100_000, design


def test_with_a_queued_writer_readers_wait_for_the_whole_zap(at_80g: Comparison) -> None:
    found = rows(at_80g, WITH_WRITER)
    for design in ("rfc-v6-posted", "rfc-v6", "linux-4.20", "linux-5.10", "linux-6.1"):
        row = found[design]
        for name in WITH_WRITER:
            assert row.stalls[name].max_ns >= 0.99 * row.shared_hold_ns, (design, name)


def test_locks_of_vmas_spare_faults_and_nobody_else(at_80g: Comparison) -> None:
    row = rows(at_80g, WITH_WRITER)["linux-6.18"]
    assert row.stalls["fault"].max_ns < 100_000
    assert row.stalls["fault"].count > 300
    for name in ("proc", "mmap"):
        assert row.stalls[name].max_ns >= 0.99 * row.shared_hold_ns


@pytest.mark.parametrize("seed", range(2, 12))
def test_the_convoy_does_not_hang_on_when_the_bystanders_begin(seed: int) -> None:
    row = outcome("rfc-v6", 80 * GIB, WITH_WRITER, seed=seed)
    assert all(stalls.max_ns >= 0.99 * row.shared_hold_ns for stalls in row.stalls.values()), row
    alone = outcome("rfc-v6", 80 * GIB, READERS, seed=seed)
    assert all(stalls.max_ns < 100_000 for stalls in alone.stalls.values()), alone


def test_every_bystander_works_under_every_design() -> None:
    block = ("fault", "proc", "gup", "madvise")
    for design in SHIPPED:
        row = outcome(design, GIB, block, period_ns=100_000)
        assert set(row.stalls) == set(block)
        assert all(stalls.count for stalls in row.stalls.values()), row


@pytest.mark.parametrize("backing", ["anonymous", "zero", "file", "thp", "hugetlb"])
@pytest.mark.parametrize("design", ["linux-4.9", "rfc-v6-posted", "linux-6.18"])
def test_the_hold_is_what_the_profile_predicts_for_every_backing(backing: str, design: str) -> None:
    # Big enough for the pages to outweigh what differs between designs.
    row = outcome(design, 64 * GIB, (), backing=backing)
    held_ns = row.exclusive_hold_ns + row.shared_hold_ns
    predicted_ns = profiles.predict(RFC, 64 * GIB, backing)
    assert held_ns == pytest.approx(predicted_ns, rel=0.02)


def test_many_vmas_and_locked_memory_make_the_exclusive_part_longer() -> None:
    one = outcome("rfc-v6", GIB, ())
    many = outcome("rfc-v6", GIB, (), nr_vmas=1000)
    assert many.exclusive_hold_ns > 100 * one.exclusive_hold_ns
    locked = outcome("rfc-v6", GIB, (), locked=True)
    assert locked.exclusive_hold_ns > one.exclusive_hold_ns + 0.9 * RFC["munlock_page"] * 262144
    assert outcome("linux-6.1", GIB, (), locked=True).exclusive_hold_ns < 100_000


def test_the_same_experiment_gives_the_same_run() -> None:
    experiment = SimulatedExperiment(GIB, bystanders=WITH_WRITER, cpus=2, seed=5)
    first, second = (run(SHIPPED["linux-5.10"], experiment, RFC) for _ in range(2))
    assert first.outcome == second.outcome
    for name in first.events.columns:
        assert (first.events[name] == second.events[name]).all()


def test_a_design_that_decides_alike_has_the_run_of_the_one_before(at_80g: Comparison) -> None:
    made = {id(one.events): one.design.name for one in reversed(at_80g.runs)}
    assert len(made) < len(at_80g.runs), "the RFC as posted and as meant differ for hugetlb only"
    for one in at_80g.runs:
        if made[id(one.events)] != one.design.name:
            alone = run(one.design, one.experiment, RFC)
            assert one.outcome == alone.outcome, one.design.name
            for name, column in alone.events.columns.items():
                assert np.array_equal(one.events[name], column), (one.design.name, name)


def test_a_design_of_ones_own_is_run_itself_since_it_may_ask_for_more_than_rules() -> None:
    run_as: list[str] = []

    async def munmap(cx: Cx, start: int, length: int) -> int:
        run_as.append(cx.design.name)
        return await SHIPPED["linux-6.18"].munmap(cx, start, length)

    mine = [replace(SHIPPED["linux-6.18"], name=name, munmap=munmap) for name in ("one", "other")]
    found = compare(mine, SimulatedExperiment(GIB), RFC, blocks=[("fault",)])
    assert run_as == ["one", "other"] == [row.design for row in found.rows]


def test_on_one_cpu_everybody_waits_for_the_munmap_to_be_preempted() -> None:
    alone, shared = (outcome("rfc-v6", 8 * GIB, READERS, cpus=cpus) for cpus in (8, 1))
    # A bystander that has no CPU doesn't even begin: it comes once a time slice at best.
    assert shared.stalls["fault"].count < alone.stalls["fault"].count / 4
    assert shared.munmap_ns > alone.munmap_ns


@pytest.mark.parametrize("proposal", ["linux-6.18-dying", "linux-6.18-cut"])
def test_writers_wait_for_the_whole_zap_but_not_under_the_proposals(proposal: str) -> None:
    writers = ("mmap", "fork", "mprotect", "clone")
    today = outcome("linux-6.18", 80 * GIB, writers)
    for name in writers:
        assert today.stalls[name].max_ns > 0.9 * today.munmap_ns, name
    spared = outcome(proposal, 80 * GIB, writers)
    for name in writers:
        assert spared.stalls[name].max_ns < 100_000, name
    assert abs(spared.munmap_ns - today.munmap_ns) < 0.02 * today.munmap_ns


def test_small_unmaps_show_the_brk1_regression_of_4_20_and_what_dying_pays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    designs = "linux-4.18,linux-4.20,linux-6.18,linux-6.18-dying,linux-6.18-cut"
    args = ["--no-measure", "--json", "--bystanders", "none", "--design", designs]
    main(["compare", "4K", *args])
    told = json.loads(capsys.readouterr().out)
    calls = {row["design"]: row["calls_per_s"] for row in told["brk1"]}
    assert calls["linux-4.20"] < 0.5 * calls["linux-4.18"], "spinning writers go to sleep"
    assert calls["linux-6.18"] > 0.9 * calls["linux-4.18"]
    assert calls["linux-6.18-dying"] < 0.5 * calls["linux-6.18"], "each growth waits"
    assert calls["linux-6.18-cut"] > 0.8 * calls["linux-6.18"]
    main(["compare", "1M", *args])
    assert json.loads(capsys.readouterr().out)["brk1"] == []


# Hung tasks


def test_only_uninterruptible_waits_hang() -> None:
    short = {"hung_task_timeout_ns": 10**9}
    assert outcome("linux-4.9", 80 * GIB, WITH_WRITER, **short).hung_tasks == 2
    # 6.1 waits killably in all three: khungtaskd looks at nothing else.
    assert outcome("linux-6.1", 80 * GIB, WITH_WRITER, **short).hung_tasks == 0
    assert outcome("linux-4.9", 80 * GIB, WITH_WRITER).hung_tasks == 0


# What is said


def test_the_sentences_name_who_stalls_and_because_of_whom(at_80g: Comparison) -> None:
    said = outcomes.sentences(at_80g)
    assert len(said) == 10
    assert "linux-4.9 and linux-4.18" in said[0]
    assert "nobody else may have the lock" in said[0]
    assert "rfc-v6-posted to linux-6.18" in said[1]
    assert "without a stall" in said[1]
    assert "linux-6.18-dying and linux-6.18-cut" in said[2]
    assert "zaps without it; fault and proc go on" in said[2]
    assert "rfc-v6-posted to linux-6.1:" in said[4]
    assert "mmap queues as a writer behind the shared hold" in said[4]
    assert "linux-6.18:" in said[5]
    assert "page faults lock their VMA only" in said[5]
    assert "zaps without it; fault, proc and mmap go on" in said[6]
    assert "since a writer waits for every reader" in said[8]
    assert "zaps without it; mmap, fork, mprotect and clone go on" in said[9]


def test_the_sentences_follow_the_figures_and_not_the_names(at_80g: Comparison) -> None:
    calm = Stalls(1, 5_000, 5_000, 5_000)
    stories = [
        replace(row, stalls=dict.fromkeys(row.stalls, calm))
        for row in rows(at_80g, WITH_WRITER).values()
    ]
    said = outcomes.block_sentences(stories, WITH_WRITER, list(SHIPPED))
    assert all("at most 5 us late" in line for line in said), said
    assert not any("stall for" in line or "convoy" in line for line in said), said


def test_a_design_of_ones_own_stands_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from zaplock.designs.linux import LINUX_6_18\n"
        "MINE = replace(LINUX_6_18, name='mine', vma_locks=False)\n"
    )
    assert main(["compare", "1G", "--no-measure", "--design", f"{file}:MINE,linux-4.9"]) == 0
    out = capsys.readouterr().out
    assert "mine" in out
    assert "linux-4.9" in out
    assert "linux-6.1 " not in out


def test_the_hung_task_message_is_the_kernels_with_the_models_chain(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["80G", "--no-measure", "--design", "linux-4.9", "--hung-task-timeout", "2s"]
    assert main(["compare", *arguments, "--bystanders", "proc"]) == 0
    out = capsys.readouterr().out
    assert "INFO: task ps:2 blocked for more than 2 seconds." in out
    waiting = "schedule\n rwsem_down_read_failed\n call_rwsem_down_read_failed\n down_read"
    assert f"Call Trace:\n {waiting}\n proc_pid_cmdline_read\n" in out
    assert "keep_doing" not in out


def test_the_json_has_the_shape_that_scripts_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "1G", "--no-measure", "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["size"] == GIB
    assert told["profile"] == "e5-2680-rfc"
    assert told["measured"] is None
    assert [row["design"] for row in told["rows"]] == [*SHIPPED] * 3
    row = told["rows"][0]
    assert set(row) == {
        "design", "bystanders", "exclusive_hold_ns", "shared_hold_ns", "munmap_ns", "stalls",
        "hung_tasks",
    }  # fmt: skip
    assert set(row["stalls"]["fault"]) == {"count", "p50_ns", "p99_ns", "max_ns"}
    assert captured.err.startswith("next: zaplock ")


def test_the_trace_is_function_graph_text_that_adds_up(tmp_path: Path) -> None:
    file = tmp_path / "graph.txt"
    options = ["--design", "rfc-v6", "--bystanders", "fault,proc", "--trace", str(file)]
    assert main(["compare", "80G", "--no-measure", *options]) == 0
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    assert lines[0].endswith("|  vm_munmap_zap_rlock() {")
    assert lines[-1].endswith("|  }")
    assert sum(line.endswith("{") for line in lines) == sum(
        "| " in line and "}" in line for line in lines
    )
    [region] = [n for n, line in enumerate(lines) if line.endswith("unmap_region() {")]
    end = lines[region].split("|")[1].replace("unmap_region() {", "}")
    closed = next(line for line in lines[region:] if line.split("|")[1] == end)
    assert "$ 24857" in closed
    names = ["munmap_lookup_vma", "detach_vmas_to_be_unmapped", "downgrade_write", "unmap_region"]
    places = [next(i for i, line in enumerate(lines) if name in line) for name in names]
    assert places == sorted(places)


def test_the_trace_is_in_the_layout_that_is_asked_for() -> None:
    def call(name: str, depth: int, span_ns: int, is_leaf: bool = True) -> FunctionCall:
        return FunctionCall(name, depth, 10**9, 10**9 + span_ns, is_leaf)

    calls = [
        call("do_munmap", 0, 2_485_692_000_123, is_leaf=False),
        call("down_write", 1, 541),
        call("unmap_region", 1, 1_502_232_250),
        call("free_pgtables", 1, 715_128_123),
    ]
    assert list(function_graph.lines_of(calls, lambda _ns, _left: " 0) ", 8)) == [
        " 0)               |  do_munmap() {",
        " 0)   0.541 us    |    down_write();",
        " 0) $ 1502232 us  |    unmap_region();",
        " 0) @ 715128.1 us |    free_pgtables();",
        " 0) $ 2485692000 us |  }",
    ]
    assert list(function_graph.lines_of(calls[1:2], lambda _ns, _left: "", 7)) == [
        "  0.541 us   |    down_write();"
    ]


@pytest.mark.root
def test_the_kernel_at_hand_stands_in_the_last_row(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["compare", "256M", "--design", "rfc-v6", "--bystanders", "fault,proc"]
    assert main([*asked, "--profile", "e5-2680-rfc"]) == 0
    out = capsys.readouterr().out
    assert "this kernel (" in out
    assert "measured beside fault and proc" in out
    assert "The designs above have the costs of e5-2680-rfc" in out


@pytest.mark.root
def test_the_next_command_has_the_costs_of_this_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    mine = structs.replace(RFC, name=profiles.THIS_MACHINE)
    profiles.save(mine, profiles.user_directory() / f"{profiles.THIS_MACHINE}.toml")
    asked = ["compare", "4M", "--design", "linux-4.9,linux-5.10", "--bystanders", "none"]
    assert main([*asked, "--hung-task-timeout", "1ms"]) == 0
    out = capsys.readouterr().out
    assert "costs of this-machine" in out
    assert "zaplock calibrate" not in out
    last = out.splitlines()[-1]
    assert "--profile this-machine" in last
    assert "--hung-task-timeout 1ms --no-measure --plot compare.svg" in last


# What can't be is refused in one line


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["-1"], "size '-1'"),
        (["0"], "size '0' is zero"),
        (["80Q"], "size '80Q'"),
        (["1e30G"], "size '1e30G'"),
        (["127.5T", "--backing", "thp"], "does not fit the address space"),
        (["3M", "--backing", "hugetlb"], "3M"),
        (["1G", "--design", "linux-2.4"], "no design 'linux-2.4'"),
        (["1G", "--profile", "my-laptop"], "no profile 'my-laptop'"),
        (["1G", "--bystanders", "fault,cat"], "no bystander 'cat'"),
        (["1G", "--bystanders", "fault,fault"], "has 'fault' 2 times: give it once"),
        (["1G", "--backing", "tape"], "no backing 'tape'"),
        (["1G", "--cpus", "0"], "cpus 0"),
        (["1G", "--rate", "-3"], "rate -3"),
        (["1G", "--vmas", "0"], "vmas 0"),
        (["1G", "--hung-task-timeout", "soon"], "duration 'soon'"),
        (["1G", "--trace", "/nonexistent/trace.txt"], "can't be written"),
        (["1G", "--plot", "picture.gif"], "must end in .svg"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--no-measure", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert part in captured.err


def test_the_experiment_of_a_script_is_checked_too() -> None:
    with pytest.raises(UserError, match="no positive multiple of 4096"):
        checked(SimulatedExperiment(100))


def test_a_whole_comparison_at_320_gb_needs_little_memory() -> None:
    # Its own mark (VmHWM): what wait4 tells counts the process that started it, too.
    program = (
        "import sys; from zaplock.cli import main; "
        "code = main(['compare', '320G', '--no-measure', '--json']); "
        "told = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]; "
        "print(told, file=sys.stderr); "
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stderr.splitlines()[-1]) < 400 * 1024


def test_a_scanner_of_all_pages_is_named_where_its_own_hold_is_waited_for() -> None:
    found = compare(
        [SHIPPED["linux-4.9"], SHIPPED["linux-6.18"]], SimulatedExperiment(1 << 30),
        profiles.load("e5-2680-rfc"), blocks=(("rollup", "mmap"),),
    )  # fmt: skip
    said = outcomes.sentences(found)
    assert any("linux-4.9: munmap holds the lock exclusively for 31.1 ms; " in one for one in said)
    assert all(one.endswith("; what is longer than the hold they wait for rollup.") for one in said)
