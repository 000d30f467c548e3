"""Fault in a range ahead of its use, under the mmap_lock for read.

MAP_POPULATE, MAP_LOCKED and mlock do it over a whole range in one shared hold, which is why a
writer waits so long beside them; MADV_POPULATE_* reports what went wrong.

Source: mm/gup.c __mm_populate, populate_vma_page_range, faultin_page_range.
"""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENOMEM
from signal import SIGBUS, SIGSEGV
from typing import TYPE_CHECKING, Any, NamedTuple

from zaplock.model.anonymous_fault import meets_huge_pages
from zaplock.model.dirty import follows_dirty
from zaplock.model.fault_results import ALONE, PUNCHED
from zaplock.model.file_changes import punch_is_over
from zaplock.model.flags import (
    EHWPOISON,
    PAGE_SHIFT,
    PAGES_PER_PMD,
    VM_ACCESS_FLAGS,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKONFAULT,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_UFFD_MISSING,
    VM_WRITE,
)
from zaplock.model.huge_fault import reaches_own_page
from zaplock.model.page_copy import begin_copy, finish_copy, large_to_copy
from zaplock.model.page_fault import fault_page, populate_range
from zaplock.model.pagetable import ABSENT, alloc_tables, split_huge_zero
from zaplock.model.pinned_pages import NOT_PINNED, Pinning, unshare_pages, write_pinned_pages
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.step import Task, step
from zaplock.model.touched import (
    is_dirty,
    makes_dirty,
    mark_dirty,
    mark_touched,
    soil_huge_entry,
    soil_touched,
)
from zaplock.model.vma import Vma, anon_vma_prepare, find_vma, found_vma, read_vma
from zaplock.protocols.guards import guarded
from zaplock.protocols.shortage import no_memory

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


async def mm_populate(cx: Cx, start: int, end: int, strict: bool = False) -> int:
    """Fault in [start, end) where something is mapped.

    An error ends a VMA's part, with `strict` (mlock) the whole walk, and is then returned.
    """
    if start >= end:
        return 0
    await down_read(cx.mmap_lock)
    result = 0
    at = start
    while at < end:
        handle = await find_vma(cx.mm, at)
        vma = await read_vma(handle) if handle else None
        if vma is None or vma.start >= end:
            break
        low, high = max(at, vma.start), min(end, vma.end)
        if not vma.flags & (VM_IO | VM_PFNMAP | VM_LOCKONFAULT):
            result, came_to = await populate_vma_page_range(cx, handle, vma, low, high)
            if result == PUNCHED:
                await let_go_for_once(cx, vma.file)
                result, at = 0, came_to
                continue
            if result and strict:
                break
        at = high
    await up_read(cx.mmap_lock)
    return result if strict else 0


async def populate_vma_page_range(
    cx: Cx, handle: int, vma: Vma, low: int, high: int
) -> tuple[int, int]:
    """Fault in a part of a VMA, for writing where that is private and writable.

    Any access that a VMA allows will do (FOLL_FORCE): one that only writes is read here. Returns
    what `populate_pages` does.
    """
    write = vma.flags & (VM_WRITE | VM_SHARED) == VM_WRITE
    if vma.flags & VM_LOCKONFAULT:
        return 0, high
    if not vma.flags & VM_ACCESS_FLAGS:
        return -EFAULT, low
    error, came_to = await populate_pages(cx, handle, vma, low, high, write)
    return -EFAULT if error == -EHWPOISON else error, came_to


_ERRNO = {-SIGBUS: -EFAULT, -SIGSEGV: -EFAULT, -EHWPOISON: -EHWPOISON, PUNCHED: PUNCHED}
"""What populating calls say of a fault's outcome; of others -ENOMEM."""


def asks_pages(vma: Vma) -> bool:
    """Return whether it hangs on its pages what a fault in a mapping of huge pages makes."""
    return bool(vma.flags & VM_HUGETLB and (vma.file or vma.flags & VM_UFFD_MISSING))


async def populate_pages(
    cx: Cx,
    handle: int,
    vma: Vma,
    low: int,
    high: int,
    write: bool,
    pinned_from: int = NOT_PINNED,
    looks_again: bool = True,
) -> tuple[int, int]:
    """Fault in [low, high) of a VMA in steps of the grain; `pinned_from`: see `fault_range`.

    looks_again: the caller does not look itself for what has gone meanwhile.

    Returns 0, -EFAULT, -EHWPOISON, -ENOMEM or PUNCHED, and how far it came: to `high`, or to a page
    that a write has made dirty, after which the mmap_lock is to be let go, since
    balance_dirty_pages may take long (`dirty_fault_lets_go`). So it is after PUNCHED.
    """
    if vma.ops == "secret":
        return -EFAULT, low
    late: tuple[bool, ...] = ()
    if vma.flags & VM_HUGETLB and cx.design.huge_fault_takes_page_first:
        late = (True,)
    looks_first = asks_pages(vma) or (vma.flags & VM_HUGETLB and late)  # and then in fault_range
    needs = write and not vma.flags & VM_SHARED and not vma.anon_vma and not looks_first
    if needs and not await guarded(cx, vma, low):
        await anon_vma_prepare(handle)
    grain = (cx.grain << PAGE_SHIFT) or high - low
    stops = write and cx.design.dirty_fault_lets_go
    splits = write and not cx.design.replaces_huge_zero
    copies = write and not cx.design.reuses_large
    pins = pinned_from != NOT_PINNED
    more = (bool(late), pinned_from, cx.design.reuses_large) if pins else late
    part = Part(handle, vma, write, looks_again, (splits, copies, stops), more)
    for at in range(low, high, grain):
        until = min(at + grain, high)
        error, came_to = await fault_part(cx, part, at, until)
        if error:
            return _ERRNO.get(error, -ENOMEM), came_to
        if came_to < until:
            return 0, came_to
    return 0, high


