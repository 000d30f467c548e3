"""How each operation's arguments are chosen, and how often it comes in each theme.

About one argument in eight is wrong on purpose.
"""

from __future__ import annotations

from zaplock.oracle import gigantic, hugetlbfs, ops, ring
from zaplock.oracle.draw import Draw
from zaplock.oracle.draw_advice import madvise
from zaplock.oracle.draw_neighbours import beside, goes_on
from zaplock.oracle.draw_ranges import (
    access,
    all_memory,
    any_range,
    page_and_length,
    pages_to_move,
    range_off_ring,
    remote,
    to_register,
    watched,
)
from zaplock.oracle.huge_makers import Maker
from zaplock.oracle.ops import Argument, Ref
from zaplock.oracle.scope import DROPPABLE, EXTRA_FLAGS
from zaplock.oracle.themes import BY_SETTING
from zaplock.oracle.windows import MOST_FILLED, PAGE, PMD, PUD

_MAP_LOCKED = 0x2000
_ON_THEIR_OWN = ("hugetlb", "gigantic", "hugetlbfs", "collapse-file", "group", "crowd")
"""Themes whose mappings are none of the kind that `draw_neighbours` lays side by side."""
_FILLING = _MAP_LOCKED | 0x8000  # and MAP_POPULATE
_FIXED, _ANON = 0x10, 0x20
_SHARED, _PRIVATE, _VALIDATE = 1, 2, 3
_NO_MODES = (2, 4, 8, 9, 0x10, 0x11, 0x20, 0x40, 0x100)
"""Modes of fallocate that files in memory refuse; 2 is a hole that does not keep the size."""
_RDONLY, _RND, _REMAP, _SHM_EXEC = 0o10000, 0o20000, 0o40000, 0o100000  # of shmat


def _mmap(d: Draw) -> tuple[Argument, ...]:
    if d.theme == "brk" and d.made and d.made[0].name == "brk" and d.chance(25):
        start = Ref(0, PAGE * d.random.randint(-3, 8))  # before the heap, or where it may grow to
        return start, PAGE * d.random.randint(1, 4), 3, _PRIVATE | _ANON | _FIXED, ops.NO_FILE, 0
    if d.chance(8) and d.theme not in _ON_THEIR_OWN and (going_on := goes_on(d)):
        return going_on
    with_files = d.theme in ("file", "memfd", "collapse-file", "dirty") or d.pages_out
    percent = 15 if d.theme == "shmem-huge" else 40 if with_files or d.makes_shared_huge else 75
    anonymous = d.theme == "collapse" or d.chance(percent)
    kind = d.random.choice((_PRIVATE, _PRIVATE, _PRIVATE, _SHARED))
    kind = _PRIVATE if d.theme == "collapse" else kind
    kind = _SHARED if anonymous and d.theme in BY_SETTING and d.chance(60) else kind
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
    if d.theme == "collapse-file" and d.chance(80):
        flags, offset = flags | (kind & _PRIVATE and d.chance(50)), d.random.choice((0, 0, 0, PMD))
        length = PMD * d.random.randint(1, 3)
    if d.makes_shared_huge and d.chance(80):
        flags |= kind & _PRIVATE and d.chance(60)
        offset = d.random.choice((0, 0, 0, PMD, 2 * PMD, PAGE, PMD - PAGE, 64 * PAGE))
        length = PMD * d.random.randint(1, 3) + PAGE * d.random.choice((0, 0, 0, 1, -1, 40, -100))
    if d.theme == "hugetlb" and not kind & _SHARED:
        offset = 0  # beyond it, what may not be written is SIGBUS, which the model does not have
    return address, length, d.prot(), flags, slot, offset


def _to_read(d: Draw) -> int:
    """Choose a file to read, other than /dev/zero where it is compared which pages were used.

    What clears memory (`rep stosb`) marks an entry as used on some CPUs before it finds that it may
    not write there; what copies does not.
    """
    slot = d.slot()
    return 0 if d.theme == "references" and slot == ops.ZERO_SLOT else slot


def _mremap(d: Draw) -> tuple[Argument, ...]:
    flags = d.flags_of((0, 1, 1, 1, 3, 3, 5, 7), (2, 4, 6, 8, 1 << 31))
    if d.chance(15) and d.theme not in _ON_THEIR_OWN and (moved := beside(d)):
        return moved
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


