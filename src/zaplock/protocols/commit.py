"""What a mapping is charged for: RLIMIT_AS, RLIMIT_DATA and Committed_AS.

Source: mm/vma.c may_expand_vm, mm/util.c __vm_enough_memory.
"""

from __future__ import annotations

from errno import (
    ENOMEM,
)
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    PAGE_SHIFT,
    VM_ACCOUNT,
    VM_HUGETLB,
    VM_NORESERVE,
    VM_SHARED,
    VM_WRITE,
)
from zaplock.model.step import Task, step
from zaplock.model.vma import (
    fits_limits,
    overlapping,
    vma_of,
)

if TYPE_CHECKING:
    from zaplock.model.machine import Machine


@step
def may_expand_vm(m: Machine, task: Task, mm: int, start: int, end: int, vm_flags: int) -> int:
    """Return 0, or -ENOMEM where RLIMIT_AS or RLIMIT_DATA would be passed."""
    space = m.mm(mm)
    replaced = 0
    for handle in overlapping(m, space, start, end):
        vma = vma_of(m, task, handle)
        replaced += min(end, vma.end) - max(start, vma.start)
    return 0 if fits_limits(space, vm_flags, end - start - replaced >> PAGE_SHIFT) else -ENOMEM


@step
def may_commit(m: Machine, task: Task, mm: int, start: int, end: int, vm_flags: int) -> int:
    """Return 0, or -ENOMEM where so much memory could never be had, old mappings taken off."""
    if vm_flags & (VM_NORESERVE | VM_HUGETLB | VM_SHARED) or not vm_flags & VM_WRITE:
        return 0
    pages = end - start >> PAGE_SHIFT
    for handle in overlapping(m, m.mm(mm), start, end):
        vma = vma_of(m, task, handle)
        if vma.flags & VM_ACCOUNT:
            pages -= min(end, vma.end) - max(start, vma.start) >> PAGE_SHIFT
    return -ENOMEM if beyond_memory(m, pages) else 0


def beyond_memory(m: Machine, pages: int) -> bool:
    """Return whether heuristic overcommit refuses a promise of so many pages at once."""
    return m.globals.get("overcommit", 0) == 0 and pages > m.limits.overcommit_pages


@step
def uncharge(m: Machine, _task: Task, charged: int, length: int) -> None:
    """Take back a charge after an error."""
    if charged:
        m.commit(-(length >> PAGE_SHIFT))


@step
def charge_commit(
    m: Machine, task: Task, mm: int, vm_flags: int, length: int, file: int, asked: bool = False
) -> int:
    """Charge Committed_AS for private writable memory: VM_ACCOUNT, 0, or -ENOMEM.

    `asked`: whether so much can be had was asked before, with what it replaces taken off.
    """
    if vm_flags & (VM_NORESERVE | VM_HUGETLB):
        return 0
    shared_anonymous = vm_flags & VM_SHARED and not file
    if vm_flags & (VM_SHARED | VM_WRITE) != VM_WRITE and not shared_anonymous:
        return 0
    if asked and not shared_anonymous:
        m.commit(length >> PAGE_SHIFT)
        return VM_ACCOUNT
    error = commit(m, length >> PAGE_SHIFT)
    return error or (0 if shared_anonymous else VM_ACCOUNT)


def commit(m: Machine, pages: int) -> int:
    """Promise memory: 0, or -ENOMEM beyond what can ever be had (heuristic overcommit)."""
    if beyond_memory(m, pages):
        return -ENOMEM
    m.commit(pages)
    return 0
