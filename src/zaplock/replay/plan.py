"""What a recording says of one process's mmap_lock, as work that can be done again.

Every system call, page fault or foreign lock ask that took the chosen mm's lock becomes one
operation of its thread, with the time at which it began and what it did when it did not wait: the
time before each ask, the exclusive and the shared hold, the time after. A lock operation that found
the lock free takes up to 1 us (`WAITED_NS`); that is the operation's own work, what is longer is
a wait and is taken out.

Operations whose way with the lock is up to the kernel are told apart by `kind`: munmap, a shrinking
brk or mremap, MADV_DONTNEED and page faults will run as the protocols of whatever design is asked
for. Everything else is `as recorded`: the same asks, the same holds.

Not covered: what took no lock of this mm and is none of these (futexes, reads of /proc/PID/maps
on kernels that walk it by VMA locks), killed waits and failed trylocks (counted in `left_out`).
Who let a thread begin an operation is for `closed_loops`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from zaplock.errors import UserError
from zaplock.model.flags import MADV_DONTNEED
from zaplock.protocols.design import Design
from zaplock.trace.analysis import Analysis
from zaplock.trace.calls import NO_CALL
from zaplock.trace.event_kinds import PAGE_FAULT
from zaplock.trace.events import RecordedTask
from zaplock.trace.madvise import advised
from zaplock.trace.summary import NO_OPERATION
from zaplock.trace.waits import WaitOutcome

Kind = Literal["munmap", "shrink", "dontneed", "fault", "as recorded"]

WAITED_NS = 1_000
"""A lock operation that took longer than this waited; a free lock takes 0.1 to 1 us."""


@dataclass(frozen=True, slots=True)
class HoldPhase:
    """One ask for the lock and what followed, in nanoseconds without the wait.

    An exclusive hold that was downgraded has both `exclusive_ns` and `shared_ns`. `late_ns` is how
    much longer than usual the waiter took to get a CPU when its turn had come (less: negative).
    """

    before_ns: int
    write: bool
    exclusive_ns: int
    shared_ns: int
    downgraded: bool = False
    late_ns: int = 0


@dataclass(frozen=True, slots=True)
class RecordedOperation:
    """What one thread did from `begin_ns` on; `waited_ns` is how long it waited for the lock then.

    `wait` is the row of its longest wait in the recording's waits, -1 where it had none. `whole` is
    False where the recording began or ended in its middle, so that its cost is not known.
    """

    tid: int
    name: str
    kind: Kind
    begin_ns: int
    phases: tuple[HoldPhase, ...]
    after_ns: int
    address: int = 0
    length: int = 0
    detail: int = 0
    waited_ns: int = 0
    wait: int = -1
    whole: bool = True

    @property
    def end_ns(self) -> int:
        """When it ended in the recording; a page fault, with its last hold."""
        own_ns = sum(one.before_ns + one.exclusive_ns + one.shared_ns for one in self.phases)
        return self.begin_ns + own_ns + self.waited_ns + self.after_ns


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """The operations of every thread on one mm, in order of their begins.

    `mm` and `pid` are the recording's. Times count from the recording's first instant.
    `wakeup_ns` is how long a waiter usually takes to get a CPU when its turn has come.
    """

    mm: int
    pid: int
    threads: Mapping[int, tuple[RecordedOperation, ...]]
    tasks: Mapping[int, RecordedTask]
    begin_ns: int
    duration_ns: int
    left_out: int
    lost_events: int
    wakeup_ns: int

    @property
    def operations(self) -> list[RecordedOperation]:
        """List all operations, thread by thread, each thread's in order."""
        return [one for own in self.threads.values() for one in own]


def plan_of(analysis: Analysis, recorded: Design, mm: int, wakeup_ns: int) -> ReplayPlan:
    """Take one mm's operations out of a recording that was made under `recorded`.

    `wakeup_ns` is how long a wake-up takes at most on a machine with CPUs to spare.
    """
    pid = analysis.events.mms.get(mm, 0)
    parts, left_out = _parts(analysis, mm)
    wakeup_ns = _find_late(analysis, parts, mm, wakeup_ns)
    operations = [*_in_calls(analysis, recorded, parts), *_outside(analysis, parts)]
    operations += _without_lock(analysis, recorded, parts, pid)
    threads: dict[int, list[RecordedOperation]] = {}
    for one in sorted(operations, key=lambda one: one.begin_ns):
        threads.setdefault(one.tid, []).append(one)
    if not threads:
        raise UserError(
            f"the recording has no lock event of mm {mm:#x}: choose a process of "
            f"{_processes(analysis)} with -p"
        )
    return ReplayPlan(
        mm,
        pid,
        {tid: tuple(own) for tid, own in sorted(threads.items())},
        analysis.events.tasks,
        analysis.begin_ns,
        analysis.duration_ns,
        left_out,
        analysis.segments.lost_events,
        wakeup_ns,
    )