def _mbind(d: Draw) -> tuple[Argument, ...]:
    """Choose a policy: few of them, so that neighbours have equal ones, and all that is refused."""
    mode, nodes = d.random.choice(((2, 1), (2, 1), (5, 1), (1, 1), (3, 1), (4, 0), (0, 0), (0, 0)))
    if d.chance(25):
        mode = d.random.choice((*range(8), 9, -1))
        nodes = d.random.choice((0, 1, 2, 3, 6))
    if d.chance(20):
        mode |= d.random.choice((1 << 13, 1 << 14, 1 << 15, 3 << 14, 1 << 12))
    flags = d.flags_of((0, 0, 0, 1, 2, 3), (4, 6, 8))
    flags = flags if nodes & 1 else flags & ~2
    return *range_off_ring(d), d.word(mode), nodes, d.word(flags)


def _brk(d: Draw) -> tuple[Argument, ...]:
    if not d.chosen or d.chance(25):
        return (0,)
    earlier = [k for k in d.chosen if d.made[k].name == "brk"]
    if earlier and d.chance(90):
        return (Ref(d.random.choice(earlier), PAGE * d.random.randint(-6, 10)
                    + (d.random.randrange(PAGE) if d.chance(15) else 0)),)  # fmt: skip
    return (d.address(),)


def _ftruncate(d: Draw) -> tuple[Argument, ...]:
    part = d.random.randrange(PAGE) if d.chance(20) else 0
    if d.makes_shared_huge and d.chance(85):
        pages = d.random.choice((0, 0, 0, 1, 3, 16, 37, 200, 256, 500, 511))
        size = PMD * d.random.choice((0, 1, 1, 2, 2, 3, 4)) + PAGE * pages
        return d.huge_slot(), size + part
    slot = d.random.choice(  # disk: see fidelity.md
        (0, 0, 0, 1, 1, 1, ops.ZERO_SLOT, ops.READ_ONLY_SLOT, ops.BAD_FILE)
    )
    return slot, PAGE * d.random.randrange(20) + part


def _fallocate(d: Draw) -> tuple[Argument, ...]:
    """Fill a file in memory or punch a hole: in pages, whole huge ones, or beside both."""
    slot = d.random.choice((0, 0, 0, 1, 1, ops.READ_ONLY_SLOT, ops.ZERO_SLOT, ops.BAD_FILE))
    if d.makes_shared_huge and d.chance(90):
        slot = d.huge_slot()
    mode = d.flags_of((0, 0, 0, 1, 1, 3, 3, 3, 3) if d.removes else (0, 0, 1), _NO_MODES)
    offset, length = d.offset(), PAGE * d.random.choice((1, 1, 2, 3, 5, 8, 16))
    if d.is_huge and d.chance(70):
        length = PMD * d.random.choice((1, 1, 2, 3)) + PAGE * d.random.choice((0, 0, 0, 1, -1, 37))
    if d.chance(20):
        offset, length = offset + d.random.choice((1, 5, 8, 0x800)), d.random.randint(1, 3 * PAGE)
    if d.chance(3):
        wrong = (0, -PAGE, 1 << 63, *((1 << 40,) if slot in ops.TMPFS_FILES else ()))
        length = d.random.choice(wrong)
    return slot, d.word(mode), offset, length


def _shmat(d: Draw) -> tuple[Argument, ...]:
    flags = d.random.choice((0, 0, 0, _RDONLY, _RND, _REMAP, _REMAP, _SHM_EXEC, _RDONLY | _REMAP))
    return 0 if d.chance(30) else d.address(), d.word(flags)


def _setrlimit(d: Draw) -> tuple[Argument, ...]:
    resource = d.random.choice((ops.RLIMIT_AS, ops.RLIMIT_AS, ops.RLIMIT_MEMLOCK,
                                ops.RLIMIT_DATA, ops.RLIMIT_STACK))  # fmt: skip
    pages = d.random.randint(0, 48)
    if resource == ops.RLIMIT_MEMLOCK and d.chance(30):
        return resource, 0
    base = ring.RING_SIZE if resource in (ops.RLIMIT_AS, ops.RLIMIT_MEMLOCK) else 0
    return resource, (base if d.chance(70) else 0) + pages * PAGE + (d.chance(10) and 77)


