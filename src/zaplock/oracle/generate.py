"""Random sequences of operations that collide: few pages, few files, every flag, many mistakes.

A sequence keeps to one theme (what its operations are mostly about) and to small windows across
page-table boundaries, so that mappings meet, split, merge and share page tables all the time. Most
sequences have one window; others have more, at the boundaries of 2 MiB, 1 GiB and 512 GiB and at
equal places in their page tables, and lengths up to a gigabyte. It needs no knowledge of the
outcome: addresses that the kernel chooses are named by `Ref`. About one argument in eight is wrong
on purpose: misaligned, wrapping, zero, beyond TASK_SIZE, contradictory. Nothing fills more than
`MOST_FILLED` bytes, so no sequence takes seconds or gigabytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from zaplock import advice
from zaplock.oracle import gigantic, hugetlbfs, ops, ring
from zaplock.oracle.ops import Argument, Op, Ref

PAGE, PMD = ring.PAGE, 1 << 21
WINDOW = 0x1020_0000 - 16 * PAGE  # sixteen pages below a boundary of page-table pages
WINDOW_PAGES = 28
WATCHED_PAGES = 16  # from WINDOW on, in the theme of userfaultfd
SOURCE = WINDOW + (WATCHED_PAGES + 2) * PAGE  # of pages to be moved
HUGE_WINDOW = 0x2000_0000  # where huge pages fit: four page-middle-directory entries
PUD, PGD = 1 << 30, 1 << 39
FAR_WINDOWS = (  # as WINDOW, below boundaries of page tables of every level, and one at its start
    WINDOW + 64 * PMD, PUD - 16 * PAGE, PGD - 16 * PAGE, PGD + PUD - 16 * PAGE, 3 * PGD,
)  # fmt: skip
LONG = (PMD - 16 * PAGE, PMD, PMD + 16 * PAGE, 3 * PMD, PUD // 4, PUD - PMD, PUD, PUD + PMD)
MOST_FILLED = 16 << 20  # bytes that one operation may fault in
MOST_GUARDED = 64 << 20
MOST_REGISTERED = 1 << 20
BELOW_RING = 8 << 20  # bytes between where the kernel begins to map and the ring, at least

ADVICE = tuple(sorted(advice.ADVICE.keys() - {
    advice.MADV_PAGEOUT, advice.MADV_HWPOISON, advice.MADV_SOFT_OFFLINE,
    advice.MADV_COLLAPSE,  # only in the theme "collapse", which is asked for
}))  # fmt: skip
"""What is given as advice; docs/fidelity.md says why not the others."""
_PROTS = (0, 1, 1, 3, 3, 3, 3, 3, 3, 5, 7, 2)
_WILD = (
    0, PAGE, ring.TASK_SIZE - PAGE, ring.TASK_SIZE, ring.TASK_SIZE + PAGE, 1 << 47, 1 << 63,
    (1 << 64) - PAGE, (1 << 64) - 1, 0x1234_5678_9000_0000, 0xFFFF_8880_0000_0000,
)  # fmt: skip
_WILD_LENGTHS = (0, 1, PAGE - 1, 1 << 30, 1 << 40, (1 << 64) - PAGE, (1 << 64) - 1, 1 << 63)

_ABOVE = ring.RING + ring.RING_SIZE
UNMAP_ALL = (  # how every sequence ends
    Op("munmap", (_ABOVE, ring.TASK_SIZE - _ABOVE)),
    Op("munmap", (PAGE, ring.RING - PAGE)),
)

_MAP_LOCKED = 0x2000
_FILLING = _MAP_LOCKED | 0x8000  # and MAP_POPULATE
_FIXED, _ANON, _NOREPLACE = 0x10, 0x20, 0x10_0000
_SHARED, _PRIVATE, _VALIDATE, _DROPPABLE = 1, 2, 3, 8
_EXTRA = {  # flag: how often it is added, in percent
    0x40: 3, 0x100: 3, 0x800: 1, 0x1000: 1, 0x2000: 4, 0x4000: 5, 0x8000: 10, 0x1_0000: 2,
    0x2_0000: 4, 0x8_0000: 1, _NOREPLACE: 4,
}  # fmt: skip

_RDONLY, _RND, _REMAP, _SHM_EXEC = 0o10000, 0o20000, 0o40000, 0o100000  # of shmat

_WATCHING = {"uffd_register": 4, "uffd_unregister": 1, "uffd_copy": 4, "uffd_zeropage": 2,
             "uffd_continue": 4, "uffd_poison": 2, "uffd_writeprotect": 6}  # fmt: skip
_STAYING = {"mmap": 24, "munmap": 7, "mprotect": 12, "load": 9, "store": 20, "mincore": 2}
_COMMON = {**_STAYING, "into_child": 1}  # not where something belongs to the parent alone
_WITHOUT_MINCORE = {name: weight for name, weight in _COMMON.items() if name != "mincore"}
THEMES: dict[str, dict[str, int]] = {
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
    "memfd": {**_COMMON, "add_seals": 8, "ftruncate": 10, "pwrite": 8, "pread": 3, "madvise": 12,
              "mprotect": 16, "mremap": 8, "fork": 2, "mlock": 1, "remap_file_pages": 1},
    "uffd": {**_COMMON, "uffd_register": 4, "uffd_unregister": 2, "uffd_copy": 10,
             "uffd_zeropage": 6, "uffd_continue": 8, "uffd_poison": 6, "uffd_writeprotect": 12,
             "mremap": 6,
             "madvise": 8, "fork": 1, "mlock": 1, "ftruncate": 2},
    "uffd-move": {**_COMMON, "uffd_register": 3, "uffd_unregister": 1, "uffd_copy": 4,
                  "uffd_zeropage": 4, "uffd_poison": 2, "uffd_writeprotect": 3, "uffd_move": 30,
                  "fork": 3, "mremap": 3, "madvise": 8, "mlock": 1},
    "uffd-huge": {**_COMMON, "uffd_register": 3, "uffd_unregister": 1, "uffd_copy": 2,
                  "uffd_zeropage": 2, "uffd_writeprotect": 4, "uffd_move": 36, "fork": 4,
                  "mremap": 4, "madvise": 14, "mlock": 1},
    "uring": {**_STAYING, "uring_register": 30, "mremap": 4, "madvise": 12, "fork": 4, "mlock": 2,
              "ftruncate": 4, "mseal": 1},
    "policy": {**_COMMON, "mbind": 40, "set_mempolicy_home_node": 12, "mremap": 10, "madvise": 6,
               "mlock": 2, "fork": 1, "brk": 2, "mseal": 1},
    "lazyfree": {**_COMMON, "madvise": 40, "process_madvise": 4, "mremap": 8, "fork": 6, "mlock": 4,
                 "mlock2": 1, "munlock": 3, "pread": 3, "pwrite": 2, "process_vm_readv": 2,
                 "process_vm_writev": 4, "ftruncate": 1},
    "references": {**_COMMON, "clear_refs": 14, "mremap": 6, "madvise": 14, "fork": 5, "load": 16},
    "ksm": {**_COMMON, "store_value": 24, "madvise": 24, "ksm_scan": 10, "ksm_unmerge": 2,
            "ksm_zero_pages": 2, "mremap": 8, "fork": 4, "mlock": 3, "mlock2": 1, "munlock": 1,
            "set_memory_merge": 2, "brk": 2, "mseal": 1, "process_vm_readv": 1,
            "process_vm_writev": 2, "ftruncate": 1},
    "group": {**_COMMON, "fill_memory": 6, "fork": 3, "madvise": 16, "mremap": 6, "mlock": 2,
              "ftruncate": 2, "brk": 2},
    "shm": {**_STAYING, "shmat": 20, "shmdt": 10, "mremap": 8, "madvise": 10, "fork": 3, "mlock": 2,
            "uffd_register": 2, "uffd_copy": 1, "msync": 1, "mseal": 1},
    "pageout": {**_COMMON, "madvise": 40, "process_madvise": 4, "mremap": 6, "fork": 4, "mlock": 2,
                "ftruncate": 4, "pread": 3, "pwrite": 3, **_WATCHING},
    "swap": {**_WITHOUT_MINCORE, "madvise": 40, "process_madvise": 4, "mremap": 8, "fork": 5,
             "mlock": 2, "mlock2": 1, "ftruncate": 4, "pread": 4, "pwrite": 4, "brk": 1,
             "process_vm_readv": 3, "process_vm_writev": 3, "msync": 1, "uffd_move": 4,
             **_WATCHING},
    "collapse": {**_COMMON, "madvise": 40, "mremap": 4, "fork": 1, "mlock": 1},
    "hugetlb": {"mmap": 24, "munmap": 8, "mprotect": 8, "load": 8, "store": 14, "mremap": 8,
                "madvise": 14, "mlock": 2, "mincore": 2, "fork": 2, "msync": 1, "mseal": 1},
    "gigantic": gigantic.WEIGHTS,
    "hugetlbfs": hugetlbfs.WEIGHTS,
    "crowd": {"mmap": 24, "munmap": 14, "mprotect": 24, "mremap": 14, "madvise": 14, "mlock": 8,
              "munlock": 4, "mseal": 2, "brk": 3, "store": 6, "load": 3},
    "wild": {**_COMMON, "mremap": 10, "madvise": 10, "mlock": 5, "mlock2": 5, "munlock": 4,
             "msync": 6, "mincore": 8, "brk": 5, "remap_file_pages": 5, "mseal": 1,
             "pkey_mprotect": 5, "process_madvise": 4},
}  # fmt: skip


_WATCHERS = ("uffd", "uffd-move", "uffd-huge")
"""Themes that are all about what a userfaultfd watches."""
_PAGING_OUT = ("pageout", "swap")  # themes in which it watches in three of ten sequences
_TO_WATCHED = {*_WATCHING, "uffd_move"}
_FIRST = {"brk": "brk", "crowd": "crowd"}  # how a theme's sequences begin
_HUGE_PAGES = (  # how three in four of the theme "huge" do
    Op("mmap", (HUGE_WINDOW, 3 * PMD, 3, 0x32, ops.NO_FILE, 0)),
    Op("madvise", (HUGE_WINDOW, 3 * PMD, 14)),
)


_TO_MOVE = (  # what three in four of the theme "uffd-move" do
    Op("mmap", (WINDOW, WATCHED_PAGES * PAGE, 3, 0x32, ops.NO_FILE, 0)),
    Op("uffd_register", (WINDOW, WATCHED_PAGES * PAGE, 3)),
    Op("mmap", (SOURCE, 8 * PAGE, 3, 0x32, ops.NO_FILE, 0)),
    Op("madvise", (SOURCE, 6 * PAGE, 23)),
)

_HUGE_SOURCE = HUGE_WINDOW + 2 * PMD
_HUGE_TO_MOVE = (  # and of the theme "uffd-huge"
    Op("mmap", (HUGE_WINDOW, 2 * PMD, 3, 0x32, ops.NO_FILE, 0)),
    Op("uffd_register", (HUGE_WINDOW, 2 * PMD, 3)),
    Op("mmap", (_HUGE_SOURCE, 2 * PMD, 3, 0x32, ops.NO_FILE, 0)),
    Op("madvise", (_HUGE_SOURCE, 2 * PMD, advice.MADV_HUGEPAGE)),
    Op("store", (_HUGE_SOURCE,)),
    Op("store", (_HUGE_SOURCE + PMD + 7 * PAGE,)),
)

_TO_MERGE = (  # and of the theme "ksm"
    Op("mmap", (WINDOW, WATCHED_PAGES * PAGE, 3, 0x32, ops.NO_FILE, 0)),
    Op("madvise", (WINDOW, WATCHED_PAGES * PAGE, advice.MADV_MERGEABLE)),
)

_HUGE_TO_MERGE = (
    Op("mmap", (HUGE_WINDOW, 3 * PMD, 3, 0x32, ops.NO_FILE, 0)),
    Op("madvise", (HUGE_WINDOW, 3 * PMD, advice.MADV_HUGEPAGE)),
    Op("madvise", (HUGE_WINDOW, 3 * PMD, advice.MADV_MERGEABLE)),
)

_TO_FREE = (  # and of the theme "lazyfree"
    Op("mmap", (WINDOW, WATCHED_PAGES * PAGE, 3, 0x32, ops.NO_FILE, 0)),
    Op("madvise", (WINDOW, WATCHED_PAGES * PAGE, advice.MADV_POPULATE_WRITE)),
    Op("madvise", (WINDOW, WATCHED_PAGES * PAGE, advice.MADV_FREE)),
)

ASKED_FOR = (
    "crowd", "hugetlb", "gigantic", "hugetlbfs", "group", "collapse", "uffd-huge", "pageout", "shm",
    "uring", "ksm", "swap",
)  # fmt: skip
"""Themes that run only when asked for: "crowd" is slow, "hugetlb", "gigantic" and "hugetlbfs" need
pools, "group" a memory cgroup, "collapse" and "uffd-huge" free huge pages at every moment,
"pageout" a machine without swap, "shm" a namespace for System V shared memory, "uring" an io_uring,
which not everybody may have; "ksm" starts ksmd, and "swap" makes swap. What mincore says of pages
in swap is not compared: it depends on what was written."""

_NEAR_THEMES = ("lock", "limits", "brk", "grow", "ksm", "group")
"""Themes whose mappings are short: else what is long would be faulted in."""


Merging = Literal["", "pages", "processes", "few", "huge"]
"""What a sequence of the theme "ksm" is about, since not all goes together: "pages" of one process,
of several "processes" (which of their pages becomes the merged one is up to the order in which ksmd
comes to them, so nothing is locked, where shares show, and nothing made unmergeable), a "few" that
may share one (and what was merged is undone before each scan), or "huge" ones."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What to leave out, because the other side does not cover it (see docs/fidelity.md).

    `slots`: the files that there are; `shares`: and those on mounts of hugetlbfs. `spares_ring`:
    keep away from the ring, where no seal does.
    """

    without: frozenset[str] = frozenset()
    advice: tuple[int, ...] = ADVICE
    themes: tuple[str, ...] = tuple(theme for theme in THEMES if theme not in ASKED_FOR)
    mmap_flags: frozenset[int] = frozenset(_EXTRA) | {_DROPPABLE}
    slots: tuple[int, ...] = tuple(range(len(ops.FILES)))
    shares: tuple[int, ...] = tuple(ops.MOUNT_OF)
    spares_ring: bool = False


EVERYTHING = Scope()


@dataclass(slots=True)
class Generator:
    """Make sequences for a seed; equal seeds and scopes make equal sequences."""

    seed: int
    scope: Scope = EVERYTHING
    length: int = 48
    random: random.Random = field(init=False)
    _watching: dict[str, list[str]] = field(init=False)
    _unwatched: dict[str, list[str]] = field(init=False)
    _theme: str = field(init=False, default="plain")
    _fixed: list[tuple[int, int]] = field(init=False, default_factory=list)
    _removes: bool = field(init=False, default=False)
    _huge_too: bool = field(init=False, default=False)
    _watches: bool = field(init=False, default=False)
    _merges: Merging = field(init=False, default="")
    _protects: bool = field(init=False, default=False)
    made: list[Op] = field(init=False, default_factory=list)
    chosen: list[int] = field(init=False, default_factory=list)
    moves: bool = field(init=False, default=False)
    forks: bool = field(init=False, default=True)
    _windows: tuple[int, ...] = field(init=False, default=(WINDOW,))

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        mixes = {theme: self._mix(THEMES[theme]) for theme in self.scope.themes if theme in THEMES}
        self._watching = {  # a userfaultfd watches the process that has made it, not its child
            theme: [name for name in names if name != "into_child"]
            for theme, names in mixes.items()
        }
        self._unwatched = {
            theme: [name for name in names if theme not in _PAGING_OUT or name not in _TO_WATCHED]
            for theme, names in mixes.items()
        }

    def _mix(self, weights: dict[str, int]) -> list[str]:
        return [
            name
            for name, weight in weights.items()
            if name not in self.scope.without
            for _ in range(weight)
        ]

    def sequence(self) -> tuple[Op, ...]:
        """Make the next sequence."""
        pick = self.random
        self._theme = pick.choice(self.scope.themes)
        self._watches = self._theme in _WATCHERS or (self._pages_out and self.chance(30))
        makers = _THEME_MAKERS.get(self._theme, {})
        self.moves = self._theme in _THEME_MAKERS and self.chance(50)
        self.forks = self._theme != "gigantic" or self.chance(40)
        names = (self._watching if self._watches else self._unwatched)[self._theme]
        names = names if self.forks else [name for name in names if name not in ops.FORKS]
        self._merges = self._choose_merging()
        if self._merges:
            names = [name for name in names if name not in self._leaves_out()]
        self.made, self.chosen, self._fixed = [], [], []
        self._windows = self._choose_windows()
        self._huge_too = self._theme == "references" and self.chance(30)
        self._protects = self._watches and self.chance(60)
        self._removes = self.chance(40)  # holes are punched into files in memory only
        for op in self._beginning() if self.chance(75) else ():
            self._remember(op)
            self.made.append(op)
        if self._merges == "few":
            self.made.append(Op("ksm_most", (pick.choice((2, 2, 3, 4, 1)),)))
        for number in range(len(self.made), self.length):
            name = _FIRST.get(self._theme, "") if not number else ""
            name = name or pick.choice(names)
            if name == "ksm_scan" and self._merges == "few":
                self.made.append(Op("ksm_unmerge"))
            op = Op(name, (makers.get(name) or _MAKERS[name])(self))
            self._remember(op)
            self.made.append(op)
        if self.scope.spares_ring:
            self.made = [away_from_ring(op) for op in self.made]
        return (*self.made, *UNMAP_ALL)

    def _beginning(self) -> tuple[Op, ...]:
        """Make what three in four sequences of a theme begin with."""
        if self._theme == "uffd-huge":
            return _HUGE_TO_MOVE
        if self._merges == "huge":
            return _HUGE_TO_MERGE
        if self._is_huge:
            return _HUGE_PAGES
        if self._theme == "uffd-move" or (self._theme == "swap" and self.chance(30)):
            return _TO_MOVE if self._watches else ()
        if self._theme == "ksm":
            return _TO_MERGE
        if self._theme == "lazyfree":
            return _TO_FREE
        if not self._watches:
            return ()
        flags, slot = self.random.choice(((0x32, ops.NO_FILE), (0x31, ops.NO_FILE), (0x11, 0),
                                          (0x12, 0), (0x32, ops.NO_FILE)))  # fmt: skip
        mode = self.random.choice((1, 4, 5) if slot == 0 else (1,))
        mode |= 2 * self._protects * self.chance(80)
        length = WATCHED_PAGES * PAGE
        return (
            Op("mmap", (WINDOW, length, 3, flags, slot, 0)),
            Op("uffd_register", (WINDOW, length, mode)),
        )

    def _choose_windows(self) -> tuple[int, ...]:
        """Choose where a sequence works: mostly in one place."""
        if not self.chance(60 if self._theme == "move" else 20):
            return (WINDOW,)
        return (WINDOW, *self.random.sample(FAR_WINDOWS, self.random.randint(1, 3)))

    def _choose_merging(self) -> Merging:
        if self._theme != "ksm":
            return ""
        choices: tuple[Merging, ...] = ("pages", "pages", "processes", "few", "huge")
        if self.scope.without & {"into_child", "ksm_unmerge"}:
            choices = ("pages", "huge")
        return self.random.choice(choices)

    def _leaves_out(self) -> tuple[str, ...]:
        if self._merges == "processes":
            return ("mlock", "mlock2", "set_memory_merge")
        return ("into_child",)

    @property
    def _is_huge(self) -> bool:
        return (
            self._theme in ("huge", "collapse", "process", "uffd-huge")
            or self._huge_too
            or self._merges == "huge"
        )

    @property
    def _pages_out(self) -> bool:
        return self._theme in _PAGING_OUT

    @property
    def _goes_far(self) -> bool:
        return len(self._windows) > 1 and self._theme not in _NEAR_THEMES

    def _remember(self, op: Op) -> None:
        """Keep in mind where mappings may now be."""
        if op.name not in ("mmap", "mremap", "brk", "shmat"):
            return
        start, length = op.args[0], op.args[1] if op.name == "mmap" else 0
        if op.name == "mmap" and isinstance(start, int) and isinstance(length, int) and start:
            if PAGE <= length < 1 << 31 and not start % PAGE and start < 1 << 40:
                self._fixed.append((start, length // PAGE))
        else:
            self.chosen.append(len(self.made))

    # Numbers

    def chance(self, percent: float) -> bool:
        """Return True in so many of a hundred cases."""
        return self.random.random() * 100 < percent

    def address(self) -> Argument:
        """Choose an address: in the window, near an earlier result, or wrong."""
        r = self.random.random()
        if self._theme == "brk" and r < 0.15 and self.chosen and self.made[0].name == "brk":
            return Ref(0, PAGE * self.random.randint(-4, 2))  # beside the heap
        if r < 0.35 and self._fixed:
            start, pages = self.random.choice(self._fixed[-8:])
            return start + PAGE * self._page_of(pages)
        if r < 0.70:
            return self._page()
        if r < 0.92 and self.chosen:
            return Ref(self.random.choice(self.chosen[-6:]), PAGE * self.random.randint(-1, 6))
        if r < 0.96:
            return self._page()
        if r < 0.98:
            return self._page() + self.random.choice((1, 8, 0x800, PAGE - 1))
        return self.random.choice(_WILD)

    def _page_of(self, pages: int) -> int:
        """Choose a page of a mapping: of a long one near its ends or at a huge page's border."""
        if pages <= 64:
            return self.random.randrange(pages)
        near = self.random.randrange(16)
        return self.random.choice((0, near, pages - 1 - near, near * 512 % pages))

    def _page(self) -> int:
        if self._theme == "hugetlb":
            at = HUGE_WINDOW + PMD * self.random.randrange(4)
            return at if self.chance(75) else at + PAGE * self.random.randrange(512)
        if self._is_huge and self.chance(80):
            at = HUGE_WINDOW + PMD * self.random.randrange(3)
            return at if self.chance(60) else at + PAGE * self.random.randrange(512)
        return self.random.choice(self._windows) + PAGE * self.random.randrange(WINDOW_PAGES)

    def extent(self, wild: bool = False) -> int:
        """Choose a length: a few pages mostly."""
        r = self.random.random()
        if self._theme == "hugetlb" and r < 0.8:
            return PMD * self.random.randint(1, 2) - PAGE * self.chance(10)
        if self._goes_far and r < 0.2:
            return self.random.choice(LONG) if r < 0.15 else PAGE * self.random.randint(28, 600)
        if self._is_huge and r < 0.5:
            return PMD * self.random.randint(1, 2)
        if r < 0.93:
            return PAGE * min(1 + int(self.random.expovariate(0.3)), WINDOW_PAGES)
        if r < 0.96:
            return PAGE * self.random.randint(1, 8) - self.random.randint(1, PAGE - 1)
        if self._theme == "ksm":  # ksmd looks at every page that there might be, one by one
            return self.random.choice([one for one in _WILD_LENGTHS if not PAGE < one < PGD << 8])
        if r < 0.97 and wild:
            return ring.TASK_SIZE
        return self.random.choice(_WILD_LENGTHS)

    def prot(self) -> int:
        """Choose a protection; one in fifty has bits that none should have."""
        if self.chance(2):
            return self.random.choice((8, 0x10, 0x100_0003, 0x200_0001, 0x300_0000, 1 << 30))
        return self.random.choice(_PROTS)

    def slot(self) -> int:
        """Choose a file."""
        if self.chance(2):
            return ops.BAD_FILE
        slot = self.random.choice(self.scope.slots)
        keeps_off = self._removes or self._pages_out or self._theme in ("references", "group")
        return 0 if slot == ops.DISK_SLOT and keeps_off else slot

    def memory_slot(self) -> int:
        """Choose a file that is not on a disk: what is written there waits for the disk."""
        slot = self.slot()
        return 0 if slot == ops.DISK_SLOT else slot

    def flags_of(self, values: tuple[int, ...], wrong: tuple[int, ...]) -> int:
        """Choose flags from the usual ones, seldom from the wrong ones."""
        return self.random.choice(wrong if self.chance(6) else values)

    def offset(self) -> int:
        """Choose an offset into a file: mostly inside it."""
        if self.chance(3):
            return self.random.choice((1, 0x800, (1 << 63) - PAGE, (1 << 64) - PAGE, 1 << 44))
        return PAGE * self.random.choice((0, 0, 0, 1, 2, 3, 5, 8, 12, 15, 20))


