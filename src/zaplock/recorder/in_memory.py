"""Record in this process and in memory: the library call for experiments and tests.

    with record_mm(pid) as recorder:
        ...                              # what is to be seen
    events = recorder.events()           # zaplock.trace.events.Events, in order of time

A thread takes the pages out of the kernel's buffers while the block runs; nothing is decoded before
`events()` is called, so the block is disturbed as little as can be. On leaving the block everything
is switched off. `zaplock record` uses `zaplock.recorder.session`, which spools to a file.

Root is needed; UserError says so in one line. What is recorded is a process's lock with all who
ask for it (`pid`, one or several), that of its children too (`children`), or every lock of the
machine (no `pid`).
Gaps show as rows of Kind.LOST and in `recorder.lost_events`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from zaplock.recorder.buffers import Chunk
from zaplock.recorder.capture import Capture
from zaplock.recorder.capturing import capturing
from zaplock.recorder.initial_look import first_look
from zaplock.recorder.instances_ahead import Ahead
from zaplock.recorder.living_tasks import of_everybody
from zaplock.recorder.meddling import Guard
from zaplock.recorder.options import DEFAULT_GROUPS, Options
from zaplock.recorder.quota_watch import QuotaWatch
from zaplock.recorder.scheduling import import_numpy, join_first
from zaplock.recorder.snapshot import NOT_WHOLE
from zaplock.recorder.uninterrupted import surely, uninterrupted
from zaplock.trace.event_kinds import EventKind

if TYPE_CHECKING:
    from zaplock.recorder.stack_keeper import StackKeeper
    from zaplock.trace.events import Events
    from zaplock.trace.quotas import Quotas
    from zaplock.trace.stacks import Stacks

_WAKE_MS = 500
_NAMING_PATIENCE_S = 1.0
"""So long the maps of a process are waited for, whose lock somebody may have for minutes: whoever
looks for some seconds wants an answer; what has no name by then stays an address."""


class Recorder:
    """A recording in memory, as `record_mm` makes it."""

    def __init__(self, capture: Capture, options: Options, limit_bytes: int) -> None:
        self._capture = capture
        self._limit_bytes = limit_bytes
        self._chunks: list[Chunk] = []
        self._bytes = 0
        self._ended = threading.Event()
        self._children = options.children
        self._pids = set(capture.pids)
        """The target's processes, as far as they are known."""
        self._guard = Guard(capture.instances, capture.locks)
        self._gaps: list[tuple[int, int]] = []
        self._looking, self._looks = threading.Lock(), True
        self._events: Events | None = None
        self._keeper: StackKeeper | None = None
        self._found: Stacks | None = None
        self._quotas = QuotaWatch(lambda: list(self._pids)) if "sched" in options.groups else None
        self._thread = threading.Thread(target=self._collect, daemon=True)

    @property
    def target_mm(self) -> int | None:
        """The mm that is recorded, where it is one process's."""
        return self._capture.target_mm

    @property
    def notes(self) -> list[str]:
        """What the recording lacks, beyond lost events; once they were read, its stacks as well."""
        missing = [] if self._stream.looked_at_all else [NOT_WHOLE]
        read = self._found is not None
        of_stacks = self._keeper.notes() if self._keeper and read else []
        return [*self._capture.notes, *missing, *of_stacks]

    @property
    def span(self) -> tuple[int, int]:
        """From when to when (CLOCK_MONOTONIC) everything was recorded."""
        return self._capture.on_ns, self._capture.off_ns or time.monotonic_ns()

    @property
    def lost_events(self) -> int:
        """How many events are missing, as far as the kernel counts them. After its end only."""
        events = self.events()
        lost = events["length"][events["kind"] == EventKind.LOST]
        return int(lost[lost > 0].sum())

    def events(self) -> Events:
        """Decode what was recorded. After its end only; the same value each time."""
        if not self._ended.is_set():
            raise RuntimeError("the recording still runs: stop it, or leave the with block first")
        if self._events is None:
            from zaplock.recorder.decode import merged
            from zaplock.trace.events import Events
            from zaplock.trace.gaps import losses
            from zaplock.trace.stacks import in_order

            self._stream.end(self.span[1])
            columns = self._stream.feed(self._chunks, time.monotonic_ns() + (1 << 40))
            self._chunks = []
            columns = merged([losses(self._gaps), columns])
            names = self._stream.names
            if self._keeper:
                self._keeper.add(columns)
                rows = self._keeper.ready()
                self._found = in_order(rows, self._keeper.names(_NAMING_PATIENCE_S))
            self._events = Events(
                columns,
                tuple(self._stream.operations),
                dict(names.tasks),
                dict(names.mms),
                self._stream.found,
            )
        return self._events

    def quotas(self) -> Quotas | None:
        """Give what the cgroups' accounts said, None where none has a quota. After the block."""
        from zaplock.trace.quotas import quotas

        readings, groups = self._quotas.rows() if self._quotas else ([], {})
        return quotas(readings, groups) if readings else None

    def stacks(self) -> Stacks | None:
        """Give the stacks that were taken, None where none could be. After the block only."""
        self.events()
        return self._found

    def _collect(self) -> None:
        while not self._ended.is_set():
            self._capture.buffers.wait(_WAKE_MS)
            self._take()
            self._look_after()

    def _look_after(self, *, last: bool = False) -> None:
        """Note a gap where somebody else has switched something off; for the `last` time or not."""
        with self._looking:
            if self._looks and (gap := self._guard.check(now=last)):
                self._gaps.append(gap)
            self._looks = self._looks and not last

    def _take(self) -> None:
        if self._bytes < self._limit_bytes:
            taken = self._capture.buffers.drain()
            self._bytes += sum(len(pages) for _, pages in taken)
            self._chunks += taken
        else:
            self._ended.wait(0.5)

    def _run(self) -> None:
        self._capture.start()
        self._guard.expect()
        self._thread.start()
        if self._quotas:
            self._quotas.start()
        look = first_look(self._capture)
        # After the start: a task that is born later is told by its own event.
        tasks = list(of_everybody())
        self._prepare()
        self._stream.begin(look)
        self._stream.names.know(tasks)

    def _prepare(self) -> None:
        """Import what decodes, while events come in."""
        with uninterrupted():
            import_numpy()
            from zaplock.recorder.naming import TaskNames
            from zaplock.recorder.stack_keeper import StackKeeper
            from zaplock.recorder.stream import Stream

        capture, names = self._capture, TaskNames()
        names.mms.update({one.mm: pid for pid, one in capture.learned.items()})
        self._stream = Stream(
            capture.layouts,
            names,
            pids=capture.pids,
            children=self._children,
            semaphores=capture.semaphores,
        )
        self._pids = self._stream.pids
        if capture.sampler:
            self._keeper = StackKeeper(capture.sampler, self._stream.keeps)

    def stop(self) -> None:
        """End the recording before the block ends: its events can be read, the rest takes a while.

        Twice does no harm.
        """
        if self._ended.is_set():
            return
        self._look_after(last=True)
        self._capture.stop()
        if self._quotas:
            self._quotas.stop()
        self._ended.set()
        self._capture.buffers.wake()
        if self._thread.is_alive():
            join_first(self._thread)
        while taken := self._capture.buffers.drain():
            self._chunks += taken
        self._capture.clear()


