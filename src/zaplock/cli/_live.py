"""A recording that never ends, seen through a window: the last seconds, again and again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zaplock.trace.events import Events

MOST_EVENTS = 2_000_000
"""A window never has more events; a lock that busy shows all there is to see in less time."""


class Window:
    """The events of the last `window_ns`, as they come in."""

    def __init__(self, capture: Any, stream: Any, window_ns: int) -> None:
        from zaplock.recorder.guard import Guard

        self._capture, self._stream, self._window_ns = capture, stream, window_ns
        self._guard = Guard(capture.instances)
        self._blocks: list[Any] = []
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
        from zaplock.trace.file import losses

        before_ns = time.monotonic_ns()
        columns = self._stream.feed(self._capture.buffers.drain(), before_ns)
        self.until_ns = before_ns
        if gap := self._guard.check():
            columns = merged([losses([gap]), columns])
        if len(columns["time_ns"]):
            self._blocks.append(columns)
        self._forget()

    def _forget(self) -> None:
        """Drop blocks that left the window; at least the newest one stays."""
        while len(self._blocks) > 1 and (
            int(self._blocks[0]["time_ns"][-1]) < self.until_ns - self._window_ns
            or sum(len(block["time_ns"]) for block in self._blocks) > MOST_EVENTS
        ):
            self.began_ns = int(self._blocks.pop(0)["time_ns"][-1])

    def _events(self) -> Events:
        import numpy as np

        from zaplock.trace.events import EVENT, Events
        from zaplock.trace.operations import NAMES

        columns = {
            name: np.concatenate([np.empty(0, EVENT[name]), *(b[name] for b in self._blocks)])
            for name in EVENT.names or ()
        }
        names = self._stream.names
        return Events(columns, NAMES, dict(names.tasks), dict(names.mms))


@contextlib.contextmanager
def window(pid: int | None, groups: tuple[str, ...], window_ns: int) -> Iterator[Window]:
    """Record into a window while the block runs; UserError where recording isn't allowed."""
    from zaplock.recorder.capture import Options, capturing
    from zaplock.recorder.naming import TaskNames
    from zaplock.recorder.stream import Stream

    with capturing(Options(pid=pid, groups=groups)) as capture:
        names = TaskNames()
        if capture.target_mm is not None and pid is not None:
            names.mms[capture.target_mm] = pid
        stream = Stream(capture.layouts, names, mm=capture.target_mm, pids=capture.pids)
        capture.start()
        # After the start: a task that is born later is told by its own event.
        names.snapshot()
        yield Window(capture, stream, window_ns)
