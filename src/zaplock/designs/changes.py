"""Linux as a dated list of changes: what each of them did to the rules of a design.

A row has the release that a change came with, its commit, the rules it set, and the stable releases
that took it as well. `linux.linux` folds the rows up to a release into a design. A rule is
documented where it changes; before its first row it is what `LINUX_4_9` or `Design` says.

Rows without rules are history that the model does not tell: they are shown, and change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zaplock.linux_version import LinuxVersion
from zaplock.model.rwsem import RWSEM_5_3, RWSEM_5_11
from zaplock.protocols.fault import page_fault_vma_lock
from zaplock.protocols.munmap import do_mas_align_munmap, do_munmap_4_20, do_vmi_align_munmap
from zaplock.protocols.proc import proc_pid_cmdline


@dataclass(frozen=True, slots=True)
class Change:
    """One change of Linux.

    since: the first release with it. commit: its id upstream, None where none could be confirmed.
    subject: the commit's own. rules: fields of `Design` with their new values. what: what that
    means for who holds the lock and who waits. backported: the first stable release of each series
    that took it. doubt: where sources disagree, or what could not be confirmed.
    """

    since: str
    commit: str | None
    subject: str
    what: str
    rules: Mapping[str, Any] = field(default_factory=dict)
    backported: tuple[str, ...] = ()
    doubt: str = ""

    def is_in(self, release: LinuxVersion) -> bool:
        """Return whether a release has this change."""
        return release.carries(self.since, self.backported)

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain values; rules by their names."""
        return {
            "since": self.since,
            "commit": self.commit,
            "subject": self.subject,
            "what": self.what,
            "rules": {rule: show(value) for rule, value in self.rules.items()},
            "backported": list(self.backported),
            "doubt": self.doubt or None,
        }


def show(value: object) -> str:
    """Name the value of a rule: a protocol by its function, a policy by its kernels."""
    if isinstance(value, Mapping):
        return ", ".join(f"{part} {show(one)}" for part, one in value.items())
    named = getattr(value, "__name__", None) or getattr(value, "name", None)
    return str(named or value)


