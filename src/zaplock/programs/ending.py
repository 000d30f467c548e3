"""Ctrl-C, TERM and HUP end the recorded programs, and the recording is kept.

The first signal goes to every recorded process, so that each ends in its own way and its last maps
are seen; the second kills them. Ctrl-C at a terminal has come to its processes by itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

_WHICH = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def handing_on(processes: Callable[[], Iterable[int]]) -> Iterator[None]:
    """Hand signals on to the processes that `processes` lists, as long as the block lasts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        came.append(number)
        sent = signal.SIGKILL if len(came) > 1 else number
        for pid in processes():
            if sent != signal.SIGINT or not _has_got_it(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sent)

    before = {one: signal.signal(one, hand_on) for one in _WHICH}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _has_got_it(pid: int) -> bool:
    """Return whether a terminal gives Ctrl-C to this process as well as to us."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp() == os.getpgid(pid)
    except OSError:
        return False
