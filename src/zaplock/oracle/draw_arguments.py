"""How each operation's arguments are chosen; about one in eight is wrong on purpose."""

from __future__ import annotations

from zaplock import advice
from zaplock.oracle import gigantic, hugetlbfs, ops, ring
from zaplock.oracle.draw import Draw
from zaplock.oracle.huge_makers import Maker
from zaplock.oracle.ops import Argument, Ref
from zaplock.oracle.scope import DROPPABLE, EXTRA_FLAGS
from zaplock.oracle.windows import (
    BELOW_RING,
    HUGE_SOURCE,
    HUGE_WINDOW,
    MOST_FILLED,
    MOST_GUARDED,
    MOST_REGISTERED,
    PAGE,
    PMD,
    PUD,
    SOURCE,
    WATCHED_PAGES,
    WINDOW,
)

_MAP_LOCKED = 0x2000
_FILLING = _MAP_LOCKED | 0x8000  # and MAP_POPULATE
_FIXED, _ANON = 0x10, 0x20
_SHARED, _PRIVATE, _VALIDATE = 1, 2, 3
_RDONLY, _RND, _REMAP, _SHM_EXEC = 0o10000, 0o20000, 0o40000, 0o100000  # of shmat


def _mmap(d: Draw) -> tuple[Argument, ...]:
    if d.theme == "brk" and d.made and d.made[0].name == "brk" and d.chance(25):
        start = Ref(0, PAGE * d.random.randint(-3, 8))  # before the heap, or where it may grow to
        return start, PAGE * d.random.randint(1, 4), 3, _PRIVATE | _ANON | _FIXED, ops.NO_FILE, 0
    with_files = d.theme in ("file", "memfd") or d.pages_out
    anonymous = d.theme == "collapse" or d.chance(40 if with_files else 75)
    kind = d.random.choice((_PRIVATE, _PRIVATE, _PRIVATE, _SHARED))
    kind = _PRIVATE if d.theme == "collapse" else kind
    if d.chance(3):
        kind = d.random.choice((0, _VALIDATE, DROPPABLE, 4))
    if kind == DROPPABLE and (DROPPABLE not in d.scope.mmap_flags or d.theme == "group"):
        kind = _PRIVATE  # what a group at its limit drops is up to its lists
    flags = kind | (_ANON if anonymous else 0)
    flags |= _FIXED if d.chance(60) else 0
    for flag, percent in EXTRA_FLAGS.items():
        if flag in d.scope.mmap_flags and d.chance(percent):
            flags |= flag
    if d.theme == "grow" and d.chance(40):
        flags |= 0x100
    length = d.extent(wild=True)
    if d.chance(50):
        length = PAGE * d.random.randint(4, 16)
    if d.theme == "hugetlb":
        flags |= 0x4_0000 if d.chance(85) else 0
        length = d.extent()
    if length >= MOST_FILLED:
        flags &= ~_FILLING
    if d.theme == "references" or d.merges == "processes":
        flags &= ~_MAP_LOCKED
    address = 0 if not flags & _FIXED and d.chance(60) else d.address()
    slot = d.slot() if not anonymous else (ops.NO_FILE if d.chance(98) else 0)
    offset = d.offset() if not anonymous or d.chance(3) else 0
    if d.theme == "hugetlb" and not kind & _SHARED:
        offset = 0  # beyond it, what may not be written is SIGBUS, which the model does not have
    return address, length, d.prot(), flags, slot, offset


def _mremap(d: Draw) -> tuple[Argument, ...]:
    flags = d.flags_of((0, 1, 1, 1, 3, 3, 5, 7), (2, 4, 6, 8, 1 << 31))
    old, new = d.extent(), d.extent()
    if flags & 4 and d.chance(80):
        new = old
    if d.chance(2):
        old = 0
    if d.theme in ("lock", "limits") and d.chance(40):
        old, new, flags = PAGE * d.random.randint(1, 4), PAGE * d.random.randint(16, 80), 1
    if d.fixed and d.goes_far and d.chance(50):
        return _move_far(d, flags)
    return d.address(), old, new, flags, d.address() if flags & 6 else 0


def _move_far(d: Draw, flags: int) -> tuple[Argument, ...]:
    """Move a whole mapping to another window, mostly to the same place in its page table."""
    start, pages = d.random.choice(d.fixed[-8:])
    length = pages * PAGE
    target = d.random.choice(d.windows)
    grain = d.random.choice((PAGE, PMD, PMD, PUD))
    target += (start - target) % grain
    return start, length, length, flags if flags & 6 else flags | 3, target


def _range(d: Draw) -> tuple[Argument, int]:
    return d.address(), d.extent()


