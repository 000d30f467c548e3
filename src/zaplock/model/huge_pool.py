"""The pools of huge pages (hugetlb): how many nobody uses, and how many of these are promised.

There is one of 2 MiB pages and one of 1 GiB pages, which share nothing: a mapping has pages of one
size, `huge_size` in bytes. A mapping reserves its pages when it is made, unless MAP_NORESERVE says
not to; a fault that finds one reserved takes it, another only what nobody was promised. Who owns a
private mapping's reserve is the VMA that mmap made, and what is split from it or moved; a forked
child's copy owns none. A zap gives a page of an owner's back as reserved (6.9 on), so what an owner
has reserved is what it has not mapped, and its close gives that back. Before 6.9 it is anybody's,
and what the owner touched once it takes as anybody does from then on. An mremap that moves a part
takes the ownership from all of the old VMA: what it had reserved beyond the part is lost
(docs/findings/half-moved-huge-pages).

A shared mapping reserves for its file, and only those pages that the file neither has nor was
promised. What the file was promised it keeps when the mapping goes, until it is cut there or goes
itself; a punched hole takes only the pages that are there.

A mount of hugetlbfs may have a share of the pool (`Subpool`): at most so many pages (size=), used
or promised, and so many that are kept for its files (min_size=), which the pool promised to it when
it was mounted. What its files or mappings need beyond these kept ones is promised by the pool. What
they give back is kept again as long as there are too few; where there is no size=, nobody counts
what is used, so whatever comes back is kept until all is.

Sources (6.18): mm/hugetlb.c (hugetlb_reserve_pages, hugetlb_unreserve_pages, alloc_hugetlb_folio,
hugetlb_wp, hugetlb_vm_op_close, clear_vma_resv_huge_pages, hugepage_subpool_get_pages and
_put_pages, free_huge_folio), fs/hugetlbfs/inode.c (hugetlbfs_file_mmap, hugetlbfs_setattr,
remove_inode_hugepages, hugetlbfs_fallocate).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from zaplock.model.flags import PAGE_SHIFT, PMD_SIZE, PUD_SIZE

if TYPE_CHECKING:
    from zaplock.model.machine import Figure, Machine

KIND_OF: dict[int, str] = {PMD_SIZE: "hugetlb", PUD_SIZE: "gigantic"}
"""What the pages of a size are called, as entries and as frames."""
LEVEL_OF = {PMD_SIZE: 2, PUD_SIZE: 3}
"""The level of the page tables whose entries map pages of a size."""
SIZE_OF = {kind: size for size, kind in KIND_OF.items()}
POOLED = frozenset(SIZE_OF)
"""Kinds of entries, and of frames, that come from a pool."""
_FREE: dict[int, Figure] = {PMD_SIZE: "hugetlb_free", PUD_SIZE: "gigantic_free"}
_RESERVED: dict[int, Figure] = {PMD_SIZE: "hugetlb_reserved", PUD_SIZE: "gigantic_reserved"}


Refusal = Literal["whole", "leaks-used", "loses-kept", "kept"]
"""What becomes of a mount's share where the pool refuses what it wants beyond what is kept.

"whole": all of it comes back. "leaks-used" (6.15): what was wanted stays used for good, and what
was kept is lost to the pool where more is used by then than is to be kept. "loses-kept": only the
latter. "kept" (7.3): neither. A fault that gets no page leaks one as used, but for "whole".
"""


class Subpool(msgspec.Struct, frozen=True):
    """A mount's share of the pool, in huge pages: at most `most`, and `least` kept for it.

    Both are -1 where the mount doesn't say. `used` counts what is used or promised, of a mount
    with a limit only; `kept` what is promised to the mount and to nobody who has a file there.
    `leaks`: of a kept page that is mapped privately by who has reserved nothing, the pool's promise
    stays, and its return adds another (to 6.13). `refusal`: see there.
    """

    most: int
    least: int
    used: int = 0
    kept: int = 0
    leaks: bool = False
    refusal: Refusal = "loses-kept"


def mount(m: Machine, number: int, size: int, share: Subpool) -> None:
    """Give a mount its share of the pool of pages of `size` bytes; what it keeps is promised."""
    kept = max(share.least, 0)
    m.subpools.put(number, msgspec.structs.replace(share, kept=kept))
    promise(m, size, kept)


def most_to_have(m: Machine, subpool: int, left: int) -> int:
    """Return how many pages a mount may be promised at most, `left` being the pool's."""
    if not subpool:
        return left
    share = m.subpools[subpool]
    return share.most if share.most >= 0 else left + share.kept