MAKERS: dict[str, Maker] = {
    "mmap": _mmap,
    "mremap": _mremap,
    "munmap": all_memory,
    "mprotect": lambda d: (*all_memory(d), d.prot()),
    "pkey_mprotect": lambda d: (
        *any_range(d), d.prot(), d.word(d.random.choice((-1, -1, -1, 0, 1, 16)))
    ),
    "madvise": madvise,
    "process_madvise": madvise,
    "msync": lambda d: (*any_range(d), d.word(d.flags_of((1, 2, 4, 0, 6), (5, 3, 8, -1)))),
    "mincore": any_range,
    "mlock": any_range,
    "mlock2": lambda d: (*any_range(d), d.word(d.flags_of((0, 1, 1), (2, 3, -1)))),
    "munlock": any_range,
    "mlockall": lambda d: (d.word(d.flags_of((1, 2, 3, 6, 7, 5), (0, 4, 8, 9))),),
    "munlockall": lambda d: (),
    "brk": _brk,
    "remap_file_pages": lambda d: (
        *any_range(d), d.random.choice((0, 0, 0, 1)), d.random.randrange(20),
        d.random.choice((0, 0x10000)),
    ),
    "mseal": lambda d: (*any_range(d), d.random.choice((0, 0, 0, 0, 1))),
    "ftruncate": _ftruncate,
    "fallocate": _fallocate,
    "set_mdwe": lambda d: (d.random.choice((0, 1, 1, 1, 3, 2, 4)),),
    "set_thp_disable": lambda d: (
        d.random.choice((0, 0, 1, 1, 1, 7)), d.flags_of((0, 0, 2), (1, 3, 4, 1 << 32)),
    ),
    "add_seals": lambda d: (
        d.slot(), d.word(d.random.choice((2, 4, 8, 8, 8, 16, 6, 1, 32, 0, 14, 64)))
    ),
    "pread": lambda d: (_to_read(d), *page_and_length(d), d.offset() & -PAGE),
    "pwrite": lambda d: (d.memory_slot(), *page_and_length(d), d.offset() & -PAGE),
    "process_vm_readv": remote,
    "process_vm_writev": remote,
    "load": access,
    "store": access,
    "store_value": lambda d: (*access(d), d.random.choice((0, 7, 7, 8, 9))),
    "fill_memory": lambda d: (d.random.choice((ops.LITTLE, ops.MUCH)), d.random.choice((0, 1, 2))),
    "fill_group": lambda d: (d.random.choice(d.scope.fills),),
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
        *watched(d), d.random.choice((1, 1, 2, 3, 4, 4, 5, 6, 0, 8)) & (~0 if d.protects else ~2),
    ),
    "uffd_unregister": watched,
    "uffd_copy": lambda d: (watched(d)[0], d.random.choice((0, 0, 0, 1, 4))),
    "uffd_zeropage": lambda d: (*watched(d), d.random.choice((0, 0, 0, 1, 2))),
    "shmat": _shmat,
    "huge_shmat": _shmat,
    "shmdt": lambda d: (d.address(),),
    "mbind": _mbind,
    "set_mempolicy_home_node": lambda d: (
        *range_off_ring(d), d.random.choice((0, 0, 0, 0, 0, 0, 1, 1024, -1)),
        d.random.choice((0, 0, 0, 0, 0, 0, 0, 1)),
    ),
    "uffd_writeprotect": lambda d: (
        *watched(d), d.random.choice((1, 1, 1, 0, 0, 2)) if d.protects else 0,
    ),
    "uffd_move": pages_to_move,
    "uring_register": to_register,
    "uffd_poison": lambda d: (*watched(d), d.random.choice((0, 0, 0, 0, 1, 2))),
    "uffd_continue": lambda d: (*watched(d), d.random.choice((0, 0, 0, 0, 1, 2, 4))),
}  # fmt: skip
"""By operation, how its arguments are chosen."""

MAKERS_OF_THEMES = {"gigantic": gigantic.MAKERS, "hugetlbfs": hugetlbfs.MAKERS}
"""Makers of a theme's own, by theme (themes.WITH_OWN_MAKERS); what they lack is in MAKERS."""

_WATCHING = {"uffd_register": 4, "uffd_unregister": 1, "uffd_copy": 4, "uffd_zeropage": 2,
             "uffd_continue": 4, "uffd_poison": 2, "uffd_writeprotect": 6}  # fmt: skip
