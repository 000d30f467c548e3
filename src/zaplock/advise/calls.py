"""Advice from a recording: those behind whom others really waited, and who could have been.

For each process and kind of call: the worst wait that one call explains, and all that the calls of
that kind explain together. Calls that held the lock for long while nobody waited are named too, as
what will stall the first who comes. Whoever made others wait is named, also where nothing is known
to help, and how much waiting nobody is known to be behind.

A hold is judged by itself: one of 4 KiB that lasted 50 ms, or one whose task was not running, is
not cured by smaller pieces. Scheduling events tell that (`record --sched`); without them a hold ten
times as long as its size costs on this kernel counts as one that its size does not explain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from zaplock.advise.advice import Advice, left
from zaplock.advise.advice_by_kind import ASLEEP, NO_CPU, OTHER_REASON, QUEUED, Kind, Means, kind_of
from zaplock.advise.costs import Costs
from zaplock.advise.readers import reader
from zaplock.advise.runtimes import Runtime
from zaplock.trace.analysis import Analysis
from zaplock.trace.blame import Blame
from zaplock.trace.calls import NO_CALL
from zaplock.trace.events import RecordedTask
from zaplock.trace.summary import NO_OPERATION, Summary, operation_name
from zaplock.units import duration

PIECE = 2 << 20
"""Pieces are no smaller than this: a shorter range is done in one."""
UNEXPLAINED = 10
"""A hold that lasted so many times as long as its size costs has another reason."""
_LOOKS = ("read of ", "write of ", "access to ")
"""How operations on files of /proc are named."""
Recognise = Callable[[int, str], Runtime | None]


@dataclass(frozen=True, slots=True)
class RecordedAdvice:
    """Advice from a recording, and the waiting that is behind it.

    `waits` took the least that was asked for or more, `waited_ns` in all; nobody is known to be
    behind `unexplained_ns` of it (only the 5,000 longest waits are worked out), `free_ns` of
    which passed with the lock free. `caveats` say why the recording is not a whole one.
    """

    advice: tuple[Advice, ...]
    waits: int
    waited_ns: int
    unexplained_ns: int
    free_ns: int
    caveats: tuple[str, ...] = ()


@dataclass(slots=True)
class _Site:
    """The calls of one kind by one process."""

    kind: Kind
    pid: int
    process: str
    count: int = 0
    longest_ns: int = 0
    length: int = 0
    worst_share_ns: int = 0
    caused_ns: int = 0
    thread: str = ""
    """The thread whose call was the worst."""

    def held(self, hold_ns: int, length: int, thread: str) -> None:
        self.count += 1
        if hold_ns > self.longest_ns:
            self.longest_ns = hold_ns
            if not self.worst_share_ns:
                self.length, self.thread = length, thread

    def blamed(self, share_ns: int, length: int, thread: str) -> None:
        self.caused_ns += share_ns
        if share_ns > self.worst_share_ns:
            self.worst_share_ns, self.length, self.thread = share_ns, length, thread

    @property
    def who(self) -> str:
        """Name the process, and the thread where it has a name of its own."""
        name = f"{self.process} (pid {self.pid})" if self.process else f"pid {self.pid}"
        return f"{self.thread} of {name}" if self.thread not in ("", self.process) else name


@dataclass(slots=True)
class _Sites:
    analysis: Analysis
    costs: Costs
    found: dict[tuple[int, str, str], _Site] = field(default_factory=dict)

    def of(self, tid: int, kind: Kind, operation: str) -> _Site:
        """Return the calls of this kind by the thread's process."""
        task = self.analysis.events.tasks.get(tid)
        pid = task.pid if task else tid
        process = (task.process or task.comm) if task else ""
        named = operation != NO_OPERATION and kind.means is Means.READER
        why = kind in (NO_CPU, ASLEEP, OTHER_REASON)
        name = operation if named else f"{operation}: {kind.name}" if why else kind.name
        return self.found.setdefault((pid, process, name), _Site(kind, pid, process))

    def thread(self, tid: int) -> str:
        """Name a thread."""
        task = self.analysis.events.tasks.get(tid)
        return task.comm if task else ""

    def kind_of_hold(self, row: int) -> tuple[Kind, str]:
        """Say what can be done about a hold, and name its operation."""
        holds = self.analysis.holds
        operation = operation_name(holds.operations, int(holds["op"][row]))
        if int(holds["call"][row]) == NO_CALL:
            return self._outside(row, operation), operation
        length = int(holds["length"][row])
        kind = kind_of(operation, int(holds["detail"][row]), length)
        if kind.means is Means.NONE and self._foreign(row):  # process_vm_readv, ptrace
            return self._outside(row, operation), operation
        return self._reason(row, kind, length) or kind, operation

    def _outside(self, row: int, operation: str) -> Kind:
        """Tell who reads the process's /proc from a task of its own that is in another call."""
        if self._own(row) and not operation.startswith(_LOOKS):
            return kind_of("" if operation == NO_OPERATION else operation, 0, 0)
        task = self.analysis.events.tasks.get(int(self.analysis.holds["tid"][row]))
        return reader((task.process or task.comm) if task else "")

    def _own(self, row: int) -> bool:
        """Say whether a hold is known to be of its task's own address space."""
        task, owner = self._task_and_owner(row)
        return task is not None and task.pid == owner

    def _foreign(self, row: int) -> bool:
        """Say whether a hold is known to be of another process's address space."""
        task, owner = self._task_and_owner(row)
        return task is not None and owner not in (None, task.pid)

    def _task_and_owner(self, row: int) -> tuple[RecordedTask | None, int | None]:
        holds, events = self.analysis.holds, self.analysis.events
        task = events.tasks.get(int(holds["tid"][row]))
        return task, events.mms.get(int(holds["mm"][row]))

    def _reason(self, row: int, kind: Kind, length: int) -> Kind | None:
        """Say whether a hold was long for another reason than its size, and for which."""
        holds = self.analysis.holds
        start, hold = int(holds["start_ns"][row]), int(holds["hold_ns"][row])
        sleeps = self.analysis.judge.vma_locks.sleeps if self.analysis.judge.vma_locks else None
        if sleeps is not None:
            tid = int(holds["tid"][row])
            if 2 * sleeps.running_ns(tid, start, start + hold) < hold:
                naps = sleeps.naps(tid, start, start + hold)
                slept = sum(min(nap.woken_ns, start + hold) - nap.begin_ns for nap in naps)
                return ASLEEP if 2 * slept >= hold else NO_CPU
        if kind.means not in (Means.RELEASE, Means.PIECES, Means.POPULATE) or length <= 0:
            return None
        usual_ns = self.costs.of(kind.cost, length) if kind.cost else None
        if length < PIECE or (usual_ns is not None and hold > UNEXPLAINED * usual_ns):
            return OTHER_REASON
        return None