def choose_mm(analysis: Analysis, pid: int | None = None) -> int:
    """Return the mm of a process, or the one in which most time was spent waiting.

    Raises UserError where the recording has no such process or no lock event at all.
    """
    waits = analysis.waits
    weight: Counter[int] = Counter({int(mm): 0 for mm in np.unique(analysis.holds["mm"])})
    for mm in np.unique(waits["mm"]).tolist():
        weight[mm] += int(waits["wait_ns"][waits["mm"] == mm].sum())
    if not weight:
        raise UserError(
            "the recording has no event of an mmap_lock: record a process that maps memory"
        )
    if pid is not None:
        weight = Counter({mm: n for mm, n in weight.items() if analysis.events.mms.get(mm) == pid})
        if not weight:
            raise UserError(
                f"process {pid} has no lock event here: choose among {_processes(analysis)}"
            )
    return max(weight, key=lambda mm: (weight[mm], -mm))


def _processes(analysis: Analysis) -> str:
    locks = set(np.unique(analysis.holds["mm"]).tolist())
    pids = sorted({pid for mm, pid in analysis.events.mms.items() if mm in locks})
    shown = ", ".join(map(str, pids[:8])) or "none"
    return shown + (f" and {len(pids) - 8} more" if len(pids) > 8 else "")


@dataclass(slots=True)
class _Part:
    """One ask and hold while it is being read: from `asked_ns`, held until `until_ns`."""

    tid: int
    call: int
    asked_ns: int
    got_ns: int
    until_ns: int
    write: bool
    exclusive_ns: int
    shared_ns: int
    downgraded: bool
    wait: int
    whole: bool
    late_ns: int = 0

    @property
    def waited_ns(self) -> int:
        took_ns = self.got_ns - self.asked_ns
        return took_ns if took_ns > WAITED_NS else 0


def _parts(analysis: Analysis, mm: int) -> tuple[list[_Part], int]:
    """Join each wait with the hold that it ended in, and a downgraded hold with its second half."""
    waits, holds = analysis.waits, analysis.holds
    asked: dict[tuple[int, int, bool], int] = {}
    parts: list[_Part] = []
    killed = 0
    ends = waits.end_ns
    for row in np.flatnonzero(waits["mm"] == mm).tolist():
        tid, outcome = int(waits["tid"][row]), int(waits["outcome"][row])
        if outcome == WaitOutcome.ACQUIRED:
            asked[tid, int(ends[row]), bool(waits["exclusive"][row])] = row
        elif outcome == WaitOutcome.WAITING:
            start, end = int(waits["start_ns"][row]), int(ends[row])
            write, call = bool(waits["exclusive"][row]), int(waits["call"][row])
            parts.append(_Part(tid, call, start, end, end, write, 0, 0, False, row, False))
        else:
            killed += 1
    rows = np.flatnonzero(holds["mm"] == mm)
    names = ("tid", "call", "start_ns", "hold_ns", "exclusive", "downgraded", "complete")
    last: dict[int, _Part] = {}
    for tid, call, start, hold, exclusive, downgraded, complete in zip(
        *(holds[name][rows].tolist() for name in names)
    ):
        if downgraded and not exclusive and tid in last and last[tid].until_ns == start:
            part = last[tid]
            part.shared_ns, part.downgraded, part.until_ns = hold, True, start + hold
            part.whole &= complete
            continue
        wait = asked.get((tid, start, exclusive), -1)
        complete = complete and not (wait >= 0 and waits["partial"][wait])
        begun = int(waits["start_ns"][wait]) if wait >= 0 else start
        alone, shared = (hold, 0) if exclusive else (0, hold)
        part = _Part(
            tid, call, begun, start, start + hold, exclusive, alone, shared, False, wait, complete
        )
        last[tid] = part
        parts.append(part)
    parts.sort(key=lambda part: part.asked_ns)
    return parts, killed + waits.failed_trylocks


def _find_late(analysis: Analysis, parts: list[_Part], mm: int, wakeup_ns: int) -> int:
    """Note who was late to run when its turn had come; return how long that usually takes.

    A waiter's turn has come when the last hold ends that it could not have stood beside. Usual is
    the median, unless that is above `wakeup_ns`: then CPUs were hard to get most of the time.
    """
    holds = analysis.holds
    own = holds["mm"] == mm
    ends = np.sort(holds.end_ns[own])
    exclusive_ends = np.sort(holds.end_ns[own & holds["exclusive"]])
    late = []
    for part in parts:
        if not part.waited_ns or not part.whole:
            continue
        rivals = ends if part.write else exclusive_ends
        before = int(np.searchsorted(rivals, part.got_ns, side="right"))
        turn_ns = int(rivals[before - 1]) if before else 0
        if turn_ns >= part.asked_ns:
            part.late_ns = part.got_ns - turn_ns
            late.append(part)
    usual_ns = int(np.median([part.late_ns for part in late])) if late else wakeup_ns
    usual_ns = min(usual_ns, wakeup_ns)
    for part in late:
        part.late_ns -= usual_ns
    return usual_ns