def away_from_ring(op: Op) -> Op:
    """Make an operation's range short where it might reach the ring of a process without mseal."""
    names = ops.CALLS[op.name][1] if op.name in ops.CALLS else ops.ACCESSES[op.name]
    if op.name.startswith("process_vm"):  # short, or refused
        return op
    if "addr" not in names or "length" not in names:
        return op
    arguments, at = list(op.args), names.index("length")
    start, length = arguments[names.index("addr")], arguments[at]
    assert isinstance(length, int)
    if length > PAGE and (isinstance(start, Ref) or start + length >= ring.RING - BELOW_RING):
        arguments[at] = min(length, BELOW_RING >> 1) if isinstance(start, Ref) else PAGE
    if op.name == "mremap" and isinstance(arguments[2], int) and arguments[2] > BELOW_RING >> 1:
        arguments[2] = PAGE
    return Op(op.name, tuple(arguments))


def _mmap(g: Generator) -> tuple[Argument, ...]:
    if g._theme == "brk" and g.made and g.made[0].name == "brk" and g.chance(25):
        start = Ref(0, PAGE * g.random.randint(-3, 8))  # before the heap, or where it may grow to
        return start, PAGE * g.random.randint(1, 4), 3, _PRIVATE | _ANON | _FIXED, ops.NO_FILE, 0
    with_files = g._theme in ("file", "memfd") or g._pages_out
    anonymous = g._theme == "collapse" or g.chance(40 if with_files else 75)
    kind = g.random.choice((_PRIVATE, _PRIVATE, _PRIVATE, _SHARED))
    kind = _PRIVATE if g._theme == "collapse" else kind
    if g.chance(3):
        kind = g.random.choice((0, _VALIDATE, _DROPPABLE, 4))
    if kind == _DROPPABLE and (_DROPPABLE not in g.scope.mmap_flags or g._theme == "group"):
        kind = _PRIVATE  # what a group at its limit drops is up to its lists
    flags = kind | (_ANON if anonymous else 0)
    flags |= _FIXED if g.chance(60) else 0
    for flag, percent in _EXTRA.items():
        if flag in g.scope.mmap_flags and g.chance(percent):
            flags |= flag
    if g._theme == "grow" and g.chance(40):
        flags |= 0x100
    length = g.extent(wild=True)
    if g.chance(50):
        length = PAGE * g.random.randint(4, 16)
    if g._theme == "hugetlb":
        flags |= 0x4_0000 if g.chance(85) else 0
        length = g.extent()
    if length >= MOST_FILLED:
        flags &= ~_FILLING
    if g._theme == "references" or g._merges == "processes":
        flags &= ~_MAP_LOCKED
    address = 0 if not flags & _FIXED and g.chance(60) else g.address()
    slot = g.slot() if not anonymous else (ops.NO_FILE if g.chance(98) else 0)
    offset = g.offset() if not anonymous or g.chance(3) else 0
    if g._theme == "hugetlb" and not kind & _SHARED:
        offset = 0  # beyond it, what may not be written is SIGBUS, which the model does not have
    return address, length, g.prot(), flags, slot, offset


