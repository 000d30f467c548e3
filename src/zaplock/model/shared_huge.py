"""Huge pages of files in memory: folios of the page cache that have more than one page.

MADV_COLLAPSE makes them (protocols.collapse_file), and so do faults and writes (shared_folios). A
mapping that has all 2 MiB at a place where they fit maps them by one entry, without a page table
(to 6.11 also where huge pages are disabled); others do so page by page. A fault in a page table
maps all of a folio, before 6.11 one page of it, and to 6.16 one page where the file has a name.
When such an entry is split, it is gone, and faults bring back what is used. A hole or a truncation
cuts a folio where it begins and ends, each time in halves around the page (`Frame.order` says how
large the parts are; to 6.14 single pages are left), and what lies beyond the end of the file goes
with that.

Sources (6.18): mm/memory.c (do_set_pmd, finish_fault), mm/filemap.c (filemap_map_pmd),
mm/huge_memory.c (__split_huge_pmd_locked, __folio_split), mm/truncate.c
(truncate_inode_partial_folio). Not covered: what reclaim notes of their use; swap of a folio as a
whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from zaplock.model.dirty import soil_file
from zaplock.model.flags import (
    PAGE_SHIFT,
    PAGES_PER_PMD,
    PMD_SIZE,
    VM_ACCESS_FLAGS,
    VM_NOHUGEPAGE,
    VM_UFFD_FLAGS,
)
from zaplock.model.frames import Frame, alloc_frames, change_frames
from zaplock.model.mm import Mm, Pte
from zaplock.model.pagetable import UFFD_WP_MARKER, alloc_tables, drop_entries, install
from zaplock.model.references import read_only
from zaplock.model.step import Task
from zaplock.model.tlb import note_peak

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.vma import Vma

KIND = "shmem_thp"
IN_MEMORY = ("shmem", KIND)
"""Kinds of entries that map pages of files in memory."""

ORDER = 9
"""Of a folio that one entry can map."""
MAPPED = ("all", "unnamed", "none")
"""Of which files a fault maps all of a folio by small entries, by the figure "maps_single"."""


def new_folio(m: Machine, task: Task, order: int = ORDER) -> int:
    """Allocate a folio of 2 ** order pages for a file in memory; return its first frame."""
    pages = 1 << order
    first = alloc_frames(m, task, "shmem", pages, align=pages)
    m.frames.set(first, first + pages, Frame("shmem", 1, 0, order=order))
    return first


def is_fallocated(m: Machine, pfn: int) -> bool:
    """Return whether a page of a file is in a folio that fallocate made and nobody has used yet."""
    frame = m.frames.at(pfn)
    return frame is not None and frame.fallocated


def fill_with_zeroes(m: Machine, pfn: int) -> None:
    """Let the folio of a frame be used: what fallocate has made is zeroes from now on."""
    if is_fallocated(m, pfn):
        first = pfn & -1 << order_at(m, pfn)
        for low, high, frame in m.frames.overlapping(first, first + (1 << order_at(m, pfn))):
            m.frames.set(low, high, msgspec.structs.replace(frame, fallocated=False))


def order_at(m: Machine, pfn: int) -> int:
    """Return how large the folio is that a frame is a page of."""
    frame = m.frames.at(pfn)
    return frame.order if frame is not None else 0


# Mapping


def fits(vma: Vma, address: int) -> bool:
    """Return whether a huge page of a VMA's file can be mapped at `address` by one entry."""
    low = address & -PMD_SIZE
    lies_alike = not ((low >> PAGE_SHIFT) - vma.pgoff_of(low)) % PAGES_PER_PMD
    return lies_alike and vma.start <= low and low + PMD_SIZE <= vma.end


