"""What a page fault puts into a page table, once its VMA has been found and checked.

`fault_page` is the part of handle_mm_fault that runs under the page-table lock. It looks at the
entry again, so two tasks that fault on one page agree. A page that has to be copied is copied
outside that lock (wp_page_copy): `fault_page` then returns what to copy, with a reference on it,
and `finish_copy` sets the new entry, if the old one is still there.

Sources: mm/memory.c (do_anonymous_page, do_read_fault, do_cow_fault, do_shared_fault, do_wp_page,
do_fault_around), mm/huge_memory.c.
"""

from __future__ import annotations

from signal import SIGBUS, SIGSEGV
from typing import TYPE_CHECKING, NamedTuple

from zaplock.model.dirty import soil_file
from zaplock.model.files import cached_frame, fill_cache
from zaplock.model.flags import (
    EHWPOISON,
    PAGE_SHIFT,
    PAGES_PER_PMD,
    PMD_SIZE,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_SHARED,
    VM_SPECIAL,
    VM_UFFD_MINOR,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
    VM_WRITE,
)
from zaplock.model.frames import Frame, alloc_frames, change_frames, mark_forked
from zaplock.model.huge_fault import map_huge_page, write_huge_page
from zaplock.model.huge_pool import POOLED
from zaplock.model.mm import Mm, Pte, pte_of
from zaplock.model.pagetable import (
    RSS,
    UFFD_WP_MARKER,
    alloc_tables,
    install,
    split_entries,
    unmap_huge,
)
from zaplock.model.references import read_only, watches_writes
from zaplock.model.shared_folios import folio_page, makes_folios
from zaplock.model.shared_huge import KIND as SHARED_HUGE
from zaplock.model.shared_huge import map_huge, range_to_map, whole_folio
from zaplock.model.step import Task
from zaplock.model.swap import is_swapped, swap_in
from zaplock.model.tlb import flush_tlb_range
from zaplock.model.violations import Invariant, Violation
from zaplock.model.vma import Vma, change

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

FAULT_AROUND_PAGES = 16
USERFAULT = 1
"""Result of a fault that a userfaultfd monitor has to answer."""
MAJOR = 3
"""Result of a fault that has to wait until a page of a file was read."""
ALONE = 4
"""Result of a read fault that has mapped what is cached around its page, and not the page: it goes
on with that alone, and what it has mapped can be gone again by then."""


class PageCopy(NamedTuple):
    """A copy-on-write fault in the middle: the entry that it found, and whose frame it holds."""

    pte: Pte
    frame: int


def large_to_copy(m: Machine, vma: Vma, first: int, last: int) -> list[tuple[int, Pte]]:
    """List the pages of huge pages that are their mm's own again after a fork, and not writable.

    From 6.15 on a write keeps such a page; from 5.9 to 6.14 any page of a huge page that small
    entries map was copied (09854ba94c6a). Not told: to 5.8 it was kept, too (reuse_swap_page).
    """
    if vma.flags & VM_SHARED:
        return []
    return [
        (pfn - pte.delta, pte)
        for low, high, pte in m.mm(vma.mm).ptes.overlapping(first, last)
        if pte.kind == "anon" and not pte.writable
        for start, end, frame in m.frames.overlapping(low + pte.delta, high + pte.delta)
        if frame.kind == "thp" and frame.maps == 1
        for pfn in range(start, end)
    ]


def begin_copy(m: Machine, task: Task, vpn: int, pte: Pte) -> PageCopy:
    """Hold the frame of a page that is to be copied."""
    pfn = vpn + pte.delta
    change_frames(m, task, pfn, pfn + 1, refs=1)
    return PageCopy(pte, pfn)


