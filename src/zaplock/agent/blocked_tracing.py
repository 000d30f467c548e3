"""Say what the tasks' kernel stacks tell while the kernel lets nobody change what is traced.

Whoever registers a uprobe (perf, bpftrace) has the kernel's one lock for all tracing, and waits for
the mmap_lock of every process that maps the file. If one of those hangs, the agent can neither
switch its events on nor off until that is over, and a signal reaches it only then. What it can do
meanwhile is to look, which needs no tracing: a line of the log after `PATIENCE_S`, and again each
time that it has lasted twice as long.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from zaplock.agent.log import Say
from zaplock.recorder.initial_look import look_untraced
from zaplock.recorder.living_tasks import of_thread
from zaplock.trace.madvise import with_advice
from zaplock.trace.recorded_tasks import FoundTask

PATIENCE_S = 3.0
"""So long one waits in silence; on a busy machine tracing takes a second or two to change."""

_FRAMES = 12
_MOST = 32
"""So many tasks and so many functions of each stack are in a line."""


@contextlib.contextmanager
def told_if_blocked(pids: tuple[int, ...], say: Say) -> Iterator[None]:
    """Change what is traced in the block; if that lasts, say who has and wants these's locks."""
    over, begun_ns = threading.Event(), time.monotonic_ns()
    telling = threading.Lock()

    def watch() -> None:
        span_s = PATIENCE_S
        while not over.wait(begun_ns / 1e9 + span_s - time.monotonic()):
            fields = _seen(pids)
            with telling:
                if not over.is_set():
                    say("tracing blocked", for_ns=time.monotonic_ns() - begun_ns, **fields)
            span_s *= 2

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        with telling:  # what has begun is said to its end
            over.set()
        watcher.join()
        lasted_ns = time.monotonic_ns() - begun_ns
        if lasted_ns > PATIENCE_S * 1e9:
            say("tracing goes on", after_ns=lasted_ns)


def _seen(pids: tuple[int, ...]) -> dict[str, Any]:
    look = look_untraced(set(pids))
    found = look.suspects()
    owners = {mm: pid for pid, mm in look.mms.items()}
    return {
        "registering": [_plain(one, owners) for one in found if "uprobe_register" in one.stack],
        "tasks": [_plain(one, owners) for one in found if one.does][:_MOST],
    }


def _plain(one: FoundTask, owners: dict[int, int]) -> dict[str, Any]:
    task = of_thread(one.tid)
    return {
        "tid": one.tid,
        "task": task.comm if task else "",
        "process": task.process if task else "",
        "does": one.does or None,
        "lock_of": owners.get(one.mm),
        "exclusive": one.exclusive if one.does else None,
        "operation": with_advice(one.operation, one.detail),
        "for_ns": one.time_ns - one.since_ns if one.since_ns else None,
        "kernel_stack": list(one.stack[:_FRAMES]),
    }
