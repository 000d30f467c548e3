"""Physical pages: who refers to each, what it holds, and whether it still exists.

`frames` maps ranges of page frame numbers to `Frame` values, so a run of any length is one cell.
Frame numbers are never used twice: a freed frame stays freed for good, which is how a use after
free is told from a new page. Each task allocates from a range of its own, as from the per-CPU lists
of Linux; so allocations of different tasks commute, and the exhaustive engine sees one state where
there is one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from zaplock.model.flags import PAGES_PER_PMD, PAGES_PER_PUD
from zaplock.model.huge_pool import POOLED, give_back
from zaplock.model.step import Task
from zaplock.model.violations import Invariant, Violation

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

ZERO_PFN = 1
"""The zero page: mapped by many, counted by nobody."""

TAG_SIZE = 8
"""Bytes at the beginning of a page that are what it holds: its tag."""

OWN_FRAMES_SHIFT = 36


class Frame(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """A physical page: "anon", "file", "shmem", "thp", "hugetlb", "gigantic" or "pfn".

    Or "ksm": an anonymous page that stands for several of equal content (model.ksm). Or "swap": a
    page that is in swap instead (model.swap); `refs` counts who finds it there.

    `refs` counts all references (mappings, page cache, a gather's batch, pins), `maps` the page
    tables that map it. `freed_by` names the task that gave it back. `stays_locked`: it was locked
    in memory and is not marked as unlocked, though its VMA is (MREMAP_DONTUNMAP). `forked`: a fork
    has let others map it, and no write has made it somebody's own since (PageAnonExclusive is what
    it is not). `dirty`: an anonymous page is as a whole, whatever the
    entries that map it say (PG_dirty), so MADV_FREE asks who else maps it. `unbacked`: MADV_FREE
    has taken its place in swap away, which a write alone does not give back (no PG_swapbacked): it
    may be dropped when memory is short where it is clean, and the entry that maps it, too.
    `slot`: where it has come back from and what others still find there, until a write makes it
    one's own (its own number where nobody else does, but it is clean and in the swap cache); of
    what is in swap, the page that has come back so (the swap cache). `subpool`: of which mount's
    share it is given back to, as a huge page (model.huge_pool). `order`: of a file in memory, that
    it is one of 2 ** order pages which are one folio (model.shared_huge). `fallocated`: and that
    fallocate has made that folio and nobody has used it yet, so that it is still to be filled with
    zeroes (no PG_uptodate).
    """

    kind: str
    refs: int
    maps: int
    freed_by: str = ""
    stays_locked: bool = False
    forked: bool = False
    dirty: bool = False
    unbacked: bool = False
    slot: int = 0
    subpool: int = 0
    order: int = 0
    fallocated: bool = False


frame_of = lru_cache(maxsize=1024, typed=True)(Frame)
"""Make a frame's value, or return the one of equal parts that was made before: neighbours that
share it are known for equal at once."""


def alloc_frames(
    m: Machine,
    task: Task,
    kind: str,
    count: int,
    refs: int = 1,
    align: int = 1,
    subpool: int = 0,
) -> int:
    """Allocate `count` consecutive frames and return the first one's number, a multiple of `align`.

    A huge page is aligned, so that each of its frames tells where it begins.
    """
    padding: int = -m.serials.get((task.tid, "frame"), 0) % align
    first = m.next_serial(task, "frame", padding + count) + padding
    first += task.tid + 1 << OWN_FRAMES_SHIFT
    frame = frame_of(kind, refs, 0)
    if subpool:
        frame = msgspec.structs.replace(frame, subpool=subpool)
    m.frames.set(first, first + count, frame)
    return first


def change_frames(
    m: Machine, task: Task, first: int, last: int, refs: int = 0, maps: int = 0
) -> None:
    """Add to the counts of the frames in [first, last); those that nobody refers to are freed."""
    for low, high, frame in _existing(m, task, first, last):
        new_refs, new_maps = frame.refs + refs, frame.maps + maps
        if new_refs < 0 or new_maps < 0:
            raise Violation(
                Invariant.BOOKS_BALANCE,
                f"{task} drops {frame.kind} frame {low:#x} below 0: "
                f"refs {new_refs}, maps {new_maps}",
            )
        if new_refs:
            new = frame_of(
                frame.kind, new_refs, new_maps, "", frame.stays_locked, frame.forked,
                frame.dirty, frame.unbacked, frame.slot, frame.subpool, frame.order,
                frame.fallocated,
            )  # fmt: skip
            m.frames.set(low, high, new)
        else:
            _free(m, task, low, high, frame, new_maps)


def mark_forked(m: Machine, first: int, last: int, forked: bool) -> None:
    """Note that a fork shares the anonymous frames in [first, last), or that they are one's own."""
    for low, high, frame in m.frames.overlapping(first, last):
        if frame.forked != forked:
            slot = frame.slot if forked else 0
            m.frames.set(low, high, msgspec.structs.replace(frame, forked=forked, slot=slot))


