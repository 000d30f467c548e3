"""Functions by address: of an ELF file, of a perf map, of the kernel.

Names come from the ELF symbol tables that a file still has, demangled (C++, Rust, ...) by the
`demangle` package. Functions that a runtime makes come from the map that it writes for perf:
Python (3.12 or later, started with `-X perf` or PYTHONPERFSUPPORT=1), node (`--perf-basic-prof`),
Java (`jcmd PID Compiler.perfmap`, addresses with 0x). The kernel's come from /proc/kallsyms.

What is read here may be made by an enemy: each number is checked against the file's end, and sizes
are limited (`target_files` chooses what is opened at all).

Not covered: inlined functions, separate debug files, 32-bit files, big-endian ones.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from zaplock.recorder.target_files import part

_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"),
     ("size", "<u8")]
)  # fmt: skip
_SYMTAB, _DYNSYM, _FUNCTION, _LOAD = 2, 11, 2, 1
_SECTION, _SEGMENT = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IIQQQQQQ")
MOST_TABLE = 64 << 20
"""A symbol table or its strings larger than this is not read."""
MOST_MAP = 32 << 20
"""Of a perf map no more than this is read."""
LONGEST = 300
"""A name is cut here."""
_LONGEST_SYMBOL = 4096
_MAP_LINE = re.compile(rb"(?:0x)?([0-9a-fA-F]{1,16}) (?:0x)?([0-9a-fA-F]{1,16}) (?:py::)?(.+)")
_MANGLED = ("_Z", "_R", "__Z")


@dataclass(frozen=True, slots=True)
class SymbolTable:
    """Functions by where they begin, sorted; `name` gives the name of one, by its place."""

    starts: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    name: Callable[[int], str]

    def find(self, address: int) -> str | None:
        """Name the function that an address lies in."""
        if not 0 <= address < 1 << 64:
            return None
        place = int(np.searchsorted(self.starts, np.uint64(address), side="right")) - 1
        if place < 0 or address >= int(self.starts[place]) + max(1, int(self.sizes[place])):
            return None
        return self.name(place)


def table(functions: Iterable[tuple[int, int, str]]) -> SymbolTable:
    """Make a table of (start, size, name)."""
    ordered = sorted(functions)
    starts = np.array([start for start, _, _ in ordered], np.uint64)
    sizes = np.array([size for _, size, _ in ordered], np.uint64)
    return SymbolTable(starts, sizes, lambda place: ordered[place][2])


NO_FUNCTIONS = table(())


@dataclass(frozen=True, slots=True)
class ElfFile:
    """What is needed of an ELF file: its functions and its loaded segments.

    A segment is (file offset, address, size in the file). All of it is empty for any other file.
    """

    functions: tuple[SymbolTable, ...] = ()
    segments: tuple[tuple[int, int, int], ...] = ()

    def find(self, offset: int) -> str | None:
        """Name the function that lies at an offset of the file."""
        for file_offset, address, size in self.segments:
            if file_offset <= offset < file_offset + size:
                there = offset - file_offset + address
                return next(filter(None, (one.find(there) for one in self.functions)), None)
        return None


def read_elf(file: int) -> ElfFile:
    """Read the symbols of an opened file; nothing of one that is damaged or no ELF file."""
    head = part(file, 0, 64, 64)
    if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
        return ElfFile()
    segments_at, sections_at = struct.unpack_from("<QQ", head, 32)
    segment_size, segments, section_size, sections = struct.unpack_from("<4H", head, 54)
    if segment_size != _SEGMENT.size or section_size not in (0, _SECTION.size):
        return ElfFile()
    loaded = tuple(
        (offset, address, size)
        for kind, _, offset, address, _, size, _, _ in _rows(
            part(file, segments_at, segment_size * segments, 1 << 22), _SEGMENT
        )
        if kind == _LOAD
    )
    headers = list(_rows(part(file, sections_at, section_size * sections, 1 << 22), _SECTION))
    return ElfFile(tuple(_functions(file, headers)), loaded)


def _rows(raw: bytes, layout: struct.Struct) -> Iterator[tuple[int, ...]]:
    whole = len(raw) - len(raw) % layout.size
    yield from layout.iter_unpack(raw[:whole])


def _functions(file: int, sections: list[tuple[int, ...]]) -> Iterator[SymbolTable]:
    """Read the symbol tables, of an enemy's file no more than a good one has."""
    tables = [one for one in sections if one[1] in (_SYMTAB, _DYNSYM) and one[6] < len(sections)]
    for _, _, _, _, offset, size, link, *_ in tables[:2]:
        strings = part(file, sections[link][4], sections[link][5], MOST_TABLE)
        raw = part(file, offset, size, MOST_TABLE)
        symbols = np.frombuffer(raw, _SYMBOL, len(raw) // _SYMBOL.itemsize)
        kept = symbols[((symbols["info"] & 15) == _FUNCTION) & (symbols["value"] > 0)]
        yield _named(kept[np.argsort(kept["value"], kind="stable")], strings)


def _named(symbols: NDArray[np.void], strings: bytes) -> SymbolTable:
    names = symbols["name"]

    def name(place: int) -> str:
        start = int(names[place])
        return strings[start : start + _LONGEST_SYMBOL].split(b"\0")[0].decode(errors="replace")

    starts = np.ascontiguousarray(symbols["value"])
    return SymbolTable(starts, np.ascontiguousarray(symbols["size"]), name)


def read_perf_map(file: int) -> SymbolTable:
    """Read the map that a runtime writes for perf."""
    lines = part(file, 0, MOST_MAP, MOST_MAP).splitlines()
    found = (_MAP_LINE.fullmatch(line) for line in lines)
    return table(
        (int(one[1], 16), int(one[2], 16), one[3].decode(errors="replace")) for one in found if one
    )


@lru_cache(maxsize=100_000)
def readable(name: str) -> str:
    """Demangle a name and make it one short line of printable characters."""
    if name.startswith(_MANGLED) and len(name) < 4096:
        name = _demangled(name)
    name = "".join(char if char.isprintable() else "?" for char in name[: LONGEST + 1])
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _demangled(name: str) -> str:
    import demangle

    return str(demangle.demangle(name))


@cache
def kernel_functions() -> SymbolTable:
    """Read the kernel's functions (and its modules'), once; empty where they are hidden."""
    try:
        with open("/proc/kallsyms", "rb") as file:
            return functions_in(file.read())
    except OSError:
        return NO_FUNCTIONS


_CODE, _PREFIX = b"tTwW", b"__pfx_"


def functions_in(kallsyms: bytes) -> SymbolTable:
    """Read the functions of a text in the form of /proc/kallsyms: all of a kernel's in 30 ms."""
    digits = kallsyms.find(b" ")
    text = np.frombuffer(kallsyms, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    lines = np.append(0, ends[:-1] + 1)
    whole = ends - lines >= digits + 4
    lines, ends = lines[whole & (digits > 0)], ends[whole & (digits > 0)]
    code = np.isin(text[lines + digits + 1], np.frombuffer(_CODE, np.uint8))
    lines, ends = lines[code], ends[code]
    names = lines + digits + 3
    plain = np.zeros(len(names), np.bool_)
    for place, char in enumerate(_PREFIX):
        plain |= text[np.minimum(names + place, len(text) - 1)] != char
    starts = _hexadecimal(text, lines[plain], digits)
    order = np.argsort(starts, kind="stable")
    starts, first, last = starts[order], names[plain][order], ends[plain][order]
    if not len(starts) or starts[-1] == 0:
        return NO_FUNCTIONS

    def name(place: int) -> str:
        found = kallsyms[int(first[place]) : int(last[place])].split(None, 1)
        return found[0].decode(errors="replace")

    return SymbolTable(starts, np.diff(starts, append=starts[-1] + np.uint64(1)), name)


def _hexadecimal(
    text: NDArray[np.uint8], begins: NDArray[np.int64], digits: int
) -> NDArray[np.uint64]:
    """Read numbers of so many lower-case digits, which begin at these places of a text.

    One place after another: a table of all digits takes ten times as much memory.
    """
    numbers = np.zeros(len(begins), np.uint64)
    for place in range(digits):
        char = text[begins + place]
        digit = np.where(char >= ord("a"), char - (ord("a") - 10), char - ord("0"))
        numbers <<= np.uint64(4)
        numbers |= digit
    return numbers
