"""`release_soon` and `release_async`: the same work in another thread.

One worker thread does all background releases, one after the other: two at once would only wait
for each other. The queue is bounded: once `BOUND` releases wait, the caller does its own, which
bounds the memory that is dead but not yet free. At exit the queue is flushed. A forked child has
the mappings of its parent but not the thread: it takes over what was waiting or under way and
starts a worker of its own at the next call, or flushes at its own exit.

Price: the memory stays in use until the worker gets to it, the addresses stay reserved until then,
and an object that is handed over must not be used any more (it is closed at some later moment;
misuse is an error of the returned future, not of the caller's line).
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from mmap import mmap
from queue import SimpleQueue
from typing import Any, Final

from zaplock.release.errors import ExportedError
from zaplock.release.now import Released, release
from zaplock.release.pace import DEFAULT_BOUND_NS, Pace

BOUND: Final = 64
"""Releases that may wait in the queue."""


@dataclass(frozen=True, slots=True)
class _Job:
    buffer: Any
    length: int | None
    max_stall_ns: int
    adopted: bool = False
    done: Future[Released] = field(default_factory=Future)

    def run(self) -> None:
        try:
            self.done.set_result(self.release())
        except BaseException as error:
            self.done.set_exception(error)

    def release(self) -> Released:
        try:
            return release(self.buffer, self.length, max_stall_ns=self.max_stall_ns)
        except ExportedError:
            if not (self.adopted and isinstance(self.buffer, mmap)):
                raise
            # the parent's worker was at it: its pin is an export that nobody in the child can drop
            return release(memoryview(self.buffer), max_stall_ns=self.max_stall_ns)


class _Worker:
    """The queue and its thread, which lives while there is work.

    A SimpleQueue, and no condition variable, because a finalizer may hand over a release in the
    middle of a `put` or `get` of its own thread.
    """

    def __init__(self, waiting: list[_Job] | None = None) -> None:
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.unfinished: dict[int, _Job] = {}
        self.starting = threading.RLock()
        self.thread: threading.Thread | None = None
        for job in waiting or []:
            self.put(job)

    def put(self, job: _Job) -> None:
        self.unfinished[id(job)] = job
        self.jobs.put(job)

    def start(self) -> None:
        with self.starting:
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self.run, name="zaplock-release", daemon=True)
                self.thread.start()

    def run(self) -> None:
        while (job := self.jobs.get()) is not None:
            job.run()
            self.unfinished.pop(id(job), None)
            del job  # or the closed object would live until the next one comes

    def flush(self) -> None:
        while self.unfinished:
            self.start()
            for job in list(self.unfinished.values()):
                job.done.exception()


_worker = _Worker()


def release_soon(
    buffer: Any, length: int | None = None, *, max_stall_ns: int = DEFAULT_BOUND_NS
) -> Future[Released]:
    """Hand a release over to the background worker; return a future of its result or error.

    Returns at once, unless `BOUND` releases wait already: then the caller does this one itself.
    The future's `cancel` has no effect. Arguments are those of `release`.
    """
    Pace(max_stall_ns)  # a bad bound is the caller's line's fault
    job = _Job(buffer, length, max_stall_ns)
    job.done.set_running_or_notify_cancel()
    if len(_worker.unfinished) >= BOUND:
        job.run()
    else:
        _worker.put(job)
        _worker.start()
    return job.done


async def release_async(
    buffer: Any, length: int | None = None, *, max_stall_ns: int = DEFAULT_BOUND_NS
) -> Released:
    """Release in the background worker and await the result.

    Cancelling the task stops the waiting, not the release.
    """
    done = release_soon(buffer, length, max_stall_ns=max_stall_ns)
    return await asyncio.shield(asyncio.wrap_future(done))


def flush() -> None:
    """Wait until every release that was handed over is done."""
    _worker.flush()


def pending() -> int:
    """Return how many releases wait or are under way."""
    return len(_worker.unfinished)


def _take_over() -> None:
    global _worker
    _worker = _Worker([_again(job) for job in _worker.unfinished.values()])


def _again(job: _Job) -> _Job:
    """Copy a job of the parent: its future may be locked by a thread that the child lacks."""
    fresh = _Job(job.buffer, job.length, job.max_stall_ns, adopted=True)
    fresh.done.set_running_or_notify_cancel()
    return fresh


atexit.register(flush)
os.register_at_fork(after_in_child=_take_over)
