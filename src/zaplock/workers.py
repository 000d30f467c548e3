"""Worker processes that never outlive the process that made them, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from zaplock.errors import UserError

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

_PR_SET_PDEATHSIG: Final = 1


def die_with(parent: int) -> None:
    """Let the kernel kill this process when `parent`, which made it, ends; Ctrl-C is for that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before this process asked
        os._exit(1)


def check_python() -> None:
    """Raise UserError where this user can't start the Python that runs (one in /root, say)."""
    if not os.access(sys.executable, os.X_OK):
        raise UserError(no_python())


def no_python() -> str:
    """Say that this user can't start the Python that runs."""
    return (
        f"user {os.getuid()} may not start {sys.executable}, as whose child part of the work is "
        "done: use a Python that all its folders let this user reach"
    )


def _enter(parent: int, begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    die_with(parent)
    if begin is not None:
        begin(*arguments)


@contextmanager
def pool(
    jobs: int,
    start_method: str,
    begin: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[ProcessPoolExecutor]:
    """Lend a pool of so many workers, which are killed where the block is left by an exception.

    Each calls `begin` with the arguments before its first work.

    Its `map` is not for use: interrupted, it cancels what was begun, and up to Python 3.11 a pool
    whose workers are ended then dies with a traceback of its own.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context(start_method)
    entering = (os.getpid(), begin, arguments)
    with ProcessPoolExecutor(jobs, context, _enter, entering) as executor:
        try:
            yield executor
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.kill()  # what it is at could take minutes
            _let_half_a_result_end(executor)
            raise


def _let_half_a_result_end(executor: ProcessPoolExecutor) -> None:
    """Close this process's own writing end of the results' pipe, which it never writes to.

    A worker that was killed while it wrote has left half a result, for whose rest the executor's
    thread would wait as long as anybody could write it.
    """
    results: Any = getattr(executor, "_result_queue", None)
    if results is not None:
        results._writer.close()