def _mremap(g: Generator) -> tuple[Argument, ...]:
    flags = g.flags_of((0, 1, 1, 1, 3, 3, 5, 7), (2, 4, 6, 8, 1 << 31))
    old, new = g.extent(), g.extent()
    if flags & 4 and g.chance(80):
        new = old
    if g.chance(2):
        old = 0
    if g._theme in ("lock", "limits") and g.chance(40):
        old, new, flags = PAGE * g.random.randint(1, 4), PAGE * g.random.randint(16, 80), 1
    if g._fixed and g._goes_far and g.chance(50):
        return _move_far(g, flags)
    return g.address(), old, new, flags, g.address() if flags & 6 else 0


def _move_far(g: Generator, flags: int) -> tuple[Argument, ...]:
    """Move a whole mapping to another window, mostly to the same place in its page table."""
    start, pages = g.random.choice(g._fixed[-8:])
    length = pages * PAGE
    target = g.random.choice(g._windows)
    grain = g.random.choice((PAGE, PMD, PMD, PUD))
    target += (start - target) % grain
    return start, length, length, flags if flags & 6 else flags | 3, target


def _range(g: Generator) -> tuple[Argument, int]:
    return g.address(), g.extent()


def _watched(g: Generator) -> tuple[Argument, int]:
    """Choose a range for a userfaultfd: mostly where one watches from the beginning on."""
    if g.chance(20) or g._theme == "uffd-huge":
        return _range(g)
    return WINDOW + PAGE * g.random.randrange(WATCHED_PAGES), PAGE * g.random.choice((1, 1, 2, 4))


