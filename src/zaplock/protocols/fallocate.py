"""fallocate: give a file in memory or of huge pages all its pages in a range, or punch a hole.

What it makes of a file in memory are folios as a write of the range would make, but filled with
zeroes only by who uses them first: until then no fault maps them around it, mincore does not tell
of them, and a read passes over them as over a hole. They are dirty at once. A second fallocate
fills them. Beyond the end of the file, where FALLOC_FL_KEEP_SIZE leaves that, they stay there also
when folios are cut.

Sources (6.18): fs/open.c vfs_fallocate; mm/shmem.c (shmem_fallocate, shmem_get_folio_gfp); of huge
pages see protocols.huge_files, of holes protocols.punch. Not covered: RLIMIT_FSIZE; a signal in the
middle, which ends it; memory that is short, where what was made is taken back;
FALLOC_FL_WRITE_ZEROES of a file that is open for reading only (6.17); files on a disk.
"""

from __future__ import annotations

from errno import EBADF, EFBIG, EINVAL, ENODEV, ENOSPC, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING

from zaplock.model.file_changes import once_unlocked
from zaplock.model.files import END_OF_FILES, SEAL_GROW
from zaplock.model.flags import PAGE_SHIFT
from zaplock.model.shared_folios import fill_range
from zaplock.model.step import Task, step
from zaplock.model.vma import change
from zaplock.protocols.huge_files import fill_huge
from zaplock.protocols.punch import punch_hole
from zaplock.system_calls import as_int

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE = (
    1, 2, 8, 0x10, 0x20, 0x40,
)  # fmt: skip
_KNOWN = PUNCH_HOLE | COLLAPSE_RANGE | ZERO_RANGE | INSERT_RANGE | UNSHARE_RANGE


async def fallocate(cx: Cx, file: int, mode: int, offset: int, length: int) -> int:
    """The fallocate system call of a file in memory or of huge pages: 0 or a negative errno."""
    mode = as_int(mode)
    if not 0 <= offset < END_OF_FILES or not 0 < length < END_OF_FILES:
        return -EINVAL
    if error := refused_mode(mode, EINVAL if cx.design.fallocate_mixes == "EINVAL" else EOPNOTSUPP):
        return error
    kind, writable, huge_size = await kind_of(file)
    if not writable:
        return -EBADF
    if kind == "zero":
        return -ENODEV
    end = offset + length
    if end >= END_OF_FILES:
        return -EFBIG
    if mode & ~(KEEP_SIZE | PUNCH_HOLE):
        return -EOPNOTSUPP
    if not mode & PUNCH_HOLE:
        fill = fill_huge if kind == "hugetlb" else fill_memory
        filled = once_unlocked(fill, file, offset, end, bool(mode & KEEP_SIZE))
        return await filled
    return await punch_hole(cx, file, offset, end, huge_size)


def refused_mode(mode: int, mixed: int) -> int:
    """Return the errno for what no file system can be asked, 0 for the rest; `mixed`: for mixtures.

    A hole is asked for with KEEP_SIZE, what moves pages without it.
    """
    asked, keeps = mode & ~KEEP_SIZE, bool(mode & KEEP_SIZE)
    if asked in (0, ZERO_RANGE, UNSHARE_RANGE) or (asked == PUNCH_HOLE and keeps):
        return 0
    if asked in (COLLAPSE_RANGE, INSERT_RANGE) and not keeps:
        return 0
    holes = asked & PUNCH_HOLE and (not keeps or asked & ZERO_RANGE)
    return -EOPNOTSUPP if asked & ~_KNOWN or holes else -mixed


@step
def kind_of(m: Machine, _task: Task, file: int) -> tuple[str, bool, int]:
    """Return a file's kind, whether it is open for writing, and how large its huge pages are."""
    backing = m.files[file]
    return backing.kind, backing.writable, backing.huge_size if backing.kind == "hugetlb" else 0


@step
def fill_memory(m: Machine, task: Task, file: int, offset: int, end: int, keeps_size: bool) -> int:
    """Give a file in memory what it lacks of a range: 0 or a negative errno."""
    backing = m.files[file]
    if backing.seals & SEAL_GROW and end > backing.size:
        return -EPERM
    first, last = offset >> PAGE_SHIFT, -(-end >> PAGE_SHIFT)
    if backing.most_pages and last - first > backing.most_pages:
        return -ENOSPC
    m.files.put(file, change(backing, fallocend=max(backing.fallocend, last)))
    fill_range(m, task, file, first, last, end)
    backing = m.files[file]
    if not keeps_size and end > backing.size:
        m.files.put(file, change(backing, size=end))
    return 0
