"""Which pages are dirty: by an entry that maps them (`Pte.clean` is false), or as a whole.

smaps counts a page as dirty where its own entry is or the page is (PG_dirty): of an anonymous page
that is `Frame.dirty`, of a page of a file `Machine.dirty`. An entry gets dirty when a CPU writes
through it or a fault makes it for a write; a page as a whole where the kernel is told of the write:
by a fault in a shared mapping, write(2), or a pin that was written to. What an entry of a file's
page knows goes to the page when the entry goes; what an entry of an anonymous page knows is lost
then, but for splits of huge pages. What has come back from swap is clean.

Followed of entries of files, and of what has come back from swap, only where
`globals["dirty_bits"]` is set: else such entries are all dirty, a page of a file is as soon as
somebody writes to it, and states that differ by this alone are not told apart.

Sources: fs/proc/task_mmu.c smaps_account; mm/memory.c (set_pte_range, fault_dirty_shared_page,
zap_present_folio_ptes, __copy_present_ptes, do_swap_page, wp_page_copy); mm/rmap.c
try_to_unmap_one; mm/huge_memory.c __split_huge_pmd_locked; mm/gup.c follow_page_pte. Not covered:
writeback, which cleans pages of files on a disk at times of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.mm import Mm, Pte

OF_FILES = frozenset({"file", "shmem", "shmem_thp"})
"""Kinds of entries that map pages of files."""


def follows_dirty(m: Machine) -> bool:
    """Return whether dirty bits of entries are followed where nothing but smaps depends on them."""
    return bool(m.globals.get("dirty_bits", 0))


def unwritten(m: Machine, pte: Pte) -> Pte:
    """Return an entry of a file's page through which nobody has written; of others the same."""
    if pte.kind in OF_FILES and follows_dirty(m):
        return msgspec.structs.replace(pte, clean=True)
    return pte


def forget_dirty(m: Machine, space: Mm, first: int, last: int) -> None:
    """Lose the dirty bits of huge entries that let write, where a change of protection does so.

    (Rule `keeps_huge_dirty`; docs/findings/dirty-huge-page-forgotten.)
    """
    for low, high, pte in space.ptes.overlapping(first, last) if forgets_dirty(m) else ():
        if pte.kind in ("thp", "shmem_thp") and pte.writable and not pte.clean:
            space.ptes.set(low, high, msgspec.structs.replace(pte, clean=True))


def forgets_dirty(m: Machine) -> bool:
    """Return whether changes of protection lose the dirty bits of huge entries."""
    return bool(m.globals.get("forgets_dirty", 0))


def note_written(m: Machine, low: int, high: int) -> None:
    """Note that pages of a file were written to through an entry, which may know of it alone."""
    if not follows_dirty(m):
        soil_file(m, low, high)


def tell_page(m: Machine, low: int, high: int, pte: Pte) -> None:
    """Let pages of a file be dirty as a whole whose entries [low, high) are, which go."""
    if not pte.clean and pte.kind in OF_FILES and follows_dirty(m):
        soil_file(m, low + pte.delta, high + pte.delta)


def soil_file(m: Machine, first: int, last: int) -> None:
    """Let frames of a file be dirty as a whole, and what is in one folio with the first or last."""
    low, high = m.frames.at(first), m.frames.at(last - 1)
    if low is not None:
        first &= -1 << low.order
    if high is not None:
        last = (last - 1 | (1 << high.order) - 1) + 1
    m.dirty.set(first, last, True)
