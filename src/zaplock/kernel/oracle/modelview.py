"""The state of the model as the real side shows its own: maps, smaps, pages, contents, counters.

The view is a reader only. It walks the VMAs once and their page-table runs with them.
"""

from __future__ import annotations

import struct
from signal import SIGSEGV

from zaplock.kernel.oracle.ops import Snapshot, Vma
from zaplock.kernel.oracle.ring import MAX_REGIONS
from zaplock.model import flags as f
from zaplock.model import vma as model_vma
from zaplock.model.machine import Machine
from zaplock.model.mm import Pte

_VMFLAGS = (  # fs/proc/task_mmu.c show_smap_vma_flags
    (f.VM_READ, "rd"), (f.VM_WRITE, "wr"), (f.VM_EXEC, "ex"), (f.VM_SHARED, "sh"),
    (f.VM_MAYREAD, "mr"), (f.VM_MAYWRITE, "mw"), (f.VM_MAYEXEC, "me"), (f.VM_MAYSHARE, "ms"),
    (f.VM_GROWSDOWN, "gd"), (f.VM_PFNMAP, "pf"), (f.VM_LOCKED, "lo"), (f.VM_IO, "io"),
    (f.VM_SEQ_READ, "sr"), (f.VM_RAND_READ, "rr"), (f.VM_DONTCOPY, "dc"),
    (f.VM_DONTEXPAND, "de"), (f.VM_LOCKONFAULT, "lf"), (f.VM_ACCOUNT, "ac"),
    (f.VM_NORESERVE, "nr"), (f.VM_HUGETLB, "ht"), (f.VM_SYNC, "sf"), (f.VM_WIPEONFORK, "wf"),
    (f.VM_DONTDUMP, "dd"), (f.VM_MIXEDMAP, "mm"), (f.VM_HUGEPAGE, "hg"),
    (f.VM_NOHUGEPAGE, "nh"), (f.VM_MERGEABLE, "mg"), (f.VM_UFFD_MISSING, "um"),
    (f.VM_UFFD_WP, "uw"), (f.VM_DROPPABLE, "dp"), (f.VM_SEALED, "sl"),
)  # fmt: skip
_CATEGORIES = {
    "anon": 8, "thp": 8 | 64, "file": 4 | 8, "shmem": 4 | 8, "zero": 8 | 32,
    "zero_thp": 8 | 32 | 64, "guard": 256,
}  # fmt: skip
_UNREADABLE = -(SIGSEGV << 16 | 2)
_KB = 4
_SPELLED: dict[int, str] = {}
_PSS_PAGE = 4096 << 12


