"""Say on a terminal what a verb is busy with; be silent where nobody looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show a spinner on stderr while the block runs."""
    from rich.text import Text

    from zaplock.views.screen import Screen

    console = Screen(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(Text(what)):
        yield
