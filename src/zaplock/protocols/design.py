"""What a design decides: the record that every protocol is run with.

A design is data. It names the protocol for each operation that differs between kernels and the
rules that protocols ask for; `zaplock.designs` has the shipped ones, a user's own is made the same
way: `replace(LINUX_6_18, name="mine", munmap=my_munmap)`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

from zaplock.model.choices import require_choices
from zaplock.model.folio_sharing import Sharing
from zaplock.model.huge_pool import Refusal
from zaplock.model.mm import ResourceLimits
from zaplock.model.rwsem import Lock, RwsemPolicy
from zaplock.model.step import Task
from zaplock.model.tlb import NestedFlush
from zaplock.protocols.address_locks import Locking

Protocol = Coroutine[Any, Any, int]
ExitLock = Literal["users", "late-barrier", "barrier", "write", "read-write"]
"""How exit_mmap keeps reapers out; `protocols.exit` says what each means."""
UnmapEvents = list[tuple[int, int, int]]
"""Unmap events that userfaultfd monitors are to be told of: (context, start, end)."""


LIMITS = ResourceLimits()


@dataclass(frozen=True, slots=True)
class Cx:
    """In which world a protocol runs: whose thread, under which design, at which grain.

    `limits` are the address space's (fixed, so no step is needed to read them).
    `grain` is how many pages one zap step clears: 0 for as many as there are in the VMA (timed and
    sequential), 1 to let others run between any two pages (checked).
    `allocations_fail`: an allocation may fail, and each is a step (`protocols.shortage`).
    """

    design: Design
    task: Task
    grain: int = 0
    limits: ResourceLimits = LIMITS
    allocations_fail: bool = False
    mm: int = field(init=False, repr=False, compare=False)
    mmap_lock: Lock = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mm", self.task.mm)
        object.__setattr__(self, "mmap_lock", ("mmap_lock", self.task.mm))


@dataclass(frozen=True)
class Design:
    """One kernel's, or one proposal's, way with an address space and its lock.

    Protocols: `munmap(cx, start, length)`, the system call; `do_munmap(cx, start, length, uf,
    downgrade)`, for those who hold the lock for write (mmap over old mappings, brk, mremap): adds
    userfaultfd events to deliver to the list `uf` and returns 1 if it downgraded, 0 if not, or an
    error; `page_fault(cx, address, write)`; `proc_cmdline(cx, mm)`.

    The other fields are rules. Each is documented in `zaplock.designs.changes`, in the row of the
    change of Linux that set it (`zaplock designs linux-4.9 linux-7.3` prints them). Some have no
    such row: skip_vm_flags is the RFC's parameter: "no" (not there), "posted" (its hugetlb test
    inverted) or "yes". mmap_killable: a fatal signal ends the wait of mmap, munmap, brk, mremap and
    mprotect for the lock (so in every kernel from 4.9 on).
    And no kernel has these: tombstones (munmap leaves one over the range and zaps it under no
    lock of the address space, protocols.dying) and cuts (it cuts page tables out and zaps them
    afterwards, protocols.cut_munmap), nor lazy_flush (other CPUs flush at their next tick, and the
    range stays occupied until then, protocols.lazy_flush).
    Nor these, which were proposed (`designs.proposals_2026`): major_fault (what a fault under the
    VMA lock does about a page that has to be read: give the lock back and retry under the
    "mmap"_lock, retry under the "vma" lock, or "hold" the VMA lock meanwhile), fork_locks (which
    VMAs fork write-locks: "all", those that "cow", private and perhaps writable, or those with an
    "anon_vma"), fork_copies (whose page tables it copies: where that is "needed", or only of those
    with an "anon_vma"), remote_lock (what a read of another process's memory takes: the
    "mmap"_lock, one "vma" after the other, or "one-vma", if the whole read lies in that).

    Rivals from papers and other systems (`designs.rivals`) have other locks than the mmap_lock
    (locking, see protocols.address_locks), an mmap of their own (mmap; None: Linux's), no
    neighbours that merge with a new mapping (merges), and an mprotect that holds no more than the
    mappings whose border it moves (mprotect_refines).

    kernel: the Linux release that the design is, or stands on: "6.6.30", "4.18 + RFC v6".
    """

    name: str
    kernel: str
    summary: str
    rwsem: RwsemPolicy
    munmap: Callable[[Cx, int, int], Protocol]
    do_munmap: Callable[[Cx, int, int, UnmapEvents, bool], Protocol]
    page_fault: Callable[[Cx, int, bool], Protocol]
    proc_cmdline: Callable[[Cx, int], Protocol]
    tree: Literal["rbtree", "maple"] = "rbtree"
    munmap_downgrades: bool = False
    brk_downgrades: bool = False
    mremap_downgrades: bool = False
    downgrade_beside_growable: bool = True
    bounds_read: Literal["before", "after"] = "before"
    arch_unmap: Literal["first", "detached", "last", "never"] = "last"
    skip_vm_flags: Literal["no", "posted", "yes"] = "no"
    clears_mayshare: bool = True
    uffd_unmap: bool = True
    vma_locks: bool = False
    stack_growth: Literal["read", "write"] = "read"
    dontneed_lock: Literal["mmap", "vma"] = "mmap"
    dontneed_flushes_once: bool = False
    free_flushes_once: bool = False
    maps_lock: Literal["mmap", "vma"] = "mmap"
    cmdline_killable: bool = False
    fault_killable: bool = False
    mmap_killable: bool = True
    nested_flush: NestedFlush = "forget-tables"
    flush_before_rmap: bool = False
    mremap_flush: Literal["inside", "outside"] = "outside"
    exit_lock: ExitLock = "users"
    munlock_pass: bool = True
    vma_lock_faults: Literal["anonymous", "most", "all"] = "anonymous"
    fork_locks_vma: bool = False
    zap_restores_reserve: bool = False
    huge_hints_round_down: bool = True
    kept_pages_leak: bool = True
    huge_cache_by_page: bool = False
    disables_unadvised: bool = False
    huge_refusal: Refusal = "whole"
    dofork_refuses_special: bool = False
    huge_fault_takes_page_first: bool = True
    growth_locks_vma: bool = False
    guard_lock: Literal["mmap", "vma"] = "mmap"
    smaps_lock: Literal["mmap", "vma"] = "mmap"
    rollup_lets_go: bool = False
    clear_refs_lock: Literal["read", "write"] = "read"
    walks_lock_vmas: bool = False
    batches_entries: bool = False
    keeps_huge_dirty: bool = True
    cold_sharing: Sharing = "page"
    free_sharing: Sharing = "page"
    free_huge_sharing: Sharing = "all pages"
    advice_splits_whole: bool = True
    vma_reuse: Literal["never", "unpinned", "pinned"] = "never"
    collapse_locks_first: bool = False
    dirty_fault_lets_go: bool = False
    throttled_in: Literal["kernel", "user"] = "kernel"
    gathers_first: bool = False
    realigns_moves: bool = False
    moves_many: bool = False
    pins_unshare: bool = False
    registers_terabytes: bool = False
    memory_merge: Literal["no", "late", "early", "always early"] = "no"
    finds_zeros: bool = False
    ksm_unshares: bool = False
    ksm_zeros_first: bool = False
    ksm_marks_zeros: bool = False
    ksm_finds_closed: bool = True
    unmerges_closed: bool = True
    collapse_passes_holes: bool = False
    collapses_nothing: bool = False
    collapse_needs_writable: bool = True
    collapse_maps_shared: bool = False
    collapse_retracts_all: bool = False
    huge_maps_ask: bool = False
    collapse_tells_of_watcher: bool = False
    collapse_makes_tables: bool = False
    maps_folios_around: bool = False
    cuts_folios_in_halves: bool = False
    shmem_folios: Literal["huge", "by write", "written in any size", "any size"] = "huge"
    folios_need_room: bool = False
    maps_whole_folios: Literal["none", "unnamed", "all"] = "none"
    mremap_forgets_charge: bool = False
    mmap_forgets_charge: bool = False
    dontunmap_leaks_locked: bool = True
    dontunmap_resets_offset: bool = False
    moves_watched_apart: bool = False
    counts_anonymous_apart: bool = False
    mremap_checks_first: bool = False
    mremap_aligned_first: bool = False
    dontunmap_unaccounts: bool = False
    merges_untouched: bool = False
    merges_anew: bool = False
    merges_keep_mark: bool = False
    advises_itself: Literal["no", "some", "all"] = "no"
    process_advice_first: bool = False
    counted_grow: bool = False
    maps_above_4g: bool = False
    rings_are_locked: bool = False
    seals_are_ints: bool = False
    seals_code: bool = False
    fallocate_mixes: Literal["EINVAL", "EOPNOTSUPP"] = "EINVAL"
    droppable: bool = False
    watches_droppable: bool = True
    uffd_keeps_wp: bool = False
    uffd_below_minimum: bool = False
    uffd_beyond_end: Literal["EFAULT", "ENOMEM"] = "EFAULT"
    uffd_poison: bool = False
    uffd_move: bool = False
    uffd_fills_guards: bool = True
    uffd_nothing_above: Literal["EINVAL", "ENOMEM"] = "ENOMEM"
    uffd_merges_parts: bool = False
    uffd_protects_across: bool = False
    uffd_continues_protected: bool = False
    uffd_prepares_first: bool = False
    uffd_sizes_devices: bool = False
    watches_attached_huge: bool = True
    seal_exec_asks_writers: bool = False
    interleaves_by_weight: bool = False
    balances_preferred: bool = False
    aligns_for_huge_pages: Literal["files", "memory", "devices"] = "files"
    populates_over_holes: bool = True
    prefaults_writes: bool = True
    write_piece: Literal["page", "as its files", "huge page"] = "page"
    seals_devices: bool = False
    replaces_huge_zero: bool = False
    reuses_large: bool = False
    mprotect_lets_write: bool = False
    uncharges_untouched: bool = False
    stacks_nohugepage: bool = False
    guards: bool = False
    guards_need_anon_vma: bool = True
    reclaims_tables: bool = False
    mseal: Literal["no", "range", "vma"] = "no"
    read_leaves_queue: Literal["no", "relaxed", "acquire"] = "no"
    read_wakes: Literal["relaxed", "acquire"] = "relaxed"
    pgste_finds_vma: bool = False
    tombstones: bool = False
    cuts: bool = False
    lazy_flush: bool = False
    major_fault: Literal["mmap", "vma", "hold"] = "mmap"
    fork_locks: Literal["all", "cow", "anon_vma"] = "all"
    fork_copies: Literal["needed", "anon_vma"] = "needed"
    remote_lock: Literal["mmap", "vma", "one-vma"] = "mmap"
    locking: Locking = "rwsem"
    mmap: Callable[[Cx, int, int, int, int, int, int], Protocol] | None = None
    merges: bool = True
    mprotect_refines: bool = False

    def __post_init__(self) -> None:
        require_choices(self)
