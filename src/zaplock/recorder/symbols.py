"""What code an address of a process is: a Python function, a function of a file, a place in it.

Python functions come from the map that a Python of 3.12 or later writes when it is started with
`-X perf` (or PYTHONPERFSUPPORT=1): `/tmp/perf-PID.map`. Without it a frame of the interpreter says
only which C function of the interpreter ran. Functions of files come from the ELF symbol tables
that they still have; else the frame is `file+0xoffset`, for `addr2line -e file offset`.

`/proc/PID/maps` takes the target's lock on kernels before 6.17, so this is done after the recording
has ended, and can't be done for a process that has ended as well.

The kernel walks at most 8 frames by frame pointers. Code without them (most distributions' libc,
leaf functions) is skipped or ends the walk, and the addresses are right but the list is short.

Not covered: inlined functions, separate debug files, 32-bit files.
"""

from __future__ import annotations

import bisect
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"),
     ("size", "<u8")]
)  # fmt: skip
_SYMTAB, _DYNSYM, _FUNCTION = 2, 11, 2


@dataclass(frozen=True, slots=True)
class SymbolTable:
    """Functions by where they begin, each with its size and name."""

    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    names: tuple[str, ...]

    def find(self, address: int) -> str | None:
        """Name the function that an address lies in."""
        place = bisect.bisect_right(self.starts, address) - 1
        inside = place >= 0 and address < self.starts[place] + max(1, self.sizes[place])
        return self.names[place] if inside else None


def table(functions: Iterable[tuple[int, int, str]]) -> SymbolTable:
    """Make a table of (start, size, name)."""
    ordered = sorted(functions)
    columns = list(zip(*ordered)) or [(), (), ()]
    return SymbolTable(*columns)


def describe(pid: int, addresses: Iterable[int]) -> dict[int, str]:
    """Say what code each address of a process is; nothing for one that has ended."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    areas = [_area(line) for line in maps]
    python = python_functions(pid)
    return {address: _describe(address, areas, python, pid) for address in addresses}


def _area(line: str) -> tuple[int, int, int, str]:
    bounds, _, offset, _, _, *path = line.split(maxsplit=5)
    start, end = (int(bound, 16) for bound in bounds.split("-"))
    return start, end, int(offset, 16), path[0] if path else ""


def _describe(
    address: int, areas: list[tuple[int, int, int, str]], python: SymbolTable, pid: int
) -> str:
    if name := python.find(address):
        return name
    for start, end, offset, path in areas:
        if start <= address < end:
            return _in_file(path, address - start + offset, pid) if path else hex(address)
    return hex(address)


def _in_file(path: str, offset: int, pid: int) -> str:
    functions, headers = _elf(f"/proc/{pid}/root{path}") if path.startswith("/") else (None, ())
    name = path.rpartition("/")[2]
    for file_offset, address, size in headers:
        inside = file_offset <= offset < file_offset + size
        if inside and functions and (found := functions.find(offset - file_offset + address)):
            return f"{found} ({name})"
    return f"{name}+{offset:#x}"


def python_functions(pid: int) -> SymbolTable:
    """Read the map that Python writes for perf; empty where there is none."""
    for path in (f"/proc/{pid}/root/tmp/perf-{pid}.map", f"/tmp/perf-{pid}.map"):
        try:
            lines = Path(path).read_text(errors="replace").splitlines()
        except OSError:
            continue
        found = (re.match(r"([0-9a-f]+) ([0-9a-f]+) (?:py::)?(.+)", line) for line in lines)
        return table((int(one[1], 16), int(one[2], 16), one[3]) for one in found if one)
    return table(())


@lru_cache(maxsize=64)
def _elf(path: str) -> tuple[SymbolTable | None, tuple[tuple[int, int, int], ...]]:
    """Read a file's functions and its loaded segments (file offset, address, size)."""
    try:
        raw = Path(path).read_bytes()
    except OSError:
        return None, ()
    if raw[:6] != b"\x7fELF\x02\x01":
        return None, ()
    segments_at, sections_at = struct.unpack_from("<QQ", raw, 32)
    segment_size, segment_count, section_size, section_count = struct.unpack_from("<4H", raw, 54)
    segments = []
    for at in range(segments_at, segments_at + segment_size * segment_count, segment_size):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", raw, at)
        if kind == 1:
            segments.append((offset, address, size))
    sections = [
        struct.unpack_from("<IIQQQQII", raw, sections_at + section_size * number)
        for number in range(section_count)
    ]
    return table(_functions(raw, sections)), tuple(segments)


def _functions(raw: bytes, sections: list[tuple[int, ...]]) -> list[tuple[int, int, str]]:
    found = []
    for _, kind, _, _, offset, size, link, _ in sections:
        if kind not in (_SYMTAB, _DYNSYM) or offset + size > len(raw):
            continue
        symbols = np.frombuffer(raw, _SYMBOL, size // _SYMBOL.itemsize, offset)
        names = sections[link][4]
        kept = symbols[((symbols["info"] & 15) == _FUNCTION) & (symbols["value"] > 0)]
        for name, value, length in zip(
            kept["name"].tolist(), kept["value"].tolist(), kept["size"].tolist()
        ):
            at = names + name
            text = raw[at : raw.index(b"\0", at)].decode(errors="replace")
            found.append((value, length, text))
    return found