def _watched(d: Draw) -> tuple[Argument, int]:
    """Choose a range for a userfaultfd: mostly where one watches from the beginning on."""
    if d.chance(20) or d.theme == "uffd-huge":
        return _range(d)
    return WINDOW + PAGE * d.random.randrange(WATCHED_PAGES), PAGE * d.random.choice((1, 1, 2, 4))


def _to_register(d: Draw) -> tuple[Argument, int]:
    """Choose a fixed buffer: one that RLIMIT_MEMLOCK, which counts for a whole user, lets pass."""
    address, length = _range_off_ring(d)
    return address, length if length > PUD else min(length, MOST_REGISTERED)


def _move_pages(d: Draw) -> tuple[Argument, ...]:
    if d.theme == "uffd-huge":
        return _move_huge_pages(d)
    source = d.page() if d.chance(20) else SOURCE + PAGE * d.random.randrange(8)
    return *_watched(d), source, d.random.choice((0, 0, 0, 2, 2, 1, 4))


def _move_huge_pages(d: Draw) -> tuple[Argument, ...]:
    """Choose pages to move: whole huge pages, parts of them, and there and back again."""
    target = HUGE_WINDOW + PMD * d.random.randrange(2)
    source = HUGE_SOURCE + PMD * d.random.randrange(2)
    if d.chance(15):
        target, source = source, target
    length = d.random.choice((PMD, PMD, PMD, PAGE, 4 * PAGE, PMD - PAGE, PMD + PAGE, 2 * PMD))
    if d.chance(40):
        target += PAGE * d.random.choice((1, 7, 511, d.random.randrange(512)))
    if d.chance(40):
        source += PAGE * d.random.choice((1, 7, 511, d.random.randrange(512)))
    return target, length, source, d.random.choice((0, 0, 0, 2, 2, 2, 1, 4))


def _page_and_length(d: Draw) -> tuple[Argument, int]:
    """Choose where a system call copies to or from: whole pages, and eight bytes of a last one.

    No earlier result: where that is an errno, this would begin within a page.
    """
    (where,) = _access(d)
    where = d.page() if isinstance(where, Ref) else where
    return where, PAGE * d.random.randint(0, 6) + d.random.choice((0, 0, 8, 2048))


def _remote(d: Draw) -> tuple[Argument, int]:
    """Choose what is read or written as if it were another process's."""
    where, length = _page_and_length(d)
    return where, 1 << 63 if d.chance(2) else length


def _all_memory(d: Draw) -> tuple[Argument, int]:
    return d.address(), d.extent(wild=True)


def _advice(d: Draw) -> int:
    if d.chance(3):
        return d.random.choice((5, 6, 7, 26, 99, 104, -1))
    if d.pages_out and d.chance(60):
        guard = 4 if d.protects else 102
        others: tuple[int, ...] = (4, 20, 22, 23, guard, *(() if d.theme == "swap" else (8, 8)))
        return d.random.choice((*[advice.MADV_PAGEOUT] * 4, *others))
    if d.theme == "uffd" and d.chance(40):
        guards = (4, 4) if d.protects else (102, 102)
        return d.random.choice((4, 8, 9 if d.removes else 4, 22, 23, *guards, 103))
    if d.theme == "lazyfree" and d.chance(70):
        return d.random.choice((*[advice.MADV_FREE] * 4, 22, 23, 4, 20, 102, 103))
    if d.merges and d.chance(75):
        undoes = advice.MADV_MERGEABLE if d.merges == "processes" else advice.MADV_UNMERGEABLE
        huge: tuple[int, ...] = (14, 14) if d.merges == "huge" else ()
        return d.random.choice((*[advice.MADV_MERGEABLE] * 4, undoes, undoes, 23, 23, 4, *huge))
    if d.theme == "collapse" and d.chance(70):
        return d.random.choice((*[advice.MADV_COLLAPSE] * 4, 4, 14, 15, 102, 103, 22, 23))
    if d.is_huge and d.chance(60):
        return d.random.choice((14, 14, 14, 15, 4, 8, 20, 22, 23, 102, 103))
    chosen = d.random.choice(d.scope.advice)
    if d.protects and chosen == advice.MADV_GUARD_INSTALL:
        return advice.MADV_DONTNEED  # where a file is write-protected, it never ends
    if d.merges == "processes" and chosen == advice.MADV_UNMERGEABLE:
        return advice.MADV_MERGEABLE
    if d.merges not in ("", "huge") and chosen == advice.MADV_HUGEPAGE:
        return advice.MADV_MERGEABLE
    if d.theme in ("pageout", "lazyfree") and chosen == advice.MADV_HUGEPAGE:
        return advice.MADV_FREE
    if d.theme == "references" and chosen in (advice.MADV_RANDOM, advice.MADV_SEQUENTIAL):
        return advice.MADV_COLD  # what is read so is not noted when it is unmapped
    if d.theme == "group" and chosen == advice.MADV_FREE:
        return advice.MADV_DONTNEED
    if d.theme == "swap" and chosen == advice.MADV_FREE:
        return advice.MADV_PAGEOUT  # whether that marks a page depends on what was written so far
    return chosen if chosen != advice.MADV_REMOVE or d.removes else advice.MADV_DONTNEED


