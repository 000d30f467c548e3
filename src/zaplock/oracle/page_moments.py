"""At which moments a call changes a page for those who access it beside it.

Most calls do that at one moment, and hold a lock from before they look until after it that keeps
out whoever changes mappings. These have more, each as an operation of its own:

- An access faults, as often as it takes, and is done some time after; in between, what the fault
  has done (a stack has grown, a page is there) can be seen, and taken away again.
- MADV_GUARD_INSTALL guards what is empty and zaps what is not, as often as it takes, begins anew
  when it has let the lock go, and is done when all is guarded (madvise_guard_install).
- What populates (mmap, mlock, a heap or a mapping that grows and is locked) does so when it no
  longer holds the lock for write (mm_populate): others may come first, and it may not come to a
  page at all. MADV_POPULATE_* looks at each page by itself, and again after a fault.
- UFFDIO_UNREGISTER takes the write protection away before it locks the mapping.
- What concerns several pages comes to each by itself, whatever others have done to those before.
"""

from __future__ import annotations

from typing import NamedTuple

from zaplock import advice
from zaplock.model.flags import PAGE_MASK, PAGE_SIZE
from zaplock.oracle.ops import Op, arguments_of
from zaplock.oracle.threaded import FORK_LOAD

FAULT = "fault"
"""Internal: a fault at an address (for writing or not) without the access."""

POPULATING = frozenset({"mmap", "brk", "mremap", "mlock", "mlock2", "mlockall", "remap_file_pages"})
"""What may fault pages in when it has let go of the mmap_lock for write."""
EXCLUSIVE = POPULATING | {
    "munmap", "mprotect", "munlock", "munlockall", "mseal", "uffd_register", "uffd_unregister",
    FORK_LOAD,
}  # fmt: skip
"""What holds the mmap_lock for write."""
OF_ALL = frozenset({FORK_LOAD, "mlockall", "munlockall"})
"""What concerns every mapping."""

_ADVISING = ("madvise", "process_madvise")
_OF_PAGES = frozenset({
    advice.MADV_DONTNEED, advice.MADV_DONTNEED_LOCKED, advice.MADV_FREE, advice.MADV_REMOVE,
    advice.MADV_COLD, advice.MADV_GUARD_INSTALL, advice.MADV_GUARD_REMOVE,
})  # fmt: skip
"""Advice that is taken page by page."""
_FILLED = ("uffd_zeropage", "uffd_poison", "uffd_continue", "uffd_writeprotect")


class Moments(NamedTuple):
    """What may be done to a page before an operation is done as a whole, and what after it.

    All of that may be done several times, or not at all. begins_anew: before it is done it may let
    go of all that it holds.
    """

    before: tuple[Op, ...]
    after: tuple[Op, ...]
    begins_anew: bool = False


def moments(op: Op, page: int) -> Moments:
    """Return at which moments an operation changes a page."""
    faults = Op(FAULT, (page, 0)), Op(FAULT, (page, 1))
    if op.name in ("load", "store"):
        return Moments((Op(FAULT, (op.args[0], int(op.name == "store"))),), ())
    if op.name in POPULATING:
        return Moments((), faults)
    if op.name == "pread":
        alone = _page_by_page(op)
        return Moments((*faults, *alone), faults) if covers(op, page) else Moments(alone, ())
    if not covers(op, page):
        return Moments((), ())
    arguments = [value for value in op.args if isinstance(value, int)]
    if op.name in _ADVISING:
        begins_anew = arguments[2] == advice.MADV_GUARD_INSTALL
        return Moments(_advised(op.name, arguments[2], page, faults), (), begins_anew)
    if op.name == "uffd_unregister":
        return Moments((Op("uffd_writeprotect", (page, PAGE_SIZE, 0)),), ())
    if op.name in _FILLED:
        return Moments((Op(op.name, (page, PAGE_SIZE, *arguments[2:])),), ())
    if op.name in ("process_vm_readv", "process_vm_writev"):
        return Moments((*faults, Op(op.name, (page, PAGE_SIZE))), ())
    return Moments((), ())


def _page_by_page(pread: Op) -> tuple[Op, ...]:
    """Return the reads of single pages that one of several is.

    Each matters for every page: what is read may be where an earlier one has been written to.
    """
    file, start, length, offset = (value for value in pread.args if isinstance(value, int))
    return tuple(
        Op("pread", (file, start + at, min(PAGE_SIZE, length - at), offset + at))
        for at in range(0, length, PAGE_SIZE)
    )


def _advised(name: str, given: int, page: int, faults: tuple[Op, ...]) -> tuple[Op, ...]:
    if given in (advice.MADV_POPULATE_READ, advice.MADV_POPULATE_WRITE):
        return faults
    if given not in _OF_PAGES:
        return ()
    alone = Op(name, (page, PAGE_SIZE, given))
    if given == advice.MADV_GUARD_INSTALL:
        return Op(name, (page, PAGE_SIZE, advice.MADV_DONTNEED)), alone
    return (alone,)


def covers(op: Op, page: int) -> bool:
    """Return whether a page is in the range that an operation names."""
    named = dict(zip(arguments_of(op.name), op.args, strict=False)) if op.name != FORK_LOAD else {}
    start = named.get("addr")
    if not isinstance(start, int):
        return False
    length = named.get("length", PAGE_SIZE)
    return start & PAGE_MASK <= page < start + (length if isinstance(length, int) else PAGE_SIZE)
