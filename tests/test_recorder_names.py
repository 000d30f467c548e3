"""Names of tasks and owners of mms, learned from what the kernel says (made-up facts)."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from zaplock.recorder.decode import Columns, Fact
from zaplock.recorder.layouts import Layouts, PageLayout
from zaplock.recorder.meanings import NAMING
from zaplock.recorder.naming import CLONE_THREAD, CLONE_VM, TaskNames
from zaplock.recorder.stream import Stream
from zaplock.system_calls import TRACED_NAMES
from zaplock.trace import recording_file
from zaplock.trace.events import EVENT, EventKind, Events, RecordedTask
from zaplock.trace.summary import process_name, thread_name

NEW, RENAMED, ENDED = NAMING
NONE = 2**22 + 1  # beyond every thread id of a running kernel: /proc knows nothing of it


def born(time_ns: int, parent: int, tid: int, flags: int = 0) -> Fact:
    return Fact(time_ns, NEW, parent, tid, "sh", flags)


def begins(*rows: tuple[int, int, str, int]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Make (time, tid, operation, mm) into a system call that begins with asking for mm."""
    columns = {name: np.zeros(2 * len(rows), EVENT[name]) for name in EVENT.names or ()}
    for number, (time_ns, tid, operation, mm) in enumerate(rows):
        for place, kind in ((2 * number, EventKind.OP_BEGIN), (2 * number + 1, EventKind.ASKED)):
            columns["time_ns"][place], columns["tid"][place] = time_ns, tid
            columns["kind"][place] = kind
        columns["op"][2 * number] = TRACED_NAMES.index(operation)
        columns["mm"][2 * number + 1] = mm
    return columns


def test_a_child_and_a_thread_are_told_apart_and_keep_their_names_after_the_end() -> None:
    names = TaskNames()
    names.learn([
        born(1, NONE, NONE + 1),
        Fact(2, RENAMED, NONE + 1, NONE + 1, "server"),
        born(3, NONE + 1, NONE + 2, CLONE_VM | CLONE_THREAD),
        Fact(4, RENAMED, NONE + 2, NONE + 2, "worker"),
        Fact(5, ENDED, NONE + 2, NONE + 2, "worker"),
    ])  # fmt: skip
    assert names.tasks[NONE + 1] == RecordedTask(NONE + 1, "server", NONE + 1, "server")
    assert names.tasks[NONE + 2] == RecordedTask(NONE + 2, "worker", NONE + 1, "server")


def test_an_exec_renames_the_process_of_its_threads() -> None:
    names = TaskNames()
    names.learn([born(1, NONE, NONE + 1), born(2, NONE + 1, NONE + 2, CLONE_VM | CLONE_THREAD)])
    names.learn([Fact(3, RENAMED, NONE + 1, NONE + 1, "database")])
    assert names.tasks[NONE + 2].process == "database"


def test_an_exec_by_another_thread_goes_on_under_the_first_ones_number() -> None:
    """So what takes the old address space down is execve, not the exit of the first thread."""
    first, other = NONE + 1, NONE + 2
    names = TaskNames()
    names.learn([born(1, NONE, first), born(2, first, other, CLONE_VM | CLONE_THREAD)])
    stream = Stream(Layouts(PageLayout(4096, 8, 8, 16), ()), names)

    def ended(columns: Columns) -> list[tuple[int, str, str]]:
        rows = stream._exits(columns, [Fact(20, ENDED, first, first, "server")])
        return [
            (tid, EventKind(kind).name, TRACED_NAMES[op])
            for tid, kind, op in zip(*(rows[name].tolist() for name in ("tid", "kind", "op")))
        ]

    assert ended(begins((10, other, "execve", 0xA))) == [
        (other, "OP_END", "execve"),
        (first, "OP_BEGIN", "execve"),
    ]
    killed = [(first, "OP_BEGIN", "exit")]
    assert ended(begins((10, NONE + 3, "execve", 0xA))) == killed  # another process's
    assert ended(begins((10, other, "madvise", 0xA), (30, other, "execve", 0xA))) == killed


def test_an_mm_belongs_to_who_maps_in_it_not_to_who_visits_it() -> None:
    names = TaskNames()
    names.learn([born(1, NONE, NONE + 1), born(2, NONE, NONE + 2)])
    names.complete(begins((10, NONE + 1, "mmap", 0xA), (11, NONE + 2, "process_madvise", 0xA)))
    names.complete(begins((12, NONE + 2, "clone", 0xB)))
    assert names.mms == {0xA: NONE + 1}


def test_a_vfork_child_does_not_take_its_parents_mm_away() -> None:
    names = TaskNames()
    names.learn([
        born(1, NONE, NONE + 1),
        born(5, NONE + 1, NONE + 2, CLONE_VM),
        Fact(9, RENAMED, NONE + 2, NONE + 2, "cat"),
        Fact(20, ENDED, NONE + 2, NONE + 2, "cat"),
    ])  # fmt: skip
    calls = begins(
        (2, NONE + 1, "mmap", 0xA), (6, NONE + 2, "mprotect", 0xA), (12, NONE + 2, "brk", 0xC)
    )
    names.complete(calls)
    assert names.mms == {0xA: NONE + 1, 0xC: NONE + 2}


def test_a_flight_recorder_forgets_what_ended_long_ago_but_not_who_came_back() -> None:
    names = TaskNames()
    for number in range(1000):
        tid = NONE + 1 + number
        names.learn([born(number, NONE, tid), Fact(number + 1, ENDED, tid, tid, "sh")])
        names.complete(begins((number, tid, "mmap", 0x1000 + number)))
    names.learn([born(2000, NONE, NONE + 1)])  # the first number is used again
    names.forget(901)
    assert set(names.tasks) == {NONE + 1, *range(NONE + 901, NONE + 1001)}
    assert set(names.mms) == {0x1000, *range(0x1000 + 900, 0x1000 + 1000)}


@pytest.mark.root
def test_a_containers_task_has_the_numbers_that_it_has_there_too(tmp_path: Path) -> None:
    """Also one that was born while it was recorded, whether its parent was known inside or not."""
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None:
        pytest.skip("a PID namespace needs root and unshare")
    command = [unshare, "-pf", "sh", "-c", "sleep 60 & echo $!; read line"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as outside:  # type: ignore[call-overload]
        inside = int(outside.stdout.readline())
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")
        shell = int(children.read_text())
        sleeper = int(Path(f"/proc/{shell}/task/{shell}/children").read_text())
        before, born_later = TaskNames(), TaskNames()
        before.snapshot()
        before.learn([Fact(1, NEW, shell, sleeper, "sleep", 0)])
        born_later.learn([Fact(1, NEW, outside.pid, shell, "sh", 0)])
        born_later.look_inside()
        os.kill(sleeper, 9)
        outside.communicate("\n")
    assert before.tasks[shell].inside == (1, 1) == born_later.tasks[shell].inside
    assert before.tasks[sleeper].inside == (inside, inside)
    assert before.tasks[os.getpid()].inside == (0, 0)
    tasks = {tid: before.tasks[tid] for tid in (shell, sleeper, os.getpid())}
    columns = begins((1, sleeper, "mmap", 0xA))
    recording_file.write(tmp_path / "a.zaplock", Events(columns, TRACED_NAMES, tasks, {}))
    read = recording_file.read(tmp_path / "a.zaplock").events.tasks
    assert read == tasks
    assert thread_name(read, shell) == f"sh (tid {shell}, 1 in its container)"
    assert process_name(read, os.getpid()).endswith(f"(pid {os.getpid()})")
