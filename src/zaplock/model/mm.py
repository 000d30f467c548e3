"""`mm_struct`: the containers, counters and limits of one address space."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from zaplock.model.flags import PAGE_SIZE, TASK_SIZE_4_LEVELS, page_align
from zaplock.model.store import Cells, OrderedCells, RangeMap

if TYPE_CHECKING:
    from zaplock.model.rwsem import Lock
    from zaplock.model.store import Store


NARROW_TASK_SIZE = (1 << 32) - 2 * PAGE_SIZE
"""Below it lies what a 32-bit program has on x86-64 (IA32_PAGE_OFFSET; page_64_types.h)."""
LIMITED_TASK_SIZE = 3 << 30
"""... and where its personality is ADDR_LIMIT_3GB."""


def unmapped_base(task_size: int) -> int:
    """Return above which address mappings that go up begin (TASK_UNMAPPED_BASE)."""
    return page_align(task_size // 3)


class ResourceLimits(msgspec.Struct, frozen=True):
    """What bounds an address space. Bytes and addresses, except `max_map_count` (VMAs).

    `bottom_up`: mappings go up from `mmap_base` (the legacy layout) instead of down from it.
    `legacy_base`: where the search upwards begins where `mmap_base` leaves no room (0: none).
    `implies_exec`: what may be read may be executed (the personality READ_IMPLIES_EXEC).
    `task_size`: of a 32-bit program on x86-64 `NARROW_TASK_SIZE`. `rlimit_data_hard`: what binds
    where `rlimit_data` is 0.
    """

    task_size: int = TASK_SIZE_4_LEVELS
    mmap_base: int = 0x7FFF_F7FF_F000
    mmap_min_addr: int = 0x10000
    mmap_min_hint: int = 0x10000
    max_map_count: int = 65530
    rlimit_as: int = 1 << 63
    rlimit_data: int = 1 << 63
    rlimit_data_hard: int = 1 << 63
    rlimit_memlock: int = 1 << 63
    rlimit_stack: int = 8 << 20
    stack_guard_gap: int = 256 << 12
    can_ipc_lock: bool = True
    overcommit_pages: int = 1 << 40
    bottom_up: bool = False
    legacy_base: int = 0
    implies_exec: bool = False

    @property
    def is_narrow(self) -> bool:
        """Whether addresses have 32 bits."""
        return self.task_size <= NARROW_TASK_SIZE


class Pte(msgspec.Struct, frozen=True):
    """What the page-table entries of a run hold; equal for a whole run.

    kind: "anon", "zero", "file", "shmem", "thp", "zero_thp", "shmem_thp" (model.shared_huge),
    "hugetlb", "gigantic" (both of model.huge_pool), "pfn", "swap" (the page is in a slot:
    model.swap) or a marker ("guard", "poison", "uffd_wp"). `delta` is page frame number less
    virtual page number, so one value serves a run of consecutive frames; the zero page and
    markers have delta 0. `no_access`: made unreachable by mprotect(PROT_NONE), though the page is
    there. `wp`: a userfaultfd has it write-protected (UFFDIO_WRITEPROTECT). `old`: nobody has used
    the entry since its accessed bit was cleared, followed where a machine asks (model.references).
    `soft_clean`: nobody has written through it since its soft-dirty bit was cleared, or ever.
    `merged`: of the zero page, that KSM has put it there (model.ksm). `clean`: of anonymous memory,
    that nobody has written through it since MADV_FREE was given (its dirty bit).
    """

    kind: str
    delta: int
    writable: bool = False
    no_access: bool = False
    wp: bool = False
    old: bool = False
    soft_clean: bool = False
    merged: bool = False
    clean: bool = False


pte_of = lru_cache(maxsize=1024, typed=True)(Pte)
"""Make an entry's value, or return the one of equal parts that was made before (as frame_of)."""


Counter = Literal[
    # in pages
    "total_vm", "locked_vm", "data_vm", "exec_vm", "stack_vm", "hiwater_vm",
    "rss_anon", "rss_file", "rss_shmem", "hiwater_rss", "hugetlb_usage",
    "swap_ents",
    "locked_vm_leaked",  # of locked_vm: what MREMAP_DONTUNMAP leaves in it by mistake
    # other amounts
    "map_count", "pgtables_bytes", "data_length",
    "users",  # tasks that run in the mm, and who acts as one
    "tlb_flush_pending",  # flushes under way
    "lock_seq",  # ends all VMA write locks when it moves
    # addresses and flags
    "brk", "start_brk", "arg_start", "def_flags", "mdwe",
    "thp_disable",  # 1: no huge pages, 2: but where they are advised
    "memory_merge", "oom_skip", "oom_victim", "recalc_uprobes",  # 1 where set
]  # fmt: skip
"""What an address space counts. One that was never changed is 0."""
COUNTERS: tuple[Counter, ...] = get_args(Counter)
_NAMES = frozenset[str](COUNTERS)


