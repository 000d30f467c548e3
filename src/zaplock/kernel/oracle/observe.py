"""What the bare process wrote down, as snapshots: a parser that looks at nothing twice.

Most of an address space is the same from one operation to the next, so every piece of text (the
whole of smaps, a VMA's header, a VMA's body, the counters) is parsed once and then found by its
bytes. That makes a snapshot of ten VMAs cost about as much as splitting the text.
"""

from __future__ import annotations

import struct

from zaplock.kernel.oracle import ring
from zaplock.kernel.oracle.ops import COUNTERS, FIGURES, Snapshot, Vma

_COUNT = struct.Struct("<q").unpack_from
_CACHE_LIMIT = 200_000
_VMLCK = COUNTERS.index("VmLck")
_RENAMED = {"VmExec": ("VmExe", "VmLib")}


class Parser:
    """Turn observations into snapshots. One per child; `begin` starts a sequence."""

    def __init__(self, baseline: tuple[int, ...] | None = None) -> None:
        self._figures: dict[bytes, tuple[int, ...]] = {}
        self._headers: dict[bytes, tuple[int, int, str, int, str, str]] = {}
        self._counters: dict[bytes, tuple[int, ...]] = {}
        self._flags: dict[bytes, str] = {}
        self._shared: dict[str, str] = {}
        self._smaps: tuple[bytes, tuple[Vma, ...]] = (b"", ())
        self._ring_locked = False
        self.baseline = baseline

    def begin(self) -> None:
        """Forget what belongs to one sequence only: the names of shared anonymous mappings."""
        self._shared.clear()
        self._smaps = (b"", ())
        for cache in (self._figures, self._headers, self._counters):
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
        pieces = smaps.split(b"VmFlags: ")
        found = []
        text = pieces[0]
        for piece in pieces[1:]:
            end_of_flags = piece.index(b"\n")
            end_of_header = text.index(b"\n")
            vma = self._vma(text[:end_of_header], text[end_of_header + 1 :], piece[:end_of_flags])
            if vma.start == ring.RING:
                self._ring_locked = "lo" in vma.flags
            elif vma.start < ring.TASK_SIZE:
                found.append(vma)
            text = piece[end_of_flags + 1 :]
        return tuple(found)

    def _vma(self, header: bytes, body: bytes, flags: bytes) -> Vma:
        head = self._headers.get(header) or self._header(header)
        figures = self._figures.get(body) or self._body(body)
        spelled = self._flags.get(flags)
        if spelled is None:
            spelled = self._flags[flags] = " ".join(sorted(flags.decode().split()))
        start, end, perms, offset, inode, name = head
        if name == "shared":
            name = self._shared.setdefault(inode, f"shared{len(self._shared)}")
        return Vma(start, end, perms, offset, name, spelled, figures)

    def _header(self, header: bytes) -> tuple[int, int, str, int, str, str]:
        addresses, perms, offset, _device, inode, *path = header.decode().split(None, 5)
        start, end = (int(part, 16) for part in addresses.split("-"))
        name = _label(path[0]) if path else ""
        result = (start, end, perms, int(offset, 16), inode, name)
        self._headers[header] = result
        return result

    def _body(self, body: bytes) -> tuple[int, ...]:
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
        return scan[16:end], scan[end:]


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
