"""Record to a file: here what the kernel tells is moved to a spool, afterwards a child decodes it.

This process moves raw pages (`spool`) and imports neither numpy nor arro3, so it stays small under
any storm, and no decoding makes it late. When the recording is over, a child makes Parquet of the
spool (`decode_spool`). It is started before, and works beside this one, where that can't wait: a
trigger has to be looked for (the flight recorder), or the spool is larger than `BESIDE_BYTES`.
Beyond `SPOOL_BYTES` nothing is taken any more until the child has caught up: then the kernel's
buffers fill up, it counts what it loses, and the recording tells it.

A recorder that is killed leaves a spool: whoever reads the recording is told, and `decode_left`
(`record --finish`) decodes it.

With `Options.watch` nothing is recorded until a wait of `wait_ns` is noticed (`watch`, which needs
numpy).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zaplock.errors import UserError
from zaplock.outputs import Folder, unwritable, walk
from zaplock.recorder.beginning import Beginning, is_trouble
from zaplock.recorder.capture import Capture
from zaplock.recorder.capturing import capturing
from zaplock.recorder.code_areas import code_of
from zaplock.recorder.decoder_child import DECODER, DecoderChild
from zaplock.recorder.decoder_process import DecoderWord
from zaplock.recorder.exec_watch import ExecWatch
from zaplock.recorder.flight_limits import Fired, Flight
from zaplock.recorder.initial_look import first_look
from zaplock.recorder.instances_ahead import Ahead
from zaplock.recorder.living_tasks import of_everybody
from zaplock.recorder.meddling import Guard
from zaplock.recorder.options import Options
from zaplock.recorder.quota_watch import QuotaWatch
from zaplock.recorder.scheduling import going_first
from zaplock.recorder.snapshot import NOT_WHOLE
from zaplock.recorder.spool import EntryKind, SpoolWriter, left_behind
from zaplock.recorder.spooled import (
    Begun,
    CodeOfProcess,
    Ended,
    LearnedLater,
    NotedGap,
    noticed_wait,
    packed,
    this_boot,
)
from zaplock.recorder.targets import descendants_of
from zaplock.recorder.uninterrupted import surely
from zaplock.system_calls import TRACED_NAMES
from zaplock.trace.manifest import Manifest, read_manifest
from zaplock.trace.new_recording import begin_recording, remove_recording
from zaplock.trace.recorded_tasks import FoundTask, RecordedTask
from zaplock.version import __version__

SCHED = "sched"
BESIDE_BYTES = 1 << 30
"""A spool that has grown to this is decoded while it goes on growing."""
SPOOL_BYTES = 8 << 30
"""A spool never has more."""
_SECOND = 1_000_000_000
_PATIENCE_NS = 50_000_000
"""So often it is asked whether it is over."""
_DRAIN_NS = 200_000_000
"""Buffers that don't fill up are emptied so often."""
_LOOK_NS = 500_000_000
"""So often the kernel's counters, the target's children and the spool are looked at."""
_NICE, _NICE_BESIDE = -10, 10


@dataclass
class RecordingProgress:
    """How far a recording is. The same object is passed to `report` each time."""

    seconds: float = 0.0
    events: int = 0
    """While it goes on: what the kernel has counted, names of tasks among them."""
    lost_events: int = 0
    spool_bytes: int = 0
    """What was recorded and not yet decoded."""
    decoding: bool = False
    """Whether it is over, and only that is left."""
    fired: Fired | None = None
    notes: list[str] = field(default_factory=list)


Found = Callable[[dict[str, Any]], None]


