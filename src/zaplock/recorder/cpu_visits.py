"""Visit one cpu after the other, from a thread that goes before ordinary ones there.

A cpu may belong to somebody who goes before us: a real-time thread that never sleeps. Whoever binds
itself to that cpu stays in its queue as long as that lasts, since ordinary threads have a share of
their own (the fair server, or what sched_rt_runtime_us leaves) and real-time ones have none. So
whoever waits for the visitor calls it back from a cpu on which it doesn't arrive, and it goes
there no more.

The visitor must not have Python's lock on its way, or nobody could call it back: `os` keeps it over
the system call, ctypes doesn't. Not covered: a real-time thread that begins after the visitor has
arrived and never sleeps; it is kept off until then, and with it all of this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from zaplock.recorder.scheduling import start_first

Result = TypeVar("Result")

PATIENCE_S = 0.05
"""The kernel moves a real-time thread to a cpu at once, within some 50 us."""

_LOOKS_S = 0.01
"""So often it is looked whether the visitor has arrived."""

_WORD = ctypes.sizeof(ctypes.c_ulong) * 8


class CpuVisits:
    """The visitor's side is `go_to`, the waiting thread's is `call_back`."""

    def __init__(self) -> None:
        self._allowed = os.sched_getaffinity(0)
        self._closed = set[int]()
        self._changing = threading.Lock()
        self._going: tuple[int, int, float] | None = None  # thread, cpu, since when
        self._libc = ctypes.CDLL(None, use_errno=True)

    def go_to(self, cpu: int) -> bool:
        """Run on that cpu from now on; False where that can't be: it is not ours, or taken."""
        if cpu in self._closed:
            return False
        thread = threading.get_native_id()
        with self._changing:
            self._going = (thread, cpu, time.monotonic())
        words = (ctypes.c_ulong * (cpu // _WORD + 1))()
        words[cpu // _WORD] = 1 << cpu % _WORD
        failed = self._libc.sched_setaffinity(0, ctypes.sizeof(words), words)
        with self._changing:
            self._going = None
            return not failed and cpu not in self._closed

    def call_back(self) -> None:
        """Let the visitor run elsewhere if it has not arrived in time."""
        with self._changing:
            if self._going is None:
                return
            thread, cpu, since = self._going
            if time.monotonic() - since < PATIENCE_S:
                return
            self._closed.add(cpu)
            elsewhere = self._allowed - self._closed
            with contextlib.suppress(OSError):  # it has ended, or may run nowhere else
                os.sched_setaffinity(thread, elsewhere or self._allowed)


def visiting(work: Callable[[CpuVisits], Result]) -> Result:
    """Do some work in a thread that visits cpus; it goes first if this thread does.

    What the work raises is raised here.
    """
    visits, done, failed = CpuVisits(), list[Result](), list[BaseException]()

    def visitor() -> None:
        with contextlib.suppress(OSError):  # without it we come to a cpu somewhat later
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        try:
            done.append(work(visits))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=visitor)
    start_first(thread)
    while thread.is_alive():
        thread.join(_LOOKS_S)
        visits.call_back()
    if failed:
        raise failed[0]
    return done[0]
