"""The mutations of the shipped designs, each with a scenario that shows what it breaks.

Every protecting step of a teardown, a fault, a stack's growth and of the operations beside them is
taken away or moved in every design that has it. `docs/checking.md` has the table of what the
checker says; `zaplock check --mutations` makes it.
"""

from __future__ import annotations

from zaplock.check.mutations import (
    DowngradeBefore,
    Mutation,
    Postpone,
    Skip,
    SkipLock,
    SkipWrite,
    UnlockLast,
    WrongUnlock,
    zap_first_munmap,
)
from zaplock.check.proposal_mutations import MUTATIONS as PROPOSAL_MUTATIONS
from zaplock.designs import SHIPPED

ALL = tuple(SHIPPED)
RFC = ("rfc-v6-posted", "rfc-v6")
DOWNGRADING = (*RFC, "linux-4.20", "linux-5.10", "linux-6.1", "linux-6.18")
FROM_4_18 = tuple(name for name in ALL if name != "linux-4.9")
FROM_4_20 = ("linux-4.20", "linux-5.10", "linux-6.1", "linux-6.18")
FROM_5_10 = ("linux-5.10", "linux-6.1", "linux-6.18")
UP_TO_5_10 = tuple(name for name in ALL if name not in ("linux-6.1", "linux-6.18"))
GROWTH_UNDER_WRITE = ("linux-6.1", "linux-6.18")