def record_to(
    path: str | os.PathLike[str],
    options: Options,
    *,
    ended: Callable[[], bool],
    duration_ns: int | None = None,
    flight: Flight | None = None,
    ahead: Ahead | None = None,
    started: Callable[[], None] = lambda: None,
    found: Found = lambda told: None,
    report: Callable[[RecordingProgress], None] = lambda progress: None,
    command_line: tuple[str, ...] = (),
    target: str = "everybody",
    hash_pointers: bool = False,
    decoder: str = DECODER,
) -> RecordingProgress:
    """Record until `ended()` says so (asked about twenty times a second) or the trigger fires.

    It ends `duration_ns` after events came on, too. `ahead` are instances to be taken.

    `started` is called when events are recorded and there is a place for them. `decoder` is the
    module that decodes (`decoder_process.serve`); where somebody was found to wait for a lock or to
    have one since 10 ms or more, `found` is called while it is recorded with what that module tells
    of it.

    Raises UserError where the kernel, the rights or the target don't allow it, the place is taken
    or the disk is full; whatever happens, tracing is off afterwards, and what was recorded is
    decoded or said to be left.
    """
    if options.watch and (len(options.pids) != 1 or options.children):
        raise UserError("one process at a time can be watched: give -p PID, without --children")
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        first.enter_context(going_first())
        capture = stack.enter_context(capturing(options, ahead))
        session = _Session(capture, options, duration_ns, flight, found, decoder)
        stack.callback(session.discard)
        session.begin()
        folder = begin_recording(path, _manifest(options, capture, command_line, target))
        try:
            session.spool_to(folder, hash_pointers=hash_pointers)
            first.close()
            started()
        except OSError as error:
            remove_recording(path)
            raise unwritable(path, error) from None
        except UserError:
            remove_recording(path)  # nothing was recorded: the command could not be run
            raise
        session.run(ended, report)
    return session.progress


def decode_left(path: str | os.PathLike[str]) -> RecordingProgress:
    """Decode what a killed recorder left of a recording; that it has no end stays said.

    Raises UserError where there is no recording, nothing is left, it is a stranger's, its recorder
    still runs, or there is no room.
    """
    from zaplock.recorder.decode_spool import decode

    read_manifest(path)
    try:
        with walk(path) as folder, left_behind(folder):
            decoded = decode(folder, living=False)
    except OSError as error:
        raise unwritable(path, error) from None
    return RecordingProgress(
        seconds=(decoded.complete_ns - decoded.on_ns) / _SECOND,
        events=decoded.events,
        lost_events=decoded.lost_events,
        notes=decoded.notes,
    )