class View:
    """What can be observed of one address space of a machine below `limit`."""

    def __init__(self, machine: Machine, mm: int, ring: int, parent: View | None = None) -> None:
        """`parent`: share its names and its baseline, for a forked address space."""
        self._machine, self._space, self._ring = machine, machine.mm(mm), ring
        self._shared: dict[int, str] = parent._shared if parent else {}
        self._base: tuple[int, ...] = parent._base if parent else ()

    def set_baseline(self) -> None:
        """Count from now on what is more than now."""
        self._base = self._counters()

    def snapshot(self) -> Snapshot:
        """Read everything."""
        vmas: list[Vma] = []
        regions: list[int] = []
        tags: list[int] = []
        ring_locked = False
        for start in self._space.tree.order:
            vma = self._machine.vmas.data[self._space.tree.data[start]]
            assert isinstance(vma, model_vma.Vma)
            if start == self._ring:
                ring_locked = bool(vma.flags & f.VM_LOCKED)
                continue
            vmas.append(self._vma(vma, regions, tags, start < self._ring))
        counters = tuple(now - then for now, then in zip(self._counters(), self._base, strict=True))
        if ring_locked:
            counters = (*counters[:2], counters[2] - self._ring_kb(), *counters[3:])
        packed = struct.pack(f"<{len(regions)}Q", *regions)[: 24 * MAX_REGIONS]
        return Snapshot(tuple(vmas), packed, struct.pack(f"<{len(tags)}q", *tags), counters)

    def _ring_kb(self) -> int:
        return self._machine.vmas.data[self._space.tree.data[self._ring]].length >> 10  # type: ignore[union-attr]

    def _vma(self, vma: model_vma.Vma, regions: list[int], tags: list[int], seen: bool) -> Vma:
        rss = anonymous = huge = pss = 0
        readable = vma.flags & f.VM_ACCESS_FLAGS
        first, last = vma.start >> 12, vma.end >> 12
        for low, high, pte in self._space.ptes.overlapping(first, last):
            pages, kind = high - low, pte.kind
            if kind in ("anon", "thp", "file", "shmem"):
                rss += pages
                if vma.flags & f.VM_LOCKED:
                    pss += self._pss(low, high, pte)
            if kind in ("anon", "thp"):
                anonymous += pages
            if kind == "thp":
                huge += pages
            if seen:
                _add_region(regions, low << 12, high << 12, _CATEGORIES[kind])
                if kind != "guard":
                    self._tags(tags, low, high, pte, bool(readable))
        figures = (rss * _KB, anonymous * _KB, huge * _KB, 0, 0, 0, pss >> 22)
        return Vma(
            vma.start, vma.end, _perms(vma.flags), self._offset(vma), self._name(vma),
            self._flags(vma.flags), figures,
        )  # fmt: skip

    def _offset(self, vma: model_vma.Vma) -> int:
        return vma.pgoff << 12 if vma.file or vma.name else 0

    def _pss(self, low: int, high: int, pte: Pte) -> int:
        frames = self._machine.frames.overlapping(low + pte.delta, high + pte.delta)
        return sum(
            (end - start) * (_PSS_PAGE // max(1, frame.maps)) for start, end, frame in frames
        )

    def _tags(self, tags: list[int], low: int, high: int, pte: Pte, readable: bool) -> None:
        pages = high - low
        if not readable:
            tags.extend([_UNREADABLE] * pages)
            return
        held = [0] * pages
        if pte.kind not in ("zero", "zero_thp"):
            first = low + pte.delta
            for start, end, tag in self._machine.content.overlapping(first, first + pages):
                held[start - first : end - first] = [tag] * (end - start)
        tags.extend(held)

    def _name(self, vma: model_vma.Vma) -> str:
        if not vma.file:
            return vma.name
        name = self._machine.files[vma.file].name
        if name == "/dev/zero":
            return self._shared.setdefault(vma.file, f"shared{len(self._shared)}")
        return name

    def _flags(self, flags: int) -> str:
        known = _SPELLED.get(flags)
        if known is None:
            known = " ".join(sorted(name for bit, name in _VMFLAGS if flags & bit))
            _SPELLED[flags] = known
        return known

    def _counters(self) -> tuple[int, ...]:
        count = self._space.count
        total = count("total_vm")
        pages = (
            max(total, count("hiwater_vm")), total, count("locked_vm"), count("pinned_vm"),
            self._space.rss, count("rss_anon"), count("rss_file"), count("rss_shmem"),
            count("data_vm"), count("stack_vm"), count("exec_vm"),
        )  # fmt: skip
        return (*(value * _KB for value in pages), count("pgtables_bytes") >> 10, 0, 0)


def _perms(flags: int) -> str:
    return (
        ("r" if flags & f.VM_READ else "-")
        + ("w" if flags & f.VM_WRITE else "-")
        + ("x" if flags & f.VM_EXEC else "-")
        + ("s" if flags & f.VM_MAYSHARE else "p")
    )


def _add_region(regions: list[int], start: int, end: int, categories: int) -> None:
    """Append a region; neighbours with equal categories are one."""
    if regions and regions[-2] == start and regions[-1] == categories:
        regions[-2] = end
    else:
        regions += (start, end, categories)
