"""A folder for one run, gone afterwards: at once, or at the next run if this one was killed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_NAME = re.compile(r"zaplock-guest-(\d+)-")


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Give a folder in the system's place for temporary files."""
    sweep()
    with tempfile.TemporaryDirectory(prefix=f"zaplock-guest-{os.getpid()}-") as name:
        yield Path(name)


def sweep() -> None:
    """Remove the folders of runs whose process is gone."""
    for path in Path(tempfile.gettempdir()).glob("zaplock-guest-*"):
        match = _NAME.match(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            shutil.rmtree(path, ignore_errors=True)
