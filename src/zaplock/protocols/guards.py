"""Guards: markers in place of pages that nobody may touch (6.13 on; for files 6.15).

Source: mm/madvise.c madvise_guard_install, madvise_guard_remove.
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    PAGE_SHIFT,
    PMD_SIZE,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYBE_GUARD,
    VM_SHARED,
    VM_SPECIAL,
)
from zaplock.model.mm import Pte
from zaplock.model.pagetable import alloc_tables, install, zap
from zaplock.model.references import read_only
from zaplock.model.step import Task, step
from zaplock.model.vma import Vma, anon_vma_prepare, change, vma_of
from zaplock.protocols.rmap import MARKERS, watched_kinds
from zaplock.protocols.teardown import tlb_finish_mmu, unmap_page_range
from zaplock.protocols.zap_range import gather_zap

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


MAX_GUARD_RETRIES = 3
"""How often guards are tried under one hold (MAX_MADVISE_GUARD_RETRIES)."""

MOST_BEGINNINGS = 3
"""How often a call begins at most; in Linux there is no such limit."""

BEGINS_ANEW = 513
"""What a call returns, negative, that lets everything go and begins anew (ERESTARTNOINTR)."""


async def guard(
    cx: Cx, handle: int, vma: Vma, low: int, high: int, install: bool, is_last: bool
) -> int:
    """MADV_GUARD_INSTALL and _REMOVE (6.13 on; for files 6.15): pages that nobody may touch.

    Guards come up to the first page that is there. Then what has pages is zapped, and all is tried
    again, since a fault may put a page into the range meanwhile: three times, and then the whole
    call begins anew (-BEGINS_ANEW).

    In Linux it does so as often as it takes. So that it ends here, the last zap of a call that has
    begun MOST_BEGINNINGS times (`is_last`) is one step with the guards. So it ends, too, where
    Linux never does: a zap of what a userfaultfd has write-protected in a file leaves markers
    (docs/findings/guard-of-protected-pages.md).
    """
    if vma.flags & (VM_SPECIAL | VM_HUGETLB) or (install and vma.flags & VM_LOCKED):
        return -EINVAL
    if not install:
        await remove_guards(cx.mm, low, high)
        return 0
    is_anonymous = not vma.file and not vma.flags & VM_SHARED
    if is_anonymous or cx.design.guards_need_anon_vma:
        await anon_vma_prepare(handle)
    await mark_guarded(handle)
    spares = (*MARKERS, *watched_kinds(vma))
    for tries in range(1, MAX_GUARD_RETRIES + 1):
        if await install_guards(cx, low, high):
            return 0
        gather = await gather_zap(cx.mm, low, high)
        if is_last and tries == MAX_GUARD_RETRIES:
            await zap_and_guard(cx.mm, gather, low, high)
        else:
            await unmap_page_range(cx, gather, low, high, None, spares)
        await tlb_finish_mmu(cx, gather)
    return 0 if is_last else -BEGINS_ANEW


async def install_guards(cx: Cx, low: int, high: int) -> bool:
    """Put guard markers into a range up to the first page; False where there is one.

    One page table after the other, each under its lock (walk_pte_range).
    """
    at = low
    while at < high:
        until = min(high, at - at % PMD_SIZE + PMD_SIZE) if cx.grain else high
        if not await guard_entries(cx.mm, at, until):
            return False
        at = until
    return True


@step
def begins_anew(m: Machine, task: Task) -> bool:
    """Return whether a call that is to begin anew does so: not for a task that is killed."""
    return not m.has_fatal_signal(task.tid)


@step
def mark_guarded(m: Machine, task: Task, handle: int) -> None:
    """Note that a VMA may have guards; set atomically, so a shared hold is enough."""
    vma = vma_of(m, task, handle)
    m.vmas.put(handle, change(vma, flags=vma.flags | VM_MAYBE_GUARD))


@step
def guard_entries(m: Machine, task: Task, mm: int, low: int, high: int) -> bool:
    """Put guard markers into the empty entries of a range, up to a page; False where one is."""
    space, at, last = m.mm(mm), low >> PAGE_SHIFT, high >> PAGE_SHIFT
    for start, end, pte in [*space.ptes.overlapping(at, last), (last, last, None)]:
        if at < start:
            alloc_tables(m, task, space, at, start)
            install(m, task, space, at, start, read_only(m, Pte("guard", 0)))
        if pte is not None and pte.kind != "guard":
            return False
        at = end
    return True


@step
def zap_and_guard(m: Machine, task: Task, mm: int, gather: int, low: int, high: int) -> None:
    """Clear a range and put guards into it at once."""
    zap(m, task, m.mm(mm), gather, low >> PAGE_SHIFT, high >> PAGE_SHIFT)
    guard_entries.run(m, task, mm, low, high)


@step
def remove_guards(m: Machine, task: Task, mm: int, low: int, high: int) -> None:
    """Take the guard markers of a range away; pages stay."""
    ptes = m.mm(mm).ptes
    for first, last, pte in ptes.overlapping(low >> PAGE_SHIFT, high >> PAGE_SHIFT):
        if pte.kind == "guard":
            ptes.clear(first, last)


async def guarded(cx: Cx, vma: Vma, address: int) -> bool:
    """Return whether a guard is at an address of a VMA that may have some."""
    return bool(vma.flags & VM_MAYBE_GUARD) and await is_guarded(vma.mm, address)


@step
def is_guarded(m: Machine, _task: Task, mm: int, address: int) -> bool:
    """Return whether a guard is at an address: it ends a fault before an anon_vma is needed."""
    pte = m.mm(mm).ptes.at(address >> PAGE_SHIFT)
    return pte is not None and pte.kind == "guard"
