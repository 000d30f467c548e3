"""Page-table walks of those who hold the lock for read: find the table, then read in it.

Two steps, since a walker has nothing between them but the lock that it holds and the VMA that it
found: whoever frees the table meanwhile has freed it under the walker. `get_user_pages_fast` walks
with interrupts off, which keeps tables in place, so its walk is one step (`gup.follow_page`).

Where page tables are freed under read (6.14 on: `Design.reclaims_tables`), a walker looks again
under RCU whether its table is in place still, and finds nothing there otherwise.

Sources: mm/gup.c follow_page_mask, mm/pagewalk.c, mm/pgtable-generic.c __pte_offset_map_lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zaplock.model.flags import PAGE_SHIFT
from zaplock.model.mm import Pte
from zaplock.model.step import Task, step
from zaplock.model.violations import Invariant, Violation
from zaplock.model.vma import lookup, vma_of, walked_vma

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.protocols.design import Cx

PMD_BITS = 9


class FoundTable(NamedTuple):
    """The lowest page table over an address, where a walker stands; generation 0: there is none.

    retries: is a table that went meanwhile looked for, and not used?
    """

    mm: int
    level: int
    generation: int
    retries: bool = False


@step
def vma_lookup(m: Machine, task: Task, mm: int, address: int) -> int:
    """Return the VMA that covers an address, or 0."""
    handle = lookup(m, m.mm(mm), address)
    return handle if handle and vma_of(m, task, handle).start <= address else 0


@step
def pte_offset(m: Machine, task: Task, handle: int, address: int, retries: bool) -> FoundTable:
    """Find the page table over an address of a VMA, which must cover it still."""
    vma = walked_vma(m, task, handle, address)
    return table_over(m, vma.mm, address, retries)


@step
def pte_offset_anywhere(m: Machine, _task: Task, mm: int, address: int) -> FoundTable:
    """Find the page table over an address that no VMA was looked up for."""
    return table_over(m, mm, address, False)


def table_over(m: Machine, mm: int, address: int, retries: bool) -> FoundTable:
    """Return the lowest page table over an address."""
    vpn = address >> PAGE_SHIFT
    for level in (1, 2):
        generation = m.mm(mm).tables[level].at(vpn >> PMD_BITS * level)
        if generation is not None:
            return FoundTable(mm, level, generation, retries)
    return FoundTable(mm, 0, 0, retries)


def entry_at(m: Machine, task: Task, table: FoundTable, address: int) -> Pte | None:
    """Read the entry of an address in a table that was found before, if that is a table still."""
    if not is_in_place(m, task, table, address):
        return None
    return m.mm(table.mm).ptes.at(address >> PAGE_SHIFT)


def is_in_place(m: Machine, task: Task, table: FoundTable, address: int) -> bool:
    """Return whether a walker's table is there; one that was freed is a violation."""
    if not table.generation:
        return False
    at = address >> PAGE_SHIFT + PMD_BITS * table.level
    if m.mm(table.mm).tables[table.level].at(at) == table.generation:
        return True
    if table.retries:
        return False
    raise Violation(
        Invariant.USE_AFTER_FREE,
        f"{task} reads the entry of {address:#x} in a page table that was freed under its walk",
    )


async def find_table(cx: Cx, mm: int, address: int) -> FoundTable | None:
    """Walk to the page table over an address under a shared hold; None where no VMA covers it."""
    handle = await vma_lookup(mm, address)
    if not handle:
        return None
    return await pte_offset(handle, address, cx.design.reclaims_tables)
