"""What users write: a design, a scenario, an operation, ... by the reference FILE.py:NAME.

A file is run once, however many of its names are asked for, so that a design and a scenario of one
file share its classes and functions. It may import its neighbours. A file whose text has changed is
run anew.
"""

from __future__ import annotations

import re
import runpy
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from zaplock.errors import UserError
from zaplock.inputs import read_text

T = TypeVar("T")

_FILES: Final[dict[str, str]] = {}
"""The files that were run, and what was in them."""

_REFERENCE: Final = re.compile(r"(?P<file>.+\.py):(?P<name>\w+)", re.DOTALL)


def is_reference(text: str) -> bool:
    """Return whether a text has the form FILE.py:NAME."""
    return _REFERENCE.fullmatch(text) is not None


def named_in_file(reference: str, kind: type[T], what: str) -> T:
    """Return what FILE.py:NAME stands for; `what` says in words what it has to be ("a design").

    Raises UserError where there is no such file or name, where the file fails, or where the name
    stands for something else.
    """
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise UserError(f"{reference!a} is not FILE.py:NAME, such as mine.py:MINE for {what}")
    file, name = found["file"], found["name"]
    names = _names_of(file, what)
    value = names.get(name)
    if isinstance(value, kind):
        return value
    others = ", ".join(key for key, one in names.items() if isinstance(one, kind))
    is_what = f"is a {type(value).__name__}" if name in names else "is not there"
    raise UserError(
        f"{name!r} in {file!r} {is_what}, and has to be {what}; the file has {others or 'none'}"
    )


def _names_of(file: str, what: str) -> dict[str, Any]:
    if not Path(file).is_file():
        raise UserError(f"{what}: the file {file!r} does not exist; give FILE.py:NAME")
    return _run(file, read_text(Path(file), f"{what} in Python"))


@cache
def _run(file: str, text: str) -> dict[str, Any]:
    """Run a file; `text`, what is in it, tells when to run it anew."""
    _FILES[file] = text
    try:
        with _beside(Path(file).resolve().parent):
            return runpy.run_path(file)
    except UserError as error:
        raise UserError(f"file {file!r}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(
            f"file {file!r} fails with {type(error).__name__}{_line_of(error, file)}: "
            f"{' '.join(str(error).split())}"
        ) from error


@contextmanager
def _beside(directory: Path) -> Iterator[None]:
    """Let a file import what lies beside it, and leave nothing of that in the way of another's."""
    before, writes = set(sys.modules), sys.dont_write_bytecode
    sys.path.append(str(directory))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path.remove(str(directory))
        sys.dont_write_bytecode = writes
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == directory:
                del sys.modules[name]


def is_function(name: str) -> bool:
    """Return whether a file that was run has a function of that name."""
    return any(f"def {name}(" in text for text in _FILES.values())


def said_of_own_code(error: Exception) -> str:
    """Describe in one line what went wrong with the code of a user's file, "" if none was run.

    What it has handed over may also fail elsewhere: a munmap that is no protocol, for instance.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not _FILES or not frames:
        return ""
    last = [frame for frame in frames if frame.filename in _FILES] or frames
    where = f"{last[-1].name} ({Path(last[-1].filename).name}:{last[-1].lineno})"
    return f"{type(error).__name__} in {where}: {' '.join(str(error).split())}"


def _line_of(error: BaseException, file: str) -> str:
    if isinstance(error, SyntaxError) and error.filename == file:
        return f" in line {error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    return f" in line {lines[-1]}" if lines else ""
