"""Files of huge pages: what fallocate does to them, and what their mount has left.

Sources (6.18): fs/hugetlbfs/inode.c (hugetlbfs_fallocate, hugetlbfs_statfs).
"""

from __future__ import annotations

from errno import ENOSPC, EPERM
from typing import TYPE_CHECKING

from zaplock.model.files import SEAL_GROW
from zaplock.model.flags import PAGE_SHIFT
from zaplock.model.huge_fault import add_to_file
from zaplock.model.step import Task, step
from zaplock.model.vma import change

if TYPE_CHECKING:
    from zaplock.model.machine import Machine


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


@step
def room_left(m: Machine, _task: Task, file: int) -> int:
    """Return how many pages more the mount of a file lets its files have (f_bfree of statfs)."""
    share = m.subpools[m.files[file].subpool]
    return share.most - share.used
