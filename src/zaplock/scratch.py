"""A folder for as long as its owner lives: gone with it, or at the next start if it was killed.

Each folder is locked (`flock`) by whoever made it, and by what that has forked; the lock goes with
the last of them, also by SIGKILL, and no number of a process that another may get is asked for.
Whoever makes a folder first removes those of its kind, in the same place and of the same user, that
nobody locks any more. Where a file system knows no locks they are left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path


class Scratch:
    """A folder called zaplock-KIND-..., in `directory` or where the system has such files.

    `with` gives its path. Raises OSError where it can't be made.
    """

    def __init__(self, kind: str, directory: str | os.PathLike[str] | None = None) -> None:
        place = Path(directory or tempfile.gettempdir())
        sweep(kind, place)
        self.path, self._lock = _made(kind, place)

    def close(self) -> None:
        """Remove it. Twice does no harm."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def _made(kind: str, place: Path) -> tuple[Path, int]:
    """Make a folder and lock it. One that was swept between the two is made again."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"zaplock-{kind}-", dir=place))
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # no locks here: then nobody sweeps here either
            fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return path, lock
        os.close(lock)


def sweep(kind: str, place: Path) -> list[Path]:
    """Remove the folders of a kind whose owners are gone; return them."""
    swept = []
    for path in sorted(place.glob(f"zaplock-{kind}-*")):
        with contextlib.suppress(OSError):  # somebody has it, it is another user's, or just gone
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.geteuid():
                    shutil.rmtree(path, ignore_errors=True)
                    swept.append(path)
            finally:
                os.close(lock)
    return swept
