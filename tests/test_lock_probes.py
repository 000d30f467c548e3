"""Lock events by kprobes on the rwsem's functions: the same story as the tracepoints tell."""

from __future__ import annotations

import numpy as np
import pytest

from zaplock.errors import UserError
from zaplock.lab import fidelity
from zaplock.measure.guest import build, features, kernels, qemu, recording
from zaplock.measure.guest import verdict as guest_verdict
from zaplock.measure.guest.capsule import Capsule
from zaplock.measure.guest.experiment import GuestPlan, GuestRun, run
from zaplock.recorder.rwsem_calls import Pairing
from zaplock.recorder.rwsem_probes import FUNCTIONS, probed
from zaplock.trace.events import EVENT, EventKind
from zaplock.trace.verdict import TeardownVerdict

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
    assert set(paired["mm"].tolist()) <= {OURS}
    assert not paired["detail"].any()
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
    told((1, "down_read", OURS, 0), (1, "up_read", OURS, 0), probes=probes)
    assert probes.unanswered == 1
    told((2, "down_read", ANOTHER, 0), (2, "up_read", ANOTHER, 0), probes=probes)
    assert probes.unanswered == 1, "of others' semaphores nothing is concluded"


# ---- on a real kernel, both ways at once


def needs(kernel: str) -> None:
    try:
        qemu.program(), build.probe(), kernels.find(kernel)
    except UserError as error:
        pytest.skip(str(error))


def test_tracepoints_and_kprobes_of_one_run_tell_the_same() -> None:
    needs("debian:6.1")
    convoy = ("fault", "proc", "mmap")
    plan = GuestPlan(
        32 << 20, kernel="debian:6.1", bystanders=convoy, exact=True, nr_cpus=1, timeout_s=120,
        locks="both",
    )  # fmt: skip
    done = run(plan)
    assert recording.lock_events(done.capsule) == ("tracepoints", "kprobes")
    by_tracepoints, by_kprobes = (
        guest_verdict.read(done, way) for way in recording.lock_events(done.capsule)
    )
    assert by_tracepoints.modes == by_kprobes.modes == ("exclusive", "shared")
    assert by_tracepoints.waits == by_kprobes.waits
    for name in convoy:
        assert by_tracepoints.ratio(name) == pytest.approx(by_kprobes.ratio(name), abs=0.01)
    for one, other in zip(by_tracepoints.phases, by_kprobes.phases):
        assert abs(one.hold_ns - other.hold_ns) < 50_000  # what the return probes themselves take


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


def test_missing_features_are_named_where_they_matter() -> None:
    def lacking(*names: str, by: str = "auto") -> tuple[str, ...]:
        text = "".join(f"{name}={int(name not in names)}\n" for name in features.NEEDED)
        return features.missing(Capsule({"features": text.encode()}), by)

    assert lacking() == lacking("mmap_lock") == lacking("kprobe_events") == ()
    assert lacking("mmap_lock", "kprobe_events") == (
        "kprobe_events (lock events before 5.11)",
        "mmap_lock (lock events by tracepoints)",
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
