"""Committed_AS after every operation, by difference: what mappings promise and give back.

It is one figure for the whole machine, so everybody else's mappings change it too. That is why it
is compared apart, on a quiet machine, and a difference counts only if it comes again, and again.
"""

from __future__ import annotations

from typing import NamedTuple

from zaplock.oracle.generate import Generator, Scope
from zaplock.oracle.lock_sequences import BATCH, Difference
from zaplock.oracle.modelside import ModelSide
from zaplock.oracle.ops import Op
from zaplock.oracle.real import RealSide

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
    figures, results = real.run_committed(sequence)
    model.committed = []
    steps = model.run(sequence)
    pages, model.committed = model.committed, None
    if [step.outcome.result for step in steps] != results:
        return None  # that is the whole comparison's to report
    for at in range(len(sequence)):
        kernel, ours = (figures[at + 1] - figures[at]) // 4, pages[at + 1] - pages[at]
        if kernel != ours:
            return Difference(sequence, at, f"{kernel:+} pages", f"{ours:+} pages")
    return None
