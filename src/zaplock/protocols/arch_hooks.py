"""What an architecture may hang into an unmap.

`arch_unmap` on x86 told MPX that bounds tables might be stale, and MPX unmapped those itself: that
is why it matters under which lock it is called. The model's hook unmaps a companion range, if the
scenario names one for the range (`m.arch_hooks[mm]` = (start, end, companion start, companion
end)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.step import Task, step

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


async def arch_unmap(cx: Cx, start: int, end: int) -> None:
    """Let the architecture take down what belongs to a range: a companion mapping, by do_munmap.

    A whole unmap inside another one: it looks up its VMAs and their neighbours in the tree as that
    is now, with those of the outer unmap in it or not.
    """
    low, high = await companion(cx.mm, start, end)
    if low < high:
        await cx.design.do_munmap(cx, low, high - low, [], False)


@step
def companion(m: Machine, _task: Task, mm: int, start: int, end: int) -> tuple[int, int]:
    """Return the companion range of an unmap, (0, 0) if there is none."""
    watched = m.arch_hooks.get(mm)
    if watched is None or end <= watched[0] or watched[1] <= start:
        return 0, 0
    return watched[2], watched[3]


def hook_arch_unmap(m: Machine, mm: int, watched: tuple[int, int, int, int]) -> None:
    """Arm the hook: unmapping in [watched[0], watched[1]) unmaps [watched[2], watched[3]) too."""
    m.arch_hooks.put(mm, watched)
