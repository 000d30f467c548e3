"""Lock events by kprobes on the rwsem's functions: the same story as the tracepoints tell."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from zaplock.errors import UserError
from zaplock.lab import fidelity
from zaplock.measure.guest import build, features, kernels, qemu, recording
from zaplock.measure.guest import finished_run as guest_verdict
from zaplock.measure.guest.capsule import Capsule
from zaplock.measure.guest.experiment import GuestPlan, GuestRun, run
from zaplock.recorder import lock_events
from zaplock.recorder.rwsem_calls import Pairing
from zaplock.recorder.rwsem_probes import FUNCTIONS, number_of, probed
from zaplock.recorder.tracefs import Tracefs
from zaplock.system_calls import TRACED_NAMES
from zaplock.trace.events import EVENT, EventKind, Events
from zaplock.trace.teardown_verdict import TeardownVerdict

OURS, ANOTHER = 0xFFFF888001234500, 0xFFFF88800BADBAD0
Row = tuple[int, str, int, int]
"""Thread, function (with _ret: its return), semaphore, result."""


def told(*rows: Row, probes: Pairing | None = None) -> list[tuple[int, str, int, int]]:
    """Feed probes' rows as the decoder makes them; return (tid, kind, write, success) by time."""
    numbers = {one.name: number for number, one in enumerate(FUNCTIONS)}
    columns = {name: np.zeros(len(rows), EVENT[name]) for name in EVENT.names or ()}
    for at, (tid, name, semaphore, result) in enumerate(rows):
        found = probed(f"zaplock:{name}")
        assert found is not None, name
        function, returned = found
        kind = EventKind.ACQUIRED if returned else function.kind
        row = {"time_ns": at, "kind": kind, "tid": tid, "mm": semaphore, "result": result}
        row |= {"detail": numbers[function.name], "write": function.write}
        row["success"] = function.kind == EventKind.ACQUIRED
        for column, value in row.items():
            columns[column][at] = value
    pairing = probes or Pairing({OURS})
    paired = pairing.paired(columns)
    locks = paired["kind"] <= EventKind.RELEASED
    assert set(paired["mm"][locks].tolist()) <= {OURS}
    assert not paired["detail"][locks].any()
    names = ("tid", "kind", "write", "success")
    return [
        (tid, EventKind(kind).name, write, success)
        for tid, kind, write, success in zip(*(paired[name].tolist() for name in names))
    ]


def test_a_munmap_and_its_reader_read_as_tracepoints_have_them() -> None:
    assert told(
        (1, "down_write_killable", OURS, 0),
        (1, "down_write_killable_ret", 0, 0),
        (2, "down_read", OURS, 0),
        (1, "downgrade_write", OURS, 0),
        (2, "down_read_ret", 0, 0),
        (1, "up_read", OURS, 0),
    ) == [
        (1, "ASKED", 1, 0),
        (1, "ACQUIRED", 1, 1),
        (2, "ASKED", 0, 0),
        (1, "ACQUIRED", 0, 1),
        (2, "ACQUIRED", 0, 1),
        (1, "RELEASED", 0, 0),
    ]


def test_a_killed_wait_and_a_failed_trylock_are_no_holds() -> None:
    assert [
        success
        for _, kind, _, success in told(
            (1, "down_read_killable", OURS, 0),
            (1, "down_read_killable_ret", 0, -4),
            (1, "down_read_trylock", OURS, 0),
            (1, "down_read_trylock_ret", 0, 0),
            (1, "down_read_trylock", OURS, 0),
            (1, "down_read_trylock_ret", 0, 1),
        )
        if kind == "ACQUIRED"
    ] == [0, 0, 1]


def test_an_interrupt_that_takes_another_semaphore_changes_nothing() -> None:
    assert told(
        (1, "down_read", OURS, 0),
        (1, "down_read_trylock", ANOTHER, 0),
        (1, "down_read_trylock_ret", 0, 1),
        (1, "up_read", ANOTHER, 0),
        (1, "down_read_ret", 0, 0),
    ) == [(1, "ASKED", 0, 0), (1, "ACQUIRED", 0, 1)]


