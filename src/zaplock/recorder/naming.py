"""Who is behind a thread id, also when it has ended.

Learned from a snapshot of /proc and from the kernel's own events.

What is born, renamed or ends while recording tells its name by task_newtask,
task_rename and sched_process_exit, so a name survives its task. A thread id that the kernel used
twice in one recording has the name of its last user.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from functools import partial

import numpy as np

from zaplock.recorder.decode import Columns, Fact
from zaplock.recorder.living_tasks import (
    is_contained,
    numbers_inside,
    of_everybody,
    of_process,
    of_thread,
)
from zaplock.recorder.meanings import NAMING
from zaplock.recorder.owners import Owners, calls_of_interest
from zaplock.system_calls import CLONES, FOREIGN, TRACED_NAMES
from zaplock.trace.event_kinds import EventKind
from zaplock.trace.recorded_tasks import RecordedTask

CLONE_VM, CLONE_THREAD = 0x100, 0x0001_0000
_NEVER = 1 << 63
_MANY = 10_000
_NEW, _RENAMED, _ENDED = NAMING
_BORROWED = {*FOREIGN, *CLONES, "exit"}
"""Operations that say nothing of the owner: a task locks another address space than its own, or
one that has ended (an exit is told of everybody, `Stream._exits`, and after the process's end)."""


class TaskNames:
    """Names of tasks and owners of mms, learned while a recording goes on."""

    def __init__(self, *, living: bool = True) -> None:
        """Say whether those that are recorded may still be `living`, so that /proc names them."""
        self._living = living
        self.tasks: dict[int, RecordedTask] = {}
        self.mms: dict[int, int] = {}
        """The process of each address space, by its name in the recording (`owners`)."""
        self.owners = Owners()
        self._lives: list[tuple[int, int, int | None]] = []
        """Births (with the parent) and ends of processes that `owners` has not been told yet."""
        self.renamed: set[int] = set()
        """Processes whose first thread has changed its name: they may have called exec."""
        self._guests: dict[int, tuple[int, int]] = {}
        """When a task that vfork made was in its parent's mm: from birth to exec."""
        self._threads: dict[int, set[int]] = {}
        """The threads of each process beside its first."""
        self._ended: dict[int, int] = {}

    def snapshot(self) -> None:
        """Learn every task that exists now."""
        self.know(of_everybody())

    def of(self, pids: Iterable[int]) -> None:
        """Learn the tasks of some processes."""
        for pid in pids:
            self.know(of_process(pid))

    def know(self, tasks: Iterable[RecordedTask]) -> None:
        """Learn tasks that were looked up."""
        for task in tasks:
            self._add(task)

    def look_inside(self) -> None:
        """Learn what those that were born since call themselves, as far as they still live."""
        if not self._living:
            return
        lives = [task for tid, task in self.tasks.items() if tid not in self._ended]
        contained = {pid for pid in {task.pid for task in lives} if is_contained(pid)}
        for task in lives:
            if task.pid in contained and not any(task.inside):
                self.tasks[task.tid] = replace(task, inside=numbers_inside(task.pid, task.tid))

    def _add(self, task: RecordedTask) -> None:
        self.tasks[task.tid] = task
        self._ended.pop(task.tid, None)
        if task.tid != task.pid:
            self._threads.setdefault(task.pid, set()).add(task.tid)

    def learn(self, facts: Iterable[Fact]) -> None:
        """Learn from the kernel's events, given in order of time."""
        for fact in facts:
            if fact.event == _NEW:
                self._born(fact)
                continue
            if fact.event == _RENAMED and self._guests.get(fact.tid, (0, 0))[1] == _NEVER:
                self._guests[fact.tid] = (self._guests[fact.tid][0], fact.time_ns)
            if fact.event == _RENAMED:
                self.renamed.add(fact.tid)
            if fact.tid in self.tasks:
                self._renamed(fact.tid, fact.comm)
            else:
                self._add(RecordedTask(fact.tid, fact.comm, fact.tid, fact.comm))
            if fact.event == _ENDED:
                self._ended[fact.tid] = fact.time_ns
                self._last_thread_ended(fact)

    def _last_thread_ended(self, fact: Fact) -> None:
        pid = self.tasks[fact.tid].pid
        if {pid, *self._threads.get(pid, ())} <= self._ended.keys():
            self._lives.append((fact.time_ns, pid, None))

    def forget(self, before_ns: int) -> None:
        """Forget the tasks that ended before an instant, and the mms of such processes.

        So that a flight recorder that sees a million tasks a day stays small.
        """
        gone = {tid for tid, time_ns in self._ended.items() if time_ns < before_ns}
        for tid in gone:
            task = self.tasks.pop(tid, None)
            self._threads.pop(tid, None)
            self._guests.pop(tid, None)
            del self._ended[tid]
            if task and task.pid in self._threads:
                self._threads[task.pid].discard(tid)
        self.owners.forget(gone)
        for mm in [mm for mm, pid in self.mms.items() if pid in gone]:
            del self.mms[mm]

    def forget_others(self, pids: Collection[int], but: Collection[int]) -> None:
        """Forget all tasks but those of some processes and some others; who is seen is looked up.

        For a watch, which hears nothing of strangers that end, and of the next with their number.
        """
        kept = {tid: task for tid, task in self.tasks.items() if task.pid in pids or tid in but}
        gone, self.tasks = self.tasks.keys() - kept.keys(), kept
        still = {task.pid for task in kept.values()}
        self._threads = {pid: tids for pid, tids in self._threads.items() if pid in still}
        for tid in gone:
            self._guests.pop(tid, None)
            self._ended.pop(tid, None)
        self.owners.forget(gone)

    def _born(self, fact: Fact) -> None:
        parent = self.tasks.get(fact.by)
        if fact.flags & CLONE_VM and not fact.flags & CLONE_THREAD:
            self._guests[fact.tid] = (fact.time_ns, _NEVER)
        # Of a container's children it is asked at once: they may not live for long.
        contained = parent is not None and any(parent.inside)
        pid = parent.pid if fact.flags & CLONE_THREAD and parent else fact.tid
        inside = numbers_inside(pid, fact.tid) if contained and self._living else (0, 0)
        if fact.flags & CLONE_THREAD and parent:
            self._add(RecordedTask(fact.tid, fact.comm, pid, parent.process, inside))
        else:
            self._add(RecordedTask(fact.tid, fact.comm, pid, fact.comm, inside))
            self._lives.append((fact.time_ns, fact.tid, fact.by))

    def _renamed(self, tid: int, comm: str) -> None:
        task = self.tasks[tid]
        if task.comm == comm:
            return
        process = comm if task.pid == tid else task.process
        self.tasks[tid] = replace(task, comm=comm, process=process)
        if task.pid == tid:
            for other in self._threads.get(tid, ()):
                self.tasks[other] = replace(self.tasks[other], process=comm)

    def complete(self, columns: Columns) -> None:
        """Learn whose each mm is, and look up the tasks that no event has named yet.

        `columns` are in order of time and follow those of the call before.
        """
        self._own(columns)
        for tid in np.unique(columns["tid"]).tolist():
            if tid > 0 and tid not in self.tasks and self._living and (task := of_thread(tid)):
                self._add(task)

    def _own(self, columns: Columns) -> None:
        """An mm that a task asks for inside its own munmap (say) is that task's own."""
        story: list[tuple[int, Callable[[], None]]] = []
        owners = self.owners
        for call in calls_of_interest(columns):
            story.append((call[-1], partial(owners.called, *call)))
        for time_ns, pid, parent in self._lives_until(columns):
            if parent is None:
                story.append((time_ns, partial(owners.ended, pid, time_ns)))
            else:
                story.append((time_ns, partial(owners.born, pid, parent, time_ns)))
        for time_ns, tid, mm, op in _asked_inside(columns):
            since_ns, until_ns = self._guests.get(tid, (_NEVER, 0))
            if TRACED_NAMES[op] not in _BORROWED and not since_ns <= time_ns <= until_ns:
                story.append((time_ns, partial(self._owns, tid, mm, time_ns)))
        for _, tell in sorted(story, key=lambda pair: pair[0]):
            tell()

    def owns_since_before(self, pid: int, mm: int) -> None:
        """Learn whose an address space is that was there before the recording began."""
        self.mms.setdefault(self.owners.owns(pid, mm, 0), pid)

    def _owns(self, tid: int, mm: int, time_ns: int) -> None:
        pid = self.tasks[tid].pid if tid in self.tasks else tid
        self.mms.setdefault(self.owners.owns(pid, mm, time_ns), pid)

    def _lives_until(self, columns: Columns) -> list[tuple[int, int, int | None]]:
        """Take the births and ends up to the last of these events."""
        horizon_ns = int(columns["time_ns"].max(initial=0))
        if len(self._lives) > _MANY:
            horizon_ns = _NEVER
        known = [life for life in self._lives if life[0] <= horizon_ns]
        self._lives = [life for life in self._lives if life[0] > horizon_ns]
        return known


def _asked_inside(columns: Columns) -> list[list[int]]:
    """List each (time_ns, tid, mm, op): a task's system call begins with asking for mm's lock.

    Each tid, mm and op once, at its first time.
    """
    rows = np.flatnonzero(columns["kind"] <= EventKind.OP_END)
    tid, kind = columns["tid"][rows], columns["kind"][rows]
    order = np.argsort(tid, kind="stable")
    before, after = order[:-1], order[1:]
    inside = (kind[after] == EventKind.ASKED) & (kind[before] == EventKind.OP_BEGIN)
    inside &= tid[after] == tid[before]
    before, after = rows[before[inside]], rows[after[inside]]
    key = (columns["tid"][after], columns["mm"][after], columns["op"][before])
    keys = np.column_stack([column.astype(np.uint64) for column in key])
    unique, first = np.unique(keys, axis=0, return_index=True)
    times = columns["time_ns"][after][first].astype(np.uint64)
    rows_of: list[list[int]] = np.column_stack([times, unique]).tolist()
    return sorted(rows_of)
