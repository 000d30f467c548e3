"""An answer while tracing can't be switched on yet.

The kernel has one lock for all changes of what is traced. Whoever registers a uprobe (perf,
bpftrace) has it, and waits for the mmap_lock of every process that maps the file: so that lock may
be held for as long as the very hang that is asked about. Nobody can go before them; what the tasks'
kernel stacks tell needs no tracing, and is said after `PATIENCE_S`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

PATIENCE_S = 3.0
"""So long one waits in silence; on a busy machine tracing takes a second or two to come on."""


class Meanwhile:
    """Look at the tasks if tracing is not on in time; nothing once `on` was called.

    Use it in a `with` block. `aside`: standard output is for something else.
    """

    def __init__(self, pids: tuple[int, ...], *, aside: bool) -> None:
        self._pids, self._aside = pids, aside
        self._on, self._telling = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Meanwhile:
        if self._pids:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.on()

    def on(self) -> None:
        """Tracing is on, or will never be: there is nothing to bridge any more."""
        self._on.set()
        with self._telling:  # what has begun is said to its end
            pass

    def _run(self) -> None:
        if self._on.wait(PATIENCE_S):
            return
        lines = list(_lines(self._pids))
        with self._telling, contextlib.suppress(BrokenPipeError):
            if not self._on.is_set():
                out = sys.stderr if self._aside else sys.stdout
                print(*lines, "", sep="\n", file=out, flush=True)


def _lines(pids: tuple[int, ...]) -> Iterator[str]:
    from zaplock.recorder.decode import nothing
    from zaplock.recorder.initial_look import look_untraced
    from zaplock.recorder.living_tasks import of_process, of_thread
    from zaplock.trace.analysis import analyse
    from zaplock.trace.events import Events
    from zaplock.views.initial_state import found_lines
    from zaplock.views.standing import registrars

    look = look_untraced(set(pids))
    found = look.suspects()
    tasks = {task.tid: task for pid in pids for task in of_process(pid)}
    for one in found:
        if one.tid not in tasks and (task := of_thread(one.tid)):
            tasks[one.tid] = task
    mms = {mm: pid for pid, mm in look.mms.items()}
    events = Events(nothing(), (), tasks, mms, found)
    now_ns = time.monotonic_ns()
    analysis = analyse(events, os.uname().release, span=(look.on_ns, now_ns))
    yield f"Tracing can't be switched on so far{registrars(analysis)}: it goes on once it can."
    yield "By the kernel stacks of the tasks, which need no tracing:"
    said = list(found_lines(analysis))
    yield from said or ["    nobody was seen to wait for this lock, or to have it."]
