"""One set of targets, watched: on trouble some seconds of everything are recorded into the spool.

All targets share one set of buffers, in two trace instances. While nothing happens only the
contention of the targets' locks is let in, which costs nothing.

Every wait in the queue is counted, those of the recorded seconds as well: from their pages the
contention and the names are taken here, the rest is the child's. A wait that goes on is recorded
again when it has lasted twice as long, so a hang of minutes doesn't use up the hour's budget.

Events that the kernel lost and tracing that others switched off are a figure and a line of the log.
Losses are counted by the kernel's own word, whether they were of a recording or not.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock.agent import spool
from zaplock.agent.blocked_tracing import told_if_blocked
from zaplock.agent.settings import SECOND, clock_offset_ns
from zaplock.agent.spool import Trouble
from zaplock.recorder.buffers import Chunk, per_cpu
from zaplock.recorder.capture import Capture
from zaplock.recorder.decode import Columns, Decoder, merged, nothing
from zaplock.recorder.flight_limits import Fired
from zaplock.recorder.initial_look import first_look
from zaplock.recorder.meanings import CONTENTION, RENAMED
from zaplock.recorder.meddling import Guard
from zaplock.recorder.naming import TaskNames
from zaplock.recorder.scheduling import going_first
from zaplock.recorder.snapshot import look
from zaplock.recorder.spool import EntryKind, SpoolWriter
from zaplock.recorder.spooled import Begun, Ended, NotedGap, noticed_wait, packed, this_boot
from zaplock.recorder.stream import MARGIN_NS, Stream
from zaplock.recorder.tracefs import start_time
from zaplock.recorder.watch import (
    MEMORY_NS,
    Lasted,
    Noticed,
    WatchedQueue,
    noticed,
    of_locks,
    rest,
)
from zaplock.trace.events import EventKind, FoundTask
from zaplock.trace.manifest import Manifest
from zaplock.trace.new_recording import begin_anywhere
from zaplock.untrusted_names import read_text, visible
from zaplock.version import __version__

if TYPE_CHECKING:
    from zaplock.agent.main_loop import Agent

_IDLE_MS = 1_000
_LOOK_AFTER_NS = SECOND
_CHECK_NS = 5 * SECOND
"""Whether anything was lost or meddled with is asked so often while nothing happens."""


def unit_of(pid: int) -> str:
    """Name the unit of a process: the last part of its cgroup's path, "root" for none."""
    try:
        lines = read_text(f"/proc/{pid}/cgroup").splitlines()
    except OSError:
        return "unknown"
    paths = [line.partition("::")[2] for line in lines if "::" in line]
    names = [name for path in paths for name in path.split("/") if name]
    return visible(names[-1]) if names else "root"


