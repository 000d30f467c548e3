"""Standard output and error through which no escape sequence of a stranger passes.

Everything that a verb prints goes through here, whatever it is: what can't be printed comes out as
its escape. Only `rich` may move the cursor and choose colours: its consoles write past this (by
`rich_proxied_file`), and `zaplock.views.screen.Screen`, the only one that is used, applies the same
rule to each piece of text.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from zaplock.strangers import visible

_LAYOUT = "\n\t"


class _Guarded:
    """A text stream that shows what can't be printed; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Write a text, made visible. Returns the length of what was given."""
        encoding = self.rich_proxied_file.encoding or "utf-8"
        plain = visible(text, _LAYOUT).encode(encoding, "backslashreplace").decode(encoding)
        self.rich_proxied_file.write(plain)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Guard both streams while the block runs."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Guarded(sys.stdout), _Guarded(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
