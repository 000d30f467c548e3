"""The machine that tasks run on: the store and everything in it.

A `Machine` owns all state. Steps change it and protocols see it only through steps. What is not
state (limits, the number of page-table levels, whether TLBs are followed) is fixed when it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal

from zaplock.model.file_changes import FileChange
from zaplock.model.files import File
from zaplock.model.frames import Frame
from zaplock.model.huge_pool import Subpool
from zaplock.model.mm import Mm, ResourceLimits
from zaplock.model.rwsem import Lock, Rwsem
from zaplock.model.spans import Spans
from zaplock.model.step import Task
from zaplock.model.store import Cells, OnDemand, OrderedCells, RangeMap, Store
from zaplock.model.tlb import Gather, Translation
from zaplock.model.vma import FreedVma, Vma
from zaplock.model.words import MemoryModel

Figure = Literal[
    "committed_as",  # pages that are promised
    "committed_forgotten",  # of these: what is never given back, as a kernel does by mistake
    "hugetlb_free",  # huge pages in the pool
    "hugetlb_reserved",  # of these: what is promised (model.huge_pool)
    "gigantic_free",  # and of 1 GiB each, in a pool of their own
    "gigantic_reserved",
    "swap_free",  # pages that swap has room for
    "lazyfree",  # whether pages were ever marked as lazily free
    "references",  # whether accessed bits are followed (model.references)
    "batches",  # whether entries of a huge page that change together get each other's bits
    "one_by_one",  # whether a read maps of a folio only what is near (model.shared_huge)
    "cuts_evenly",  # whether a folio that is cut is single pages afterwards
    "maps_disabled",  # whether a huge page is mapped by one entry also where they are disabled
    "maps_single",  # of which folios a fault maps one page (model.shared_huge.MAPPED)
    "shmem",  # shmem_enabled (model.shared_folios.POLICIES)
    "shmem_folios",  # which folios faults and writes make there
    "shmem_advised",  # shmem_enabled of single sizes (model.shared_folios.Sizes)
    "shmem_within",
    "shmem_inherits",
    "shmem_anywhere",  # whether they are made also where a mapping has no room for them
    "peaks",  # whether the peak of resident memory is kept wherever pages are gathered
    "dirty_bits",  # whether dirty bits of all entries are followed (model.dirty)
    "forgets_dirty",  # whether a change of protection loses the dirty bits of huge pages
    "soft_dirty",  # whether what is mapped or written to is marked as that
    "ksm",  # whether pages of equal content were ever merged
    "ksm_zero_pages",  # whether pages of zeros become the zero page
    "ksm_left",  # whether something may have stayed merged when all was unmerged
    "ksm_writes",  # whether what is unmerged is faulted in for a write
    "ksm_most",  # how many entries may map one merged page; 0: model.ksm.MAX_PAGE_SHARING
    "thp",  # transparent huge pages: 0 never, 1 madvise, 2 always
    "overcommit",  # vm.overcommit_memory
    "allocation_fails",  # whether the next allocation is to fail (protocols.shortage)
]
"""What the whole machine counts, and its settings."""
UffdMode = Literal["unmap", "none", "sigbus", "closed"]
"""A userfaultfd context: told of unmaps, or not, or answers faults with SIGBUS; or closed."""

MAKER_SHIFT = 24


def maker_of(handle: int) -> int:
    """Return the id of the task that made a handle."""
    return (handle >> MAKER_SHIFT) - 1


class Machine:
    """All state of one model, and the meter for what its steps cost.

    With `tracks_tlbs` every CPU's TLB and page-walk cache are state, and returning a page that a
    CPU still translates to is a violation; the timed engine leaves it off, since there a flush is a
    price and nothing else. `gather_pages` is how many pages an mmu_gather holds before it must
    flush; `remote_cpus` how many other CPUs a flush has to interrupt. `memory` says what stands
    between a CPU and the words of `model.words`.
    """

    def __init__(
        self,
        *,
        limits: ResourceLimits | None = None,
        levels: int = 4,
        tracks_tlbs: bool = False,
        gather_pages: int = 10_000,
        remote_cpus: int = 0,
    ) -> None:
        self.store = Store()
        self.limits = limits or ResourceLimits()
        self.levels = levels
        self.tracks_tlbs = tracks_tlbs
        self.gather_pages = gather_pages
        self.remote_cpus = remote_cpus
        self.memory: MemoryModel = "sc"
        self.costs: Mapping[str, float] | None = None
        self.tells_wakes = False
        self.touched: Callable[[Hashable, int], int] | None = None
        self.spent_ns = 0.0
        self.woken: list[tuple[Any, ...]] = []

        self.locks: Cells[Lock, Rwsem] = Cells(self.store, "locks")
        self.spans: Cells[Lock, Spans] = Cells(self.store, "spans")
        self.signals: Cells[int, str] = Cells(self.store, "signals")
        self.serials: Cells[tuple[int, str], int] = Cells(self.store, "serials")
        self.globals: Cells[Figure, int] = Cells(self.store, "globals")
        self.vmas: Cells[int, Vma | FreedVma] = Cells(self.store, "vmas")
        self.vma_readers: Cells[int, tuple[int, ...]] = Cells(self.store, "vma_readers")
        self.frames: RangeMap[Frame] = RangeMap(self.store, "frames")
        self.content: RangeMap[int] = RangeMap(self.store, "content")
        self.dirty: RangeMap[bool] = RangeMap(self.store, "dirty")
        self.aging: RangeMap[int] = RangeMap(self.store, "aging")  # see model.references
        self.subpools: Cells[int, Subpool] = Cells(self.store, "subpools")  # model.huge_pool
        self.gathers: Cells[int, Gather] = Cells(self.store, "gathers")
        self.pins: Cells[int, int] = Cells(self.store, "pins")
        self.files: Cells[int, File] = Cells(self.store, "files")
        # userfaultfd, by context: what its monitor has not read, what it does about events; and the
        # faults, by page and task, that it has read and not answered.
        self.uffd_events: Cells[int, tuple[tuple[Any, ...], ...]] = Cells(self.store, "uffd_events")
        self.uffd_modes: Cells[int, UffdMode] = Cells(self.store, "uffd_modes")
        self.uffd_faults: Cells[tuple[int, int], int] = Cells(self.store, "uffd_faults")
        # Reads of pages of files that are under way: by (file, page), who has begun it and whether
        # it was answered; and who waits for which page.
        self.reads: Cells[tuple[int, int], tuple[int, bool]] = Cells(self.store, "reads")
        self.waits_for_io: Cells[int, tuple[int, int]] = Cells(self.store, "waits_for_io")
        self.file_changes: Cells[int, FileChange] = Cells(self.store, "file_changes")  # by file
        # Pages of files, by (file, page), that faults do not map around others.
        self.locked_pages: Cells[tuple[int, int], bool] = Cells(self.store, "locked_pages")
        # What the architecture unmaps along: by mm, (start, end, companion start, companion end).
        self.arch_hooks: Cells[int, tuple[int, int, int, int]] = Cells(self.store, "arch_hooks")

        # Containers that come with files, address spaces and CPUs.
        self.mms: OnDemand[int, Mm] = OnDemand(
            self.store, "mm", lambda mm: Mm(self.store, mm, self.limits, self.levels), Mm.is_empty
        )
        self._caches: OnDemand[int, RangeMap[int]] = self._on_demand("cache", RangeMap)
        self._i_mmaps: OnDemand[int, OrderedCells[bool]] = self._on_demand("i_mmap", OrderedCells)
        self._tlbs: OnDemand[int, RangeMap[Translation]] = self._on_demand("tlb", RangeMap)
        self._walks: OnDemand[int, RangeMap[tuple[int, int]]] = self._on_demand("walks", RangeMap)
        self._named: OnDemand[str, Cells[Any, Any]] = OnDemand(
            self.store, "cells", lambda name: Cells(self.store, name), lambda cells: not cells
        )

    def close(self) -> None:
        """Let go of all state, at once: else the garbage collector has to find what refers to what.

        Nothing can be asked of the machine after that.
        """
        self.store.close()
        vars(self).clear()

    def cells(self, name: str) -> Cells[Any, Any]:
        """Return the cells of that name, made when they are first asked for.

        For models of something that isn't an address space; who makes them gives them their types.
        """
        return self._named[name]

    def named_cells(self) -> list[tuple[str, Cells[Any, Any]]]:
        """List the cells that `cells` has made and that hold something, by name."""
        return self._named.items()

    def _on_demand(self, family: str, kind: Any) -> OnDemand[int, Any]:
        def make(key: int) -> Any:
            return kind(self.store, f"{family}:{key}")

        return OnDemand(self.store, family, make, lambda cells: not cells)

    def mm(self, mm: int) -> Mm:
        """Return the address space `mm`; one that nobody used yet is empty."""
        return self.mms.made[mm]

    def page_cache(self, file: int) -> RangeMap[int]:
        """Return the page cache of a file: page offset -> frame number less page offset."""
        return self._caches.made[file]

    def page_caches(self) -> list[RangeMap[int]]:
        """List the page caches that hold pages."""
        return self._caches.values()

    def i_mmap(self, file: int) -> Cells[int, bool]:
        """Return the rmap of a file: the VMAs that map it."""
        return self._i_mmaps.made[file]

    def tlb(self, cpu: int) -> RangeMap[Translation]:
        """Return the translations that a CPU holds, by virtual page number."""
        return self._tlbs[cpu]

    def walk_cache(self, cpu: int) -> RangeMap[tuple[int, int]]:
        """Return the page tables that a CPU remembers: table index -> (mm, generation)."""
        return self._walks[cpu]

    @property
    def cpus(self) -> list[int]:
        """The CPUs that hold translations, or remember page tables."""
        return sorted({*self._tlbs, *self._walks})

    def next_serial(self, task: Task, kind: str, count: int = 1) -> int:
        """Number what a task makes, from 0, in a series of its own."""
        key, serials = (task.tid, kind), self.serials
        first: int = serials.data.get(key, 0)
        serials.put(key, first + count)
        return first

    def new_handle(self, task: Task, kind: str) -> int:
        """Return a handle that nothing had before, whatever other tasks do meanwhile."""
        return (task.tid + 1 << MAKER_SHIFT) + self.next_serial(task, kind)

    def translations_to(self, first: int, last: int) -> list[tuple[int, int]]:
        """List (cpu, virtual page number) that still translate to frames in [first, last)."""
        if not self.tracks_tlbs:
            return []
        return [
            (cpu, max(start, first - entry.delta))
            for cpu, tlb in self._tlbs.items()
            for start, (end, entry) in tlb.data.items()
            if start + entry.delta < last and first < end + entry.delta
        ]

    def commit(self, pages: int) -> None:
        """Count pages into Committed_AS; what is given back is negative."""
        self.globals.put("committed_as", self.globals.get("committed_as", 0) + pages)

    def forget_commitment(self, pages: int) -> None:
        """Note that pages of Committed_AS are never given back, as a kernel does by mistake."""
        self.globals.put("committed_forgotten", self.globals.get("committed_forgotten", 0) + pages)

    def spend(self, unit: str, count: float = 1) -> None:
        """Charge the step that runs now with `count` units of a cost profile."""
        if self.costs is not None:
            self.spent_ns += self.costs[unit] * count

    def touch(self, task: Task, *line: Hashable) -> None:
        """Charge the step that runs now with the way of a cache line from who wrote it last."""
        if self.touched is not None:
            self.spent_ns += self.touched(line, task.tid)

    def wake(self, channel: tuple[Any, ...]) -> None:
        """Tell an engine that asks for it (`tells_wakes`) that waits on `channel` may be over."""
        if self.tells_wakes:
            self.woken.append(channel)

    def has_fatal_signal(self, tid: int) -> bool:
        """Return whether killable waits of `tid` are to end."""
        return tid in self.signals
