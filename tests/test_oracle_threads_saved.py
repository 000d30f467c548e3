"""Programs of threads as files: kept, read again, run again, written as C."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_oracle import needs_kernel

from zaplock.check.mutations import as_mutated, mutate, mutations_of
from zaplock.cli import _oracle_threads, _oracle_threads_replay, main
from zaplock.cli._output_files import save
from zaplock.designs.linux import design_of
from zaplock.errors import UserError
from zaplock.oracle import thread_campaign, thread_files, thread_replay, thread_reproducer
from zaplock.oracle.bare_process import Lost
from zaplock.oracle.ops import Op
from zaplock.oracle.thread_campaign import ThreadBench, ThreadReport
from zaplock.oracle.thread_programs import PAGE, WINDOW, ThreadedGenerator
from zaplock.oracle.threaded import FORK_LOAD, ThreadedOutcome, ThreadedProgram

MEETING = ThreadedProgram(
    (Op("mmap", (WINDOW, PAGE, 3, 0x32, -1, 0)), Op("store", (WINDOW,))),
    ((Op("munmap", (WINDOW, PAGE)),), (Op("store", (WINDOW,)),)),
)

LOCKED = MEETING._replace(setup=(*MEETING.setup, Op("mlock", (WINDOW, PAGE))))


def saved(folder: Path, threaded: ThreadedProgram, why: str = "a test") -> Path:
    path = folder / "meeting.json"
    path.write_text(thread_files.dump(threaded, why))
    return path


def test_every_program_of_the_generator_is_read_as_it_was_written(tmp_path: Path) -> None:
    generator = ThreadedGenerator(5)
    for _ in range(60):
        program = generator.program()
        assert thread_files.load(saved(tmp_path, program, "why")) == (program, "why")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"threads": [[["store", WINDOW]]]}, "has 1 threads, and programs have 2 to 4"),
        ({"threads": [[["stroe", WINDOW]], []]}, "thread 0: operation 0: "),
        ({"threads": [[[]], []]}, "thread 0: operation 0 is empty: give its name and arguments"),
        ({"setup": [[FORK_LOAD, WINDOW]]}, "setup: operation 0: no operation of a set-up"),
        ({"setup": [["munmap", WINDOW]]}, "has 1 arguments and takes 2: addr, length"),
        ({"setup": [["store", 1 << 64]]}, "beyond 64 bits"),
        ({"setup": [["store", WINDOW]] * 17}, "has 17 operations, and at most 16 are run"),
        ({"threads": [[["store", WINDOW]] * 5, [["store", WINDOW]] * 4]}, "have 9 operations"),
        ({"threads": [[["pread", 0, WINDOW, 100, 0]], []]}, "not a multiple of the page size 4096"),
        ({"threads": [[["ftruncate", 7, 0]], []]}, "give one of 0 to 4"),
        ({"operations": []}, "a sequence is for --replay alone"),
    ],
)
def test_a_file_that_is_no_program_says_what_is_wrong(
    tmp_path: Path, changed: dict[str, object], told: str
) -> None:
    path = saved(tmp_path, MEETING)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(UserError) as raised:
        thread_files.load(path)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@needs_kernel
def test_a_saved_program_runs_again_and_each_outcome_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["oracle", "--threads", "--replay", str(saved(tmp_path, MEETING))]
    assert main([*arguments, "--seconds", "0.2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["why"] == "a test"
    assert told["runs"] == sum(one["times"] for one in told["outcomes"])
    assert {one["answer"] for one in told["outcomes"]} == {"in order"}
    assert main([*arguments, "--seconds", "0.1"]) == 0
    shown = capsys.readouterr().out
    assert f"thread 1: store({WINDOW:#x})" in shown
    assert "in order" in shown


@needs_kernel
def test_what_is_not_allowed_is_kept_whole_with_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose locked pages stay counted finds the kernel's VmLck to be too small.

    Whatever else this machine does meanwhile, which sets an outcome aside.
    """
    design = design_of(platform.release()).design
    mutant = mutate(design, mutations_of(design)["no-locked-vm"])
    bench, report = ThreadBench(mutant, partial(as_mutated, mutant)), ThreadReport()
    monkeypatch.setattr(bench, "_disturbed", lambda _before, _threaded: "")
    try:
        bench.one(ThreadedGenerator(1), LOCKED, report)
        seen = list(thread_replay.outcomes(bench, LOCKED, seconds=0.0, seed=1))[-1]
        replayed = thread_replay.judged(bench, LOCKED, seen)
    finally:
        bench.close()
    assert not replayed.agrees
    assert [one.answer for one in replayed.seen] == ["not allowed"]
    assert replayed.seen[0].differences == ("VmLck kernel 0 kB, model 4 kB",)
    (path, *_) = save(tmp_path / "out", _oracle_threads._to_save(report))
    _oracle_threads._print(report)
    shown = capsys.readouterr().out
    assert "VmLck kernel 0 kB, model 4 kB" in shown
    assert f"thread 1: store({WINDOW:#x})" in shown
    program, why = thread_files.load(path)
    assert program == LOCKED
    assert why.endswith("VmLck kernel 0 kB, model 4 kB")


