"""A trouble on disk, between the agent that saw it and the child that makes a recording of it.

The agent only moves pages: decoding and writing Parquet needs libraries that would make it three
times as large. A spool folder has the raw pages and, once they are all there, what is needed to
read them. A folder without that is of an agent that was killed meanwhile: it is told and removed.
The folder is the agent's own (0700): what is read back is pickled.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from zaplock.errors import UserError
from zaplock.outputs import unwritable
from zaplock.recorder.buffers import Chunk
from zaplock.recorder.flight_limits import Fired
from zaplock.recorder.layouts import Layouts
from zaplock.recorder.naming import TaskNames
from zaplock.recorder.watch import Noticed
from zaplock.trace.events import FoundTask

_PAGES, _WHOLE = "pages.raw", "trouble.pickle"
_HEADER = struct.Struct("<qiq")
"""Before each piece: up to when the drain is complete (ns), the CPU, how many bytes follow."""


@dataclass(frozen=True)
class Trouble:
    """What a child needs to make a recording: all but the pages."""

    layouts: Layouts
    names: TaskNames
    noticed: Noticed
    operations: tuple[str, ...]
    units: dict[int, str]
    """The unit of each watched process."""
    started_at: str
    clock_offset_ns: int
    ended_ns: int
    gaps: tuple[tuple[int, int], ...]
    lost_events: int
    """How many the kernel says that it lost meanwhile."""
    holders: tuple[FoundTask, ...]
    """Who of the targets had the lock when the wait was noticed, before anything else was done."""
    enabled: tuple[str, ...]

    @property
    def fired(self) -> Fired:
        """The wait that was noticed."""
        return self.noticed.fired

    @property
    def pid(self) -> int:
        """The process whose lock was waited for."""
        return self.names.mms.get(self.fired.mm, 0)


class Spool:
    """The folders of troubles that are not in the store yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = path.stat()
            if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise UserError(f"{path} can be written by others: give --spool a folder of your "
                                "own, with mode 0700")  # fmt: skip
        except OSError as error:
            raise unwritable(path, error) from None

    def begin(self, name: str) -> tuple[Path, BinaryIO]:
        """Begin a folder; give it and the file for its pages."""
        folder = self.path / name
        folder.mkdir(mode=0o700)
        try:
            return folder, open(folder / _PAGES, "wb")
        except OSError:
            discard(folder)
            raise

    def waiting(self) -> list[Path]:
        """List the folders that are whole, the oldest first."""
        return [one for one in self._folders() if (one / _WHOLE).exists()]

    def broken(self) -> list[Path]:
        """List the folders that a killed agent left."""
        return [one for one in self._folders() if not (one / _WHOLE).exists()]

    def _folders(self) -> list[Path]:
        """List the folders; looked at every second, and mostly there is none."""
        names = list[str]()
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path) as entries:
            names += (entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        return [self.path / name for name in sorted(names)]

    @property
    def size(self) -> int:
        """How many bytes wait here."""
        files = (file for folder in self._folders() for file in folder.glob("*"))
        return sum(file.stat().st_size for file in files if file.is_file())


def add(pages: BinaryIO, before_ns: int, chunks: list[Chunk]) -> None:
    """Write what a drain brought."""
    pages.write(_HEADER.pack(before_ns, -1, 0))
    for cpu, content in chunks:
        pages.write(_HEADER.pack(before_ns, cpu, len(content)))
        pages.write(content)


def finish(folder: Path, trouble: Trouble) -> None:
    """Say that a folder is whole."""
    part = folder / f"{_WHOLE}.part"
    part.write_bytes(pickle.dumps(trouble))
    part.rename(folder / _WHOLE)


def read(folder: Path) -> tuple[Trouble, Iterator[tuple[int, list[Chunk]]]]:
    """Read a whole folder: what was seen, and drain by drain the pages."""
    trouble: Trouble = pickle.loads((folder / _WHOLE).read_bytes())
    return trouble, _drains(folder / _PAGES)


def _drains(path: Path) -> Iterator[tuple[int, list[Chunk]]]:
    before_ns, chunks = 0, list[Chunk]()
    with open(path, "rb") as file:
        while header := file.read(_HEADER.size):
            at_ns, cpu, size = _HEADER.unpack(header)
            if cpu < 0:
                if chunks:
                    yield before_ns, chunks
                before_ns, chunks = at_ns, []
            else:
                chunks.append((cpu, file.read(size)))
    if chunks:
        yield before_ns, chunks


def discard(folder: Path) -> None:
    """Remove a folder; one that is gone is removed."""
    shutil.rmtree(folder, ignore_errors=True)
