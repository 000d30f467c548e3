"""Tombstones: address ranges that are unmapped and still being zapped (protocols.dying).

A look-up sees a hole there, the search for a gap an occupied place. Who needs such a range waits
until it is gone, holding nothing and killable, and then looks again; one that waits for other CPUs'
ticks alone (protocols.lazy_flush) is flushed at once for that.
"""

from __future__ import annotations

from errno import EINTR
from typing import TYPE_CHECKING

from zaplock.model.step import Step, Task, WaitStep, step
from zaplock.model.tlb import flush_gathered, return_gathered
from zaplock.model.vma import change, find_vmas, tombstones_over, vma_of
from zaplock.protocols.locking import EXCLUDED, mmap_write_unlock

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

TOP = 1 << 63


async def gave_way(cx: Cx, start: int = 0, end: int = TOP, *, unmaps: bool = False) -> int:
    """Wait for what is dying in [start, end), if anything is: called under the exclusive lock.

    With `unmaps`, also until VMAs of the range have no readers: with tombstones those that are to
    be split, with cuts all of them. New readers are kept out first, so that the wait has an end.
    Returns 0 with the lock still held if there was nothing to wait for. After a wait it returns 1,
    or -EINTR if a fatal signal ended it, and holds nothing: what was seen under the lock may be
    different now.
    """
    design = cx.design
    if design.lazy_flush and await flush_quarantine(cx.mm, start, end):
        await mmap_write_unlock(cx)
        return 1
    if not (design.tombstones or design.cuts):
        return 0
    dying = await dying_in(cx.mm, start, end) if design.tombstones else ()
    border = 0
    if unmaps and not dying:
        border = await exclude_readers(cx.mm, start, end, design.cuts)
    if not dying and not border:
        return 0
    await mmap_write_unlock(cx)
    if border:
        await readers_gone(border)
        return 1
    return -EINTR if await one_is_gone(cx.mm, dying) else 1


@step
def flush_quarantine(m: Machine, task: Task, mm: int, start: int, end: int) -> bool:
    """Let all CPUs forget at once what waits for their ticks in [start, end); False if nothing."""
    space = m.mm(mm)
    waiting = [space.dying[at][1] for at in tombstones_over(space, start, end)]
    for gather in waiting:
        flush_gathered(m, gather)
        give_back.run(m, task, mm, gather)
    return bool(waiting)


@step
def give_back(m: Machine, task: Task, mm: int, gather: int) -> None:
    """Return what a range in quarantine was made of, and its addresses; no CPU may reach it."""
    if gather not in m.gathers:
        return  # somebody needed the addresses, and has flushed it at once
    return_gathered(m, task, gather)
    m.gathers.drop(gather)
    dying = m.mm(mm).dying
    for start in [at for at in dying if dying[at][1] == gather]:
        dying.drop(start)


@step
def dying_in(m: Machine, _task: Task, mm: int, start: int, end: int) -> tuple[int, ...]:
    """Return the tombstones that overlap [start, end)."""
    return tuple(m.mm(mm).dying[at][1] for at in tombstones_over(m.mm(mm), start, end))


def one_is_gone(mm: int, dying: tuple[int, ...]) -> Step[int]:
    """Wait until one of these tombstones has been taken away; EINTR on a fatal signal."""
    return WaitStep(_gave_way, (mm, dying), _one_is_gone, ("dying", mm), killable=True)


def _gave_way(_m: Machine, _task: Task, _mm: int, _dying: tuple[int, ...]) -> int:
    return 0


def _one_is_gone(m: Machine, _task: Task, mm: int, dying: tuple[int, ...]) -> bool:
    tombstones = m.mm(mm).dying
    there = {tombstones[start][1] for start in tombstones}
    return not there.issuperset(dying)


@step
def exclude_readers(
    m: Machine, task: Task, mm: int, start: int, end: int, all_of_them: bool
) -> int:
    """Keep new readers out of all VMAs of [start, end), or of those that reach out of it.

    Returns one that still has some, or 0.
    """
    for handle in find_vmas.run(m, task, mm, start, end):
        vma = vma_of(m, task, handle)
        if not all_of_them and vma.start >= start and vma.end <= end:
            continue
        if m.vma_readers.get(handle):
            m.vmas.put(handle, change(vma, lock_seq=EXCLUDED))
            return handle
        m.vmas.put(handle, change(vma, lock_seq=m.mm(mm).count("lock_seq")))
    return 0


def readers_gone(handle: int) -> Step[None]:
    """Wait until nobody read-locks a VMA any more."""
    return WaitStep(_drained, (handle,), _no_reader, ("vma_readers", handle))


def _drained(_m: Machine, _task: Task, _handle: int) -> None:
    return None


def _no_reader(m: Machine, _task: Task, handle: int) -> bool:
    return not m.vma_readers.get(handle)
