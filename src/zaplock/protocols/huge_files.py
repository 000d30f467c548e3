"""Files of huge pages: what fallocate does to them, and what their mount has left.

Sources (6.18): fs/hugetlbfs/inode.c (hugetlbfs_fallocate, hugetlbfs_punch_hole, hugetlbfs_statfs).
"""

from __future__ import annotations

from errno import ENOSPC, EPERM
from typing import TYPE_CHECKING

from zaplock.model.files import SEAL_GROW, zero_part
from zaplock.model.flags import PAGE_SHIFT
from zaplock.model.huge_fault import add_to_file
from zaplock.model.step import Task, step
from zaplock.model.vma import change
from zaplock.protocols.rmap import punch_hole

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


@step
def huge_size_of_file(m: Machine, _task: Task, file: int) -> int:
    """Return how many bytes a page of a file has."""
    return m.files[file].huge_size


@step
def fill_huge(m: Machine, task: Task, file: int, offset: int, end: int, keeps_size: bool) -> int:
    """Give a file what it lacks of a range; what it got stays where there is no more (-ENOSPC)."""
    backing = m.files[file]
    if backing.seals & SEAL_GROW and end > backing.size:
        return -EPERM
    size, pages = backing.huge_size, backing.huge_size >> PAGE_SHIFT
    for number in range(offset // size, (end + size - 1) // size):
        if m.page_cache(file).at(number * pages) is not None:
            continue
        if add_to_file(m, task, file, number) < 0:
            return -ENOSPC
    backing = m.files[file]
    if not keeps_size and end > backing.size:
        m.files.put(file, change(backing, size=end))
    return 0


async def punch_huge_hole(cx: Cx, file: int, size: int, first: int, last: int) -> None:
    """Take the huge pages of `size` bytes out of a file that lie in [first, last), zero the rest.

    What private mappings have there goes, too.
    """
    await zero_parts(file, first, last)
    first, last = (first + size - 1) & -size, last & -size
    if first < last:
        await punch_hole(cx, file, first, last)


@step
def zero_parts(m: Machine, _task: Task, file: int, first: int, last: int) -> None:
    """Zero what a hole covers of huge pages that it does not cover whole (hugetlbfs_punch_hole)."""
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


@step
def room_left(m: Machine, _task: Task, file: int) -> int:
    """Return how many pages more the mount of a file lets its files have (f_bfree of statfs)."""
    share = m.subpools[m.files[file].subpool]
    return share.most - share.used
