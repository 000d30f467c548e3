"""Page faults: find the VMA, grow a stack, make the page accessible.

To 6.3 the mmap_lock is held for read throughout (`page_fault_mmap_lock`). From 6.4 the VMA alone is
locked where that suffices (`page_fault_vma_lock`), and the mmap_lock is the way for the rest: no
VMA found or a writer has it, a stack that has to grow. A first fault that needs an anon_vma tries
to get the mmap_lock for read beside the VMA's.

Who has to wait for a file, for a page of it or for a hole that is punched, lets go of its lock and
takes the fault again under the mmap_lock; if it has to wait then once more, it does so in the hold.

Sources: arch/x86/mm/fault.c do_user_addr_fault, mm/memory.c handle_mm_fault; per-VMA locks
0bff0aaea03e (6.4); growth under write 8d7071af8907 (6.5, and 6.1.37 by backport).
"""

from __future__ import annotations

from errno import EFAULT, ENOMEM
from signal import SIGSEGV
from typing import TYPE_CHECKING, NamedTuple

from zaplock.model.anonymous_fault import huge_range
from zaplock.model.fault_results import ALONE, FILE_WAITS, MAJOR, PUNCHED, USERFAULT
from zaplock.model.file_changes import punch_is_over
from zaplock.model.file_fault import map_around, maps_around
from zaplock.model.flags import (
    PAGE_MASK,
    PAGE_SHIFT,
    PMD_SHIFT,
    PUD_SHIFT,
    VM_ACCESS_FLAGS,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_READ,
    VM_SHARED,
    VM_UFFD_MISSING,
    VM_WRITE,
)
from zaplock.model.frames import change_frames
from zaplock.model.huge_fault import own_huge_page
from zaplock.model.page_copy import PageCopy, begin_copy, finish_copy, large_to_copy
from zaplock.model.page_fault import fault_page
from zaplock.model.pagetable import alloc_tables, split_huge_zero
from zaplock.model.rwsem import (
    down_read,
    down_read_killable,
    down_read_trylock,
    down_write_killable,
    up_read,
)
from zaplock.model.step import Task, step
from zaplock.model.vma import (
    Vma,
    account,
    anon_vma_prepare,
    change,
    find_vma,
    fits_limits,
    forbid_torn_down,
    found_vma,
    lookup,
    previous,
    read_vma,
    vma_of,
    walked_vma,
    write_vma,
)
from zaplock.protocols.commit import beyond_memory
from zaplock.protocols.guards import guarded
from zaplock.protocols.locking import (
    lock_vma_under_rcu,
    mmap_read_unlock,
    mmap_write_downgrade,
    mmap_write_unlock,
    vma_end_read,
    vma_start_write,
)
from zaplock.protocols.major_fault import wait_for_page
from zaplock.protocols.shortage import no_memory
from zaplock.protocols.tombstones import gave_way
from zaplock.protocols.userfaultfd import handle_userfault

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.mm import Mm, Pte
    from zaplock.protocols.design import Cx

RETRY = 2
"""Result of a fault that has to be taken again from the access on."""


class EntrySeen(NamedTuple):
    """What a fault has seen of an entry without its lock (orig_pte and orig_pmd of vmf).

    huge: a huge page fits in its place. around: what is cached around it is to be mapped.
    """

    pte: Pte | None
    huge: bool
    around: bool

    def __str__(self) -> str:
        return self.pte.kind if self.pte else "huge" if self.huge else "nothing"


async def page_fault_mmap_lock(cx: Cx, address: int, write: bool, tried: bool = False) -> int:
    """Handle a fault under the mmap_lock; 0, -SIGSEGV, -SIGBUS or RETRY.

    tried: it has let go of the mmap_lock before, to wait for its file (FAULT_FLAG_TRIED).
    """
    waits = down_read_killable if cx.design.fault_killable else down_read
    if await waits(cx.mmap_lock):
        return -SIGSEGV  # killed: the signal that is pending counts, not this one
    handle = await find_vma(cx.mm, address)
    vma = await read_vma(handle) if handle else None
    if vma is not None and address < vma.start:
        if vma.flags & VM_GROWSDOWN and cx.design.stack_growth == "write":
            await mmap_read_unlock(cx)
            return await fault_growing_stack(cx, address, write, tried)
        if not vma.flags & VM_GROWSDOWN or await grow_stack(cx, handle, address):
            vma = None
    return await fault_in(cx, handle, vma, address, write, tried)


