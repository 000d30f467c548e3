"""Which pages of its file a fault of a mapping maps: its own, and those cached around it.

Sources: mm/memory.c (do_read_fault, do_cow_fault, do_shared_fault, do_fault_around),
mm/filemap.c filemap_map_pages.
"""

from __future__ import annotations

from signal import SIGBUS
from typing import TYPE_CHECKING

from zaplock.model.anonymous_fault import map_new
from zaplock.model.dirty import soil_file
from zaplock.model.fault_results import ALONE, MAJOR, PUNCHED, ask_monitor
from zaplock.model.file_changes import joins_waiters
from zaplock.model.files import fill_cache
from zaplock.model.flags import (
    PAGE_SHIFT,
    PAGES_PER_PMD,
    VM_HUGETLB,
    VM_PFNMAP,
    VM_SHARED,
    VM_UFFD_MINOR,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
    VM_WRITE,
)
from zaplock.model.frames import change_frames
from zaplock.model.mm import Mm, Pte, pte_of
from zaplock.model.pagetable import alloc_tables, install
from zaplock.model.references import read_only, watches_writes
from zaplock.model.shared_folios import folio_page, makes_folios
from zaplock.model.shared_huge import is_fallocated, map_huge, range_to_map, whole_folio
from zaplock.model.step import Task
from zaplock.model.swap import is_swapped
from zaplock.model.vma import Vma

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

FAULT_AROUND_PAGES = 16
_PAGE_BY_PAGE = VM_HUGETLB | VM_PFNMAP | VM_UFFD_MISSING | VM_UFFD_MINOR | VM_UFFD_WP


def map_file_page(m: Machine, task: Task, vma: Vma, space: Mm, vpn: int, write: bool) -> int:
    """Map a page of a VMA's file, and all of its folio if it can.

    Returns 0, a signal, USERFAULT, MAJOR or PUNCHED.
    """
    pgoff = vma.pgoff_of(vpn << PAGE_SHIFT)
    file = m.files[vma.file]
    if file.kind == "device":
        return -SIGBUS
    if file.kind == "shmem" and joins_waiters(m, task, vma.file, pgoff):
        return PUNCHED
    shared = bool(vma.flags & VM_SHARED)
    if pgoff << PAGE_SHIFT >= file.size:
        return -SIGBUS
    if vma.flags & VM_UFFD_MISSING and m.page_cache(vma.file).at(pgoff) is None:
        return ask_monitor(m, vma)
    if vma.flags & VM_UFFD_MINOR and m.page_cache(vma.file).at(pgoff) is not None:
        return ask_monitor(m, vma)
    if file.read_ns and m.page_cache(vma.file).at(pgoff) is None:
        return MAJOR
    pfn = folio_page(m, task, vma.file, pgoff, vma)
    m.spend("fault_file")
    if write and not shared:
        alloc_tables(m, task, space, vpn, vpn + 1)
        m.spend("fault_cow")
        map_new(m, task, space, vpn, m.content.at(pfn) or 0)
        return 0
    kind = "shmem" if file.kind == "shmem" else "file"
    writable = shared and (write or stays_writable(m, vma, kind))
    mapped = pte_of(kind, pfn - vpn, writable)
    mapped = mapped if write else read_only(m, mapped)
    if not map_huge(m, task, vma, vpn, pfn, mapped):
        first, last = range_to_map(m, vma, vpn, pfn)
        alloc_tables(m, task, space, first, last)
        change_frames(m, task, first + mapped.delta, last + mapped.delta, refs=1)
        install(m, task, space, first, last, mapped)
    if write:
        soil_file(m, pfn, pfn + 1)
    return 0


def stays_writable(m: Machine, vma: Vma, kind: str) -> bool:
    """Return whether even a read fault makes an entry that can be written through.

    So it is where nobody has to be told of the first write (vma_wants_writenotify): in memory, and
    not where that would make it soft-dirty, or where a userfaultfd watches writes.
    """
    if watches_writes(m, vma.flags) or vma.flags & VM_UFFD_WP:
        return False
    return kind == "shmem" and vma.flags & (VM_SHARED | VM_WRITE) == VM_SHARED | VM_WRITE


def maps_around(m: Machine, vma: Vma) -> bool:
    """Return whether a read fault maps what the file has around its page (vm_ops->map_pages).

    A segment of System V shared memory does not, nor what a monitor watches more than for holes.
    """
    watched = vma.flags & (VM_UFFD_WP | VM_UFFD_MINOR)
    return not watched and not m.files[vma.file].counts_mappings


def map_around(m: Machine, task: Task, vma: Vma, space: Mm, vpn: int) -> int:
    """Map the cached pages around a read fault (do_fault_around): 0 if its own was one, or ALONE.

    The page-table lock is let go of before the page itself is had and mapped (finish_fault).
    """
    if m.files[vma.file].kind == "device":
        return -SIGBUS
    _map_cached(m, task, vma, space, vpn)
    return ALONE if space.ptes.at(vpn) is None else 0


