"""What a process asks of KSM and has done to it: PR_SET_MEMORY_MERGE, ksmd's scans, the undoing.

Source: mm/ksm.c ksm_enable_merge_any, ksm_disable_merge_any (6.4), ksm_vma_flags (6.17),
unmerge_ksm_pages, unmerge_and_remove_all_rmap_items, max_page_sharing_store.
"""

from __future__ import annotations

from errno import EBUSY, EINTR, EINVAL, ERANGE
from typing import TYPE_CHECKING

from zaplock.model import ksm
from zaplock.model.flags import (
    PAGE_SHIFT,
    VM_DROPPABLE,
    VM_HUGETLB,
    VM_MAYSHARE,
    VM_MERGEABLE,
    VM_SHARED,
    VM_SPECIAL,
)
from zaplock.model.mm import Mm
from zaplock.model.step import Task, step
from zaplock.model.vma import Vma, change, device_of, find_vmas, read_vma, write_vma
from zaplock.protocols.locking import mmap_write_lock_killable, mmap_write_unlock

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

_INT_MAX = (1 << 31) - 1
LATE, EARLY, ALWAYS_EARLY = 1, 2, 3
"""When what is mapped under PR_SET_MEMORY_MERGE becomes mergeable (the counter memory_merge):
ALWAYS_EARLY is EARLY of devices, too."""
_WHEN = {"late": LATE, "early": EARLY, "always early": ALWAYS_EARLY}
DEVICES = ("zero",)
"""Names of the devices that private mappings of this model may be of."""
UNMERGEABLE = VM_SHARED | VM_MAYSHARE | VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE
"""VMAs that KSM leaves alone, and MADV_MERGEABLE passes over without a word."""


async def prctl_set_memory_merge(cx: Cx, enable: int) -> int:
    """PR_SET_MEMORY_MERGE: let all VMAs be mergeable, and those that come; or none of them.

    Returns 0, -EINTR or, before 6.4, -EINVAL.
    """
    if cx.design.memory_merge == "no":
        return -EINVAL
    if await mmap_write_lock_killable(cx):
        return -EINTR
    mode = _WHEN[cx.design.memory_merge] if enable else 0
    if await set_memory_merge(cx.mm, mode):
        for handle in await find_vmas(cx.mm, 0, 1 << 63):
            await set_mergeable(cx, handle, enable != 0)
    await mmap_write_unlock(cx)
    return 0


@step
def set_memory_merge(m: Machine, _task: Task, mm: int, mode: int) -> bool:
    """Note when what an mm maps becomes mergeable (0: never); False where that is so already."""
    counters, was = m.mm(mm).counters, m.mm(mm).count("memory_merge")
    counters.put("memory_merge", mode)
    return was != mode


async def set_mergeable(cx: Cx, handle: int, enable: bool) -> None:
    """Make one VMA mergeable, or give it pages of its own again. It merges with no neighbour."""
    vma = await read_vma(handle)
    if enable and not vma.flags & (VM_MERGEABLE | UNMERGEABLE):
        await change_flags(handle, vma.flags | VM_MERGEABLE)
    elif not enable and vma.flags & VM_MERGEABLE:
        await unmerge_ksm_pages(vma, vma.start, vma.end, cx.design.unmerges_closed)
        await change_flags(handle, vma.flags & ~VM_MERGEABLE)


@step
def change_flags(m: Machine, _task: Task, handle: int, flags: int) -> None:
    """Set the flags of a VMA that stays as long as it is."""
    vma = m.vmas[handle]
    assert isinstance(vma, Vma)
    write_vma(m, handle, change(vma, flags=flags))


@step
def unmerge_ksm_pages(
    m: Machine, task: Task, vma: Vma, low: int, high: int, closed_too: bool
) -> None:
    """Give addresses [low, high) of a mergeable VMA pages of their own again."""
    if vma.flags & VM_MERGEABLE and vma.anon_vma:
        first, last = low >> PAGE_SHIFT, high >> PAGE_SHIFT
        writes = ksm.unmerges_by_write(m)
        ksm.unmerge(m, task, vma, first, last, closed_too=closed_too, writes=writes)


async def ksm_scan(cx: Cx) -> int:
    """Let ksmd scan everything, which nobody changes meanwhile, until it merges no more."""
    design = cx.design
    await merge_pages(
        ksm.ScanRules(
            design.finds_zeros,
            design.ksm_zeros_first,
            design.ksm_marks_zeros,
            design.ksm_finds_closed,
        )
    )
    return 0


async def ksm_unmerge(cx: Cx) -> int:
    """Write 2 to KSM's `run`: what was merged is undone in all processes, and may merge anew."""
    await unmerge_all(cx.design.unmerges_closed)
    return 0


async def set_ksm_zero_pages(cx: Cx, enable: int) -> int:
    """Write to KSM's use_zero_pages: is a page of zeros to become the zero page?"""
    if str(enable)[0] not in "01":  # as what is a yes or a no is read, by its first letter
        return -EINVAL
    await use_zero_pages(str(enable)[0] == "1")
    return 0


async def set_ksm_most(cx: Cx, most: int) -> int:
    """Write to KSM's max_page_sharing: how many entries may map one merged page, at least two.

    Returns 0, -EINVAL, -ERANGE beyond an int, or -EBUSY where pages are merged.
    """
    if most > _INT_MAX:
        return -ERANGE
    return -EINVAL if most < 2 else await share_at_most(most)


@step
def merge_pages(m: Machine, task: Task, rules: ksm.ScanRules) -> None:
    """Merge the equal pages of all processes."""
    ksm.scan(m, task, rules)


@step
def unmerge_all(m: Machine, task: Task, closed_too: bool) -> None:
    """Give all mergeable VMAs pages of their own again."""
    ksm.unmerge_all(m, task, closed_too=closed_too)


@step
def use_zero_pages(m: Machine, _task: Task, enable: bool) -> None:
    """Set use_zero_pages."""
    m.globals.put("ksm_zero_pages", int(enable))


@step
def share_at_most(m: Machine, _task: Task, most: int) -> int:
    """Set max_page_sharing; -EBUSY where that is another value and pages are merged."""
    if most != (m.globals.get("ksm_most", 0) or ksm.MAX_PAGE_SHARING):
        if ksm.exists(m):
            return -EBUSY
        m.globals.put("ksm_most", most)
    return 0


def mergeable_flags(space: Mm, vm_flags: int, name: str, when: int = EARLY) -> int:
    """Return the flags that a new mapping of an mm has as to KSM (ksm_vma_flags).

    when: EARLY, before a neighbour to merge with is looked for, or LATE, as to 6.18 where a device
    (that of this `name`) might still change the mapping (can_set_ksm_flags_early).
    """
    mode = space.count("memory_merge")
    if mode == ALWAYS_EARLY:
        mode = EARLY
    elif mode and device_of(name) in DEVICES:
        mode = LATE
    return vm_flags | VM_MERGEABLE if mode == when and not vm_flags & UNMERGEABLE else vm_flags


def become_mergeable(m: Machine, space: Mm, handle: int, start: int, end: int) -> None:
    """Let a new mapping that has merged with none be mergeable, where that comes LATE."""
    vma = m.vmas[handle]
    if isinstance(vma, Vma) and (vma.start, vma.end) == (start, end):
        flags = mergeable_flags(space, vma.flags, vma.name, LATE)
        if flags != vma.flags:
            m.vmas.put(handle, change(vma, flags=flags))
