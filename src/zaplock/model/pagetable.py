"""Page tables: which exist, what their entries hold, how they are zapped and freed.

Entries are runs: `Pte` values over virtual page numbers, so that a mapping of any size whose pages
are alike is one cell. Page-table pages are runs too, one map per level, with a generation that
tells a table from the one that stood there before it. A run of frames and a run of virtual pages
that go together differ by a constant, `Pte.delta`.

Every function here that changes entries stands for one critical section under the page-table lock.

Sources: mm/memory.c (zap_pte_range, free_pgd_range, copy_page_range), mm/huge_memory.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from zaplock.model import tlb
from zaplock.model.dirty import OF_FILES, follows_dirty, tell_page
from zaplock.model.flags import PAGE_SHIFT, PAGE_SIZE, PAGES_PER_PMD, PAGES_PER_PUD, PMD_SHIFT
from zaplock.model.frames import ZERO_PFN, change_frames, soil
from zaplock.model.huge_pool import LEVEL_OF, SIZE_OF
from zaplock.model.mm import CUT_SHIFT, Counter, Mm, Pte
from zaplock.model.references import mark_accessed, soft_dirty, use_entry
from zaplock.model.step import Task
from zaplock.model.tlb import Translation
from zaplock.model.violations import Invariant, Violation

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

RSS: dict[str, Counter] = {
    "anon": "rss_anon",
    "thp": "rss_anon",
    "file": "rss_file",
    "shmem": "rss_shmem",
    "shmem_thp": "rss_shmem",
    "hugetlb": "hugetlb_usage",
    "gigantic": "hugetlb_usage",
    "swap": "swap_ents",
}
"""The counter that a kind of entry is in; zero pages and PFNs are in none."""

REARM = "rearm"
"""Among the kinds that a zap spares: write-protected entries leave a marker in their place."""

UFFD_WP_MARKER = Pte("uffd_wp", 0)

MARKERS = frozenset({"guard", "poison", "uffd_wp"})
"""Kinds of entries that stand for no page."""

ABSENT = MARKERS | {"swap"}
"""Kinds of entries that map no page."""

UNITS = {
    "anon": ("zap_anon", 1),
    "zero": ("zap_zero", 1),
    "file": ("zap_file", 1),
    "shmem": ("zap_file", 1),
    "thp": ("zap_thp", PAGES_PER_PMD),
    "zero_thp": ("zap_thp", PAGES_PER_PMD),
    "shmem_thp": ("zap_thp", PAGES_PER_PMD),
    "hugetlb": ("zap_hugetlb", PAGES_PER_PMD),
    "gigantic": ("zap_hugetlb", PAGES_PER_PUD),
    "pfn": ("zap_pfn", 1),
    "guard": ("zap_zero", 1),
    "poison": ("zap_zero", 1),
    "swap": ("zap_zero", 1),
    "uffd_wp": ("zap_zero", 1),
}
"""What zapping one entry of a kind costs, and how many 4 KiB pages one entry maps."""

COUNTED = frozenset({"anon", "thp", "file", "shmem", "shmem_thp", "hugetlb", "gigantic"})
"""Kinds whose frames count their mappings."""

HUGE = frozenset({"thp", "zero_thp", "shmem_thp", "hugetlb", "gigantic"})
_SPLIT = HUGE - {"hugetlb", "gigantic"}  # where only a part goes
FIRST_LEVEL_OF = {
    "thp": 1, "zero_thp": 1, "shmem_thp": 2,
    **{kind: LEVEL_OF[size] for kind, size in SIZE_OF.items()},
}  # fmt: skip
"""The lowest level of tables that must be there for an entry of a kind, where it is not 1."""


def lowest_above(pte: Pte) -> int:
    """Return the lowest level of page tables that an entry needs, but for what is set aside."""
    return FIRST_LEVEL_OF.get(pte.kind, 1)


def alloc_tables(m: Machine, task: Task, space: Mm, first: int, last: int, lowest: int = 1) -> None:
    """Let the page tables over virtual pages [first, last) exist, from level `lowest` up."""
    for level, tables in space.tables.items():
        if level < lowest:
            continue
        shift = 9 * level
        low, high = first >> shift, (last - 1 >> shift) + 1
        if tables.covers(low, high):
            continue
        generation = m.new_handle(task, "table")
        at = low
        for start, end, _ in [*tables.overlapping(low, high), (high, high, 0)]:
            if at < start:
                tables.set(at, start, generation)
                if level < 4:
                    space.add("pgtables_bytes", (start - at) * PAGE_SIZE)
            at = end


def install(
    m: Machine, task: Task, space: Mm, first: int, last: int, pte: Pte, live: bool = True
) -> None:
    """Set the entries of virtual pages [first, last), which must be empty; count the pages.

    With `live`, the frames get a mapping each (their reference comes from the caller).
    """
    forbid_behind_zap(m, task, space, first, last)
    level = FIRST_LEVEL_OF.get(pte.kind, 1)
    shift = 9 * level
    if space.tables[level].at(first >> shift) is None:
        raise Violation(
            Invariant.USE_AFTER_FREE,
            f"{task} sets the entry of {first << PAGE_SHIFT:#x} in a page table that is gone",
        )
    space.ptes.set(first, last, pte)
    if pte.kind in RSS:
        space.add(RSS[pte.kind], last - first)
    if live and pte.kind in COUNTED:
        change_frames(m, task, first + pte.delta, last + pte.delta, maps=1)


def forbid_behind_zap(m: Machine, task: Task, space: Mm, first: int, last: int) -> None:
    """Report an entry that is installed in a range which unmap_region is taking down."""
    for low, high in space.teardown.data.values():
        if first << PAGE_SHIFT < high and low < last << PAGE_SHIFT:
            raise Violation(
                Invariant.NO_PTE_BEHIND_ZAP,
                f"{task} installs an entry at {first << PAGE_SHIFT:#x} "
                f"while [{low:#x}, {high:#x}) is torn down",
            )


def zap(
    m: Machine,
    task: Task,
    space: Mm,
    gather: int,
    first: int,
    last: int,
    spares: tuple[str, ...] = (),
) -> int:
    """Clear the entries of virtual pages [first, last) and gather their frames; return how many.

    A huge page of which only a part is in the range is split first, as Linux splits its PMD.
    Entries of the kinds `spares` stay; with REARM among them, what is write-protected leaves a
    marker of that.
    """
    runs = space.ptes.overlapping(first, last)
    if not runs:
        return 0
    if runs[0][2].kind in _SPLIT or runs[-1][2].kind in _SPLIT:
        split_huge_at(m, task, space, first)
        split_huge_at(m, task, space, last)
        runs = space.ptes.overlapping(first, last)
    cleared = 0
    for low, high, pte in runs:
        kind = pte.kind
        if kind in spares:
            continue
        give_up(m, task, space, gather, low, high, pte)
        if kind in ("thp", "zero_thp"):
            drop_deposited_tables(space, low, high)
        cleared += high - low
        if pte.wp and REARM in spares:
            space.ptes.set(low, high, UFFD_WP_MARKER)
        elif spares:
            space.ptes.clear(low, high)
    if cleared and not spares:
        space.ptes.clear(first, last)
    return cleared


def give_up(m: Machine, task: Task, space: Mm, gather: int, low: int, high: int, pte: Pte) -> None:
    """Count out the pages that entries [low, high) map, and gather their frames."""
    kind, pages = pte.kind, high - low
    unit, per_entry = UNITS[kind]
    m.spend(unit, pages / per_entry)
    counted = kind in COUNTED
    if kind in RSS:
        space.add(RSS[kind], -pages)
    if counted:
        change_frames(m, task, low + pte.delta, high + pte.delta, maps=-1)
        if kind in OF_FILES:
            tell_page(m, low, high, pte)
            if not pte.old:
                mark_accessed(m, low + pte.delta, high + pte.delta)
    elif kind == "swap":
        change_frames(m, task, low + pte.delta, high + pte.delta, refs=-1)
    tlb.gather_pages(m, gather, low, high, counted, pte.delta)


def cut_out(
    m: Machine, space: Mm, cut: int, first: int, last: int
) -> tuple[tuple[int, int, int, int], ...]:
    """Take the page tables that lie whole in virtual pages [first, last) out, entries and all.

    Costs one store for each table that hangs directly below one that stays. Returns the runs of
    tables; their entries are found under the cut from now on.
    """
    taken = []
    above = 0
    for level in sorted(space.tables, reverse=True):
        shift, tables = 9 * level, space.tables[level]
        low, high = -(-first >> shift), last >> shift
        if low >= high:
            continue
        inside = tables.total(low, high)
        m.spend("zap_zero", inside - above)
        above = inside * PAGES_PER_PMD
        for start, end, generation in tables.overlapping(low, high):
            taken.append((level, start, end, generation))
            if level < 4:
                space.add("pgtables_bytes", -(end - start) * PAGE_SIZE)
        tables.clear(low, high)
    for start, end, pte in space.ptes.overlapping(first, last):
        space.cut_ptes.set((cut << CUT_SHIFT) + start, (cut << CUT_SHIFT) + end, pte)
    space.ptes.clear(first, last)
    return tuple(taken)


def zap_cut(
    m: Machine, task: Task, space: Mm, gather: int, cut: int, first: int, last: int
) -> None:
    """Give up what the entries of virtual pages [first, last) of a cut map."""
    base = cut << CUT_SHIFT
    for low, high, pte in space.cut_ptes.overlapping(base + first, base + last):
        give_up(m, task, space, gather, low - base, high - base, pte)
    space.cut_ptes.clear(base + first, base + last)


def drop_deposited_tables(space: Mm, first: int, last: int) -> None:
    """Give back the page tables that huge pages had set aside for the case of being split.

    They hold no entries, so nobody walks them and they need no flush (zap_deposited_table).
    """
    tables = space.tables[1]
    low, high = first // PAGES_PER_PMD, last // PAGES_PER_PMD
    space.add("pgtables_bytes", -tables.total(low, high) * PAGE_SIZE)
    tables.clear(low, high)


def split_huge_at(m: Machine, task: Task, space: Mm, vpn: int) -> None:
    """Map a huge page by small entries if `vpn` lies inside it (split_huge_pmd).

    One of a file is not mapped at all any more: faults bring its pages back.
    """
    if not vpn % PAGES_PER_PMD:
        return
    run = space.ptes.run_at(vpn)
    if run is None or run[2].kind not in _SPLIT:
        return
    low = vpn - vpn % PAGES_PER_PMD
    if run[2].kind == "shmem_thp":
        unmap_huge(m, task, space, low)
    else:
        space.ptes.set(low, low + PAGES_PER_PMD, split_entries(m, low, run[2]))


def unmap_huge(m: Machine, task: Task, space: Mm, low: int) -> None:
    """Take out the huge entry that maps a huge page of a file in memory at virtual page `low`."""
    pte = space.ptes.at(low)
    assert pte is not None
    drop_entries(m, task, space, low, low + PAGES_PER_PMD, pte)


def drop_entries(m: Machine, task: Task, space: Mm, low: int, high: int, pte: Pte) -> None:
    """Take out entries [low, high) whose pages others still hold, and flush them."""
    space.ptes.clear(low, high)
    space.add(RSS[pte.kind], low - high)
    tlb.flush_tlb_range(m, space.mm, low, high, False)
    tell_page(m, low, high, pte)
    change_frames(m, task, low + pte.delta, high + pte.delta, refs=-1, maps=-1)


def split_entries(m: Machine, low: int, pte: Pte) -> Pte:
    """Return the small entries that a huge one, at virtual page `low`, is split into.

    They are made dirty as that is, where the page isn't lazily free, and so soft-dirty (pte_mkdirty
    on x86), as if somebody had written through them; the page is dirty as a whole then, too.
    """
    if pte.kind != "thp" or pte.clean:
        return small_entry(pte)
    if follows_dirty(m):
        soil(m, low + pte.delta, low + pte.delta + PAGES_PER_PMD)
    return soft_dirty(small_entry(pte))


def split_huge_zero(m: Machine, task: Task, space: Mm, vpn: int) -> None:
    """Map the huge zero page by small entries where it is mapped (to 6.12 before a write)."""
    pte, low = space.ptes.at(vpn), vpn - vpn % PAGES_PER_PMD
    if pte is not None and pte.kind == "zero_thp":
        space.ptes.set(low, low + PAGES_PER_PMD, small_entry(pte))


def small_entry(pte: Pte) -> Pte:
    """Return what maps the same pages as an entry does, but by small entries."""
    if pte.kind == "thp":
        return msgspec.structs.replace(pte, kind="anon")
    if pte.kind == "zero_thp":
        return msgspec.structs.replace(pte, kind="zero", delta=0, writable=False)
    return pte


def clear_present(
    m: Machine, task: Task, space: Mm, first: int, last: int
) -> list[tuple[int, int, Pte]]:
    """Take the entries of a range out without giving anything up; for moves."""
    split_huge_at(m, task, space, first)
    split_huge_at(m, task, space, last)
    runs = space.ptes.overlapping(first, last)
    space.ptes.clear(first, last)
    return runs


def free_tables(
    m: Machine,
    task: Task,
    space: Mm,
    gather: int,
    first: int,
    last: int,
    floor: int,
    ceiling: int,
) -> None:
    """Free the page tables over virtual pages [first, last) that nobody outside needs.

    `floor` and `ceiling` (virtual pages; ceiling 0 is the top) bound what may be freed: a table
    that reaches beyond one of them may serve a neighbour and stays (free_pgd_range).
    """
    top = ceiling or 1 << 52
    for level, tables in space.tables.items():
        shift = 9 * level
        low = max(first >> shift, -(-floor >> shift))
        high = min((last - 1 >> shift) + 1, top >> shift)
        if low >= high:
            continue
        for start, end, generation in tables.overlapping(low, high):
            live = space.ptes.overlapping(start << shift, end << shift) if level == 1 else []
            if live:
                raise Violation(
                    Invariant.NO_LIVE_PTE_IN_FREED_TABLE,
                    f"{task} frees the page table that maps {live[0][0] << PAGE_SHIFT:#x} "
                    f"({live[0][2].kind})",
                )
            tlb.gather_tables(m, gather, level, (start, end, generation))
            if level < 4:
                space.add("pgtables_bytes", -(end - start) * PAGE_SIZE)
        tables.clear(low, high)


def protect(
    m: Machine, space: Mm, first: int, last: int, writable: bool, accessible: bool = True
) -> None:
    """Take permissions from the entries of a range; the one to write comes back with a fault."""
    for low, high, pte in space.ptes.overlapping(first, last):
        m.spend("protect_pte", high - low)
        if pte.kind in ABSENT:
            continue
        may_write = pte.writable and writable and accessible
        new = msgspec.structs.replace(pte, writable=may_write, no_access=not accessible)
        if new != pte:
            space.ptes.set(low, high, new)


def translate(m: Machine, task: Task, space: Mm, vpn: int, write: bool) -> int:
    """Return the frame that the CPU of `task` reaches at `vpn`, or 0 if it must fault.

    With `tracks_tlbs`, a stale translation is used like a good one, which is the point.
    """
    if not m.tracks_tlbs:
        pte = space.ptes.at(vpn)
        frame = _frame(pte, vpn, write)
        if frame and pte is not None:
            _set_bits(space, vpn, pte, write)
        return frame
    entry = m.tlb(task.cpu).at(vpn)
    if entry is not None and entry.mm == space.mm and (entry.writable or not write):
        return vpn + entry.delta
    return _walk(m, task, space, vpn, write)


def mark_ahead(m: Machine, task: Task, space: Mm, vpn: int) -> None:
    """Let a CPU set the dirty bit of an entry for a write that has yet to look the page up again.

    A CPU that finds the bit clear sets it and begins the write anew; by then the page may have
    moved (mremap has shown that).
    """
    pte = space.ptes.at(vpn)
    known = m.tlb(task.cpu).at(vpn)
    knows = known is not None and known.mm == space.mm and known.writable
    if pte is not None and pte.clean and not knows and _frame(pte, vpn, True):
        write_entry(space, vpn)


def _set_bits(space: Mm, vpn: int, pte: Pte, write: bool) -> None:
    """Set the accessed and the dirty bit of an entry, as a CPU does that uses it."""
    if pte.old:
        use_entry(space, vpn, pte)
    if write and pte.clean:
        write_entry(space, vpn)


def write_entry(space: Mm, vpn: int) -> None:
    """Let the entry of a page be dirty: a CPU has written through it."""
    pte = space.ptes.at(vpn)
    assert pte is not None
    pages = PAGES_PER_PMD if pte.kind in ("thp", "shmem_thp") else 1
    first = vpn - vpn % pages
    space.ptes.set(first, first + pages, msgspec.structs.replace(pte, clean=False))


def _frame(pte: Pte | None, vpn: int, write: bool) -> int:
    if pte is None or pte.kind in ABSENT or (write and not pte.writable):
        return 0
    if pte.no_access:
        return 0
    return ZERO_PFN if pte.kind in ("zero", "zero_thp") else vpn + pte.delta


def _walk(m: Machine, task: Task, space: Mm, vpn: int, write: bool) -> int:
    index = vpn >> PMD_SHIFT - PAGE_SHIFT
    known = m.walk_cache(task.cpu).at(index)
    table = space.tables[1].at(index)
    if known is not None and known[0] == space.mm and known[1] != table:
        # It walks through a table that is unlinked, empty, and not returned yet: returning it
        # while a CPU remembers it is the violation (model.tlb). The fault ends the memory of it.
        m.walk_cache(task.cpu).clear(index, index + 1)
        return 0
    pte = space.ptes.at(vpn)
    frame = _frame(pte, vpn, write)
    if table is not None:
        m.walk_cache(task.cpu).set(index, index + 1, (space.mm, table))
    if frame and pte is not None:
        _set_bits(space, vpn, pte, write)
        entry = Translation(space.mm, frame - vpn, pte.writable and (write or not pte.clean))
        m.tlb(task.cpu).set(vpn, vpn + 1, entry)
    return frame