@needs_kernel
def test_a_program_that_hangs_when_it_runs_again_is_lost_with_what_it_had_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    design = design_of(platform.release()).design
    mutant = mutate(design, mutations_of(design)["no-locked-vm"])
    bench, report = ThreadBench(mutant, partial(as_mutated, mutant)), ThreadReport()
    runs, hangs = bench.real.run_threads, iter([False] * bench.most_runs)

    def run_threads(*given: Any) -> ThreadedOutcome:
        if next(hangs, True):
            raise Lost("it did not end")
        return runs(*given)

    monkeypatch.setattr(bench.real, "run_threads", run_threads)
    monkeypatch.setattr(thread_campaign, "NOTHING_NEW", bench.most_runs + 1)
    try:
        bench.one(ThreadedGenerator(1), LOCKED, report)
    finally:
        bench.close()
    assert not report.divergences
    lost, *_ = report.lost
    assert lost.why.startswith("no interleaving gives ")
    assert lost.why.endswith("; run again, it did not end")


@needs_kernel
@pytest.mark.parametrize("threads", [[], ["--threads"]])
def test_what_was_found_is_told_though_it_can_not_be_kept(
    capsys: pytest.CaptureFixture[str], threads: list[str]
) -> None:
    assert main(["oracle", *threads, "--seconds", "0.1", "--save", "/proc/kept"]) == 2
    told = capsys.readouterr()
    assert "divergences" in told.out
    assert "can't write into /proc/kept: No such file or directory; give --save" in told.err


def test_a_sequence_is_no_program_of_threads_nor_the_other_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence = tmp_path / "sequence.json"
    sequence.write_text('{"operations": [["brk", 0]]}')
    assert main(["oracle", "--threads", "--replay", str(sequence)]) == 2
    assert main(["oracle", "--replay", str(saved(tmp_path, MEETING))]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "--replay alone" in first
    assert "--threads" in second


@pytest.mark.parametrize(("setup", "further"), [((), "--c meeting.c"), ((Op("brk", (0,)),), "--s")])
def test_what_comes_next_is_a_c_program_only_where_one_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setup: tuple[Op, ...], further: str
) -> None:
    program = MEETING._replace(setup=setup)
    asked = argparse.Namespace(replay=str(saved(tmp_path, program)), json=False)
    _oracle_threads_replay._say_next(asked, program, agrees=False)
    assert f"meeting.json {further}" in capsys.readouterr().out
    assert bool(thread_reproducer.lacks(program)) == bool(setup)


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_the_c_program_shows_the_outcomes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "meeting.c"
    path = saved(tmp_path, MEETING)
    assert main(["oracle", "--threads", "--replay", str(path), "--c", str(target)]) == 0
    assert "sort | uniq -c" in capsys.readouterr().out
    target.write_text(target.read_text().replace("ROUNDS = 2000", "ROUNDS = 20"))
    program = tmp_path / "meeting"
    subprocess.run(
        ["cc", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", program, target], check=True
    )
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    assert set(lines.splitlines()) <= {"0 | 0 leaves", "0 | signal 11 leaves"}
    assert len(lines.splitlines()) == 20


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_every_operation_that_is_written_in_c_compiles(tmp_path: Path) -> None:
    generator, written = ThreadedGenerator(8), set[str]()
    for number in range(200):
        program = generator.program()
        everything = [*program.setup, *(op for thread in program.threads for op in thread)]
        if any(op.name.startswith(("uffd", "brk")) for op in everything):
            with pytest.raises(UserError, match="can't be written in C"):
                thread_reproducer.write(program, "a test", f"p{number}")
            continue
        fresh = {op.name for op in everything} - written
        written |= fresh
        if fresh:
            source = tmp_path / f"p{number}.c"
            source.write_text(thread_reproducer.write(program, "a test", f"p{number}"))
            subprocess.run(
                ["cc", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", source], check=True
            )
    assert {"mmap", "store", "load", FORK_LOAD, "process_vm_writev", "pread"} <= written
