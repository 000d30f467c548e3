"""What the bare process wrote down, as snapshots: a parser that looks at nothing twice.

Most of an address space is the same from one operation to the next. What is the same as a whole,
byte for byte, the bare process has found out and not written down again; of smaps it writes down
only the records (VMAs) between those at both ends that are as before. Lines, figures and counters
that were met before are found by their bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter, sub

from zaplock.oracle import ring
from zaplock.oracle.ops import (
    COUNTERS,
    DISK_SLOT,
    FIGURES,
    FILES,
    HUGETLB_OF_SMAPS,
    ObservedVma,
    Snapshot,
    dirt_of_disk,
)

NEW_FIGURES = {"Pss_Dirty": "6.0", "KSM": "6.6"}
"""What older kernels than these have no line for: 0 in what is compared with them."""
_SUMS: dict[str, tuple[str, ...]] = {"Hugetlb": HUGETLB_OF_SMAPS}
SOFT_DIRTY = "sd"
MARKS = ("LazyFree", "Referenced")
"""What some sequences make no use of, where whoever else works on the machine may change it."""

ON_DISK = FILES[DISK_SLOT]

_COUNT = struct.Struct("<q").unpack_from
_HEAD, _HEAD_SIZE = ring.SMAPS_HEAD.unpack_from, ring.SMAPS_HEAD.size
_FLAGS, _COUNTED_FROM = b"VmFlags: ", b"VmPeak"
_WHOLE_RING = re.compile(rb"^Rss: +%d kB" % (ring.RING_SIZE >> 10), re.MULTILINE).search
_new = tuple.__new__
_CACHE_LIMIT = 200_000
_VMLCK, _VMRSS = COUNTERS.index("VmLck"), COUNTERS.index("VmRSS")

_Place = tuple[int, int, str, int, bytes, str]
"""Start, end, permissions, offset, inode and name of a VMA."""
_Picks = tuple[Callable[[Sequence[bytes]], tuple[bytes, ...]], list[tuple[int, tuple[int, ...]]]]
"""Which words of a text the wanted numbers are, and which of them are sums of which words."""
_PADDED = 8  # digits to which known kernels fill up a number of kB (fs/proc/task_mmu.c)


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
        self._picks: dict[int, _Picks] = {}  # by the number of words
        self._columns: dict[int, tuple[struct.Struct, _Picks]] = {}  # by the length of the text

    def read(self, text: bytes) -> tuple[int, ...]:
        """Return the wanted numbers of a text; raises ValueError where one isn't there."""
        known = self._columns.get(len(text))
        if known is None:
            words: Sequence[bytes] = text.split()
            pick, sums = self._picks.get(len(words)) or self._learn(text, len(words))
        else:
            columns, (pick, sums) = known
            words = columns.unpack(text)
        values = list(map(int, pick(words)))
        for at, places in sums:
            values[at] = sum([int(words[place]) for place in places])
        return tuple(values)

    def _learn(self, text: bytes, count: int) -> _Picks:
        """Find out which words of such a text the wanted numbers are."""
        where: dict[str, int] = {}
        columns: dict[str, int] = {}
        layout, at, is_padded = "<", 0, True
        for line in text.splitlines(keepends=True):
            name, number, *unit = line.split()
            if not number.isdigit() or unit not in ([], [b"kB"]):
                raise ValueError(f"not one number a line: {text[:200]!r}")
            called = name.decode().removesuffix(":")
            columns[called], where[called] = len(columns), at + 1
            at += 2 + len(unit)
            end = line.index(number, len(name)) + len(number)
            room = end - len(name)
            is_padded &= room > _PADDED >= len(number)
            layout += f"{len(name)}x{room}s{len(line) - end}x"
        learnt = self._picks[count] = self._picked(where, text)
        if is_padded:  # any number of more digits makes a text longer
            self._columns[len(text)] = struct.Struct(layout), self._picked(columns, text)
        return learnt

    def _picked(self, where: dict[str, int], text: bytes) -> _Picks:
        zeros = {*self._hidden, *(one for one in NEW_FIGURES if one not in where)}
        parts = {**dict.fromkeys(zeros, ()), **self._sums}
        if missing := {*self._wanted, *sum(self._sums.values(), ())} - {*where, *parts}:
            raise ValueError(f"no {', '.join(sorted(missing))} in {text[:200]!r}")
        some = next(iter(where.values()))
        return (
            itemgetter(*(where.get(one, some) for one in self._wanted)),
            [
                (place, tuple(where[part] for part in parts[one]))
                for place, one in enumerate(self._wanted)
                if one in parts
            ],
        )


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
        self._ends: list[int] = [0]  # of the records of smaps, behind the beginning of the first
        self._shown: list[ObservedVma | None] = []
        self._last: Snapshot | None = None
        self._counted: tuple[int, ...] = ()
        self._ring_locked = False
        self.ring_away = False
        """Whether a page of the ring, which each program begins with whole, was missing since."""
        self._end = ring.TASK_SIZE
        self._status_fields = _Fields((*COUNTERS, "VmHWM"), {"VmExec": ("VmExe", "VmLib")})
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
        self._ends, self._shown, self._last = [0], [], None
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
        self._last = _new(Snapshot, (vmas, regions, tags, counters, self._peak))
        return self._last

    def same_again(self) -> Snapshot:
        """Return the last observation of the sequence, which is also the next one."""
        if self._last is None:
            raise ValueError("it is as before, and there was nothing before")
        return self._last

    def _vmas(self, smaps: bytes) -> tuple[ObservedVma, ...]:
        """Parse the records between those at the beginning and at the end that are as before."""
        before, behind = _HEAD(smaps)
        ends, shown = self._ends, self._shown
        last = ends[-1] - behind
        low, high = ends.index(before), ends.index(last)
        new, new_ends = self._records(smaps, before - _HEAD_SIZE)
        grown = before + len(smaps) - _HEAD_SIZE - last
        if grown:
            ends[low + 1 :] = new_ends + [end + grown for end in ends[high + 1 :]]
        else:
            ends[low + 1 : high + 1] = new_ends
        shown[low:high] = new
        return tuple([vma for vma in shown if vma is not None])

    def _records(self, smaps: bytes, offset: int) -> tuple[list[ObservedVma | None], list[int]]:
        """Parse all records that are told: what is compared of each, and where it ends.

        `offset`: what to add to a place in `smaps` for the place in the whole text.
        """
        shown: list[ObservedVma | None] = []
        ends: list[int] = []
        at = _HEAD_SIZE
        while at < len(smaps):
            flags = smaps.find(_FLAGS, at)
            end = smaps.find(b"\n", flags) + 1 if flags >= 0 else 0
            if end:
                shown.append(self._record(smaps, at, flags, end))
            else:  # it is cut off, and has no flags
                shown.append(None)
                end = len(smaps)
            ends.append(end + offset)
            at = end
        return shown, ends

    def _record(self, smaps: bytes, at: int, flags: int, end: int) -> ObservedVma | None:
        """Parse a VMA between two places, its flags being told from `flags` on.

        Returns None where it is not compared.
        """
        body = smaps.find(b"\n", at)
        header, text, told = smaps[at:body], smaps[body + 1 : flags], smaps[flags:end]
        place = self._headers.get(header)
        if place is None:
            place = self._headers[header] = _place(header)
        start, stop, perms, offset, inode, name = place
        spelled = self._spelled.get(told)
        if spelled is None:
            spelled = self._spelled[told] = self._spelling(told)
        if start >= self._end or start == ring.RING:
            if start == ring.RING:
                self._ring_locked = "lo" in spelled
                self.ring_away |= _WHOLE_RING(text) is None
            return None
        figures = self._bodies.get(text)
        if figures is None:
            figures = self._bodies[text] = self._body_fields.read(text)
        if name == ON_DISK:
            figures = _without_writeback(figures)
        if name == "shared":  # numbered in the order in which a sequence shows them
            name = self._shared.setdefault(inode, f"shared{len(self._shared)}")
        return _new(ObservedVma, (start, stop, perms, offset, name, spelled, figures))

    def _spelling(self, flags: bytes) -> str:
        # Kernels with soft-dirty tracking show it of every VMA until somebody clears it. "??" is
        # a flag that a kernel has no name for.
        told = flags.decode().split()[1:]
        shown = (flag for flag in told if flag not in self._unnamed)
        return " ".join(sorted(shown))

    def _status(self, status: bytes) -> None:
        """Read the counters and the peak."""
        text = status[status.index(_COUNTED_FROM) :]
        known = self._counters.get(text)
        if known is None:
            known = self._counters[text] = self._read_status(text)
        self._counted, peak = known
        self._peak = peak if self._shows_peak else (0, 0)

    def _read_status(self, text: bytes) -> tuple[tuple[int, ...], tuple[int, int]]:
        """Read counters and VmHWM, which may be off by what per-CPU counters have not told yet."""
        *counted, peak = self._status_fields.read(text)
        peak -= self._resident
        counters = tuple(map(sub, counted, self.baseline) if self.baseline else counted)
        return counters, (peak - self._slack_kb, peak + self._slack_kb)

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


def _without_writeback(figures: tuple[int, ...]) -> tuple[int, ...]:
    """Take out what is dirty of a file on a disk, unless nothing but copies of it is there."""
    rss, pss, _, *dirt, anonymous = figures[:8]
    if rss == anonymous:
        return figures
    return rss, *dirt_of_disk(pss, *dirt), anonymous, *figures[8:]


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
