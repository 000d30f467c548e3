"""Holes in files: MADV_REMOVE and fallocate take pages out of a file in memory or of huge pages.

Under the file's lock what lies in the hole whole is unmapped; private copies of it stay, as far as
they are of small pages. Then its pages are dropped one after another, twice: whoever fills pages
for a userfaultfd may have put others there meanwhile. Faults that have to have one of them wait
(model.file_changes), but what is still in the page cache may be mapped around another fault's page,
and is unmapped once more when it goes (truncate_cleanup_folio).

A hole that ends in the file's first page unmaps all behind that, too (the end of what is to be
unmapped is below zero then).

Sources (6.18): mm/shmem.c (shmem_fallocate, shmem_undo_range), mm/truncate.c,
fs/hugetlbfs/inode.c (hugetlbfs_punch_hole).
"""

from __future__ import annotations

from errno import EPERM
from typing import TYPE_CHECKING

from zaplock.model.file_changes import begin_change, end_change, once_unlocked
from zaplock.model.files import END_OF_FILES, drop_range, forget_fallocated, zero_part
from zaplock.model.flags import PAGE_MASK, PAGE_SHIFT, page_align
from zaplock.model.shared_huge import folio_around, unmap_pages
from zaplock.model.step import Task, step
from zaplock.protocols.rmap import MARKERS, unmap_mapping_range
from zaplock.protocols.seals import sealed_against

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

_STAY = (*MARKERS, "poison", "anon", "thp", "swap")
"""Kinds of entries that a hole leaves in the mappings of its file."""


async def punch_hole(cx: Cx, file: int, first: int, last: int, huge_size: int = 0) -> int:
    """Take bytes [first, last) out of a file: 0, or -EPERM where it is sealed against writing.

    huge_size: how many bytes the pages of a file of huge pages have, of which those go that lie in
    the hole whole; the rest is zeroed.
    """
    low, high = page_align(first), last & PAGE_MASK or END_OF_FILES
    if not await once_unlocked(begin_punch, file, low >> PAGE_SHIFT, last >> PAGE_SHIFT):
        return -EPERM
    if huge_size:
        await zero_parts(file, first, last)
        first = low = (first + huge_size - 1) & -huge_size
        last = high = last & -huge_size
    if low < high:
        await unmap_mapping_range(cx, file, low, high, _STAY)
    page_by_page = cx.grain == 1 and not huge_size
    for _ in range(2 if page_by_page else 1):
        at = first
        while at < last:
            at = await drop_next(file, at, last, page_by_page)
    await end_change(file)
    return 0


@step
def begin_punch(m: Machine, task: Task, file: int, first: int, last: int) -> bool:
    """Lock a file to punch pages [first, last) out of it, unless it is sealed against that."""
    if sealed_against.run(m, task, file, 0):
        return False
    begin_change.run(m, task, file, first, last)
    return True


@step
def drop_next(m: Machine, task: Task, file: int, first: int, last: int, page_by_page: bool) -> int:
    """Drop bytes [first, last) of a file, or with `page_by_page` its first page in there.

    Returns where what is left begins. Of folios of several pages all go at once. One step, as a
    page is locked while it is unmapped and dropped: nobody maps it meanwhile.
    """
    forget_fallocated(m, file, first, last)
    until = last
    if page_by_page:
        cached = m.page_cache(file).overlapping(first >> PAGE_SHIFT, -(-last >> PAGE_SHIFT))
        if not cached:
            return last
        page = max(cached[0][0], first >> PAGE_SHIFT)
        begin, end = folio_around(m, file, page)
        if end - begin == 1:
            first, until = max(first, page << PAGE_SHIFT), min(last, end << PAGE_SHIFT)
    unmap_pages(m, task, file, page_align(first) >> PAGE_SHIFT, until >> PAGE_SHIFT)
    drop_range(m, task, file, first, until)
    return until


@step
def zero_parts(m: Machine, _task: Task, file: int, first: int, last: int) -> None:
    """Zero what a hole covers of huge pages that it does not cover whole."""
    size = m.files[file].huge_size
    whole, end = (first + size - 1) & -size, last & -size
    parts = [(first, min(last, whole))] if first < whole else []
    parts += [(end, last)] if last > end and last > whole else []
    for low, high in parts:
        for edge in (low >> PAGE_SHIFT, high - 1 >> PAGE_SHIFT):
            zero_part(m, file, edge, low, high)
        between = -(-low >> PAGE_SHIFT), high >> PAGE_SHIFT
        for start, stop, delta in m.page_cache(file).overlapping(*between):
            m.content.clear(start + delta, stop + delta)
