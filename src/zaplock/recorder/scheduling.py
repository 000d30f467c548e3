"""Go before others for a moment: a question about a machine in trouble is asked on that machine.

A nice value does not do it: it counts among the tasks of one group alone, and every session
(sched_autogroup) and every unit is a group. So this thread becomes a real-time one (SCHED_RR, the
lowest priority) for what takes a fraction of a second: getting ready to record, the look at the
tasks, a short answer. Whoever is recorded is not disturbed by it later: threads and processes that
are started meanwhile are ordinary ones.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

from zaplock.recorder.uninterrupted import uninterrupted

_ORDINARY = (os.SCHED_OTHER, os.SCHED_BATCH)
_FIRST = os.SCHED_RR | os.SCHED_RESET_ON_FORK


@contextlib.contextmanager
def going_first() -> Iterator[None]:
    """Run this thread before ordinary ones while the block lasts, where that is allowed."""
    before = os.sched_getscheduler(0)
    if before not in _ORDINARY or not _set(_FIRST, 1):
        yield
        return
    try:
        yield
    finally:
        _set(before, 0)


def standing_back() -> Callable[[], None]:
    """Give this CPU to the kernel's own workers; return what ends that, from any thread.

    They are ordinary threads, and some stay on one CPU: whoever goes first there keeps off what
    another thread waits for.
    """
    if os.sched_getscheduler(0) != _FIRST:
        return lambda: None
    thread = threading.get_native_id()
    _set(os.SCHED_OTHER, 0)
    return lambda: _set_of(thread, _FIRST, 1)


_BLAS_THREADS = "OPENBLAS_NUM_THREADS"


def import_numpy() -> None:
    """Import numpy without the threads of its BLAS, which nothing here has work for.

    They spin for a twentieth of a second after the import, on the CPUs that are wanted for making
    instances. Commands that are started later have the environment as it was.

    A signal waits: what an interrupt breaks off in numpy's own code comes out as an ImportError.
    """
    given = os.environ.get(_BLAS_THREADS)
    os.environ[_BLAS_THREADS] = given or "1"
    try:
        with uninterrupted():
            import numpy  # noqa: F401
    finally:
        if given is None:
            del os.environ[_BLAS_THREADS]


@contextlib.contextmanager
def sharing_python() -> Iterator[None]:
    """Let another thread, which waits for the kernel most of the time, go on at once when it can.

    A thread that runs Python keeps it for 5 ms from one that comes back from a system call.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 20)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def start_first(thread: threading.Thread) -> None:
    """Start a thread that goes first if this one does."""
    urgent = os.sched_getscheduler(0) == _FIRST
    if urgent:
        _set(os.SCHED_RR, 1)
    try:
        thread.start()
    finally:
        if urgent:
            _set(_FIRST, 1)


def join_first(thread: threading.Thread) -> None:
    """Wait for a thread that is about to end; it goes first as well if this one does."""
    if os.sched_getscheduler(0) == _FIRST and thread.native_id is not None:
        _set_of(thread.native_id, os.SCHED_RR, 1)
    thread.join()


def _set(policy: int, priority: int) -> bool:
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError:
        return False
    return True


def _set_of(thread: int, policy: int, priority: int) -> None:
    with contextlib.suppress(OSError):  # it has ended
        os.sched_setscheduler(thread, policy, os.sched_param(priority))
