"""Fault in a range ahead of its use, under the mmap_lock for read.

MAP_POPULATE, MAP_LOCKED and mlock do it over a whole range in one shared hold, which is why a
writer waits so long beside them; MADV_POPULATE_* reports what went wrong.

Source: mm/gup.c __mm_populate, populate_vma_page_range, faultin_page_range.
"""

from __future__ import annotations

from collections.abc import Iterator
from errno import EFAULT, EINVAL, ENOMEM
from itertools import takewhile
from signal import SIGBUS, SIGSEGV
from typing import TYPE_CHECKING, NamedTuple

from zaplock.model import ksm
from zaplock.model.anonymous_fault import meets_huge_pages
from zaplock.model.dirty import follows_dirty, soil_file
from zaplock.model.fault_results import ALONE
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
from zaplock.model.frames import Frame, mark_forked, soil
from zaplock.model.huge_fault import reaches_own_page
from zaplock.model.mm import Mm, Pte
from zaplock.model.page_copy import (
    begin_copy,
    finish_copy,
    is_whole_own,
    keeps_page,
    large_to_copy,
    split_entry,
)
from zaplock.model.page_fault import fault_page, populate_range
from zaplock.model.pagetable import ABSENT, alloc_tables, split_huge_zero
from zaplock.model.references import follows, mark_accessed, use_entry
from zaplock.model.rwsem import down_read, up_read
from zaplock.model.shared_huge import KIND as SHARED_HUGE
from zaplock.model.step import Task, step
from zaplock.model.swap import kept_slot
from zaplock.model.vma import Vma, anon_vma_prepare, change, find_vma, found_vma, read_vma
from zaplock.protocols.guards import guarded
from zaplock.protocols.shortage import no_memory

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


NOT_PINNED = -1
"""No address: pages are only made accessible."""


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
            result = await populate_vma_page_range(cx, handle, vma, low, high)
            if result and strict:
                break
        at = high
    await up_read(cx.mmap_lock)
    return result if strict else 0


async def populate_vma_page_range(cx: Cx, handle: int, vma: Vma, low: int, high: int) -> int:
    """Fault in a part of a VMA, for writing where that is private and writable.

    Any access that a VMA allows will do (FOLL_FORCE): one that only writes is read here.
    """
    write = vma.flags & (VM_WRITE | VM_SHARED) == VM_WRITE
    if vma.flags & VM_LOCKONFAULT:
        return 0
    if not vma.flags & VM_ACCESS_FLAGS:
        return -EFAULT
    error, _ = await populate_pages(cx, handle, vma, low, high, write)
    return -EFAULT if error == -EHWPOISON else error


_ERRNO = {-SIGBUS: -EFAULT, -SIGSEGV: -EFAULT, -EHWPOISON: -EHWPOISON}
"""What populating calls say of a fault's outcome; of others -ENOMEM."""


def asks_pages(vma: Vma) -> bool:
    """Return whether it hangs on its pages what a fault in a mapping of huge pages makes."""
    return bool(vma.flags & VM_HUGETLB and (vma.file or vma.flags & VM_UFFD_MISSING))


