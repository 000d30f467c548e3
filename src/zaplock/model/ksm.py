"""KSM: pages of equal content that have become one page, of which whoever writes gets a copy.

The entry of such a page is of the kind "anon", its frame of the kind "ksm". That is nobody's own: a
write copies it also where nobody else maps it any more. A page of zeros becomes the zero page where
use_zero_pages says so; its entry is of the kind "zero" and `merged`.

What ksmd does is here the outcome of its scans of processes that stand still: the first notes each
page's checksum, the others merge until nothing changes any more. A scan looks at one page after the
other, for one that is merged already or one that waits in its tree for an equal one. A page that a
fork shares follows in the next scan.

A huge page with a page that would merge is split, and gives its pages of zeros back where splitting
does that (6.12); a page that has gone so while it waited keeps its place in the tree until the scan
ends. No more than max_page_sharing entries map one merged page; more pages of the same content
become a second one, and one that is left over alone stays as it is.

Sources: mm/ksm.c (cmp_and_merge_page, try_to_merge_with_zero_page, stable_node_dup, replace_page,
unmerge_ksm_pages), mm/memory.c (wp_can_reuse_anon_folio). Not covered: merging by NUMA node, what
smart_scan passes over, and which of several merged pages has room when max_page_sharing was reached
and pages were written to since, unless all was unmerged in between.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from zaplock.model.dirty import follows_dirty
from zaplock.model.flags import PAGE_SHIFT, PAGES_PER_PMD, VM_MERGEABLE, VM_WRITE
from zaplock.model.folios import split_folio
from zaplock.model.frames import alloc_frames, change_frames
from zaplock.model.mm import Mm, Pte
from zaplock.model.step import Task
from zaplock.model.tlb import flush_tlb_range
from zaplock.model.vma import Vma, change

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

MAX_PAGE_SHARING = 256
"""How many entries may map one merged page, unless somebody has set that."""


class ScanRules(NamedTuple):
    """How a release merges.

    finds_zeros: a huge page that is split gives its zeros back. zeros_first: a page of zeros
    becomes the zero page though a merged page of zeros is there. marks_zeros: the zero page that
    ksmd has put somewhere can be told from others. finds_closed: a page that waits in the tree is
    found again where nobody may access it; else it stays in the way of its equals.
    """

    finds_zeros: bool
    zeros_first: bool
    marks_zeros: bool
    finds_closed: bool


class _Mapped(NamedTuple):
    """A page that ksmd looks at: where it is mapped, and by which entry."""

    space: Mm
    vpn: int
    pte: Pte

    @property
    def pfn(self) -> int:
        return self.vpn + self.pte.delta


def scan(m: Machine, task: Task, rules: ScanRules) -> None:
    """Let the anonymous pages of equal content in all mergeable VMAs be one page each."""
    if m.globals.get("ksm_left", 0):
        _Scan(m, task, rules).meet()
        m.globals.put("ksm_left", 0)
    while _Scan(m, task, rules).merge():
        pass


def unmerge_all(m: Machine, task: Task, *, closed_too: bool) -> None:
    """Give all mergeable VMAs pages of their own again (`unmerge`)."""
    for vma in mergeable_vmas(m):
        first, last = vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT
        unmerge(m, task, vma, first, last, closed_too=closed_too, writes=unmerges_by_write(m))
    m.globals.put("ksm_left", int(not closed_too))


def has_merged(m: Machine) -> bool:
    """Return whether pages were ever merged."""
    return bool(m.globals.get("ksm", 0))


def exists(m: Machine) -> bool:
    """Return whether a merged page is there."""
    return any(frame.kind == "ksm" and frame.refs for _, frame in m.frames.data.values())


def unmerges_by_write(m: Machine) -> bool:
    """Return whether what is unmerged is faulted in for a write, so that it is dirty (to 6.1)."""
    return bool(m.globals.get("ksm_writes", 0))


def unmerge(
    m: Machine,
    task: Task,
    vma: Vma,
    first: int,
    last: int,
    *,
    closed_too: bool,
    writes: bool = False,
) -> None:
    """Give virtual pages [first, last) of a VMA copies of their own of the merged pages there.

    `closed_too`: also where nobody may access them; else those stay merged. `writes`: they are
    dirty then.
    """
    space, writable = m.mm(vma.mm), bool(vma.flags & VM_WRITE)
    for vpn, pte in merged_in(m, space, first, last):
        if closed_too or not pte.no_access:
            give_copy(m, task, space, vpn, pte, writable, writes)
    for low, high, pte in space.ptes.overlapping(first, last):
        for vpn in range(low, high) if pte.merged else ():
            own = alloc_frames(m, task, "anon", 1, refs=0)
            m.spend("fault_cow")
            space.add("rss_anon", 1)
            _map_instead(m, task, _Mapped(space, vpn, pte), own, writable, writes)


def give_copy(
    m: Machine,
    task: Task,
    space: Mm,
    vpn: int,
    pte: Pte,
    writable: bool,
    writes: bool = False,
) -> None:
    """Let an entry map a copy of the anonymous page that it maps: clean, unless it `writes`."""
    copy = alloc_frames(m, task, "anon", 1, refs=0)
    tag = m.content.at(vpn + pte.delta)
    if tag:
        m.content.set(copy, copy + 1, tag)
    m.spend("fault_cow")
    _map_instead(m, task, _Mapped(space, vpn, pte), copy, writable, writes)


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


def mergeable_vmas(m: Machine) -> list[Vma]:
    """List the VMAs of all processes in which ksmd looks for pages, in its order."""
    return [
        vma
        for space in m.mms.values()
        for start in space.tree.order
        if isinstance(vma := m.vmas[space.tree.data[start]], Vma)
        and vma.flags & VM_MERGEABLE
        and vma.anon_vma
    ]


class _Scan:
    """One of ksmd's scans."""

    def __init__(self, m: Machine, task: Task, rules: ScanRules) -> None:
        self._m, self._task, self._rules = m, task, rules
        self._uses_zeros = bool(m.globals.get("ksm_zero_pages", 0))
        self._most = m.globals.get("ksm_most", 0) or MAX_PAGE_SHARING
        self._tree: dict[int, _Mapped] = {}  # by content: who waits for an equal page
        self._shared: dict[int, Counter[int]] = {}  # by content: how many map each merged page
        self._changed = False

    def merge(self) -> bool:
        """Look at every page once; return whether anything has changed."""
        pages = _candidates(self._m)
        for content, page in pages:
            if _is_merged(self._m, page.pfn):
                self._shared.setdefault(content, Counter())[page.pfn] += 1
        for content, page in pages:
            now = self._still(page)
            if now is not None and not _is_merged(self._m, now.pfn):
                self._look_at(content, now)
        return self._changed

    def meet(self) -> None:
        """Look at every page once, after all was unmerged: what stayed merged is met on the way.

        Who comes behind it joins it at once; nobody waits in the tree yet (checksums are new).
        """
        for content, page in _candidates(self._m):
            counts = self._shared.setdefault(content, Counter())
            room = self._room(counts)
            if _is_merged(self._m, page.pfn):
                counts[page.pfn] += 1
            elif room is not None and (small := self._small(page)):
                self._map(small, room)
                counts[room] += 1

    def _room(self, counts: Counter[int]) -> int | None:
        """Return a merged page that more may map."""
        return next((pfn for pfn, count in counts.items() if count < self._most), None)

    def _look_at(self, content: int, page: _Mapped) -> None:
        counts = self._shared.setdefault(content, Counter())
        room = self._room(counts)
        if self._uses_zeros and not content and (self._rules.zeros_first or room is None):
            if small := self._small(page):
                self._map_zero_page(small)
        elif room is not None:
            if small := self._small(page):
                self._map(small, room)
                counts[room] += 1
        elif content not in self._tree:
            self._tree[content] = page
        elif self._merge_two(page, self._still(self._tree[content])):
            counts[page.pfn] = 2
            del self._tree[content]

    def _merge_two(self, page: _Mapped, other: _Mapped | None) -> bool:
        """Let the page that was come to be the merged one; False where one of them has gone."""
        if other is None or other.pfn == page.pfn:
            return False
        if other.pte.no_access and not self._rules.finds_closed:
            return False
        head = page.pfn & -PAGES_PER_PMD
        of_one = head == other.pfn & -PAGES_PER_PMD and self._is_huge(page)
        small = self._small(page)
        if of_one or small is None:  # its other pages are met again in the next scan
            return False
        others = self._small(other)
        if others is None:
            return False
        _become_merged(self._m, small.pfn)
        for one in (others, small):
            self._map(one, small.pfn)
        return True

    def _still(self, page: _Mapped) -> _Mapped | None:
        """Return a page with the entry that it has now; None where the zero page has come."""
        pte = page.space.ptes.at(page.vpn)
        return page._replace(pte=pte) if pte is not None and pte.kind in ("anon", "thp") else None

    def _is_huge(self, page: _Mapped) -> bool:
        frame = self._m.frames.at(page.pfn)
        return frame is not None and frame.kind == "thp"

    def _small(self, page: _Mapped) -> _Mapped | None:
        """Split the huge page that a page is of; None where that has put the zero page there."""
        if self._is_huge(page):
            self._changed = True
            head = page.pfn & -PAGES_PER_PMD
            for space in self._m.mms.values():
                split_folio(self._m, self._task, space, head, self._rules.finds_zeros)
        return self._still(page)

    def _map(self, page: _Mapped, pfn: int) -> None:
        self._changed = True
        _map_instead(self._m, self._task, page, pfn, False)

    def _map_zero_page(self, page: _Mapped) -> None:
        self._changed = True
        space, vpn = page.space, page.vpn
        no_access, marks = page.pte.no_access, self._rules.marks_zeros
        space.ptes.set(vpn, vpn + 1, Pte("zero", 0, no_access=no_access, merged=marks))
        space.add("rss_anon", -1)
        flush_tlb_range(self._m, space.mm, vpn, vpn + 1, False)
        change_frames(self._m, self._task, page.pfn, page.pfn + 1, refs=-1, maps=-1)


