"""Clean-ups that no signal handler's exception cuts short.

Ctrl-C raises KeyboardInterrupt between any two bytecodes of the main thread, of a clean-up too: a
trace instance would stay, or a buffer be closed under the thread that reads it. Here what a handler
would do is put off until the block is over.

Whatever comes in the very moment in which a block begins is not put off, so a clean-up is done
again after that (`surely`), and what holds an instance has a finalizer on top (`tracefs`).
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_WHICH = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off Python's handlers of INT, TERM, HUP and ALRM until the block is over.

    They run in the main thread alone, so elsewhere there is nothing to do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {one: signal.getsignal(one) for one in _WHICH}
    deferred = {one: handler for one, handler in handlers.items() if callable(handler)}
    for one in deferred:
        signal.signal(one, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for one, handler in deferred.items():
            signal.signal(one, handler)
        for number in came:
            signal.raise_signal(number)


def surely(action: Callable[[], object]) -> None:
    """Do what does no harm when it is done twice, whatever signal comes."""
    try:
        with uninterrupted():
            action()
    except KeyboardInterrupt:
        with uninterrupted():
            action()
        raise