def test_a_return_that_the_kernel_missed_is_counted() -> None:
    probes = Pairing({OURS})
    said = told((1, "down_read", OURS, 0), (1, "up_read", OURS, 0), probes=probes)
    assert probes.unanswered == 1
    assert "LOST" in [kind for _, kind, _, _ in said], "so nothing is joined over it"
    told((2, "down_read", ANOTHER, 0), (2, "up_read", ANOTHER, 0), probes=probes)
    assert probes.unanswered == 1, "of others' semaphores nothing is concluded"


# ---- of a whole machine: which semaphores are address spaces' at all


def test_a_lock_is_known_by_the_first_exclusive_one_of_its_owners_munmap() -> None:
    probes = Pairing(set())
    call = TRACED_NAMES.index("munmap")
    ask, back = (number_of(one) for one in FUNCTIONS if one.name in ("down_write", "up_write"))
    rows = [
        (EventKind.ASKED, ask, ANOTHER, -1),  # before its call: nobody knows what that is
        (EventKind.RELEASED, back, ANOTHER, -1),
        (EventKind.OP_BEGIN, 0, 0, call),
        (EventKind.ASKED, ask, OURS, -1),
        (EventKind.ACQUIRED, ask, 0, -1),
        (EventKind.ASKED, ask, ANOTHER, -1),  # the lock of a file, say
        (EventKind.ACQUIRED, ask, 0, -1),
        (EventKind.RELEASED, back, ANOTHER, -1),
        (EventKind.RELEASED, back, OURS, -1),
        (EventKind.OP_END, 0, 0, call),
        (EventKind.ASKED, ask, ANOTHER, -1),
    ]
    columns = {name: np.zeros(len(rows), EVENT[name]) for name in EVENT.names or ()}
    columns["kind"], columns["detail"], columns["mm"], columns["op"] = (
        np.array(column, EVENT[name])
        for column, name in zip(zip(*rows), ("kind", "detail", "mm", "op"))
    )
    columns["time_ns"], columns["tid"] = np.arange(len(rows)), np.full(len(rows), 7, np.int32)
    columns["write"] = (columns["kind"] == EventKind.ASKED).astype(np.uint8)
    found = probes.paired(columns)
    locks = found["kind"] <= EventKind.RELEASED
    assert [EventKind(kind).name for kind in found["kind"][locks].tolist()] == [
        "ASKED", "ACQUIRED", "RELEASED",
    ]  # fmt: skip
    assert probes.semaphores == {OURS}


class Answering:
    """A kprobe_events file that answers as a kernel does: a refusal is an error of the write."""

    def __init__(self, path: Path, refuses: Callable[[str], bool]) -> None:
        (path / "instances").mkdir()
        (path / "kprobe_events").touch()
        self.tracefs, self._refuses = Tracefs(path, private=False), refuses
        self.asked: list[str] = []

    def tell(self, _tracefs: Tracefs, command: str) -> None:
        if self._refuses(command):
            raise OSError(errno.EINVAL, "Invalid argument")
        self.asked.append(command)
        file = self.tracefs.path / "kprobe_events"
        lines = file.read_text().splitlines()
        if command.startswith("-:"):
            lines = [one for one in lines if one.split(" ")[0].partition(":")[2] != command[2:]]
        else:
            lines.append(command)
        file.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def answering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[str], bool], str], Answering]:
    def made(refuses: Callable[[str], bool], release: str) -> Answering:
        kernel = Answering(tmp_path, refuses)
        monkeypatch.setattr(lock_events, "_tell", kernel.tell)
        told = os.uname_result(("Linux", "here", release, "#1", "x86_64"))
        monkeypatch.setattr(lock_events.os, "uname", lambda: told)
        return kernel

    return made


class OneInstance:
    name = "zaplock-0123abcd-4026531836-77-1234-0"

    def write(self, name: str, text: str) -> None:
        pass


