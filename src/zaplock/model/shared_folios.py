"""Which folio a fault or a write makes where a file in memory has no page yet.

A mount of tmpfs says by huge= whether its files get huge pages: "never", "always", "within_size"
(where they end before the file does, else as for advise) or "advise" (in mappings with
MADV_HUGEPAGE). The kernel's own mount, which shared anonymous memory, System V shared memory and
memfds are on, has shmem_enabled for that, whose "deny" and "force" hold for all mounts. Writes have
no mapping, so "advise" means nothing to them.

Faults make huge pages or none; so did writes to 6.13. From 6.14 on a write makes a folio as large
as itself, from 6.18 on a huge page or the largest folio for which there is room in the file. Later
kernels have that for faults, too ("any size"), but of files without a name. Before 6.12 faults made
a huge page also where the mapping has no room for it.

From 6.11 on each size has a shmem_enabled of its own (hugepages-*kB), for what maps files that have
no name: "inherit" (as the mount or the setting for all says), "advise", and "within_size".

Sources: mm/shmem.c (shmem_huge_global_enabled, shmem_allowable_huge_orders, shmem_suitable_orders,
shmem_alloc_and_add_folio, shmem_get_orders_within_size; 6.1 shmem_is_huge). Not covered: "always"
of single sizes; memory that is short.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from zaplock.model.dirty import soil_file
from zaplock.model.files import cached_frame, charge_pages
from zaplock.model.flags import PAGE_SHIFT, VM_HUGEPAGE, VM_NOHUGEPAGE
from zaplock.model.shared_huge import ORDER, folio_around, new_folio
from zaplock.model.step import Task

if TYPE_CHECKING:
    from zaplock.model.files import File
    from zaplock.model.machine import Machine
    from zaplock.model.vma import Vma

POLICIES = ("never", "always", "within_size", "advise", "deny", "force")
"""Values of shmem_enabled, by their number in the machine's figure "shmem"."""
FOLIOS = ("any size", "written in any size", "by write", "huge")
"""Which folios there are, by their number in the machine's figure "shmem_folios"."""
ANY_SIZE, WRITTEN_IN_ANY_SIZE, BY_WRITE, HUGE_ONLY = range(4)


class Sizes(NamedTuple):
    """Which orders have "advise", "within_size" and "inherit" as their own shmem_enabled.

    Of each a sum of 1 << order; these are the machine's figures.
    """

    shmem_advised: int = 0
    shmem_within: int = 0
    shmem_inherits: int = 1 << ORDER


def set_sizes(m: Machine, sizes: Sizes) -> None:
    """Let a machine have the shmem_enabled of single sizes."""
    m.globals.put("shmem_advised", sizes.shmem_advised)
    m.globals.put("shmem_within", sizes.shmem_within)
    m.globals.put("shmem_inherits", sizes.shmem_inherits)


def policy_of(m: Machine, backing: File | None) -> str:
    """Return whether a file in memory gets huge pages; None: what is yet to become shared memory.

    It is one of POLICIES, "deny" being told as "never".
    """
    of_machine = POLICIES[m.globals.get("shmem", 0)]
    if of_machine in ("deny", "force"):
        return "never" if of_machine == "deny" else of_machine
    return (backing.huge if backing else "") or of_machine


def folio_page(
    m: Machine, task: Task, file: int, pgoff: int, vma: Vma | None = None, write_end: int = 0
) -> int:
    """Return the frame of a page of a file, which is made, with what is in a folio with it.

    vma: the mapping that faults; without one a write that goes up to byte `write_end` wants it.
    """
    order = new_order(m, file, pgoff, vma, write_end)
    if not order:
        return cached_frame(m, task, file, pgoff)
    pages = 1 << order
    first = pgoff & -pages
    pfn = new_folio(m, task, order)
    m.page_cache(file).set(first, first + pages, pfn - first)
    charge_pages(m, file, pages)
    if order == ORDER:
        m.spend("fault_thp")
    return pfn + pgoff - first


def fill_range(m: Machine, task: Task, file: int, first: int, last: int, end: int) -> None:
    """Let a file have pages [first, last), which fallocate asks for up to byte `end` (SGP_FALLOC).

    What it lacks are folios that nobody has filled with zeroes yet; all of them are dirty.
    """
    cache, at = m.page_cache(file), first
    while at < last:
        if cache.at(at) is not None:
            pfn = cached_frame(m, task, file, at)
        else:
            pfn = folio_page(m, task, file, at, write_end=end)
            begin, behind = folio_around(m, file, at)
            for low, high, frame in m.frames.overlapping(begin - at + pfn, behind - at + pfn):
                m.frames.set(low, high, msgspec.structs.replace(frame, fallocated=True))
        soil_file(m, pfn, pfn + 1)
        at = folio_around(m, file, at)[1]