async def fault_in(
    cx: Cx, handle: int, vma: Vma | None, address: int, write: bool, tried: bool
) -> int:
    """Check the access and make the page accessible; ends the shared hold."""
    if vma is None or access_error(vma, write):
        await mmap_read_unlock(cx)
        return -SIGSEGV
    fault = fault_in_hold if tried else handle_mm_fault
    result = await fault(cx, handle, vma, address, write)
    await mmap_read_unlock(cx)
    if await answered(cx, vma, address, result) in FILE_WAITS:
        return await page_fault_mmap_lock(cx, address, write, True)
    return RETRY if result == USERFAULT else result


async def fault_in_hold(cx: Cx, handle: int, vma: Vma, address: int, write: bool) -> int:
    """Handle a fault that waits for its file in the hold that its caller has, if it has to.

    After a hole was punched it is over (VM_FAULT_NOPAGE), and the access comes again.
    """
    while (result := await handle_mm_fault(cx, handle, vma, address, write)) == MAJOR:
        await wait_for_page(vma, address)
    if result != PUNCHED:
        return result
    await punch_is_over(vma.file)
    return 0


async def answered(cx: Cx, vma: Vma, address: int, result: int) -> int:
    """Wait, under no lock, for a monitor or the file if a fault's result says so; return it."""
    if result == USERFAULT:
        await handle_userfault(cx, vma.uffd, address)
    elif result in FILE_WAITS:
        await wait_for_file(vma, address, result)
    return result


async def wait_for_file(vma: Vma, address: int, result: int) -> None:
    """Wait for what a fault's result says that it has to have: MAJOR or PUNCHED."""
    if result == PUNCHED:
        await punch_is_over(vma.file)
    else:
        await wait_for_page(vma, address)


async def fault_growing_stack(cx: Cx, address: int, write: bool, tried: bool = False) -> int:
    """Grow a stack under write, then go on under read (6.5 on: lock_mm_and_find_vma)."""
    if await down_write_killable(cx.mmap_lock):
        return -SIGSEGV
    handle = await find_vma(cx.mm, address)
    vma = await read_vma(handle) if handle else None
    if vma is None or (address < vma.start and not vma.flags & VM_GROWSDOWN):
        await mmap_write_unlock(cx)
        return -SIGSEGV
    if address < vma.start:
        waited = await gave_way(cx, address & PAGE_MASK, vma.start)
        if waited:
            return RETRY if waited > 0 else -SIGSEGV
        if cx.design.vma_locks and cx.design.growth_locks_vma:
            await vma_start_write(handle)
        if await grow_stack(cx, handle, address):
            await mmap_write_unlock(cx)
            return -SIGSEGV
    await mmap_write_downgrade(cx)
    return await fault_in(cx, handle, vma, address, write, tried)


