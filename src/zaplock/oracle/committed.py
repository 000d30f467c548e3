"""Committed_AS after every operation, by difference: what mappings promise and give back.

And of a sequence that maps huge pages of the pool, how many of those are free and reserved. These
are figures of the whole machine, so everybody else's mappings change them too. That is why they are
compared apart, on a quiet machine, and a difference counts only if it comes again, and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zaplock.model.flags import MAP_HUGETLB
from zaplock.oracle.generate import Generator
from zaplock.oracle.lock_sequences import BATCH, Difference
from zaplock.oracle.modelside import ModelSide
from zaplock.oracle.ops import HUGE_FILES, Op, Promised
from zaplock.oracle.real import RealSide
from zaplock.oracle.scope import Scope

RUNS = 3  # in which a difference must show


class CommittedSample(NamedTuple):
    """What a sample showed: operations compared, and what differed."""

    operations: int
    differences: tuple[Difference, ...]


def sample(real: RealSide, model: ModelSide, seed: int, scope: Scope) -> CommittedSample:
    """Compare Committed_AS over BATCH sequences."""
    generator, operations, differences = Generator(seed, scope), 0, []
    for _ in range(BATCH):
        sequence = generator.sequence()
        operations += len(sequence)
        found = compare(real, model, sequence)
        if found and all(compare(real, model, sequence) == found for _ in range(RUNS - 1)):
            differences.append(found)
    return CommittedSample(operations, tuple(differences))


def compare(real: RealSide, model: ModelSide, sequence: tuple[Op, ...]) -> Difference | None:
    """Run a sequence on both sides; None where they agree, or where the results differ already."""
    figures, results = real.run_promised(sequence)
    model.promised = []
    steps = model.run(sequence)
    pages, model.promised = model.promised, None
    shown = Promised._fields if any(map(maps_huge_pages, sequence)) else ("committed",)
    if [step.outcome.result for step in steps] != results:
        return None  # that is the whole comparison's to report
    for at in range(len(sequence)):
        kernel, ours = (
            [getattr(side[at + 1], name) - getattr(side[at], name) for name in shown]
            for side in (figures, pages)
        )
        if kernel != ours:
            return Difference(sequence, at, told(kernel), told(ours))
    return None


def told(changes: Sequence[int]) -> str:
    """Tell by how many pages each figure has changed."""
    names = ("pages", "huge pages free", "reserved")
    return ", ".join(f"{change:+} {name}" for change, name in zip(changes, names, strict=False))


def maps_huge_pages(op: Op) -> bool:
    """Return whether an operation takes huge pages of the pool, or reserves some."""
    if op.name != "mmap":
        return op.name == "huge_shmat" or (op.name == "fallocate" and op.args[0] in HUGE_FILES)
    anyway = isinstance(op.args[3], int) and bool(op.args[3] & MAP_HUGETLB)
    return anyway or op.args[4] in HUGE_FILES