def from_recording(
    summary: Summary,
    costs: Costs,
    *,
    least_ns: int,
    recognise: Recognise = lambda _pid, _process: None,
) -> RecordedAdvice:
    """Return advice on what stalled, or could have stalled, others for `least_ns` or more.

    `recognise` says whose program a process (pid and name) is.
    Raises UserError where the recording has no lock events.
    """
    summary.analysis.require_locks()
    analysis, sites = summary.analysis, _Sites(summary.analysis, costs)
    holds = analysis.holds
    for row in (holds["hold_ns"] >= least_ns).nonzero()[0].tolist():
        kind, operation = sites.kind_of_hold(row)
        tid = int(holds["tid"][row])
        site = sites.of(tid, kind, operation)
        thread = sites.thread(tid)
        site.held(int(holds["hold_ns"][row]), int(holds["length"][row]), thread)
    wait_ns = analysis.waits["wait_ns"]
    long = wait_ns >= least_ns
    dark_ns, free_ns = int(wait_ns[long].sum()), 0
    for found in summary.explained:
        if wait_ns[found.wait] < least_ns:
            continue
        dark_ns -= found.blamed_ns
        free_ns += found.free_ns
        for blame in found.first(max(1, int((found.shares.share_ns >= least_ns).sum()))):
            kind, operation = _kind_of_blame(sites, blame)
            site = sites.of(blame.tid, kind, operation)
            site.blamed(blame.share_ns, blame.length, blame.comm)
    advice = tuple(_advice(*pair, costs, recognise) for pair in sites.found.items())
    waited_ns, caveats = int(wait_ns[long].sum()), summary.analysis.caveats
    return RecordedAdvice(advice, int(long.sum()), waited_ns, dark_ns, free_ns, caveats)


def _kind_of_blame(sites: _Sites, blame: Blame) -> tuple[Kind, str]:
    if blame.role == "queued-writer":
        return QUEUED, blame.operation
    if blame.waited:
        return NO_CPU, blame.operation
    if blame.vma:
        return kind_of(blame.operation, 0, blame.length), blame.operation
    return sites.kind_of_hold(blame.row)


def _advice(key: tuple[int, str, str], site: _Site, costs: Costs, recognise: Recognise) -> Advice:
    seen = site.worst_share_ns > 0
    return Advice(
        what=f"{key[2]} by {site.who}",
        kind=site.kind,
        length=site.length,
        now_ns=site.worst_share_ns or site.longest_ns,
        then_ns=left(site.kind, costs),
        seen=seen,
        count=max(site.count, 1),
        caused_ns=site.caused_ns,
        note=_note(site, seen),
        runtime=recognise(site.pid, site.process) if site.kind.topic else None,
    )


def _note(site: _Site, seen: bool) -> str:
    if not seen:
        return "nobody waited this time"
    return f"held it for {duration(site.longest_ns)}" if site.longest_ns else ""