def _to_register(g: Generator) -> tuple[Argument, int]:
    """Choose a fixed buffer: one that RLIMIT_MEMLOCK, which counts for a whole user, lets pass."""
    address, length = _range_off_ring(g)
    return address, length if length > PUD else min(length, MOST_REGISTERED)


def _move_pages(g: Generator) -> tuple[Argument, ...]:
    if g._theme == "uffd-huge":
        return _move_huge_pages(g)
    source = g._page() if g.chance(20) else SOURCE + PAGE * g.random.randrange(8)
    return *_watched(g), source, g.random.choice((0, 0, 0, 2, 2, 1, 4))


def _move_huge_pages(g: Generator) -> tuple[Argument, ...]:
    """Choose pages to move: whole huge pages, parts of them, and there and back again."""
    target = HUGE_WINDOW + PMD * g.random.randrange(2)
    source = _HUGE_SOURCE + PMD * g.random.randrange(2)
    if g.chance(15):
        target, source = source, target
    length = g.random.choice((PMD, PMD, PMD, PAGE, 4 * PAGE, PMD - PAGE, PMD + PAGE, 2 * PMD))
    if g.chance(40):
        target += PAGE * g.random.choice((1, 7, 511, g.random.randrange(512)))
    if g.chance(40):
        source += PAGE * g.random.choice((1, 7, 511, g.random.randrange(512)))
    return target, length, source, g.random.choice((0, 0, 0, 2, 2, 2, 1, 4))


