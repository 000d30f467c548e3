"""fork: copy an address space under its exclusive lock, sharing the pages for reading.

Source: kernel/fork.c dup_mmap, mm/memory.c copy_page_range.
"""

from __future__ import annotations

from errno import EINTR, ENOMEM
from typing import TYPE_CHECKING

from zaplock.model.dirty import unwritten
from zaplock.model.flags import (
    PAGE_SHIFT,
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_HUGETLB,
    VM_LOCKED_MASK,
    VM_MAYBE_GUARD,
    VM_MAYWRITE,
    VM_PFNMAP,
    VM_SHARED,
    VM_UFFD_FLAGS,
    VM_WIPEONFORK,
)
from zaplock.model.frames import change_frames, mark_forked
from zaplock.model.mm import Counter
from zaplock.model.pagetable import COUNTED, MARKERS, alloc_tables, install, lowest_above
from zaplock.model.references import aged, read_only
from zaplock.model.shared_huge import KIND as SHARED_HUGE
from zaplock.model.step import Task, step
from zaplock.model.tlb import flush_tlb_range
from zaplock.model.vma import Vma, account, change, find_vmas, insert, read_vma, vma_of
from zaplock.protocols.commit import commit
from zaplock.protocols.exit import mmput, user_of
from zaplock.protocols.locking import mmap_write_lock_killable, mmap_write_unlock, vma_start_write
from zaplock.protocols.shortage import no_memory
from zaplock.protocols.teardown import add_counter
from zaplock.protocols.vm_flags import MDWE_NO_INHERIT

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


async def fork(cx: Cx, child: int) -> int:
    """Copy the address space into the empty mm `child`: 0, -EINTR or -ENOMEM.

    A child that is not whole is taken down again, after the parent's lock is given back.
    """
    if await mmap_write_lock_killable(cx):
        return -EINTR
    result = 0
    await inherit_counters(cx.mm, child)
    for handle in await find_vmas(cx.mm, 0, 1 << 63):
        vma = await read_vma(handle)
        if cx.design.vma_locks and cx.design.fork_locks_vma and locks(cx, vma):
            await vma_start_write(handle)
        if vma.flags & VM_DONTCOPY:
            continue
        result = -ENOMEM if await no_memory(cx) else min(0, await copy_one(handle, child))
        copies = needs_copy(vma) and (vma.anon_vma or cx.design.fork_copies == "needed")
        if not result and copies:
            result = await copy_page_range(cx, vma, child)
        if result:
            break
    await flush_parent(cx.mm)
    await mmap_write_unlock(cx)
    await add_counter(child, "users", 1)
    if result:
        await mmput(user_of(cx, child))
    return result


INHERITED: tuple[Counter, ...] = ("thp_disable", "memory_merge")
"""Flags of an address space that a child has, too."""


@step
def inherit_counters(m: Machine, _task: Task, mm: int, child: int) -> None:
    """Give the child its parent's heap and flags."""
    for counter in ("brk", "start_brk", "data_length"):
        m.mm(child).counters.put(counter, m.mm(mm).count(counter))
    for flag in INHERITED:
        if m.mm(mm).count(flag):
            m.mm(child).counters.put(flag, m.mm(mm).count(flag))
    mdwe = m.mm(mm).count("mdwe")
    if mdwe and not mdwe & MDWE_NO_INHERIT:
        m.mm(child).counters.put("mdwe", mdwe)


def locks(cx: Cx, vma: Vma) -> bool:
    """Return whether fork keeps others out of a VMA, in every kernel out of all of them."""
    if cx.design.fork_locks == "cow":
        return vma.flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE
    return cx.design.fork_locks == "all" or bool(vma.anon_vma)


def needs_copy(vma: Vma) -> bool:
    """Return whether faults can't bring the child's entries back by themselves."""
    if vma.flags & VM_WIPEONFORK:
        return False
    return bool(vma.anon_vma or vma.flags & (VM_PFNMAP | VM_MAYBE_GUARD))


