"""The mutations of the shipped designs, each with a scenario that shows what it breaks.

Every protecting step of a teardown, a fault, a stack's growth and of the operations beside them is
taken away or moved in every design that has it. `docs/checking.md` has the table of what the
checker says; `zaplock check --mutations` makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from zaplock.check.mutations import (
    DowngradeBefore,
    Mutation,
    Postpone,
    Skip,
    SkipLock,
    SkipWithoutMemory,
    SkipWrite,
    UnlockLast,
    WrongUnlock,
    zaps_first,
)
from zaplock.check.proposal_mutations import MUTATIONS as PROPOSAL_MUTATIONS
from zaplock.model.filters import Rule, Steps
from zaplock.model.machine import Machine
from zaplock.model.step import Step, Task, step
from zaplock.model.vma import Vma
from zaplock.protocols.design import Design


def everywhere(_design: Design) -> bool:
    return True


def unmaps_as_linux(d: Design) -> bool:
    """Whether munmap has Linux's steps: proposals have mutations of their own."""
    return not d.tombstones and not d.cuts


def downgrades(d: Design) -> bool:
    return d.munmap_downgrades


def grows_under_write(d: Design) -> bool:
    return d.stack_growth == "write"


def keeps_from_growable(d: Design) -> bool:
    """Whether munmap does not downgrade beside a stack that may grow."""
    return d.munmap_downgrades and not d.downgrade_beside_growable


def takes_bounds_before(d: Design) -> bool:
    return d.munmap_downgrades and d.bounds_read == "before" and grows_under_write(d)


def has_vma_locks(d: Design) -> bool:
    return d.vma_locks


LEAVES_WRONG: dict[Literal["inverted", "late"], str] = {
    "inverted": "clears the flags while others wait (1ea4b473504b alone)",
    "late": "looks whether it was first when it is out",
}
"""What a killed waiter of the semaphore may do wrong when it leaves the queue."""


def leaves_wrong(how: Literal["inverted", "late"]) -> Callable[[Design], dict[str, Any]]:
    """Let killed waiters leave the semaphore's queue so."""
    return lambda d: {"rwsem": replace(d.rwsem, del_waiter=how)}


def rules(**changes: Any) -> Callable[[Design], dict[str, Any]]:
    """Set rules of the design to these values."""
    return lambda _design: changes


WITHOUT_START_WRITE: tuple[
    tuple[str, Callable[[Design], bool], tuple[str, ...], str], ...
] = (
    ("munmap", lambda d: d.vma_locks and unmaps_as_linux(d), ("munmap-fault-gup",), ""),
    ("mmap-fixed", lambda d: d.vma_locks and unmaps_as_linux(d), ("mmap-fixed+fault",), ""),
    ("mremap-move", has_vma_locks, ("mremap-touch",), ""),
    ("mremap", has_vma_locks, ("mremap-merge",), ""),
    ("brk", lambda d: d.vma_locks and unmaps_as_linux(d), ("fault+brk",), ""),
    ("mprotect", has_vma_locks, ("fault+mprotect",), ""),
    ("mlock", has_vma_locks, ("fault+mlock",), ""),
    ("munlock", has_vma_locks, ("munlock-fault",), ""),
    ("fork", lambda d: d.vma_locks and d.fork_locks_vma, ("fork-copy",), ""),
    ("stack-growth", lambda d: d.vma_locks and d.growth_locks_vma, (),
     "a stack that grows still covers whatever a fault has looked at"),
)  # fmt: skip
"""Each operation that write-locks VMAs: where, and what shows it missing, or why nothing does."""


class OnlyAttached(Rule):
    """Take a VMA that is in the tree for the next one."""

    def __call__(self, step: Step[Any]) -> Steps:
        if step.name == "is_still_next":
            return (yield is_attached(step.args[2]))
        return (yield step)


@step
def is_attached(m: Machine, _task: Task, handle: int) -> bool:
    """Look whether a VMA is in the tree."""
    vma = m.vmas[handle]
    return isinstance(vma, Vma) and vma.attached


