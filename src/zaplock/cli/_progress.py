"""Show on a terminal how far a long search has come; be silent where nobody looks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Protocol

from zaplock.units import duration

PATIENCE_S = 1.5
"""Work that is over sooner needs no progress."""


class Show(Protocol):
    """Shows how far some work is: in words, and as a part of it where that is known."""

    def __call__(self, line: str, part: float = 0.0, /) -> None: ...


def _left(passed_s: float, part: float) -> str:
    """Say how long the rest will take, if it goes on as it did."""
    return f", about {duration(round(passed_s / part * (1 - part) * 1e9))} left" if part else ""


@contextmanager
def counter(what: str) -> Iterator[Show]:
    """Give a function that shows a line of progress on stderr.

    What is done is shown from PATIENCE_S on, and how far it has come where that was told. Told
    which part of the work is done, 0 to 1, it says when the rest will be, too.
    """
    from rich.text import Text

    from zaplock.views.console import Screen

    console = Screen(stderr=True)
    if not console.is_terminal:
        yield lambda _line, _part=0.0: None
        return
    started = time.monotonic()
    status = console.status(Text(what))
    late = Timer(PATIENCE_S, status.start)
    late.daemon = True
    late.start()

    def show(line: str, part: float = 0.0) -> None:
        status.update(Text(f"{what}: {line}{_left(time.monotonic() - started, part)}"))

    try:
        yield show
    finally:
        late.cancel()
        late.join()
        status.stop()