def draw(m: Machine, subpool: int, pages: int) -> int:
    """Take pages from a mount's share: how many the pool has to promise, -1 beyond its limit.

    `subpool` 0 is no mount's: the pool has to promise all.
    """
    if not subpool:
        return pages
    share = m.subpools[subpool]
    used = share.used + pages * (share.most >= 0)
    if 0 <= share.most < used:
        return -1
    from_kept = min(pages, share.kept)
    m.subpools.put(subpool, msgspec.structs.replace(share, used=used, kept=share.kept - from_kept))
    return pages - from_kept


def put_back(m: Machine, subpool: int, pages: int) -> int:
    """Give pages back to a mount's share: how many of them the pool need not promise any more."""
    if not subpool:
        return pages
    share = m.subpools[subpool]
    used = share.used - pages * (share.most >= 0)
    kept = share.kept
    if used < share.least:
        kept = min(share.kept + pages, share.least)
    m.subpools.put(subpool, msgspec.structs.replace(share, used=used, kept=kept))
    return pages - (kept - share.kept)


def reserve(m: Machine, size: int, subpool: int, pages: int) -> bool:
    """Promise pages of a size to a mapping or a file of a mount; False where they can't be had."""
    before = m.subpools[subpool] if subpool else None
    wanted = draw(m, subpool, pages)
    if wanted < 0:
        return False
    if wanted > (unpromised(m, size) or 0):
        if before:
            refuse(m, size, subpool, before, pages, wanted)
        return False
    promise(m, size, wanted)
    return True


def refuse(m: Machine, size: int, subpool: int, before: Subpool, pages: int, wanted: int) -> None:
    """Give a share back where the pool refuses `wanted` of so many pages; see `Refusal`."""
    if before.refusal == "whole":
        put_back(m, subpool, pages)
    elif before.refusal == "kept":
        m.subpools.put(subpool, before)
    else:
        promise(m, size, -put_back(m, subpool, pages - wanted))
        share = m.subpools[subpool]
        if before.refusal == "loses-kept" and share.most >= 0:
            m.subpools.put(subpool, msgspec.structs.replace(share, used=share.used - wanted))


def unreserve(m: Machine, size: int, subpool: int, pages: int) -> None:
    """Take back what a mapping or a file of a mount was promised and has not used."""
    if pages:
        promise(m, size, -put_back(m, subpool, pages))


def unpromised(m: Machine, size: int) -> int | None:
    """Return how many pages of a size nobody uses or was promised; None where there is no pool."""
    free: int | None = m.globals.get(_FREE[size])
    return None if free is None else free - int(m.globals.get(_RESERVED[size], 0))


def promise(m: Machine, size: int, pages: int) -> None:
    """Reserve so many huge pages of a size in bytes; negative: no longer."""
    if pages:
        m.globals.put(_RESERVED[size], m.globals.get(_RESERVED[size], 0) + pages)


def has_page(m: Machine, size: int, reserved: bool, subpool: int, claims: bool) -> bool:
    """Return whether who wants a huge page, one that was promised to them or another, gets it."""
    if reserved:
        return True
    share = m.subpools[subpool] if subpool else Subpool(-1, -1)
    if 0 <= share.most <= share.used:
        return False
    from_kept = share.kept > 0 and (claims or not share.leaks)
    return from_kept or (unpromised(m, size) or 0) > 0


def take(m: Machine, size: int, reserved: bool, subpool: int = 0, claims: bool = True) -> bool:
    """Take a huge page, one that was promised to who takes it or another; False if none is left.

    `claims`: it is for a file, or for the owner of a reserve (see `Subpool.leaks`). Where the pool
    is empty, a mount's share has one page less for good (see `Refusal`).
    """
    if not reserved:
        wanted = draw(m, subpool, 1)
        if wanted < 0:
            return False
        from_kept = not wanted and (claims or not m.subpools[subpool].leaks)
        if not from_kept and (unpromised(m, size) or 0) <= 0:
            if subpool and (not wanted or m.subpools[subpool].refusal == "whole"):
                put_back(m, subpool, 1)
            return False
        reserved = from_kept
    m.globals.put(_FREE[size], m.globals.get(_FREE[size], 0) - 1)
    promise(m, size, -reserved)
    return True


def give_back(m: Machine, kind: str, pages: int, subpool: int = 0) -> None:
    """Count small pages that huge ones of a kind consist of back into their pool.

    One of a mount's is promised to that where it has too few kept.
    """
    size = SIZE_OF[kind]
    free, count = _FREE[size], (pages << PAGE_SHIFT) // size
    m.globals.put(free, m.globals.get(free, 0) + count)
    if subpool:
        promise(m, size, sum(1 - put_back(m, subpool, 1) for _ in range(count)))