def _pids(pid: int | Iterable[int] | None) -> tuple[int, ...]:
    if pid is None:
        return ()
    return (pid,) if isinstance(pid, int) else tuple(pid)


@contextlib.contextmanager
def record_mm(
    pid: int | Iterable[int] | None = None,
    *,
    events: Iterable[str] = DEFAULT_GROUPS,
    children: bool = False,
    buffer_kb: int | None = None,
    limit_bytes: int = 2 << 30,
    kernel_stacks: bool = False,
    stacks: bool = False,
    ahead: Ahead | None = None,
) -> Iterator[Recorder]:
    """Record while the block runs; read `.events()` of what this gives afterwards.

    `events` are groups: mmap_lock, syscalls, faults, contention, sched. `buffer_kb` is the kernel's
    buffer for each CPU, `limit_bytes` bounds what is kept here (about 40 bytes an event); beyond
    it events are lost and counted. With `kernel_stacks`, `.stacks()` says where in the kernel those
    who held and waited were, with `stacks` where in the program as well, as far as it can be had.
    `ahead` are instances to be taken.

    Raises UserError where the kernel, the user's rights or the target don't allow it.
    """
    options = Options(
        pids=_pids(pid),
        children=children,
        groups=tuple(events),
        buffer_kb=buffer_kb,
        kernel_stacks=kernel_stacks,
        stacks=stacks,
    )
    with capturing(options, ahead) as capture:
        recorder = Recorder(capture, options, limit_bytes)
        try:
            recorder._run()
            yield recorder
        finally:
            surely(recorder.stop)
