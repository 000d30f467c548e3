"""From chunks of pages to one stream of events in order of time, named and narrowed to the target.

The buffers of two CPUs are never read at the same instant, so what a drain brings is only complete
up to the moment when it began; newer events wait for the next drain. What comes out of `feed` is
therefore in order, and complete up to its end: a consumer may take it as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from zaplock.recorder.beginning import Beginning
from zaplock.recorder.buffers import Chunk
from zaplock.recorder.decode import Columns, Decoder, Fact, merged, nothing
from zaplock.recorder.graph_calls import GraphCalls
from zaplock.recorder.initial_rows import Endings, rows
from zaplock.recorder.layouts import Layouts
from zaplock.recorder.meanings import NAMING
from zaplock.recorder.naming import CLONE_THREAD, TaskNames
from zaplock.recorder.rwsem_calls import Pairing
from zaplock.system_calls import CLONES, FOREIGN, TRACED_NAMES
from zaplock.trace.events import EVENT, EventKind, FoundTask

MARGIN_NS = 1_000_000
"""So much before a drain began its events are surely complete."""
_USER_END = 1 << 62
"""Beyond every user address: a program may pass any number, and the kernel refuses it."""
_MANY = 10_000
_PAGES = 2048
"""How many pages are decoded at once: enough for numpy, few enough for the cache."""

_CLONE_OPS = [TRACED_NAMES.index(name) for name in sorted(CLONES)]
_BRK = TRACED_NAMES.index("brk")
_FOREIGN_OPS = [TRACED_NAMES.index(name) for name in FOREIGN]
_EXEC_OPS = [TRACED_NAMES.index(name) for name in ("execve", "execveat")]
_EXIT, _EXIT_GROUP = TRACED_NAMES.index("exit"), TRACED_NAMES.index("exit_group")


class Stream:
    """Decode, order, name and narrow what the buffers give.

    `pids` keeps the lock events of the mms that these processes (and, with `children`, their
    offspring) are known or turn out to own; without them everything is kept. `semaphores` are the
    address spaces' among those that probes tell of; it grows as more are found. `graph` makes
    lock events where function_graph tells of calls.
    """

    def __init__(
        self,
        layouts: Layouts,
        names: TaskNames,
        *,
        pids: Iterable[int] = (),
        children: bool = False,
        semaphores: set[int] | None = None,
        graph: GraphCalls | None = None,
    ) -> None:
        self.names = names
        self.pids = set(pids)
        self.operations = list(TRACED_NAMES)
        """What the column `op` counts: the recorded system calls, and what a look found."""
        self.found: tuple[FoundTask, ...] = ()
        """What was already so when the recording began."""
        self.looked_at_all = True
        """Whether there was time to look at every process for what was already so."""
        self._beginning: Beginning | None = None
        self._endings = Endings()
        self._hidden: list[int] = []
        self._on_ns, self._off_ns = 0, 1 << 62
        self._decoder = Decoder(layouts)
        probed = self._decoder.sees_probes
        self.probes = Pairing(semaphores if semaphores is not None else set()) if probed else None
        """What pairs the events of probes on the rwsem's functions, where they are recorded."""
        self._graph = graph
        self._page_size = layouts.page.page_size
        self._children = children
        self._held = nothing()
        self._brk: dict[int, int] = {}
        self._exiting: set[int] = set()
        """Tasks that called exit or exit_group and have not ended yet."""
        self._execs: dict[int, tuple[int, int]] = {}
        """Which exec a task was last seen to begin, and when; 0 after its end."""

    def begin(self, beginning: Beginning) -> None:
        """Begin with what a look found."""
        self._beginning = beginning
        self.looked_at_all = beginning.look.whole
        self._on_ns = beginning.on_ns
        self._hidden = list(beginning.hidden)
        for pid, mm in beginning.mms.items():
            self.names.owns_since_before(pid, mm)

    @property
    def begun(self) -> bool:
        """Whether it is settled what was already so (`found`); so it is where nobody looked."""
        return self._beginning is None

    def feed(self, chunks: list[Chunk], before_ns: int) -> Columns:
        """Take the chunks of a drain that began at `before_ns`; give what is complete by now."""
        if not chunks and self.begun and not len(self._held["time_ns"]):
            return self._held
        parts: list[Columns] = [self._held]
        facts: list[Fact] = []
        for cpu, pages in _joined(chunks):
            for start in range(0, len(pages), _PAGES * self._page_size):
                decoded = self._decoder.decode(pages[start : start + _PAGES * self._page_size], cpu)
                parts.append(decoded.columns)
                facts += decoded.facts
        facts.sort(key=lambda fact: fact.time_ns)
        columns = merged(parts)
        columns = self._within(merged([columns, self._exits(columns, facts)]))
        self._learn(facts)
        ready = int(np.searchsorted(columns["time_ns"], before_ns - MARGIN_NS))
        if self._beginning and self._beginning.looked_ns > before_ns - MARGIN_NS:
            self._held = columns  # what was so at the beginning isn't settled before the look ended
            return nothing()
        self._held = {name: column[ready:] for name, column in columns.items()}
        return self._finished({name: column[:ready] for name, column in columns.items()})

    def _within(self, columns: Columns) -> Columns:
        """Keep what was recorded while every instance was on."""
        first, last = np.searchsorted(columns["time_ns"], [self._on_ns, self._off_ns + 1])
        if first == 0 and last == len(columns["time_ns"]):
            return columns
        lost = columns["kind"] == EventKind.LOST
        lost[first:last] = True
        return {name: column[lost] for name, column in columns.items()}

    def rest(self) -> Columns:
        """Give what was still held back; nothing comes after it."""
        held, self._held = self._within(self._held), nothing()
        return self._finished(held)

    def _exits(self, columns: Columns, facts: list[Fact]) -> Columns:
        """Tell the exit of tasks that never called it: another thread or a signal ended them.

        From 6.16 on a task tells its end before it takes its address space down, which is what it
        holds the lock for. Where another thread's exec ends the first thread of a process, that
        other one goes on under the first one's number, and takes the old address space down.
        """
        calls = (columns["kind"] == EventKind.OP_BEGIN) & np.isin(
            columns["op"], [_EXIT, _EXIT_GROUP]
        )
        self._exiting.update(columns["tid"][calls].tolist())
        ended = [fact for fact in facts if fact.event == NAMING[2]]
        killed = [fact for fact in ended if fact.tid not in self._exiting]
        self._exiting.difference_update(fact.tid for fact in ended)
        execs = {**self._execs, **_execs_in(columns)} if killed else {}
        rows = list[tuple[int, int, int, int]]()
        for fact in killed:
            by, op = self._exec_of_another(fact, execs)
            if by:
                rows.append((fact.time_ns, by, EventKind.OP_END, op))
            rows.append((fact.time_ns, fact.tid, EventKind.OP_BEGIN, op))
        made: Columns = {name: np.zeros(len(rows), EVENT[name]) for name in EVENT.names or ()}
        for place, name in enumerate(("time_ns", "tid", "kind", "op")):
            made[name][:] = [row[place] for row in rows]
        made["cpu"][:] = -1
        return made

    def _exec_of_another(self, end: Fact, execs: Mapping[int, tuple[int, int]]) -> tuple[int, int]:
        """Return the thread whose exec ended this first thread of a process, and its operation.

        Where there is none, 0 and `exit`.
        """
        tasks = self.names.tasks
        for tid, (op, since_ns) in execs.items():
            mate = tid != end.tid and tid in tasks and tasks[tid].pid == end.tid
            if mate and 0 < since_ns < end.time_ns:
                return tid, op
        return 0, _EXIT

    def _learn(self, facts: list[Fact]) -> None:
        self.names.learn(facts)
        for fact in facts if self._children else ():
            if fact.event == NAMING[0] and not fact.flags & CLONE_THREAD:
                parent = self.names.tasks.get(fact.by)
                if parent and parent.pid in self.pids:
                    self.pids.add(fact.tid)

    def _finished(self, columns: Columns) -> Columns:
        under_way = {**self._execs, **_execs_in(columns)}
        self._execs = {tid: exec_ for tid, exec_ in under_way.items() if exec_[1]}
        if self.probes:
            columns = self.probes.paired(columns)
        if self._graph:
            columns = self._graph.paired(columns)
        self.names.complete(columns)
        columns = self.names.owners.renamed(_once(columns), self.names.tasks)
        columns = self._without_ours(self._with_brk(self._narrowed(columns)))
        return self._endings.added(self._begun(columns))

    def _without_ours(self, columns: Columns) -> Columns:
        """Leave out what our own read of the target did, which may still wait for its lock."""
        ours = np.isin(columns["tid"], np.array(self._hidden, np.int32))
        if not ours.any():
            return columns
        return {name: column[~ours] for name, column in columns.items()}

    def _begun(self, columns: Columns) -> Columns:
        """Put what was already so before the first events."""
        if self._beginning is None:
            return columns
        early = columns["time_ns"] <= self._beginning.looked_ns
        first = {name: col[early] for name, col in columns.items()}
        found, calls = self._beginning.found(first), self._beginning.in_calls(first)
        self.found = (*found, *(task for task in calls if task.mm))
        looked = (*found, *calls)
        self._beginning = None
        known = self._recorded(looked) & self.names.tasks.keys()
        calling = dict.fromkeys(known, self._on_ns)
        begun = rows(looked, self.operations, calling=calling)
        self._expect_ends()
        return merged([begun, columns])

    def end(self, off_ns: int) -> None:
        """Leave out what comes after this instant: not every instance recorded it."""
        self._off_ns = off_ns

    def resume(self, found: tuple[FoundTask, ...], hidden: Iterable[int]) -> None:
        """Go on where a watch has begun: with what it found, whose rows it has made."""
        self.found = found
        self._hidden = list(hidden)
        self._expect_ends()

    def _recorded(self, found: Iterable[FoundTask]) -> set[int]:
        """Return those of the found tasks whose calls are recorded."""
        everybody = not self.pids
        return {
            task.tid
            for task in found
            if self._decoder.sees_calls and (everybody or self._is_ours(task.tid))
        }

    def _expect_ends(self) -> None:
        self._endings.expect(self.found, self._recorded(self.found), self.operations)

    def _narrowed(self, columns: Columns) -> Columns:
        """Keep the locks of the target's mms with all who ask for them, and the target's calls."""
        if not self.pids:
            return columns
        keep = columns["kind"] == EventKind.LOST
        locks = columns["kind"] <= EventKind.RELEASED
        ours = [tid for tid in np.unique(columns["tid"]).tolist() if self._is_ours(tid)]
        is_ours = np.isin(columns["tid"], np.array(ours, np.int32))
        # Also where the kernel filters by mm: another process may get its memory after its end.
        own = [mm for mm, pid in self.names.mms.items() if pid in self.pids]
        locks &= np.isin(columns["mm"], np.array(own, dtype=np.uint64))
        keep |= locks | (is_ours & (columns["kind"] > EventKind.RELEASED))
        # What a foreign waiter waits for is of interest, and the calls that are about others.
        waiting = columns["kind"] >= EventKind.SCHED_OUT
        waiting |= np.isin(columns["op"], _FOREIGN_OPS)
        keep |= waiting & np.isin(columns["tid"], columns["tid"][locks])
        return columns if keep.all() else {name: col[keep] for name, col in columns.items()}

    def keeps(self, pid: int) -> bool:
        """Say whether a process is (of) the target; every one is, where there is no target."""
        return not self.pids or pid in self.pids

    def _is_ours(self, tid: int) -> bool:
        task = self.names.tasks.get(tid)
        return task is None or task.pid in self.pids

    def _with_brk(self, columns: Columns) -> Columns:
        """Give brk a range: the kernel is told the new end of the heap, not how far it moves.

        `detail` is the distance (negative where the heap shrinks), `length` its size; 0 for a
        process's first brk, whose old end nobody has seen.
        """
        if len(self._brk) > _MANY:
            self._brk = {pid: end for pid, end in self._brk.items() if pid in self.names.tasks}
        for row in np.flatnonzero(columns["op"] == _BRK).tolist():
            tid = int(columns["tid"][row])
            pid = self.names.tasks[tid].pid if tid in self.names.tasks else tid
            if columns["kind"][row] == EventKind.OP_END:
                self._brk[pid] = int(columns["result"][row])
            elif 0 < (address := int(columns["address"][row])) < _USER_END and pid in self._brk:
                moved = address - self._brk[pid]
                columns["detail"][row], columns["length"][row] = moved, abs(moved)
        return columns


def _execs_in(columns: Columns) -> dict[int, tuple[int, int]]:
    """Return which exec each task began last, and when; 0 where that is over."""
    chosen = np.flatnonzero(np.isin(columns["op"], _EXEC_OPS))
    names = ("tid", "op", "kind", "time_ns")
    return {
        tid: (op, time_ns if kind == EventKind.OP_BEGIN else 0)
        for tid, op, kind, time_ns in zip(*(columns[name][chosen].tolist() for name in names))
    }


def _joined(chunks: list[Chunk]) -> list[Chunk]:
    """Join the chunks of each CPU: the more pages at once, the cheaper each is."""
    by_cpu: dict[int, list[bytes]] = {}
    for cpu, pages in chunks:
        by_cpu.setdefault(cpu, []).append(pages)
    return [(cpu, b"".join(pages)) for cpu, pages in by_cpu.items()]


def _once(columns: Columns) -> Columns:
    """Leave out the second return of fork and clone: the new task's, which never called."""
    twice = (columns["kind"] == EventKind.OP_END) & (columns["result"] == 0)
    twice &= np.isin(columns["op"], _CLONE_OPS)
    if not twice.any():
        return columns
    return {name: column[~twice] for name, column in columns.items()}
