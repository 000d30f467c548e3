"""Swap: pages whose content lies in a slot instead of in memory.

Frame numbers are never used twice, so a page that goes to swap keeps its number: the frame becomes
one of the kind "swap", whose content is what the slot holds and whose `refs` are the slot's count.
Entries of the kind "swap" and page caches refer to it as to a page. Where the count is one, coming
back is the same frame again; else the page that comes back is a new one, and the slot loses a user.

How many slots are free is `globals["swap_free"]`, in pages; without any nothing goes to swap.

Sources: mm/vmscan.c shrink_folio_list, mm/swapfile.c, mm/memory.c do_swap_page, mm/shmem.c
shmem_writeout and shmem_swapin_folio. Of the swap cache (what came back and has not changed since
keeps its slot for a while) only that is covered which counters show: where others refer to the
slot, too. Not covered is what mincore says of pages in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.dirty import follows_dirty
from zaplock.model.flags import VM_LOCKED, VM_WRITE
from zaplock.model.frames import Frame, alloc_frames, change_frames
from zaplock.model.mm import Mm, Pte
from zaplock.model.step import Task
from zaplock.model.tlb import flush_tlb_range

if TYPE_CHECKING:
    from zaplock.model.machine import Machine


def free_slots(m: Machine) -> int:
    """Return how many pages swap has room for."""
    left: int = m.globals.get("swap_free", 0)
    return left


def take_slots(m: Machine, pages: int) -> None:
    """Count slots as used, or with a negative number as free."""
    m.globals.put("swap_free", free_slots(m) - pages)


def swap_out(m: Machine, task: Task, space: Mm, first: int, last: int) -> None:
    """Move anonymous pages [first, last) that one entry each maps to swap, if it has room.

    One that still has a slot goes back there, and is not written again.
    """
    for low, high, pte in space.ptes.overlapping(first, last):
        for start, end, frame in m.frames.overlapping(low + pte.delta, high + pte.delta):
            slot, at = kept_slot(m, frame), start - pte.delta
            end = end if slot else min(end, start + free_slots(m))
            pages = end - start
            if pages <= 0:
                continue
            space.ptes.set(at, at + pages, Pte("swap", (slot or start) - at, wp=pte.wp))
            space.add("rss_anon", -pages)
            space.add("swap_ents", pages)
            flush_tlb_range(m, space.mm, at, at + pages, False)
            if slot:
                change_frames(m, task, slot, slot + 1, refs=1)
                change_frames(m, task, start, end, refs=-1, maps=-1)
            else:
                take_slots(m, pages)
                change_frames(m, task, start, end, maps=-1)
                m.frames.set(start, end, Frame("swap", 1, 0, forked=frame.forked))


def kept_slot(m: Machine, frame: Frame) -> int:
    """Return the slot that a page has come back from and others still refer to, 0 for none."""
    slot = m.frames.at(frame.slot) if frame.slot else None
    return frame.slot if slot is not None and slot.kind == "swap" and slot.refs else 0


def page_of(m: Machine, slot: int, frame: Frame) -> int:
    """Return the page that has come back from a slot and still has it, 0 for none."""
    page = m.frames.at(frame.slot) if frame.slot else None
    return frame.slot if page is not None and page.refs and page.slot == slot else 0


def swap_in(m: Machine, task: Task, space: Mm, vpn: int, pte: Pte, flags: int, write: bool) -> None:
    """Bring the page of a swap entry back and map it; what others still refer to is copied.

    Whoever comes for the slot later gets the same page. It is clean, and in the swap cache; but for
    a write, or where the VMA (of `flags`) is locked, the slot is given up at once, which makes the
    page dirty (should_try_to_free_swap).
    """
    slot = vpn + pte.delta
    frame = m.frames.at(slot)
    assert frame is not None
    page = page_of(m, slot, frame)
    if page:
        change_frames(m, task, page, page + 1, refs=1, maps=1)
        change_frames(m, task, slot, slot + 1, refs=-1)
    elif frame.refs == 1:
        page = slot
        dirty = follows_dirty(m) and (write or bool(flags & VM_LOCKED))
        kept = page if follows_dirty(m) and not dirty else 0
        back = Frame("anon", 1, 1, forked=frame.forked, dirty=dirty, slot=kept)
        m.frames.set(page, page + 1, back)
        take_slots(m, -1)
    else:
        page, tag = alloc_frames(m, task, "anon", 1), m.content.at(slot)
        if tag:
            m.content.set(page, page + 1, tag)
        m.frames.set(page, page + 1, Frame("anon", 1, 1, forked=True, slot=slot))
        m.frames.set(slot, slot + 1, Frame("swap", frame.refs - 1, 0, forked=True, slot=page))
    may_write = bool(flags & VM_WRITE) and page == slot and not (frame.forked or pte.wp)
    clean = follows_dirty(m) and not (write and may_write)
    space.ptes.set(vpn, vpn + 1, Pte("anon", page - vpn, may_write, wp=pte.wp, clean=clean))
    space.add("swap_ents", -1)
    space.add("rss_anon", 1)


def drop_swapped(m: Machine, task: Task, space: Mm, first: int, last: int) -> None:
    """Clear the swap entries among virtual pages [first, last), and let their slots go."""
    for low, high, pte in space.ptes.overlapping(first, last):
        if pte.kind == "swap":
            space.ptes.clear(low, high)
            space.add("swap_ents", low - high)
            change_frames(m, task, low + pte.delta, high + pte.delta, refs=-1)


def swap_out_cached(m: Machine, file: int, first: int, last: int) -> None:
    """Move pages [first, last) of a file in memory that nothing but its cache holds to swap."""
    for low, high, delta in m.page_cache(file).overlapping(first, last):
        for start, end, frame in m.frames.overlapping(low + delta, high + delta):
            end = min(end, start + free_slots(m))
            if frame.kind == "shmem" and frame.refs == 1 and start < end:
                take_slots(m, end - start)
                m.frames.set(start, end, Frame("swap", 1, 0))


def swap_in_cached(m: Machine, frame: int) -> None:
    """Bring a page of a file in memory back, if it is in swap."""
    if is_swapped(m, frame):
        m.frames.set(frame, frame + 1, Frame("shmem", 1, 0))
        take_slots(m, -1)


def is_swapped(m: Machine, frame: int) -> bool:
    """Return whether a page that a cache refers to is in swap."""
    held = m.frames.at(frame)
    return held is not None and held.kind == "swap"


def swapped_pages(m: Machine, file: int, first: int, last: int) -> int:
    """Count the pages [first, last) of a file in memory that are in swap."""
    return sum(
        end - start
        for low, high, delta in m.page_cache(file).overlapping(first, last)
        for start, end, frame in m.frames.overlapping(low + delta, high + delta)
        if frame.kind == "swap"
    )