class Part(NamedTuple):
    """What a populating call asks of a VMA's pages: see `fault_range`."""

    handle: int
    vma: Vma
    write: bool
    looks_again: bool
    rules: tuple[bool, bool, bool]
    more: tuple[Any, ...]


async def fault_part(cx: Cx, part: Part, low: int, high: int) -> tuple[int, int]:
    """Fault [low, high) in, and what has gone by the time it is looked for once more.

    After each fault its page is looked for again, as long as it goes; what is there at first is not
    faulted in, and is looked for once (__get_user_pages, retry). Returns what `fault_range` does,
    but for the last.
    """
    while low < high:
        if await no_memory(cx):
            return -ENOMEM, low
        # Page by page others may come between what is mapped around a page and the page itself.
        around = cx.grain == 1 and not part.write and bool(part.vma.file)
        alone = around and await fault_around(part.handle, low)
        error, came_to, was_there = await fault_range(
            part.handle, low, high, part.write, *part.rules, alone, *part.more
        )
        if error or came_to < high or was_there or not part.looks_again:
            return error, came_to
        low = await first_gone(part.handle, low, high, part.write)
    return 0, high


@step
def first_gone(m: Machine, task: Task, handle: int, low: int, high: int, write: bool) -> int:
    """Return the first address in [low, high) whose page has gone, `high` if none has."""
    vma = found_vma(m, task, handle)
    return _reaches(m, vma, low >> PAGE_SHIFT, high >> PAGE_SHIFT, write) << PAGE_SHIFT


def _reaches(m: Machine, vma: Vma, first: int, last: int, write: bool) -> int:
    """Return how far from `first` on all pages are there, for a write such as can be written to.

    Huge pages of hugetlbfs are not looked for.
    """
    if vma.flags & VM_HUGETLB:
        return last
    at = first
    for start, end, pte in m.mm(vma.mm).ptes.overlapping(first, last):
        if start > at or pte.kind in ABSENT or (write and not pte.writable):
            break
        at = end
    return min(at, last)


async def let_go_for_once(cx: Cx, punched: int = 0) -> None:
    """Give the shared hold up and take it again, when the file `punched` has its hole if not 0."""
    await up_read(cx.mmap_lock)
    if punched:
        await punch_is_over(punched)
    await down_read(cx.mmap_lock)


@step
def fault_around(m: Machine, task: Task, handle: int, address: int) -> bool:
    """Begin a read fault of a file; return whether it goes on with its page alone."""
    vma, vpn = found_vma(m, task, handle), address >> PAGE_SHIFT
    space = m.mm(vma.mm)
    if vma.flags & VM_HUGETLB or space.ptes.at(vpn) is not None:
        return False
    alloc_tables(m, task, space, vpn, vpn + 1, 2)
    return fault_page(m, task, vma, address, False) == ALONE


