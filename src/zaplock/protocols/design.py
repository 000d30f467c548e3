"""What a design decides: the record that every protocol is run with.

A design is data. It names the protocol for each operation that differs between kernels and the
rules that protocols ask for; `zaplock.designs` has the shipped ones, a user's own is made the same
way: `replace(LINUX_6_18, name="mine", munmap=my_munmap)`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

from zaplock.model.mm import ResourceLimits
from zaplock.model.rwsem import Lock, RwsemPolicy
from zaplock.model.step import Task
from zaplock.model.tlb import NestedFlush

Protocol = Coroutine[Any, Any, int]
UnmapEvents = list[tuple[int, int, int]]
"""Unmap events that userfaultfd monitors are to be told of: (context, start, end)."""


LIMITS = ResourceLimits()


@dataclass(frozen=True, slots=True)
class Cx:
    """In which world a protocol runs: whose thread, under which design, at which grain.

    `limits` are the address space's (fixed, so no step is needed to read them).
    `grain` is how many pages one zap step clears: 0 for as many as there are in the VMA (timed and
    sequential), 1 to let others run between any two pages (checked).
    """

    design: Design
    task: Task
    grain: int = 0
    limits: ResourceLimits = LIMITS

    @property
    def mm(self) -> int:
        return self.task.mm

    @property
    def mmap_lock(self) -> Lock:
        return ("mmap_lock", self.task.mm)


@dataclass(frozen=True)
class Design:
    """One kernel's, or one proposal's, way with an address space and its lock.

    Protocols: `munmap(cx, start, length)`, the system call; `do_munmap(cx, start, length, uf,
    downgrade)`, for those who hold the lock for write (mmap over old mappings, brk, mremap): adds
    userfaultfd events to deliver to the list `uf` and returns 1 if it downgraded, 0 if not, or an
    error; `page_fault(cx, address, write)`; `proc_cmdline(cx, mm)`.

    Rules, each with what it decides:

    brk_downgrades, mremap_downgrades: do a shrinking brk and mremap?
    downgrade_beside_growable: ... also next to a stack that may grow (False: 5.8 to 6.4)?
    bounds_read: are floor and ceiling taken "before" or "after" the downgrade?
    arch_unmap: "first", "detached" (after the detach, under write) or "last" (after the zap).
    skip_vm_flags: the RFC's parameter: "no" (not there), "posted" (hugetlb test inverted), "yes".
    clears_mayshare: does the final unmap of a hugetlb VMA clear VM_MAYSHARE (to 6.0)?
    uffd_unmap: are userfaultfd monitors told of an unmap (4.11 on)?
    vma_locks: do faults find their VMA by RCU and lock only that (6.4 on)?
    stack_growth: needs the mmap_lock for "read" (to 6.4) or for "write" (6.5 on).
    dontneed_lock: MADV_DONTNEED of one VMA holds "mmap" (read) or that "vma" (6.17 on).
    maps_lock: /proc/PID/maps holds "mmap" (read) or per-VMA locks ("vma", 6.17 on).
    cmdline_killable: may a fatal signal end the wait of a reader of /proc/PID/cmdline?
    fault_killable: ... of a page fault?  mmap_killable: ... of mmap, brk, mremap, mprotect?
    nested_flush: what a finishing mmu_gather does when another is under way.
    flush_before_rmap: are PFN mappings flushed before they leave the rmap (6.18)?
    mremap_flush: is the TLB flushed "inside" (4.19 on) or "outside" the page-table lock?
    exit_tables: exit frees page tables under "write", or (to 5.19) with "none" of the locks.
    gathers_first: does mmap gather (and split) the old mappings before it asks the limits (6.12)?
    realigns_moves: may a moving mremap take a page table along that it covers only from the first
        mapping in it on (6.7)?
    moves_many: may one mremap move a range of several VMAs (6.17)?
    finds_zeros: does splitting a huge page give back the pages that hold zeros (6.12)?
    forgets_charges: does Committed_AS keep what a moving mremap has cut off, and what was charged
        for a mapping that its file system then refuses (6.18, by mistake)?
    reclaims_tables: does MADV_DONTNEED free page tables that it has emptied (6.14)?
    mseal: are sealed mappings refused (6.10 on)?
    """

    name: str
    kernel: str
    summary: str
    rwsem: RwsemPolicy
    munmap: Callable[[Cx, int, int], Protocol]
    do_munmap: Callable[[Cx, int, int, UnmapEvents, bool], Protocol]
    page_fault: Callable[[Cx, int, bool], Protocol]
    proc_cmdline: Callable[[Cx, int], Protocol]
    brk_downgrades: bool = False
    mremap_downgrades: bool = False
    downgrade_beside_growable: bool = True
    bounds_read: Literal["before", "after"] = "before"
    arch_unmap: Literal["first", "detached", "last"] = "last"
    skip_vm_flags: Literal["no", "posted", "yes"] = "no"
    clears_mayshare: bool = True
    uffd_unmap: bool = True
    vma_locks: bool = False
    stack_growth: Literal["read", "write"] = "read"
    dontneed_lock: Literal["mmap", "vma"] = "mmap"
    maps_lock: Literal["mmap", "vma"] = "mmap"
    cmdline_killable: bool = False
    fault_killable: bool = False
    mmap_killable: bool = True
    nested_flush: NestedFlush = "forget-tables"
    flush_before_rmap: bool = False
    mremap_flush: Literal["inside", "outside"] = "outside"
    exit_tables: Literal["write", "none"] = "none"
    gathers_first: bool = False
    realigns_moves: bool = False
    moves_many: bool = False
    finds_zeros: bool = False
    forgets_charges: bool = False
    reclaims_tables: bool = False
    mseal: bool = False
