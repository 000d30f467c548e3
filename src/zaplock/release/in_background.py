"""`release_soon` and `release_async`: the same work in another thread.

One worker thread does all background releases, one after the other: two at once would only wait
for each other. The queue is bounded: once `BOUND` releases wait, the caller does its own, which
bounds the memory that is dead but not yet free. So it does where no thread can be had: in a
subinterpreter, in the last moments of the interpreter (the queue was flushed by then), when the
system refuses one.

What is handed over is claimed and pinned in the caller's line (`hold`), so that it is the same
memory when its turn comes. A job is done by whoever first puts its mark on it; who marks a job
that waits takes it out of the queue. There is no lock, so none is left held by an exception, and
no line after which a job is nobody's: it can be found until its future is set.

Jobs belong to the process that made them. A forked child has the objects of its parent but not the
thread. It takes over what it can show to have still: memory that an object pinned in the child
owns, and that is mapped at the child's first moment, whole. Everything else it leaves alone.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import os
import time
from _thread import allocate_lock, get_ident, start_new_thread
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final

from zaplock.errors import UserError
from zaplock.release import claims
from zaplock.release.errors import ReleaseError
from zaplock.release.in_caller import Released
from zaplock.release.job import Job
from zaplock.release.pace import DEFAULT_BOUND_NS, Pace
from zaplock.release.syscalls import HUGE
from zaplock.release.vmas import require_mapped

BOUND: Final = 64
"""Releases that may wait in the queue."""
LOOK_S: Final = 0.2
"""How often one who waits for the worker looks whether it lives."""
START_S: Final = 0.2
"""How long a thread that was started may take until it runs."""


class _Worker:
    """The jobs that are not done, and the thread that does them.

    Its wake-ups go through a SimpleQueue, which a finalizer may use in the middle of a `put` or
    `get` of its own thread. The thread is not a `threading.Thread`, whose start waits for an Event
    (see `job`).
    """

    def __init__(self, *, alone: bool) -> None:
        self.pid = os.getpid()
        self.alone = alone
        self.unfinished: dict[int, Job] = {}
        self.wake: SimpleQueue[None] = SimpleQueue()
        self.alive = allocate_lock()  # held by the thread as long as it lives
        self.thread = 0
        self.started_s = -START_S

    def hand_over(self, job: Job, buffer: Any, length: int | None, mark: object) -> None:
        """Hold the memory and queue the job; do it at once where it can't be queued."""
        try:
            job.hold.take(buffer, length)
        except (UserError, OSError) as error:
            job.fail(error)
            return
        if len(self.unfinished) < BOUND and not self.alone:
            self.unfinished[id(job)] = job
            self.wake.put(None)
            if self.has_thread():
                return
        if job.mine(mark):
            _expected_errors_only(job)
            self.unfinished.pop(id(job), None)

    def withdraw(self, job: Job, mark: object) -> None:
        """Take a job back, unless the worker has begun it."""
        if job.mine(mark):
            self.unfinished.pop(id(job), None)
            job.fail(ReleaseError("this release was interrupted as it was handed over"))

    def has_thread(self) -> bool:
        """Start the thread if there is none; tell whether there is one."""
        if self.alone:
            return False
        if self.alive.locked() or time.monotonic() < self.started_s + START_S:
            return True
        try:
            self.started_s = time.monotonic()
            start_new_thread(self.run, ())
        except RuntimeError:
            self.started_s = -START_S
            return False
        return True

    def run(self) -> None:
        """Be the worker's thread, one at a time."""
        with self.alive:
            self.serve()  # a `try` in here would have bytecodes that no handler covers

    def serve(self) -> None:
        """Do jobs as long as the worker is this process's."""
        self.thread = get_ident()
        while self.pid == os.getpid():
            try:
                self.do_all()
                self.wake.get()
            except BaseException:
                continue  # the job's future has it; the others must not wait in vain

    def do_all(self) -> None:
        """Do every job that nobody has begun."""
        for job in list(self.unfinished.values()):
            self.do(job)

    def do(self, job: Job) -> None:
        """Do a job, unless somebody else has begun it."""
        mark = object()
        try:
            try:
                if job.mine(mark):
                    _expected_errors_only(job)
            finally:
                self.end(job, mark)
        finally:
            self.end(job, mark)

    def end(self, job: Job, mark: object) -> None:
        """Take a job that was done out of the queue; its future is set, whatever happened."""
        if job.mine(mark):
            job.fail(ReleaseError("this release was interrupted: what remains is left alone"))
            self.unfinished.pop(id(job), None)

    def wait_for(self, job: Job, timeout: float | None = None) -> None:
        """Wait until a job is done; do it here, where no thread can be had.

        Raises TimeoutError. It is no use to wait for a job that this very thread is doing, further
        out (the caller is a callback, a signal handler or a finalizer).
        """
        me = get_ident()
        end = None if timeout is None else time.monotonic() + timeout
        while not job.done() and job.runner != me:
            if id(job) in self.unfinished and (me == self.thread or not self.has_thread()):
                self.do(job)
            self.wake.put(None)
            job.ends_within(LOOK_S if end is None else min(LOOK_S, end - time.monotonic()))
            if end is not None and time.monotonic() >= end:
                break
        if job.done():
            self.unfinished.pop(id(job), None)

    def flush(self) -> bool:
        """Wait until each job that there is now is done; tell whether there was one."""
        me = get_ident()
        others = [job for job in list(self.unfinished.values()) if job.runner != me]
        for job in others:
            self.wait_for(job)
        return bool(others)


