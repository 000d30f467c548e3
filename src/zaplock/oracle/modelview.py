"""The state of the model as the real side shows its own: maps, smaps, pages, contents, counters.

The view is a reader only. It walks the VMAs once and their page-table runs with them.
"""

from __future__ import annotations

import struct
from itertools import compress, repeat
from operator import attrgetter, ne, sub
from signal import SIGSEGV
from typing import Any

import msgspec

from zaplock.model import flags as f
from zaplock.model import vma as model_vma
from zaplock.model.huge_pool import POOLED
from zaplock.model.ksm import has_merged, merged_in
from zaplock.model.machine import Machine
from zaplock.model.mm import Counter, Pte
from zaplock.model.pagetable import ABSENT
from zaplock.model.references import count_referenced, tracks_writes
from zaplock.model.store import RangeMap
from zaplock.model.swap import swapped_pages
from zaplock.oracle.ops import (
    COUNTERS,
    DIRT,
    FIGURES,
    PSS,
    ObservedVma,
    Snapshot,
    dirt_of_disk,
)
from zaplock.oracle.ring import FILE, LONG_REGION, MAX_REGIONS, PRESENT, SOFT_DIRTY, WRITTEN

_VMFLAGS = (  # fs/proc/task_mmu.c show_smap_vma_flags
    (f.VM_READ, "rd"), (f.VM_WRITE, "wr"), (f.VM_EXEC, "ex"), (f.VM_SHARED, "sh"),
    (f.VM_MAYREAD, "mr"), (f.VM_MAYWRITE, "mw"), (f.VM_MAYEXEC, "me"), (f.VM_MAYSHARE, "ms"),
    (f.VM_GROWSDOWN, "gd"), (f.VM_MAYBE_GUARD, "gu"), (f.VM_PFNMAP, "pf"),
    (f.VM_LOCKED, "lo"), (f.VM_IO, "io"),
    (f.VM_SEQ_READ, "sr"), (f.VM_RAND_READ, "rr"), (f.VM_DONTCOPY, "dc"),
    (f.VM_DONTEXPAND, "de"), (f.VM_LOCKONFAULT, "lf"), (f.VM_ACCOUNT, "ac"),
    (f.VM_NORESERVE, "nr"), (f.VM_HUGETLB, "ht"), (f.VM_SYNC, "sf"), (f.VM_WIPEONFORK, "wf"),
    (f.VM_SOFTDIRTY, "sd"),
    (f.VM_DONTDUMP, "dd"), (f.VM_MIXEDMAP, "mm"), (f.VM_HUGEPAGE, "hg"),
    (f.VM_NOHUGEPAGE, "nh"), (f.VM_MERGEABLE, "mg"), (f.VM_UFFD_MISSING, "um"),
    (f.VM_UFFD_WP, "uw"), (f.VM_UFFD_MINOR, "ui"), (f.VM_DROPPABLE, "dp"), (f.VM_SEALED, "sl"),
)  # fmt: skip
_CATEGORIES = {
    "anon": 8, "thp": 8 | 64, "file": 4 | 8, "shmem": 4 | 8, "shmem_thp": 4 | 8 | 64,
    "zero": 8 | 32, "zero_thp": 8 | 32 | 64, "guard": 16 | 256, "poison": 16, "uffd_wp": 16,
    "swap": 16, "hugetlb": 8 | 64, "gigantic": 8 | 64,
}  # fmt: skip
_QWORD = struct.Struct("<q").pack
_UNREADABLE = _QWORD(-(SIGSEGV << 16 | 2))
_KB = 4
_VMRSS = COUNTERS.index("VmRSS")
_SPELLED: dict[int, tuple[str, str]] = {}
_ANONYMOUS = frozenset({"anon", "thp"})
_RESIDENT = _ANONYMOUS | {"file", "shmem", "shmem_thp"}
_NONE_RESIDENT = (0,) * len((*PSS, *DIRT))
_NO_FIGURES = {
    size >> 10: (*(0,) * (len(FIGURES) - 1), size >> 10)
    for size in (f.PAGE_SIZE, f.PMD_SIZE, f.PUD_SIZE)
}
_PSS_PAGE = 4096 << 12


_VISIBLE = attrgetter("start", "end", "flags", "pgoff", "file", "name", "huge_size")
"""What is looked at of a VMA."""