async def page_fault_vma_lock(cx: Cx, address: int, write: bool) -> int:
    """Handle a fault under its VMA's lock alone, or else under the mmap_lock."""
    handle = await lock_vma_under_rcu(cx.mm, address)
    if not handle:
        return await page_fault_mmap_lock(cx, address, write)
    vma = await read_vma(handle)
    if not is_plain_anonymous(vma) and cx.design.vma_lock_faults == "anonymous":
        await vma_end_read(handle)
        return await page_fault_mmap_lock(cx, address, write)
    if access_error(vma, write):
        await vma_end_read(handle)
        return -SIGSEGV
    seen = None
    if await needs_anon_vma(cx, handle, vma, address, write):
        if cx.design.vma_lock_faults == "all" and not vma.flags & VM_HUGETLB:
            # the tables stay where the fault has to give way
            seen = await tables_for_fault(handle, address, write)
        if cx.design.vma_lock_faults != "all" or not await down_read_trylock(cx.mmap_lock):
            await vma_end_read(handle)
            return await page_fault_mmap_lock(cx, address, write)
        if await no_memory(cx):
            await mmap_read_unlock(cx)
            await vma_end_read(handle)
            return -ENOMEM
        await anon_vma_prepare(handle)
        await mmap_read_unlock(cx)
        vma = await read_vma(handle)
    result = await handle_mm_fault(cx, handle, vma, address, write, seen)
    while result == MAJOR and cx.design.major_fault == "hold":
        await wait_for_page(vma, address)
        result = await handle_mm_fault(cx, handle, vma, address, write)
    await vma_end_read(handle)
    await answered(cx, vma, address, result)
    if result == PUNCHED or (result == MAJOR and cx.design.major_fault != "vma"):
        return await page_fault_mmap_lock(cx, address, write, result == MAJOR)
    return RETRY if result in (USERFAULT, MAJOR) else result


def is_plain_anonymous(vma: Vma) -> bool:
    """Return whether 6.4's faults do with the VMA lock: private, unwatched, with an anon_vma."""
    return bool(vma.anon_vma and not vma.file and not vma.flags & VM_SHARED and not vma.uffd)


async def needs_anon_vma(cx: Cx, handle: int, vma: Vma, address: int, write: bool) -> bool:
    """Return whether a fault has to give its VMA an anon_vma first.

    That takes the mmap_lock for read, beside a VMA lock only if it is free (__vmf_anon_prepare).
    """
    if vma.flags & VM_SHARED or vma.anon_vma:
        return False
    if vma.flags & VM_HUGETLB:
        if cx.design.huge_fault_takes_page_first:
            return await makes_huge_page(handle, address, write, True)
        if not vma.file:
            return not vma.flags & VM_UFFD_MISSING
        return await makes_huge_page(handle, address, write)
    if not write and (vma.file or not await fits_huge_page(handle, address)):
        return False
    return not await guarded(cx, vma, address)


def access_error(vma: Vma, write: bool) -> bool:
    """Return whether a VMA forbids the access."""
    return not vma.flags & (VM_WRITE if write else VM_ACCESS_FLAGS)


async def handle_mm_fault(
    cx: Cx, handle: int, vma: Vma, address: int, write: bool, seen: EntrySeen | None = None
) -> int:
    """Allocate page tables, give the VMA an anon_vma if it needs one, set the entry.

    Returns 0, a signal or -ENOMEM, negative, or USERFAULT, MAJOR or PUNCHED. seen: what has been
    seen of the entry, if the tables are allocated already.
    """
    if await no_memory(cx):
        return -ENOMEM
    if seen is None and not vma.flags & VM_HUGETLB:
        seen = await tables_for_fault(handle, address, write)
    if await needs_anon_vma(cx, handle, vma, address, write):
        if await no_memory(cx):
            return -ENOMEM
        await anon_vma_prepare(handle)
    design = cx.design
    rules = (design.replaces_huge_zero, design.reuses_large, design.reclaims_tables)
    result = await fault_entry(handle, address, write, *rules, False, seen)
    if result == ALONE:
        result = await fault_entry(handle, address, write, *rules, True, seen)
    if isinstance(result, int):
        return result
    if await no_memory(cx):
        await let_go_of(result.frame)
        return -ENOMEM
    tag = await copy_user_page(result.frame)
    await install_copy(handle, address, result, tag)
    return 0


async def tables_for_fault(handle: int, address: int, write: bool) -> EntrySeen:
    """Let the page tables over a faulting address exist, and look at its entry."""
    while (seen := await alloc_fault_tables(handle, address, write)) is None:
        pass
    return seen


