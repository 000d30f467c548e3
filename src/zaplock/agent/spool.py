"""A trouble on disk, between the agent that saw it and the child that makes a recording of it.

The agent only moves pages: decoding and writing Parquet needs libraries that would make it three
times as large. A folder of the spool has a recording that is begun and not decoded
(`recorder.spool`) and, once all of it is there, what the store and the log have to know. A folder
without that is of an agent that was killed meanwhile: it is told and removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import msgspec

from zaplock.errors import UserError
from zaplock.outputs import unwritable, walk
from zaplock.recorder.flight_limits import Fired
from zaplock.trace.recorded_tasks import FoundTask

_RECORDING, _WHOLE = "one.zaplock", "trouble.json"


class Trouble(msgspec.Struct, frozen=True):
    """What a child needs to know of a trouble beside its recording."""

    fired: Fired
    """The wait that was noticed."""
    pid: int
    """The process whose lock was waited for."""
    units: dict[int, str]
    """The unit of each watched process."""
    clock_offset_ns: int
    holders: tuple[FoundTask, ...]
    """Who of the targets had the lock when the wait was noticed, before anything else was done."""


class Spool:
    """The folders of troubles that are not in the store yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            walk(path).close()  # as each recording in it will be reached
            found = path.stat()
            if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise UserError(f"{path} can be written by others: give --spool a folder of your "
                                "own, with mode 0700")  # fmt: skip
        except OSError as error:
            raise unwritable(path, error) from None

    def begin(self, name: str) -> Path:
        """Begin a folder."""
        folder = self.path / name
        folder.mkdir(mode=0o700)
        return folder

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
        total = 0
        for folder in self._folders():
            for file in folder.rglob("*"):
                with contextlib.suppress(FileNotFoundError):  # the child has just decoded it
                    total += file.stat().st_size if file.is_file() else 0
        return total


def recording_in(folder: Path) -> Path:
    """Return where the recording of a folder is."""
    return folder / _RECORDING


def finish(folder: Path, trouble: Trouble) -> None:
    """Say that a folder is whole."""
    part = folder / f"{_WHOLE}.part"
    part.write_bytes(msgspec.json.encode(trouble))
    part.rename(folder / _WHOLE)


def read(folder: Path) -> Trouble:
    """Read what a whole folder is about. Raises UserError where that makes no sense."""
    try:
        return msgspec.json.decode((folder / _WHOLE).read_bytes(), type=Trouble)
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"{folder} has no trouble in it ({error}): remove it") from None


def discard(folder: Path) -> None:
    """Remove a folder; one that is gone is removed."""
    shutil.rmtree(folder, ignore_errors=True)
