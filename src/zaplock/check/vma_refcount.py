"""A VMA's reference count and its memory, which another process may have used anew.

Everywhere else a VMA's name is never used twice (`model.vma`), so that a use after free is known as
one. Here VMAs are memory with a free list of one, and who looks a VMA up without a lock may come to
hold another process's. It sees that and lets go, and to let go means to wake the writer that may
wait for it, by the mm that the VMA names: an mm of which the reader is no user.

    6.4 to 6.14   a freed VMA's memory goes after a grace period of RCU: nobody meets another's
    6.15          VMAs are typesafe only (3104138517fc); the count is dropped first, and then the
                  writer is woken: by then it may be done, its process and its mm gone
                  (CVE-2025-38554)
    6.17          the reader takes hold of the other mm while the count still keeps the VMA there
                  (9bbffee67ffd, and 6.15.10, 6.16.1)

Source: mm/mmap_lock.c, include/linux/mmap_lock.h; the race as told in 9bbffee67ffd. Not covered:
the sequence numbers of VMA write locks; a count that overflows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from zaplock.model.rwsem import down_read, down_write, up_read, up_write
from zaplock.model.step import Step, Task, WaitStep, step
from zaplock.model.violations import Invariant, Violation

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.store import Cells

Reuse = Literal["never", "unpinned", "pinned"]
"""When a VMA's memory is used anew, and whether who meets another's holds that mm."""

OURS, THEIRS = 1, 2
"""The mm that is looked at, and the other one."""
SHARED: Final = 7
"""The VMA's memory that both may come to use."""
OTHER: Final = 8
"""What the other process gets where that is not free."""


class CountedVma(NamedTuple):
    """The memory of a VMA: whose it is (0: nobody's), its readers, and whether they are kept out.

    refs: the tree's reference and one a reader; 0 where it is not in a tree.
    """

    mm: int = 0
    refs: int = 0
    excludes: bool = False


def vmas(m: Machine) -> Cells[int, CountedVma]:
    """Return the memory of VMAs."""
    return m.cells("vma_memory")


def trees(m: Machine) -> Cells[int, int]:
    """Return which VMA the tree of each mm has, 0 for none."""
    return m.cells("vma_trees")


def holds(m: Machine) -> Cells[int, int]:
    """Return how many hold each mm (mm_count); 0: it is freed."""
    return m.cells("mm_holds")


def under_rcu(m: Machine) -> Cells[str, int]:
    """Return who reads under RCU."""
    return m.cells("rcu_reader")


def begin(m: Machine) -> None:
    """Let our mm have its VMA, and the other none, when a run starts."""
    vmas(m).put(SHARED, CountedVma(OURS, 1))
    trees(m).put(OURS, SHARED)
    for mm in (OURS, THEIRS):
        holds(m).put(mm, 1)


# Steps of who looks a VMA up


@step
def rcu_read_lock(m: Machine, task: Task) -> None:
    """Begin to read under RCU."""
    under_rcu(m).put("reader", task.tid)


@step
def rcu_read_unlock(m: Machine, _task: Task) -> None:
    """End it."""
    under_rcu(m).put("reader", 0)
    m.wake(("grace period",))


@step
def mas_walk(m: Machine, _task: Task, mm: int) -> int:
    """Find the VMA in an mm's tree."""
    found: int = trees(m).get(mm, 0)
    return found


@step
def vma_start_read(m: Machine, _task: Task, vma: int) -> bool:
    """Count one reader more, unless the VMA is in no tree or a writer keeps readers out."""
    found = vmas(m)[vma]
    if not found.refs or found.excludes:
        return False
    vmas(m).put(vma, found._replace(refs=found.refs + 1))
    return True


@step
def vm_mm(m: Machine, _task: Task, vma: int) -> int:
    """Read whose the VMA is."""
    return vmas(m)[vma].mm


@step
def vma_refcount_put(m: Machine, _task: Task, vma: int) -> None:
    """Count one reader less."""
    found = vmas(m)[vma]
    vmas(m).put(vma, found._replace(refs=found.refs - 1))
    m.wake(("vma", vma))


@step
def rcuwait_wake_up(m: Machine, task: Task, mm: int) -> None:
    """Wake whoever waits in an mm for a VMA's readers."""
    if not holds(m)[mm]:
        raise Violation(
            Invariant.USE_AFTER_FREE, f"{task} wakes the writer of mm {mm}, which is freed"
        )


