"""The console on which all tables, spinners and bars are drawn: it shows strangers' texts plainly.

`rich` takes out five control characters and lets the rest pass, escape sequences among them. Here
every piece of text that is not `rich`'s own control is made visible before it is styled.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from zaplock.strangers import visible


class Screen(Console):
    """A `rich` console; its arguments are the same. No text is taken for markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as `rich` does, with whatever can't be printed as an escape."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text, "\n"), segment.style)