_STAYING = {"mmap": 24, "munmap": 7, "mprotect": 12, "load": 9, "store": 20, "mincore": 2}
_COMMON = {**_STAYING, "into_child": 1}  # not where something belongs to the parent alone
_WITHOUT_MINCORE = {name: weight for name, weight in _COMMON.items() if name != "mincore"}
_GIGANTIC = {
    "mmap": 26, "munmap": 7, "mprotect": 8, "load": 5, "store": 7, "mremap": 8,
    "madvise": 12, "ftruncate": 4, "mlock": 1, "munlock": 1, "mincore": 2, "fork": 3,
    "into_child": 2, "msync": 1, "mseal": 1,
}  # fmt: skip
_HUGETLBFS = {
    "mmap": 26, "munmap": 8, "mprotect": 5, "load": 7, "store": 14, "mremap": 6,
    "madvise": 14, "ftruncate": 5, "fallocate": 9, "huge_room": 6, "mlock": 1,
    "munlock": 1, "mincore": 1, "fork": 3, "into_child": 2, "msync": 1,
    "mseal": 1,
}  # fmt: skip
_SHMEM_HUGE = {
    **_COMMON, "madvise": 30, "mremap": 6, "fork": 3, "mlock": 2, "munlock": 1, "ftruncate": 6,
    "fallocate": 10, "pread": 2, "pwrite": 8, "process_vm_writev": 2, "set_thp_disable": 1,
    "msync": 1, **_WATCHING,
}  # fmt: skip
WEIGHTS: dict[str, dict[str, int]] = {
    "plain": {**_COMMON, "mremap": 10, "madvise": 8, "msync": 2, "remap_file_pages": 1},
    "advice": {**_COMMON, "madvise": 40, "process_madvise": 4, "mremap": 4, "fork": 2},
    "lock": {**_COMMON, "mlock": 10, "mlock2": 8, "munlock": 8, "mlockall": 3, "munlockall": 2,
             "mremap": 10, "madvise": 6, "brk": 3, "setrlimit": 4},
    "move": {**_COMMON, "mremap": 40, "madvise": 4, "mlock": 2},
    "file": {**_COMMON, "ftruncate": 8, "pread": 4, "pwrite": 4, "msync": 6, "madvise": 10,
             "mremap": 6, "remap_file_pages": 6, "fork": 1},
    "kernel": {**_COMMON, "pread": 8, "pwrite": 8, "process_vm_readv": 10, "process_vm_writev": 12,
               "fork": 3, "madvise": 8, "mremap": 4, "mlock": 2, "ftruncate": 3, "mseal": 1},
    "fork": {**_STAYING, "fork": 12, "into_child": 4, "madvise": 16, "mremap": 6, "mlock": 2},
    "brk": {**_COMMON, "brk": 30, "mlockall": 2, "madvise": 4, "mremap": 4, "setrlimit": 1},
    "limits": {**_COMMON, "setrlimit": 12, "mlock": 6, "mlockall": 3, "mremap": 8, "brk": 8},
    "grow": {**_COMMON, "store": 30, "mremap": 4, "mlock": 3, "setrlimit": 1, "madvise": 3},
    "huge": {**_COMMON, "madvise": 30, "mremap": 6, "fork": 1, "mlock": 2},
    "seal": {**_COMMON, "mseal": 16, "mremap": 8, "madvise": 24, "mlock": 2, "brk": 2},
    "process": {**_COMMON, "set_mdwe": 3, "set_thp_disable": 5, "set_memory_merge": 5,
                "madvise": 16, "mprotect": 24, "brk": 2, "fork": 4, "mremap": 4, "mlock": 1},
    "memfd": {**_COMMON, "add_seals": 8, "ftruncate": 10, "fallocate": 8, "pwrite": 8, "pread": 3,
              "madvise": 12, "mprotect": 16, "mremap": 8, "fork": 2, "mlock": 1,
              "remap_file_pages": 1},
    "uffd": {**_COMMON, "uffd_register": 4, "uffd_unregister": 2, "uffd_copy": 10,
             "uffd_zeropage": 6, "uffd_continue": 8, "uffd_poison": 6, "uffd_writeprotect": 12,
             "mremap": 6, "madvise": 8, "fork": 1, "mlock": 1, "ftruncate": 2},
    "uffd-move": {**_COMMON, "uffd_register": 3, "uffd_unregister": 1, "uffd_copy": 4,
                  "uffd_zeropage": 4, "uffd_poison": 2, "uffd_writeprotect": 3, "uffd_move": 30,
                  "fork": 3, "mremap": 3, "madvise": 8, "mlock": 1},
    "uffd-huge": {**_COMMON, "uffd_register": 3, "uffd_unregister": 1, "uffd_copy": 2,
                  "uffd_zeropage": 2, "uffd_writeprotect": 4, "uffd_move": 36, "fork": 4,
                  "mremap": 4, "madvise": 14, "mlock": 1},
    "uring": {**_STAYING, "uring_register": 30, "mremap": 4, "madvise": 12, "fork": 4, "mlock": 2,
              "ftruncate": 4, "mseal": 1},
    "policy": {**_COMMON, "mbind": 40, "set_mempolicy_home_node": 12, "mremap": 10, "madvise": 6,
               "remap_file_pages": 3, "mlock": 2, "fork": 1, "brk": 2, "mseal": 1},
    "lazyfree": {**_COMMON, "madvise": 40, "process_madvise": 4, "mremap": 8, "fork": 6, "mlock": 4,
                 "mlock2": 1, "munlock": 3, "pread": 3, "pwrite": 2, "process_vm_readv": 2,
                 "process_vm_writev": 4, "ftruncate": 1},
    "references": {**_COMMON, "clear_refs": 14, "mremap": 6, "madvise": 14, "fork": 5, "load": 16,
                   "pread": 3, "pwrite": 3, "process_vm_readv": 4, "process_vm_writev": 2},
    "dirty": {**_COMMON, "into_child": 3, "load": 20, "madvise": 26, "mremap": 8, "fork": 4,
              "mlock": 2, "pread": 2, "pwrite": 3, "process_vm_readv": 2, "process_vm_writev": 5,
              "ftruncate": 3, "msync": 1},
    "ksm": {**_COMMON, "store_value": 24, "madvise": 24, "ksm_scan": 10, "ksm_unmerge": 2,
            "ksm_zero_pages": 2, "mremap": 8, "fork": 4, "mlock": 3, "mlock2": 1, "munlock": 1,
            "set_memory_merge": 2, "brk": 2, "mseal": 1, "process_vm_readv": 4,
            "process_vm_writev": 2, "ftruncate": 1},
    "group": {**_COMMON, "fill_memory": 6, "fill_group": 4, "fork": 3, "madvise": 16, "mremap": 6,
              "mlock": 2, "ftruncate": 2, "brk": 2},
    "shm": {**_STAYING, "shmat": 20, "shmdt": 10, "mremap": 14, "remap_file_pages": 6, "fork": 3,
            "madvise": 10, "mlock": 2, "uffd_register": 2, "uffd_copy": 1, "msync": 1, "mseal": 1},
    "pageout": {**_COMMON, "madvise": 40, "process_madvise": 4, "mremap": 6, "fork": 4, "mlock": 2,
                "ftruncate": 4, "pread": 3, "pwrite": 3, **_WATCHING},
    "swap": {**_WITHOUT_MINCORE, "madvise": 40, "process_madvise": 4, "mremap": 8, "fork": 5,
             "mlock": 2, "mlock2": 1, "ftruncate": 4, "pread": 4, "pwrite": 4, "brk": 1,
             "process_vm_readv": 3, "process_vm_writev": 3, "msync": 1, "uffd_move": 4,
             **_WATCHING},
    "collapse": {**_COMMON, "madvise": 40, "mremap": 4, "fork": 1, "mlock": 1},
    "collapse-file": {**_COMMON, "madvise": 40, "mremap": 6, "fork": 3, "mlock": 2, "munlock": 1,
                      "ftruncate": 4, "fallocate": 4, "pread": 2, "pwrite": 3,
                      "process_vm_writev": 2, **_WATCHING},
    "hugetlb": {"mmap": 24, "munmap": 8, "mprotect": 8, "load": 8, "store": 14, "mremap": 8,
                "madvise": 14, "mlock": 2, "mincore": 2, "fork": 2, "msync": 1, "mseal": 1,
                "remap_file_pages": 2, "huge_shmat": 6, "shmdt": 3, "uffd_register": 3,
                "uffd_unregister": 1},
    "gigantic": _GIGANTIC,
    "hugetlbfs": _HUGETLBFS,
    "shmem-huge": _SHMEM_HUGE,
    "shmem-advise": _SHMEM_HUGE,
    "shmem-sizes": _SHMEM_HUGE,
    "crowd": {"mmap": 24, "munmap": 14, "mprotect": 24, "mremap": 14, "madvise": 14, "mlock": 8,
              "munlock": 4, "mseal": 2, "brk": 3, "store": 6, "load": 3},
    "wild": {**_COMMON, "mremap": 10, "madvise": 10, "mlock": 5, "mlock2": 5, "munlock": 4,
             "msync": 6, "mincore": 8, "brk": 5, "remap_file_pages": 5, "mseal": 1,
             "pkey_mprotect": 5, "process_madvise": 4},
}  # fmt: skip
"""By theme: how often each operation comes, beside the others."""

TO_WATCHED = {*_WATCHING, "uffd_move"}
"""Operations that need a userfaultfd."""
