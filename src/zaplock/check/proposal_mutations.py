"""What protects a munmap that zaps under no lock: each of its safeguards taken away in turn."""

from __future__ import annotations

from errno import EINTR
from typing import Any

from zaplock.check.mutations import Mutation, Postpone, Skip, UnlockLast
from zaplock.model.filters import Rule, Steps
from zaplock.model.flags import PMD_SIZE
from zaplock.model.machine import Machine
from zaplock.model.step import Step, Task, step
from zaplock.model.vma import vma_of
from zaplock.protocols.cut_munmap import cut_tables
from zaplock.protocols.design import Design
from zaplock.protocols.placement import get_unmapped_area
from zaplock.protocols.teardown import (
    floor_and_ceiling,
    free_pgd_range,
    remove_vma,
    zap_pte_range,
)
from zaplock.protocols.tombstones import readers_gone


def has_tombstones(d: Design) -> bool:
    return d.tombstones


def cuts_tables(d: Design) -> bool:
    return d.cuts


class DrainUnderWrite(Rule):
    """Wait for the readers of the VMAs before the lock is given up, as 6.18 does."""

    def __call__(self, step: Step[Any]) -> Steps:
        if step.name == "bury":
            for handle in step.args[1]:
                yield readers_gone(handle)
        return (yield step)


class FreeBordersEarly(Rule):
    """Free the page tables shared with the outside together with the others, under no lock."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, step: Step[Any]) -> Steps:
        if step.name == "free_pgd_range" and not self.done:
            self.done = True
            mm, batch, start, end, _ = step.args
            bounds = yield floor_and_ceiling(mm, start, end)
            return (yield free_pgd_range(mm, batch, start, end, bounds))
        return (yield step)


class EraseFirst(Rule):
    """Take the tombstone away before the zap begins."""

    def __call__(self, step: Step[Any]) -> Steps:
        if step.name == "begin_unmap":
            yield erase_tombstone(step.args[0], step.args[1])
        if step.name == "take_tombstone":
            return None
        return (yield step)


class BlindGapSearch(Rule):
    """Look for a gap without seeing tombstones."""

    def __call__(self, step: Step[Any]) -> Steps:
        if step.name == "get_unmapped_area":
            return (yield blind_unmapped_area(*step.args))
        return (yield step)


class SettleTwice(Rule):
    """Take the pages out of the books again as the VMA is closed."""

    def __call__(self, step: Step[Any]) -> Steps:
        if step.name == "close_vma":
            return (yield remove_vma(*step.args))
        return (yield step)


class BoundsWithoutTombstones(Rule):
    """Take floor and ceiling from living VMAs only."""

    def __call__(self, step: Step[Any]) -> Steps:
        if step.name == "bounds_beside_tombstones":
            return (yield floor_and_ceiling(*step.args))
        return (yield step)


class CutTooMuch(Rule):
    """Cut the page tables that reach out of the range, too."""

    def __call__(self, step: Step[Any]) -> Steps:
        if step.name == "cut_tables":
            mm, batch, handles, start, end = step.args
            low, high = start // PMD_SIZE * PMD_SIZE, -(-end // PMD_SIZE) * PMD_SIZE
            return (yield cut_tables(mm, batch, handles, low, high))
        return (yield step)


class TrustTheList(Rule):
    """Let truncation zap at the addresses of the VMAs that it has found, whatever is there now."""

    def __call__(self, step: Step[Any]) -> Steps:
        if step.name == "zap_unless_cut":
            return (yield zap_at(*step.args))
        return (yield step)


@step
def zap_at(m: Machine, task: Task, handle: int, gather: int, *args: Any) -> bool:
    """Zap at a VMA's addresses without a look whether it was cut."""
    return zap_pte_range.run(m, task, vma_of(m, task, handle).mm, gather, *args)


@step
def erase_tombstone(m: Machine, _task: Task, mm: int, start: int) -> None:
    """Take a tombstone away too early."""
    if start in m.mm(mm).dying:
        m.mm(mm).dying.drop(start)


@step
def blind_unmapped_area(m: Machine, task: Task, mm: int, *args: Any) -> int:
    """Look for a gap as if nothing were dying."""
    dying = m.mm(mm).dying
    held = {start: dying[start] for start in dying}
    for start in held:
        dying.drop(start)
    placed = get_unmapped_area.run(m, task, mm, *args)
    for start, value in held.items():
        dying.put(start, value)
    return placed


MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "drain-under-write",
        "waits for the VMAs' readers under the exclusive lock (a stall, no danger)",
        has_tombstones,
        ("bounded-hold",),
        rule=DrainUnderWrite,
    ),
    Mutation(
        "split-under-readers",
        "does not see to it that the VMAs to be split have no readers before it takes the lock",
        has_tombstones,
        ("bounded-hold",),
        rule=lambda: Skip("exclude_readers", 0),
    ),
    Mutation(
        "no-drain",
        "zaps while readers are still inside the VMAs",
        has_tombstones,
        ("munmap-fault-gup",),
        rule=lambda: Skip("_drained"),
    ),
    Mutation(
        "borders-freed-early",
        "frees page tables shared with the outside under no lock",
        has_tombstones,
        ("dying-neighbours", "dying-table"),
        rule=FreeBordersEarly,
    ),
    Mutation(
        "bounds-without-tombstones",
        "frees page tables that another dying range still needs",
        has_tombstones,
        ("dying-neighbours",),
        rule=BoundsWithoutTombstones,
    ),
    Mutation(
        "erased-before-flush",
        "takes the tombstone away before the range is zapped and flushed",
        has_tombstones,
        ("munmap-reuse",),
        rule=EraseFirst,
    ),
    Mutation(
        "tombstone-unseen-by-gap-search",
        "an mmap is placed in a dying range",
        has_tombstones,
        ("dying-gap",),
        rule=BlindGapSearch,
    ),
    Mutation(
        "nobody-gives-way",
        "a second munmap, a stack or a heap does not wait for a dying range",
        has_tombstones,
        ("dying-twice",),
        rule=lambda: Skip("dying_in", ()),
    ),
    Mutation(
        "fails-instead-of-waiting",
        "who needs a dying range fails instead of waiting for it",
        has_tombstones,
        ("dying-stack",),
        rule=lambda: Skip("_gave_way", EINTR),
    ),
    Mutation(
        "unlink-after-free",
        "the VMAs leave their file's rmap only after their page tables are gone",
        has_tombstones,
        ("munmap-file",),
        rule=lambda: Postpone("unlink_file", "close_vma"),
    ),
    Mutation(
        "books-settled-twice",
        "the pages leave the books again when the VMA is closed",
        has_tombstones,
        ("dying-twice",),
        rule=SettleTwice,
    ),
    Mutation(
        "no-tombstone-taken",
        "leaves the tombstone",
        has_tombstones,
        ("dying-twice",),
        rule=lambda: Skip("take_tombstone"),
    ),
    Mutation(
        "cut-too-much",
        "cuts page tables that neighbours share",
        cuts_tables,
        ("cut-fixed", "munmap-fault-gup"),
        rule=CutTooMuch,
    ),
    Mutation(
        "cut-not-flushed",
        "gives the lock back without a flush",
        cuts_tables,
        ("cut-fixed", "munmap-reuse"),
        rule=lambda: Skip("tlb_begin_finish"),
    ),
    Mutation(
        "borders-not-zapped",
        "leaves the entries at both ends",
        cuts_tables,
        ("munmap-reuse",),
        rule=lambda: Skip("zap_borders"),
    ),
    Mutation(
        "cut-under-readers",
        "does not keep the readers of its VMAs out before it takes the lock",
        cuts_tables,
        ("bounded-hold",),
        rule=lambda: Skip("exclude_readers", 0),
    ),
    Mutation(
        "cut-zapped-under-write",
        "zaps what was cut out before it gives the lock back",
        cuts_tables,
        ("bounded-cut",),
        rule=lambda: UnlockLast("cut_tables"),
    ),
    Mutation(
        "cut-never-zapped",
        "forgets the pages below the tables that it has cut out",
        cuts_tables,
        ("cut-twice",),
        rule=lambda: Skip("zap_cut_range"),
    ),
    Mutation(
        "truncate-passes-cuts",
        "truncation does not wait for cut page tables that still map the file",
        cuts_tables,
        ("cut-truncate",),
        rule=lambda: Skip("cut_vmas", False),
    ),
    Mutation(
        "truncate-trusts-its-list",
        "truncation zaps where its VMAs were, though new ones may be there by now",
        cuts_tables,
        ("cut-truncate",),
        rule=TrustTheList,
    ),
    Mutation(
        "cut-not-forgotten",
        "keeps the note of what it has cut out",
        cuts_tables,
        ("dying-backlog",),
        rule=lambda: Skip("forget_cut"),
    ),
    Mutation(
        "cut-tables-not-freed",
        "never gives the cut page tables back",
        cuts_tables,
        rule=lambda: Skip("gather_cut_tables"),
        equivalent="the books count a table out when it is cut; nobody counts what is returned",
    ),
)
