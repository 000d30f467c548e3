"""Which programs load nothing: static ones, those of another word size, and setuid ones."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import sys
from typing import BinaryIO, Final

from zaplock.errors import UserError

_MAGIC: Final = b"\x7fELF"
_HEADER: Final = struct.Struct("<4sBBBB8xHHIQQQIHHHHHH")
_PROGRAM: Final = struct.Struct("<II6Q")
_PT_INTERP: Final = 3
_64_BITS: Final = 2


def require_loading(command: str) -> str:
    """Return the path of a command; raise UserError if it is not there, or loads no library."""
    path = shutil.which(command)
    if path is None:
        raise UserError(f"{command!r} can't be run (no such program): give a program after --")
    why_not = _why_not(path)
    if why_not:
        raise UserError(f"{command!r} {why_not}: nothing can be loaded into it; run it without")
    return path


def _why_not(path: str) -> str:
    found = os.stat(path)
    if found.st_mode & (stat.S_ISUID | stat.S_ISGID) and os.geteuid() != found.st_uid:
        return "is setuid"
    try:
        with open(path, "rb") as program:
            return _of_elf(program)
    except OSError:
        return ""  # it may be run and not read: it is tried


def _of_elf(program: BinaryIO) -> str:
    header = program.read(_HEADER.size)
    if not header.startswith(_MAGIC):
        return ""  # a script: its interpreter decides
    if len(header) < _HEADER.size or header[4] != _64_BITS or sys.maxsize < 1 << 32:
        return "is not a 64-bit program"
    fields = _HEADER.unpack(header)
    offset, size, number = fields[9], fields[13], fields[14]
    for k in range(number):
        program.seek(offset + k * size)
        entry = program.read(_PROGRAM.size)
        if len(entry) == _PROGRAM.size and _PROGRAM.unpack(entry)[0] == _PT_INTERP:
            return ""
    return "is statically linked"
