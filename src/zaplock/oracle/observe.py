"""What the bare process wrote down, as snapshots: a parser that looks at nothing twice.

Most of an address space is the same from one operation to the next. What is the same as a whole,
byte for byte, the bare process has found out and not written down again; of smaps only the texts
between those at both ends that are as before are parsed, and lines, figures and counters that were
met before are found by their bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import cache
from operator import itemgetter, sub
from typing import NamedTuple

from zaplock.oracle import ring
from zaplock.oracle.ops import COUNTERS, FIGURES, HUGETLB_OF_SMAPS, ObservedVma, Snapshot

NEW_FIGURES = ("KSM",)
"""What older kernels have no line for, and is 0 in what is compared with them (KSM: to 6.5)."""
_SUMS: dict[str, tuple[str, ...]] = {"Hugetlb": HUGETLB_OF_SMAPS}
SOFT_DIRTY = "sd"
MARKS = ("LazyFree", "Referenced")
"""What some sequences make no use of, where whoever else works on the machine may change it."""

_COUNT = struct.Struct("<q").unpack_from
_CACHE_LIMIT = 200_000
_VMLCK, _VMRSS = COUNTERS.index("VmLck"), COUNTERS.index("VmRSS")

_PEAK = re.compile(rb"VmHWM:\s+(\d+)")


class _Head(NamedTuple):
    """A VMA without its flags."""

    start: int
    end: int
    perms: str
    offset: int
    inode: bytes
    name: str
    figures: tuple[int, ...]


_Piece = tuple[str, _Head | None]
"""The flags of one VMA and what precedes the flags of the next (None at the end)."""
_Place = tuple[int, int, str, int, bytes, str]
"""Start, end, permissions, offset, inode and name of a VMA."""
_Picks = tuple[Callable[[list[bytes]], tuple[bytes, ...]], list[tuple[int, tuple[int, ...]]]]
"""Which words of a text the wanted numbers are, and which of them are sums of which words."""


class _Fields:
    """Find some numbers in lines "Name: 12 kB" that always come in the same order."""

    def __init__(
        self,
        wanted: tuple[str, ...],
        sums: dict[str, tuple[str, ...]],
        hidden: tuple[str, ...] = (),
    ) -> None:
        """Name what is `wanted`; `sums` says which of these are sums of several fields.

        `hidden`: those of which 0 is read whatever the text says.
        """
        self._wanted, self._sums, self._hidden = wanted, sums, hidden
        self._picks: dict[int, _Picks] = {}

    def read(self, text: bytes) -> tuple[int, ...]:
        """Return the wanted numbers of a text; raises ValueError where one isn't there."""
        words = text.split()
        pick, sums = self._picks.get(len(words)) or self._learn(text, words)
        values = list(map(int, pick(words)))
        for at, places in sums:
            values[at] = sum([int(words[place]) for place in places])
        return tuple(values)

    def _learn(self, text: bytes, words: list[bytes]) -> _Picks:
        """Find out which words of such a text the wanted numbers are."""
        where: dict[str, int] = {}
        at = 0
        for line in text.splitlines():
            name, number, *unit = line.split()
            if not number.isdigit() or unit not in ([], [b"kB"]):
                raise ValueError(f"not one number a line: {text[:200]!r}")
            where[name.decode().removesuffix(":")] = at + 1
            at += 2 + len(unit)
        zeros = {*self._hidden, *(one for one in NEW_FIGURES if one not in where)}
        parts = {**dict.fromkeys(zeros, ()), **self._sums}
        if missing := {*self._wanted, *sum(self._sums.values(), ())} - {*where, *parts}:
            raise ValueError(f"no {', '.join(sorted(missing))} in {text[:200]!r}")
        learnt = self._picks[len(words)] = (
            itemgetter(*(where.get(one, 1) for one in self._wanted)),
            [
                (place, tuple(where[part] for part in parts[one]))
                for place, one in enumerate(self._wanted)
                if one in parts
            ],
        )
        return learnt


_Known = tuple[dict[bytes, tuple[int, ...]], dict[bytes, str]]
"""By their text: bodies and flags."""