def _candidates(m: Machine) -> list[tuple[int, _Mapped]]:
    """List what ksmd may merge, and what it holds: pages that only page tables refer to."""
    found: list[tuple[int, _Mapped]] = []
    for vma in mergeable_vmas(m):
        space = m.mm(vma.mm)
        first, last = vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT
        for low, high, pte in space.ptes.overlapping(first, last):
            for vpn in range(low, high) if pte.kind in ("anon", "thp") else ():
                frame = m.frames.at(vpn + pte.delta)
                if frame and frame.kind in ("anon", "ksm", "thp") and frame.refs == frame.maps:
                    content = m.content.at(vpn + pte.delta) or 0
                    found.append((content, _Mapped(space, vpn, pte)))
    return found


def _become_merged(m: Machine, pfn: int) -> None:
    """Let a page be what others of its content map: it is dirty, so no longer lazily free."""
    frame = m.frames.at(pfn)
    assert frame is not None
    m.frames.set(pfn, pfn + 1, change(frame, kind="ksm", dirty=True))
    m.globals.put("ksm", 1)


def _is_merged(m: Machine, pfn: int) -> bool:
    frame = m.frames.at(pfn)
    return frame is not None and frame.kind == "ksm"


def _map_instead(
    m: Machine, task: Task, page: _Mapped, pfn: int, writable: bool, writes: bool = False
) -> None:
    """Let an entry map another page of the same content, and let go of the one that it mapped."""
    space, vpn, pte = page
    writable = writable and not pte.no_access
    clean = follows_dirty(m) and not writes
    new = change(
        pte, kind="anon", delta=pfn - vpn, writable=writable, merged=False, old=False, clean=clean
    )
    space.ptes.set(vpn, vpn + 1, new)
    flush_tlb_range(m, space.mm, vpn, vpn + 1, False)
    if page.pfn != pfn:
        change_frames(m, task, pfn, pfn + 1, refs=1, maps=1)
        if pte.kind != "zero":
            change_frames(m, task, page.pfn, page.pfn + 1, refs=-1, maps=-1)
