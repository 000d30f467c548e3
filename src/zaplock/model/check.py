"""The books of a machine, counted again from nothing.

Every counter of every address space against its VMAs, page-table entries and page tables; every
frame's references and mappings against who is there to hold them; Committed_AS against what is
charged. `check` is called after every operation by tests and scripts, and at the end of every
explored path. It says which figure is off, by how much, in which mm.
"""

from __future__ import annotations

import itertools
from collections import Counter as Tally
from collections.abc import Iterator
from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT, PAGE_SIZE, VM_ACCOUNT, VM_LOCKED
from zaplock.model.mm import Counter, Mm
from zaplock.model.pagetable import COUNTED, FIRST_LEVEL_OF, RSS
from zaplock.model.shared_huge import folio_around
from zaplock.model.store import OrderedCells
from zaplock.model.violations import Invariant, Violation
from zaplock.model.vma import Vma, account_parts

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

RECOUNTED: tuple[Counter, ...] = (
    "total_vm", "locked_vm", "map_count", "pgtables_bytes", "data_vm", "exec_vm", "stack_vm",
    "rss_anon", "rss_file", "rss_shmem", "swap_ents", "tlb_flush_pending",
)  # fmt: skip


def check(m: Machine) -> None:
    """Verify a machine at rest (no operation under way); raises a Violation with all that is off.

    Also the store itself, which is slower: for tests.
    """
    for container in m.store.containers():
        if isinstance(container, OrderedCells):
            container.check()
    check_books(m)


def check_books(m: Machine) -> None:
    """Verify the books of a machine at rest; raises a Violation with all that is off."""
    found = list(books(m))
    if found:
        first = found[0].invariant
        alike = [one.message for one in found if one.invariant is first]
        raise Violation(first, "; ".join(alike))


def books(m: Machine) -> Iterator[Violation]:
    """Yield every difference between a figure and what there is to count."""
    for space in m.mms.values():
        yield from space_books(m, space)
    yield from commitments(m)
    yield from caches(m)
    yield from frame_books(m)


def unbalanced(message: str) -> Violation:
    """Make the violation of a figure that a recount doesn't confirm."""
    return Violation(Invariant.BOOKS_BALANCE, message)


def space_books(m: Machine, space: Mm) -> Iterator[Violation]:
    """Recount one address space: order, counters, page tables, what is left over."""
    vmas = vmas_in_order(m, space)
    yield from tree_order(space, vmas)
    expected = recounted(space, vmas)
    for counter in RECOUNTED:
        if space.count(counter) != expected[counter]:
            yield unbalanced(
                f"mm {space.mm}: {counter} is {space.count(counter)}, "
                f"a recount gives {expected[counter]}"
            )
    yield from table_books(space, vmas)
    yield from left_over(m, space, vmas)


def recounted(space: Mm, vmas: list[Vma]) -> Tally[Counter]:
    """Count what the counters of an address space should be."""
    expected: Tally[Counter] = Tally({"map_count": len(vmas)})
    for vma in vmas:
        expected["total_vm"] += vma.nr_pages
        expected["locked_vm"] += vma.nr_pages if vma.flags & VM_LOCKED else 0
    expected["locked_vm"] += space.count("locked_vm_leaked")  # see move_vma.keep_empty
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
    return expected


def left_over(m: Machine, space: Mm, vmas: list[Vma]) -> Iterator[Violation]:
    """Yield what an operation that has ended should have taken away."""
    for handle in m.vmas:
        vma = m.vmas[handle]
        if isinstance(vma, Vma) and vma.mm == space.mm and not vma.attached:
            yield unbalanced(f"{vma} is out of the tree and was never freed")
    if vmas and space.count("users") <= 0:
        yield unbalanced(f"mm {space.mm} has no users left, but {len(vmas)} VMAs")
    for low, high in space.teardown.data.values():
        yield unbalanced(f"[{low:#x}, {high:#x}) is still being torn down")
    for cut in space.cuts:
        yield unbalanced(f"the cut of VMAs {space.cuts[cut].handles} was never finished")
    waiting = set()
    for start, (end, handle) in space.dying.data.items():
        if handle in m.gathers:
            waiting.add(handle)  # its pages wait for ticks, and are counted by that gather
        else:
            yield unbalanced(f"the tombstone of [{start:#x}, {end:#x}) was never taken away")
    for handle, gather in m.gathers.data.items():
        if gather.mm == space.mm and handle not in waiting:
            low, high = gather.first << PAGE_SHIFT, gather.last << PAGE_SHIFT
            yield unbalanced(f"what was gathered of [{low:#x}, {high:#x}) was never given back")