@step
def copy_one(m: Machine, task: Task, handle: int, child: int) -> int:
    """Copy a VMA: charged, unlocked, no longer watched; the handle or -ENOMEM.

    It gets an anon_vma of its own, so it merges with none that had the same before (anon_vma_fork).
    """
    vma = vma_of(m, task, handle)
    if vma.flags & VM_ACCOUNT and commit(m, vma.nr_pages):
        return -ENOMEM
    if vma.anon_vma:
        m.vmas.put(handle, change(vma, shared_anon_vma=vma.shared_anon_vma))
    wiped = bool(vma.flags & VM_WIPEONFORK)
    copy = change(
        vma,
        mm=child,
        flags=vma.flags & ~(VM_LOCKED_MASK | VM_UFFD_FLAGS),
        uffd=0,
        anon_vma=m.new_handle(task, "anon_vma") if vma.anon_vma and not wiped else 0,
        shared_anon_vma=bool(vma.anon_vma) and not wiped,
        reserves=False,
        lock_seq=-1,
    )
    account(m.mm(child), copy.flags, copy.nr_pages)
    return insert(m, task, copy)


async def copy_page_range(cx: Cx, vma: Vma, child: int) -> int:
    """Copy the entries of a VMA in steps of the grain, page tables without entries included.

    Returns 0 or -ENOMEM, for want of page tables.
    """
    if await no_memory(cx):
        return -ENOMEM
    await copy_tables(vma, child)
    grain = (cx.grain << PAGE_SHIFT) or vma.length
    for at in range(vma.start, vma.end, grain):
        await copy_ptes(vma, child, at, min(at + grain, vma.end))
    return 0


@step
def copy_tables(m: Machine, task: Task, vma: Vma, child: int) -> None:
    """Let the child have page tables over a VMA wherever the parent has some.

    For hugetlb only where the parent's reach down to the entries (copy_hugetlb_page_range).
    """
    parent, space = m.mm(vma.mm), m.mm(child)
    first, last = vma.start >> PAGE_SHIFT, vma.end - 1 >> PAGE_SHIFT
    for level, tables in parent.tables.items():
        shift = 9 * level
        if vma.flags & VM_HUGETLB and level != vma.huge_level:
            continue
        for low, high, _ in tables.overlapping(first >> shift, (last >> shift) + 1):
            begin = max(low << shift, first)
            alloc_tables(m, task, space, begin, min((high << shift) - 1, last) + 1, level)


@step
def copy_ptes(m: Machine, task: Task, vma: Vma, child: int, low: int, high: int) -> None:
    """Copy entries; private pages lose their write permission on both sides."""
    parent, space = m.mm(vma.mm), m.mm(child)
    private = not vma.flags & VM_SHARED
    for first, last, pte in parent.ptes.overlapping(low >> PAGE_SHIFT, high >> PAGE_SHIFT):
        m.spend("copy_pte", last - first)
        if pte.kind in ("uffd_wp", SHARED_HUGE):  # nobody watches the child, and faults can do it
            continue
        shared = change(pte, writable=pte.writable and not private)
        if pte.kind in COUNTED or pte.kind == "swap":
            change_frames(m, task, first + pte.delta, last + pte.delta, refs=1)
        if private and pte.kind in ("anon", "thp", "swap"):
            mark_forked(m, first + pte.delta, last + pte.delta, True)
        alloc_tables(m, task, space, first, last, lowest_above(pte))
        copied = change(shared, wp=False) if pte.wp else shared
        copied = read_only(m, copied) if pte.kind in MARKERS else copied  # made anew
        copied = copied if private else unwritten(m, copied)
        install(m, task, space, first, last, aged(m, copied))
        if shared != pte:
            parent.ptes.set(first, last, shared)


@step
def flush_parent(m: Machine, _task: Task, mm: int) -> None:
    """Let the parent's CPUs forget that they may write."""
    flush_tlb_range(m, mm, 0, 1 << 52, False)