async def populate_pages(
    cx: Cx, handle: int, vma: Vma, low: int, high: int, write: bool, pinned_from: int = NOT_PINNED
) -> tuple[int, int]:
    """Fault in [low, high) of a VMA in steps of the grain; `pinned_from`: see `make_own`.

    Returns 0, -EFAULT, -EHWPOISON or -ENOMEM, and how far it came: to `high`, or to a page that a
    write has made dirty, after which the mmap_lock is to be let go, since balance_dirty_pages may
    take long (`dirty_fault_lets_go`).
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
    for at in range(low, high, grain):
        if await no_memory(cx):
            return -ENOMEM, at
        until = min(at + grain, high)
        # Page by page others may come between what is mapped around a page and the page itself.
        around = cx.grain == 1 and not write and bool(vma.file)
        alone = around and await fault_around(handle, at)
        pins = pinned_from != NOT_PINNED
        more = (bool(late), pinned_from, cx.design.reuses_large) if pins else late
        error, came_to = await fault_range(
            handle, at, until, write, splits, copies, stops, alone, *more
        )
        if error:
            return _ERRNO.get(error, -ENOMEM), came_to
        if came_to < until:
            return 0, came_to
    return 0, high


async def let_go_for_once(cx: Cx) -> None:
    """Give the shared hold up and take it again."""
    await up_read(cx.mmap_lock)
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
) -> tuple[int, int]:
    """Fault in every page of [low, high).

    Returns 0, or the first fault's signal, negative; and how far it came: with `stops` to the first
    page of a shared file that it made dirty, else to `high`. `splits_zero`: the huge zero page is
    mapped by small entries first. `copies`: see `large_to_copy`. `alone`: the one page, around
    which all is mapped. `page_first`: of huge pages, see `own_huge_page`. `pinned_from`: where
    that is an address, pages are pinned from there on, see `make_own`.
    """
    vma = found_vma(m, task, handle)
    first, last = low >> PAGE_SHIFT, high >> PAGE_SHIFT
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
                return error, vpn << PAGE_SHIFT  # who tells looks once more, and touches it then
            mark_touched(m, m.mm(vma.mm), vpn, vpn + 1, write, False)
        return 0, high
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
    return error, high


def soil_touched(
    m: Machine, space: Mm, first: int, last: int, before: list[tuple[int, int, Pte]], failed: bool
) -> None:
    """Let pages [first, last) be dirty whose entries let write, but are clean (FOLL_TOUCH).

    before: their entries before that; where one does not let write a fault makes it dirty. failed:
    only those up to the first that is not there.
    """
    there = _come_by(space, first, last, failed)
    end = there[-1][1] if there else first
    for low, high, pte in before:
        if pte.kind in ("anon", "thp") and low < end and pte.writable and pte.clean:
            soil(m, low + pte.delta, min(high, end) + pte.delta)


def mark_touched(m: Machine, space: Mm, first: int, last: int, write: bool, failed: bool) -> None:
    """Note that pages [first, last) were used, small ones by a mark of the page (FOLL_TOUCH).

    failed: only those up to the first that is not there. Of a huge page the entry is, and that
    only if it is to be written to.
    """
    for low, high, pte in _come_by(space, first, last, failed) if follows(m) else ():
        if pte.kind == "thp" and write:
            use_entry(space, low, pte)
        elif pte.kind in ("anon", "file", "shmem"):
            mark_accessed(m, low + pte.delta, high + pte.delta)


def _come_by(space: Mm, first: int, last: int, failed: bool) -> list[tuple[int, int, Pte]]:
    """List the entries of pages [first, last); `failed`: up to the first that is not there."""
    there = space.ptes.overlapping(first, last)
    if not failed:
        return there
    return list(takewhile(lambda run: run[2].kind not in ABSENT, _adjoining(there, first)))


class Pinning(NamedTuple):
    """A call that pins pages: from which page on, and may one that is in a huge page be kept?"""

    first: int
    keeps_large: bool


def write_pinned_pages(
    m: Machine, task: Task, vma: Vma, first: int, last: int, pins: Pinning
) -> int:
    """Let pages [first, last) be written to, one after the other: 0 or the first fault's signal."""
    space = m.mm(vma.mm)
    for vpn in range(first, last):
        pte = space.ptes.at(vpn)
        is_closed = pte is not None and pte.kind == "anon" and not (pte.writable or pte.wp)
        if pte is not None and is_closed and is_held(m, space, vpn, pte, pins):
            ksm.give_copy(m, task, space, vpn, pte, False)
        if error := populate_range(m, task, vma, vpn, vpn + 1, True):
            return error
    return 0


def unshare_pages(
    m: Machine, task: Task, vma: Vma, first: int, last: int, failed: bool, pins: Pinning
) -> None:
    """Unshare pages [first, last); `failed`: only those up to the first that is not there."""
    space = m.mm(vma.mm)
    for low, high, pte in _come_by(space, first, last, failed):
        if pte.kind in ("anon", "thp"):
            for vpn in range(low, high):
                unshare_page(m, task, vma, vpn, pins)


def unshare_page(m: Machine, task: Task, vma: Vma, vpn: int, pins: Pinning) -> None:
    """Give an address a page of its own where it shares one, which is not pinned to be read.

    So is a merged one, and one that a fork has shared; if nobody else maps it any more it is one's
    own as it is, unless somebody holds it. (gup_must_unshare, do_wp_page)
    """
    space = m.mm(vma.mm)
    pte = space.ptes.at(vpn)
    if pte is None or pte.kind not in ("anon", "thp"):
        return
    frame = m.frames.at(vpn + pte.delta)
    assert frame is not None
    if frame.kind == "ksm":
        ksm.unmerge(m, task, vma, vpn, vpn + 1, closed_too=True)
    elif (
        frame.forked and not is_held(m, space, vpn, pte, pins) and _keeps(m, space, vpn, pte, frame)
    ):
        pages = PAGES_PER_PMD if pte.kind == "thp" else 1
        head = vpn - vpn % pages + pte.delta
        if frame.slot and not kept_slot(m, frame):
            soil(m, head, head + 1)  # who keeps it takes it out of the swap cache
        mark_forked(m, head, head + pages, False)
    elif frame.forked:
        if pte.kind == "thp":
            pte = split_entry(m, space, vpn, pte)
        ksm.give_copy(m, task, space, vpn, pte, False)


def _keeps(m: Machine, space: Mm, vpn: int, pte: Pte, frame: Frame) -> bool:
    if pte.kind == "thp":
        return is_whole_own(m, vpn - vpn % PAGES_PER_PMD + pte.delta)
    return keeps_page(m, space, vpn + pte.delta, frame)


