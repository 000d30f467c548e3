"""Files that zaplock is given: plain ones, of a bounded size, whatever else is in their place.

A FIFO would keep a reader for ever, a device has no end, and a file that is larger than anything of
its kind can only be a mistake or an attack.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from zaplock.errors import UserError

MOST_TEXT = 16 << 20
"""Of a file that somebody has written by hand."""


def open_plain(path: str | os.PathLike[str], way_out: str, *, follow: bool = True) -> BinaryIO:
    """Open a plain file without waiting for anybody; `follow` a symbolic link at its end, or not.

    Raises UserError, which ends in `way_out`, for what is none; OSError where it can't be opened.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    file = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UserError(f"{path} is no plain file: {way_out}")
    return os.fdopen(file, "rb")


def read_plain(
    path: str | os.PathLike[str], most: int, way_out: str, *, follow: bool = True
) -> bytes:
    """Read a plain file of at most so many bytes. Raises as `open_plain` does."""
    with open_plain(path, way_out, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise UserError(f"{path} has {size:,} bytes and at most {most:,} are read: {way_out}")
        return file.read(most)


def read_text(path: str | os.PathLike[str], what: str, most: int = MOST_TEXT) -> str:
    """Read a text in UTF-8. Raises UserError, which names `what` it should be, for anything else.

    A file of /proc would seem empty: it has no size, so it is no such text either.
    """
    way_out = f"give {what}"
    try:
        return read_plain(Path(path), most, way_out).decode()
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError, wrong UTF-8 too
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise UserError(f"{str(path)!a} can't be read ({reason}): {way_out}") from None