def _page_and_length(g: Generator) -> tuple[Argument, int]:
    """Choose where a system call copies to or from: whole pages, and eight bytes of a last one.

    No earlier result: where that is an errno, this would begin within a page.
    """
    (where,) = _access(g)
    where = g._page() if isinstance(where, Ref) else where
    return where, PAGE * g.random.randint(0, 6) + g.random.choice((0, 0, 8, 2048))


def _remote(g: Generator) -> tuple[Argument, int]:
    """Choose what is read or written as if it were another process's."""
    where, length = _page_and_length(g)
    return where, 1 << 63 if g.chance(2) else length


def _all_memory(g: Generator) -> tuple[Argument, int]:
    return g.address(), g.extent(wild=True)


def _advice(g: Generator) -> int:
    if g.chance(3):
        return g.random.choice((5, 6, 7, 26, 99, 104, -1))
    if g._pages_out and g.chance(60):
        guard = 4 if g._protects else 102
        others: tuple[int, ...] = (4, 20, 22, 23, guard, *(() if g._theme == "swap" else (8, 8)))
        return g.random.choice((*[advice.MADV_PAGEOUT] * 4, *others))
    if g._theme == "uffd" and g.chance(40):
        guards = (4, 4) if g._protects else (102, 102)
        return g.random.choice((4, 8, 9 if g._removes else 4, 22, 23, *guards, 103))
    if g._theme == "lazyfree" and g.chance(70):
        return g.random.choice((*[advice.MADV_FREE] * 4, 22, 23, 4, 20, 102, 103))
    if g._merges and g.chance(75):
        undoes = advice.MADV_MERGEABLE if g._merges == "processes" else advice.MADV_UNMERGEABLE
        huge: tuple[int, ...] = (14, 14) if g._merges == "huge" else ()
        return g.random.choice((*[advice.MADV_MERGEABLE] * 4, undoes, undoes, 23, 23, 4, *huge))
    if g._theme == "collapse" and g.chance(70):
        return g.random.choice((*[advice.MADV_COLLAPSE] * 4, 4, 14, 15, 102, 103, 22, 23))
    if g._is_huge and g.chance(60):
        return g.random.choice((14, 14, 14, 15, 4, 8, 20, 22, 23, 102, 103))
    chosen = g.random.choice(g.scope.advice)
    if g._protects and chosen == advice.MADV_GUARD_INSTALL:
        return advice.MADV_DONTNEED  # where a file is write-protected, it never ends
    if g._merges == "processes" and chosen == advice.MADV_UNMERGEABLE:
        return advice.MADV_MERGEABLE
    if g._merges not in ("", "huge") and chosen == advice.MADV_HUGEPAGE:
        return advice.MADV_MERGEABLE
    if g._theme in ("pageout", "lazyfree") and chosen == advice.MADV_HUGEPAGE:
        return advice.MADV_FREE
    if g._theme == "references" and chosen in (advice.MADV_RANDOM, advice.MADV_SEQUENTIAL):
        return advice.MADV_COLD  # what is read so is not noted when it is unmapped
    if g._theme == "group" and chosen == advice.MADV_FREE:
        return advice.MADV_DONTNEED
    if g._theme == "swap" and chosen == advice.MADV_FREE:
        return advice.MADV_PAGEOUT  # whether that marks a page depends on what was written so far
    return chosen if chosen != advice.MADV_REMOVE or g._removes else advice.MADV_DONTNEED