def is_held(m: Machine, space: Mm, vpn: int, pte: Pte, pins: Pinning) -> bool:
    """Return whether a page can't be kept, as its huge page is held as a whole.

    It is by the pages of it that the same call has pinned; whoever maps such pages one by one may
    write to none that a fork has shared. (__wp_can_reuse_large_anon_folio; before 6.15 to no page
    of a huge page.)
    """
    frame = m.frames.at(vpn + pte.delta)
    if frame is None or frame.kind != "thp" or pte.kind != "anon":
        return False
    folio = (vpn + pte.delta) // PAGES_PER_PMD
    pinned = space.ptes.overlapping(pins.first, vpn) if pins.keeps_large else ()
    return not pins.keeps_large or any(
        other.kind == "anon"
        and (low + other.delta) // PAGES_PER_PMD
        <= folio
        <= (high - 1 + other.delta) // PAGES_PER_PMD
        for low, high, other in pinned
    )


def _adjoining(runs: list[tuple[int, int, Pte]], at: int) -> Iterator[tuple[int, int, Pte]]:
    """Yield runs from `at` on up to the first gap."""
    for run in runs:
        if run[0] > at:
            return
        at = run[1]
        yield run


def makes_dirty(m: Machine, vma: Vma, vpn: int) -> bool:
    """Return whether a write to a page of a shared mapping makes a clean page dirty.

    A file system on a disk is told of every entry that becomes writable (page_mkwrite).
    """
    pte = m.mm(vma.mm).ptes.at(vpn)
    if pte is not None and pte.writable:
        return False
    page = vma.pgoff_of(vpn << PAGE_SHIFT)
    delta = m.page_cache(vma.file).at(page)
    return m.files[vma.file].kind == "disk" or delta is None or not m.dirty.at(page + delta)


def is_dirty(m: Machine, vma: Vma, vpn: int) -> bool:
    """Return whether the entry of a page of a file knows that it was written through."""
    pte = m.mm(vma.mm).ptes.at(vpn)
    return follows_dirty(m) and pte is not None and pte.writable and not pte.clean


def soil_huge_entry(m: Machine, space: Mm, vpn: int) -> bool:
    """Let a huge entry of a file that is clean and lets write be dirty; return whether it was so.

    The page is not told, as it is where small entries map it (touch_pmd).
    """
    pte = space.ptes.at(vpn)
    if not follows_dirty(m) or pte is None or pte.kind != SHARED_HUGE:
        return False
    if not (pte.writable and pte.clean):
        return False
    first = vpn - vpn % PAGES_PER_PMD
    space.ptes.set(first, first + PAGES_PER_PMD, change(pte, clean=False))
    return True


class Walked(NamedTuple):
    """How far a walk came, with which error, and whether the lock was let go, or is to be.

    `at`: the end of the range, or of the part of it that is in the VMA in which a fault failed, or
    where the VMA begins that can't be had at all (`refused`).
    """

    error: int
    at: int
    let_go: bool
    refused: bool


def mark_dirty(m: Machine, vma: Vma, vpn: int) -> None:
    """Note that a page of a shared mapping counts as written to (fault_dirty_shared_page)."""
    page = vma.pgoff_of(vpn << PAGE_SHIFT)
    delta = m.page_cache(vma.file).at(page)
    if delta is not None:
        soil_file(m, page + delta, page + delta + 1)


async def populate_in_hold(
    cx: Cx, start: int, end: int, write: bool, pinned_from: int = NOT_PINNED
) -> Walked:
    """Fault in [start, end) up to the first error, or to where the hold is to be let go once.

    `pinned_from`: pages are pinned, from this address on in all.
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
        error, at = await populate_pages(cx, handle, vma, at, high, write, pinned_from)
        if error or at < high:
            return Walked(error, at, not error, False)
    return Walked(0, at, False, False)


async def populate_up_to(cx: Cx, start: int, end: int, write: bool) -> Walked:
    """Fault in [start, end) under a hold that the caller has; stop at the first error.

    Where the hold was let go, the page is looked for again, in whatever VMA it is in by then.
    """
    walked = await populate_in_hold(cx, start, end, write)
    let_go = walked.let_go
    while walked.let_go:
        await let_go_for_once(cx)
        walked = await populate_in_hold(cx, walked.at, end, write)
    return walked._replace(let_go=let_go)


async def populate_strictly(cx: Cx, start: int, end: int, write: bool) -> int:
    """Fault in [start, end) as `populate_up_to`; return 0 or the error.

    If the hold was let go, it is once more at the end, to tell the caller of it. So it is before a
    VMA that can't be had, too, if pages before it could: only what can't be had at first is an
    error (madvise_populate goes on where __get_user_pages_locked has come to).
    """
    at = start
    while True:
        walked = await populate_up_to(cx, at, end, write)
        if walked.let_go:
            await let_go_for_once(cx)
        if not (walked.let_go and walked.refused and walked.at > at):
            return walked.error
        at = walked.at