def test_probes_are_made_as_each_release_understands_and_are_gone_afterwards(
    answering: Callable[[Callable[[str], bool], str], Answering],
) -> None:
    def refuses(command: str) -> bool:  # no such symbol, or a result that void functions lack
        return "nest" in command or "interruptible" in command or "non_owner" in command

    kernel = answering(refuses, "4.9.0")
    with lock_events.probes(kernel.tracefs, OneInstance()) as locks:  # type: ignore[arg-type]
        group = OneInstance.name.replace("-", "_")
        assert f"p:{group}/down_read down_read sem=%di" in kernel.asked
        assert f"r:{group}/down_read_trylock_ret down_read_trylock ret=$retval:s32" in kernel.asked
        assert not any(one.startswith("r256") for one in kernel.asked), "since 4.12"
        assert not any("non_owner" in event for event in locks.events)
        mine = f"{group}:down_read"
        assert locks.condition(mine, [OURS]) == f"sem == {OURS:#x}"
        assert locks.condition(f"{mine}_ret", [OURS]) == "", "a return names no semaphore"
        assert all(probed(event) for event in locks.events)
        assert lock_events.ways_here(kernel.tracefs) == ("kprobes",)
    assert (kernel.tracefs.path / "kprobe_events").read_text() == ""


def test_without_the_functions_that_matter_there_is_one_line_and_nothing_left(
    answering: Callable[[Callable[[str], bool], str], Answering],
) -> None:
    kernel = answering(lambda command: " up_read " in command, "5.10.0")
    with (
        pytest.raises(UserError, match="no kprobe be made on up_read"),
        lock_events.probes(kernel.tracefs, OneInstance()),  # type: ignore[arg-type]
    ):
        pass
    assert (kernel.tracefs.path / "kprobe_events").read_text() == ""


def test_the_probes_of_a_killed_recorder_go_with_the_next_start(
    answering: Callable[[Callable[[str], bool], str], Answering],
) -> None:
    kernel = answering(lambda command: False, "5.10.0")
    gone, lives = "zaplock_0123abcd_4026531836_5_6_0", "zaplock_0123abcd_4026531836_7_8_0"
    (kernel.tracefs.path / "instances" / lives.replace("_", "-")).mkdir()
    for group in (gone, lives, "another"):
        kernel.tell(kernel.tracefs, f"p:{group}/down_read down_read sem=%di")
    assert lock_events.left_over_probes(kernel.tracefs) == [gone]
    assert lock_events.sweep_probes(kernel.tracefs) == [gone]
    left = (kernel.tracefs.path / "kprobe_events").read_text()
    assert gone not in left
    assert lives in left
    assert "another" in left


@pytest.mark.parametrize("way", ["kprobes", "tracepoints", "auto", "magic"])
def test_a_way_that_is_not_there_is_refused_with_the_way_out(tmp_path: Path, way: str) -> None:
    with pytest.raises(UserError, match=r"--by none|there are"):
        lock_events.chosen_way(Tracefs(tmp_path, private=False), way)
    assert lock_events.chosen_way(Tracefs(tmp_path, private=False), "none") == "none"


# ---- on a real kernel, both ways at once


def needs(kernel: str) -> None:
    try:
        qemu.program(), build.probe(), kernels.find(kernel)
    except UserError as error:
        pytest.skip(str(error))


def test_all_ways_of_one_run_tell_the_same() -> None:
    needs("debian:6.1")
    convoy = ("fault", "proc", "mmap")
    plan = GuestPlan(
        32 << 20, kernel="debian:6.1", bystanders=convoy, exact=True, nr_cpus=1, timeout_s=240,
        locks="all",
    )  # fmt: skip
    done = run(plan)
    ways = recording.lock_events(done.capsule)
    assert ways == ("tracepoints", "kprobes", "function_graph")
    by_tracepoints, *others = (guest_verdict.read(done, way) for way in ways)
    for seen in others:
        assert by_tracepoints.modes == seen.modes == ("exclusive", "shared")
        assert by_tracepoints.waits == seen.waits
        for name in convoy:
            assert by_tracepoints.ratio(name) == pytest.approx(seen.ratio(name), abs=0.01)
        for one, other in zip(by_tracepoints.phases, seen.phases):
            assert abs(one.hold_ns - other.hold_ns) < 50_000  # what the probes themselves take


# ---- what an image lacks, and what can't be seen


