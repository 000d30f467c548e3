"""KSM: pages of equal content that have become one page, of which whoever writes gets a copy.

The entry of such a page is of the kind "anon", its frame of the kind "ksm". That is nobody's own: a
write copies it also where nobody else maps it any more.

What ksmd does is here the outcome of two of its scans of a process that stands still: the first
notes each page's checksum, the second merges what has kept its own.

Sources: mm/ksm.c (cmp_and_merge_page, replace_page, unmerge_ksm_pages), mm/memory.c
(wp_can_reuse_anon_folio). Not covered: merging into the zero page (use_zero_pages), huge pages,
pages of several processes, and how many may share one page (max_page_sharing).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zaplock.model.flags import PAGE_SHIFT, VM_MERGEABLE, VM_WRITE
from zaplock.model.frames import alloc_frames, change_frames
from zaplock.model.mm import Mm, Pte
from zaplock.model.step import Task
from zaplock.model.tlb import flush_tlb_range
from zaplock.model.vma import Vma, change

if TYPE_CHECKING:
    from zaplock.model.machine import Machine


def merge_equal(m: Machine, task: Task, space: Mm) -> None:
    """Let the anonymous pages of equal content in mergeable VMAs be one page each."""
    for pages in _by_content(m, space).values():
        frames = sorted({vpn + pte.delta for vpn, pte in pages})
        if len(frames) < 2:
            continue
        shared = next((one for one in frames if _is_merged(m, one)), frames[0])
        frame = m.frames.at(shared)
        assert frame is not None
        m.frames.set(shared, shared + 1, change(frame, kind="ksm", dirty=True))
        for vpn, pte in pages:
            _map_instead(m, task, space, vpn, pte, shared, False)
        m.globals.put("ksm", 1)


def has_merged(m: Machine) -> bool:
    """Return whether pages were ever merged."""
    return bool(m.globals.get("ksm", 0))


def unmerge(m: Machine, task: Task, vma: Vma, first: int, last: int) -> None:
    """Give virtual pages [first, last) of a VMA copies of their own of the merged pages there."""
    space = m.mm(vma.mm)
    for vpn, pte in merged_in(m, space, first, last):
        give_copy(m, task, space, vpn, pte, bool(vma.flags & VM_WRITE))


def give_copy(m: Machine, task: Task, space: Mm, vpn: int, pte: Pte, writable: bool) -> None:
    """Let an entry map a copy of the anonymous page that it maps."""
    copy = alloc_frames(m, task, "anon", 1, refs=0)
    tag = m.content.at(vpn + pte.delta)
    if tag:
        m.content.set(copy, copy + 1, tag)
    m.spend("fault_cow")
    _map_instead(m, task, space, vpn, pte, copy, writable)


def merged_in(m: Machine, space: Mm, first: int, last: int) -> list[tuple[int, Pte]]:
    """List the merged pages among virtual pages [first, last), with the entry of each."""
    if not has_merged(m):
        return []
    return [
        (pfn - pte.delta, pte)
        for low, high, pte in space.ptes.overlapping(first, last)
        if pte.kind == "anon"
        for start, end, frame in m.frames.overlapping(low + pte.delta, high + pte.delta)
        if frame.kind == "ksm"
        for pfn in range(start, end)
    ]


def _by_content(m: Machine, space: Mm) -> dict[int, list[tuple[int, Pte]]]:
    """Find what ksmd may merge: virtual pages and their entries, by what they hold."""
    found: dict[int, list[tuple[int, Pte]]] = {}
    for start in space.tree.order:
        vma = m.vmas[space.tree.data[start]]
        if not isinstance(vma, Vma) or not vma.flags & VM_MERGEABLE or not vma.anon_vma:
            continue
        for low, high, pte in space.ptes.overlapping(start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT):
            for vpn in range(low, high) if pte.kind == "anon" else ():
                frame = m.frames.at(vpn + pte.delta)
                if frame and frame.kind in ("anon", "ksm") and frame.refs == frame.maps:
                    found.setdefault(m.content.at(vpn + pte.delta) or 0, []).append((vpn, pte))
    return found


def _is_merged(m: Machine, pfn: int) -> bool:
    frame = m.frames.at(pfn)
    return frame is not None and frame.kind == "ksm"


def _map_instead(
    m: Machine, task: Task, space: Mm, vpn: int, pte: Pte, pfn: int, writable: bool
) -> None:
    """Let an entry map another page of the same content, and let go of the one that it mapped."""
    writable = writable and not pte.no_access
    old = vpn + pte.delta
    space.ptes.set(vpn, vpn + 1, change(pte, delta=pfn - vpn, writable=writable))
    flush_tlb_range(m, space.mm, vpn, vpn + 1, False)
    if old != pfn:
        change_frames(m, task, pfn, pfn + 1, refs=1, maps=1)
        change_frames(m, task, old, old + 1, refs=-1, maps=-1)
