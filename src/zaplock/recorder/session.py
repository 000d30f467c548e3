"""Record to a file: one thread empties the kernel's buffers, this one decodes and writes.

See `feeder` for what stands between the two, so that a slow writer loses nothing.

A block is written every second at first and at longer intervals (to ten seconds) as the recording
grows, or when it has a million events; so a recorder that is killed loses at most that.

The flight recorder deletes blocks that are older than `keep_ns`, until its trigger fires. With
`Options.watch` nothing is recorded until a wait of `wait_ns` is noticed (`watch`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock.errors import UserError
from zaplock.recorder.buffers import Chunk
from zaplock.recorder.capture import Capture
from zaplock.recorder.capturing import capturing
from zaplock.recorder.decode import Columns, merged, nothing
from zaplock.recorder.feeder import Feeder
from zaplock.recorder.flight import Fired, Trigger
from zaplock.recorder.initial_look import first_look
from zaplock.recorder.initial_rows import still_open
from zaplock.recorder.instances_ahead import Ahead
from zaplock.recorder.meddling import Guard
from zaplock.recorder.naming import TaskNames
from zaplock.recorder.options import Options
from zaplock.recorder.quota_watch import QuotaWatch
from zaplock.recorder.scheduling import going_first
from zaplock.recorder.snapshot import NOT_WHOLE
from zaplock.recorder.stack_keeper import StackKeeper
from zaplock.recorder.stream import MARGIN_NS, Stream
from zaplock.recorder.symbols import kernel_functions
from zaplock.recorder.uninterrupted import surely
from zaplock.recorder.watch import watch
from zaplock.system_calls import TRACED_NAMES
from zaplock.trace.events import EventKind, Events, FoundTask
from zaplock.trace.gaps import losses, untold_losses
from zaplock.trace.kernel_functions import HALTED, UNANSWERED
from zaplock.trace.manifest import Manifest
from zaplock.version import __version__

if TYPE_CHECKING:
    from zaplock.trace.recording_writer import Writer

_NICE = 10
SCHED = "sched"
_BLOCK_EVENTS = 1_000_000
_LITTLE = 4 << 20
"""What is written in a moment, for which we go before others."""
_SETTLING_MS = 2
_WORTH_NS = 10_000_000
"""What is told at once has been so for this long; locks are asked for all the time."""
_SECOND = 1_000_000_000
_SHORTLY_NS = 10 * _SECOND
_END_OF_TIME = 1 << 62


@dataclass(frozen=True, slots=True)
class Flight:
    """When to stop: a hold or wait of that length; what to keep before and record after it."""

    hold_ns: int = 0
    wait_ns: int = 0
    keep_ns: int = 10 * _SECOND
    after_ns: int = _SECOND


@dataclass
class RecordingProgress:
    """How far a recording is. The same object is passed to `report` each time."""

    seconds: float = 0.0
    events: int = 0
    lost_events: int = 0
    waiting_bytes: int = 0
    """Pages that were recorded but not yet decoded, after the end of the recording."""
    fired: Fired | None = None
    notes: list[str] = field(default_factory=list)


Found = Callable[[Events, tuple[int, int]], None]


def record_to(
    path: str | os.PathLike[str],
    options: Options,
    *,
    ended: Callable[[], bool],
    duration_ns: int | None = None,
    flight: Flight | None = None,
    ahead: Ahead | None = None,
    started: Callable[[], None] = lambda: None,
    found: Found = lambda events, span: None,
    report: Callable[[RecordingProgress], None] = lambda progress: None,
    command_line: tuple[str, ...] = (),
    target: str = "everybody",
    hash_pointers: bool = False,
) -> RecordingProgress:
    """Record until `ended()` says so (asked about twenty times a second) or the trigger fires.

    It ends `duration_ns` after events came on, too. `ahead` are instances to be taken.

    `started` is called when events are recorded and there is a place for them. `found` is called at
    once where somebody was found to wait for a lock or to have one since 10 ms or more, with what
    was found (`Events.found`, the names) and from when until when was recorded so far.

    Raises UserError where the kernel, the rights or the target don't allow it, the place is taken
    or the disk is full; whatever happens, tracing is off afterwards and the file whole up to its
    last block.
    """
    if options.watch and (len(options.pids) != 1 or options.children):
        raise UserError("one process at a time can be watched: give -p PID, without --children")
    progress = RecordingProgress()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        first.enter_context(going_first())
        capture = stack.enter_context(capturing(options, ahead))
        manifest = _manifest(options, capture, command_line, target)
        session = _Session(capture, options, duration_ns, flight, progress, found)
        session.begin()
        # What writes Parquet takes its time to import: events come in meanwhile.
        from zaplock.trace.recording_writer import Writer

        writer = Writer(path, manifest, hash_pointers=hash_pointers)
        try:
            session.write_to(writer)
            first.close()
            session.run(started, ended, report)
        except UserError:
            writer.remove()  # nothing was recorded: the command could not be run
            raise
        except OSError as error:
            raise UserError(_disk_trouble(Path(path), error)) from None
        finally:
            session.discard()
    return progress


class _Session:
    def __init__(
        self,
        capture: Capture,
        options: Options,
        duration_ns: int | None,
        flight: Flight | None,
        progress: RecordingProgress,
        tell: Found,
    ) -> None:
        self._capture = capture
        self._options = options
        self._flight = flight
        self._progress = progress
        self._tell = tell
        self._names = TaskNames()
        self._stream = Stream(
            capture.layouts,
            self._names,
            pids=capture.pids,
            children=options.children,
            semaphores=capture.semaphores,
        )
        self._names.mms.update({one.mm: pid for pid, one in capture.learned.items()})
        self._trigger = Trigger(
            hold_ns=flight.hold_ns if flight else 0, wait_ns=flight.wait_ns if flight else 0
        )
        self._limit_ns = flight.wait_ns if flight else 0
        self._guard = Guard(capture.instances, capture.locks)
        sampler = capture.sampler
        self._keeper = StackKeeper(sampler, self._stream.keeps) if sampler else None
        self._quotas = QuotaWatch(lambda: list(self._stream.pids))
        self._complete_ns = 0
        """Up to here all events have been taken."""
        self._open = nothing()
        """What was not over when the oldest block that is kept began."""
        self._ends: deque[tuple[int, Columns]] = deque()
        """When each block that is kept ended, and what was not over then."""
        self._told: tuple[FoundTask, ...] = ()
        self._block: list[Columns] = []
        self._block_events = 0
        self._began = time.monotonic()
        self._wrote = self._began
        self._duration_ns = duration_ns
        self._stop_at_ns: int | None = None
        """When it is over, where that is known."""
        self._ended_at: int | None = None
        self._lost = 0
        """What the kernel counts as lost."""

    def begin(self) -> None:
        """Let events in, look at what is so already, and tell it."""
        self._progress.notes += self._capture.notes
        if self._keeper and self._options.stacks:
            self._keeper.code.snapshot(self._capture.pids)
        self._capture.start()
        self._began = self._capture.on_ns / _SECOND
        if self._duration_ns is not None:
            self._stop_at_ns = self._capture.on_ns + self._duration_ns
        self._guard.expect()
        if self._options.watch:
            self._names.of(self._capture.pids)
            return
        self._stream.begin(first_look(self._capture))
        self._progress.notes += [] if self._stream.looked_at_all else [NOT_WHOLE]
        self._names.snapshot()
        self._settle()

    def _settle(self) -> None:
        """Take the first events, which may know better than the look, and tell what is left."""
        while not self._stream.begun:
            self._capture.buffers.wait(_SETTLING_MS)
            before_ns = time.monotonic_ns()
            self._add(self._stream.feed(self._capture.buffers.drain(), before_ns))
        self._tell_what_was_found(self._capture.on_ns)

    def _tell_what_was_found(self, on_ns: int) -> None:
        found, names = self._stream.found, self._names
        if any(_is_trouble(task, on_ns) for task in found):
            operations = tuple(self._stream.operations)
            events = Events(nothing(), operations, dict(names.tasks), dict(names.mms), found)
            self._tell(events, (on_ns, time.monotonic_ns()))

    def write_to(self, writer: Writer) -> None:
        """Take what this is written to; before `run`."""
        self._writer = writer
        self._feeder = Feeder(self._capture.buffers, writer.folder)
        if not self._options.watch:
            writer.change(started_ns=self._capture.on_ns)

    def run(
        self,
        started: Callable[[], None],
        ended: Callable[[], bool],
        report: Callable[[RecordingProgress], None],
    ) -> None:
        """Record until it is over, and write what was recorded."""
        try:
            started()
            if self._options.watch:
                self._wait_for_a_wait(ended, report)
                self._guard.expect()
            if SCHED in self._options.groups:
                self._quotas.start()
            self._feeder.start()
            self._read_names()
            with contextlib.nullcontext() if self._ends_shortly() else _stepping_aside():
                while not (ended() or self._is_over()):
                    if drained := self._feeder.next(self._stop_at_ns):
                        self._take(*drained)
                    self._follow_exec()
                    self._look_after()
                    report(self._progress)
            self._look_after(now=True)
        finally:
            surely(self._stop)
        with going_first():
            self._lost = self._capture.lost_in_kernel()
            self._capture.clear()
        self._ended_at = self._capture.off_ns or time.monotonic_ns()
        self._progress.seconds = self._ended_at / _SECOND - self._began
        self._stream.end(self._ended_at)
        with going_first() if self._feeder.waiting_bytes < _LITTLE else contextlib.nullcontext():
            self._write_the_rest(report)
        report(self._progress)

    def _write_the_rest(self, report: Callable[[RecordingProgress], None]) -> None:
        self._take_the_rest(report)
        self._add(self._stream.rest())
        self._names.look_inside()
        told = self._progress.lost_events
        self._add(untold_losses(self._lost, told, self._ended_at or 0))
        self._flush()
        self._writer.append(self._open)
        self._name_frames()
        self._writer.write_quotas(*self._quotas.rows())
        self._writer.change(ended_ns=self._ended_at, notes=tuple(self._progress.notes))
        self._writer.close()

    def _stop(self) -> None:
        with going_first():
            self._capture.stop()
            self._quotas.stop()
            self._feeder.stop()

    def _wait_for_a_wait(
        self, ended: Callable[[], bool], report: Callable[[RecordingProgress], None]
    ) -> None:
        """Let the detector look; what it notices is the recording's beginning."""

        def over() -> bool:
            self._progress.seconds = time.monotonic() - self._began
            report(self._progress)
            return ended() or self._is_over()

        with going_first():  # it does little, and on a busy machine a stall is soon over
            operations = self._stream.operations
            noticed = watch(self._capture, self._names, self._limit_ns, over, operations)
        if noticed:
            self._names.snapshot()
            self._fire(noticed.fired)
            self._began = time.monotonic()
            self._writer.change(started_ns=noticed.on_ns)
            self._stream.resume(noticed.found, noticed.hidden)
            self._add(noticed.first)
            self._tell_what_was_found(noticed.on_ns)

    def _look_after(self, *, now: bool = False) -> None:
        """Enter a gap where somebody else has switched something off."""
        if gap := self._guard.check(now=now):
            self._add(losses([gap]))
            self._progress.notes.append(self._guard.notes[-1])

    def discard(self) -> None:
        """Delete what was spooled and could not be written; let go of the folder."""
        self._feeder.discard()
        self._writer.folder.close()

    def _follow_exec(self) -> None:
        """Go with a process that is recorded into the address space that its exec made."""
        for pid in self._names.renamed & self._capture.learned.keys():
            mm = self._capture.follow_exec(pid)
            if mm is not None:
                self._names.mms[mm] = pid
                self._guard.expect()
        self._names.renamed.clear()

    def _take_the_rest(self, report: Callable[[RecordingProgress], None]) -> None:
        while self._feeder.waiting_bytes:
            if drained := self._feeder.next():
                self._take(*drained)
            self._progress.waiting_bytes = self._feeder.waiting_bytes
            report(self._progress)

    def _take(self, before_ns: int, chunks: list[Chunk]) -> None:
        columns = self._stream.feed(chunks, before_ns)
        self._add(columns)
        self._complete_ns = before_ns - MARGIN_NS
        if self._flight and self._progress.fired is None:
            self._watch(columns, before_ns)
        if self._due():
            self._flush()
            if self._flight and self._progress.fired is None:
                self._forget(before_ns - self._flight.keep_ns)

    def _forget(self, before_ns: int) -> None:
        """Forget the blocks before an instant, but for what they began and did not end."""
        self._writer.drop_before(before_ns)
        self._names.forget(before_ns)
        while self._ends and self._ends[0][0] < before_ns:
            from_ns, self._open = self._ends.popleft()
            self._writer.change(started_ns=from_ns)

    def _add(self, columns: Columns) -> None:
        count = len(columns["time_ns"])
        if count:
            if self._keeper:
                self._keeper.add(columns)
            self._block.append(columns)
            self._block_events += count
        progress = self._progress
        progress.events += count
        if self._ended_at is None:
            progress.seconds = time.monotonic() - self._began
        lost = columns["length"][columns["kind"] == EventKind.LOST]
        progress.lost_events += int(lost[lost > 0].sum())

    def _watch(self, columns: Columns, now_ns: int) -> None:
        fired = self._trigger.check(columns, now_ns)
        if fired:
            self._fire(fired)

    def _fire(self, fired: Fired) -> None:
        self._progress.fired = fired
        self._progress.notes.append(_what_fired(fired, self._names))
        if not self._options.watch:  # which has looked already
            looked = first_look(self._capture).at_present()
            self._stream.found += tuple(task for task in looked if task.does)
        end_ns = time.monotonic_ns() + (self._flight or Flight()).after_ns
        self._stop_at_ns = min(end_ns, self._stop_at_ns or end_ns)

    def _is_over(self) -> bool:
        return self._stop_at_ns is not None and time.monotonic_ns() >= self._stop_at_ns

    def _due(self) -> bool:
        age = time.monotonic() - self._wrote
        patience = min(max(1.0, self._progress.seconds / 100), 10.0)
        return self._block_events >= _BLOCK_EVENTS or (age >= patience and bool(self._block))

    def _flush(self) -> None:
        if self._block:
            block = merged(self._block)
            self._writer.append(block)
            if self._flight:
                before = self._ends[-1][1] if self._ends else self._open
                left = still_open(merged([before, block]))
                self._ends.append((int(block["time_ns"].max()), left))
        self._writer.name(self._names.tasks, self._names.mms)
        self._tell_the_beginning()
        self._flush_stacks(self._complete_ns)
        self._block, self._block_events = [], 0
        self._wrote = time.monotonic()

    def _tell_the_beginning(self) -> None:
        """Write what was found at the beginning, once it is settled."""
        found, operations = self._stream.found, tuple(self._stream.operations)
        if found and found != self._told:
            self._writer.find(found)
            self._writer.change(operations=operations)
            self._told = found

    def _flush_stacks(self, horizon_ns: int) -> None:
        if self._keeper:
            self._writer.append_stacks(self._keeper.ready(horizon_ns))

    def _read_names(self) -> None:
        """Read the kernel's names while there is time, where no module will come meanwhile."""
        if self._keeper and self._ends_shortly():
            kernel_functions()

    def _ends_shortly(self) -> bool:
        """Say whether somebody waits for the end: on a busy machine it would come seconds late."""
        return (self._stop_at_ns or _END_OF_TIME) - time.monotonic_ns() < _SHORTLY_NS

    def _name_frames(self) -> None:
        """Say what code the stacks are in: after the end, since it may read /proc/PID/maps."""
        keeper = self._keeper
        if keeper is None:
            return
        self._flush_stacks(_END_OF_TIME)
        names = keeper.names()
        if names:
            self._writer.name_frames(names)
        self._progress.notes += keeper.notes()