def unseen(**stalls: int) -> fidelity.Agreement:
    measured = TeardownVerdict((), {}, stalls, took_ns=100_000)
    return fidelity.compare("4.18.0", "old", "munmap", False, measured, 1_000)


def test_what_was_not_seen_is_no_disagreement_and_no_agreement() -> None:
    assert unseen(fault=97_000, proc=99_000).agrees is None
    assert unseen(fault=97_000, proc=99_000).to_json()["seen"] is False
    assert unseen(fault=0, proc=0).agrees is False, "4.18's readers wait for all of a munmap"


def test_without_lock_events_a_run_still_tells_stalls() -> None:
    ops = np.array([[0, 10], [100, 110], [1_000, 5_000]], np.int64).tobytes()
    facts = b"release=4.18.0\nversion=1\nnr_cpus=1\ntarget_pid=5\nbegin_ns=900\nend_ns=5000\n"
    done = GuestRun(GuestPlan(4096), Capsule({"facts": facts, "lane/fault/5/6": ops}))
    seen = guest_verdict.read(done)
    assert not seen.seen
    assert seen.ratio("fault") == pytest.approx(3_990 / 4_100)


def test_a_bystander_comes_when_it_asks_for_the_lock() -> None:
    facts = b"target_pid=5\nbegin_ns=1000\n"
    times = {
        "late": [[10, 20], [900, 5_000]],  # it had begun, and asked in the teardown
        "done": [[900, 1_100], [1_900, 2_000]],  # it had asked before, and asks again
        "vma": [[1_300, 1_310]],  # a fault by its VMA's lock asks for nothing
        "away": [[10, 20]],
    }
    lanes = {f"lane/{name}/5/{6 + n}": np.array(ops, np.int64).tobytes()
             for n, (name, ops) in enumerate(times.items())}  # fmt: skip
    asked = [(5, 1_001, OURS), (6, 1_400, OURS), (7, 950, OURS), (7, 1_950, OURS),
             (6, 1_200, ANOTHER)]  # fmt: skip
    columns = {name: np.zeros(len(asked), EVENT[name]) for name in EVENT.names or ()}
    for row, (tid, time_ns, mm) in enumerate(sorted(asked, key=lambda one: one[1])):
        columns["tid"][row], columns["time_ns"][row], columns["mm"][row] = tid, time_ns, mm
        columns["kind"][row] = EventKind.ASKED
    found = guest_verdict._arrivals(
        Capsule({"facts": facts, **lanes}), Events(columns, TRACED_NAMES)
    )
    assert found == {"late": 400, "done": 950, "vma": 300}


def test_missing_features_are_named_where_they_matter() -> None:
    def lacking(*names: str, by: str = "auto") -> tuple[str, ...]:
        text = "".join(f"{name}={int(name not in names)}\n" for name in features.NEEDED)
        return features.missing(Capsule({"features": text.encode()}), by)

    assert lacking() == lacking("mmap_lock") == lacking("kprobe_events") == ()
    assert lacking("mmap_lock", "kprobe_events") == (), "function_graph is left"
    assert lacking("mmap_lock", "kprobe_events", "function_graph") == (
        "kprobe_events (lock events before 5.11)",
        "mmap_lock (lock events by tracepoints)",
        "function_graph (--graph, and lock events without kprobes)",
    )
    assert lacking("kprobe_events", by="kprobes") == ("kprobe_events (lock events before 5.11)",)


def test_the_release_is_read_from_the_image() -> None:
    image = bytearray(0x1000)
    image[0x202:0x206] = b"HdrS"
    image[0x20E:0x210] = (0x300).to_bytes(2, "little")
    image[0x500:0x520] = b"4.18.0-348.el8.x86_64 (mock@one)"
    assert kernels.release_in(bytes(image)) == "4.18.0-348.el8.x86_64"
    assert kernels.release_in(b"\x7fELF..Linux version 4.9.0 (gcc)") == "4.9.0"
    image[0x20E:0x210] = (0xFFFF).to_bytes(2, "little")
    assert kernels.release_in(bytes(image)) == ""
    assert kernels.release_in(b"\x7fELF") == ""