@step
def alloc_fault_tables(
    m: Machine, task: Task, handle: int, address: int, write: bool
) -> EntrySeen | None:
    """Let the page tables over a faulting address exist, and look at its entry.

    None: the upper ones are new, and whoever looks finds no lower one under them yet.
    For a file the last table comes only with a page to put into it (finish_fault), for what may
    become a huge page none at all. The entry is looked at without its lock (handle_pte_fault).
    """
    vma = walked_vma(m, task, handle, address)
    vpn = address >> PAGE_SHIFT
    space = m.mm(vma.mm)
    huge = fits_huge(m, vma, space, vpn)
    had_upper = space.tables[2].at(address >> PUD_SHIFT) is not None
    alloc_tables(m, task, space, vpn, vpn + 1, 2)
    if not (vma.file or huge):
        if not had_upper:
            return None
        alloc_tables(m, task, space, vpn, vpn + 1)
    pte = space.ptes.at(vpn)
    around = pte is None and bool(vma.file) and not write and maps_around(m, vma)
    return EntrySeen(pte, huge, around)


def fits_huge(m: Machine, vma: Vma, space: Mm, vpn: int) -> bool:
    """Return whether a huge page fits where an anonymous page faults, and no small one is."""
    return not vma.file and huge_range(m, vma, space, vpn) is not None


@step
def makes_huge_page(
    m: Machine, task: Task, handle: int, address: int, write: bool, page_first: bool = False
) -> bool:
    """Return whether a fault in a private mapping makes a huge page of its own."""
    return own_huge_page(m, found_vma(m, task, handle), address, write, page_first)


@step
def fits_huge_page(m: Machine, task: Task, handle: int, address: int) -> bool:
    """Return whether a fault may map a huge page, for which even a read needs an anon_vma."""
    vma = found_vma(m, task, handle)
    return huge_range(m, vma, m.mm(vma.mm), address >> PAGE_SHIFT) is not None


@step
def fault_entry(
    m: Machine,
    task: Task,
    handle: int,
    address: int,
    write: bool,
    replaces_huge_zero: bool,
    reuses_large: bool,
    tables_go: bool,
    alone: bool,
    seen: EntrySeen | None,
) -> int | PageCopy:
    """Set the entry of a faulting address under the page-table lock, or say what to copy first.

    alone: the pages around it were mapped under an earlier hold of that lock.
    Where the entry is another one than was seen (vmf_pte_changed, pmd_none), or where a page table
    may have gone since it was allocated (`tables_go`: MADV_DONTNEED frees it, and
    pte_offset_map_lock finds none), nothing is done, and the access will fault again. But what is
    around the page is mapped in any case.
    """
    vma = walked_vma(m, task, handle, address)
    vpn = address >> PAGE_SHIFT
    space = m.mm(vma.mm)
    if vma.flags & VM_HUGETLB:
        alloc_tables(m, task, space, vpn, vpn + 1, vma.huge_level)
    elif seen and (space.ptes.at(vpn), fits_huge(m, vma, space, vpn)) != (seen.pte, seen.huge):
        return map_around(m, task, vma, space, vpn) if seen.around and not alone else 0
    elif tables_go and not vma.file and lacks_table(m, vma, vpn):
        return 0
    if write and not replaces_huge_zero:
        split_huge_zero(m, task, space, vpn)
    if write and not reuses_large and (found := large_to_copy(m, vma, vpn, vpn + 1)):
        return begin_copy(m, task, *found[0])
    return fault_page(m, task, vma, address, write, alone)


def lacks_table(m: Machine, vma: Vma, vpn: int) -> bool:
    """Return whether a page needs a table of small pages, and there is none."""
    space = m.mm(vma.mm)
    gone = space.tables[1].at(vpn >> PMD_SHIFT - PAGE_SHIFT) is None
    return gone and space.ptes.at(vpn) is None and huge_range(m, vma, space, vpn) is None


@step
def copy_user_page(m: Machine, _task: Task, frame: int) -> int:
    """Read a page that is held, to copy it: under no lock, others may still write to it."""
    return m.content.at(frame) or 0


@step
def let_go_of(m: Machine, task: Task, frame: int) -> None:
    """Give the reference on a page back that is not copied after all."""
    change_frames(m, task, frame, frame + 1, refs=-1)


@step
def install_copy(
    m: Machine, task: Task, handle: int, address: int, copy: PageCopy, tag: int
) -> None:
    """Set the entry of a copied page under the page-table lock."""
    finish_copy(m, task, walked_vma(m, task, handle, address), address, copy, tag)