class Watching:
    """One set of targets, watched."""

    def __init__(self, agent: Agent, capture: Capture, pids: tuple[int, ...]) -> None:
        self._agent, self._capture, self._pids = agent, capture, pids
        self._names = TaskNames()
        self._mms = {one.mm: pid for pid, one in capture.learned.items()}
        self._units = {pid: unit_of(pid) for pid in pids}
        self._lost = 0
        light = tuple(one for one in capture.layouts.events if one.event in (RENAMED, *CONTENTION))
        self._light = Decoder(replace(capture.layouts, events=light))
        self._meanwhile: list[Columns] = []
        """The contention of the recorded seconds."""
        self._queues = {mm: WatchedQueue() for mm in self._mms}
        self._begun = {pid: start_time(pid) for pid in pids}
        self._looked_ns = self._checked_ns = self._scanned_ns = time.monotonic_ns()

    def run(self) -> None:
        """Watch until others are to be watched, or the agent ends."""
        with told_if_blocked(self._pids, self._agent.say):
            self._capture.start()
        self._names.of(self._pids)
        self._names.mms.update(self._mms)
        self._guard = Guard(self._capture.instances)
        self._agent.metrics.targets.set(len(self._pids))
        self._agent.metrics.begin(self._units.values())
        self._agent.metrics.buffers.set(_buffer_bytes(self._capture))
        while trouble := self._next_trouble():
            self._record(*trouble)
        self._tell_losses()

    def _next_trouble(self) -> tuple[Noticed, tuple[FoundTask, ...]] | None:
        """Watch until a trouble is to be recorded and all events are on; None: it is time to end.

        Gives who had the lock as well. On a busy machine a stall is over before an ordinary task
        gets its turn; this one does little, so it goes first.
        """
        with going_first():
            self._stream = Stream(self._capture.layouts, self._names)
            self._look_round()
            while fired := self._until_trouble():
                if seen := self._seen(fired):
                    return seen
        return None

    def _go_on(self) -> bool:
        return not self._agent.ended() and not self._stale()

    def _stale(self) -> bool:
        """Say whether the targets have changed: looked for now and then, or after an exec."""
        if self._names.renamed & set(self._pids):
            return True
        now_ns = time.monotonic_ns()
        if now_ns - self._scanned_ns < self._agent.settings.rescan_ns:
            return False
        self._scanned_ns = now_ns
        reused = any(start_time(pid) != begun for pid, begun in self._begun.items())
        return reused or self._agent.changed(self._pids)

    def _until_trouble(self) -> Fired | None:
        """Follow the contention events until a wait is too long; None where it is time to end."""
        limit_ns = self._agent.settings.limit_ns
        while self._go_on():
            now_ns = time.monotonic_ns()
            columns = self._stream.feed(self._capture.buffers.drain(), now_ns)
            if (columns["kind"] == EventKind.LOST).any():
                self._look_round()  # the end of a wait may be among them
            by_lock, known_ns, late = of_locks(columns, self._mms), now_ns - MARGIN_NS, []
            for mm, queue in self._queues.items():
                if fired := queue.late(by_lock.get(mm, nothing()), known_ns, limit_ns, mm):
                    late.append(fired)
                self._count(mm, queue.ended)
            self._look_after(now_ns)
            if late:
                return max(late, key=lambda fired: fired.lasted_ns)
            due_ns = min(queue.due_ns(limit_ns) for queue in self._queues.values()) + MARGIN_NS
            rest(self._capture.buffers, due_ns, limit_ns, _IDLE_MS)
        return None

    def _look_round(self) -> None:
        """See who waits; where no event has told since when, that is taken from the look."""
        # Where that isn't known it is now, not when the watch began: that may be long ago.
        look = replace(first_look(self._capture), on_ns=time.monotonic_ns())
        found = look.found(nothing())
        for mm, queue in self._queues.items():
            queue.begin_with(task for task in found if task.mm == mm)

    def _count(self, mm: int, ended: list[Lasted]) -> None:
        """Count the waits for a lock that ended."""
        unit = self._units[self._mms[mm]]
        for one in ended:
            task = self._names.tasks.get(one.queued.tid)
            name = (task.process or task.comm) if task else "not known"
            self._agent.metrics.show_queued(unit, name, one.lasted_ns)

    def _look_after(self, now_ns: int) -> None:
        """Once a second see to the agent's other duties; now and then to what was lost, meddled
        with, or is to be forgotten."""
        if now_ns - self._looked_ns < _LOOK_AFTER_NS:
            return
        self._looked_ns = now_ns
        self._agent.look_after()
        if now_ns - self._checked_ns < _CHECK_NS:
            return
        self._checked_ns = now_ns
        self._tell_losses()
        self._check_tracing()
        self._names.renamed &= set(self._pids)
        self._names.forget(now_ns - MEMORY_NS)
        self._names.forget_others(self._pids, set().union(*(
            queue.waiting for queue in self._queues.values())))  # fmt: skip

    def _tell_losses(self) -> int:
        """Count and tell the events that were lost since it was last asked; return how many."""
        before, self._lost = self._lost, self._capture.lost_in_kernel()
        lost = max(0, self._lost - before)
        if lost:
            self._agent.metrics.lost.inc(lost)
            self._agent.say("events lost", count=lost)
        return lost

    def _check_tracing(self) -> tuple[int, int] | None:
        """Tell whether somebody else has changed the tracing; return the gap (ns) that it left."""
        gap = self._guard.check()
        if gap:
            self._agent.metrics.meddled.inc()
            self._agent.say("meddled with", what=self._guard.notes[-1])
        return gap

    def _seen(self, fired: Fired) -> tuple[Noticed, tuple[FoundTask, ...]] | None:
        """Look who has the lock, and switch everything on; None where it is not to be recorded."""
        agent, now_ns = self._agent, time.monotonic_ns()
        # Events come on in some ms, on a busy machine in hundreds: the stall may be over by then.
        queue = self._queues[fired.mm]
        guessed = fired.tid in queue.found
        looked = [one.task for one in look([self._mms[fired.mm]], foreign=guessed).seen]
        if not queue.confirms(fired, looked):
            return None
        self._queues[fired.mm].tell(now_ns)
        if not agent.may_record(now_ns):
            agent.metrics.unrecorded.labels("budget").inc()
            agent.say("not recorded", why="the hour's budget is used up", wait_ns=fired.lasted_ns,
                      unit=self._units.get(self._mms.get(fired.mm, 0), "unknown"))  # fmt: skip
            return None
        holders = tuple(task for task in looked if task.does == "holds")
        stream = self._stream
        with told_if_blocked(self._pids, agent.say):
            seen = noticed(self._capture, stream, self._queues, fired, stream.operations)
        return seen, holders

    def _record(self, seen: Noticed, holders: tuple[FoundTask, ...]) -> None:
        """Record some seconds of everything about the targets, into the spool."""
        agent = self._agent
        self._names.snapshot()
        for mm, queue in self._queues.items():
            self._count(mm, queue.ended)
        self._guard.expect()
        self._tell_losses()
        began = agent.begin_spool()
        try:
            if began:
                self._keep(seen, holders, began)
        finally:
            with told_if_blocked(self._pids, agent.say):
                self._capture.narrow()
            self._guard.expect()
            for chunk in self._capture.buffers.pieces():
                self._follow(chunk)
            self._take_meanwhile(time.monotonic_ns())

    def _keep(self, seen: Noticed, holders: tuple[FoundTask, ...], folder: Path) -> None:
        agent, offset_ns = self._agent, clock_offset_ns()
        try:
            manifest = self._manifest(seen, offset_ns)
            with begin_anywhere(spool.recording_in(folder), manifest) as recording:
                pages = SpoolWriter(recording)
                try:
                    self._spool_all(pages, seen)
                finally:
                    pages.close()
            fired = seen.fired
            pid = self._names.mms.get(fired.mm, 0)
            units = dict(self._units)
            spool.finish(folder, Trouble(fired, pid, units, offset_ns, holders))
        except OSError as error:
            spool.discard(folder)
            agent.not_recorded(error)

    def _manifest(self, seen: Noticed, offset_ns: int) -> Manifest:
        kernel = os.uname()
        at = datetime.fromtimestamp((seen.on_ns + offset_ns) / 1e9, UTC)
        return Manifest(
            kernel=kernel.release,
            host=kernel.nodename,
            cpus=os.cpu_count() or 0,
            target=", ".join(sorted(set(self._units.values()))),
            enabled=tuple(layout.event for layout in self._capture.layouts.events),
            operations=tuple(self._stream.operations),
            started_at=at.isoformat(timespec="seconds"),
            started_ns=seen.on_ns,
            zaplock=__version__,
        )

    def _spool_all(self, pages: SpoolWriter, seen: Noticed) -> None:
        """Spool what is known by now, and what comes in the seconds that are recorded."""
        capture, agent = self._capture, self._agent
        begun = Begun(
            layouts=capture.layouts,
            pids=tuple(self._units),
            children=False,
            mms=self._names.mms,
            semaphores=(),
            on_ns=seen.on_ns,
            boot=this_boot(),
        )
        pages.head(EntryKind.BEGUN, packed(begun))
        pages.head(EntryKind.TASKS, packed(tuple(self._names.tasks.values())))
        pages.add(EntryKind.NOTICED, packed(noticed_wait(seen, self._stream.operations)))
        end_ns = time.monotonic_ns() + agent.settings.after_ns
        with going_first():  # or the buffers run over on a busy machine
            while (now_ns := time.monotonic_ns()) < end_ns and not agent.ended():
                capture.buffers.wait(min(100, (end_ns - now_ns) // 1_000_000 + 1))
                self._spool(pages)
                if gap := self._check_tracing():
                    noted = NotedGap(*gap, self._guard.notes[-1])
                    pages.add(EntryKind.GAP, packed(noted))
            ended_ns = time.monotonic_ns()
            pages.add(EntryKind.OFF, time_ns=ended_ns)
            self._spool(pages)
        pages.add(EntryKind.ENDED, packed(Ended(ended_ns, self._tell_losses())))

    def _spool(self, pages: SpoolWriter) -> None:
        """Move what the buffers hold to the spool."""
        before_ns = time.monotonic_ns()
        for chunk in self._capture.buffers.pieces():  # one by one: this process is to stay small
            pages.add(EntryKind.PAGES, chunk[1], chunk[0])
            self._follow(chunk)
        pages.drained(before_ns)

    def _follow(self, chunk: Chunk) -> None:
        """Take what the watch itself needs of pages that are otherwise for the child to read."""
        cpu, pages = chunk
        decoded = self._light.decode(pages, cpu)
        self._names.renamed.update(fact.tid for fact in decoded.facts)
        if len(decoded.columns["time_ns"]):
            self._meanwhile.append(decoded.columns)

    def _take_meanwhile(self, now_ns: int) -> None:
        """Count the waits that ended in the recorded seconds; those that go on are told now."""
        columns = merged(self._meanwhile) if self._meanwhile else nothing()
        self._names.complete(columns)
        by_lock, self._meanwhile = of_locks(columns, self._mms), []
        for mm, queue in self._queues.items():
            self._count(mm, queue.take(by_lock.get(mm, nothing())))
            queue.tell(now_ns)


def _buffer_bytes(capture: Capture) -> int:
    """Add up what the kernel says that the buffers take."""
    total = 0
    for instance in capture.instances:
        for _, cpu in per_cpu(instance.path):
            try:
                total += int((cpu / "buffer_size_kb").read_text().split()[0]) << 10
            except (OSError, ValueError):  # a CPU that was never there
                continue
    return total
