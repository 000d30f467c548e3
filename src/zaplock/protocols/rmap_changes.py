"""Merging VMAs of a file and moving their borders, while somebody walks the file's rmap.

Who does that has the rmap's lock for write, so that a walk misses no part and meets no VMA that is
gone (vma_prepare, vma_complete). While nobody has that lock, taking it, the change and giving it
back are one step here: a walk comes before or after.

Source: mm/vma.c (mm/mmap.c before 6.11).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec

from zaplock.model.files import i_mmap_lock
from zaplock.model.rwsem import FREE, down_write, up_write
from zaplock.model.step import Step, StepKind, Task
from zaplock.model.vma import vma_of

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

P = ParamSpec("P")

_WALKED: Final = -(1 << 40)
"""What a change gives that was not made, as somebody has the rmap's lock: no errno, no handle."""


class RmapChange(Generic[P]):
    """A step that merges VMAs or moves their borders, if `changes` says so of its arguments.

    Its first argument is the handle of a VMA, the step gives a handle or an errno.
    """

    def __init__(
        self,
        kind: StepKind[P, int],
        changes: Callable[..., bool] = lambda _m, _task, _handle, *_args: True,
    ) -> None:
        self.kind = kind

        def unless_walked(m: Machine, task: Task, handle: int, *args: Any) -> int:
            lock = i_mmap_lock(vma_of(m, task, handle).file)
            if m.locks.get(lock, FREE) != FREE and changes(m, task, handle, *args):
                return _WALKED
            run: Callable[..., int] = kind.run
            return run(m, task, handle, *args)

        self._attempt = update_wrapper(unless_walked, kind.run)

    async def __call__(self, file: int, *args: P.args, **kwargs: P.kwargs) -> int:
        """Take the step on a VMA of a file (0: anonymous memory, which has no such lock)."""
        if not file:
            return await self.kind(*args, **kwargs)
        result: int = await Step(self._attempt, args)
        if result == _WALKED:
            await down_write(i_mmap_lock(file))
            result = await self.kind(*args, **kwargs)
            await up_write(i_mmap_lock(file))
        return result
