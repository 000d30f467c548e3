"""Lines in the width of a terminal: folded between words, never in one, and never cut.

A word that is longer than the terminal is wide (a path) stays whole on a line of its own. Where the
output goes to a file or a pipe nothing is folded: whoever reads it there has a width of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rich.cells import cell_len

_FIGURE = re.compile(r"(?<=\d) (?=(?:[num]?s|[KMGT]iB|B|%)(?!\w))")
"""The blank between a number and its unit, which stay together."""

_SHELL_WORD = re.compile(r"""(?:\$'(?:\\.|[^'\\])*'|'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s])+""", re.S)
"""A word as a shell reads it; a quotation mark without a second one is any other character."""

HANGING = 2
"""Blanks by which what goes on stands further in than its line began."""


def fold(line: str, width: int, *, hanging: int = HANGING) -> list[str]:
    """Fold one line to `width` cells; what goes on is indented as its beginning, and `hanging`.

    >>> fold("  81 ms behind python3, which held it", 24)
    ['  81 ms behind python3,', '    which held it']
    """
    if cell_len(line) <= width:
        return [line]
    text = line.lstrip(" ")
    margin = " " * min(len(line) - len(text), width // 2)
    return _laid(_pieces(text, width - len(margin) - hanging), width, margin, hanging)


def _laid(pieces: Iterable[tuple[str, str]], width: int, margin: str, hanging: int) -> list[str]:
    """Lay pieces, each with what joins it to the one before, into lines."""
    folded, here = [], margin
    for blank, word in pieces:
        if here.strip() and cell_len(here) + len(blank) + cell_len(word) > width:
            folded.append(here.rstrip(" "))
            here = margin + " " * hanging + word
        else:
            here += blank + word if here.strip() else word
    return [*folded, here.rstrip(" ")]


def fold_command(command: str, width: int, *, prompt: str = "") -> list[str]:
    """Fold a command so that a shell still takes it: each line but the last ends in a backslash.

    >>> fold_command("zaplock record -p 4711 -o why.zaplock", 32, prompt="next: ")
    ['next: zaplock record -p 4711 \\\\', '        -o why.zaplock']

    What stands in quotes is one word, blanks and all: a backslash in there ends no line.
    """
    if cell_len(prompt + command) <= width:
        return [prompt + command]
    pieces = [(" ", word) for word in [*prompt.split(), *_SHELL_WORD.findall(command)]]
    lines = _laid(pieces, width - len(" \\"), "", len(prompt) + HANGING)
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def longest_word(text: str) -> int:
    """Return the width below which a text can't be folded, in cells."""
    return max((cell_len(word) for word in _words(text)), default=0)


def _pieces(text: str, width: int) -> Iterator[tuple[str, str]]:
    """Split at blanks, and lists without blanks (`read|write|exec`) that are too wide at a bar.

    Give each piece with what joins it to the one before.
    """
    for word in _words(text):
        parts = re.findall(r"[^|]*\||[^|]+", word) if cell_len(word) > width else [word]
        for at, part in enumerate(parts or [word]):
            yield ("" if at else " "), part


def _words(text: str) -> list[str]:
    """Split at blanks; a figure is one word with its unit."""
    return [word.replace("\0", " ") for word in _FIGURE.sub("\0", text).split(" ")]
