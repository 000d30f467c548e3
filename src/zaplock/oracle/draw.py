"""What one sequence is about, what it has so far, and how it draws numbers from that."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from zaplock.oracle import ops, ring
from zaplock.oracle.ops import Argument, Op, Ref
from zaplock.oracle.scope import Scope
from zaplock.oracle.themes import (
    BY_SETTING,
    COLLAPSING,
    NEAR_THEMES,
    OF_SHARED_HUGE,
    PAGING_OUT,
    SOMETIMES_WATCHED,
    WATCHERS,
    WITH_OWN_MAKERS,
)
from zaplock.oracle.windows import (
    FAR_WINDOWS,
    HUGE_WINDOW,
    LONG,
    PAGE,
    PGD,
    PMD,
    WINDOW,
    WINDOW_PAGES,
)

_PROTS = (0, 1, 1, 3, 3, 3, 3, 3, 3, 5, 7, 2)
_WILD = (
    0, PAGE, ring.TASK_SIZE - PAGE, ring.TASK_SIZE, ring.TASK_SIZE + PAGE, 1 << 47, 1 << 63,
    (1 << 64) - PAGE, (1 << 64) - 1, 0x1234_5678_9000_0000, 0xFFFF_8880_0000_0000,
)  # fmt: skip
_WILD_LENGTHS = (0, 1, PAGE - 1, 1 << 30, 1 << 40, (1 << 64) - PAGE, (1 << 64) - 1, 1 << 63)

_OFF_TMPFS = (*PAGING_OUT, "references", "group", "ksm", "lazyfree")
"""Themes about what the model does not tell of larger folios."""

Merging = Literal["", "pages", "processes", "few", "huge"]
"""What a sequence of the theme "ksm" is about, since not all goes together: "pages" of one process,
of several "processes" (which of their pages becomes the merged one is up to the order in which ksmd
comes to them, so nothing is locked, where shares show, and nothing made unmergeable), a "few" that
may share one (and what was merged is undone before each scan), or "huge" ones."""


@dataclass(slots=True)
class Draw:
    """One sequence in the making: its theme, what it chose at its beginning, what it has made.

    `random` and `scope` are those of the generator. `watches`: a userfaultfd does, and `protects`
    against writes; `moves`, `forks`: mappings may move, there may be children; `removes`: holes are
    punched; `huge_too`: huge pages in a theme that is not about them; `merges`: a theme's of KSM;
    `allocates`: fallocate makes huge pages, which then nothing collapses (docs/fidelity.md).
    `chosen`: operations whose result may be an address; `fixed`: start and pages of mappings whose
    address was given.
    """

    random: random.Random
    scope: Scope
    theme: str = field(init=False)
    watches: bool = field(init=False)
    moves: bool = field(init=False)
    forks: bool = field(init=False)
    merges: Merging = field(init=False)
    windows: tuple[int, ...] = field(init=False)
    huge_too: bool = field(init=False)
    protects: bool = field(init=False)
    removes: bool = field(init=False)
    allocates: bool = field(init=False)
    made: list[Op] = field(init=False, default_factory=list)
    chosen: list[int] = field(init=False, default_factory=list)
    fixed: list[tuple[int, int]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.theme = self.random.choice(self.scope.themes)
        sometimes = self.theme in SOMETIMES_WATCHED
        watches = self.theme in WATCHERS or (sometimes and self.chance(30))
        self.watches = watches and "uffd_register" not in self.scope.without
        self.moves = self.theme in WITH_OWN_MAKERS and self.chance(50)
        self.forks = self.theme != "gigantic" or self.chance(40)
        self.merges = self._choose_merging()
        self.windows = self._choose_windows()
        self.huge_too = self.theme in ("references", "dirty") and self.chance(30)
        self.protects = self.watches and self.chance(60)
        self.removes = self.chance(40)  # holes are punched into files in memory only
        self.allocates = self.theme == "shmem-huge" and self.chance(50)

    def _choose_windows(self) -> tuple[int, ...]:
        """Choose where a sequence works: mostly in one place."""
        if not self.chance(60 if self.theme == "move" else 20):
            return (WINDOW,)
        return (WINDOW, *self.random.sample(FAR_WINDOWS, self.random.randint(1, 3)))

    def _choose_merging(self) -> Merging:
        if self.theme != "ksm":
            return ""
        choices: tuple[Merging, ...] = ("pages", "pages", "processes", "few", "huge")
        if self.scope.without & {"into_child", "ksm_unmerge"}:
            choices = ("pages", "huge")
        return self.random.choice(choices)

    @property
    def is_huge(self) -> bool:
        """Whether it works on huge pages too."""
        return (
            self.theme in ("huge", "process", "uffd-huge")
            or self.theme in COLLAPSING
            or self.huge_too
            or self.merges == "huge"
        )

    @property
    def has_many_merged(self) -> bool:
        """Whether more may be merged than fits one merged page: few do, or huge pages are locked.

        Which of several has room then is up to where ksmd begins. What isn't locked gives its
        pages of zeros back when ksmd splits it, and is few pages, too.
        """
        locks = any(op.name in ("mlock", "mlock2") for op in self.made)
        return self.merges == "few" or (self.merges == "huge" and locks)

    @property
    def pages_out(self) -> bool:
        """Whether its theme is about paging out."""
        return self.theme in PAGING_OUT

    @property
    def goes_far(self) -> bool:
        """Whether it has several windows, and mappings as long as what lies between them."""
        return len(self.windows) > 1 and self.theme not in NEAR_THEMES

    def add(self, op: Op) -> None:
        """Append an operation to the sequence."""
        if op.name in ("mmap", "mremap", "brk", "shmat", "huge_shmat"):
            self._remember(op)
        self.made.append(op)

    def _remember(self, op: Op) -> None:
        """Keep in mind where mappings may now be."""
        start, length = op.args[0], op.args[1] if op.name == "mmap" else 0
        if op.name == "mmap" and isinstance(start, int) and isinstance(length, int) and start:
            if PAGE <= length < 1 << 31 and not start % PAGE and start < 1 << 40:
                self.fixed.append((start, length // PAGE))
        else:
            self.chosen.append(len(self.made))

    # Numbers

    def chance(self, percent: float) -> bool:
        """Return True in so many of a hundred cases."""
        return self.random.random() * 100 < percent

    def address(self) -> Argument:
        """Choose an address: in the window, near an earlier result, or wrong."""
        r = self.random.random()
        if self.theme == "brk" and r < 0.15 and self.chosen and self.made[0].name == "brk":
            return Ref(0, PAGE * self.random.randint(-4, 2))  # beside the heap
        if r < 0.35 and self.fixed:
            start, pages = self.random.choice(self.fixed[-8:])
            return start + PAGE * self._page_of(pages)
        if r < 0.70:
            return self.page()
        if r < 0.92 and self.chosen:
            return Ref(self.random.choice(self.chosen[-6:]), PAGE * self.random.randint(-1, 6))
        if r < 0.96:
            return self.page()
        if r < 0.98:
            return self.page() + self.random.choice((1, 8, 0x800, PAGE - 1))
        return self.random.choice(_WILD)

    def _page_of(self, pages: int) -> int:
        """Choose a page of a mapping: of a long one near its ends or at a huge page's border."""
        if pages <= 64:
            return self.random.randrange(pages)
        near = self.random.randrange(16)
        return self.random.choice((0, near, pages - 1 - near, near * 512 % pages))

    def page(self) -> int:
        """Choose a page of a window, or where huge pages fit."""
        if self.theme == "hugetlb":
            at = HUGE_WINDOW + PMD * self.random.randrange(4)
            return at if self.chance(75) else at + PAGE * self.random.randrange(512)
        if self.is_huge and self.chance(80):
            at = HUGE_WINDOW + PMD * self.random.randrange(3)
            return at if self.chance(60) else at + PAGE * self.random.randrange(512)
        return self.random.choice(self.windows) + PAGE * self.random.randrange(WINDOW_PAGES)

    def extent(self, wild: bool = False) -> int:
        """Choose a length: a few pages mostly."""
        r = self.random.random()
        if self.theme == "hugetlb" and r < 0.8:
            return PMD * self.random.randint(1, 2) - PAGE * self.chance(10)
        if self.goes_far and r < 0.2:
            return self.random.choice(LONG) if r < 0.15 else PAGE * self.random.randint(28, 600)
        if self.is_huge and r < 0.5:
            return PMD * self.random.randint(1, 2)
        if r < 0.93:
            return PAGE * min(1 + int(self.random.expovariate(0.3)), WINDOW_PAGES)
        if r < 0.96:
            return PAGE * self.random.randint(1, 8) - self.random.randint(1, PAGE - 1)
        if self.theme == "ksm":  # ksmd looks at every page that there might be, one by one
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
        percent = 85 if self.makes_shared_huge else 15 * self._meets_tmpfs
        if percent and self.chance(percent):
            return self.huge_slot()
        if self.chance(2):
            return ops.BAD_FILE
        slot = self.random.choice(self.scope.slots)
        keeps_off = self.removes or self.pages_out or self.theme in ("references", "group")
        return 0 if slot == ops.DISK_SLOT and keeps_off else slot

    @property
    def makes_shared_huge(self) -> bool:
        """Whether its theme is about huge pages that faults make of files in memory."""
        return self.theme in OF_SHARED_HUGE

    def huge_slot(self) -> int:
        """Choose a file that may have huge pages by faults."""
        on_mounts = "shmem-huge" in self.scope.themes and self.theme not in BY_SETTING
        return self.random.choice(tuple(ops.TMPFS_FILES) if on_mounts else (0, 0, 1))

    @property
    def _meets_tmpfs(self) -> bool:
        """Whether a sequence of another theme also has files on mounts of tmpfs."""
        return "shmem-huge" in self.scope.themes and self.theme not in _OFF_TMPFS

    def memory_slot(self) -> int:
        """Choose a file that is not on a disk: what is written there waits for the disk."""
        slot = self.slot()
        return 0 if slot == ops.DISK_SLOT else slot

    def word(self, value: int) -> int:
        """Return an int as a register may have it: seldom with something above its 32 bits."""
        if not self.chance(1):
            return value
        return value % (1 << 32) | self.random.choice((1, 1 << 31, (1 << 32) - 1)) << 32

    def flags_of(self, values: tuple[int, ...], wrong: tuple[int, ...]) -> int:
        """Choose flags from the usual ones, seldom from the wrong ones."""
        return self.random.choice(wrong if self.chance(6) else values)

    def offset(self) -> int:
        """Choose an offset into a file: mostly inside it."""
        if self.makes_shared_huge and self.chance(70):
            near = self.random.choice((0, 0, 0, 1, 2, 5, 16, 60, 505, 511))
            return PMD * self.random.choice((0, 0, 1, 1, 2, 3)) + PAGE * near
        if self.chance(3):
            return self.random.choice((1, 0x800, (1 << 63) - PAGE, (1 << 64) - PAGE, 1 << 44))
        return PAGE * self.random.choice((0, 0, 0, 1, 2, 3, 5, 8, 12, 15, 20))
