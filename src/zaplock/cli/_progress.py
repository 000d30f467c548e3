"""Show on a terminal how far a long search has come; be silent where nobody looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 1.5
"""Work that is over sooner needs no progress."""


@contextmanager
def counter(what: str) -> Iterator[Callable[[str], None]]:
    """Give a function that shows a line of progress on stderr, from PATIENCE_S on."""
    from rich.text import Text

    from zaplock.views.screen import Screen

    console = Screen(stderr=True)
    if not console.is_terminal:
        yield lambda _line: None
        return
    started = time.monotonic()
    status = console.status(Text(what))
    running = False

    def show(line: str) -> None:
        nonlocal running
        if not running and time.monotonic() - started > PATIENCE_S:
            status.start()
            running = True
        if running:
            status.update(Text(f"{what}: {line}"))

    try:
        yield show
    finally:
        if running:
            status.stop()