def fault_page(
    m: Machine, task: Task, vma: Vma, address: int, write: bool, alone: bool = False
) -> int | PageCopy:
    """Make `address` accessible; 0, a signal, USERFAULT, MAJOR, ALONE or what to copy first.

    alone: go on after ALONE.
    """
    space = m.mm(vma.mm)
    vpn = address >> PAGE_SHIFT
    if not alone:
        m.spend("fault_minor")
    m.touch(task, "page table", vma.mm, vpn // PAGES_PER_PMD)
    pte = space.ptes.at(vpn)
    if pte is None:
        return _missing(m, task, vma, space, vpn, write, alone)
    if pte.kind == "uffd_wp":
        return _behind_marker(m, task, vma, space, vpn, write, alone)
    return _present(m, task, vma, space, vpn, pte, write)


def _missing(
    m: Machine, task: Task, vma: Vma, space: Mm, vpn: int, write: bool, alone: bool
) -> int | PageCopy:
    if vma.flags & VM_UFFD_MISSING and not vma.flags & VM_PFNMAP and not vma.file:
        return ask_monitor(m, vma)
    if vma.flags & VM_HUGETLB:
        return map_huge_page(m, task, vma, vpn, write)
    if vma.file:
        if not (write or alone) and maps_around(m, vma):
            return _around(m, task, vma, space, vpn)
        return _file(m, task, vma, space, vpn, write)
    if vma.flags & VM_PFNMAP:
        return -SIGBUS
    return _anonymous(m, task, vma, space, vpn, write)


def _behind_marker(
    m: Machine, task: Task, vma: Vma, space: Mm, vpn: int, write: bool, alone: bool
) -> int | PageCopy:
    """Map a page whose place is write-protected: so is the page (pte_marker_handle_uffd_wp).

    A write faults again then. Where nobody watches writes any more the marker just goes.
    """
    space.ptes.clear(vpn, vpn + 1)
    result = _missing(m, task, vma, space, vpn, write, alone)
    if vma.flags & VM_UFFD_WP:
        mapped = space.ptes.at(vpn)
        kept = change(mapped, writable=False, wp=True) if mapped else UFFD_WP_MARKER
        space.ptes.set(vpn, vpn + 1, kept)
    return result


def maps_around(m: Machine, vma: Vma) -> bool:
    """Return whether a read fault maps what the file has around its page (vm_ops->map_pages).

    A segment of System V shared memory does not, nor what a monitor watches more than for holes.
    """
    watched = vma.flags & (VM_UFFD_WP | VM_UFFD_MINOR)
    return not watched and not m.files[vma.file].counts_mappings


def ask_monitor(m: Machine, vma: Vma) -> int:
    """Return USERFAULT, or -SIGBUS where the monitor has asked for that (UFFD_FEATURE_SIGBUS)."""
    signals = m.uffd_modes.get(vma.uffd) == "sigbus"
    return -SIGBUS if signals else USERFAULT


def _present(
    m: Machine, task: Task, vma: Vma, space: Mm, vpn: int, pte: Pte, write: bool
) -> int | PageCopy:
    if pte.kind == "guard":
        return -SIGSEGV
    if pte.kind == "poison":
        return -EHWPOISON
    if pte.kind == "swap":
        m.spend("fault_anon")
        swap_in(m, task, space, vpn, pte, vma.flags, write)
        mapped = space.ptes.at(vpn)
        return _present(m, task, vma, space, vpn, mapped, True) if mapped and write else 0
    if not write or pte.writable:
        return 0
    if pte.wp and vma.flags & VM_UFFD_WP:
        return ask_monitor(m, vma)
    if pte.kind in ("zero", "zero_thp"):
        return _copy_zero(m, task, vma, space, vpn, pte)
    if pte.kind in POOLED:
        return write_huge_page(m, task, vma, vpn, pte)
    if pte.kind == SHARED_HUGE:  # what is written to is not mapped so, and faults once more
        unmap_huge(m, task, space, vpn - vpn % PAGES_PER_PMD)
        return _missing(m, task, vma, space, vpn, write, True)
    if vma.flags & VM_SHARED:
        space.ptes.set(vpn, vpn + 1, Pte(pte.kind, pte.delta, True, wp=pte.wp))
        soil_file(m, vpn + pte.delta, vpn + pte.delta + 1)
        return 0
    return _copy_on_write(m, task, space, vpn, pte)


def _copy_zero(m: Machine, task: Task, vma: Vma, space: Mm, vpn: int, pte: Pte) -> int:
    """Replace the zero page by a page of one's own; a huge zero page by a huge page."""
    if pte.kind == "zero_thp":
        low = vpn - vpn % PAGES_PER_PMD
        space.ptes.clear(low, low + PAGES_PER_PMD)
        _map_huge(m, task, space, low)
        return 0
    space.ptes.clear(vpn, vpn + 1)
    m.spend("fault_cow")
    _map_new(m, task, space, vpn)
    return 0


def _copy_on_write(m: Machine, task: Task, space: Mm, vpn: int, pte: Pte) -> int | PageCopy:
    if pte.kind == "thp":
        return _write_huge(m, task, space, vpn, pte)
    pfn = vpn + pte.delta
    frame = m.frames.at(pfn)
    if pte.kind == "anon" and frame is not None and is_own(frame):
        space.ptes.set(vpn, vpn + 1, Pte("anon", pte.delta, True, wp=pte.wp))
        mark_forked(m, pfn, pfn + 1, False)
        return 0
    return begin_copy(m, task, vpn, pte)


def is_own(frame: Frame) -> bool:
    """Return whether the one entry that maps an anonymous page may write to it.

    (wp_can_reuse_anon_folio)
    """
    return frame.maps == 1 and frame.kind != "ksm"


def finish_copy(m: Machine, task: Task, vma: Vma, address: int, copy: PageCopy, tag: int) -> None:
    """Put a page with the copied content in the place of the old one, and let go of that.

    Where the entry has changed meanwhile, the fault is taken again and the copy was in vain.
    """
    space, vpn = m.mm(vma.mm), address >> PAGE_SHIFT
    m.spend("fault_cow")
    if space.ptes.at(vpn) == copy.pte:
        drop_mapping(m, task, space, vpn, copy.pte)
        _map_new(m, task, space, vpn, tag)
    change_frames(m, task, copy.frame, copy.frame + 1, refs=-1)


def drop_mapping(m: Machine, task: Task, space: Mm, vpn: int, pte: Pte) -> None:
    """Take one entry out whose frame another entry is about to replace, flushing the page."""
    space.ptes.clear(vpn, vpn + 1)
    if pte.kind in RSS:
        space.add(RSS[pte.kind], -1)
    flush_tlb_range(m, space.mm, vpn, vpn + 1, False)
    change_frames(m, task, vpn + pte.delta, vpn + pte.delta + 1, refs=-1, maps=-1)


def _write_huge(m: Machine, task: Task, space: Mm, vpn: int, pte: Pte) -> int | PageCopy:
    low = vpn - vpn % PAGES_PER_PMD
    frame = m.frames.at(vpn + pte.delta)
    if frame is not None and frame.maps == 1:
        space.ptes.set(low, low + PAGES_PER_PMD, Pte("thp", pte.delta, True, wp=pte.wp))
        mark_forked(m, low + pte.delta, low + pte.delta + PAGES_PER_PMD, False)
        return 0
    return _copy_on_write(m, task, space, vpn, split_entry(m, space, vpn, pte))


def split_entry(m: Machine, space: Mm, vpn: int, pte: Pte) -> Pte:
    """Let small entries map what a huge one does, for reading only; return them."""
    low = vpn - vpn % PAGES_PER_PMD
    small = change(split_entries(m, low, pte), writable=False)
    space.ptes.set(low, low + PAGES_PER_PMD, small)
    return small


def _anonymous(m: Machine, task: Task, vma: Vma, space: Mm, vpn: int, write: bool) -> int:
    huge = huge_range(m, vma, space, vpn)
    if huge is not None:
        alloc_tables(m, task, space, huge, huge + 1)  # set aside for the case of a split
        if write:
            _map_huge(m, task, space, huge)
        else:
            install(m, task, space, huge, huge + PAGES_PER_PMD, read_only(m, Pte("zero_thp", 0)))
        return 0
    if write:
        m.spend("fault_anon")
        _map_new(m, task, space, vpn)
    else:
        m.spend("fault_zero")
        install(m, task, space, vpn, vpn + 1, read_only(m, Pte("zero", 0)))
    return 0


def huge_range(m: Machine, vma: Vma, space: Mm, vpn: int) -> int | None:
    """Return the first page of the huge page that a fault may map here, or None."""
    if not allows_huge_pages(m, vma):
        return None
    low = vpn - vpn % PAGES_PER_PMD
    start = low << PAGE_SHIFT
    if start < vma.start or start + PMD_SIZE > vma.end:
        return None
    if space.tables[1].at(low // PAGES_PER_PMD) is not None:
        return None  # a page table is in the place, with or without entries
    return None if space.ptes.any_in(low, low + PAGES_PER_PMD) else low


def allows_huge_pages(m: Machine, vma: Vma) -> bool:
    """Return whether the policy lets faults of a VMA map huge pages."""
    policy = m.globals.get("thp", 1)  # 0 never, 1 madvise, 2 always
    if not policy or vma.flags & (VM_NOHUGEPAGE | VM_SPECIAL):
        return False
    if policy == 1 and not vma.flags & VM_HUGEPAGE:
        return False
    disabled = m.mm(vma.mm).count("thp_disable")  # 2: but where it is advised
    return not disabled or (disabled == 2 and bool(vma.flags & VM_HUGEPAGE))


def meets_huge_pages(m: Machine, vma: Vma, first: int, last: int) -> bool:
    """Return whether faults of virtual pages [first, last) may map a huge page somewhere."""
    if not allows_huge_pages(m, vma):
        return False
    starts = (first, *range(-(-first // PAGES_PER_PMD) * PAGES_PER_PMD, last, PAGES_PER_PMD))
    return any(huge_range(m, vma, m.mm(vma.mm), vpn) is not None for vpn in starts)


def _map_new(m: Machine, task: Task, space: Mm, vpn: int, tag: int = 0) -> None:
    pfn = alloc_frames(m, task, "anon", 1)
    if tag:
        m.content.set(pfn, pfn + 1, tag)
    install(m, task, space, vpn, vpn + 1, pte_of("anon", pfn - vpn, True))


def _map_huge(m: Machine, task: Task, space: Mm, low: int) -> None:
    m.spend("fault_thp")
    pfn = alloc_frames(m, task, "thp", PAGES_PER_PMD, align=PAGES_PER_PMD)
    install(m, task, space, low, low + PAGES_PER_PMD, Pte("thp", pfn - low, True))


def _file(m: Machine, task: Task, vma: Vma, space: Mm, vpn: int, write: bool) -> int:
    pgoff = vma.pgoff_of(vpn << PAGE_SHIFT)
    file = m.files[vma.file]
    if file.kind == "device":
        return -SIGBUS
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
        _map_new(m, task, space, vpn, m.content.at(pfn) or 0)
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


def _around(m: Machine, task: Task, vma: Vma, space: Mm, vpn: int) -> int:
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
    there = _first_in_memory(m, cache.overlapping(table + low - shift, last))
    if there and map_huge(m, task, vma, vpn, there, _read_around(m, vma, kind, 0)):
        return
    for start, end, delta in cache.overlapping(table + low - shift, last):
        for pgoff in range(start, end):
            if is_swapped(m, pgoff + delta):
                continue
            mapped = _read_around(m, vma, kind, delta - shift)
            near = (pgoff + shift, pgoff + shift + 1)
            for at in range(*(near if alone else whole_folio(m, vma, near[0], pgoff + delta))):
                if space.ptes.at(at) is None:
                    alloc_tables(m, task, space, at, at + 1)
                    pfn = at + mapped.delta
                    change_frames(m, task, pfn, pfn + 1, refs=1)
                    install(m, task, space, at, at + 1, mapped)


def _first_in_memory(m: Machine, cached: list[tuple[int, int, int]]) -> int:
    """Return the frame of the first page that is cached and not in swap, 0 if there is none."""
    for start, end, delta in cached:
        for pgoff in range(start, end):
            if not is_swapped(m, pgoff + delta):
                return pgoff + delta
    return 0


def _read_around(m: Machine, vma: Vma, kind: str, delta: int) -> Pte:
    """Return what maps a page around the one that was read."""
    return read_only(m, Pte(kind, delta, stays_writable(m, vma, kind)))


def fault_at_once(
    m: Machine, task: Task, vma: Vma, address: int, write: bool, alone: bool = False
) -> int:
    """Do a whole fault with nobody in between, copying included; return what `fault_page` does.

    What it has to read comes at once: nothing of the populating calls is told of I/O. alone: go on
    with a fault that has mapped what is cached around its page.
    """
    result = fault_page(m, task, vma, address, write, alone)
    if result == ALONE:
        result = fault_page(m, task, vma, address, write, alone=True)
    if result == MAJOR:
        cached_frame(m, task, vma.file, vma.pgoff_of(address))
        result = fault_page(m, task, vma, address, write)
    if isinstance(result, PageCopy):
        finish_copy(m, task, vma, address, result, m.content.at(result.frame) or 0)
        return 0
    return result


def populate_range(
    m: Machine, task: Task, vma: Vma, first: int, last: int, write: bool, alone: bool = False
) -> int:
    """Fault in virtual pages [first, last) of a VMA at once, as a loop of faults would.

    For ranges of anonymous memory without huge pages, and of a file that has none of these pages
    yet, this is one run, whatever its length; others go page by page. Returns 0 or the first
    fault's error.
    """
    space = m.mm(vma.mm)
    lowest = vma.huge_level if vma.flags & VM_HUGETLB else 2 if vma.file else 1
    plain = not vma.file and not vma.flags & (VM_HUGETLB | VM_UFFD_MISSING | VM_PFNMAP)
    grain = PAGES_PER_PMD if plain and allows_huge_pages(m, vma) else last
    vpn = first
    while vpn < last:
        may_be_huge = not vma.file and huge_range(m, vma, space, vpn) is not None
        end = min(last, (vpn // grain + 1) * grain)
        if plain and not may_be_huge and not space.ptes.any_in(vpn, end):
            alloc_tables(m, task, space, vpn, end)
            _populate_run(m, task, space, vpn, end, write)
            vpn = end
            continue
        if not alone and (come_to := _populate_file_run(m, task, vma, vpn, last, write)) > vpn:
            vpn = come_to
            continue
        alloc_tables(m, task, space, vpn, vpn + 1, 2 if may_be_huge else lowest)
        result = fault_at_once(m, task, vma, vpn << PAGE_SHIFT, write, alone)
        if result:
            return result
        run = space.ptes.run_at(vpn)
        if run is None:
            raise Violation(Invariant.BOOKS_BALANCE, f"a fault at page {vpn:#x} mapped nothing")
        if write and run[2].wp and not run[2].writable:  # mapped now, and a write is still watched
            result = fault_at_once(m, task, vma, vpn << PAGE_SHIFT, write, alone)
            if result:
                return result
        vpn = run[1] if not write or run[2].writable else vpn + 1
    return 0


_PAGE_BY_PAGE = VM_HUGETLB | VM_PFNMAP | VM_UFFD_MISSING | VM_UFFD_MINOR | VM_UFFD_WP


def _populate_file_run(m: Machine, task: Task, vma: Vma, first: int, last: int, write: bool) -> int:
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
    comes_at_once = comes_at_once and not makes_folios(m, vma.file)
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


def _populate_run(m: Machine, task: Task, space: Mm, first: int, last: int, write: bool) -> None:
    if write:
        pfn = alloc_frames(m, task, "anon", last - first)
        m.spend("populate_anon", last - first)
        install(m, task, space, first, last, Pte("anon", pfn - first, True))
    else:
        m.spend("fault_zero", last - first)
        install(m, task, space, first, last, read_only(m, Pte("zero", 0)))