def _madvise(d: Draw) -> tuple[Argument, ...]:
    """Advise, but neither on the ring (it lies above all else) nor to fill gigabytes."""
    (address, length), chosen = _range(d), _advice(d)
    if d.is_huge and d.chance(20):
        address, length = HUGE_WINDOW + PMD * d.random.randrange(3), PMD * d.random.randint(1, 2)
        chosen = d.random.choice((4, 4, 22, 24, chosen))
    most = {22: MOST_FILLED, 23: MOST_FILLED, 102: MOST_GUARDED}.get(chosen, 1 << 64)
    length = _off_ring(d, address, length, most)
    return address, length, chosen


def _mbind(d: Draw) -> tuple[Argument, ...]:
    """Choose a policy: few of them, so that neighbours have equal ones, and all that is refused."""
    mode, nodes = d.random.choice(((2, 1), (2, 1), (5, 1), (1, 1), (3, 1), (4, 0), (0, 0), (0, 0)))
    if d.chance(25):
        mode = d.random.choice((*range(8), 9, -1))
        nodes = d.random.choice((0, 1, 2, 3, 6))
    if d.chance(20):
        mode |= d.random.choice((1 << 13, 1 << 14, 1 << 15, 3 << 14, 1 << 12))
    flags = d.flags_of((0, 0, 0, 1, 2, 3), (4, 6, 8))
    return *_range_off_ring(d), mode, nodes, flags if nodes & 1 else flags & ~2


def _range_off_ring(d: Draw) -> tuple[Argument, int]:
    address, length = _range(d)
    return address, _off_ring(d, address, length)


def _off_ring(d: Draw, address: Argument, length: int, most: int = 1 << 64) -> int:
    """Make a length short if it is at least `most`, or reaches the ring, where no seal helps."""
    reaches_ring = isinstance(address, Ref) or address + length >= ring.RING
    wraps = length > (1 << 64) - (1 << 40) and (isinstance(address, Ref) or address > 0)
    if length >= (min(most, BELOW_RING) if reaches_ring else most) and not wraps:
        return PAGE * d.random.randint(1, 8)
    return length


def _brk(d: Draw) -> tuple[Argument, ...]:
    if not d.chosen or d.chance(25):
        return (0,)
    earlier = [k for k in d.chosen if d.made[k].name == "brk"]
    if earlier and d.chance(90):
        return (Ref(d.random.choice(earlier), PAGE * d.random.randint(-6, 10)
                    + (d.random.randrange(PAGE) if d.chance(15) else 0)),)  # fmt: skip
    return (d.address(),)


def _setrlimit(d: Draw) -> tuple[Argument, ...]:
    resource = d.random.choice((ops.RLIMIT_AS, ops.RLIMIT_AS, ops.RLIMIT_MEMLOCK,
                                ops.RLIMIT_DATA, ops.RLIMIT_STACK))  # fmt: skip
    pages = d.random.randint(0, 48)
    if resource == ops.RLIMIT_MEMLOCK and d.chance(30):
        return resource, 0
    base = ring.RING_SIZE if resource in (ops.RLIMIT_AS, ops.RLIMIT_MEMLOCK) else 0
    return resource, (base if d.chance(70) else 0) + pages * PAGE + (d.chance(10) and 77)


def _access(d: Draw) -> tuple[Argument, ...]:
    """Choose where to read or write: the beginning of a page, since that is where tags are."""
    where = d.address()
    if isinstance(where, Ref):
        return (where if d.made[where.op].name != "brk" else d.page(),)
    return (where & -PAGE,)


