"""Say on a terminal what a verb is busy with; be silent where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner on stderr while the block runs; give what says what it has come to."""
    if not sys.stderr.isatty():
        yield lambda _what: None
        return
    from rich.text import Text

    from zaplock.views.console import Screen

    with Screen(stderr=True).status(Text(what)) as status:
        yield lambda now: status.update(Text(now))
