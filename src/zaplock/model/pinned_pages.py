"""Pages that a call pins are the address space's own: what it shares is copied first, or kept.

Else a write through an entry would replace the page, and whoever pinned it would have the old one
(a7f226604170, 5.19). A page of a huge page is kept only where nobody holds that, and the same call
does by what it has pinned of it before.

Sources: mm/gup.c (gup_must_unshare, __get_user_pages), mm/memory.c (do_wp_page,
__wp_can_reuse_large_anon_folio). Not covered: what other calls have pinned meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zaplock.model import ksm
from zaplock.model.flags import PAGES_PER_PMD
from zaplock.model.frames import mark_forked, soil
from zaplock.model.mm import Mm, Pte
from zaplock.model.page_copy import entry_of, keeps_page, split_entry
from zaplock.model.page_fault import populate_range
from zaplock.model.step import Task
from zaplock.model.swap import kept_slot
from zaplock.model.touched import come_by
from zaplock.model.vma import Vma

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

NOT_PINNED = -1
"""No address: pages are only made accessible."""


class Pinning(NamedTuple):
    """A call that pins pages: from which page on, and whether it may keep those of huge pages."""

    first: int
    keeps_large: bool


def write_pinned_pages(
    m: Machine, task: Task, vma: Vma, first: int, last: int, pins: Pinning
) -> int:
    """Let pages [first, last) be written to, one after the other: 0 or the first fault's signal."""
    space = m.mm(vma.mm)
    for vpn in range(first, last):
        pte = space.ptes.at(vpn)
        is_closed = pte is not None and pte.kind == "anon" and not (pte.writable or pte.wp)
        if pte is not None and is_closed and is_held(m, space, vpn, pte, pins):
            ksm.give_copy(m, task, space, vpn, pte, False)
        if error := populate_range(m, task, vma, vpn, vpn + 1, True):
            return error
    return 0


def unshare_pages(
    m: Machine, task: Task, vma: Vma, first: int, last: int, failed: bool, pins: Pinning
) -> None:
    """Unshare pages [first, last); `failed`: only those up to the first that is not there."""
    space = m.mm(vma.mm)
    for low, high, pte in come_by(space, first, last, failed):
        if pte.kind in ("anon", "thp"):
            for vpn in range(low, high):
                unshare_page(m, task, vma, vpn, pins)


def unshare_page(m: Machine, task: Task, vma: Vma, vpn: int, pins: Pinning) -> None:
    """Give an address a page of its own where it shares one, which is not pinned to be read.

    So is a merged one, and one that a fork has shared; if nobody else maps it any more it is one's
    own as it is, unless somebody holds it. (gup_must_unshare, do_wp_page)
    """
    space = m.mm(vma.mm)
    pte = space.ptes.at(vpn)
    if pte is None or pte.kind not in ("anon", "thp"):
        return
    frame = m.frames.at(vpn + pte.delta)
    assert frame is not None
    if frame.kind == "ksm":
        ksm.unmerge(m, task, vma, vpn, vpn + 1, closed_too=True)
    elif not frame.forked:
        return
    elif keeps_page(m, space, vpn, pte) and not is_held(m, space, vpn, pte, pins):
        low, pages = entry_of(vpn, pte)
        first = low + pte.delta
        if frame.slot and not kept_slot(m, frame):
            soil(m, first, first + 1)  # who keeps it takes it out of the swap cache
        mark_forked(m, first, first + pages, False)
    else:
        if pte.kind == "thp":
            pte = split_entry(m, space, vpn, pte)
        ksm.give_copy(m, task, space, vpn, pte, False)


def is_held(m: Machine, space: Mm, vpn: int, pte: Pte, pins: Pinning) -> bool:
    """Return whether a page can't be kept, as its huge page is held as a whole.

    It is by the pages of it that the same call has pinned; whoever maps such pages one by one may
    write to none that a fork has shared. (__wp_can_reuse_large_anon_folio; before 6.15 to no page
    of a huge page.)
    """
    frame = m.frames.at(vpn + pte.delta)
    if frame is None or frame.kind != "thp" or pte.kind != "anon":
        return False
    folio = (vpn + pte.delta) // PAGES_PER_PMD
    pinned = space.ptes.overlapping(pins.first, vpn) if pins.keeps_large else ()
    return not pins.keeps_large or any(
        other.kind == "anon"
        and (low + other.delta) // PAGES_PER_PMD
        <= folio
        <= (high - 1 + other.delta) // PAGES_PER_PMD
        for low, high, other in pinned
    )