def vmas_in_order(m: Machine, space: Mm) -> list[Vma]:
    """List the VMAs of the tree; each must exist."""
    vmas = []
    for start in space.tree.order:
        vma = m.vmas[space.tree.data[start]]
        if not isinstance(vma, Vma) or not vma.attached or vma.start != start:
            raise Violation(Invariant.USE_AFTER_FREE, f"the tree holds {vma} at {start:#x}")
        vmas.append(vma)
    return vmas


def tree_order(space: Mm, vmas: list[Vma]) -> Iterator[Violation]:
    """Verify that VMAs are whole pages, not empty, in bounds and apart."""
    end = 0
    for vma in vmas:
        if not end <= vma.start < vma.end <= space.limits.task_size + PAGE_SIZE:
            yield unbalanced(f"{vma} is empty, out of bounds, or overlaps the one before")
        if (vma.start | vma.end) % PAGE_SIZE:
            yield unbalanced(f"{vma} is not of whole pages")
        end = vma.end


class _Parts(Mm):
    """Counters to recount exec_vm, stack_vm and data_vm into."""

    __slots__ = ("counted",)

    counted: Tally[Counter]

    def __init__(self) -> None:
        object.__setattr__(self, "counted", Tally())

    def add(self, counter: Counter, amount: int) -> None:
        self.counted[counter] += amount


def parts(vmas: list[Vma]) -> Tally[Counter]:
    """Recount exec_vm, stack_vm and data_vm."""
    space = _Parts()
    for vma in vmas:
        account_parts(space, vma.flags, vma.nr_pages)
    return space.counted


def table_books(space: Mm, vmas: list[Vma]) -> Iterator[Violation]:
    """Verify that every entry lies in a VMA and in page tables that are there."""
    for start in space.ptes.order:
        end, pte = space.ptes.data[start]
        covered = sum(
            max(0, min(end, vma.end >> PAGE_SHIFT) - max(start, vma.start >> PAGE_SHIFT))
            for vma in vmas
        )
        if covered != end - start:
            yield unbalanced(
                f"mm {space.mm}: {pte.kind} entries at {start << PAGE_SHIFT:#x} outside all VMAs"
            )
        for level, tables in space.tables.items():
            if level < FIRST_LEVEL_OF.get(pte.kind, 1):
                continue
            low, high = start >> 9 * level, (end - 1 >> 9 * level) + 1
            if tables.total(low, high) != high - low:
                yield Violation(
                    Invariant.NO_LIVE_PTE_IN_FREED_TABLE,
                    f"mm {space.mm}: entries at {start << PAGE_SHIFT:#x} in a table that is gone",
                )


def commitments(m: Machine) -> Iterator[Violation]:
    """Recount Committed_AS: private memory by its VMAs, shared by its files."""
    charged = sum(
        vma.nr_pages
        for space in m.mms.values()
        for vma in vmas_in_order(m, space)
        if vma.flags & VM_ACCOUNT
    )
    for number, file in m.files.data.items():
        if file.refs > 0:
            charged += file.charged
            if file.charged_by_page:
                charged += sum(end - at for at, (end, _) in m.page_cache(number).data.items())
    charged += m.globals.get("committed_forgotten", 0)
    committed = m.globals.get("committed_as", 0)
    if committed != charged:
        yield unbalanced(f"Committed_AS is {committed}, a recount gives {charged}")


def caches(m: Machine) -> Iterator[Violation]:
    """Verify that no page cache reaches beyond the end of its file, but for the last folio's."""
    for file in m.files:
        pages = -(-m.files[file].size >> PAGE_SHIFT)
        for _, (end, _) in m.page_cache(file).data.items():
            if end > pages and folio_around(m, file, end - 1)[0] >= pages:
                yield unbalanced(
                    f"the page cache of file {file} reaches to page {end}, the file to {pages}"
                )


def frame_books(m: Machine) -> Iterator[Violation]:
    """Verify the references and mappings of every frame against those that exist."""
    maps: Tally[int] = Tally()
    refs: Tally[int] = Tally()

    def count(into: Tally[int], first: int, last: int, by: int = 1) -> None:
        into[first] += by
        into[last] -= by

    for space in m.mms.values():
        for start, (end, pte) in space.ptes.data.items():
            if pte.kind in COUNTED:
                count(maps, start + pte.delta, end + pte.delta)
            if pte.kind in COUNTED or pte.kind == "swap":
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
            what = "a frame that is free," if frame is None else f"{frame.kind} frame"
            yield unbalanced(
                f"{what} {low:#x} has {have[0]} references and {have[1]} mappings, "
                f"a recount gives {seen_refs} and {seen_maps}"
            )