class Cut(msgspec.Struct, frozen=True):
    """Page tables that were taken out of an address space whole, and what still hangs below them.

    `first`, `last`: the virtual pages that they map. `handles`: their VMAs, out of the tree.
    `tables`: runs of page-table pages, (level, first index, last index, generation) each.
    """

    first: int
    last: int
    handles: tuple[int, ...]
    tables: tuple[tuple[int, int, int, int], ...] = ()


CUT_SHIFT = 40
"""Entries of a cut are keyed by (cut << CUT_SHIFT) + virtual page number."""


class Mm:
    """The containers of one mm. `tree` maps the start of each VMA to its handle.

    `ptes` is keyed by virtual page number, `tables[level]` by the index of the table (address >>
    21 for level 1, the page-table pages; >> 30 for level 2; >> 39 for level 3), its value is the
    table's generation. `teardown` holds the ranges that unmap_region works on, by gather. `dying`
    holds tombstones: where a range starts that is unmapped and still being zapped -> (its end, a
    handle of its own), or that waits for ticks -> (its end, its gather); they don't overlap.
    `cuts`, `cut_ptes`: page tables cut out and not zapped yet.
    """

    __slots__ = (
        "counters",
        "cut_ptes",
        "cuts",
        "dying",
        "limits",
        "mm",
        "mmap_lock",
        "ptes",
        "tables",
        "teardown",
        "tree",
    )

    mm: int
    limits: ResourceLimits
    mmap_lock: Lock
    tree: OrderedCells[int]
    ptes: RangeMap[Pte]
    tables: Mapping[int, RangeMap[int]]
    counters: Cells[Counter, int]
    cuts: Cells[int, Cut]
    cut_ptes: RangeMap[Pte]
    dying: OrderedCells[tuple[int, int]]
    teardown: Cells[int, tuple[int, int]]

    def __init__(self, store: Store, mm: int, limits: ResourceLimits, levels: int) -> None:
        keep = partial(object.__setattr__, self)
        tables: dict[int, RangeMap[int]] = {
            level: RangeMap(store, f"tables{level}:{mm}") for level in range(1, levels)
        }
        keep("mm", mm)
        keep("limits", limits)
        keep("mmap_lock", ("mmap_lock", mm))
        keep("tree", OrderedCells(store, f"tree:{mm}"))
        keep("ptes", RangeMap(store, f"ptes:{mm}"))
        keep("tables", MappingProxyType(tables))
        keep("counters", Cells(store, f"mm:{mm}"))
        keep("cuts", Cells(store, f"cuts:{mm}"))
        keep("cut_ptes", RangeMap(store, f"cut_ptes:{mm}"))
        keep("dying", OrderedCells(store, f"dying:{mm}"))
        keep("teardown", Cells(store, f"teardown:{mm}"))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} = {value!r}: an mm has no state outside its cells")

    def is_empty(self) -> bool:
        """Return whether nothing was ever kept here, or nothing is left."""
        return not (
            self.counters
            or self.tree
            or self.ptes
            or self.teardown
            or self.cuts
            or self.cut_ptes
            or self.dying
            or any(self.tables.values())
        )

    def add(self, counter: Counter, amount: int) -> None:
        """Change a counter. Raises KeyError where there is none of that name."""
        if amount:
            counters = self.counters
            value = counters.data.get(counter)
            counters.put(counter, (self.count(counter) if value is None else value) + amount)

    def count(self, counter: Counter) -> int:
        """Return a counter. Raises KeyError where there is none of that name."""
        value = self.counters.data.get(counter)
        if value is not None:
            return value
        if counter not in _NAMES:
            raise KeyError(f"an mm has no counter {counter!r}; it has {', '.join(COUNTERS)}")
        return 0

    def raise_mark(self, mark: Counter, value: int) -> None:
        """Keep a high-water mark."""
        if value > self.count(mark):
            self.counters.put(mark, value)

    @property
    def rss(self) -> int:
        """Pages resident: anonymous, file and shmem."""
        count = self.counters.data.get
        return count("rss_anon", 0) + count("rss_file", 0) + count("rss_shmem", 0)


def change_limits(space: Mm, limits: ResourceLimits) -> None:
    """Give an address space other limits, between runs: limits are no state that steps change."""
    object.__setattr__(space, "limits", limits)
