"""TLBs, and the mmu_gather that makes sure they forget before pages are given back.

An access goes through its CPU's TLB first, then through the CPU's memory of page tables (the walk
cache), then through the tables. A flush takes the translations of a range from every CPU; only one
that knows of `freed_tables` takes the walk caches' entries too.

The order that must hold (asm-generic/tlb.h): PTEs cleared, TLBs flushed, and only then pages and
page tables returned. `tlb_flush_mmu_tlbonly` and `tlb_batch_pages_flush` are two steps, so that a
protocol can do it wrong.

What a finish does when another gather is under way on the mm differs by kernel (`NestedFlush`):
"ignore" to 4.12 (before 99baac21e458), "forget-tables" from there to 5.1 (the forced flush resets
the range and with it freed_tables), "full" since 7a30df49f63a (5.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec.structs import replace

from zaplock.model.flags import PMD_SHIFT
from zaplock.model.frames import change_frames
from zaplock.model.step import Task, step
from zaplock.model.violations import Invariant, Violation

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.mm import Mm

NestedFlush = Literal["ignore", "forget-tables", "full"]
NOTHING = (1 << 64, 0)
PAGES_PER_TABLE_SHIFT = PMD_SHIFT - 12


class Translation(msgspec.Struct, frozen=True):
    """What a TLB entry says: frame number less virtual page number, and whether it may write."""

    mm: int
    delta: int
    writable: bool


class Gather(msgspec.Struct, frozen=True):
    """An mmu_gather: what was unmapped and must be flushed, then freed.

    `low` and `high` bound the virtual pages to flush (NOTHING if none). `pages` are runs of frames
    (first, last) that lose a reference each, `tables` runs (level, first index, last index) of
    page tables, `freed_tables` says that some were unlinked.
    """

    mm: int
    first: int
    last: int
    low: int = NOTHING[0]
    high: int = NOTHING[1]
    pages: tuple[tuple[int, int], ...] = ()
    tables: tuple[tuple[int, int, int, int], ...] = ()
    freed_tables: bool = False


def note_peak(m: Machine, space: Mm) -> None:
    """Keep the peak of resident memory (update_hiwater_rss), where that is followed."""
    if m.globals.get("peaks", 0):
        space.raise_mark("hiwater_rss", space.rss)


@step
def update_hiwater_rss(m: Machine, _task: Task, mm: int) -> None:
    """Note the peak of resident memory before some of it goes."""
    note_peak(m, m.mm(mm))


@step
def tlb_gather_mmu(
    m: Machine, task: Task, mm: int, first: int, last: int, notes_peak: bool = True
) -> int:
    """Begin to gather what is unmapped of virtual pages [first, last); returns the gather.

    The peak of resident memory is noted before, where that is followed; one gather for several
    VMAs lets each do that.
    """
    space = m.mm(mm)
    if notes_peak:
        note_peak(m, space)
    space.add("tlb_flush_pending", 1)
    gather = m.new_handle(task, "gather")
    m.gathers.put(gather, Gather(mm, first, last))
    return gather


def gather_pages(m: Machine, gather: int, first: int, last: int, frames: bool, delta: int) -> None:
    """Remember that PTEs of virtual pages [first, last) were cleared, and their frames if any."""
    tlb = m.gathers[gather]
    pages = tlb.pages
    if frames:
        begin, end = first + delta, last + delta
        if pages and pages[-1][1] == begin:
            pages = (*pages[:-1], (pages[-1][0], end))
        else:
            pages = (*pages, (begin, end))
    low, high = min(tlb.low, first), max(tlb.high, last)
    m.gathers.put(gather, replace(tlb, low=low, high=high, pages=pages))


def gather_tables(m: Machine, gather: int, level: int, run: tuple[int, int, int]) -> None:
    """Remember that the page tables run = (first index, last index, generation) were unlinked."""
    tlb = m.gathers[gather]
    shift = PAGES_PER_TABLE_SHIFT + 9 * (level - 1)
    low, high = min(tlb.low, run[0] << shift), max(tlb.high, run[1] << shift)
    tables = (*tlb.tables, (level, *run))
    m.gathers.put(gather, replace(tlb, low=low, high=high, tables=tables, freed_tables=True))


def note_range(m: Machine, gather: int, first: int, last: int) -> None:
    """Remember that tables over virtual pages [first, last) were unlinked, to be returned later."""
    tlb = m.gathers[gather]
    low, high = min(tlb.low, first), max(tlb.high, last)
    m.gathers.put(gather, replace(tlb, low=low, high=high, freed_tables=True))


def is_full(m: Machine, gather: int) -> bool:
    """Return whether the batch must be flushed before more is unmapped."""
    return sum(high - low for low, high in m.gathers[gather].pages) >= m.gather_pages


@step
def tlb_flush_mmu_tlbonly(m: Machine, _task: Task, gather: int) -> None:
    """Let every CPU forget the translations that were gathered."""
    flush_gathered(m, gather)


def flush_gathered(m: Machine, gather: int) -> None:
    """Flush what a gather remembers; its range starts anew."""
    tlb = m.gathers[gather]
    if tlb.low < tlb.high:
        flush_tlb_range(m, tlb.mm, tlb.low, tlb.high, tlb.freed_tables)
        low, high = NOTHING
        m.gathers.put(gather, replace(tlb, low=low, high=high, freed_tables=False))


def flush_tlb_range(m: Machine, mm: int, first: int, last: int, freed_tables: bool) -> None:
    """Take the translations of virtual pages [first, last) of `mm` from every CPU."""
    m.spend("flush")
    if m.remote_cpus:
        m.spend("flush_remote", m.remote_cpus)
    for cpu in m.cpus if m.tracks_tlbs else ():
        _forget(m, cpu, mm, first, last, freed_tables)


def flush_cpu(m: Machine, cpu: int, tlb: Gather) -> None:
    """Let one CPU alone forget the translations that were gathered."""
    m.spend("flush")
    if m.tracks_tlbs:
        _forget(m, cpu, tlb.mm, tlb.low, tlb.high, tlb.freed_tables)


def _forget(m: Machine, cpu: int, mm: int, first: int, last: int, freed_tables: bool) -> None:
    for low, high, entry in m.tlb(cpu).overlapping(first, last):
        if entry.mm == mm:
            m.tlb(cpu).clear(low, high)
    if freed_tables:
        shift = PAGES_PER_TABLE_SHIFT
        walks = m.walk_cache(cpu)
        for low, high, entry_ in walks.overlapping(first >> shift, -(-last >> shift)):
            if entry_[0] == mm:
                walks.clear(low, high)


@step
def tlb_batch_pages_flush(m: Machine, task: Task, gather: int) -> None:
    """Return the gathered pages and page tables."""
    return_gathered(m, task, gather)


def return_gathered(m: Machine, task: Task, gather: int) -> None:
    """Drop the references of the batch; nobody may still translate to what is freed by that."""
    tlb = m.gathers[gather]
    for low, high in tlb.pages:
        change_frames(m, task, low, high, refs=-1)
    for level, first, last, generation in tlb.tables:
        _return_tables(m, task, tlb.mm, level, first, last, generation)
    m.gathers.put(gather, replace(tlb, pages=(), tables=()))


def _return_tables(
    m: Machine, task: Task, mm: int, level: int, first: int, last: int, generation: int
) -> None:
    m.spend("free_table", last - first)
    if level != 1 or not m.tracks_tlbs:
        return
    for cpu in m.cpus:
        for low, _, (owner, known) in m.walk_cache(cpu).overlapping(first, last):
            if owner == mm and known == generation:
                raise Violation(
                    Invariant.NO_STALE_TRANSLATION,
                    f"{task} returns the page table of {low << PMD_SHIFT:#x} "
                    f"while CPU {cpu} still walks through it",
                )


@step
def tlb_begin_finish(m: Machine, _task: Task, gather: int, nested: NestedFlush) -> None:
    """Look whether another gather is under way, and flush by the kernel's rule for that."""
    tlb = m.gathers[gather]
    if nested != "ignore" and m.mm(tlb.mm).count("tlb_flush_pending") > 1:
        freed_tables = tlb.freed_tables or nested == "full"
        if nested == "forget-tables":
            freed_tables = False
        tlb = replace(tlb, low=tlb.first, high=tlb.last, freed_tables=freed_tables)
        m.gathers.put(gather, tlb)
    flush_gathered(m, gather)


@step
def tlb_end_finish(m: Machine, task: Task, gather: int) -> None:
    """End a gather."""
    tlb = m.gathers.drop(gather)
    if tlb.pages or tlb.tables:
        left = "pages" if tlb.pages else "page tables"
        raise Violation(Invariant.TEARDOWN_ORDER, f"{task} ends a gather with {left} in its batch")
    m.mm(tlb.mm).add("tlb_flush_pending", -1)
