"""A workload that knows what it did, recorded on the real kernel: does the report say the same?

    ZAPLOCK_GROUND_TRUTH_S=60 python -m pytest tests/test_ground_truth.py -s

runs it for a minute and prints the score; the suite runs it for a few seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from zaplock.recorder.in_memory import record_mm
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.events import EventKind, Events
from zaplock.views.sentences import chain, wait_sentence

pytestmark = pytest.mark.root

SOURCE = Path(__file__).parent / "ground_truth.c"
SECONDS = float(os.environ.get("ZAPLOCK_GROUND_TRUTH_S", "8"))
MS = 1_000_000
CULPRIT = 0


@dataclass(frozen=True)
class Did:
    """One operation as the workload wrote it down."""

    round: int
    kind: str
    actor: int
    tid: int
    operation: str
    address: int
    length: int
    begin_ns: int
    end_ns: int


@dataclass(frozen=True)
class Run:
    did: tuple[Did, ...]
    events: Events
    analysis: Analysis
    lost: int

    def culprits(self) -> list[Did]:
        return [did for did in self.did if did.actor == CULPRIT]


def parse(line: str) -> Did:
    number, kind, actor, tid, operation, *rest = line.split()
    return Did(int(number), kind, int(actor), int(tid), operation, *map(int, rest))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("the workload needs a C compiler (apt-get install gcc libc6-dev)")
    if os.geteuid() != 0:
        pytest.skip("recording needs root")
    program = tmp_path_factory.mktemp("ground-truth") / "ground_truth"
    subprocess.run([compiler, "-O2", "-pthread", "-o", program, SOURCE], check=True)
    workload = subprocess.Popen(
        [program, str(SECONDS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert workload.stdout is not None
    try:
        pid = int(workload.stdout.readline())
        with record_mm(pid, events=("mmap_lock", "syscalls", "sched")) as recorder:
            out, _ = workload.communicate("go\n", timeout=SECONDS * 3 + 60)
    finally:
        workload.kill()
        workload.wait()
    events = recorder.events()
    did = tuple(parse(line) for line in out.splitlines())
    return Run(did, events, analyse(events, os.uname().release), recorder.lost_events)


def test_no_event_is_unmatched_and_none_lost(run: Run) -> None:
    assert run.lost == 0
    assert run.analysis.holds.unmatched == 0
    assert run.analysis.waits.unmatched == 0
    assert len(run.culprits()) >= 14, "the workload did hardly anything"


def inside(run: Run, did: Did) -> np.ndarray:
    """Return the rows of the holds that a task took in one operation, faults beside it left out."""
    holds = run.analysis.holds
    start = holds["start_ns"]
    during = (start >= did.begin_ns) & (start <= did.end_ns)
    named = holds["op"] == holds.operations.index(did.operation)
    return np.flatnonzero((holds["tid"] == did.tid) & during & named)


def test_every_large_munmap_has_its_two_holds_and_its_size(run: Run) -> None:
    holds = run.analysis.holds
    munmaps = [did for did in run.culprits() if did.operation == "munmap"]
    assert len(munmaps) >= 4
    for did in munmaps:
        rows = inside(run, did)
        assert holds["exclusive"][rows].tolist() == [True, False], did
        assert holds["length"][rows].tolist() == [did.length] * 2
        assert holds["address"][rows].tolist() == [did.address] * 2
        assert holds["downgraded"][rows].all()
        assert holds["complete"][rows].all()
        assert {holds.operations[op] for op in holds["op"][rows]} == {"munmap"}


def spent_off_cpu(run: Run, did: Did, taken: list[tuple[int, int]]) -> int:
    """Sum the time in a call in which the task was not on a cpu and no hold explains it."""
    kind, tid, time_ns = (run.events[name] for name in ("kind", "tid", "time_ns"))
    mine = np.flatnonzero(
        (tid == did.tid) & (kind >= EventKind.SCHED_OUT) & (kind <= EventKind.SCHED_IN)
    )
    off, left_ns = 0, 0
    for row in mine:
        now = int(time_ns[row])
        if kind[row] == EventKind.SCHED_OUT:
            left_ns = now
        elif left_ns:
            away = (max(left_ns, did.begin_ns), min(now, did.end_ns))
            held = sum(max(0, min(away[1], end) - max(away[0], start)) for start, end in taken)
            off += max(0, away[1] - away[0]) - held
    return off


def test_holds_agree_with_the_workloads_own_clock(run: Run) -> None:
    """What its clock says beyond holds, waits and being off the cpu is the call's small rest."""
    holds, waits = run.analysis.holds, run.analysis.waits
    errors = []
    for did in run.culprits():
        if did.operation != "munmap":
            continue
        rows = inside(run, did)
        taken = [(int(holds["start_ns"][row]), int(holds.end_ns[row])) for row in rows]
        asked = (waits["tid"] == did.tid) & (waits["start_ns"] >= did.begin_ns)
        wait = np.flatnonzero(asked & (waits["start_ns"] <= did.end_ns))
        taken += [(int(waits["start_ns"][row]), int(waits.end_ns[row])) for row in wait]
        seen = sum(end - start for start, end in taken)
        clock = did.end_ns - did.begin_ns
        rest = clock - seen - spent_off_cpu(run, did, taken)
        assert rest >= 0, "a hold that is longer than the call that it is in"
        errors.append(max(0, rest - max(50_000, clock // 50)))
    agree = sum(error == 0 for error in errors)
    print(f"\nholds agree with the workload's clock in {agree} of {len(errors)} munmaps")
    # A virtual machine's cpu may be taken away without an event, so not quite all of them must.
    assert agree >= 0.9 * len(errors)


def let_go_ns(run: Run, did: Did) -> int:
    """Return when a culprit gave the lock back; an madvise gives a VMA's lock back at its end."""
    rows = inside(run, did)
    if did.kind == "vma-lock" or not len(rows):
        return did.end_ns
    return int(run.analysis.holds.end_ns[rows].max())


def due_to(run: Run, row: int) -> Did | None:
    """Return the culprit that the workload let loose on a wait: it was at it for most of the wait.

    The rest may be anybody's: on a busy machine whoever is woken gets a cpu when there is one.
    """
    waits = run.analysis.waits
    start, end, tid = int(waits["start_ns"][row]), int(waits.end_ns[row]), waits["tid"][row]
    for did in run.culprits():
        if did.begin_ns <= start <= did.end_ns and did.tid != tid:
            return did if 2 * (let_go_ns(run, did) - start) > end - start else None
    return None


def test_blame_names_the_culprit(run: Run) -> None:
    """Whoever waited for the lock for over 1 ms in a round did so because of its culprit."""
    waits = run.analysis.waits
    right, wrong = 0, list[str]()
    for row in np.flatnonzero(waits["wait_ns"] > 1 * MS).tolist():
        did = due_to(run, row)
        if did is None:
            continue
        found = run.analysis.explain(row)
        culprit = found.culprit
        shares = sum(blame.share_ns for blame in found.blame)
        assert shares + found.unexplained_ns == int(waits["wait_ns"][row])
        # An madvise is named with its advice, which the workload doesn't write down.
        named = culprit.operation.partition("(")[0] if culprit else ""
        if culprit is not None and (culprit.tid, named, culprit.length) == (
            did.tid,
            did.operation,
            did.length,
        ):
            right += 1
            assert culprit.vma == (did.kind == "vma-lock")
        else:
            told = [f"{did.kind}: {wait_sentence(run.analysis, row)}", *chain(run.analysis, found)]
            wrong.append("\n    ".join(told))
    print(f"\nblame names the culprit of {right} of {right + len(wrong)} waits over 1 ms")
    assert right >= 15, "hardly anybody waited"
    assert len(wrong) <= (right + len(wrong)) // 100, "\n".join(wrong)


def test_the_convoy_shows_both_the_zap_and_the_writer_in_front(run: Run) -> None:
    waits = run.analysis.waits
    convoys = 0
    for reader in run.did:
        if reader.kind != "convoy" or reader.operation != "read":
            continue
        during = (waits["start_ns"] >= reader.begin_ns) & (waits["start_ns"] <= reader.end_ns)
        mine = during & (waits["tid"] == reader.tid) & (waits["wait_ns"] > 1 * MS)
        for row in np.flatnonzero(mine).tolist():
            found = run.analysis.explain(row)
            roles = {(blame.operation, blame.role) for blame in found.blame}
            if found.free_ns < int(waits["wait_ns"][row]) // 2:
                assert ("munmap", "holder") in roles
                assert ("mmap", "queued-writer") in roles
                convoys += 1
    assert convoys >= 1, "no convoy came about"
