"""Take away what was switched on: all of it, whatever signal comes, and beside other work.

It takes the kernel a fifth of a second, in which what was recorded can be written.
"""

from __future__ import annotations

import contextlib
import threading

from zaplock.recorder.scheduling import going_first, join_first, start_first
from zaplock.recorder.uninterrupted import surely, uninterrupted


class Closing:
    """A stack whose callbacks are all called at the end of the block, whatever signal comes.

    They may be called before, in a thread (`begin`); then the end of the block waits for it.
    """

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Call them from now on, in a thread."""
        with uninterrupted():  # or it might run, and nobody know of it
            thread = threading.Thread(target=self._run, daemon=True)
            start_first(thread)
            self._thread = thread

    def _run(self) -> None:
        try:
            self.stack.close()
        except BaseException as error:
            self._error = error

    def _end(self) -> None:
        if self._thread:
            join_first(self._thread)
        self.stack.close()

    def __enter__(self) -> Closing:
        return self

    def __exit__(self, *_: object) -> None:
        with going_first():
            surely(self._end)
        if self._error:
            raise self._error
