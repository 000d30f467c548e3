"""Show on a terminal how far a long search has come; be silent where nobody looks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from zaplock.units import duration

PATIENCE_S = 1.5
"""Work that is over sooner needs no progress."""


class Show(Protocol):
    """Shows how far some work is: in words, and as a part of it where that is known."""

    def __call__(self, line: str, part: float = 0.0, /) -> None: ...


def _left(passed_s: float, part: float) -> str:
    """Say how long the rest will take, if it goes on as it did."""
    return f", about {duration(passed_s / part * (1 - part) * 1e9)} left" if part else ""


@contextmanager
def counter(what: str) -> Iterator[Show]:
    """Give a function that shows a line of progress on stderr, from PATIENCE_S on.

    Told which part of the work is done, 0 to 1, it says when the rest will be, too.
    """
    from rich.text import Text

    from zaplock.views.console import Screen

    console = Screen(stderr=True)
    if not console.is_terminal:
        yield lambda _line, _part=0.0: None
        return
    started = time.monotonic()
    status = console.status(Text(what))
    running = False

    def show(line: str, part: float = 0.0) -> None:
        nonlocal running
        if not running and time.monotonic() - started > PATIENCE_S:
            status.start()
            running = True
        if running:
            status.update(Text(f"{what}: {line}{_left(time.monotonic() - started, part)}"))

    try:
        yield show
    finally:
        if running:
            status.stop()
