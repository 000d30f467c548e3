"""Measuring on the kernel that runs: real processes, real teardowns, small sizes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import children_of, children_of_threads, has_ended

from zaplock.cli import main
from zaplock.cli.measure import verdict
from zaplock.errors import UserError
from zaplock.experiment import BYSTANDERS, PROC_FILES
from zaplock.measure import memory, plan
from zaplock.measure.bystanders import foreign
from zaplock.measure.measure import measure, spread, stalls, summary
from zaplock.measure.teardown import WAYS
from zaplock.trace.teardown_outcome import Stalls, TeardownOutcome

MIB = 1 << 20
ROOT = os.geteuid() == 0


def children() -> set[int]:
    """Return the processes that this one has as children now."""
    return set(children_of_threads(os.getpid()))


def test_an_experiment_tells_what_every_bystander_saw() -> None:
    before = children()
    names = ("fault", "proc", "mmap", "gup", "madvise")
    one = seen_by(names, 64 * MIB, least=20)
    assert one.bystanders == names
    assert set(one.stalls) == set(names)
    assert one.munmap_ns > 64 * MIB // 4096  # no kernel unmaps a page in a nanosecond
    assert one.extra["backing"] == "anonymous"
    assert 0 < one.extra["cpu_ns"] <= 2 * one.munmap_ns
    for name in names:
        idle = one.extra["idle"][name]
        assert idle["count"] >= 20, (name, idle)
        assert 0 <= idle["p50_ns"] <= idle["p99_ns"] <= idle["max_ns"]
    assert children() <= before


def seen_by(names: tuple[str, ...], length: int, *, least: int) -> TeardownOutcome:
    """Measure until each bystander has seen so much: who waits for a CPU does little meanwhile."""
    for _ in range(20):
        (one,) = measure(length, bystanders=names, trace=False)
        counts = {name: one.extra["idle"][name]["count"] for name in names}
        if min(counts.values()) >= least:
            return one
    pytest.fail(f"{counts}")


def test_threads_and_readers_of_every_file_of_proc_are_bystanders_too() -> None:
    names = tuple(
        name for name in BYSTANDERS if name in PROC_FILES or name in ("mprotect", "clone")
    )
    assert len(names) == 7
    seen_by(names, 4 * MIB, least=1)


def test_a_kernel_without_a_file_of_proc_has_no_undisturbed_reader_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PROC_FILES, "rollup", "no_such_file")
    with pytest.raises(FileNotFoundError):
        foreign("rollup", os.getpid(), 0)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_teardown_works(way: str) -> None:
    (one,) = measure(32 * MIB, teardown=way, bystanders=("proc",), rate=200, trace=False)
    assert one.extra["teardown"] == way
    assert one.munmap_ns > 0


@pytest.mark.parametrize("backing", ["anonymous", "zero", "file", "thp"])
@pytest.mark.parametrize("nr_vmas", [1, 7])
def test_every_backing_works_in_one_vma_and_in_several(backing: str, nr_vmas: int) -> None:
    if backing == "thp" and not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        pytest.skip("this kernel has no transparent huge pages")
    (one,) = measure(32 * MIB, backing=backing, nr_vmas=nr_vmas, bystanders=(), trace=False)
    assert one.extra["backing"] == backing
    assert backing in one.note


def test_a_zero_page_costs_less_than_a_page_of_its_own() -> None:
    zero, own = (
        summary(measure(128 * MIB, backing=backing, bystanders=(), repeat=3, trace=False))
        for backing in ("zero", "anonymous")
    )
    assert zero.extra["cpu_ns"] < own.extra["cpu_ns"]


@pytest.mark.root
@pytest.mark.skipif(not ROOT, reason="needs root")
def test_munmap_downgrades_and_map_fixed_does_not() -> None:
    for _ in range(20):  # who has no CPU for a while has the lock for longer than its work takes
        (unmapped,) = measure(64 * MIB, bystanders=("proc",))
        assert unmapped.exclusive_hold_ns is not None, unmapped.note
        assert unmapped.shared_hold_ns is not None
        assert unmapped.exclusive_hold_ns > 0
        assert 0 < unmapped.shared_hold_ns <= unmapped.munmap_ns
        if unmapped.exclusive_hold_ns < unmapped.shared_hold_ns:
            break
    assert unmapped.exclusive_hold_ns < unmapped.shared_hold_ns
    (replaced,) = measure(64 * MIB, teardown="fixed", bystanders=("proc",))
    assert replaced.shared_hold_ns == 0
    assert replaced.exclusive_hold_ns is not None
    # CPU time, since the thread may have to wait for its CPU before it takes the lock
    assert replaced.extra["cpu_ns"] / 2 < replaced.exclusive_hold_ns <= replaced.munmap_ns


@pytest.mark.root
@pytest.mark.skipif(not ROOT, reason="needs root")
def test_a_reader_waits_behind_map_fixed() -> None:
    # 256 MiB take tens of milliseconds: a reader that comes a thousand times a second meets them,
    # if it has a CPU just then.
    for _ in range(20):
        (one,) = measure(256 * MIB, teardown="fixed", bystanders=("proc",))
        waited_ns, held_ns = one.stalls["proc"].max_ns, one.exclusive_hold_ns or 0
        if waited_ns > held_ns / 2:
            break
    assert waited_ns > held_ns / 2 > 0


def test_without_the_tracepoints_it_says_that_holds_are_not_seen() -> None:
    (one,) = measure(4 * MIB, bystanders=(), trace=False)
    assert one.exclusive_hold_ns is None
    assert one.shared_hold_ns is None


def test_stalls_are_what_overlapping_operations_took_beyond_the_typical() -> None:
    begin_ns = [0, 100, 200, 290, 400, 1000]
    took_ns = [10, 12, 10, 150, 30, 99]
    beside, idle = stalls(begin_ns, took_ns, (300, 410))
    assert (beside.count, beside.max_ns) == (2, 140)  # 290 reaches in, 400 begins in it
    assert (idle.count, idle.max_ns) == (3, 2)


def test_repeated_runs_have_a_median_and_a_range() -> None:
    runs = measure(4 * MIB, bystanders=("fault",), repeat=3, trace=False)
    middle = summary(runs)
    took = sorted(run.munmap_ns for run in runs)
    assert middle.munmap_ns == took[1]
    assert spread(runs)["munmap_ns"] == [took[0], took[2]]
    assert middle.extra["repeat"] == 3


@pytest.mark.parametrize(
    ("stall_ns", "count", "noise_ns", "said"),
    [
        (9_000_000, 1, 50_000, "waited for most"),
        (60_000, 9, 50_000, "no stall beyond"),
        (900_000, 9, 50_000, "at most 9.0%"),
        (9_000_000, 1, 8_000_000, "not to be told"),
        (0, 0, 50_000, "did nothing"),
    ],
)
def test_the_verdict_follows_from_stall_and_noise(
    stall_ns: int, count: int, noise_ns: int, said: str
) -> None:
    stall = Stalls(count, 0, stall_ns, stall_ns)
    idle = {"proc": Stalls(300, 0, 0, noise_ns).to_json()}
    one = TeardownOutcome(
        "k", ("proc",), None, None, 10_000_000, {"proc": stall}, extra={"idle": idle}
    )
    assert said in verdict(one, "proc")


def test_what_does_not_fit_is_refused_with_a_way_out() -> None:
    there_is = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    too_much = (there_is + (2 << 30)) // MIB * MIB  # whatever others give back meanwhile
    with pytest.raises(UserError, match="use --backing zero, which needs only its page tables"):
        measure(too_much, backing="anonymous")
    with pytest.raises(UserError, match=r"choose a size of at most|at most 127 TiB"):
        measure(512 * too_much, backing="zero")
    assert plan.choose_backing(too_much, "auto") == "zero"
    assert plan.choose_backing(4 * MIB, "auto") == "anonymous"


def test_page_tables_count() -> None:
    zero, own = (memory.need(320 << 30, backing) for backing in ("zero", "anonymous"))
    assert zero.pages == 0
    assert zero.tables == pytest.approx(320 * 1024**3 / 512, rel=0.01)
    assert own.total == zero.tables + (320 << 30)


def test_the_tightest_cgroup_counts(tmp_path: Path) -> None:
    inner = tmp_path / "root" / "a" / "b"
    inner.mkdir(parents=True)
    (inner.parent / "memory.max").write_text("1000000\n")
    (inner.parent / "memory.current").write_text("400000\n")
    (inner.parent / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("10\n")
    proc = tmp_path / "cgroup"
    proc.write_text("0::/a/b\n")
    assert memory.cgroup_room(proc, tmp_path / "root") == 650_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("80Q", "80Q"),
        ("-1", "'-1'"),
        ("4M --backing gold", "gold"),
        ("4M --teardown shred", "shred"),
        ("4M --bystanders fault,ghost", "ghost"),
        ("4M --bystanders fault,fault", "2 times"),
        ("4M --rate 0", "rate 0"),
        ("4M --vmas 0", "--vmas 0"),
        ("4M --vmas 5000", "--vmas 5000"),
        ("3M --backing thp", "2097152"),
        ("4M --repeat 0", "repeat 0"),
        ("4M --timeout never", "never"),
        ("4M --teardown brk --backing file", "heap"),
        ("4M --teardown mremap --vmas 2", "one VMA"),
        ("1T --backing hugetlb", "vm.nr_hugepages"),
        ("512M --timeout 0.1s", "time limit"),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = children()
    assert main(["measure", *arguments.split(), "--no-holds"]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert children() <= before


def test_json_has_every_run_and_their_median(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "4M", "--repeat", "2", "--json", "--no-holds"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["size"] == 4 * MIB
    assert len(told["rows"]) == 2
    assert told["median"]["repeat"] == 2
    keys = {"design", "bystanders", "exclusive_hold_ns", "shared_hold_ns", "munmap_ns", "stalls"}
    assert keys | {"hung_tasks"} <= set(told["rows"][0])
    assert printed.err.startswith("next: zaplock")


def test_the_table_names_the_kernel_and_ends_with_a_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["measure", "4M", "--no-holds"]) == 0
    printed = capsys.readouterr().out
    assert os.uname().release in printed
    assert "not seen" in printed
    assert printed.strip().splitlines()[-1].startswith("next: zaplock")


def test_an_interrupt_leaves_no_process_behind() -> None:
    before = children()
    command = [sys.executable, "-m", "zaplock", "measure", "64G", "--backing", "zero", "--no-holds"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    grandchildren = _wait_for_children(running.pid)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate()
    assert running.returncode == 130
    assert error.decode().strip() == "zaplock measure: interrupted"
    # One that was born in the very moment dies of its parent's death: wait for it.
    while not all(map(has_ended, grandchildren)):
        time.sleep(0.01)
    assert children() <= before


def _wait_for_children(pid: int) -> list[int]:
    """Return the children of a process as soon as one of them is the measured process."""
    while True:
        found = children_of(pid)
        for one in found:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                if b"subject" in Path(f"/proc/{one}/cmdline").read_bytes():
                    return found
