"""Guards: markers in place of pages that nobody may touch (6.13 on; for files 6.15).

Source: mm/madvise.c madvise_guard_install, madvise_guard_remove.
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from zaplock.model.flags import (
    PAGE_SHIFT,
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
from zaplock.protocols.teardown import tlb_finish_mmu, unmap_page_range
from zaplock.protocols.zap_range import gather_zap

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


async def guard(cx: Cx, handle: int, vma: Vma, low: int, high: int, install: bool) -> int:
    """MADV_GUARD_INSTALL and _REMOVE (6.13 on; for files 6.15): pages that nobody may touch.

    What has pages is zapped first. A fault may put a page into the range between the zap and the
    guards. Linux zaps again then, as often as it takes; here the second time is one step with the
    guards, so that it ends, also where Linux never does: a zap of what a userfaultfd has
    write-protected in a file leaves markers.
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
    if await install_guards(cx.mm, low, high):
        return 0
    gather = await gather_zap(cx.mm, low, high)
    await unmap_page_range(cx, gather, low, high)
    await tlb_finish_mmu(cx, gather)
    if not await install_guards(cx.mm, low, high):
        gather = await gather_zap(cx.mm, low, high)
        await zap_and_guard(cx.mm, gather, low, high)
        await tlb_finish_mmu(cx, gather)
    return 0


@step
def mark_guarded(m: Machine, task: Task, handle: int) -> None:
    """Note that a VMA may have guards; set atomically, so a shared hold is enough."""
    vma = vma_of(m, task, handle)
    m.vmas.put(handle, change(vma, flags=vma.flags | VM_MAYBE_GUARD))


@step
def install_guards(m: Machine, task: Task, mm: int, low: int, high: int) -> bool:
    """Put a guard marker into every entry of a range; False, and nothing, where a page is there."""
    space, first, last = m.mm(mm), low >> PAGE_SHIFT, high >> PAGE_SHIFT
    if any(pte.kind != "guard" for _, _, pte in space.ptes.overlapping(first, last)):
        return False
    alloc_tables(m, task, space, first, last)
    install(m, task, space, first, last, read_only(m, Pte("guard", 0)))
    return True


@step
def zap_and_guard(m: Machine, task: Task, mm: int, gather: int, low: int, high: int) -> None:
    """Clear a range and put guards into it at once."""
    zap(m, task, m.mm(mm), gather, low >> PAGE_SHIFT, high >> PAGE_SHIFT)
    install_guards.run(m, task, mm, low, high)


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