def _existing(m: Machine, task: Task, first: int, last: int) -> list[tuple[int, int, Frame]]:
    runs = m.frames.overlapping(first, last)
    for low, _, frame in runs:
        if frame.freed_by:
            raise Violation(
                Invariant.USE_AFTER_FREE,
                f"{task} uses {frame.kind} frame {low:#x}, which {frame.freed_by} freed",
            )
    return runs


def _free(m: Machine, task: Task, low: int, high: int, frame: Frame, maps: int) -> None:
    if maps:
        raise Violation(
            Invariant.USE_AFTER_FREE, f"{task} frees frame {low:#x} that {maps} page tables map"
        )
    for cpu, vpn in m.translations_to(low, high):
        raise Violation(
            Invariant.NO_STALE_TRANSLATION,
            f"{task} returns {frame.kind} frame {low:#x} while CPU {cpu} "
            f"still translates {vpn << 12:#x} to it",
        )
    forked = frame.forked and frame.kind == "thp"  # the first page's says it of a whole huge page
    m.frames.set(low, high, Frame(frame.kind, 0, 0, freed_by=task.name, forked=forked))
    m.content.clear(low, high)
    if frame.kind == "swap":
        m.globals.put("swap_free", m.globals.get("swap_free", 0) + high - low)
        return
    if frame.kind in POOLED:
        give_back(m, frame.kind, high - low, frame.subpool)
    per_unit = _PAGES_OF.get(frame.kind, 1)
    m.spend(f"free_{_COSTS_LIKE.get(frame.kind, frame.kind)}", (high - low) // per_unit)


_COSTS_LIKE = {"shmem": "file", "ksm": "anon", "gigantic": "hugetlb"}
_PAGES_OF = {"thp": PAGES_PER_PMD, "hugetlb": PAGES_PER_PMD, "gigantic": PAGES_PER_PUD}


def unback(m: Machine, first: int, last: int) -> None:
    """Take the place in swap of anonymous pages away, which may be dropped then if nobody writes.

    As a whole they are clean then, too.
    """
    for low, high, frame in m.frames.overlapping(first, last):
        m.frames.set(low, high, msgspec.structs.replace(frame, dirty=False, unbacked=True))


def clean(m: Machine, first: int, last: int) -> None:
    """Let anonymous pages be clean as a whole, whatever the entries that map them say.

    They keep no slot, since what is clean then is nowhere else.
    """
    for low, high, frame in m.frames.overlapping(first, last):
        if frame.dirty or frame.slot:
            m.frames.set(low, high, msgspec.structs.replace(frame, dirty=False, slot=0))


def soil(m: Machine, first: int, last: int) -> None:
    """Let anonymous pages be dirty as a whole, huge ones with all their pages."""
    for low, high, frame in m.frames.overlapping(*whole_folios(m, first, last)):
        if not (frame.dirty or frame.freed_by):
            m.frames.set(low, high, msgspec.structs.replace(frame, dirty=True))


def whole_folios(m: Machine, first: int, last: int) -> tuple[int, int]:
    """Widen a run of frames to all of the huge pages in which it begins and ends."""
    low, high = m.frames.at(first), m.frames.at(last - 1)
    if low is not None and low.kind == "thp":
        first -= first % PAGES_PER_PMD
    if high is not None and high.kind == "thp":
        last = -(-last // PAGES_PER_PMD) * PAGES_PER_PMD
    return first, last


def read_frame(m: Machine, task: Task, pfn: int) -> int:
    """Return what a frame holds: the tag last written to it, 0 if none was."""
    if pfn == ZERO_PFN:
        return 0
    _existing(m, task, pfn, pfn + 1)
    return m.content.at(pfn) or 0


def write_frame(m: Machine, task: Task, pfn: int, tag: int, count: int = TAG_SIZE) -> None:
    """Let a frame hold `tag`, or the first `count` bytes of it if these are not all."""
    _existing(m, task, pfn, pfn + 1)
    if count < TAG_SIZE:
        written = (1 << 8 * count) - 1
        tag = (m.content.at(pfn) or 0) & ~written | tag & written
    if tag:
        m.content.set(pfn, pfn + 1, tag)
    else:
        m.content.clear(pfn, pfn + 1)