async def grow_stack(cx: Cx, handle: int, address: int) -> int:
    """Let a stack VMA start at `address`; 0, -ENOMEM or -EFAULT."""
    return -ENOMEM if await no_memory(cx) else await expand_stack(handle, address)


@step
def expand_stack(m: Machine, task: Task, handle: int, address: int) -> int:
    """Let a stack VMA start at `address`; 0, -ENOMEM or -EFAULT.

    One step, as the page_table_lock and the anon_vma's lock make it one (expand_downwards).
    """
    vma = vma_of(m, task, handle)
    space = m.mm(vma.mm)
    address &= PAGE_MASK
    if address >= vma.start:
        return 0
    if not vma.flags & VM_GROWSDOWN:
        return -EFAULT
    if address < space.limits.mmap_min_hint:
        return -ENOMEM
    below = previous(space, vma.start)
    if below and gap_too_small(vma_of(m, task, below), address, space.limits.stack_guard_gap):
        return -ENOMEM
    anon_vma_prepare.run(m, task, handle)
    vma = vma_of(m, task, handle)
    grow = vma.start - address >> PAGE_SHIFT
    if vma.pgoff < grow or not stack_fits(m, vma, address, grow):
        return -ENOMEM
    forbid_torn_down(m, task, vma.mm, address, vma.start)
    account(space, vma.flags, grow)
    if vma.flags & VM_LOCKED:
        space.add("locked_vm", grow)
    m.commit(grow)
    write_vma(m, handle, change(vma, start=address, pgoff=vma.pgoff - grow))
    return 0


def gap_too_small(below: Vma, address: int, guard_gap: int) -> bool:
    """Return whether a stack would come too close to the mapping below it."""
    if address < below.end:
        return True
    accessible = below.flags & VM_ACCESS_FLAGS
    return bool(accessible and not below.flags & VM_GROWSDOWN and address - below.end < guard_gap)


def stack_fits(m: Machine, vma: Vma, address: int, grow: int) -> bool:
    """Return whether the limits let a stack grow (acct_stack_growth)."""
    limits = m.mm(vma.mm).limits
    if vma.end - address > limits.rlimit_stack or not fits_limits(m.mm(vma.mm), vma.flags, grow):
        return False
    locked = m.mm(vma.mm).count("locked_vm") + grow if vma.flags & VM_LOCKED else 0
    if locked > limits.rlimit_memlock >> PAGE_SHIFT and not limits.can_ipc_lock:
        return False
    return not beyond_memory(m, grow)


async def fixup_user_fault(
    cx: Cx, mm: int, address: int, write: bool, lets_go: bool = False
) -> int:
    """Make a page accessible for the kernel, under a shared hold that the caller has.

    Returns 0, -EFAULT or -ENOMEM. Stacks grow here too, where that is allowed under read. Who has
    to wait for the file does so in the hold; with `lets_go` the first time without it, and what is
    mapped is looked for again.
    """
    while True:
        handle = await find_vma(mm, address)
        if not handle:
            return -EFAULT
        vma = await read_vma(handle)
        if address < vma.start:
            grows = vma.flags & VM_GROWSDOWN and cx.design.stack_growth == "read"
            if not grows or await grow_stack(cx, handle, address):
                return -EFAULT
        if not vma.flags & (VM_WRITE if write else VM_READ):
            return -EFAULT
        fault = handle_mm_fault if lets_go else fault_in_hold
        result = await fault(cx, handle, vma, address, write)
        if result not in FILE_WAITS:
            return result if result in (0, -ENOMEM) else -EFAULT
        lets_go = False
        await up_read(("mmap_lock", mm))
        await wait_for_file(vma, address, result)
        await down_read(("mmap_lock", mm))


@step
def is_mapped(m: Machine, task: Task, mm: int, address: int) -> bool:
    """Return whether a VMA covers an address."""
    handle = lookup(m, m.mm(mm), address)
    return bool(handle) and vma_of(m, task, handle).start <= address
