"""Traces of other tools, whatever file they are in: text, gzip, trace.dat, perf.data, Perfetto.

A binary trace.dat or perf.data is turned into text by its own tool, where that is installed:
`trace-cmd report` and `perf script`. Where it isn't, the file is named as what it is, with what to
type on a machine that has it. Perfetto's traces are read as they are (`pftrace`).
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader, RawIOBase, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, TextIO

from zaplock.errors import UserError
from zaplock.inputs import open_plain
from zaplock.trace import pftrace
from zaplock.trace.imported import ImportedTrace
from zaplock.trace.text import parse
from zaplock.untrusted_names import visible

_GZIP: Final = b"\x1f\x8b"
_LONGEST: Final = 1 << 20
"""Characters of a line."""
_MOST_PACKED: Final = 200
"""Traces pack to a tenth or a thirtieth."""
_ANY_SIZE: Final = 1 << 24
_TOOLS_BYTES: Final = 1 << 30
_TOOLS_BYTES_A_SECOND: Final = 1 << 18
_TOOLS_S: Final = 20
_MOST_SAID: Final = 1 << 20
"""Of a tool's complaints."""
_UNAME: Final = re.compile(r"Linux \S{1,100} (\S{1,100}) ")
"""uname -a: the system, the host's name, the release."""
_FIELDS: Final = "comm,pid,tid,cpu,time,event,trace"


@dataclass(frozen=True, slots=True)
class BinaryTrace:
    """A binary format: how its files begin, and the command that prints one as text.

    `uname` is the command that prints the kernel's, where the text itself doesn't tell it.
    """

    name: str
    magic: bytes
    command: tuple[str, ...]
    uname: tuple[str, ...] = ()


BINARIES: Final = (
    BinaryTrace(
        "trace.dat of trace-cmd",
        b"\x17\x08Dtracing",
        ("trace-cmd", "report", "-i"),
        ("trace-cmd", "report", "--uname", "-i"),
    ),
    BinaryTrace(
        "perf.data",
        b"PERFILE2",
        ("perf", "script", "--ns", "--header", "-F", _FIELDS, "-i"),
    ),
)
_OTHERS: Final = {
    b"\xfd7zXZ": "an xz archive: unpack it first (xz -d)",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it first (zstd -d)",
    b"BZh": "a bzip2 archive: unpack it first (bzip2 -d)",
    b"PK\x03\x04": "a zip archive: unpack it first (unzip)",
    b"\x7fELF": "a program, no trace",
}


def read_foreign(name: str) -> ImportedTrace:
    """Read a trace of another tool from a file, "-" for a text on standard input.

    Raises UserError where the file can't be read, is damaged or of a kind that can't be turned
    into events here.
    """
    if name == "-":
        return parse(bounded_lines(sys.stdin))
    path = Path(name)
    try:
        with open_plain(path, "give - and pipe a text into standard input") as file:
            start = file.read(16)
            file.seek(0)
            if start.startswith(_GZIP):
                return _read_gzip(path, file)
            return _read(path, start, file)
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name} can't be read ({reason}): give a trace") from None


def _read_gzip(path: Path, packed: IO[bytes]) -> ImportedTrace:
    try:
        with gzip.open(packed) as file:
            start = file.read(16)
            file.seek(0)
            unpacked = _Unpacked(path, file, os.fstat(packed.fileno()).st_size)
            return _read(path, start, BufferedReader(unpacked))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip archive ({error}): copy it again") from None


class _Unpacked(RawIOBase):
    """What is in an archive, as long as it isn't absurdly much: no text packs so well."""

    def __init__(self, path: Path, file: gzip.GzipFile, packed: int) -> None:
        self._path, self._file = path, file
        self._left = _ANY_SIZE + _MOST_PACKED * packed

    def readable(self) -> bool:
        """Say that it is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some of it. Raises UserError where it goes on and on."""
        content = self._file.read(len(buffer))
        self._left -= len(content)
        if self._left < 0:
            raise UserError(
                f"{self._path} is a gzip archive of over {_MOST_PACKED} times its size, which no "
                "trace is: unpack it and look"
            )
        buffer[: len(content)] = content
        return len(content)


def _read(path: Path, start: bytes, file: BinaryIO | BufferedReader) -> ImportedTrace:
    for binary in BINARIES:
        if start.startswith(binary.magic):
            return parse(_printed(binary, path))
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            raise UserError(f"{path} is {what}")
    if pftrace.looks_like(start):
        return pftrace.read(path, file)
    return parse(bounded_lines(TextIOWrapper(file, encoding="utf-8", errors="replace")))


def bounded_lines(text: TextIO) -> Iterator[str]:
    """Give the lines of a text but those that are too long to be any of a trace's."""
    whole = True
    while line := text.readline(_LONGEST):
        ended = line.endswith("\n") or len(line) < _LONGEST
        if whole and ended:
            yield line
        whole = ended


def _printed(binary: BinaryTrace, path: Path) -> Iterable[str]:
    """Let its own tool print a binary trace."""
    if path.suffix == ".gz":
        raise UserError(f"{path} is a packed {binary.name}: unpack it first (gzip -d)")
    tool = binary.command[0]
    if shutil.which(tool) is None:
        shown = " ".join(binary.command)
        raise UserError(
            f"{path} is a binary {binary.name}, and {tool}, which reads it, is not installed here: "
            f"install it, or run '{shown} {path.name} > trace.txt' where it is, and import that"
        )
    return chain(_release(binary, path), _output(binary.command, path))


def _release(binary: BinaryTrace, path: Path) -> Iterator[str]:
    """Ask for the kernel's release; give it as perf says it, or nothing where it isn't told."""
    if binary.uname:
        with contextlib.suppress(UserError):
            for line in _output(binary.uname, path):
                if found := _UNAME.match(line):
                    yield f"# os release : {found[1]}\n"


def _output(command: tuple[str, ...], path: Path) -> Iterator[str]:
    """Give the lines that a tool prints. Raises UserError where it fails, or takes too much."""
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [*command, str(path)],
            stdout=subprocess.PIPE,
            stderr=said,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
        ) as tool,
    ):
        assert tool.stdout is not None
        try:
            _limit(tool.pid, path.stat().st_size)
            yield from bounded_lines(tool.stdout)  # type: ignore[arg-type]
            ended = tool.wait()
        finally:
            tool.kill()
        if ended:
            raise UserError(
                f"{command[0]} can't print {path} ({_why(ended, said)}): it may be damaged, "
                "or of a newer version"
            )


def _limit(pid: int, size: int) -> None:
    """Let a tool take what a good trace of that size takes, and no more."""
    for what, most in (
        (resource.RLIMIT_AS, _TOOLS_BYTES + 2 * size),
        (resource.RLIMIT_CPU, _TOOLS_S + size // _TOOLS_BYTES_A_SECOND),
        (resource.RLIMIT_FSIZE, _MOST_SAID),
    ):
        with contextlib.suppress(ProcessLookupError):
            hard = resource.prlimit(pid, what)[1]
            limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.prlimit(pid, what, (limit, hard))


def _why(ended: int, said: IO[bytes]) -> str:
    if ended < 0:
        return f"ended by {signal.Signals(-ended).name}"
    said.seek(0)
    lines = said.read(_MOST_SAID).decode(errors="replace").splitlines()
    return next((visible(line.strip()) for line in reversed(lines) if line.strip()), "")[:200]