MAKERS: dict[str, Maker] = {
    "mmap": _mmap,
    "mremap": _mremap,
    "munmap": _all_memory,
    "mprotect": lambda d: (*_all_memory(d), d.prot()),
    "pkey_mprotect": lambda d: (*_range(d), d.prot(), d.random.choice((-1, -1, -1, 0, 1, 16))),
    "madvise": _madvise,
    "process_madvise": _madvise,
    "msync": lambda d: (*_range(d), d.flags_of((1, 2, 4, 0, 6), (5, 3, 8, -1))),
    "mincore": _range,
    "mlock": _range,
    "mlock2": lambda d: (*_range(d), d.flags_of((0, 1, 1), (2, 3, -1))),
    "munlock": _range,
    "mlockall": lambda d: (d.flags_of((1, 2, 3, 6, 7, 5), (0, 4, 8, 9)),),
    "munlockall": lambda d: (),
    "brk": _brk,
    "remap_file_pages": lambda d: (
        *_range(d), d.random.choice((0, 0, 0, 1)), d.random.randrange(20),
        d.random.choice((0, 0x10000)),
    ),
    "mseal": lambda d: (*_range(d), d.random.choice((0, 0, 0, 0, 1))),
    "ftruncate": lambda d: (
        d.random.choice(
            (0, 0, 0, 1, 1, 1, ops.ZERO_SLOT, ops.READ_ONLY_SLOT, ops.BAD_FILE)
        ),  # disk: see fidelity.md
        PAGE * d.random.randrange(20) + (d.random.randrange(PAGE) if d.chance(20) else 0),
    ),
    "set_mdwe": lambda d: (d.random.choice((0, 1, 1, 1, 3, 2, 4)),),
    "set_thp_disable": lambda d: (
        d.random.choice((0, 0, 1, 1, 1, 7)), d.flags_of((0, 0, 2), (1, 3, 4, 1 << 32)),
    ),
    "add_seals": lambda d: (d.slot(), d.random.choice((2, 4, 8, 8, 8, 16, 6, 1, 32, 0, 14, 64))),
    "pread": lambda d: (d.slot(), *_page_and_length(d), d.offset() & -PAGE),
    "pwrite": lambda d: (d.memory_slot(), *_page_and_length(d), d.offset() & -PAGE),
    "process_vm_readv": _remote,
    "process_vm_writev": _remote,
    "load": _access,
    "store": _access,
    "store_value": lambda d: (*_access(d), d.random.choice((0, 7, 7, 8, 9))),
    "fill_memory": lambda d: (d.random.choice((ops.LITTLE, ops.MUCH)), d.random.choice((0, 1, 2))),
    "clear_refs": lambda d: (d.flags_of((1, 1, 1, 2, 2, 3, 3, 4, 5), (0, 6, -1)),),
    "ksm_scan": lambda d: (),
    "ksm_unmerge": lambda d: (),
    "ksm_zero_pages": lambda d: (d.random.choice((0, 1, 1, 1)),),
    "set_memory_merge": lambda d: (d.random.choice((0, 1, 1, 1, 7)),),
    "setrlimit": _setrlimit,
    "fork": lambda d: (),
    "into_child": lambda d: (),
    "crowd": lambda d: (2 * d.random.randint(0, 6) + 1,),
    "uffd_register": lambda d: (
        *_watched(d), d.random.choice((1, 1, 2, 3, 4, 4, 5, 6, 0, 8)) & (~0 if d.protects else ~2),
    ),
    "uffd_unregister": _watched,
    "uffd_copy": lambda d: (_watched(d)[0], d.random.choice((0, 0, 0, 1, 4))),
    "uffd_zeropage": lambda d: (*_watched(d), d.random.choice((0, 0, 0, 1, 2))),
    "shmat": lambda d: (
        0 if d.chance(30) else d.address(),
        d.random.choice((0, 0, 0, _RDONLY, _RND, _REMAP, _REMAP, _SHM_EXEC, _RDONLY | _REMAP)),
    ),
    "shmdt": lambda d: (d.address(),),
    "mbind": _mbind,
    "set_mempolicy_home_node": lambda d: (
        *_range_off_ring(d), d.random.choice((0, 0, 0, 0, 0, 0, 1, 1024, -1)),
        d.random.choice((0, 0, 0, 0, 0, 0, 0, 1)),
    ),
    "uffd_writeprotect": lambda d: (
        *_watched(d), d.random.choice((1, 1, 1, 0, 0, 2)) if d.protects else 0,
    ),
    "uffd_move": _move_pages,
    "uring_register": _to_register,
    "uffd_poison": lambda d: (*_watched(d), d.random.choice((0, 0, 0, 0, 1, 2))),
    "uffd_continue": lambda d: (*_watched(d), d.random.choice((0, 0, 0, 0, 1, 2, 4))),
}  # fmt: skip
"""By operation, how its arguments are chosen."""

MAKERS_OF_THEMES = {"gigantic": gigantic.MAKERS, "hugetlbfs": hugetlbfs.MAKERS}
"""Makers of a theme's own, by theme (themes.WITH_OWN_MAKERS); what they lack is in MAKERS."""
