"""prctl, as far as it is about memory: names, no code that was ever writable, no huge pages.

Sources: mm/madvise.c madvise_set_anon_name (names, 5.17), kernel/sys.c prctl_set_mdwe (6.3) and
PR_SET_THP_DISABLE; include/linux/huge_mm.h vma_thp_disabled (6.18).
"""

from __future__ import annotations

from errno import EAGAIN, EBADF, EINTR, EINVAL, ENOMEM, EPERM
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_MASK, page_align
from zaplock.model.step import Task, step
from zaplock.model.vma import Vma
from zaplock.protocols.locking import mmap_write_lock_killable, mmap_write_unlock
from zaplock.protocols.mprotect import apply_to_range, modify_vma
from zaplock.protocols.vm_flags import MDWE_NO_INHERIT, MDWE_REFUSES

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

LONGEST_NAME = 79
_NOT_IN_NAMES = "\\`$[]"


async def set_vma_name(cx: Cx, start: int, length: int, name: str) -> int:
    """PR_SET_VMA_ANON_NAME: 0 or a negative errno; an empty `name` takes a name away."""
    if len(name) > LONGEST_NAME or not all(is_name_character(c) for c in name):
        return -EINVAL
    aligned = page_align(length) % (1 << 64)
    end = start + aligned
    if start & ~PAGE_MASK or (length and not aligned) or end >= 1 << 64:
        return -EINVAL
    if end == start:
        return 0
    if await mmap_write_lock_killable(cx):
        return -EINTR

    async def visit(handle: int, vma: Vma, low: int, high: int) -> int:
        if vma.name or (vma.file and not await is_shared_anonymous(vma.file)):
            return -EBADF
        if vma.anon_name == name:
            return 0
        part = await modify_vma(cx, handle, low, high, vma.flags, None, name)
        return -EAGAIN if part == -ENOMEM else min(0, part)

    error, holes = await apply_to_range(cx, start, end, visit)
    await mmap_write_unlock(cx)
    return error or (-ENOMEM if holes else 0)


def is_name_character(character: str) -> bool:
    """Return whether a character may stand in a name (is_valid_name_char)."""
    return " " <= character <= "~" and character not in _NOT_IN_NAMES


@step
def is_shared_anonymous(m: Machine, _task: Task, file: int) -> bool:
    """Return whether a file is that of shared anonymous memory."""
    return m.files[file].name == "/dev/zero"


@step
def set_mdwe(m: Machine, _task: Task, mm: int, bits: int) -> int:
    """PR_SET_MDWE: 0, -EINVAL, or -EPERM: what is set can't be taken back."""
    if bits & ~(MDWE_REFUSES | MDWE_NO_INHERIT) or bits == MDWE_NO_INHERIT:
        return -EINVAL
    space = m.mm(mm)
    if space.count("mdwe") not in (0, bits):
        return -EPERM
    if bits:
        space.counters.put("mdwe", bits)
    return 0


async def prctl_set_mdwe(cx: Cx, bits: int) -> int:
    """The prctl as a protocol."""
    return await set_mdwe(cx.mm, bits)


THP_DISABLE_EXCEPT_ADVISED = 2
DISABLED, EXCEPT_ADVISED = 1, 2
"""What an address space has noted: no huge pages, or only where MADV_HUGEPAGE asked for them."""


async def prctl_set_thp_disable(cx: Cx, disable: int, how: int = 0) -> int:
    """PR_SET_THP_DISABLE: 0, -EINTR or -EINVAL. Huge pages that there are stay.

    `how`: the flags that came with 6.18, and only go with `disable`.
    """
    known = THP_DISABLE_EXCEPT_ADVISED if cx.design.disables_unadvised and disable else 0
    if how & ~known:
        return -EINVAL
    if await mmap_write_lock_killable(cx):
        return -EINTR
    await set_thp_disable(cx.mm, (EXCEPT_ADVISED if how else DISABLED) if disable else 0)
    await mmap_write_unlock(cx)
    return 0


@step
def set_thp_disable(m: Machine, _task: Task, mm: int, disable: int) -> None:
    """Let an address space have no transparent huge pages, few, or again all."""
    m.mm(mm).counters.put("thp_disable", disable)