@step
def fault_range(
    m: Machine,
    task: Task,
    handle: int,
    low: int,
    high: int,
    write: bool,
    splits_zero: bool,
    copies: bool,
    stops: bool,
    alone: bool,
    page_first: bool = False,
    pinned_from: int = NOT_PINNED,
    keeps_large: bool = True,
) -> tuple[int, int, bool]:
    """Fault in every page of [low, high).

    Returns 0, PUNCHED, or the first fault's signal, negative; and how far it came: with `stops` to
    the first page of a shared file that it made dirty, to one that is being punched out, else to
    `high`; and whether all was there before.
    `splits_zero`: the huge zero page is mapped by small entries first. `copies`: see
    `large_to_copy`. `alone`: the one page, around which all is mapped. `page_first`: of huge pages,
    see `own_huge_page`. `pinned_from`: the address from which on the call pins pages, or
    NOT_PINNED; then `keeps_large`: see `Pinning`.
    """
    vma = found_vma(m, task, handle)
    first, last = low >> PAGE_SHIFT, high >> PAGE_SHIFT
    was_there = _reaches(m, vma, first, last, write) == last
    for vpn in (*range(first, last, PAGES_PER_PMD), last - 1) if splits_zero else ():
        split_huge_zero(m, task, m.mm(vma.mm), vpn)
    for vpn, pte in large_to_copy(m, vma, first, last) if copies else ():
        copy = begin_copy(m, task, vpn, pte)
        finish_copy(m, task, vma, vpn << PAGE_SHIFT, copy, m.content.at(copy.frame) or 0)
    if stops and vma.flags & VM_SHARED and not vma.flags & VM_HUGETLB:
        for vpn in range(first, last):
            tells, knows = makes_dirty(m, vma, vpn), is_dirty(m, vma, vpn)
            error = populate_range(m, task, vma, vpn, vpn + 1, True)
            if not (error or knows or soil_huge_entry(m, m.mm(vma.mm), vpn)):
                mark_dirty(m, vma, vpn)
            if error or tells:
                # Who tells looks once more, and touches it then.
                return error, vpn << PAGE_SHIFT, False
            mark_touched(m, m.mm(vma.mm), vpn, vpn + 1, write, False)
        return 0, high, was_there
    private = not vma.flags & VM_SHARED and not vma.anon_vma
    if asks_pages(vma) or (vma.flags & VM_HUGETLB and page_first):
        needs = private and reaches_own_page(m, vma, low, high, write, page_first)
    else:
        needs = private and not vma.file and not write
    if needs and (vma.flags & VM_HUGETLB or meets_huge_pages(m, vma, first, last)):
        anon_vma_prepare.run(m, task, handle)
    touches = write and (m.globals.get("lazyfree", 0) or follows_dirty(m))
    before = m.mm(vma.mm).ptes.overlapping(first, last) if touches else []
    pins = Pinning(pinned_from >> PAGE_SHIFT, keeps_large)
    if pinned_from != NOT_PINNED and write and large_to_copy(m, vma, first, last):
        error = write_pinned_pages(m, task, vma, first, last, pins)
    else:
        error = populate_range(m, task, vma, first, last, write, alone)
    if pinned_from != NOT_PINNED and not write:
        unshare_pages(m, task, vma, first, last, bool(error), pins)
    mark_touched(m, m.mm(vma.mm), first, last, write, bool(error))
    if touches:
        soil_touched(m, m.mm(vma.mm), first, last, before, bool(error))
    if error == PUNCHED:
        return error, _reaches(m, vma, first, last, write) << PAGE_SHIFT, False
    return error, high, was_there


class Walked(NamedTuple):
    """How far a walk came, with which error, and whether the lock is to be let go.

    `let_go`: `populate_in_hold` leaves that to its caller, `populate_up_to` has done it. `at`: the
    end of the range, or of the part of it that is in the VMA in which a fault failed, or where the
    VMA begins that can't be had at all (`refused`). `punched`: the file whose hole is waited for
    meanwhile, or 0.
    """

    error: int
    at: int
    let_go: bool
    refused: bool
    punched: int = 0


async def populate_in_hold(
    cx: Cx,
    start: int,
    end: int,
    write: bool,
    pinned_from: int = NOT_PINNED,
    looks_again: bool = True,
    tried: bool = False,
) -> Walked:
    """Fault in [start, end) up to the first error, or to where the hold is to be let go once.

    `pinned_from`: pages are pinned, from this address on in all. `looks_again`: see
    `populate_pages`. `tried`: the hold was let go for the first page before, and is not again
    (FOLL_TRIED).
    """
    at = start
    while at < end:
        handle = await find_vma(cx.mm, at)
        vma = await read_vma(handle) if handle else None
        if vma is None or vma.start > at:
            return Walked(-ENOMEM, at, False, True)
        if vma.flags & (VM_IO | VM_PFNMAP) or not vma.flags & (VM_WRITE if write else VM_READ):
            return Walked(-EINVAL, at, False, True)
        high = min(end, vma.end)
        error, at = await populate_pages(cx, handle, vma, at, high, write, pinned_from, looks_again)
        if error == PUNCHED:
            if not (tried and at == start):
                return Walked(0, at, True, False, vma.file)
            await punch_is_over(vma.file)
            continue
        if error or at < high:
            return Walked(error, at, not error, False)
    return Walked(0, at, False, False)


async def populate_up_to(cx: Cx, start: int, end: int, write: bool) -> Walked:
    """Fault in [start, end) under a hold that the caller has; stop at the first error.

    Where the hold was let go, the page is looked for again, in whatever VMA it is in by then.
    """
    walked = await populate_in_hold(cx, start, end, write)
    let_go = walked.let_go
    tried = not cx.design.populates_over_holes
    while walked.let_go:
        await let_go_for_once(cx, walked.punched)
        walked = await populate_in_hold(cx, walked.at, end, write, tried=tried)
    return walked._replace(let_go=let_go)


async def populate_strictly(cx: Cx, start: int, end: int, write: bool) -> int:
    """Fault in [start, end) as `populate_up_to`; return 0 or the error.

    If the hold was let go, it is once more at the end, to tell the caller of it, from 6.8 on. So it
    is before a VMA that can't be had, too, if pages before it could: only what can't be had at
    first is an error (madvise_populate goes on where __get_user_pages_locked has come to).
    """
    at = start
    while True:
        walked = await populate_up_to(cx, at, end, write)
        if walked.let_go and not cx.design.populates_over_holes:
            await let_go_for_once(cx)
        if not (walked.let_go and walked.refused and walked.at > at):
            return walked.error
        at = walked.at