def _madvise(g: Generator) -> tuple[Argument, ...]:
    """Advise, but neither on the ring (it lies above all else) nor to fill gigabytes."""
    (address, length), chosen = _range(g), _advice(g)
    if g._is_huge and g.chance(20):
        address, length = HUGE_WINDOW + PMD * g.random.randrange(3), PMD * g.random.randint(1, 2)
        chosen = g.random.choice((4, 4, 22, 24, chosen))
    most = {22: MOST_FILLED, 23: MOST_FILLED, 102: MOST_GUARDED}.get(chosen, 1 << 64)
    length = _off_ring(g, address, length, most)
    return address, length, chosen


def _mbind(g: Generator) -> tuple[Argument, ...]:
    """Choose a policy: few of them, so that neighbours have equal ones, and all that is refused."""
    mode, nodes = g.random.choice(((2, 1), (2, 1), (5, 1), (1, 1), (3, 1), (4, 0), (0, 0), (0, 0)))
    if g.chance(25):
        mode = g.random.choice((*range(8), 9, -1))
        nodes = g.random.choice((0, 1, 2, 3, 6))
    if g.chance(20):
        mode |= g.random.choice((1 << 13, 1 << 14, 1 << 15, 3 << 14, 1 << 12))
    flags = g.flags_of((0, 0, 0, 1, 2, 3), (4, 6, 8))
    return *_range_off_ring(g), mode, nodes, flags if nodes & 1 else flags & ~2