MUTATIONS: tuple[Mutation, ...] = (
    *PROPOSAL_MUTATIONS,
    # The munmap itself.
    Mutation(
        "downgrade-before-detach",
        "downgrades before the VMAs are out of the tree",
        DOWNGRADING,
        ("munmap-fault-gup",),
        rule=lambda: DowngradeBefore("detach_vmas_to_be_unmapped"),
    ),
    Mutation(
        "zap-before-detach",
        "zaps under read while the VMAs can still be found (an earlier form of the RFC)",
        ALL,
        ("munmap-fault-gup",),
        changes={"munmap": zap_first_munmap},
    ),
    Mutation(
        "no-detach",
        "leaves the VMAs in the tree",
        ALL,
        ("munmap-fault-gup",),
        rule=lambda: Skip("detach_vmas_to_be_unmapped"),
    ),
    Mutation(
        "no-mmap-lock",
        "takes no mmap_lock for write",
        ALL,
        ("munmap-fault-gup",),
        rule=lambda: SkipLock("mmap_lock", True),
    ),
    Mutation(
        "unlock-read-as-write",
        "unlocks for write what it holds for read",
        ALL,
        ("munmap-fault-gup",),
        rule=lambda: WrongUnlock(write=False),
    ),
    Mutation(
        "unlock-write-as-read",
        "unlocks for read what it holds for write",
        ALL,
        ("munmap-reuse",),
        rule=lambda: WrongUnlock(write=True),
    ),
    Mutation(
        "no-unlock-of-read",
        "forgets the unlock",
        ALL,
        ("munmap-fault-gup",),
        rule=lambda: Skip("up_read", 0),
    ),
    Mutation(
        "no-unlock-of-write",
        "forgets the unlock",
        ALL,
        ("munmap-reuse",),
        rule=lambda: Skip("up_write", 0),
    ),
    Mutation(
        "no-neighbour-check",
        "downgrades beside a stack that may grow under read",
        ("linux-5.10",),
        ("expand", "ceiling"),
        changes={"downgrade_beside_growable": True},
    ),
    Mutation(
        "no-neighbour-check",
        "downgrades beside a stack that may grow",
        ("linux-6.1",),
        changes={"downgrade_beside_growable": True},
        equivalent="stacks grow under write, so none grows while a downgraded holder reads; "
        "that is why 6.5 dropped the check",
    ),
    Mutation(
        "late-bounds",
        "reads floor and ceiling after the downgrade",
        ("linux-6.18",),
        changes={"bounds_read": "after"},
        equivalent="whatever moves a neighbour needs the lock for write, also growth since 6.5",
    ),
    Mutation(
        "late-bounds-and-growth-under-read",
        "reads floor and ceiling after the downgrade, and stacks grow under read",
        ("linux-6.18",),
        ("ceiling",),
        changes={"bounds_read": "after", "stack_growth": "read"},
    ),
    Mutation(
        "growth-under-read",
        "lets stacks grow under read: the accounting loses its lock",
        GROWTH_UNDER_WRITE,
        ("lost-update", "stack-rot"),
        changes={"stack_growth": "read"},
    ),
    # The order of the teardown.
    Mutation(
        "no-zap",
        "frees page tables whose entries are live",
        ALL,
        ("munmap-fault-gup",),
        rule=lambda: Skip("zap_pte_range", False),
    ),
    Mutation(
        "tables-before-zap",
        "zaps only after the page tables are freed",
        ALL,
        ("munmap-fault-gup",),
        rule=lambda: Postpone("zap_pte_range", "free_pgd_range", False),
    ),
    Mutation(
        "exit-frees-tables-under-read",
        "exit_mmap frees page tables without the lock for write",
        GROWTH_UNDER_WRITE,
        ("exit-reap",),
        rule=lambda: SkipLock("mmap_lock", True),
    ),
    Mutation(
        "no-flush",
        "returns pages without a flush",
        ALL,
        ("munmap-file", "nested-flush"),
        rule=lambda: Skip("tlb_begin_finish"),
    ),
    Mutation(
        "flush-after-free",
        "flushes after the pages are returned",
        ALL,
        ("munmap-file", "nested-flush"),
        rule=lambda: Postpone("tlb_begin_finish", "tlb_batch_pages_flush"),
    ),
    Mutation(
        "no-return",
        "never returns the gathered pages",
        ALL,
        ("munmap-fault-gup",),
        rule=lambda: Skip("tlb_batch_pages_flush"),
    ),
    Mutation(
        "no-table-free",
        "leaves the page tables",
        ALL,
        rule=lambda: Skip("free_pgd_range"),
        equivalent="an empty page table that stays is counted, used again and freed at exit: "
        "memory, not safety",
    ),
    Mutation(
        "no-floor-and-ceiling",
        "frees page tables that neighbours share",
        ALL,
        ("shared-table",),
        rule=lambda: Skip("floor_and_ceiling", (0, 0)),
    ),
    Mutation(
        "no-rmap-unlink",
        "leaves the VMAs in the file's rmap",
        ALL,
        ("munmap-file",),
        rule=lambda: Skip("unlink_file"),
    ),
    Mutation(
        "no-i-mmap-lock",
        "changes the file's rmap without its lock",
        ALL,
        ("munmap-file", "munmap+truncate"),
        rule=lambda: SkipLock("i_mmap", True),
    ),
    Mutation(
        "no-i-mmap-read-lock",
        "truncation walks the rmap without its lock",
        ALL,
        ("munmap-file", "munmap+truncate"),
        rule=lambda: SkipLock("i_mmap", False),
    ),
    # The books.
    Mutation(
        "no-total-vm",
        "does not take the pages off total_vm",
        ALL,
        ("munmap-fault-gup",),
        rule=lambda: Skip("write_counter"),
    ),
    Mutation(
        "no-uncommit",
        "does not give committed memory back",
        ALL,
        ("munmap-fault-gup",),
        rule=lambda: Skip("vm_unacct_memory"),
    ),
    Mutation(
        "no-locked-vm",
        "does not take locked pages off locked_vm",
        ALL,
        ("munmap-locked",),
        rule=lambda: Skip("add_counter"),
    ),
    Mutation(
        "no-remove-vma",
        "never frees the VMA",
        ALL,
        ("munmap-fault-gup",),
        rule=lambda: Skip("remove_vma"),
    ),
    Mutation(
        "no-rollback",
        "leaves brk where an unmap that failed was to put it",
        ALL,
        ("brk-error",),
        rule=lambda: SkipWrite("brk"),
    ),
    # Flushes of others, and who waits for whom.
    Mutation(
        "nested-flush-forgets-tables",
        "a nested flush resets its range and forgets the freed tables",
        FROM_5_10,
        ("nested-flush",),
        changes={"nested_flush": "forget-tables"},
    ),
    Mutation(
        "nested-flush-ignored",
        "a finishing gather does not look for others",
        tuple(name for name in ALL if name != "linux-4.9"),
        ("missed-flush",),
        changes={"nested_flush": "ignore"},
    ),
    Mutation(
        "mremap-flush-outside",
        "moves entries and flushes after the page-table lock is dropped",
        FROM_4_20,
        ("mremap-flush",),
        changes={"mremap_flush": "outside"},
    ),
    Mutation(
        "mremap-no-flush",
        "moves entries without a flush",
        UP_TO_5_10[:4],
        ("mremap-touch",),
        rule=lambda: Skip("flush_moved"),
    ),
    Mutation(
        "fork-no-flush",
        "fork lets other threads write to pages that are shared by now",
        ALL,
        ("fork-write",),
        rule=lambda: Skip("flush_parent"),
    ),
    Mutation(
        "event-before-unlock",
        "tells the userfaultfd monitor before the lock is given back",
        FROM_4_18,
        ("uffd-event",),
        rule=UnlockLast,
    ),
    Mutation(
        "exit-lets-reapers-in",
        "exit_mmap does not tell reapers to keep away",
        UP_TO_5_10,
        ("exit-reap",),
        rule=lambda: Skip("set_oom_skip"),
    ),
    Mutation(
        "exit-lets-reapers-in",
        "exit_mmap does not tell reapers to keep away",
        GROWTH_UNDER_WRITE,
        rule=lambda: Skip("set_oom_skip"),
        equivalent="exit_mmap zaps under read and frees the tables under write, so a reaper that "
        "comes finds empty page tables or no VMAs: the mark only saves it the way",
    ),
    Mutation(
        "mremap-moves-nothing",
        "a move leaves the entries where they were",
        ALL,
        ("mremap-touch",),
        rule=lambda: Skip("move_ptes"),
    ),
    Mutation(
        "fork-copies-nothing",
        "the child of a fork gets no entries",
        ALL,
        ("fork-write",),
        rule=lambda: Skip("copy_ptes"),
    ),
    Mutation(
        "truncate-keeps-cache",
        "a truncation leaves its pages in the page cache",
        ALL,
        ("munmap-file",),
        rule=lambda: Skip("truncate_pagecache"),
    ),
    Mutation(
        "exit-removes-nothing",
        "exit_mmap leaves the VMAs",
        ALL,
        ("exit-reap",),
        rule=lambda: Skip("remove_all"),
    ),
    # Special mappings.
    Mutation(
        "skip-vm-flags-inverted",
        "the hugetlb test of the RFC as posted",
        ("rfc-v6",),
        ("hugetlb",),
        changes={"skip_vm_flags": "posted"},
    ),
    Mutation(
        "no-flush-before-rmap",
        "takes PFN mappings out of the rmap before they are flushed",
        GROWTH_UNDER_WRITE,
        ("pfn-revoke",),
        changes={"flush_before_rmap": False},
    ),
    Mutation(
        "arch-unmap-late",
        "calls the architecture's hook under read",
        ("linux-4.20", "linux-5.10"),
        ("arch-unmap",),
        rule=lambda: DowngradeBefore("companion"),
    ),
    # Faults.
    Mutation(
        "fault-without-lock",
        "faults and readers take no mmap_lock for read",
        ALL,
        ("munmap-fault-gup", "munmap-reuse"),
        rule=lambda: SkipLock("mmap_lock", False),
    ),
    Mutation(
        "no-detached-recheck",
        "a fault that has read-locked its VMA does not look whether it is still in the tree",
        ("linux-6.18",),
        ("munmap-fault-gup",),
        rule=lambda: Skip("still_covers", True),
    ),
    Mutation(
        "no-vma-write-lock",
        "munmap does not write-lock the VMAs that it detaches",
        ("linux-6.18",),
        ("munmap-fault-gup",),
        rule=lambda: Skip("_start_write"),
    ),
    Mutation(
        "no-end-of-vma-write-locks",
        "the downgrade and the unlock leave VMAs write-locked",
        ("linux-6.18",),
        rule=lambda: Skip("vma_end_write_all"),
        equivalent="a VMA that stays write-locked sends every fault the slow way, under the "
        "mmap_lock: speed, not safety",
    ),
)