@step
def mmgrab(m: Machine, task: Task, mm: int) -> None:
    """Hold an mm."""
    if not holds(m)[mm]:
        raise Violation(Invariant.USE_AFTER_FREE, f"{task} takes hold of mm {mm}, which is freed")
    holds(m).put(mm, holds(m)[mm] + 1)


@step
def mmdrop(m: Machine, _task: Task, mm: int) -> None:
    """Let go of an mm; with the last hold it is freed."""
    holds(m).put(mm, holds(m)[mm] - 1)


# Steps of who maps and unmaps


def vma_start_write(vma: int) -> Step[None]:
    """Keep readers out, and wait for those that are in."""
    return WaitStep(_exclude, (vma,), _no_reader, ("vma", vma), announce=_exclude)


def _exclude(m: Machine, _task: Task, vma: int) -> None:
    vmas(m).put(vma, vmas(m)[vma]._replace(excludes=True))


def _no_reader(m: Machine, _task: Task, vma: int) -> bool:
    return vmas(m)[vma].refs == 1


@step
def vma_mark_detached(m: Machine, _task: Task, vma: int) -> None:
    """Take a VMA out of its tree."""
    trees(m).put(vmas(m)[vma].mm, 0)
    vmas(m).put(vma, vmas(m)[vma]._replace(refs=0))


def vm_area_free(vma: int, reuse: Reuse) -> Step[None]:
    """Give a VMA's memory back: at once, or after a grace period."""
    ready = _grace_period if reuse == "never" else _always
    return WaitStep(_free, (vma,), ready, ("grace period",))


def _free(m: Machine, _task: Task, vma: int) -> None:
    vmas(m).put(vma, CountedVma())


def _grace_period(m: Machine, _task: Task, _vma: int) -> bool:
    return not under_rcu(m).get("reader", 0)


def _always(_m: Machine, _task: Task, _vma: int) -> bool:
    return True


@step
def vm_area_alloc(m: Machine, _task: Task, mm: int) -> int:
    """Take a VMA's memory, what was freed last first, and put it into an mm's tree."""
    vma = OTHER if vmas(m)[SHARED].mm else SHARED
    vmas(m).put(vma, CountedVma(mm, 1))
    trees(m).put(mm, vma)
    return vma


# Protocols


async def look_up(vma_locks: bool, reuse: Reuse) -> int:
    """Find and lock our VMA, without the mmap_lock where VMAs have locks; 1 if that worked."""
    if not vma_locks:
        await down_read(("mmap_lock", OURS))
        found = await mas_walk(OURS)
        await up_read(("mmap_lock", OURS))
        return int(found > 0)
    await rcu_read_lock()
    vma = await mas_walk(OURS)
    locked = bool(vma) and await vma_start_read(vma)
    if locked:
        locked = await is_ours(vma, reuse)
        if locked:
            await vma_end_read(vma, OURS)
    await rcu_read_unlock()
    return int(locked)


async def is_ours(vma: int, reuse: Reuse) -> bool:
    """Look whether a VMA that is locked now is still ours; let go of one that is not."""
    mm = await vm_mm(vma)
    if mm == OURS:
        return True
    if reuse == "pinned":
        await mmgrab(mm)
    await vma_end_read(vma, mm)
    if reuse == "pinned":
        await mmdrop(mm)
    return False


async def vma_end_read(vma: int, mm: int) -> None:
    """Let go of a VMA, and wake who waits for that."""
    await vma_refcount_put(vma)
    await rcuwait_wake_up(mm)


async def unmap(mm: int, vma: int, reuse: Reuse) -> None:
    """Take a VMA away, the mmap_lock held for write."""
    await down_write(("mmap_lock", mm))
    await vma_start_write(vma)
    await vma_mark_detached(vma)
    await vm_area_free(vma, reuse)
    await up_write(("mmap_lock", mm))


async def map_unmap_and_exit(reuse: Reuse) -> None:
    """Live in the other mm: map, unmap, and be gone."""
    vma = await vm_area_alloc(THEIRS)
    await unmap(THEIRS, vma, reuse)
    await mmdrop(THEIRS)
