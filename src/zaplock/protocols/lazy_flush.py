"""munmap that interrupts nobody: other CPUs forget the translations at a tick of their own.

Kumar, Maass, Kashyap, Veselý, Yan, Kim, Bhattacharjee, Krishna, "LATR: Lazy Translation Coherence"
(ASPLOS 2018). Under the exclusive lock entries are cleared and this CPU's TLB is flushed; the
pages, the page tables and the addresses go to a list. Each CPU flushes what stands there when its
tick comes, and a thread in the background gives back, under the exclusive lock, what all have
flushed. (So it is in the sources, sslab-gatech/latr, arch/x86/mm/tlb.c; there it goes by the clock:
after two seconds, with interrupts for those that have not flushed by then.)

So munmap does not promise what Linux's does. Another thread may reach the old pages for a while
after it has returned. In place of that: a page is not given back, and no mapping stands at an
address, while a CPU translates that address to what was there before. The quarantine is a tombstone
over the range (the search for a gap sees it as occupied, a look-up as a hole), and its pages are
those of a gather that nobody has finished.

Whoever names such an address (MAP_FIXED, mremap onto it, a munmap that reaches over it, a growing
stack or heap) or finds no other has it flushed at once, with interrupts: a choice of this model.
So no two ranges in quarantine overlap. Not covered: its lazy MADV_DONTNEED and page migration, and
its lists of limited length, which fall back to interrupts when they are full. Ticks come in the
order of CPUs' numbers, for one range after the other.
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING, Final

from zaplock.model.flags import page_align
from zaplock.model.rwsem import Lock, down_write, up_write
from zaplock.model.step import SleepStep, Step, Task, WaitStep, step
from zaplock.model.tlb import flush_cpu
from zaplock.protocols.munmap import (
    do_vmi_align_munmap,
    munmap_addr_sanity,
    vms_gather_munmap_vmas,
)
from zaplock.protocols.teardown import (
    Handles,
    begin_unmap,
    close_vmas,
    end_unmap,
    floor_and_ceiling,
    free_pgtables,
    leave_tree_and_books,
    unmap_vmas,
    vm_unacct_memory,
)
from zaplock.protocols.tombstones import give_back

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx, UnmapEvents

TICK_NS: Final = 1_000_000


async def do_munmap_latr(
    cx: Cx, start: int, length: int, events: UnmapEvents, lazily: bool = False
) -> int:
    """Unmap under the exclusive lock that the caller keeps; flush other CPUs later if asked."""
    if not lazily:
        return await do_vmi_align_munmap(cx, start, length, events, False)
    if not munmap_addr_sanity(cx, start, length):
        return -EINVAL
    end = start + page_align(length)
    found, handles = await vms_gather_munmap_vmas(cx, start, end, events)
    if found != 1:
        return found
    bounds = await floor_and_ceiling(cx.mm, start, end)
    await leave_tree(handles)
    gather = await begin_unmap(cx.mm, start, end)
    await unmap_vmas(cx, gather, handles, start, end, False)
    await free_pgtables(cx, gather, handles, start, end, bounds)
    await quarantine(cx.mm, gather, start, end)
    unaccounted = await close_vmas(handles)
    if unaccounted:
        await vm_unacct_memory(unaccounted)
    return 0


@step
def leave_tree(m: Machine, task: Task, handles: Handles) -> None:
    """Take VMAs out of the tree and the books."""
    for handle in handles:
        leave_tree_and_books(m, task, handle)


@step
def quarantine(m: Machine, task: Task, mm: int, gather: int, start: int, end: int) -> None:
    """Flush this CPU, and leave the range, its pages and its tables to the ticks of the others."""
    tlb = m.gathers[gather]
    if tlb.low < tlb.high:
        flush_cpu(m, task.cpu, tlb)
    end_unmap.run(m, task, mm, gather)
    space = m.mm(mm)
    space.add("tlb_flush_pending", -1)
    space.dying.put(start, (end, gather))
    m.wake(("quarantine", mm))


async def ticks(mm: int) -> None:
    """Be the ticks of all CPUs: let each flush what is in quarantine; then give that back.

    The exclusive lock lets who has found no gap under it still see why.
    """
    lock: Lock = ("mmap_lock", mm)
    while True:
        gather = await something_waits(mm)
        await SleepStep(TICK_NS)
        for cpu in await cpus_that_remember():
            await flush_at_tick(gather, cpu)
        await down_write(lock)
        await give_back(mm, gather)
        await up_write(lock)


def something_waits(mm: int) -> Step[int]:
    """Wait until a range is in quarantine, and return its gather."""
    return WaitStep(_first_waiting, (mm,), _waits, ("quarantine", mm), may_last=True)


def _first_waiting(m: Machine, _task: Task, mm: int) -> int:
    dying = m.mm(mm).dying
    return dying[next(iter(dying))][1]


def _waits(m: Machine, _task: Task, mm: int) -> bool:
    return bool(m.mm(mm).dying)


@step
def cpus_that_remember(m: Machine, _task: Task) -> tuple[int, ...]:
    """List the CPUs whose ticks count: those that have any translation."""
    return tuple(m.cpus)


@step
def flush_at_tick(m: Machine, _task: Task, gather: int, cpu: int) -> None:
    """Let one CPU forget a range, if nobody has flushed it at once meanwhile."""
    tlb = m.gathers.get(gather)
    if tlb is not None:
        flush_cpu(m, cpu, tlb)
