"""Recount everything: every counter, reference and table of a model against what is really there.

`check` is called after every operation by the tests and at the end of every explored path. It
raises a Violation that says which figure is off, by how much, in which mm.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT, PAGE_SIZE, VM_LOCKED
from zaplock.model.mm import Mm
from zaplock.model.pagetable import COUNTED, FIRST_LEVEL_OF, RSS
from zaplock.model.store import OrderedCells
from zaplock.model.violations import Invariant, Violation
from zaplock.model.vma import Vma, account_parts

if TYPE_CHECKING:
    from zaplock.model.machine import Machine


def check(m: Machine) -> None:
    """Verify every invariant of a machine at rest (no gather under way, nothing detached)."""
    for container in m.store.containers():
        if isinstance(container, OrderedCells):
            container.check()
    for space in m.mms.values():
        check_space(m, space)
    check_frames(m)


def check_space(m: Machine, space: Mm) -> None:
    """Verify one address space: order, counters, page tables."""
    vmas = vmas_in_order(m, space)
    check_tree(space, vmas)
    expected: Counter[str] = Counter(map_count=len(vmas))
    for vma in vmas:
        expected["total_vm"] += vma.nr_pages
        expected["locked_vm"] += vma.nr_pages if vma.flags & VM_LOCKED else 0
    expected["locked_vm"] += space.count("locked_vm_leaked")  # see mremap.keep_empty
    expected.update(parts(vmas))
    for start, (end, pte) in space.ptes.data.items():
        if pte.kind in RSS:
            expected[RSS[pte.kind]] += end - start
    expected["pgtables_bytes"] = PAGE_SIZE * sum(
        end - start
        for level, tables in space.tables.items()
        if level < 4
        for start, (end, _) in tables.data.items()
    )
    for counter in ("total_vm", "locked_vm", "map_count", "pgtables_bytes", "data_vm", "exec_vm",
                    "stack_vm", "rss_anon", "rss_file", "rss_shmem"):  # fmt: skip
        if space.count(counter) != expected[counter]:
            raise Violation(
                Invariant.BOOKS_BALANCE,
                f"mm {space.mm}: {counter} is {space.count(counter)}, "
                f"a recount gives {expected[counter]}",
            )
    check_tables(space, vmas)


def vmas_in_order(m: Machine, space: Mm) -> list[Vma]:
    """List the VMAs of the tree; each must exist."""
    vmas = []
    for start in space.tree.order:
        vma = m.vmas[space.tree.data[start]]
        if not isinstance(vma, Vma) or not vma.attached or vma.start != start:
            raise Violation(Invariant.USE_AFTER_FREE, f"the tree holds {vma} at {start:#x}")
        vmas.append(vma)
    return vmas


def check_tree(space: Mm, vmas: list[Vma]) -> None:
    """Verify that VMAs are whole pages, not empty, in bounds and apart."""
    end = 0
    for vma in vmas:
        assert end <= vma.start < vma.end <= space.limits.task_size + PAGE_SIZE, str(vma)
        assert not (vma.start | vma.end) % PAGE_SIZE, str(vma)
        end = vma.end


class _Parts(Mm):
    """Counters to recount exec_vm, stack_vm and data_vm into."""

    __slots__ = ("counted",)

    counted: Counter[str]

    def __init__(self) -> None:
        object.__setattr__(self, "counted", Counter())

    def add(self, counter: str, amount: int) -> None:
        self.counted[counter] += amount


def parts(vmas: list[Vma]) -> Counter[str]:
    """Recount exec_vm, stack_vm and data_vm."""
    space = _Parts()
    for vma in vmas:
        account_parts(space, vma.flags, vma.file, vma.nr_pages)
    return space.counted


def check_tables(space: Mm, vmas: list[Vma]) -> None:
    """Verify that every entry lies in a VMA and in a page table, and each table near a VMA."""
    for start in space.ptes.order:
        end, pte = space.ptes.data[start]
        covered = sum(
            max(0, min(end, vma.end >> PAGE_SHIFT) - max(start, vma.start >> PAGE_SHIFT))
            for vma in vmas
        )
        if covered != end - start:
            raise Violation(
                Invariant.BOOKS_BALANCE,
                f"mm {space.mm}: {pte.kind} entries at {start << PAGE_SHIFT:#x} outside all VMAs",
            )
        for level, tables in space.tables.items():
            if level < FIRST_LEVEL_OF.get(pte.kind, 1):
                continue
            low, high = start >> 9 * level, (end - 1 >> 9 * level) + 1
            if tables.total(low, high) != high - low:
                raise Violation(
                    Invariant.NO_LIVE_PTE_IN_FREED_TABLE,
                    f"mm {space.mm}: entries at {start << PAGE_SHIFT:#x} in a table that is gone",
                )


def check_frames(m: Machine) -> None:
    """Verify the references and mappings of every frame against those that exist."""
    maps: Counter[int] = Counter()
    refs: Counter[int] = Counter()

    def count(into: Counter[int], first: int, last: int, by: int = 1) -> None:
        into[first] += by
        into[last] -= by

    for space in m.mms.values():
        for start, (end, pte) in space.ptes.data.items():
            if pte.kind in COUNTED:
                count(maps, start + pte.delta, end + pte.delta)
                count(refs, start + pte.delta, end + pte.delta)
    for cache in m.page_caches():
        for start, (end, delta) in cache.data.items():
            count(refs, start + delta, end + delta)
    for gather in m.gathers.data.values():
        for first, last in gather.pages:
            count(refs, first, last)
    for frame_number, pins in m.pins.data.items():
        count(refs, frame_number, frame_number + 1, pins)
    edges = sorted({*maps, *refs, *m.frames.order, *(end for end, _ in m.frames.data.values())})
    seen_maps = seen_refs = 0
    for low, _ in itertools.pairwise(edges):
        seen_maps += maps[low]
        seen_refs += refs[low]
        frame = m.frames.at(low)
        have = (0, 0) if frame is None else (frame.refs, frame.maps)
        if have != (seen_refs, seen_maps):
            raise Violation(
                Invariant.BOOKS_BALANCE,
                f"frame {low:#x} has {have[0]} references and {have[1]} mappings, "
                f"a recount gives {seen_refs} and {seen_maps}",
            )