class _Session:
    def __init__(
        self,
        capture: Capture,
        options: Options,
        duration_ns: int | None,
        flight: Flight | None,
        tell: Found,
        decoder: str,
    ) -> None:
        self.progress = RecordingProgress(notes=list(capture.notes))
        self._capture, self._options, self._flight = capture, options, flight
        self._tell, self._module = tell, decoder
        self._duration_ns = duration_ns
        self._guard = Guard(capture.instances, capture.locks)
        self._quotas = QuotaWatch(lambda: list(self._pids))
        self._execs = ExecWatch(capture.learned)
        self._pids = set(capture.pids)
        self._look: Beginning | None = None
        self._reasons: dict[int, int] = {}
        self._child: DecoderChild | None = None
        self._glance: DecoderChild | None = None
        self._untold = list[str]()
        self._folder: Folder | None = None
        self._began_ns = time.monotonic_ns()
        self._drained_ns = self._looked_ns = 0
        self._seen_before = 0
        self._stop_at_ns: int | None = None
        """When it is over, where that is known."""

    def begin(self) -> None:
        """Let events in, and look at what is so already."""
        options, capture = self._options, self._capture
        sampler = capture.sampler
        asked = code_of(capture.pids) if sampler and options.stacks else []
        self._code = tuple(CodeOfProcess(pid, user, tuple(areas)) for pid, user, areas in asked)
        self._seen_before = capture.seen_in_kernel()
        capture.start()
        self._began_ns = capture.on_ns
        if self._duration_ns is not None:
            self._stop_at_ns = capture.on_ns + self._duration_ns
        self._guard.expect()
        self._tasks: tuple[RecordedTask, ...] = ()
        if not options.watch:
            self._look = first_look(capture)
            self.progress.notes += [] if self._look.look.whole else [NOT_WHOLE]
            self._tasks = tuple(of_everybody())

    def spool_to(self, folder: Folder, *, hash_pointers: bool) -> None:
        """Begin the spool; before `run`. Raises OSError where there is no room."""
        self._folder = folder
        capture, watch = self._capture, self._options.watch
        self._spool = SpoolWriter(folder)
        begun = Begun(
            layouts=capture.layouts,
            pids=tuple(capture.pids),
            children=self._options.children,
            mms={one.mm: pid for pid, one in capture.learned.items()},
            semaphores=tuple(capture.semaphores),
            on_ns=capture.on_ns,
            look=self._look,
            stacks=capture.sampler is not None,
            callers=bool(capture.sampler and capture.sampler.callers),
            flight=None if watch else self._flight,
            pointer_key=secrets.token_bytes(32) if hash_pointers else b"",
            boot=this_boot(),
            notes=tuple(self.progress.notes),
        )
        self._spool.head(EntryKind.BEGUN, packed(begun))
        self._spool.head(EntryKind.TASKS, packed(self._tasks))
        self._spool.head(EntryKind.CODE, packed(self._code))
        self._tasks = ()
        if self._look and any(is_trouble(one, capture.on_ns) for one in self._look.suspects()):
            self._tell_what_was_found()

    def _tell_what_was_found(self) -> None:
        """Let a child say who was found; it is over as soon as it has said so."""
        self._collect()
        assert self._folder
        self._glance = DecoderChild("glance", self._folder, self._spool.lock, self._module)

    def run(self, ended: Callable[[], bool], report: Callable[[RecordingProgress], None]) -> None:
        """Record until it is over, and have it decoded."""
        full: OSError | None = None
        try:
            if self._options.watch:
                self._wait_for_a_wait(ended, report)
                self._guard.expect()
            elif self._flight:
                self._decode_beside()
            if SCHED in self._options.groups:
                self._quotas.start()
            with _hastening():
                while not (ended() or self._is_over()):
                    self._take_turn()
                    report(self.progress)
            self._look_after(now=True)
        except OSError as error:
            full = error
        finally:
            surely(self._stop)
        if full is None:
            try:
                self._spool_the_rest()
            except OSError as error:
                full = error
        self._decode(report, full)

    def _take_turn(self) -> None:
        now_ns = time.monotonic_ns()
        until_ns = min(now_ns + _PATIENCE_NS, self._stop_at_ns or now_ns + _PATIENCE_NS)
        ready = self._capture.buffers.wait(max(0, (until_ns - now_ns) // 1_000_000))
        now_ns = time.monotonic_ns()
        if ready or now_ns - self._drained_ns >= _DRAIN_NS:
            self._collect()
        for pid in self._execs.changed():
            self._follow_exec(pid)
        self._look_after()
        self._hear()
        self.progress.seconds = (now_ns - self._began_ns) / _SECOND
        if now_ns - self._looked_ns >= _LOOK_NS:
            self._look_round(now_ns)

    def _collect(self) -> None:
        """Move what the kernel has to the spool."""
        if self.progress.spool_bytes >= SPOOL_BYTES:
            time.sleep(_PATIENCE_NS / _SECOND)
            return
        spool, before_ns = self._spool, time.monotonic_ns()
        for cpu, pages in self._capture.buffers.pieces():
            spool.add(EntryKind.PAGES, pages, cpu)
        if sampler := self._capture.sampler:
            taken = sampler.take_raw()
            reasons = {number: int(why) for number, why in sampler.reasons.items()}
            if reasons != self._reasons:
                self._reasons = reasons
                spool.add(EntryKind.REASONS, packed(reasons))
            for raw in filter(None, taken):
                spool.add(EntryKind.SAMPLES, raw)
        spool.drained(before_ns)
        self._drained_ns = before_ns
        for child in (self._child, self._glance):
            if child:
                child.wake()

    def _look_round(self, now_ns: int) -> None:
        """Count what there is by now, and who belongs to the target."""
        self._looked_ns, progress = now_ns, self.progress
        progress.events = max(0, self._capture.seen_in_kernel() - self._seen_before)
        progress.lost_events = self._capture.lost_in_kernel()
        progress.spool_bytes = self._spool.size
        if progress.spool_bytes >= BESIDE_BYTES and self._child is None:
            self._decode_beside()
        if self._options.children:
            self._pids |= descendants_of(self._pids)

    def _decode_beside(self) -> None:
        """Begin to decode while it is recorded; the recorded go first."""
        assert self._folder
        self._child = DecoderChild("follow", self._folder, self._spool.lock, self._module)
        self._child.set_nice(_NICE_BESIDE)

    def _hear(self) -> None:
        """Take what the children say."""
        self._hear_the_glance()
        if self._child and (words := self._child.hear()) != []:
            if words is None or any(word.error for word in words):
                raise self._not_decoded(words or [])
            self._heard(words)

    def _heard(self, words: list[DecoderWord]) -> None:
        word = words[-1]
        if word.fired and self.progress.fired is None:
            self._fire(word.fired)

    def _fire(self, fired: Fired) -> None:
        self.progress.fired = fired
        looked = tuple(first_look(self._capture).at_present())
        self._spool.add(EntryKind.LOOKED, packed(looked))
        self._stop_after_trigger()

    def _stop_after_trigger(self) -> None:
        end_ns = time.monotonic_ns() + (self._flight or Flight()).after_ns
        self._stop_at_ns = min(end_ns, self._stop_at_ns or end_ns)

    def _wait_for_a_wait(
        self, ended: Callable[[], bool], report: Callable[[RecordingProgress], None]
    ) -> None:
        """Let the detector look; what it notices is the recording's beginning."""
        from zaplock.recorder.naming import TaskNames
        from zaplock.recorder.watch import watch

        def over() -> bool:
            self.progress.seconds = (time.monotonic_ns() - self._began_ns) / _SECOND
            report(self.progress)
            return ended() or self._is_over()

        names, operations = TaskNames(), list(TRACED_NAMES)
        names.of(self._capture.pids)
        limit_ns = self._flight.wait_ns if self._flight else 0
        with going_first():  # it does little, and on a busy machine a stall is soon over
            noticed = watch(self._capture, names, limit_ns, over, operations)
        if not noticed:
            return
        names.snapshot()
        self._spool.add(EntryKind.TASKS, packed(tuple(names.tasks.values())))
        self._spool.add(EntryKind.NOTICED, packed(noticed_wait(noticed, operations)))
        self.progress.fired = noticed.fired
        self._began_ns = time.monotonic_ns()
        self._stop_after_trigger()
        if _any_trouble(noticed.found, noticed.on_ns):
            self._tell_what_was_found()

    def _follow_exec(self, pid: int) -> None:
        """Go with a process that is recorded into the address space that its exec made."""
        mm = self._capture.follow_exec(pid)
        self._execs.again(pid)
        if mm is not None:
            self._spool.add(EntryKind.LEARNED, packed(LearnedLater(pid, mm)))
            self._guard.expect()

    def _look_after(self, *, now: bool = False) -> None:
        """Enter a gap where somebody else has switched something off."""
        if gap := self._guard.check(now=now):
            noted = NotedGap(*gap, self._guard.notes[-1])
            self._spool.add(EntryKind.GAP, packed(noted))
            self.progress.notes.append(noted.note)

    def _is_over(self) -> bool:
        return self._stop_at_ns is not None and time.monotonic_ns() >= self._stop_at_ns

    def _stop(self) -> None:
        with going_first():
            self._capture.stop()
            self._quotas.stop()

    def _spool_the_rest(self) -> None:
        """Move what is left to the spool, and say that this was all."""
        capture = self._capture
        with going_first():
            off_ns = capture.off_ns or time.monotonic_ns()
            self.progress.seconds = (off_ns - self._began_ns) / _SECOND
            lost, sampler = capture.lost_in_kernel(), capture.sampler
            self._spool.add(EntryKind.OFF, time_ns=off_ns)
            self.progress.spool_bytes = 0  # what is left is taken in any case
            self._collect()
            capture.clear()
        readings, groups = self._quotas.rows()
        lost_stacks = sampler.lost if sampler else 0
        ended = Ended(off_ns, lost, lost_stacks, tuple(readings), groups)
        self._spool.add(EntryKind.ENDED, packed(ended))

    def _decode(self, report: Callable[[RecordingProgress], None], full: OSError | None) -> None:
        """Have all of it decoded, and take over what comes of it."""
        while self._glance:  # what was found at the beginning has not been told yet
            self._glance.no_more()
            self._hear_the_glance(_PATIENCE_NS / _SECOND)
        assert self._folder
        if self._child is None:
            self._child = DecoderChild("rest", self._folder, self._spool.lock, self._module)
        self._child.set_nice(os.getpriority(os.PRIO_PROCESS, 0))
        self._child.no_more()
        said: list[DecoderWord] = []
        self.progress.decoding = True
        while (words := self._child.hear(_PATIENCE_NS / _SECOND)) is not None:
            said = words or said
            if words:
                self.progress.spool_bytes = words[-1].left_bytes
            report(self.progress)
        if full:
            raise UserError(_disk_trouble(self._folder.path, full)) from None
        if not said or not said[-1].done:
            raise self._not_decoded(said)
        word, progress = said[-1], self.progress
        progress.events, progress.lost_events = word.events, word.lost_events
        progress.notes, progress.spool_bytes = [*word.notes, *self._untold], 0

    def _hear_the_glance(self, timeout_s: float = 0.0) -> None:
        """Tell what was found at the beginning, as soon as it is known."""
        if not self._glance:
            return
        words = self._glance.hear(timeout_s)
        for word in words or ():
            if word.found:
                self._tell(word.found)
            if word.error:
                self._untold.append(f"what was so at the beginning was not told: {word.error}")
        if words is None:
            self._glance.end()
            self._glance = None

    def _not_decoded(self, words: list[DecoderWord]) -> UserError:
        """Say why what was recorded is not decoded, and how to do it."""
        assert self._child
        assert self._folder
        error = next((word for word in words if word.error), None)
        if error and error.number:
            return UserError(
                _disk_trouble(self._folder.path, OSError(error.number, os.strerror(error.number)))
            )
        why = error.error if error else f"the decoder ended with {self._child.code}"
        return UserError(f"{why}; what was recorded waits for {_finishing(self._folder.path)}")

    def discard(self) -> None:
        """Let go of everything."""
        self._execs.close()
        for child in (self._child, self._glance):
            if child:
                child.end()
        if self._folder:
            self._spool.close()
            self._folder.close()


def _any_trouble(found: tuple[FoundTask, ...], on_ns: int) -> bool:
    return any(is_trouble(task, on_ns) for task in found)


@contextlib.contextmanager
def _hastening() -> Iterator[None]:
    """Let this thread go before others: it has little to do, but on a busy machine soon."""
    thread = threading.get_native_id()
    usual = os.getpriority(os.PRIO_PROCESS, thread)
    try:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, _NICE)
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
        started_ns=capture.on_ns,
        notes=capture.notes,
        zaplock=__version__,
    )


def _finishing(path: Path) -> str:
    return f"'zaplock record --finish {path}'"


def _disk_trouble(path: Path, error: BaseException) -> str:
    reason = str(error).splitlines()[0]
    whole = f"what came before is whole ('zaplock report {path}')"
    if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the recording stopped by an error ({reason}): see 'zaplock doctor'; {whole}"
    return (
        f"the recording stopped, since {path} could not be written ({reason}): free some space; "
        f"{whole}"
    )
