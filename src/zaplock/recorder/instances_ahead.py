"""Make trace instances while Python imports.

The kernel takes a thirtieth of a second for each, in which Python has nothing to do; importing what
records takes Python a fifth. So a verb that is in a hurry makes them beside its imports, and
`capturing` takes them. Whoever goes first (`urgent`) does not while they are made: a worker of the
kernel's on each CPU has a part in it. Whatever goes wrong here is left to `capturing`: it makes
what is missing, and says why that can't be.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

from zaplock.errors import UserError
from zaplock.recorder.scheduling import join_first, sharing_python, standing_back, start_first
from zaplock.recorder.tracefs import Instance, Tracefs, mounted
from zaplock.recorder.uninterrupted import surely


def chosen_buffer_kb() -> int:
    """Choose the size of each CPU's buffer in KiB: 32 MiB, less where memory is short.

    All buffers together take at most a sixteenth of the memory.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    share = memory // 16 // (os.cpu_count() or 1)
    return max(1024, min(32 << 10, share >> 10))


class Ahead:
    """So many instances, made in a thread from the beginning of a `with` block on.

    What nobody has taken by its end is removed.
    """

    def __init__(self, count: int) -> None:
        """Say how many will be needed: two where there is a target, one where there is none."""
        self._count = count
        self._made: list[Instance] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._may_begin = threading.Event()
        self._go_first_again: Callable[[], None] = lambda: None

    def _run(self) -> None:
        self._may_begin.wait()
        try:
            self._make()
        finally:
            self._go_first_again()

    def _make(self) -> None:
        with contextlib.suppress(UserError, OSError), sharing_python():
            where = mounted()  # a mount of our own would be another one
            if where is None:
                return
            for _ in range(self._count):
                instance = Instance(Tracefs(where, private=False), buffer_kb=chosen_buffer_kb())
                self._made.append(instance)

    def take(self) -> Instance | None:
        """Give one that was made, whose remover is now the caller; None where there is none."""
        join_first(self._thread)
        return self._made.pop() if self._made else None

    def __enter__(self) -> Ahead:
        start_first(self._thread)
        self._go_first_again = standing_back()
        self._may_begin.set()
        return self

    def __exit__(self, *_: object) -> None:
        surely(self._clear)

    def _clear(self) -> None:
        self._thread.join()
        while self._made:
            self._made[-1].remove()
            self._made.pop()
