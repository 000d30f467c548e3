"""Sealed mappings: who looks for them, and when. And sealed files in memory: against what.

6.10 looks over a whole range before it changes any of it (can_modify_mm); from 6.12 on each VMA is
looked at when its turn comes, so that what lies before it has been changed by then.

Source of file seals: mm/memfd.c memfd_add_seals, mm/shmem.c (6.18).
"""

from __future__ import annotations

from errno import EBADF, EBUSY, EINVAL, EPERM
from typing import TYPE_CHECKING

import msgspec

from zaplock.model.file_changes import once_unlocked
from zaplock.model.files import (
    SEAL_EXEC,
    SEAL_FUTURE_WRITE,
    SEAL_GROW,
    SEAL_SEAL,
    SEAL_SHRINK,
    SEAL_WRITE,
)
from zaplock.model.flags import VM_MAYWRITE, VM_SEALED, VM_SHARED
from zaplock.model.step import Task, step
from zaplock.model.vma import find_vmas, vma_of
from zaplock.system_calls import as_int

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


async def seal_in_range(cx: Cx, start: int, end: int) -> bool:
    """Return whether a design that looks beforehand finds a sealed VMA in a range."""
    return cx.design.mseal == "range" and await any_sealed(cx.mm, start, end)


@step
def any_sealed(m: Machine, task: Task, mm: int, start: int, end: int) -> bool:
    """Return whether a VMA of the range is sealed."""
    for handle in find_vmas.run(m, task, mm, start, end):
        if vma_of(m, task, handle).flags & VM_SEALED:
            return True
    return False


ALL_SEALS = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW | SEAL_WRITE | SEAL_FUTURE_WRITE | SEAL_EXEC
OF_CODE = SEAL_SHRINK | SEAL_GROW | SEAL_WRITE | SEAL_FUTURE_WRITE
"""What SEAL_EXEC brings along for a file that may be executed."""


async def add_seals(cx: Cx, file: int, seals: int) -> int:
    """fcntl(F_ADD_SEALS) of a descriptor: 0 or a negative errno. `file` 0: there is none."""
    if not file:
        return -EBADF
    seals = as_int(seals) if cx.design.seals_are_ints else seals
    known = ALL_SEALS if cx.design.seals_code else ALL_SEALS & ~SEAL_EXEC
    asks = cx.design.seal_exec_asks_writers
    sealed = once_unlocked(seal_file, file, seals, known, asks)
    return await sealed


@step
def seal_file(m: Machine, task: Task, file: int, seals: int, known: int, exec_asks: bool) -> int:
    """Seal a memfd; against writing only while nobody maps it so that it could be written to.

    A memfd that may be executed (as all without MFD_NOEXEC_SEAL) is sealed whole with SEAL_EXEC;
    unless `exec_asks`, also while somebody maps it so. known: the seals that there are.
    """
    backing = m.files[file]
    if not backing.writable:
        return -EPERM
    if seals & ~known or backing.kind not in ("shmem", "hugetlb"):
        return -EINVAL
    if backing.seals & SEAL_SEAL:
        return -EPERM
    implied = OF_CODE if seals & SEAL_EXEC else 0
    seals |= implied if exec_asks else 0
    if seals & SEAL_WRITE and not backing.seals & SEAL_WRITE:
        may_write = VM_SHARED | VM_MAYWRITE
        if any(vma_of(m, task, handle).flags & may_write == may_write for handle in m.i_mmap(file)):
            return -EBUSY
    m.files.put(file, msgspec.structs.replace(backing, seals=backing.seals | seals | implied))
    return 0


@step
def sealed_against(m: Machine, _task: Task, file: int, end: int) -> bool:
    """Return whether a file may not be written to up to `end`."""
    backing = m.files[file]
    return backing.is_write_sealed or (bool(backing.seals & SEAL_GROW) and end > backing.size)


@step
def sealed_size(m: Machine, _task: Task, file: int, size: int) -> bool:
    """Return whether a file may not be made so long."""
    backing = m.files[file]
    shrinks, grows = backing.seals & SEAL_SHRINK, backing.seals & SEAL_GROW
    return bool((size < backing.size and shrinks) or (size > backing.size and grows))
