"""What an unmap has left for after the unlock: cut page tables to zap, monitors to tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.mm import CUT_SHIFT, Cut
from zaplock.model.pagetable import zap_cut
from zaplock.model.step import Task, step
from zaplock.model.tlb import gather_tables, tlb_gather_mmu
from zaplock.protocols.teardown import close_vmas, tlb_finish_mmu, unlink_file_vma, vm_unacct_memory
from zaplock.protocols.userfaultfd import userfaultfd_unmap_complete

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents

CUT = -1
"""In the place of a context in a list of unmap events: a cut that is to be zapped first."""


async def unmap_complete(cx: Cx, events: UnmapEvents) -> None:
    """Do what an unmap has left for after the unlock: zap cuts, then tell monitors."""
    for context, cut, _ in events:
        if context == CUT:
            await finish_cut(cx, cut)
    await userfaultfd_unmap_complete(cx, [event for event in events if event[0] != CUT])


async def finish_cut(cx: Cx, cut: int) -> None:
    """Zap what hangs below cut tables and free them, holding nothing."""
    taken = await read_cut(cx.mm, cut)
    batch = await tlb_gather_mmu(cx.mm, taken.first, taken.last)
    for first, last in await runs_of(cx.mm, cut):
        for at in range(first, last, cx.grain or last - first):
            await zap_cut_range(cx.mm, batch, cut, at, min(at + (cx.grain or last - first), last))
    await gather_cut_tables(batch, taken.tables)
    await tlb_finish_mmu(cx, batch)
    unaccounted = 0
    for handle in taken.handles:
        await unlink_file_vma(cx, handle)
        unaccounted += await close_vmas((handle,))
    await forget_cut(cx.mm, cut)
    if unaccounted:
        await vm_unacct_memory(unaccounted)


@step
def read_cut(m: Machine, _task: Task, mm: int, cut: int) -> Cut:
    """Return what was cut out."""
    return m.mm(mm).cuts[cut]


@step
def runs_of(m: Machine, _task: Task, mm: int, cut: int) -> tuple[tuple[int, int], ...]:
    """Return the runs of virtual pages that a cut still maps."""
    base, space = cut << CUT_SHIFT, m.mm(mm)
    taken = space.cuts[cut]
    runs = space.cut_ptes.overlapping(base + taken.first, base + taken.last)
    return tuple((low - base, high - base) for low, high, _ in runs)


@step
def zap_cut_range(
    m: Machine, task: Task, mm: int, batch: int, cut: int, first: int, last: int
) -> None:
    """Give up a part of the pages below cut tables."""
    zap_cut(m, task, m.mm(mm), batch, cut, first, last)


@step
def gather_cut_tables(
    m: Machine, _task: Task, batch: int, tables: tuple[tuple[int, int, int, int], ...]
) -> None:
    """Gather cut tables to be returned."""
    for level, first, last, generation in tables:
        gather_tables(m, batch, level, (first, last, generation))


@step
def forget_cut(m: Machine, _task: Task, mm: int, cut: int) -> None:
    """Nothing is left of a cut."""
    m.mm(mm).cuts.drop(cut)
