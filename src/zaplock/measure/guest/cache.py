"""Where kernels and the compiled probe are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

from zaplock.errors import UserError


def folder(name: str) -> Path:
    """Return (and make) a folder of the cache: $ZAPLOCK_CACHE, else zaplock in the user's cache."""
    chosen = os.environ.get("ZAPLOCK_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = (Path(chosen) if chosen else Path(base) / "zaplock") / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache {path} can't be made ({error.strerror}): "
            "set ZAPLOCK_CACHE to a folder of yours"
        ) from None
    return path
