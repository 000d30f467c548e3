"""Say on a terminal what a verb is busy with; be silent where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show a spinner on stderr while the block runs."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.text import Text

    from zaplock.views.console import Screen

    with Screen(stderr=True).status(Text(what)):
        yield