class Parser:
    """Turn observations into snapshots. One per child; `begin` starts a sequence."""

    def __init__(
        self,
        baseline: tuple[int, ...] | None = None,
        has_scan: bool = True,
        slack_kb: int = 0,
    ) -> None:
        """Count from a baseline on; without PAGEMAP_SCAN no page is seen.

        slack_kb: by how much VmHWM may be off, where it is asked for (`begin`).
        """
        self._has_scan = has_scan
        self._slack_kb = slack_kb
        self._resident = baseline[_VMRSS] if baseline else 0
        self._shows_peak = False
        self._peak = (0, 0)
        self._known: dict[tuple[str, ...], _Known] = {}  # by what is hidden
        self._fields: dict[tuple[str, ...], _Fields] = {}
        self._counters: dict[bytes, tuple[tuple[int, ...], tuple[int, int]]] = {}
        self._headers: dict[bytes, _Place] = {}
        self._shared: dict[bytes, str] = {}
        self._texts: list[bytes] = []
        self._pieces: list[_Piece] = []
        self._shown: list[ObservedVma | None] = []
        self._last: Snapshot | None = None
        self._counted: tuple[int, ...] = ()
        self._ring_locked = False
        self._end = ring.TASK_SIZE
        self._status_fields = _Fields(COUNTERS, {"VmExec": ("VmExe", "VmLib")})
        self.baseline = baseline
        self.begin()

    def begin(
        self, end: int = ring.TASK_SIZE, shows: tuple[str, ...] = (), peak: bool = False
    ) -> None:
        """Forget what belongs to one sequence only; mappings from `end` on are left out now.

        `shows`: those of MARKS that count, which else are 0 whatever smaps says. `peak`: whether
        snapshots have one.
        """
        self._shows_peak = peak
        self._end = end
        hidden = tuple(name for name in MARKS if name not in shows)
        self._unnamed = ("??",) if SOFT_DIRTY in shows else ("??", SOFT_DIRTY)
        texts = self._known.setdefault((*hidden, *self._unnamed), ({}, {}))
        self._bodies, self._spelled = texts
        self._body_fields = self._fields.setdefault(hidden, _Fields(FIGURES, _SUMS, hidden))
        self._shared.clear()
        self._texts, self._pieces, self._shown, self._last = [], [], [], None
        for known in (self._bodies, self._counters, self._headers):
            if len(known) > _CACHE_LIMIT:
                known.clear()

    def snapshot(self, smaps: bytes | None, scan: bytes | None, status: bytes | None) -> Snapshot:
        """Parse one observation; what is None is as at the last one of the sequence.

        Raises ValueError on text that no known kernel writes.
        """
        if smaps is None or scan is None or status is None:
            vmas, regions, tags, counters, _ = self.same_again()
        if smaps is not None:
            vmas = self._vmas(smaps)
        if scan is not None:
            regions, tags = self._pages(scan)
        if status is not None:
            self._status(status)
        if smaps is not None or status is not None:
            counters = _without_ring(self._counted) if self._ring_locked else self._counted
        self._last = Snapshot(vmas, regions, tags, counters, self._peak)
        return self._last

    def same_again(self) -> Snapshot:
        """Return the last observation of the sequence, which is also the next one."""
        if self._last is None:
            raise ValueError("it is as before, and there was nothing before")
        return self._last

    def _vmas(self, smaps: bytes) -> tuple[ObservedVma, ...]:
        """Parse the texts between those at the beginning and at the end that are as before.

        VMA k is told by the texts k and k + 1: its header and body, then its flags.
        """
        texts = smaps.split(b"VmFlags: ")
        texts[-1] = texts[-1].partition(b"\n")[0]  # of what is cut off there are no flags
        old, pieces, shown = self._texts, self._pieces, self._shown
        most = min(len(texts), len(old))
        low = 0
        while low < most and texts[low] == old[low]:
            low += 1
        high = 0
        while high < most - low and texts[-1 - high] == old[-1 - high]:
            high += 1
        changed = [self._piece(text) for text in texts[low : len(texts) - high]]
        self._texts = texts
        self._pieces = pieces = pieces[:low] + changed + pieces[len(old) - high :]
        first, last = max(low - 1, 0), len(texts) - max(high, 1)
        middle = [self._compared(pieces[k][1], pieces[k + 1][0]) for k in range(first, last)]
        self._shown = shown[:first] + middle + shown[len(old) - max(high, 1) :]
        return tuple([vma for vma in self._shown if vma is not None])

    def _compared(self, head: _Head | None, flags: str) -> ObservedVma | None:
        """Return a VMA; None where it is not compared."""
        if head is None:
            return None
        start, end, perms, offset, inode, name, figures = head
        if start == ring.RING:
            self._ring_locked = "lo" in flags
        elif start < self._end:
            if name == "shared":  # numbered in the order in which a sequence shows them
                name = self._shared.setdefault(inode, f"shared{len(self._shared)}")
            return ObservedVma(start, end, perms, offset, name, flags, figures)
        return None

    def _piece(self, text: bytes) -> _Piece:
        """Parse what is between two VmFlags: a VMA's flags, and the next one's header and body."""
        flags, _, rest = text.partition(b"\n")
        if b"-" in flags:  # that is a header: nothing precedes the first
            flags, rest = b"", text
        header, _, body = rest.partition(b"\n")
        head = None
        if body:
            figures = self._bodies.get(body)
            if figures is None:
                figures = self._bodies[body] = self._body_fields.read(body)
            place = self._headers.get(header)
            if place is None:
                place = self._headers[header] = _place(header)
            head = _Head(*place, figures)
        spelled = self._spelled.get(flags)
        if spelled is None:
            spelled = self._spelled[flags] = self._spelling(flags)
        return spelled, head

    def _spelling(self, flags: bytes) -> str:
        # Kernels with soft-dirty tracking show it of every VMA until somebody clears it. "??" is
        # a flag that a kernel has no name for.
        shown = (flag for flag in flags.decode().split() if flag not in self._unnamed)
        return " ".join(sorted(shown))

    def _status(self, status: bytes) -> None:
        """Read the counters and the peak."""
        begin = status.index(b"VmPeak")
        text = status[begin : status.index(b"CoreDumping", begin)]
        known = self._counters.get(text)
        if known is None:
            counters = self._status_fields.read(text)
            if self.baseline:
                counters = tuple(map(sub, counters, self.baseline))
            known = self._counters[text] = counters, self._peak_of(text)
        self._counted, peak = known
        self._peak = peak if self._shows_peak else (0, 0)

    def _peak_of(self, status: bytes) -> tuple[int, int]:
        """Read VmHWM, which may be off by what per-CPU counters have not told yet."""
        told = _PEAK.search(status)
        peak = int(told[1]) if told else 0
        return peak - self._resident - self._slack_kb, peak - self._resident + self._slack_kb

    def _pages(self, scan: bytes) -> tuple[bytes, bytes]:
        count = _COUNT(scan)[0]
        if not self._has_scan:
            return b"", b""
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


def _place(header: bytes) -> _Place:
    """Parse the line that a VMA begins with."""
    addresses, perms, offset, _, inode, *path = header.split(None, 5)
    start, end = addresses.split(b"-")
    name = _label(path[0]) if path else ""
    return int(start, 16), int(end, 16), perms.decode(), int(offset, 16), inode, name


def _without_ring(counters: tuple[int, ...]) -> tuple[int, ...]:
    """Take the ring out of VmLck: mlockall has locked it too, and it is not under test."""
    changed = list(counters)
    changed[_VMLCK] -= ring.RING_SIZE >> 10
    return tuple(changed)


@cache
def _label(told: bytes) -> str:
    """Name what a VMA maps as FILES does; the kernel's own [heap] and [stack] are no files."""
    path = told.decode().strip()
    if path.startswith("["):
        return ""
    if path == "/dev/zero (deleted)":
        return "shared"
    path = path.removesuffix(" (deleted)")
    return path.rsplit("/", 1)[-1].removeprefix("memfd:")
