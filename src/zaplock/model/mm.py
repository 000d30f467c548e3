"""`mm_struct`: the containers, counters and limits of one address space.

Counters are cells by name: total_vm, locked_vm, pinned_vm, data_vm, exec_vm, stack_vm and
hiwater_vm, rss_anon, rss_file, rss_shmem and hiwater_rss in pages; map_count; pgtables_bytes; brk
and start_brk (addresses); def_flags; tlb_flush_pending (flushes under way); lock_seq (ends all VMA
write locks when it moves); users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from zaplock.model.flags import TASK_SIZE_4_LEVELS
from zaplock.model.store import Cells, OrderedCells, RangeMap

if TYPE_CHECKING:
    from zaplock.model.rwsem import Lock
    from zaplock.model.store import Store


class ResourceLimits(msgspec.Struct, frozen=True):
    """What bounds an address space. Bytes and addresses, except `max_map_count` (VMAs).

    `bottom_up`: mappings go up from `mmap_base` (the legacy layout) instead of down from it.
    """

    task_size: int = TASK_SIZE_4_LEVELS
    mmap_base: int = 0x7FFF_F7FF_F000
    mmap_min_addr: int = 0x10000
    mmap_min_hint: int = 0x10000
    max_map_count: int = 65530
    rlimit_as: int = 1 << 63
    rlimit_data: int = 1 << 63
    rlimit_memlock: int = 1 << 63
    rlimit_stack: int = 8 << 20
    stack_guard_gap: int = 256 << 12
    can_ipc_lock: bool = True
    overcommit_pages: int = 1 << 40
    bottom_up: bool = False


class Pte(msgspec.Struct, frozen=True):
    """What the page-table entries of a run hold; equal for a whole run.

    kind: "anon", "zero", "file", "shmem", "thp", "zero_thp", "hugetlb", "pfn" or a marker
    ("guard", "uffd_wp"). `delta` is page frame number less virtual page number, so one value
    serves a run of consecutive frames; the zero page and markers have delta 0. `no_access`: made
    unreachable by mprotect(PROT_NONE), though the page is there.
    """

    kind: str
    delta: int
    writable: bool = False
    no_access: bool = False


COUNTERS = (
    "total_vm", "locked_vm", "pinned_vm", "data_vm", "exec_vm", "stack_vm", "hiwater_vm",
    "rss_anon", "rss_file", "rss_shmem", "hiwater_rss", "map_count", "pgtables_bytes",
    "brk", "start_brk", "def_flags", "tlb_flush_pending", "lock_seq", "users",
)  # fmt: skip


class Mm:
    """The containers of one mm. `tree` maps the start of each VMA to its handle.

    `ptes` is keyed by virtual page number, `tables[level]` by the index of the table (address >>
    21 for level 1, the page-table pages; >> 30 for level 2; >> 39 for level 3), its value is the
    table's generation. `teardown` holds the ranges that unmap_region works on, by gather.
    """

    __slots__ = (
        "counters",
        "limits",
        "mm",
        "mmap_lock",
        "ptes",
        "tables",
        "teardown",
        "tree",
    )

    def __init__(self, store: Store, mm: int, limits: ResourceLimits, levels: int) -> None:
        self.mm = mm
        self.limits = limits
        self.mmap_lock: Lock = ("mmap_lock", mm)
        self.tree: OrderedCells[int] = OrderedCells(store, f"tree:{mm}")
        self.ptes: RangeMap[Pte] = RangeMap(store, f"ptes:{mm}")
        self.tables: dict[int, RangeMap[int]] = {
            level: RangeMap(store, f"tables{level}:{mm}") for level in range(1, levels)
        }
        self.counters: Cells[str, int] = Cells(store, f"mm:{mm}")
        self.teardown: Cells[int, tuple[int, int]] = Cells(store, f"teardown:{mm}")

    def add(self, counter: str, amount: int) -> None:
        """Change a counter."""
        if amount:
            self.counters.put(counter, self.counters.get(counter, 0) + amount)

    def count(self, counter: str) -> int:
        """Return a counter; one that was never changed is 0."""
        value: int = self.counters.get(counter, 0)
        return value

    @property
    def rss(self) -> int:
        """Pages resident: anonymous, file and shmem."""
        return self.count("rss_anon") + self.count("rss_file") + self.count("rss_shmem")
