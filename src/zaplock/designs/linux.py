"""The shipped designs, in the order of their kernels. Each says only what it changes.

The two RFC designs stand on 4.18: what they don't touch is 4.18's, its bugs included.
"""

from __future__ import annotations

from dataclasses import replace

from zaplock.model.rwsem import RWSEM_4_9, RWSEM_5_3, RWSEM_5_11
from zaplock.protocols.design import Design
from zaplock.protocols.fault import page_fault_mmap_lock, page_fault_vma_lock
from zaplock.protocols.munmap import (
    do_mas_align_munmap,
    do_munmap,
    do_munmap_4_20,
    do_vmi_align_munmap,
    vm_munmap,
    vm_munmap_zap_rlock,
)
from zaplock.protocols.proc import proc_pid_cmdline, proc_pid_cmdline_read

LINUX_4_9 = Design(
    name="linux-4.9",
    kernel="4.9",
    summary="munmap holds the lock exclusively from beginning to end",
    rwsem=RWSEM_4_9,
    munmap=vm_munmap,
    do_munmap=do_munmap,
    page_fault=page_fault_mmap_lock,
    proc_cmdline=proc_pid_cmdline_read,
    uffd_unmap=False,
    nested_flush="ignore",
)

LINUX_4_18 = replace(
    LINUX_4_9,
    name="linux-4.18",
    kernel="4.18",
    summary="as 4.9; userfaultfd is told of unmaps, ps takes the lock once",
    proc_cmdline=proc_pid_cmdline,
    uffd_unmap=True,
    nested_flush="forget-tables",
)

RFC_V6_POSTED = replace(
    LINUX_4_18,
    name="rfc-v6-posted",
    kernel="4.18 + RFC v6",
    summary="the RFC as posted: zaps under read, its hugetlb test is inverted",
    munmap=vm_munmap_zap_rlock,
    skip_vm_flags="posted",
)

RFC_V6 = replace(
    RFC_V6_POSTED,
    name="rfc-v6",
    summary="the RFC as meant: detaches under write, zaps under read, munmap only",
    skip_vm_flags="yes",
)

LINUX_4_20 = replace(
    LINUX_4_18,
    name="linux-4.20",
    kernel="4.20",
    summary="what was merged: downgrades in munmap, brk and mremap shrink, no skip_vm_flags",
    do_munmap=do_munmap_4_20,
    brk_downgrades=True,
    mremap_downgrades=True,
    bounds_read="after",
    arch_unmap="detached",
    mremap_flush="inside",
)

LINUX_5_10 = replace(
    LINUX_4_20,
    name="linux-5.10",
    kernel="5.10",
    summary="does not downgrade beside a stack that may grow; the rwsem has a handoff",
    rwsem=RWSEM_5_3,
    downgrade_beside_growable=False,
    arch_unmap="first",
    cmdline_killable=True,
    nested_flush="full",
)

LINUX_6_1 = replace(
    LINUX_5_10,
    name="linux-6.1",
    kernel="6.1.37",
    summary="maple tree, no munlock pass; stacks grow under write (by backport)",
    rwsem=RWSEM_5_11,
    do_munmap=do_mas_align_munmap,
    stack_growth="write",
    fault_killable=True,
    exit_tables="write",
    clears_mayshare=False,
    flush_before_rmap=True,  # b67fbebd4cf9, "mmu_gather: Force tlb-flush VM_PFNMAP vmas"
)

LINUX_6_18 = replace(
    LINUX_6_1,
    name="linux-6.18",
    kernel="6.18",
    summary="per-VMA locks: faults and MADV_DONTNEED do without the mmap_lock",
    do_munmap=do_vmi_align_munmap,
    page_fault=page_fault_vma_lock,
    downgrade_beside_growable=True,
    bounds_read="before",
    vma_locks=True,
    dontneed_lock="vma",
    maps_lock="vma",
    flush_before_rmap=True,
    gathers_first=True,
    realigns_moves=True,
    moves_many=True,
    finds_zeros=True,
    forgets_charges=True,
    reclaims_tables=True,
    mseal=True,
)

SHIPPED: dict[str, Design] = {
    design.name: design
    for design in (
        LINUX_4_9,
        LINUX_4_18,
        RFC_V6_POSTED,
        RFC_V6,
        LINUX_4_20,
        LINUX_5_10,
        LINUX_6_1,
        LINUX_6_18,
    )
}