def _range_off_ring(g: Generator) -> tuple[Argument, int]:
    address, length = _range(g)
    return address, _off_ring(g, address, length)


def _off_ring(g: Generator, address: Argument, length: int, most: int = 1 << 64) -> int:
    """Make a length short if it is at least `most`, or reaches the ring, where no seal helps."""
    reaches_ring = isinstance(address, Ref) or address + length >= ring.RING
    wraps = length > (1 << 64) - (1 << 40) and (isinstance(address, Ref) or address > 0)
    if length >= (min(most, BELOW_RING) if reaches_ring else most) and not wraps:
        return PAGE * g.random.randint(1, 8)
    return length


def _brk(g: Generator) -> tuple[Argument, ...]:
    if not g.chosen or g.chance(25):
        return (0,)
    earlier = [k for k in g.chosen if g.made[k].name == "brk"]
    if earlier and g.chance(90):
        return (Ref(g.random.choice(earlier), PAGE * g.random.randint(-6, 10)
                    + (g.random.randrange(PAGE) if g.chance(15) else 0)),)  # fmt: skip
    return (g.address(),)


def _setrlimit(g: Generator) -> tuple[Argument, ...]:
    resource = g.random.choice((ops.RLIMIT_AS, ops.RLIMIT_AS, ops.RLIMIT_MEMLOCK,
                                ops.RLIMIT_DATA, ops.RLIMIT_STACK))  # fmt: skip
    pages = g.random.randint(0, 48)
    if resource == ops.RLIMIT_MEMLOCK and g.chance(30):
        return resource, 0
    base = ring.RING_SIZE if resource in (ops.RLIMIT_AS, ops.RLIMIT_MEMLOCK) else 0
    return resource, (base if g.chance(70) else 0) + pages * PAGE + (g.chance(10) and 77)


