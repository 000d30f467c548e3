"""A release that waits for its turn, and its future.

A `concurrent.futures.Future` but for two things. Whoever waits for it sees to it that somebody
works. And no exception out of a signal handler can leave it locked: entering a Condition or waiting
for an Event is Python code, in the middle of which a handler may raise; the lock stays taken, and
the worker that has the result would wait for it for ever.
"""

from __future__ import annotations

from _thread import RLock, allocate_lock, get_ident
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from zaplock.release.hold import MemoryHold
from zaplock.release.in_caller import Released, finish


class _Lock(RLock):  # type: ignore[misc]
    """The lock in a future in place of its Condition: entering and leaving it is C code."""

    def notify_all(self) -> None:
        """Wake nobody: who waits for a job does so in `Job.ends_within`."""


class Job(Future[Released]):
    """A release that was handed over: what it holds, whose turn it is, and the future of it all.

    `wait(job, timeout)` is how one waits for it.
    """

    def __init__(self, max_stall_ns: int, wait: Callable[[Job, float | None], None]) -> None:
        super().__init__()
        self.hold = MemoryHold()
        self.max_stall_ns = max_stall_ns
        self._wait = wait
        self.anew()

    def anew(self) -> None:
        """Be nobody's yet, in a forked child once more: a thread that it lacks may have locked it.

        Callbacks are the parent's.
        """
        Future.__init__(self)
        self._condition = _Lock()  # type: ignore[assignment]
        self._ended = allocate_lock()
        self._ended.acquire()
        self.runner = 0
        self._mark: dict[str, object] = {}
        self.set_running_or_notify_cancel()

    def result(self, timeout: float | None = None) -> Released:
        """Wait, as `Future.result` does, and see to it that there is a thread that works."""
        self._wait(self, timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, as `Future.exception` does, and see to it that there is a thread that works."""
        self._wait(self, timeout)
        return super().exception(0)

    def ends_within(self, seconds: float) -> None:
        """Wait until the job is done, but no longer than that."""
        if self._ended.acquire(timeout=max(seconds, 0)):
            with suppress(RuntimeError):  # `tell` came once more meanwhile, and let it go
                self._ended.release()

    def mine(self, mark: object) -> bool:
        """Put a mark on the job, unless it has one; tell whether it is this one."""
        return self._mark.setdefault("mark", mark) is mark

    def work(self) -> None:
        """Release what is held; set the future to the result, or raise."""
        self.runner = get_ident()
        self.hold.recheck()
        released = finish(self.hold, self.max_stall_ns)
        self.hold.let_go()
        if not self.done():
            self.set_result(released)
        self.tell()

    def fail(self, error: BaseException) -> None:
        """Let go of everything and set the future to an error, unless it is set."""
        try:
            self.hold.let_go()
        finally:
            if not self.done():
                self.set_exception(error)
            self.tell()

    def tell(self) -> None:
        """Wake who waits in `ends_within`."""
        with suppress(RuntimeError):  # told already
            self._ended.release()
