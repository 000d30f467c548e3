"""Standard output and error through which no escape sequence of a stranger passes.

Everything that a verb prints goes through here, whatever it is: what can't be printed comes out as
its escape, and on a terminal lines are folded between words. Only `rich` may move the cursor and
choose colours: its consoles write past this (by `rich_proxied_file`), and
`zaplock.views.console.Screen`, the only one that is used, applies the same rules to each piece of
text. Whoever stops reading has seen what they wanted (`while_read`).
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from zaplock.untrusted_names import visible

_LAYOUT = "\n\t"


class _Guarded:
    """A text stream that shows what can't be printed; everything else is the stream's own."""

    def __init__(self, stream: TextIO, *, folded: bool) -> None:
        self._stream = stream
        self._folded = folded and stream.isatty()
        self._begun = ""

    @property
    def rich_proxied_file(self) -> TextIO:
        """The stream itself, for `rich`; what was written here comes before what it writes."""
        self._end_line()
        inner: TextIO = getattr(self._stream, "rich_proxied_file", self._stream)
        return inner

    def write(self, text: str) -> int:
        """Write a text, made visible. Returns the length of what was given."""
        plain = self._plain(text)
        if not self._folded:
            self._stream.write(plain)
            return len(text)
        *whole, self._begun = (self._begun + plain).split("\n")
        self._write_lines(whole)
        return len(text)

    def write_whole(self, text: str) -> None:
        """Write lines without folding them."""
        self._end_line()
        self._stream.write(self._plain(text))

    def flush(self) -> None:
        """Write what has no end of line yet, too."""
        self._end_line()
        self._stream.flush()

    def _plain(self, text: str) -> str:
        encoding = self._stream.encoding or "utf-8"
        return visible(text, _LAYOUT).encode(encoding, "backslashreplace").decode(encoding)

    def _write_lines(self, lines: list[str]) -> None:
        from zaplock.views.fold_lines import fold

        width = shutil.get_terminal_size().columns
        for line in lines:
            self._stream.write("".join(f"{part}\n" for part in fold(line, width)))

    def _end_line(self) -> None:
        if self._begun:
            self._stream.write(self._begun)
            self._begun = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def write_whole(out: TextIO, text: str) -> None:
    """Write lines that are not folded: a command that is folded already, as a shell takes it."""
    if isinstance(out, _Guarded):
        out.write_whole(text)
    else:
        out.write(text)


@contextlib.contextmanager
def while_read() -> Iterator[None]:
    """Print as long as somebody reads; an exit code that is known stands however much is read."""
    try:
        try:
            yield
        except SystemExit:  # after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def guarded(*, folded: bool = True) -> Iterator[None]:
    """Guard both streams while the block runs; `folded`: lines fit a terminal's width."""
    before = sys.stdout, sys.stderr
    if sys.stderr is None:  # closed by whoever started us
        sys.stderr = io.StringIO()
    if sys.stdout is None:
        print("zaplock: standard output is closed: open it, or send it to a file", file=sys.stderr)
        sys.exit(2)
    mine = _Guarded(sys.stdout, folded=folded), _Guarded(sys.stderr, folded=folded)
    sys.stdout, sys.stderr = mine
    try:
        yield
    finally:
        for stream in mine:
            with contextlib.suppress(ValueError):  # closed meanwhile
                stream._end_line()
        sys.stdout, sys.stderr = before
