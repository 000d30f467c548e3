"""TERM and HUP end a verb as Ctrl-C does, so that its clean-up runs; none of them is lost.

A signal raises KeyboardInterrupt between two bytecodes of the main thread. Where that happens in a
destructor, a callback or inside of a library in C, it may be told and forgotten, or forgotten in
silence (a look-up in a dict clears whatever an `__eq__` has raised). So a moment later it is looked
whether the exception is on its way, which is when some `except`, `finally` or `with` handles it,
and else it is raised again. A verb that ends by it in its own way says so (`answered`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

_AGAIN_S = 0.02
_WHICH = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndedBySignal(KeyboardInterrupt):
    """A signal that ends a program, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class _Raised:
    """The signal that has raised something nobody has come to terms with yet; 0: none."""

    def __init__(self) -> None:
        self.number, self._before = 0, signal.getsignal(signal.SIGALRM)

    def raise_(self, number: int) -> NoReturn:
        """Raise what a signal raises, and look after it."""
        if not self.number:
            self._before = signal.signal(signal.SIGALRM, self._again)
        self.number = number
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        raise KeyboardInterrupt if number == signal.SIGINT else EndedBySignal(number)

    def answered(self) -> None:
        """Look after it no longer."""
        if self.number:
            self.number = 0
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)

    def _again(self, _number: int, _frame: FrameType | None) -> None:
        if self.number and not _is_handled(sys.exc_info()[1]):
            self.raise_(self.number)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S if self.number else 0)


_raised = _Raised()


def answered() -> None:
    """Say that the signal that came is answered by going on, so that it isn't raised again."""
    _raised.answered()


def number_of(signalled: KeyboardInterrupt) -> int:
    """Return the signal that an exception came by."""
    return signalled.number if isinstance(signalled, EndedBySignal) else signal.SIGINT


@contextlib.contextmanager
def in_good_order() -> Iterator[None]:
    """Let TERM and HUP end what runs in the block as Ctrl-C does, wherever they come.

    A worker that was forked meanwhile ends at once: it has nothing of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def end(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == owner:
            _raised.raise_(number)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def swallowed(unraisable: sys.UnraisableHookArgs) -> None:
        if os.getpid() != owner or not isinstance(unraisable.exc_value, KeyboardInterrupt):
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, swallowed
    before = {one: signal.getsignal(one) for one in _WHICH}
    for one, handler in before.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(one, end)
    try:
        yield
        if _raised.number:  # forgotten in the last moment
            raise EndedBySignal(_raised.number)
    except Exception as error:
        if _raised.number and _was_made_of_a_signal(error):
            raise EndedBySignal(_raised.number) from error
        raise
    finally:
        _raised.answered()
        sys.unraisablehook = hook
        for one, handler in before.items():
            signal.signal(one, handler)


def _is_handled(error: BaseException | None) -> bool:
    """Say whether what is handled just now came of a signal, at least in part."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__context__
    return False


def _was_made_of_a_signal(error: BaseException | None) -> bool:
    """Say whether somebody has turned what a signal raised into an error of their own.

    Python does that to whatever is raised in a `__set_name__` (until 3.12), who reads a user's file
    to whatever that raises, and a library in C that imports another says that it could not. What
    goes wrong in a clean-up has no such cause, and is told.
    """
    while error is not None and not isinstance(error, (KeyboardInterrupt, ImportError)):
        error = error.__cause__
    return error is not None
