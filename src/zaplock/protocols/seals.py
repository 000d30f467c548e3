"""Sealed mappings: who looks for them, and when.

6.10 looks over a whole range before it changes any of it (can_modify_mm); from 6.12 on each VMA is
looked at when its turn comes, so that what lies before it has been changed by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.flags import VM_SEALED
from zaplock.model.step import Task, step
from zaplock.model.vma import find_vmas, vma_of

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx


async def seal_in_range(cx: Cx, start: int, end: int) -> bool:
    """Return whether a design that looks beforehand finds a sealed VMA in a range."""
    return cx.design.mseal == "range" and await any_sealed(cx.mm, start, end)


@step
def any_sealed(m: Machine, task: Task, mm: int, start: int, end: int) -> bool:
    """Return whether a VMA of the range is sealed."""
    handles = find_vmas.run(m, task, mm, start, end)
    return any(vma_of(m, task, handle).flags & VM_SEALED for handle in handles)
