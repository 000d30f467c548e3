"""What an architecture may hang into an unmap.

`arch_unmap` on x86 told MPX that bounds tables might be stale, and MPX unmapped those itself: that
is why it matters under which lock it is called. The model's hook unmaps a companion range, if the
scenario names one for the range (`m.arch_hooks[mm]` = (start, end, companion start, companion
end)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.step import Task, step
from zaplock.model.vma import overlapping
from zaplock.protocols.teardown import (
    Handles,
    detach_vmas_to_be_unmapped,
    remove_vma_list,
    unmap_region,
)

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


async def arch_unmap(cx: Cx, start: int, end: int) -> None:
    """Let the architecture take down what belongs to a range; here: a companion mapping."""
    low, high, handles = await companion(cx.mm, start, end)
    if handles:
        await detach_vmas_to_be_unmapped(handles)
        await unmap_region(cx, handles, low, high, (low, high))
        await remove_vma_list(cx, handles)


@step
def companion(m: Machine, _task: Task, mm: int, start: int, end: int) -> tuple[int, int, Handles]:
    """Return the companion range of an unmap and its VMAs, (0, 0, ()) if there is none."""
    watched = m.arch_hooks.get(mm)
    if watched is None or end <= watched[0] or watched[1] <= start:
        return 0, 0, ()
    low, high = watched[2], watched[3]
    return low, high, tuple(overlapping(m, m.mm(mm), low, high))


def hook_arch_unmap(m: Machine, mm: int, watched: tuple[int, int, int, int]) -> None:
    """Arm the hook: unmapping in [watched[0], watched[1]) unmaps [watched[2], watched[3]) too."""
    m.arch_hooks.put(mm, watched)