def map_huge(m: Machine, task: Task, vma: Vma, vpn: int, pfn: int, pte: Pte) -> bool:
    """Map the huge page that frame `pfn` is in by one entry, if that can be (do_set_pmd).

    pte: what a small entry would be. Where a page table is in the place, empty or not, it can't.
    """
    space, low = m.mm(vma.mm), vpn - vpn % PAGES_PER_PMD
    if order_at(m, pfn) != ORDER or not fits(vma, vpn << PAGE_SHIFT):
        return False
    if space.tables[1].at(low // PAGES_PER_PMD) is not None:
        return False
    disabled = space.count("thp_disable") == 1  # 2: it is there already, so it is mapped
    if (disabled or vma.flags & VM_NOHUGEPAGE) and not m.globals.get("maps_disabled", 0):
        return False
    alloc_tables(m, task, space, low, low + PAGES_PER_PMD, 2)
    first = pfn - pfn % PAGES_PER_PMD
    change_frames(m, task, first, first + PAGES_PER_PMD, refs=1)
    entry = msgspec.structs.replace(
        pte, kind=KIND, delta=first - low, no_access=not vma.flags & VM_ACCESS_FLAGS
    )
    install(m, task, space, low, low + PAGES_PER_PMD, entry)
    return True


def take_write(space: Mm, first: int, last: int) -> None:
    """Take the write permission of huge entries, which comes back when one is lost and had again.

    So does every change of protection of shared memory whose writes a userfaultfd watches.
    """
    for low, high, pte in space.ptes.overlapping(first, last):
        if pte.kind == KIND and pte.writable:
            space.ptes.set(low, high, msgspec.structs.replace(pte, writable=False))


def range_to_map(m: Machine, vma: Vma, vpn: int, pfn: int) -> tuple[int, int]:
    """Return which virtual pages a fault of the page in frame `pfn` maps: all of a folio if it can.

    It can where nothing of that is mapped yet and no userfaultfd watches (finish_fault).
    """
    first, last = whole_folio(m, vma, vpn, pfn)
    single = m.globals.get("maps_single", 0)
    if single == 2 or (single == 1 and m.files[vma.file].named):
        return vpn, vpn + 1
    if vma.flags & VM_UFFD_FLAGS or m.mm(vma.mm).ptes.any_in(first, last):
        return vpn, vpn + 1
    return first, last


def whole_folio(m: Machine, vma: Vma, vpn: int, pfn: int) -> tuple[int, int]:
    """Return where all of a folio is mapped with the page in frame `pfn` at `vpn`.

    That page alone, where the VMA or its page table has no room for all.
    """
    pages = 1 << order_at(m, pfn)
    at = vpn - pfn % pages
    inside = vma.start >> PAGE_SHIFT <= at and at + pages <= vma.end >> PAGE_SHIFT
    one_table = at // PAGES_PER_PMD == (at + pages - 1) // PAGES_PER_PMD
    return (at, at + pages) if inside and one_table else (vpn, vpn + 1)


def collapsed_entry(m: Machine, writable: bool) -> Pte:
    """Return what maps a page of a file that nobody has asked for."""
    return read_only(m, Pte("shmem", 0, writable))


# Unmapping and cutting


def unmap_pages(m: Machine, task: Task, file: int, first: int, last: int) -> None:
    """Take pages [first, last) of a file out of every mapping (try_to_unmap).

    Copies that private mappings have made of them stay. What a userfaultfd has write-protected
    leaves a marker.
    """
    for space, low, high in mappings(m, task, file, first, last):
        for start, end, pte in space.ptes.overlapping(low, high):
            if pte.kind in IN_MEMORY:
                if pte.kind == "shmem":
                    note_peak(m, space)
                drop_entries(m, task, space, start, end, pte)
                if pte.wp:
                    space.ptes.set(start, end, UFFD_WP_MARKER)


def mappings(m: Machine, task: Task, file: int, first: int, last: int) -> list[tuple[Mm, int, int]]:
    """List where VMAs have pages [first, last) of a file: address space and virtual pages.

    Where a VMA's page tables were cut out is somebody else by now (protocols.cut_munmap).
    """
    from zaplock.model.vma import vma_of

    found = []
    for handle in m.i_mmap(file):
        vma = vma_of(m, task, handle)
        shift = (vma.start >> PAGE_SHIFT) - vma.pgoff
        low = max(first + shift, vma.start >> PAGE_SHIFT)
        high = min(last + shift, vma.end >> PAGE_SHIFT)
        if low < high and not vma.cut:
            found.append((m.mm(vma.mm), low, high))
    return found


def folio_around(m: Machine, file: int, pgoff: int) -> tuple[int, int]:
    """Return which pages of a file are one folio with page `pgoff`, cached or not."""
    delta = m.page_cache(file).at(pgoff)
    pages = 1 << order_at(m, pgoff + delta) if delta is not None else 1
    begin = pgoff & -pages
    return begin, begin + pages


def cut_at(m: Machine, task: Task, file: int, pgoff: int) -> None:
    """Cut the folio that has page `pgoff` of a file around it: halves, quarters, down to the page.

    All of the folio is unmapped, and dirty before that, as a part of it is to be zeroes.
    """
    low, high = folio_around(m, file, pgoff)
    delta = m.page_cache(file).at(pgoff)
    if delta is None or high - low == 1:
        return
    soil_file(m, low + delta, high + delta)
    unmap_pages(m, task, file, low, high)
    if m.globals.get("cuts_evenly", 0):
        set_order(m, low + delta, high + delta, 0)
        return
    order = order_at(m, pgoff + delta)
    while order:
        order -= 1
        middle = low + (1 << order)
        other = (middle, high) if pgoff < middle else (low, middle)
        set_order(m, other[0] + delta, other[1] + delta, order)
        low, high = (low, middle) if pgoff < middle else (middle, high)
    set_order(m, low + delta, high + delta, 0)


def split_evenly(m: Machine, task: Task, file: int, first: int, last: int) -> None:
    """Make single pages of the folio that has pages [first, last) of a file (split_folio)."""
    unmap_pages(m, task, file, first, last)
    for low, high, delta in m.page_cache(file).overlapping(first, last):
        set_order(m, low + delta, high + delta, 0)


def set_order(m: Machine, low: int, high: int, order: int) -> None:
    """Let frames be pages of folios of 2 ** order pages."""
    for start, end, frame in m.frames.overlapping(low, high):
        m.frames.set(start, end, msgspec.structs.replace(frame, order=order))
