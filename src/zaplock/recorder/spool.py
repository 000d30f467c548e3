"""What a recorder has seen, raw and in order, on its way to be decoded.

A recorder moves pages and decodes nothing: what does that, and writes Parquet, needs numpy and
arro3, with which it would be five times as large. So whatever it gets (pages of the kernel's
buffers, samples, what it found in /proc) goes as it is into files beside the recording, entry after
entry, and is decoded by a process of its own (`decode_spool`): after the end, or beside it where
that can't wait. The agent's troubles go the same way.

    spool-begin.raw     what is needed from the beginning: layouts, targets, names, the first look
    spool-000000.raw    what came then, in pieces of 64 MiB, each deleted when its events stand in
                        the recording

An entry is a header and its bytes. One that is cut off, as by a kill or a full disk, is none. Who
writes has locked the first file, so that nobody else takes it for left behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import BinaryIO, NamedTuple

from zaplock.errors import UserError
from zaplock.outputs import Folder
from zaplock.trace.new_recording import UNDECODED

PIECE_BYTES = 64 << 20
_PIECE = re.compile(r"spool-([0-9]{6,9})\.raw")
_HEADER = struct.Struct("<iiqQ")
"""Kind, CPU, time (ns), how many bytes follow."""
_DECODED_SHARE = 4
"""A recording takes at most this part of its spool, mostly a sixth."""
_MOST = 1 << 30
"""More bytes no entry has."""


class EntryKind(IntEnum):
    """What an entry tells; `spooled` has what is in those that are no raw bytes."""

    BEGUN = 1
    TASKS = 2
    CODE = 3
    PAGES = 4  # pages of a CPU's buffer
    DRAINED = 5  # these were all until `time_ns`
    SAMPLES = 6  # records of perf rings
    REASONS = 7
    LEARNED = 8
    GAP = 9
    LOOKED = 10
    NOTICED = 11
    OFF = 12  # at `time_ns` the first instance was switched off: what is later is left out
    ENDED = 13


class SpoolEntry(NamedTuple):
    """One entry: `cpu` and `time_ns` mean something of pages and drains."""

    kind: EntryKind
    cpu: int
    time_ns: int
    content: bytes


class SpoolWriter:
    """Write a spool into an opened folder. Raises OSError where there is no room."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._begin = _begun(folder)
        self._file: BinaryIO | None = None
        self._number = 0
        self._size = 0

    def head(self, kind: EntryKind, content: bytes) -> None:
        """Add to what is needed from the beginning."""
        _write(self._begin.fileno(), _HEADER.pack(kind, -1, 0, len(content)), content)

    def add(self, kind: EntryKind, content: bytes = b"", cpu: int = -1, time_ns: int = 0) -> None:
        """Add an entry."""
        if self._file is None:
            self._file = self._folder.create(_name(self._number))
            self._number, self._size = self._number + 1, 0
        header = _HEADER.pack(kind, cpu, time_ns, len(content))
        try:
            _write(self._file.fileno(), header, content)
        except OSError:
            with contextlib.suppress(OSError):  # nothing that is cut off is kept
                os.ftruncate(self._file.fileno(), self._size)
            raise
        self._size += len(header) + len(content)

    def drained(self, before_ns: int) -> None:
        """Say that all pages until an instant have been added; maybe begin another piece."""
        self.add(EntryKind.DRAINED, time_ns=before_ns)
        self._refuse_to_fill()
        if self._size >= PIECE_BYTES and self._file:
            self._file.close()
            self._file = None

    def _refuse_to_fill(self) -> None:
        """Raise OSError before there is no room left to decode it."""
        room = os.fstatvfs(self._begin.fileno())
        counted = room.f_blocks > 0  # a ramfs counts nothing
        if counted and room.f_bavail * room.f_frsize < self.size // _DECODED_SHARE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @property
    def lock(self) -> int:
        """The descriptor whose lock says that somebody is at work; a child may have it, too."""
        return self._begin.fileno()

    @property
    def size(self) -> int:
        """How many bytes of it there are still."""
        return size_of(self._folder)

    def close(self) -> None:
        """End; from now on anybody may decode it. Twice does no harm."""
        self._begin.close()
        if self._file:
            self._file.close()


