"""Where kernels and compiled programs are kept between runs.

A program is run by whoever measures, root among others, with whose rights a kernel is booted; so
the cache is used only where nobody but this user and root can put something in its place: every
directory on the way to it belongs to one of the two and can't be written by others (a sticky one,
as /tmp is, can't be used to replace what is ours).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from zaplock.errors import UserError


def folder(name: str) -> Path:
    """Return (and make) a folder of the cache: $ZAPLOCK_CACHE, else zaplock in the user's cache.

    Raises UserError where it can't be made, there is no home to make it in, or others could replace
    what is in it.
    """
    chosen = os.environ.get("ZAPLOCK_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not chosen and base.startswith("~"):
        raise UserError(
            f"user {os.getuid()} has no home to keep things in: set ZAPLOCK_CACHE to a folder"
        )
    path = (Path(chosen) if chosen else Path(base) / "zaplock") / name
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        path = path.resolve()
        for place in (path, *path.parents):
            _refuse_strangers(place)
    except OSError as error:
        raise UserError(
            f"the cache {path} can't be made ({error.strerror}): "
            "set ZAPLOCK_CACHE to a folder of yours"
        ) from None
    return path


def _refuse_strangers(place: Path) -> None:
    found = place.stat()
    sticky = bool(found.st_mode & stat.S_ISVTX)
    if found.st_uid not in (0, os.geteuid()) or (found.st_mode & 0o022 and not sticky):
        raise UserError(
            f"the cache lies in {place}, where others can replace what zaplock runs: "
            "set ZAPLOCK_CACHE to a folder of yours, such as /var/cache/zaplock for root"
        )