class _Seen(msgspec.Struct):
    """What a VMA looked like when last seen: valid while what is visible and its runs are so."""

    vma: model_vma.Vma
    runs: list[tuple[int, int, Pte]]
    shown: ObservedVma
    regions: list[int]
    tags: bytes


class _Walk:
    """The runs of a page table by VMA, as `overlapping` has them, in one go upwards."""

    __slots__ = ("_at", "_data", "_order")

    def __init__(self, ptes: RangeMap[Pte]) -> None:
        self._order, self._data, self._at = ptes.order, ptes.data, 0

    def within(self, low: int, high: int) -> list[tuple[int, int, Pte]]:
        """List the runs inside [low, high), clipped to it; each time from further above."""
        order, data, at = self._order, self._data, self._at
        count = len(order)
        found: list[tuple[int, int, Pte]] = []
        while at < count and (start := order[at]) < high:
            end, pte = data[start]
            if end > low:
                found.append((max(start, low), min(end, high), pte))
                if end > high:
                    break
            at += 1
        self._at = at
        return found


class ModelView:
    """What can be observed of one address space of a machine, the ring left out.

    Most operations change little, and many nothing: what was seen is kept with a copy of the cells
    that it was read from, and it holds for as long as these are equal.

    `parent`: share its names and its baseline, for a forked address space.
    """

    def __init__(
        self, machine: Machine, mm: int, ring: int, parent: ModelView | None = None
    ) -> None:
        space = machine.mm(mm)
        self._machine, self._space, self._ring = machine, space, ring
        self._shared: dict[int, str] = parent._shared if parent else {}
        self._base: tuple[int, ...] = parent._base if parent else ()
        self._seen: dict[int, _Seen] = {}
        self._cells: list[dict[Any, Any]] = [
            cells.data
            for cells in (
                space.tree, machine.vmas, space.ptes, machine.frames, machine.content,
                machine.aging, machine.dirty,
            )
        ]  # fmt: skip
        self._copies: list[dict[Any, Any]] = []  # of these, as they were at the last snapshot
        self._counts: tuple[int, ...] = ()
        self._regions: list[int] = []
        self._packed = b""
        self._last: Snapshot | None = None
        self._ring_locked = False
        self._swaps = machine.globals.get("swap_free", 0) > 0
        self.shows_lazyfree: bool = parent.shows_lazyfree if parent else False
        self.shows_references: bool = parent.shows_references if parent else False
        self.untouched: bool = parent.untouched if parent else False  # no content is shown
        self.end = 1 << 63  # mappings from here on are left out
        self.shows_protection: bool = parent.shows_protection if parent else True  # of all mappings

    def set_baseline(self) -> None:
        """Count from now on what is more than now."""
        self._counts = tuple(map(self._space.counters.data.get, _COUNTED, repeat(0)))
        self._base = self._in_kb()[0]

    def afresh(self, machine: Machine | None = None) -> ModelView:
        """Return a view with the same baseline that remembers nothing, of another machine maybe."""
        view = ModelView(machine or self._machine, self._space.mm, self._ring)
        view._base, view.shows_protection = self._base, self.shows_protection
        view.shows_lazyfree = self.shows_lazyfree
        view.shows_references, view.untouched = self.shows_references, self.untouched
        return view

    def snapshot(self) -> Snapshot:
        """Read everything."""
        last, cells, copies = self._last, self._cells, self._copies
        counts = tuple(map(self._space.counters.data.get, _COUNTED, repeat(0)))
        if cells == copies and counts == self._counts and last is not None:
            return last
        self._counts = counts
        if last is None:
            copies += [cell.copy() for cell in cells]
            last = self._last = Snapshot(*self._look(True, True, True), *self._counters())
            return last
        changed = list(map(ne, cells, copies))
        for at in compress(range(len(cells)), changed):
            copies[at] = cells[at].copy()
        mapped, described, paged, framed, written, aged, soiled = changed
        aged = aged and self.shows_references
        paged = paged or framed or aged or written or soiled
        seen: tuple[tuple[ObservedVma, ...], bytes, bytes] = last[:3]
        if paged or mapped or described:
            seen = self._look(paged, written, framed or aged or soiled)
        now = Snapshot(*seen, *self._counters())
        if now != last:
            last = self._last = now
        return last

    def _look(
        self, paged: bool, written: bool, marked: bool
    ) -> tuple[tuple[ObservedVma, ...], bytes, bytes]:
        """Walk the VMAs, and their page-table runs; return what a snapshot tells of them.

        `paged`: pages have come, gone or been written to; `written`: contents have changed;
        `marked`: so may what figures tell of a page that is where it was.
        """
        vmas: list[ObservedVma] = []
        regions: list[int] = []
        tags: list[bytes] = []
        self._ring_locked = False
        tree, known = self._space.tree, self._seen
        handles, ring, end, swaps = tree.data, self._ring, self.end, self._swaps
        all_vmas: dict[int, Any] = self._machine.vmas.data
        within = _Walk(self._space.ptes).within
        for start in tree.order:
            if start >= end:
                break
            handle = handles[start]
            vma = all_vmas[handle]
            if start == ring:
                self._ring_locked = bool(vma.flags & f.VM_LOCKED)
                continue
            seen = known.get(handle)
            is_other = seen is None or (seen.vma is not vma and _VISIBLE(seen.vma) != _VISIBLE(vma))
            if paged or seen is None or is_other:
                runs = within(start >> 12, vma.end >> 12)
                if (
                    seen is None
                    or is_other
                    or seen.runs != runs
                    or (runs and marked)
                    or (swaps and vma.file)
                ):
                    seen = known[handle] = self._see(vma, runs)
                elif runs and written:
                    seen.tags = self._all_tags(vma, runs)
            vmas.append(seen.shown)
            if seen.runs and start < ring:
                _append(regions, seen.regions)
                tags.append(seen.tags)
        if (
            regions
            and _is_long(regions[0], regions[-2])  # all of them together: else none is
            and any(map(_is_long, regions[::3], regions[1::3]))
        ):
            tags = [self._sampled(regions)]
        if regions != self._regions:
            self._regions = regions
            self._packed = struct.pack(f"<{len(regions)}Q", *regions)[: 24 * MAX_REGIONS]
        return tuple(vmas), self._packed, b"".join(tags)

    def _sampled(self, regions: list[int]) -> bytes:
        """Read the present pages of all regions: of a long one the first of each 2 MiB."""
        tags = []
        for start, end, categories in zip(*[iter(regions)] * 3, strict=True):
            stride = f.PMD_SIZE if _is_long(start, end) else f.PAGE_SIZE
            if categories & PRESENT:
                tags += [self._tag_at(address) for address in range(start, end, stride)]
        return b"".join(tags)

    def _tag_at(self, address: int) -> bytes:
        handle = model_vma.lookup(self._machine, self._space, address)
        vma, pte = self._machine.vmas[handle], self._space.ptes.at(address >> 12)
        assert isinstance(vma, model_vma.Vma)
        assert pte is not None
        if not vma.flags & f.VM_ACCESS_FLAGS:
            return _UNREADABLE
        return self._tags(address >> 12, (address >> 12) + 1, pte)

    def _ring_kb(self) -> int:
        ring = self._machine.vmas.data[self._space.tree.data[self._ring]]
        assert isinstance(ring, model_vma.Vma)
        return ring.length >> 10

    def _see(self, vma: model_vma.Vma, runs: list[tuple[int, int, Pte]]) -> _Seen:
        start, end, flags, pgoff, file, name, _ = _VISIBLE(vma)
        spelled, perms = _SPELLED.get(flags) or _spelled(flags)
        offset = pgoff << 12 if file or name else 0
        name = self._name(file) if file else model_vma.device_of(name)
        regions, tags = list[int](), b""
        if runs:
            tags = self._all_tags(vma, runs)
            protection = self.shows_protection or flags & f.VM_UFFD_WP
            for low, high, pte in runs:
                kind = pte.kind
                category = _CATEGORIES[kind]
                if protection and not pte.wp and kind != "uffd_wp":
                    category |= WRITTEN
                if self.untouched:
                    category &= ~PRESENT
                    if self._is_soft_dirty(vma, pte):
                        category |= SOFT_DIRTY
                if kind not in POOLED:
                    _append(regions, [low << 12, high << 12, category])
                    continue
                for page in range(low, high, vma.huge_size >> 12):
                    beyond = min(page + (vma.huge_size >> 12), high)
                    of_file = FILE if self._is_of_file(vma, page, pte) else 0
                    _append(regions, [page << 12, beyond << 12, category | of_file])
        if runs or (self._swaps and file):
            figures = self._figures(vma, runs)
        else:
            figures = _NO_FIGURES[_page_kb(vma)]
        shown = ObservedVma(start, end, perms, offset, name, spelled, figures)
        return _Seen(vma, runs, shown, regions, tags)

    def _is_soft_dirty(self, vma: model_vma.Vma, pte: Pte) -> bool:
        if not tracks_writes(self._machine):
            return False
        return bool(vma.flags & f.VM_SOFTDIRTY) or not pte.soft_clean

    def _is_of_file(self, vma: model_vma.Vma, low: int, pte: Pte) -> bool:
        frame = self._machine.frames.at(low + pte.delta)
        return bool(vma.flags & f.VM_MAYSHARE) or (frame is not None and frame.refs > frame.maps)

    def _figures(self, vma: model_vma.Vma, runs: list[tuple[int, int, Pte]]) -> tuple[int, ...]:
        rss = anonymous = huge = huge_shared = swap_pss = pooled = 0
        swap = self._swapped_cache(vma, runs) if self._swaps and vma.file else 0
        for low, high, pte in runs:
            pages, kind = high - low, pte.kind
            if kind in _RESIDENT:
                rss += pages
                if kind == "anon":
                    anonymous += pages
                elif kind == "thp":
                    anonymous += pages
                    huge += pages
                elif kind == "shmem_thp":
                    huge_shared += pages
            elif kind == "swap":
                swap += pages
                swap_pss += self._swap_pss(low, high, pte)
            elif kind in POOLED:
                pooled += pages
        merged = lazy = used = 0
        if runs and has_merged(self._machine):
            merged = len(merged_in(self._machine, self._space, runs[0][0], runs[-1][1]))
        if runs and self.shows_lazyfree:
            lazy = self._lazily_free(runs)
        if self.shows_references:
            used = self._referenced(runs)
        shares = self._shares(vma, runs, rss == anonymous) if rss else _NONE_RESIDENT
        locked = shares[0] if vma.flags & f.VM_LOCKED else 0  # its Pss
        return (
            rss * _KB, *shares, anonymous * _KB, huge * _KB, huge_shared * _KB, 0, swap * _KB,
            swap_pss >> 22, locked, merged * _KB, lazy * _KB, used * _KB, pooled * _KB,
            _page_kb(vma),
        )  # fmt: skip

    def _shares(
        self, vma: model_vma.Vma, runs: list[tuple[int, int, Pte]], is_anonymous: bool
    ) -> tuple[int, int, int, int, int, int]:
        """Return how much is there of each of PSS and DIRT, in kB."""
        m, counts, pss, pss_dirty = self._machine, [0, 0, 0, 0], 0, 0
        for low, high, pte in runs:
            kind, delta = pte.kind, pte.delta
            if kind not in _RESIDENT:
                continue
            of_file = kind not in _ANONYMOUS
            for start, end, frame in m.frames.overlapping(low + delta, high + delta):
                place, share = 2, _PSS_PAGE
                if frame.maps > 1:
                    place, share = 0, _PSS_PAGE // frame.maps
                dirty = end - start
                pss += share * dirty
                if pte.clean and not frame.dirty:
                    dirty = m.dirty.total(start, end) if of_file else 0
                counts[place] += end - start - dirty
                counts[place + 1] += dirty
                pss_dirty += share * dirty
        by_dirt = counts[0] * _KB, counts[1] * _KB, counts[2] * _KB, counts[3] * _KB
        if vma.file and not is_anonymous and m.files.data[vma.file].kind == "disk":
            return dirt_of_disk(pss >> 22, *by_dirt)
        return pss >> 22, pss_dirty >> 22, *by_dirt

    def _referenced(self, runs: list[tuple[int, int, Pte]]) -> int:
        resident = [run for run in runs if run[2].kind in _RESIDENT]
        return sum(count_referenced(self._machine, *run) for run in resident)

    def _lazily_free(self, runs: list[tuple[int, int, Pte]]) -> int:
        return sum(
            end - start
            for low, high, pte in runs
            if pte.kind == "anon" and pte.clean
            for start, end, frame in self._machine.frames.overlapping(
                low + pte.delta, high + pte.delta
            )
            if frame.unbacked and not frame.dirty
        )

    def _swap_pss(self, low: int, high: int, pte: Pte) -> int:
        slots = self._machine.frames.overlapping(low + pte.delta, high + pte.delta)
        return sum((end - start) * (_PSS_PAGE // slot.refs) for start, end, slot in slots)

    def _swapped_cache(self, vma: model_vma.Vma, runs: list[tuple[int, int, Pte]]) -> int:
        """Count the pages of a file in memory that are in swap, as its mapping is shown with.

        One that may be written privately shows only those in whose place nothing is mapped.
        """
        m = self._machine
        if m.files[vma.file].kind != "shmem":
            return 0
        first = vma.pgoff
        found = swapped_pages(m, vma.file, first, first + vma.nr_pages)
        if not found or vma.flags & f.VM_SHARED or not vma.flags & f.VM_WRITE:
            return found
        shift = first - (vma.start >> 12)
        return found - sum(
            swapped_pages(m, vma.file, low + shift, high + shift) for low, high, _ in runs
        )

    def _all_tags(self, vma: model_vma.Vma, runs: list[tuple[int, int, Pte]]) -> bytes:
        if self.untouched or (vma.flags & f.VM_HUGETLB and vma.huge_size >= LONG_REGION):
            return b""  # of long regions: see _sampled
        if not vma.flags & f.VM_ACCESS_FLAGS:
            return b"".join(
                [_UNREADABLE * (high - low) for low, high, pte in runs if pte.kind not in ABSENT]
            )
        return b"".join(
            [self._tags(low, high, pte) for low, high, pte in runs if pte.kind not in ABSENT]
        )

    def _tags(self, low: int, high: int, pte: Pte) -> bytes:
        if pte.kind not in ("zero", "zero_thp"):
            first = low + pte.delta
            if found := self._machine.content.overlapping(first, high + pte.delta):
                held = bytearray(8 * (high - low))
                for start, end, tag in found:
                    held[8 * (start - first) : 8 * (end - first)] = _QWORD(tag) * (end - start)
                return bytes(held)
        return bytes(8 * (high - low))

    def _name(self, file: int) -> str:
        name = self._machine.files.data[file].name
        if name == "/dev/zero":
            return self._shared.setdefault(file, f"shared{len(self._shared)}")
        return name

    def _counters(self) -> tuple[tuple[int, ...], tuple[int, int]]:
        """Return the counters, and the peak of resident memory twice, beyond the baseline."""
        now, mark = self._in_kb()
        counters = tuple(map(sub, now, self._base))
        if self._ring_locked:
            counters = (*counters[:2], counters[2] - self._ring_kb(), *counters[3:])
        if not self._machine.globals.get("peaks", 0):
            return counters, (0, 0)
        peak = max(mark - self._base[_VMRSS], counters[_VMRSS])
        return counters, (peak, peak)

    def _in_kb(self) -> tuple[tuple[int, ...], int]:
        """Read the counters, and the mark that resident memory has left."""
        total, highest, anon, file, shmem, locked, data, stack, text, tables, swap, huge, mark = (
            self._counts
        )
        return (
            (total if total > highest else highest) * _KB, total * _KB, locked * _KB,
            0, (anon + file + shmem) * _KB, anon * _KB, file * _KB, shmem * _KB, data * _KB,
            stack * _KB, text * _KB, tables >> 10, swap * _KB, huge * _KB,
        ), mark * _KB  # fmt: skip


_COUNTED: tuple[Counter, ...] = (
    "total_vm", "hiwater_vm", "rss_anon", "rss_file", "rss_shmem", "locked_vm",
    "data_vm", "stack_vm", "exec_vm", "pgtables_bytes", "swap_ents", "hugetlb_usage",
    "hiwater_rss",
)  # fmt: skip


def _is_long(start: int, end: int) -> bool:
    return end - start >= LONG_REGION


def _page_kb(vma: model_vma.Vma) -> int:
    return vma.huge_size >> 10 if vma.flags & f.VM_HUGETLB else _KB


def _spelled(flags: int) -> tuple[str, str]:
    """Spell vm_flags as smaps and as maps do."""
    known = _SPELLED.get(flags)
    if known is None:
        spelled = " ".join(sorted(name for bit, name in _VMFLAGS if flags & bit))
        known = _SPELLED[flags] = (spelled, _perms(flags))
    return known


def _perms(flags: int) -> str:
    return (
        ("r" if flags & f.VM_READ else "-")
        + ("w" if flags & f.VM_WRITE else "-")
        + ("x" if flags & f.VM_EXEC else "-")
        + ("s" if flags & f.VM_MAYSHARE else "p")
    )


def _append(regions: list[int], more: list[int]) -> None:
    """Append regions; neighbours with equal categories are one."""
    if regions and more and regions[-2] == more[0] and regions[-1] == more[2]:
        regions[-2] = more[1]
        regions += more[3:]
    else:
        regions += more
