"""Ctrl-C, TERM and HUP end the recorded programs, and the recording is kept.

The first signal goes to every recorded process, so that each ends in its own way and its last maps
are seen; the second kills them. Ctrl-C at a terminal has come to its processes by itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_WHICH = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def handing_on(hand_on: Callable[[int], None]) -> Iterator[None]:
    """Call `hand_on` with each signal that is to end us, as long as the block lasts.

    It runs between any two bytecodes of the main thread; for a second signal it gets SIGKILL.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def handler(number: int, _: FrameType | None) -> None:
        came.append(number)
        hand_on(signal.SIGKILL if len(came) > 1 else number)

    heard = [one for one in _WHICH if signal.getsignal(one) is not signal.SIG_IGN]  # nohup
    before = {one: signal.signal(one, handler) for one in heard}
    try:
        yield
    finally:
        for one, former in before.items():
            signal.signal(one, former)


def send(pid: int, number: int) -> None:
    """Send a signal to a process, unless a terminal has given it the same Ctrl-C, or it is gone."""
    if number != signal.SIGINT or not _has_got_it(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _has_got_it(pid: int) -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp() == os.getpgid(pid)
    except OSError:
        return False
