"""The console on which all tables, spinners and bars are drawn: it shows strangers' texts plainly.

`rich` takes out five control characters and lets the rest pass, escape sequences among them. Here
every piece of text that is not `rich`'s own control is made visible before it is styled.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text

from zaplock.untrusted_names import visible
from zaplock.views.fold_lines import fold

UNBOUNDED = 100_000
"""The width of a file or a pipe, in cells: whatever a line needs."""


class Screen(Console):
    """A `rich` console; its arguments are the same. No text is taken for markup.

    A file or a pipe has no width, unless COLUMNS gives it one.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})
        if not self.is_terminal and "width" not in options and "COLUMNS" not in os.environ:
            self.width = UNBOUNDED

    @property
    def file(self) -> IO[str]:
        """Return the stream beneath all that stand before it.

        While a spinner turns, one of `rich`'s own stands before the guarded stream, and `rich`
        looks behind one only: its control would be made visible, like a stranger's.
        """
        file: IO[str] = super().file
        while (inner := getattr(file, "rich_proxied_file", file)) is not file:
            file = inner
        return file

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def print(self, *objects: Any, crop: bool = False, **options: Any) -> None:
        """Print as `rich` does, but leave a word that is wider than the screen whole."""
        super().print(*objects, crop=crop, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as `rich` does, with whatever can't be printed as an escape."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text, "\n"), segment.style)


class Said:
    """A line of an answer, folded between words, further in where it goes on."""

    def __init__(self, line: str, style: str = "") -> None:
        self.line, self.style = line, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in fold(visible(self.line), options.max_width):
            yield Text(line, self.style, no_wrap=True, overflow="ignore")
