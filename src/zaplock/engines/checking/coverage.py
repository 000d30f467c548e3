"""Which lines of some code ran while an audit did everything again: the rest nobody reached.

"Proved" says nothing about a line that no interleaving runs: perhaps the scenario never comes
there. A user's code is looked at whole; of zaplock's own the functions that were entered, where
that is asked for.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

Line = tuple[str, int]
"""A file and a line of it."""
_NONE: Final[frozenset[Line]] = frozenset()


@dataclass(frozen=True)
class Lines:
    """Lines that were looked at, and those of them that ran."""

    known: frozenset[Line] = _NONE
    ran: frozenset[Line] = _NONE

    def __or__(self, other: Lines) -> Lines:
        return Lines(self.known | other.known, self.ran | other.ran)

    def never_run(self) -> tuple[str, ...]:
        """Name the lines that have not run, neighbours as one: `own.py:43-45`."""
        return tuple(_spans(sorted(self.known - self.ran)))


NO_LINES: Final = Lines()


class LineCoverage:
    """The lines of some code, and of what is entered in a directory, and those that have run."""

    def __init__(self, codes: Iterable[types.CodeType], directory: str = "") -> None:
        self.codes = {inner for code in codes for inner in with_inner(code)}
        self.directory = directory
        self.ran: set[Line] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what runs meanwhile."""
        before = sys.gettrace()
        if before is not None:  # a debugger or another coverage tool is at work
            self.codes = set()
            yield
            return
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(None)

    def _called(self, frame: types.FrameType, _event: str, _arg: Any) -> Any:
        code = frame.f_code
        if self.directory and code.co_filename.startswith(self.directory):
            self.codes.add(code)
        return self._line if code in self.codes else None

    def _line(self, frame: types.FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            self.ran.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    def lines(self) -> Lines:
        """Return what was looked at and what of it ran."""
        known = frozenset(
            (code.co_filename, line)
            for code in self.codes
            for _, _, line in code.co_lines()
            if line is not None and line != code.co_firstlineno
        )
        return Lines(known, frozenset(self.ran))


def with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    """List code and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from with_inner(constant)


def _spans(lines: list[tuple[str, int]]) -> Iterator[str]:
    for file, of_file in groupby(lines, key=lambda line: line[0]):
        numbers = [number for _, number in of_file]
        runs = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
        for _, run in runs:
            found = [number for _, number in run]
            last = f"-{found[-1]}" if len(found) > 1 else ""
            yield f"{Path(file).name}:{found[0]}{last}"
