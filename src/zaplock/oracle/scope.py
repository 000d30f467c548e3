"""What sequences are made of: all that there is, or less where the other side lacks some of it."""

from __future__ import annotations

from dataclasses import dataclass

from zaplock import advice
from zaplock.oracle import ops
from zaplock.oracle.themes import ASKED_FOR, THEMES

ADVICE = tuple(sorted(advice.ADVICE.keys() - {
    advice.MADV_PAGEOUT, advice.MADV_HWPOISON, advice.MADV_SOFT_OFFLINE,
    advice.MADV_COLLAPSE,  # only in two themes that are asked for
}))  # fmt: skip
"""What is given as advice; docs/fidelity.md says why not the others."""
EXTRA_FLAGS = {
    0x40: 3, 0x80: 1, 0x100: 3, 0x800: 1, 0x1000: 1, 0x2000: 4, 0x4000: 5, 0x8000: 10, 0x1_0000: 2,
    0x2_0000: 4, 0x8_0000: 1, 0x10_0000: 4,
}  # fmt: skip
"""Flags of mmap beside its kind, and how often each is added, in percent."""
DROPPABLE = 8
"""MAP_DROPPABLE, a kind of mapping of mmap."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What to leave out, because the other side does not cover it (see docs/fidelity.md).

    `slots`: the files that there are; `shares`: and those on mounts of hugetlbfs. `spares_ring`:
    keep away from the ring, where no seal does. `fills`: how much a group is filled with; ops.MORE
    is for guests, since where writing to swap is slow the kernel kills before swap is full.
    `unmerges_first`: all merging is undone before ksmd scans, as with a low max_page_sharing.
    """

    without: frozenset[str] = frozenset()
    advice: tuple[int, ...] = ADVICE
    themes: tuple[str, ...] = tuple(theme for theme in THEMES if theme not in ASKED_FOR)
    mmap_flags: frozenset[int] = frozenset(EXTRA_FLAGS) | {DROPPABLE}
    slots: tuple[int, ...] = tuple(range(len(ops.FILES)))
    shares: tuple[int, ...] = tuple(ops.MOUNT_OF)
    spares_ring: bool = False
    fills: tuple[int, ...] = (ops.LITTLE, ops.MUCH)
    unmerges_first: bool = False


EVERYTHING = Scope()
"""All of it, without the themes that are asked for."""