def _begun(folder: Folder) -> BinaryIO:
    """Make the first file under its lock."""
    file = folder.create(UNDECODED)
    fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _write(file: int, *parts: bytes) -> None:
    views = [memoryview(part) for part in parts if part]
    while views:
        done = os.writev(file, views)
        if not done:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        while views and done >= len(views[0]):
            done -= len(views.pop(0))
        if done:
            views[0] = views[0][done:]


def _name(number: int) -> str:
    return f"spool-{number:06d}.raw"


def _pieces(folder: Folder) -> list[int]:
    names = os.listdir(f"/proc/self/fd/{folder.descriptor}")
    return sorted(int(found[1]) for name in names if (found := _PIECE.fullmatch(name)))


def size_of(folder: Folder) -> int:
    """Add up how many bytes of a spool there are."""
    total = 0
    for name in (UNDECODED, *map(_name, _pieces(folder))):
        with contextlib.suppress(FileNotFoundError):  # it has just been decoded
            total += os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False).st_size
    return total


def remove(folder: Folder) -> None:
    """Remove a spool, its first file last: without it, what is left means nothing."""
    for number in _pieces(folder):
        folder.remove(_name(number))
    folder.remove(UNDECODED)


@contextlib.contextmanager
def left_behind(folder: Folder) -> Iterator[None]:
    """Keep others from decoding a spool; raise UserError where its recorder still runs."""
    try:
        file = folder.read(UNDECODED)
    except FileNotFoundError:
        raise UserError(
            f"{folder.path} has nothing that is to be decoded: 'zaplock report {folder.path}'"
        ) from None
    with file:
        _refuse_strangers(folder, file)
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder.path} is being recorded: end its recorder (Ctrl-C), which decodes it"
            ) from None
        yield


def _refuse_strangers(folder: Folder, file: BinaryIO) -> None:
    owners = {os.fstat(one).st_uid for one in (folder.descriptor, file.fileno())}
    if strangers := owners - {os.geteuid()}:
        raise UserError(
            f"{folder.path} was recorded by user {min(strangers)}, and only its recorder's user "
            "decodes it: run the same command as that user"
        )


class SpoolReader:
    """Read a spool, also while it is written."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._read: list[int] = []
        """The pieces that were read to their end, and not removed yet."""

    def head(self) -> list[SpoolEntry]:
        """Give what is needed from the beginning, as far as it is there."""
        with self._folder.read(UNDECODED) as file:
            return list(_entries(file, self._folder))

    def entries(self, more: Callable[[], bool]) -> Iterator[SpoolEntry]:
        """Give entry after entry; at the end of what is there, ask whether there is `more`."""
        done = -1
        while True:
            number = next((one for one in _pieces(self._folder) if one > done), None)
            if number is not None:
                yield from self._piece(number, more)
                self._read.append(number)
                done = number
            elif not more():
                return

    def _piece(self, number: int, more: Callable[[], bool]) -> Iterator[SpoolEntry]:
        with self._folder.read(_name(number)) as file:
            while True:
                # What comes after it was begun when it was whole.
                whole = any(one > number for one in _pieces(self._folder))
                yield from _entries(file, self._folder)
                if whole or not more():
                    return

    def forget(self) -> None:
        """Remove the pieces that were read to their end: their events stand in the recording."""
        for number in self._read:
            self._folder.remove(_name(number))
        self._read.clear()


def _entries(file: BinaryIO, folder: Folder) -> Iterator[SpoolEntry]:
    """Give the entries that are whole, from where a file stands."""
    while True:
        at = file.tell()
        header = file.read(_HEADER.size)
        if len(header) == _HEADER.size:
            kind, cpu, time_ns, size = _HEADER.unpack(header)
            if size > _MOST or kind not in list(EntryKind):
                raise damaged(folder, f"an entry of kind {kind} and {size:,} bytes")
            content = file.read(size)
            if len(content) == size:
                yield SpoolEntry(EntryKind(kind), cpu, time_ns, content)
                continue
        file.seek(at)
        return


def damaged(folder: Folder, why: str) -> UserError:
    """Make the one line for a spool that makes no sense."""
    return UserError(
        f"{folder.path} has a spool that is damaged ({why}): remove its files spool-*.raw; what "
        "was decoded before can be read"
    )
