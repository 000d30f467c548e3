"""What the bare process wrote down, as snapshots: a parser that looks at nothing twice.

Most of an address space is the same from one operation to the next, so every piece of text (the
whole of smaps, a VMA, its figures, the counters) is parsed once and then found by its
bytes. That makes a snapshot of ten VMAs cost about as much as splitting the text.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from zaplock.kernel.oracle import ring
from zaplock.kernel.oracle.ops import COUNTERS, FIGURES, Snapshot, Vma

_COUNT = struct.Struct("<q").unpack_from
_CACHE_LIMIT = 200_000
_VMLCK = COUNTERS.index("VmLck")
_RENAMED = {"VmExec": ("VmExe", "VmLib")}


_HEADER = re.compile(rb"[0-9a-f]+-[0-9a-f]+ ")
_FEWEST_LINES = 3  # of a body; what a limited read has cut off is shorter


class _Head(NamedTuple):
    """A VMA without its flags."""

    start: int
    end: int
    perms: str
    offset: int
    inode: str
    name: str
    figures: tuple[int, ...]


class _Piece(NamedTuple):
    """The flags of one VMA and what precedes the flags of the next (None at the end)."""

    flags: str
    head: _Head | None


class Parser:
    """Turn observations into snapshots. One per child; `begin` starts a sequence."""

    def __init__(self, baseline: tuple[int, ...] | None = None) -> None:
        self._figures: dict[bytes, tuple[int, ...]] = {}
        self._pieces: dict[bytes, _Piece] = {}
        self._counters: dict[bytes, tuple[int, ...]] = {}
        self._shared: dict[str, str] = {}
        self._smaps: tuple[bytes, tuple[Vma, ...]] = (b"", ())
        self._ring_locked = False
        self._end = ring.TASK_SIZE
        self.baseline = baseline

    def begin(self, end: int = ring.TASK_SIZE) -> None:
        """Forget what belongs to one sequence only; mappings from `end` on are left out now."""
        self._end = end
        self._shared.clear()
        self._smaps = (b"", ())
        for cache in (self._figures, self._pieces, self._counters):
            if len(cache) > _CACHE_LIMIT:
                cache.clear()

    def snapshot(self, smaps: bytes, scan: bytes, status: bytes) -> Snapshot:
        """Parse one observation; raises ValueError on text that no known kernel writes."""
        if smaps != self._smaps[0]:
            self._smaps = (smaps, self._vmas(smaps))
        regions, tags = self._pages(scan)
        counters = self._status(status)
        if self._ring_locked:
            counters = _without_ring(counters)
        return Snapshot(self._smaps[1], regions, tags, counters)

    def _vmas(self, smaps: bytes) -> tuple[Vma, ...]:
        found = []
        known, shared = self._pieces.get, self._shared
        head: _Head | None = None
        for text in smaps.split(b"VmFlags: "):
            piece = known(text) or self._piece(text)
            if head is not None:
                start, end, perms, offset, inode, name, figures = head
                if start == ring.RING:
                    self._ring_locked = "lo" in piece.flags
                elif start < self._end:
                    if name == "shared":
                        name = shared.setdefault(inode, f"shared{len(shared)}")
                    found.append(Vma(start, end, perms, offset, name, piece.flags, figures))
            head = piece.head
        return tuple(found)

    def _piece(self, text: bytes) -> _Piece:
        """Parse what is between two VmFlags: a VMA's flags, and the next one's header and body."""
        flags, _, rest = text.partition(b"\n") if self._pieces_seen(text) else (b"", b"", text)
        header, _, body = rest.partition(b"\n")
        spelled = " ".join(sorted(flags.decode().split()))
        head = None
        if body.count(b"\n") > _FEWEST_LINES:
            head = _Head(*self._header(header), self._body(body))
        piece = _Piece(spelled, head)
        self._pieces[text] = piece
        return piece

    @staticmethod
    def _pieces_seen(text: bytes) -> bool:
        """Tell whether a piece begins with flags; the very first one begins with a header."""
        return _HEADER.match(text) is None

    @staticmethod
    def _header(header: bytes) -> tuple[int, int, str, int, str, str]:
        addresses, perms, offset, _device, inode, *path = header.decode().split(None, 5)
        start, end = (int(part, 16) for part in addresses.split("-"))
        name = _label(path[0]) if path else ""
        return start, end, perms, int(offset, 16), inode, name

    def _body(self, body: bytes) -> tuple[int, ...]:
        known = self._figures.get(body)
        if known is not None:
            return known
        values = _fields(body)
        result = tuple(values[name] for name in FIGURES)
        self._figures[body] = result
        return result

    def _status(self, status: bytes) -> tuple[int, ...]:
        text = status[status.index(b"VmPeak") : status.index(b"CoreDumping")]
        known = self._counters.get(text)
        if known is None:
            values = _fields(text)
            absolute = [
                sum(values[part] for part in _RENAMED.get(name, (name,))) for name in COUNTERS
            ]
            base = self.baseline or (0,) * len(absolute)
            known = tuple(value - zero for value, zero in zip(absolute, base, strict=True))
            self._counters[text] = known
        return known

    def _pages(self, scan: bytes) -> tuple[bytes, bytes]:
        count = _COUNT(scan)[0]
        if count < 0:
            raise ValueError(f"PAGEMAP_SCAN failed with errno {-count}")
        end = 16 + 24 * count
        if self._end < ring.TASK_SIZE:
            return self._pages_below_end(scan[16:end], scan[end:])
        return scan[16:end], scan[end:]

    def _pages_below_end(self, regions: bytes, tags: bytes) -> tuple[bytes, bytes]:
        """Leave out what PAGEMAP_SCAN tells of mappings that are left out."""
        kept = pages = 0
        for start, stop, categories in struct.iter_unpack("<3Q", regions):
            if start >= self._end:
                break
            kept += 24
            pages += (stop - start) // ring.PAGE if categories & ring.PRESENT else 0
        return regions[:kept], tags[: 8 * pages]


def _without_ring(counters: tuple[int, ...]) -> tuple[int, ...]:
    """Take the ring out of VmLck: mlockall has locked it too, and it is not under test."""
    changed = list(counters)
    changed[_VMLCK] -= ring.RING_SIZE >> 10
    return tuple(changed)


def _fields(text: bytes) -> dict[str, int]:
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(b":")
        values[name.decode()] = int(rest.split()[0])
    return values


def _label(path: str) -> str:
    """Name what a VMA maps as FILES does; the kernel's own [heap] and [stack] are no files."""
    path = path.strip()
    if path.startswith("["):
        return ""
    if path == "/dev/zero (deleted)":
        return "shared"
    path = path.removesuffix(" (deleted)")
    return path.rsplit("/", 1)[-1].removeprefix("memfd:")