def _is_trouble(task: FoundTask, on_ns: int) -> bool:
    """Say whether a task waits for a lock or has it for long, or goes on no further otherwise."""
    long = task.does and task.since_ns < on_ns - _WORTH_NS
    return bool(long) or task.operation in (*UNANSWERED, *HALTED.values())


@contextlib.contextmanager
def _stepping_aside() -> Iterator[None]:
    """Let the recorded go first: decoding and writing can wait, the queue is there for that.

    Only this thread; the feeder has a priority of its own.
    """
    thread = threading.get_native_id()
    usual = os.getpriority(os.PRIO_PROCESS, thread)
    try:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, max(usual, _NICE))
        yield
    finally:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, usual)


def _manifest(
    options: Options, capture: Capture, command_line: tuple[str, ...], target: str
) -> Manifest:
    kernel = os.uname()
    return Manifest(
        kernel=kernel.release,
        machine=kernel.machine,
        host=kernel.nodename,
        cpus=os.cpu_count() or 0,
        target=target,
        command_line=command_line,
        enabled=tuple(layout.event for layout in capture.layouts.events),
        operations=TRACED_NAMES,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        started_ns=time.monotonic_ns(),
        zaplock=__version__,
    )


def _what_fired(fired: Fired, names: TaskNames) -> str:
    task = names.tasks.get(fired.tid)
    who = f"{task.comm} ({fired.tid})" if task else f"task {fired.tid}"
    mode = "exclusive" if fired.write else "shared"
    return f"stopped after {who}'s {mode} {fired.what} of {fired.lasted_ns / 1e6:.1f} ms or more"


def _disk_trouble(path: Path, error: BaseException) -> str:
    reason = str(error).splitlines()[0]
    whole = f"what came before is whole ('zaplock report {path}')"
    if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the recording stopped by an error ({reason}): see 'zaplock doctor'; {whole}"
    return (
        f"the recording stopped, since {path} could not be written ({reason}): free some space; "
        f"{whole}"
    )