def _map_cached(m: Machine, task: Task, vma: Vma, space: Mm, vpn: int) -> None:
    """Map the cached pages of the 64 KiB around a page, in one page table.

    Of a folio with several pages all come along, where there is room for them (6.18).
    """
    first_of_vma = vma.start >> PAGE_SHIFT
    in_table = vpn % PAGES_PER_PMD
    offset = vpn - first_of_vma
    low = max(in_table - in_table % FAULT_AROUND_PAGES, in_table - min(in_table, offset))
    high = min(low + FAULT_AROUND_PAGES, PAGES_PER_PMD, in_table + vma.nr_pages - offset)
    table = vpn - in_table
    file = m.files[vma.file]
    kind = "shmem" if file.kind == "shmem" else "file"
    shift = (vma.start >> PAGE_SHIFT) - vma.pgoff
    end_of_file = -(-file.size >> PAGE_SHIFT)
    cache = m.page_cache(vma.file)
    last = min(table + high - shift, end_of_file)
    if file.kind == "disk" and space.tables[1].at(vpn >> 9) is None:
        cached = cache.overlapping(table + low - shift, last)
        if cached and cached[0][0] == end_of_file - 1:
            return  # the last page alone does not bring its page table (filemap_map_pages)
    alone = m.globals.get("one_by_one", 0)
    there = _first_ready(m, vma.file, cache.overlapping(table + low - shift, last))
    if there and map_huge(m, task, vma, vpn, there, _read_around(m, vma, kind, 0)):
        return
    for start, end, delta in cache.overlapping(table + low - shift, last):
        for pgoff in range(start, end):
            if not _is_ready(m, vma.file, pgoff, delta):
                continue
            mapped = _read_around(m, vma, kind, delta - shift)
            near = (pgoff + shift, pgoff + shift + 1)
            for at in range(*(near if alone else whole_folio(m, vma, near[0], pgoff + delta))):
                if space.ptes.at(at) is None:
                    alloc_tables(m, task, space, at, at + 1)
                    pfn = at + mapped.delta
                    change_frames(m, task, pfn, pfn + 1, refs=1)
                    install(m, task, space, at, at + 1, mapped)


def _first_ready(m: Machine, file: int, cached: list[tuple[int, int, int]]) -> int:
    """Return the frame of the first page that a fault may map around it, 0 if there is none."""
    for start, end, delta in cached:
        for pgoff in range(start, end):
            if _is_ready(m, file, pgoff, delta):
                return pgoff + delta
    return 0


def _is_ready(m: Machine, file: int, pgoff: int, delta: int) -> bool:
    """Return whether a page of a file is not in swap, nor to be filled with zeroes, nor locked."""
    pfn = pgoff + delta
    return not (is_swapped(m, pfn) or is_fallocated(m, pfn) or (file, pgoff) in m.locked_pages)


def _read_around(m: Machine, vma: Vma, kind: str, delta: int) -> Pte:
    """Return what maps a page around the one that was read."""
    return read_only(m, Pte(kind, delta, stays_writable(m, vma, kind)))


def populate_file_run(m: Machine, task: Task, vma: Vma, first: int, last: int, write: bool) -> int:
    """Fault in as much of [first, last) as one run of new pages of a file can be: its end.

    That is nothing where a page is mapped or cached, also as near as a fault maps around.
    """
    if not vma.file or vma.flags & _PAGE_BY_PAGE or (write and not vma.flags & VM_SHARED):
        return first
    file, space = m.files[vma.file], m.mm(vma.mm)
    shift = vma.pgoff - (vma.start >> PAGE_SHIFT)
    last = min(last, -(-file.size >> PAGE_SHIFT) - shift)
    near, far = max(0, first + shift - FAULT_AROUND_PAGES), last + shift + FAULT_AROUND_PAGES
    comes_at_once = file.kind in ("shmem", "disk") and not (file.read_ns or file.served)
    comes_at_once = comes_at_once and not (makes_folios(m, vma.file) or vma.file in m.file_changes)
    is_new = not m.page_cache(vma.file).any_in(near, far) and not space.ptes.any_in(first, last)
    if last - first < 2 or not comes_at_once or not is_new:
        return first
    alloc_tables(m, task, space, first, last)
    for table in range(first // PAGES_PER_PMD, (last - 1) // PAGES_PER_PMD + 1):
        m.touch(task, "page table", vma.mm, table)
    pfn = fill_cache(m, task, vma.file, first + shift, last + shift)
    m.spend("fault_minor", last - first)
    m.spend("fault_file", last - first)
    change_frames(m, task, pfn, pfn + last - first, refs=1)
    kind = "shmem" if file.kind == "shmem" else "file"
    writable = bool(vma.flags & VM_SHARED) and (write or stays_writable(m, vma, kind))
    mapped = pte_of(kind, pfn - first, writable)
    install(m, task, space, first, last, mapped if write else read_only(m, mapped))
    if write:
        soil_file(m, pfn, pfn + last - first)
    return last
