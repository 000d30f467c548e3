"""Files that a verb is to write, looked at before it works for them; and those of --save."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from zaplock import outputs
from zaplock.errors import UserError


def require_files(given: Mapping[str, str | None]) -> None:
    """Raise UserError unless each file that an option names can be written, and by it alone.

    What is there stays as it is.
    """
    named: dict[str, str] = {}
    for option, path in given.items():
        if path is None:
            continue
        first = named.setdefault(os.path.realpath(path), option)
        if first != option:
            raise UserError(f"{first} and {option} name one file, {path!a}: give each its own")
        outputs.require_writable(path)


def require_folders(given: Mapping[str, str | None]) -> None:
    """Raise UserError where no folder is or can be made: what is there is none, or bars the way.

    Nothing is made yet.
    """
    for option, path in given.items():
        if path is None:
            continue
        there = os.path.abspath(path)
        while not os.path.lexists(there):
            there = os.path.dirname(there)
        if not os.path.isdir(there):
            raise UserError(f"{option} {path!a}: {there} is no folder: name a folder, or a new one")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(
                f"{option} {path!a}: {there} may not be written into: name a folder of yours"
            )


def save(directory: Path, texts: Iterable[tuple[str, str]]) -> list[Path]:
    """Write files of these names and texts into the folder of --save; return where they are.

    Raises UserError where that can't be written into.
    """
    saved = []
    try:
        with outputs.walk(directory, make=True) as folder:
            for name, text in texts:
                folder.write(name, text.encode(), 0o666)
                saved.append(directory / name)
    except OSError as error:
        raise UserError(
            f"can't write into {directory}: {error.strerror}; give --save a directory of yours"
        ) from None
    return saved
