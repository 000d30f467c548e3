"""A recording that never ends, seen through a window: the last seconds, again and again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zaplock.trace.events import Events
    from zaplock.trace.quotas import Quotas
    from zaplock.trace.stacks import StackRow, Stacks

MOST_EVENTS = 2_000_000
"""A window never has more events; a lock that busy shows all there is to see in less time."""


class Window:
    """The events of the last `window_ns`, as they come in."""

    def __init__(self, capture: Any, stream: Any, window_ns: int) -> None:
        from zaplock.recorder.meddling import Guard
        from zaplock.recorder.quota_watch import QuotaWatch
        from zaplock.recorder.stack_keeper import StackKeeper

        self._capture, self._stream, self._window_ns = capture, stream, window_ns
        self._guard = Guard(capture.instances, capture.locks)
        self._blocks: list[Any] = []
        self._open: Any = None
        sampler = capture.sampler
        self._keeper = StackKeeper(sampler, stream.keeps) if sampler else None
        self._rows: list[StackRow] = []
        self._watch = QuotaWatch(lambda: list(stream.pids))
        self._watch.start()
        self.began_ns = self.until_ns = time.monotonic_ns()

    def advance(self, seconds: float) -> tuple[Events, tuple[int, int]]:
        """Collect for a while; return the window's events and when the window begins and ends."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._capture.buffers.wait(max(1, int(left * 1000)))
            self._take()
        self._take()
        return self._events(), (self.began_ns, self.until_ns)

    def _take(self) -> None:
        from zaplock.recorder.decode import merged
        from zaplock.recorder.stream import MARGIN_NS
        from zaplock.trace.gaps import losses

        before_ns = time.monotonic_ns()
        columns = self._stream.feed(self._capture.buffers.drain(), before_ns)
        self.until_ns = before_ns
        if gap := self._guard.check():
            columns = merged([losses([gap]), columns])
        if self._keeper:
            self._keeper.add(columns)
            self._rows += self._keeper.ready(before_ns - MARGIN_NS)
        if len(columns["time_ns"]):
            self._blocks.append(columns)
        self._forget()

    def _forget(self) -> None:
        """Drop blocks that left the window, but for what is not over; the newest one stays."""
        from zaplock.recorder.decode import merged
        from zaplock.recorder.initial_rows import still_open

        while len(self._blocks) > 1 and (
            int(self._blocks[0]["time_ns"][-1]) < self.until_ns - self._window_ns
            or sum(len(block["time_ns"]) for block in self._blocks) > MOST_EVENTS
        ):
            old = self._blocks.pop(0)
            self.began_ns = int(old["time_ns"][-1])
            self._open = still_open(merged([self._open, old]) if self._open else old)
        self._rows = [row for row in self._rows if row.time_ns >= self.began_ns]

    def quotas(self) -> Quotas | None:
        """Give what the cgroups' accounts said, None where none has a quota."""
        from zaplock.trace.quotas import quotas

        readings, groups = self._watch.rows()
        return quotas(readings, groups) if readings else None

    def close(self) -> None:
        """End what reads the accounts."""
        self._watch.stop()

    def stacks(self) -> Stacks | None:
        """Give the stacks of the window, None where the kernel gives none."""
        from zaplock.trace.stacks import in_order

        return in_order(self._rows, self._keeper.names()) if self._keeper else None

    def _events(self) -> Events:
        import numpy as np

        from zaplock.recorder.initial_look import first_look
        from zaplock.trace.events import EVENT, Events

        blocks = [self._open, *self._blocks] if self._open else self._blocks
        columns = {
            name: np.concatenate([np.empty(0, EVENT[name]), *(b[name] for b in blocks)])
            for name in EVENT.names or ()
        }
        names, operations = self._stream.names, tuple(self._stream.operations)
        present = first_look(self._capture).at_present()
        return Events(columns, operations, dict(names.tasks), dict(names.mms), present)


@contextlib.contextmanager
def window(pids: tuple[int, ...], groups: tuple[str, ...], window_ns: int) -> Iterator[Window]:
    """Record into a window while the block runs; UserError where recording isn't allowed."""
    from zaplock.recorder.capturing import capturing
    from zaplock.recorder.initial_look import first_look
    from zaplock.recorder.naming import TaskNames
    from zaplock.recorder.options import Options
    from zaplock.recorder.stream import Stream

    with capturing(Options(pids=pids, groups=groups, kernel_stacks=True)) as capture:
        names = TaskNames()
        names.mms.update({one.mm: pid for pid, one in capture.learned.items()})
        stream = Stream(capture.layouts, names, pids=capture.pids, semaphores=capture.semaphores)
        capture.start()
        stream.begin(first_look(capture))
        # After the start: a task that is born later is told by its own event.
        names.snapshot()
        view = Window(capture, stream, window_ns)
        try:
            yield view
        finally:
            view.close()
