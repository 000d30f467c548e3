"""What a driver remembers of its VMA, from mmap to the VMA's close() (see `protocols.driver`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from zaplock.model.flags import VM_PFNMAP
from zaplock.model.step import Task, step
from zaplock.model.vma import Vma, vma_of

if TYPE_CHECKING:
    from zaplock.model.machine import Machine


@step
def saved_vma(m: Machine, _task: Task, file: int) -> int:
    """Return the VMA that a driver has saved, 0 if it has none."""
    return m.files[file].saved


def save_vma(m: Machine, file: int, handle: int) -> None:
    """Let a driver remember its VMA, as its mmap does."""
    m.files.put(file, msgspec.structs.replace(m.files[file], saved=handle))


async def close(vma: Vma, handle: int) -> None:
    """Call a VMA's close(), where its driver has one."""
    if vma.flags & VM_PFNMAP and vma.file:
        await vm_close(handle)


@step
def vm_close(m: Machine, task: Task, handle: int) -> None:
    """Let a driver forget its VMA."""
    forget_vma(m, vma_of(m, task, handle), handle)


def forget_vma(m: Machine, vma: Vma, handle: int) -> None:
    """Let a driver forget a VMA if it is the one that it has saved."""
    if vma.file and m.files[vma.file].saved == handle:
        save_vma(m, vma.file, 0)
