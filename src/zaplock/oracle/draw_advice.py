"""Which advice madvise gives, and where: much of what a theme is about, nothing that may not be."""

from __future__ import annotations

from zaplock import advice
from zaplock.oracle.draw import Draw
from zaplock.oracle.draw_ranges import any_range, off_ring
from zaplock.oracle.ops import Argument
from zaplock.oracle.windows import HUGE_WINDOW, MOST_FILLED, MOST_GUARDED, PMD


def madvise(d: Draw) -> tuple[Argument, ...]:
    """Advise, but neither on the ring (it lies above all else) nor to fill gigabytes."""
    (address, length), chosen = any_range(d), _advice(d)
    if d.is_huge and d.chance(20):
        address, length = HUGE_WINDOW + PMD * d.random.randrange(3), PMD * d.random.randint(1, 2)
        chosen = d.random.choice((4, 4, 22, 24, chosen))
    if d.allocates and chosen == advice.MADV_COLLAPSE:
        chosen = advice.MADV_POPULATE_READ
    most = {22: MOST_FILLED, 23: MOST_FILLED, 102: MOST_GUARDED}.get(chosen, 1 << 64)
    length = off_ring(d, address, length, most)
    return address, length, d.word(chosen)


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
    if d.theme == "dirty" and d.chance(70):
        removes = advice.MADV_REMOVE if d.removes else advice.MADV_DONTNEED
        return d.random.choice((4, 4, 22, 22, 23, advice.MADV_FREE, advice.MADV_FREE, removes))
    if d.merges and d.chance(75):
        undoes = advice.MADV_MERGEABLE if d.merges == "processes" else advice.MADV_UNMERGEABLE
        huge: tuple[int, ...] = (14, 14) if d.merges == "huge" else ()
        return d.random.choice((*[advice.MADV_MERGEABLE] * 4, undoes, undoes, 23, 23, 4, *huge))
    if d.theme == "collapse-file" and d.chance(70):
        return d.random.choice((*[advice.MADV_COLLAPSE] * 6, 4, 9 if d.removes else 4, 15, 22, 23))
    if d.makes_shared_huge and d.chance(75):
        return d.random.choice((
            *[advice.MADV_HUGEPAGE] * 3, *[advice.MADV_NOHUGEPAGE] * 2, 4, 4, 22, 23, 23, 20, 25,
            *[advice.MADV_REMOVE if d.removes else 4] * 3,
        ))  # fmt: skip
    if d.theme == "collapse" and d.chance(70):
        return d.random.choice((*[advice.MADV_COLLAPSE] * 4, 4, 14, 15, 102, 103, 22, 23))
    if d.is_huge and d.chance(60):
        guard = 4 if d.protects else 102
        return d.random.choice((14, 14, 14, 15, 4, 8, 20, 22, 23, guard, 103))
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