MUTATIONS: tuple[Mutation, ...] = (
    *PROPOSAL_MUTATIONS,
    # The munmap itself.
    Mutation(
        "downgrade-before-detach",
        "downgrades before the VMAs are out of the tree",
        downgrades,
        ("munmap-fault-gup",),
        rule=lambda: DowngradeBefore("detach_vmas_to_be_unmapped"),
    ),
    Mutation(
        "zap-before-detach",
        "zaps under read while the VMAs can still be found (an earlier form of the RFC)",
        everywhere,
        ("munmap-fault-gup",),
        changes=zaps_first,
    ),
    Mutation(
        "no-detach",
        "leaves the VMAs in the tree",
        unmaps_as_linux,
        ("munmap-fault-gup",),
        rule=lambda: Skip("detach_vmas_to_be_unmapped"),
    ),
    Mutation(
        "no-mmap-lock",
        "takes no mmap_lock for write",
        everywhere,
        ("munmap-fault-gup",),
        rule=lambda: SkipLock("mmap_lock", True),
    ),
    Mutation(
        "unlock-read-as-write",
        "unlocks for write what it holds for read",
        everywhere,
        ("munmap-fault-gup",),
        rule=lambda: WrongUnlock(write=False),
    ),
    Mutation(
        "unlock-write-as-read",
        "unlocks for read what it holds for write",
        everywhere,
        ("munmap-reuse",),
        rule=lambda: WrongUnlock(write=True),
    ),
    Mutation(
        "no-unlock-of-read",
        "forgets the unlock",
        everywhere,
        ("munmap-fault-gup",),
        rule=lambda: Skip("up_read", 0),
    ),
    Mutation(
        "no-unlock-of-write",
        "forgets the unlock",
        everywhere,
        ("munmap-reuse",),
        rule=lambda: Skip("up_write", 0),
    ),
    Mutation(
        "no-neighbour-check",
        "downgrades beside a stack that may grow under read",
        lambda d: keeps_from_growable(d) and not grows_under_write(d),
        ("expand", "ceiling"),
        changes=rules(downgrade_beside_growable=True),
    ),
    Mutation(
        "no-neighbour-check",
        "downgrades beside a stack that may grow",
        lambda d: keeps_from_growable(d) and grows_under_write(d),
        changes=rules(downgrade_beside_growable=True),
        equivalent="stacks grow under write, so none grows while a downgraded holder reads; "
        "that is why 6.5 dropped the check",
    ),
    Mutation(
        "late-bounds",
        "reads floor and ceiling after the downgrade",
        takes_bounds_before,
        changes=rules(bounds_read="after"),
        equivalent="whatever moves a neighbour needs the lock for write, also growth since 6.5",
    ),
    Mutation(
        "late-bounds-and-growth-under-read",
        "reads floor and ceiling after the downgrade, and stacks grow under read",
        takes_bounds_before,
        ("ceiling",),
        changes=rules(bounds_read="after", stack_growth="read"),
    ),
    Mutation(
        "growth-under-read",
        "lets stacks grow under read: the accounting loses its lock",
        grows_under_write,
        ("lost-update", "stack-rot"),
        changes=rules(stack_growth="read"),
    ),
    # The order of the teardown.
    Mutation(
        "no-zap",
        "frees page tables whose entries are live",
        lambda d: not d.cuts,
        ("munmap-fault-gup",),
        rule=lambda: Skip("zap_pte_range", False),
    ),
    Mutation(
        "tables-before-zap",
        "zaps only after the page tables are freed",
        unmaps_as_linux,
        ("munmap-fault-gup",),
        rule=lambda: Postpone("zap_pte_range", "free_pgd_range", False),
    ),
    Mutation(
        "exit-without-write-lock",
        "exit_mmap keeps nobody out with the lock where it frees page tables",
        lambda d: d.exit_lock != "users",
        ("exit-reap",),
        rule=lambda: SkipLock("mmap_lock", True),
    ),
    Mutation(
        "no-flush",
        "returns pages without a flush",
        everywhere,
        ("munmap-file", "nested-flush"),
        rule=lambda: Skip("tlb_begin_finish"),
    ),
    Mutation(
        "flush-after-free",
        "flushes after the pages are returned",
        everywhere,
        ("munmap-file", "nested-flush"),
        rule=lambda: Postpone("tlb_begin_finish", "tlb_batch_pages_flush"),
    ),
    Mutation(
        "no-return",
        "never returns the gathered pages",
        everywhere,
        ("munmap-fault-gup",),
        rule=lambda: Skip("tlb_batch_pages_flush"),
    ),
    Mutation(
        "no-table-free",
        "leaves the page tables",
        everywhere,
        rule=lambda: Skip("free_pgd_range"),
        equivalent="an empty page table that stays is counted, used again and freed at exit: "
        "memory, not safety",
    ),
    Mutation(
        "no-floor-and-ceiling",
        "frees page tables that neighbours share",
        unmaps_as_linux,
        ("shared-table",),
        rule=lambda: Skip("floor_and_ceiling", (0, 0)),
    ),
    Mutation(
        "no-rmap-unlink",
        "leaves the VMAs in the file's rmap",
        everywhere,
        ("munmap-file",),
        rule=lambda: Skip("unlink_file"),
    ),
    Mutation(
        "no-i-mmap-lock",
        "changes the file's rmap without its lock",
        everywhere,
        ("munmap-file", "munmap+truncate"),
        rule=lambda: SkipLock("i_mmap", True),
    ),
    Mutation(
        "no-i-mmap-read-lock",
        "truncation walks the rmap without its lock",
        everywhere,
        ("munmap-file", "munmap+truncate"),
        rule=lambda: SkipLock("i_mmap", False),
    ),
    # The books.
    Mutation(
        "no-total-vm",
        "does not take the pages off total_vm",
        unmaps_as_linux,
        ("munmap-fault-gup",),
        rule=lambda: Skip("write_counter"),
    ),
    Mutation(
        "no-uncommit",
        "does not give committed memory back",
        everywhere,
        ("munmap-fault-gup",),
        rule=lambda: Skip("vm_unacct_memory"),
    ),
    Mutation(
        "no-locked-vm",
        "does not take locked pages off locked_vm",
        everywhere,
        ("munmap-locked",),
        rule=lambda: Skip("add_counter"),
    ),
    Mutation(
        "no-remove-vma",
        "never frees the VMA",
        unmaps_as_linux,
        ("munmap-fault-gup",),
        rule=lambda: Skip("remove_vma"),
    ),
    Mutation(
        "no-rollback",
        "leaves brk where an unmap that failed was to put it",
        everywhere,
        ("brk-error",),
        rule=lambda: SkipWrite("brk"),
    ),
    # Flushes of others, and who waits for whom.
    Mutation(
        "nested-flush-forgets-tables",
        "a nested flush resets its range and forgets the freed tables",
        lambda d: d.munmap_downgrades and d.nested_flush == "full",
        ("nested-flush",),
        changes=rules(nested_flush="forget-tables"),
    ),
    Mutation(
        "nested-flush-ignored",
        "a finishing gather does not look for others",
        lambda d: d.nested_flush != "ignore",
        ("missed-flush",),
        changes=rules(nested_flush="ignore"),
    ),
    Mutation(
        "mremap-flush-outside",
        "moves entries and flushes after the page-table lock is dropped",
        lambda d: d.mremap_flush == "inside",
        ("mremap-flush",),
        changes=rules(mremap_flush="outside"),
    ),
    Mutation(
        "mremap-no-flush",
        "moves entries without a flush",
        lambda d: d.mremap_flush == "outside",
        ("mremap-touch",),
        rule=lambda: Skip("flush_moved"),
    ),
    Mutation(
        "fork-no-flush",
        "fork lets other threads write to pages that are shared by now",
        everywhere,
        ("fork-write",),
        rule=lambda: Skip("flush_parent"),
    ),
    Mutation(
        "event-before-unlock",
        "tells the userfaultfd monitor before the lock is given back",
        lambda d: d.uffd_unmap,
        ("uffd-event",),
        rule=lambda: UnlockLast("userfaultfd_unmap_prep"),
    ),
    Mutation(
        "exit-lets-reapers-in",
        "exit_mmap does not tell reapers to keep away",
        lambda d: d.exit_lock in ("late-barrier", "barrier"),
        ("exit-reap",),
        rule=lambda: Skip("set_oom_skip"),
    ),
    Mutation(
        "exit-lets-reapers-in",
        "exit_mmap does not tell reapers to keep away",
        lambda d: d.exit_lock == "read-write",
        rule=lambda: Skip("set_oom_skip"),
        equivalent="exit_mmap zaps under read and frees the tables under write, so a reaper that "
        "comes finds empty page tables or no VMAs: the mark only saves it the way",
        only=("exit", "fork", "fork-see", "oom-reap", "process-mrelease"),  # may be its last users
    ),
    Mutation(
        "reaper-is-no-user",
        "a reaper does not count as a user of the address space",
        lambda d: d.exit_lock in ("users", "late-barrier", "barrier"),
        ("exit-reap",),
        rule=lambda: Skip("mmget_not_zero", True),
    ),
    Mutation(
        "mremap-moves-nothing",
        "a move leaves the entries where they were",
        everywhere,
        ("mremap-touch",),
        rule=lambda: Skip("move_ptes"),
    ),
    Mutation(
        "fork-copies-nothing",
        "the child of a fork gets no entries",
        everywhere,
        ("fork-write",),
        rule=lambda: Skip("copy_ptes"),
    ),
    Mutation(
        "no-uncharge-after-failure",
        "mmap keeps the charge of a mapping for which there is no memory",
        lambda design: not design.gathers_first,
        ("no-memory-map",),
        rule=lambda: Skip("uncharge"),
    ),
    Mutation(
        "no-put-of-what-is-not-copied",
        "a copy-on-write fault without memory keeps its hold of the old page",
        everywhere,
        ("no-memory-fork",),
        rule=lambda: Skip("let_go_of"),
    ),
    Mutation(
        "no-way-back-of-a-move",
        "a move without memory leaves behind what it has moved",
        everywhere,
        ("no-memory-mremap-two",),
        rule=lambda: SkipWithoutMemory("move_ptes"),
    ),
    Mutation(
        "truncate-keeps-cache",
        "a truncation leaves its pages in the page cache",
        everywhere,
        ("munmap-file",),
        rule=lambda: Skip("truncate_pagecache"),
    ),
    Mutation(
        "exit-removes-nothing",
        "exit_mmap leaves the VMAs",
        everywhere,
        ("exit-reap",),
        rule=lambda: Skip("remove_all"),
    ),
    # Special mappings.
    Mutation(
        "skip-vm-flags-inverted",
        "the hugetlb test of the RFC as posted",
        lambda d: d.skip_vm_flags == "yes",
        ("hugetlb",),
        changes=rules(skip_vm_flags="posted"),
    ),
    Mutation(
        "no-flush-before-rmap",
        "takes PFN mappings out of the rmap before they are flushed",
        lambda d: d.flush_before_rmap and not d.cuts,
        ("pfn-revoke",),
        changes=rules(flush_before_rmap=False),
    ),
    Mutation(
        "arch-unmap-late",
        "calls the architecture's hook under read",
        lambda d: d.munmap_downgrades and d.arch_unmap == "first",
        ("arch-unmap",),
        rule=lambda: DowngradeBefore("companion"),
    ),
    # Readers of maps.
    Mutation(
        "maps-without-recheck",
        "shows a VMA that it found and then locked, though it may be gone by now",
        lambda d: d.maps_lock == "vma",
        ("maps-split",),
        rule=lambda: Skip("is_still_next", True),
    ),
    Mutation(
        "maps-without-second-look",
        "shows a VMA that it found and then locked, wherever it may begin by now",
        lambda d: d.maps_lock == "vma",
        ("maps-split",),
        rule=OnlyAttached,
    ),
    # Faults.
    Mutation(
        "fault-without-lock",
        "faults and readers take no mmap_lock for read",
        everywhere,
        ("munmap-fault-gup", "munmap-reuse"),
        rule=lambda: SkipLock("mmap_lock", False),
    ),
    Mutation(
        "no-detached-recheck",
        "a fault that has read-locked its VMA does not look whether it is still in the tree",
        has_vma_locks,
        ("munmap-fault-gup",),
        rule=lambda: Skip("still_covers", True),
    ),
    Mutation(
        "no-vma-write-lock",
        "munmap does not write-lock the VMAs that it detaches",
        lambda d: d.vma_locks and unmaps_as_linux(d),
        ("munmap-fault-gup",),
        rule=lambda: Skip("_start_write"),
    ),
    *(
        Mutation(
            f"no-vma-start-write-in-{operation}",
            f"{operation} does not write-lock the VMAs that it changes",
            applies,
            breaks,
            rule=lambda: Skip("_start_write"),
            equivalent=equivalent,
            only=("write",) if operation == "stack-growth" else (operation,),
        )
        for operation, applies, breaks, equivalent in WITHOUT_START_WRITE
    ),
    Mutation(
        "no-walk-inside-vma",
        "KVM on s390 walks to a page-table entry without a look for its VMA",
        lambda d: d.munmap_downgrades and d.pgste_finds_vma and unmaps_as_linux(d),
        ("hole-walk",),
        changes=rules(pgste_finds_vma=False),
    ),
    Mutation(
        "collapse-locks-last",
        "a collapse looks at the page table for the last time, and then write-locks the VMA",
        lambda d: d.dontneed_lock == "vma" and d.reclaims_tables and d.collapse_locks_first,
        ("collapse-dontneed",),
        changes=rules(collapse_locks_first=False),
    ),
    Mutation(
        "unpinned-mm",
        "who has locked another process's VMA lets go of it without a hold of its mm",
        lambda d: d.vma_locks and d.vma_reuse == "pinned",
        ("vma-reuse",),
        changes=rules(vma_reuse="unpinned"),
    ),
    # The semaphore.
    *(
        Mutation(
            f"killed-waiter-{wrong}",
            f"a killed waiter that leaves the queue {summary}",
            everywhere,
            ("rwsem-leavers",),
            changes=leaves_wrong(wrong),
        )
        for wrong, summary in LEAVES_WRONG.items()
    ),
    Mutation(
        "no-end-of-vma-write-locks",
        "the downgrade and the unlock leave VMAs write-locked",
        has_vma_locks,
        rule=lambda: Skip("vma_end_write_all"),
        equivalent="a VMA that stays write-locked sends every fault the slow way, under the "
        "mmap_lock: speed, not safety",
    ),
)
