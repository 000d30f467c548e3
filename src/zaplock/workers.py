"""Worker processes that never outlive the process that made them, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

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
            raise