def _access(g: Generator) -> tuple[Argument, ...]:
    """Choose where to read or write: the beginning of a page, since that is where tags are."""
    where = g.address()
    if isinstance(where, Ref):
        return (where if g.made[where.op].name != "brk" else g._page(),)
    return (where & -PAGE,)


_MAKERS: dict[str, Callable[[Generator], tuple[Argument, ...]]] = {
    "mmap": _mmap,
    "mremap": _mremap,
    "munmap": _all_memory,
    "mprotect": lambda g: (*_all_memory(g), g.prot()),
    "pkey_mprotect": lambda g: (*_range(g), g.prot(), g.random.choice((-1, -1, -1, 0, 1, 16))),
    "madvise": _madvise,
    "process_madvise": _madvise,
    "msync": lambda g: (*_range(g), g.flags_of((1, 2, 4, 0, 6), (5, 3, 8, -1))),
    "mincore": _range,
    "mlock": _range,
    "mlock2": lambda g: (*_range(g), g.flags_of((0, 1, 1), (2, 3, -1))),
    "munlock": _range,
    "mlockall": lambda g: (g.flags_of((1, 2, 3, 6, 7, 5), (0, 4, 8, 9)),),
    "munlockall": lambda g: (),
    "brk": _brk,
    "remap_file_pages": lambda g: (
        *_range(g), g.random.choice((0, 0, 0, 1)), g.random.randrange(20),
        g.random.choice((0, 0x10000)),
    ),
    "mseal": lambda g: (*_range(g), g.random.choice((0, 0, 0, 0, 1))),
    "ftruncate": lambda g: (
        g.random.choice(
            (0, 0, 0, 1, 1, 1, ops.ZERO_SLOT, ops.READ_ONLY_SLOT, ops.BAD_FILE)
        ),  # disk: see fidelity.md
        PAGE * g.random.randrange(20) + (g.random.randrange(PAGE) if g.chance(20) else 0),
    ),
    "set_mdwe": lambda g: (g.random.choice((0, 1, 1, 1, 3, 2, 4)),),
    "set_thp_disable": lambda g: (
        g.random.choice((0, 0, 1, 1, 1, 7)), g.flags_of((0, 0, 2), (1, 3, 4, 1 << 32)),
    ),
    "add_seals": lambda g: (g.slot(), g.random.choice((2, 4, 8, 8, 8, 16, 6, 1, 32, 0, 14, 64))),
    "pread": lambda g: (g.slot(), *_page_and_length(g), g.offset() & -PAGE),
    "pwrite": lambda g: (g.memory_slot(), *_page_and_length(g), g.offset() & -PAGE),
    "process_vm_readv": _remote,
    "process_vm_writev": _remote,
    "load": _access,
    "store": _access,
    "store_value": lambda g: (*_access(g), g.random.choice((0, 7, 7, 8, 9))),
    "fill_memory": lambda g: (g.random.choice((ops.LITTLE, ops.MUCH)), g.random.choice((0, 1, 2))),
    "clear_refs": lambda g: (g.flags_of((1, 1, 1, 2, 2, 3, 3, 4, 5), (0, 6, -1)),),
    "ksm_scan": lambda g: (),
    "ksm_unmerge": lambda g: (),
    "ksm_zero_pages": lambda g: (g.random.choice((0, 1, 1, 1)),),
    "set_memory_merge": lambda g: (g.random.choice((0, 1, 1, 1, 7)),),
    "setrlimit": _setrlimit,
    "fork": lambda g: (),
    "into_child": lambda g: (),
    "crowd": lambda g: (2 * g.random.randint(0, 6) + 1,),
    "uffd_register": lambda g: (
        *_watched(g), g.random.choice((1, 1, 2, 3, 4, 4, 5, 6, 0, 8)) & (~0 if g._protects else ~2),
    ),
    "uffd_unregister": _watched,
    "uffd_copy": lambda g: (_watched(g)[0], g.random.choice((0, 0, 0, 1, 4))),
    "uffd_zeropage": lambda g: (*_watched(g), g.random.choice((0, 0, 0, 1, 2))),
    "shmat": lambda g: (
        0 if g.chance(30) else g.address(),
        g.random.choice((0, 0, 0, _RDONLY, _RND, _REMAP, _REMAP, _SHM_EXEC, _RDONLY | _REMAP)),
    ),
    "shmdt": lambda g: (g.address(),),
    "mbind": _mbind,
    "set_mempolicy_home_node": lambda g: (
        *_range_off_ring(g), g.random.choice((0, 0, 0, 0, 0, 0, 1, 1024, -1)),
        g.random.choice((0, 0, 0, 0, 0, 0, 0, 1)),
    ),
    "uffd_writeprotect": lambda g: (
        *_watched(g), g.random.choice((1, 1, 1, 0, 0, 2)) if g._protects else 0,
    ),
    "uffd_move": _move_pages,
    "uring_register": _to_register,
    "uffd_poison": lambda g: (*_watched(g), g.random.choice((0, 0, 0, 0, 1, 2))),
    "uffd_continue": lambda g: (*_watched(g), g.random.choice((0, 0, 0, 0, 1, 2, 4))),
}  # fmt: skip

_THEME_MAKERS = {"gigantic": gigantic.MAKERS, "hugetlbfs": hugetlbfs.MAKERS}
"""Makers of a theme's own, by theme; what they lack is in _MAKERS."""
