"""Random sequences of operations that collide: few pages, few files, every flag, many mistakes.

A sequence keeps to one theme (what its operations are mostly about) and to small windows across
page-table boundaries, so that mappings meet, split, merge and share page tables all the time. Most
sequences have one window; others have more, at the boundaries of 2 MiB, 1 GiB and 512 GiB and at
equal places in their page tables, and lengths up to a gigabyte. It needs no knowledge of the
outcome: addresses that the kernel chooses are named by `Ref`. About one argument in eight is wrong
on purpose: misaligned, wrapping, zero, beyond TASK_SIZE, contradictory. Nothing fills more than
`windows.MOST_FILLED` bytes, so no sequence takes seconds or gigabytes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from zaplock.oracle import ops
from zaplock.oracle.beginnings import beginning
from zaplock.oracle.draw import Draw
from zaplock.oracle.draw_arguments import MAKERS, MAKERS_OF_THEMES, TO_WATCHED, WEIGHTS
from zaplock.oracle.ops import Op
from zaplock.oracle.scope import EVERYTHING, Scope
from zaplock.oracle.themes import FIRST, SOMETIMES_WATCHED
from zaplock.oracle.windows import UNMAP_ALL, away_from_ring


@dataclass(slots=True)
class Generator:
    """Make sequences for a seed; equal seeds and scopes make equal sequences."""

    seed: int
    scope: Scope = EVERYTHING
    length: int = 48
    random: random.Random = field(init=False)
    _watching: dict[str, list[str]] = field(init=False)
    _unwatched: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        themes = (theme for theme in self.scope.themes if theme in WEIGHTS)
        mixes = {theme: self._mix(WEIGHTS[theme]) for theme in themes}
        self._watching = {  # a userfaultfd watches the process that has made it, not its child
            theme: [name for name in names if name != "into_child"]
            for theme, names in mixes.items()
        }
        self._unwatched = {
            theme: [
                name for name in names if theme not in SOMETIMES_WATCHED or name not in TO_WATCHED
            ]
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
        draw = Draw(self.random, self.scope)
        names, makers = self._names(draw), MAKERS_OF_THEMES.get(draw.theme, {})
        for op in beginning(draw) if draw.chance(75) else ():
            draw.add(op)
        if draw.merges == "few":
            draw.add(Op("ksm_most", (self.random.choice((2, 2, 3, 4, 1)),)))
        for number in range(len(draw.made), self.length):
            name = FIRST.get(draw.theme, "") if not number else ""
            name = name or self.random.choice(names)
            if name == "ksm_scan" and (draw.has_many_merged or self.scope.unmerges_first):
                draw.add(Op("ksm_unmerge"))
            draw.add(Op(name, (makers.get(name) or MAKERS[name])(draw)))
        made = map(away_from_ring, draw.made) if self.scope.spares_ring else draw.made
        return (*made, *UNMAP_ALL)

    def _names(self, draw: Draw) -> list[str]:
        """List what a sequence may do, each name as often as its weight."""
        names = (self._watching if draw.watches else self._unwatched)[draw.theme]
        leaves_out: tuple[str, ...] = () if draw.forks else ops.FORKS
        if draw.theme == "shmem-huge" and not draw.allocates:
            leaves_out = (*leaves_out, "fallocate")
        if draw.merges:
            leaves_out = (
                ("mlock", "mlock2", "set_memory_merge")
                if draw.merges == "processes"
                else ("into_child",)
            )
        return [name for name in names if name not in leaves_out] if leaves_out else names