CHANGES: tuple[Change, ...] = (
    Change(
        "4.11", "897ab3e0c49e", "userfaultfd: non-cooperative: add event for memory unmaps",
        "userfaultfd monitors are told of an unmap, after the unlock",
        {"uffd_unmap": True},
    ),
    Change(
        "4.13", "99baac21e458", "mm: fix MADV_[FREE|DONTNEED] TLB flush miss problem",
        "a finishing mmu_gather looks whether another is under way on the mm, and then flushes its "
        "whole range; that flush forgets that page tables were freed",
        {"nested_flush": "forget-tables"},
    ),
    Change(
        "4.18", "88aa7cc688d4",
        "mm: introduce arg_lock to protect arg_start|end and env_start|end in mm_struct",
        "a reader of /proc/PID/cmdline no longer takes the mmap_lock for the bounds",
        {"proc_cmdline": proc_pid_cmdline},
    ),
    Change(
        "4.19", "eb66ae030829", "mremap: properly flush TLB before releasing the page",
        'mremap flushes the TLB "inside" the page-table lock, no longer "outside": when another '
        "task finds the page by its rmap, nobody can reach it by the old address any more",
        {"mremap_flush": "inside"}, backported=("4.9.135", "4.14.78", "4.18.16"),
    ),
    Change(
        "4.20", "dd2283f2605e", "mm: mmap: zap pages with read mmap_sem in munmap",
        "munmap downgrades to a shared hold once the VMAs are detached. floor and ceiling of the "
        'page-table freeing are read "after" the downgrade, and the architecture\'s hook is called '
        'when the VMAs are "detached", before it',
        {
            "do_munmap": do_munmap_4_20, "munmap_downgrades": True,
            "bounds_read": "after", "arch_unmap": "detached",
        },
    ),
    Change(
        "4.20", "9bc8039e715d", "mm: brk: downgrade mmap_sem to read when shrinking",
        "a shrinking brk downgrades too",
        {"brk_downgrades": True},
    ),
    Change(
        "4.20", "85a06835f6f1", "mm: mremap: downgrade mmap_sem to read when shrinking",
        "a shrinking mremap downgrades too",
        {"mremap_downgrades": True},
    ),
    Change(
        "5.2", "7a30df49f63a", "mm: mmu_gather: remove __tlb_reset_range() for force flush",
        "a finish beside another gather flushes everything, freed page tables included",
        {"nested_flush": "full"},
    ),
    Change(
        "5.2", "5a28fc94c914", "x86/mpx, mm/core: Fix recursive munmap() corruption",
        'the architecture\'s hook is called "first" of all, before any VMA was looked up',
        {"arch_unmap": "first"}, backported=("5.0.19", "5.1.5"),
    ),
    Change(
        "5.2", "a9e9bcb45b15", "locking/rwsem: Prevent decrement of reader count before increment",
        "the waker counts the readers that it lets in before any of them can run and leave",
        {"rwsem": {"counts_first": True}},
        backported=("4.9.178", "4.14.121", "5.0.18", "5.1.4"),
    ),
    Change(
        "5.3", "1e426fe28261",
        "mm: use down_read_killable for locking mmap_sem in access_remote_vm",
        "a fatal signal ends the wait of a reader of /proc/PID/cmdline, so it no longer counts as "
        "a hung task",
        {"cmdline_killable": True}, backported=("4.19.63", "5.2.5"),
    ),
    Change(
        "5.3", "4f23dbc1e657", "locking/rwsem: Implement lock handoff to prevent lock starvation",
        "the semaphore is written anew, by this commit and its neighbours (00f3c5a3df2c, "
        "d3681e269fff): a waiter that has waited 4 ms gets the lock handed over; when a reader is "
        "first, up to 256 readers from anywhere in the queue are woken with it; readers may spin "
        "on a lock that a writer owns and enter past the queue",
        {"rwsem": RWSEM_5_3},
    ),
    Change(
        "5.8", "246c320a8cfe",
        "mm/mmap.c: close race between munmap() and expand_upwards()/downwards()",
        "munmap, brk and mremap keep the exclusive hold beside a stack that might grow into the "
        "range under read",
        {"downgrade_beside_growable": False}, backported=("5.4.54", "5.7.11"),
    ),
    Change(
        "5.11", "617f3ef95177", "locking/rwsem: Remove reader optimistic spinning",
        "readers no longer spin; one that arrives may enter past a queue unless the lock is held "
        "by other readers",
        {"rwsem": RWSEM_5_11},
    ),
    Change(
        "5.19", "b67fbebd4cf9", "mmu_gather: Force tlb-flush VM_PFNMAP vmas",
        "mappings of device memory are flushed before they leave the rmap: who revokes the memory "
        "would no longer find them",
        {"flush_before_rmap": True},
    ),
    Change(
        "6.0", "bf3980c85212", "mm: drop oom code from exit_mmap",
        'exit zaps under read and takes the lock for "write" to free the page tables',
        {"exit_tables": "write"},
    ),
    Change(
        "6.1", "11f9a21ab655", "mm: start tracking VMAs with maple tree",
        "VMAs are kept in a maple tree, whose nodes are replaced and not changed in place; munmap "
        "moves the VMAs to a side tree, and clearing the range is the point of no return",
        {"tree": "maple", "do_munmap": do_mas_align_munmap},
    ),
    Change(
        "6.4", "0bff0aaea03e", "x86/mm: try VMA lock-based page fault handling first",
        "a fault finds its VMA under RCU and locks only that; who changes a VMA write-locks it, "
        "and the downgrade ends these locks, so a fault looks whether its VMA is detached",
        {
            "vma_locks": True, "page_fault": page_fault_vma_lock,
            "do_munmap": do_vmi_align_munmap,
        },
    ),
    Change(
        "6.5", "8d7071af8907", "mm: always expand the stack with the mmap write lock held",
        'a stack grows under "write", no longer under "read" (CVE-2023-3269)',
        {"stack_growth": "write"}, backported=("6.1.37", "6.3.11", "6.4.1"),
    ),
    Change(
        "6.5", "eda0047296a1", "mm: make the page fault mmap locking killable",
        "a fatal signal ends the wait of a page fault for the mmap_lock",
        {"fault_killable": True}, backported=("6.1.37", "6.3.11", "6.4.1"),
    ),
    Change(
        "6.5", "408579cd627a", "mm: Update do_vmi_align_munmap() return semantics",
        "nobody grows under read any more, so munmap downgrades beside a stack, too",
        {"downgrade_beside_growable": True},
    ),
    Change(
        "6.10", "8be7258aad44", "mseal: add mseal syscall",
        "sealed mappings can't be unmapped, moved, protected or discarded",
        {"mseal": True},
    ),
    Change(
        "6.12", "f8d112a4e657", "mm/mmap: avoid zeroing vma tree in mmap_region()",
        "mmap over old mappings gathers (and splits) them before it asks the limits; floor and "
        'ceiling of the page-table freeing are taken under write, "before" the downgrade',
        {"gathers_first": True, "bounds_read": "before"},
    ),
    Change(
        "6.12", "b1f202060afe",
        "mm: remap unused subpages to shared zeropage when splitting isolated thp",
        "splitting a huge page gives back those of its pages that hold zeros",
        {"finds_zeros": True},
    ),
    Change(
        "6.14", "6375e95f381e", "mm: pgtable: reclaim empty PTE page in madvise (MADV_DONTNEED)",
        "MADV_DONTNEED frees the page tables that it has emptied",
        {"reclaims_tables": True},
    ),
    Change(
        "6.17", "a6fde7add78d", "mm: use per_vma lock for MADV_DONTNEED",
        'MADV_DONTNEED and MADV_FREE of one VMA hold that "vma" alone, no longer the mmap_lock',
        {"dontneed_lock": "vma"},
    ),
    Change(
        "6.17", "5631da56c9a8", "fs/proc/task_mmu: read proc/pid/maps under per-vma lock",
        'a reader of /proc/PID/maps locks one "vma" after the other, no longer the mmap_lock',
        {"maps_lock": "vma"},
    ),
    Change(
        "6.17", "d23cb648e365", "mm/mremap: permit mremap() move of multiple VMAs",
        "one mremap may move a range of several VMAs",
        {"moves_many": True},
    ),
    Change(
        "6.18", None, "(found by comparing the model with a running 6.18)",
        "by mistake Committed_AS keeps what a moving mremap has cut off, and what was charged for "
        "a mapping that its file system then refuses",
        {"forgets_charges": True},
        doubt="seen on a running 6.18; which change brought it is not known",
    ),
)  # fmt: skip
"""In the order of the releases; a row's rules override those of the rows before it."""