def _phases(parts: list[_Part], begin_ns: int) -> tuple[tuple[HoldPhase, ...], int]:
    """Turn parts into phases; return them and when the last one ended."""
    phases = []
    at = begin_ns
    for part in parts:
        before = part.asked_ns - at + (part.got_ns - part.asked_ns - part.waited_ns)
        alone_ns, shared_ns, late_ns = part.exclusive_ns, part.shared_ns, part.late_ns
        phases.append(
            HoldPhase(max(0, before), part.write, alone_ns, shared_ns, part.downgraded, late_ns)
        )
        at = part.until_ns
    return tuple(phases), at


def _waited(parts: list[_Part]) -> dict[str, int]:
    worst = max(parts, key=lambda part: part.waited_ns)
    return {
        "waited_ns": sum(part.waited_ns for part in parts),
        "wait": worst.wait if worst.waited_ns else -1,
    }


def _in_calls(
    analysis: Analysis, recorded: Design, parts: list[_Part]
) -> Iterator[RecordedOperation]:
    calls = analysis.calls
    by_call: dict[int, list[_Part]] = {}
    for part in parts:
        if part.call != NO_CALL:
            by_call.setdefault(part.call, []).append(part)
    for call, own in by_call.items():
        name = calls.operations[int(calls.op[call])]
        begin = min(int(calls.begin_ns[call]), own[0].asked_ns)
        phases, until = _phases(own, begin)
        # No event ends a real fault: what follows its last hold is not its own.
        after = 0 if name == PAGE_FAULT else max(0, int(calls.end_ns[call]) - until)
        detail, length = int(calls.detail[call]), int(calls.length[call])
        yield RecordedOperation(
            own[0].tid,
            name,
            _kind(name, phases, length, detail, recorded),
            begin - analysis.begin_ns,
            phases,
            after,
            int(calls.address[call]),
            length,
            detail,
            **_waited(own),
            whole=all(part.whole for part in own),
        )


def _outside(analysis: Analysis, parts: list[_Part]) -> Iterator[RecordedOperation]:
    """Yield what took the lock in no recorded call, each hold by itself: readers of /proc, say."""
    for part in parts:
        if part.call == NO_CALL:
            phases, _ = _phases([part], part.asked_ns)
            begin = part.asked_ns - analysis.begin_ns
            yield RecordedOperation(
                part.tid, NO_OPERATION, "as recorded", begin, phases, 0,
                **_waited([part]), whole=part.whole,
            )  # fmt: skip


def _without_lock(
    analysis: Analysis, recorded: Design, parts: list[_Part], pid: int
) -> Iterator[RecordedOperation]:
    """Yield what a kernel with per-VMA locks did without this lock, and others would do with it."""
    if not recorded.vma_locks or not pid:
        return
    calls, tasks = analysis.calls, analysis.events.tasks
    used = {part.call for part in parts}
    inside = {tid for tid, task in tasks.items() if task.pid == pid}
    numbers = {name: number for number, name in enumerate(calls.operations)}
    dontneed = advised("madvise", MADV_DONTNEED)
    advice = calls.op == numbers.get(dontneed, -2)
    faults = calls.op == numbers.get(PAGE_FAULT, -2)
    for call in np.flatnonzero(advice | faults).tolist():
        tid = int(calls.tid[call])
        if call in used or tid not in inside:
            continue
        begin, end = int(calls.begin_ns[call]), int(calls.end_ns[call])
        fault = bool(faults[call])
        yield RecordedOperation(
            tid,
            PAGE_FAULT if fault else dontneed,
            "fault" if fault else "dontneed",
            begin - analysis.begin_ns,
            (),
            0 if fault else end - begin,
            int(calls.address[call]),
            int(calls.length[call]),
            int(calls.detail[call]),
        )


def _kind(
    name: str, phases: tuple[HoldPhase, ...], length: int, detail: int, recorded: Design
) -> Kind:
    """Say whether the kernel's design decides how an operation goes about the lock."""
    if len(phases) != 1:
        return "as recorded"
    one = phases[0]
    if one.write and length > 0:
        if name == "munmap":
            return "munmap"
        if name == "brk" and (one.downgraded or detail < 0):
            return "shrink"
        if name == "mremap" and 0 < detail < length:
            return "shrink"
    if not one.write and name == PAGE_FAULT and not recorded.vma_locks:
        return "fault"
    if not one.write and name == advised("madvise", MADV_DONTNEED) and length > 0:
        return "as recorded" if recorded.dontneed_lock == "vma" else "dontneed"
    return "as recorded"