def _expected_errors_only(job: Job) -> None:
    """Work; what a release may raise is the future's, the rest (from a signal) travels on."""
    try:
        job.work()
    except (UserError, OSError, MemoryError) as error:
        job.fail(error)


def _in_subinterpreter() -> bool:
    """Tell whether this isn't the main interpreter: its end aborts if a daemon thread is left."""
    api = ctypes.pythonapi
    api.PyInterpreterState_Get.restype = ctypes.c_void_p
    api.PyInterpreterState_GetID.argtypes = [ctypes.c_void_p]
    api.PyInterpreterState_GetID.restype = ctypes.c_int64
    return bool(api.PyInterpreterState_GetID(api.PyInterpreterState_Get()))


_worker = _Worker(alone=_in_subinterpreter())


def release_soon(
    buffer: object, length: int | None = None, *, max_stall_ns: int = DEFAULT_BOUND_NS
) -> Future[Released]:
    """Hand a release over to the background worker; return a future of its result or error.

    Returns at once, unless `BOUND` releases wait already or no thread can be had: then the caller
    does this one itself. From here on the memory is pinned: closing or resizing it raises
    BufferError, releasing it BusyError. The future's `cancel` has no effect. Arguments are those
    of `release`. If it raises, nothing is queued.
    """
    Pace(max_stall_ns)  # a bad bound is the caller's line's fault
    worker, job, mark = _here(), Job(max_stall_ns, _wait_for), object()
    try:
        try:
            worker.hand_over(job, buffer, length, mark)
        except BaseException:
            worker.withdraw(job, mark)
            raise
    except BaseException:  # once more, if a signal handler raised inside the first
        worker.withdraw(job, mark)
        raise
    return job


async def release_async(
    buffer: object, length: int | None = None, *, max_stall_ns: int = DEFAULT_BOUND_NS
) -> Released:
    """Release in the background worker and await the result.

    Cancelling the task stops the waiting, not the release.
    """
    done = release_soon(buffer, length, max_stall_ns=max_stall_ns)
    return await asyncio.shield(asyncio.wrap_future(done))


def flush() -> None:
    """Wait until every release that was handed over is done."""
    worker = _here()
    while worker.flush():
        pass  # what ended may have handed over more


def pending() -> int:
    """Return how many releases wait or are under way."""
    return len(_here().unfinished)


def _wait_for(job: Job, timeout: float | None) -> None:
    _here().wait_for(job, timeout)


def _here() -> _Worker:
    """Return this process's worker; a child that was forked behind Python's back has a new one."""
    if _worker.pid != os.getpid():
        _begin_anew()
    return _worker


def _begin_anew() -> _Worker:
    global _worker
    before, _worker = _worker, _Worker(alone=_worker.alone)
    claims.forget()
    return before


def _after_fork_in_child() -> None:
    for job in list(_begin_anew().unfinished.values()):
        if job.done():
            continue
        taken_over = job.hold.intact and _is_here(job)
        job.anew()
        if taken_over:
            job.hold.after_fork()
            _worker.unfinished[id(job)] = job
        else:
            with suppress(BufferError):  # a thread that the child lacks was looking at the pin
                job.fail(ReleaseError("this release is the parent's: the child leaves it alone"))


def _is_here(job: Job) -> bool:
    """Tell whether a pinned range that waited or was being zapped at the fork is the child's copy.

    A range that fork left out (MADV_DONTFORK) is a hole, unless something was mapped there since
    the fork; nothing that other hooks map is as large as a huge page. Addresses are nobody's word.
    """
    target = job.hold.target
    if target.is_address or target.end - target.start < HUGE:
        return False
    try:
        require_mapped(target.start, target.end, certain=True)
    except ReleaseError:
        return False
    return True


def _at_exit() -> None:
    """Flush; a later release is done by its caller: a thread might find no interpreter."""
    _here().alone = True
    flush()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