def makes_folios(m: Machine, file: int) -> bool:
    """Return whether faults of a file may make larger folios than a page."""
    backing = m.files[file]
    by_size = m.globals.get("shmem_advised", 0) | m.globals.get("shmem_within", 0)
    return backing.kind == "shmem" and bool(policy_of(m, backing) != "never" or by_size)


def new_order(m: Machine, file: int, pgoff: int, vma: Vma | None, write_end: int) -> int:
    """Return the order of the folio that is made where a page is missing, 0 for a page alone.

    It is 0 as well where the page is there.
    """
    if not makes_folios(m, file) or m.page_cache(file).at(pgoff) is not None:
        return 0
    backing, cache = m.files[file], m.page_cache(file)
    for order in _allowed(m, backing, pgoff, vma, write_end):
        first = pgoff >> order << order
        if vma is not None and not _has_room(m, vma, pgoff, order):
            continue
        if not cache.any_in(first, first + (1 << order)):
            return order
    return 0


def _allowed(
    m: Machine, backing: File, pgoff: int, vma: Vma | None, write_end: int
) -> tuple[int, ...]:
    """Return the orders that the policy allows, the largest first."""
    if vma is not None and _is_disabled(m, vma):
        return ()
    orders = _of_policy(m, backing, pgoff, vma, write_end)
    if vma is None or backing.named or backing.counts_mappings:
        return orders
    return _of_sizes(m, backing, pgoff, vma, bool(orders))


def _of_sizes(m: Machine, backing: File, pgoff: int, vma: Vma, by_policy: bool) -> tuple[int, ...]:
    """Return the orders that their own shmem_enabled allow, where there is no name.

    by_policy: the mount, or the setting for all, allows huge pages (what "inherit" asks).
    """
    of_machine = POLICIES[m.globals.get("shmem", 0)]
    if of_machine == "deny":
        return ()
    allowed = m.globals.get("shmem_inherits", 1 << ORDER) if by_policy else 0
    if of_machine != "force":
        allowed |= m.globals.get("shmem_advised", 0) if vma.flags & VM_HUGEPAGE else 0
        allowed |= _that_fit(backing, pgoff, m.globals.get("shmem_within", 0))
    return tuple(order for order in range(ORDER, 0, -1) if allowed >> order & 1)


def _that_fit(backing: File, pgoff: int, orders: int) -> int:
    """Return those of some orders (a sum of 1 << order) whose folio ends before the file does."""
    size = -(-backing.size >> PAGE_SHIFT)
    return sum(
        1 << order
        for order in range(1, ORDER + 1)
        if orders >> order & 1 and _end(pgoff, order) <= size
    )


def _is_disabled(m: Machine, vma: Vma) -> bool:
    disabled = m.mm(vma.mm).count("thp_disable")  # 2: but where it is advised
    advised = bool(vma.flags & VM_HUGEPAGE)
    return bool(vma.flags & VM_NOHUGEPAGE) or disabled == 1 or (disabled == 2 and not advised)


def _of_policy(
    m: Machine, backing: File, pgoff: int, vma: Vma | None, write_end: int
) -> tuple[int, ...]:
    """Return the orders that shmem_enabled and the mount allow (shmem_huge_global_enabled)."""
    policy = policy_of(m, backing)
    orders = _all_orders(m, pgoff, vma, write_end)
    if policy == "force":
        return (ORDER,)
    if policy == "always":
        return orders
    if policy == "within_size":
        size = -(-max(write_end, backing.size) >> PAGE_SHIFT)
        fitting = tuple(order for order in orders if _end(pgoff, order) <= size)
        if fitting:
            return fitting
    advised = vma is not None and vma.flags & VM_HUGEPAGE
    return orders if advised else ()


def _all_orders(m: Machine, pgoff: int, vma: Vma | None, write_end: int) -> tuple[int, ...]:
    which = m.globals.get("shmem_folios", ANY_SIZE)
    if which == HUGE_ONLY or (which != ANY_SIZE and vma is not None):
        return (ORDER,)
    largest = ORDER
    if which == BY_WRITE:
        pages = max(write_end - (pgoff << PAGE_SHIFT), 0) >> PAGE_SHIFT
        largest = min(largest, pages.bit_length() - 1)
        if largest > 0 and pgoff % (1 << largest):
            largest = (pgoff & -pgoff).bit_length() - 1
    return tuple(range(largest, 0, -1))


def _end(pgoff: int, order: int) -> int:
    """Return the page behind the folio of an order that a page would be in."""
    return (pgoff >> order) + 1 << order


def _has_room(m: Machine, vma: Vma, pgoff: int, order: int) -> bool:
    """Return whether a VMA could map all of a folio (thp_vma_suitable_order)."""
    if m.globals.get("shmem_anywhere", 0):
        return True
    pages, low = 1 << order, vma.start >> PAGE_SHIFT
    at = low + pgoff - vma.pgoff >> order << order
    lies_alike = not (low - vma.pgoff) % pages
    return lies_alike and low <= at and at + pages <= vma.end >> PAGE_SHIFT
