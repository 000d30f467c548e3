"""What a run of the oracle has found, slice by slice."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from zaplock.oracle.compare import Divergence
from zaplock.oracle.coverage import Key


@dataclass(slots=True)
class Report:
    """What a run, or a slice of it, found. `seconds` is time at work, summed over jobs.

    `unsettled`: what was changed under the run, or disturbed it, and how many operations ran
    meanwhile, which are not counted as `operations`; `set_aside`: sequences that differed, or were
    lost, then. `once`: what differed, in peace as far as was seen, and not again; each kind is
    counted in `once_signatures`. `late`: what had no time once, and has agreed since.
    """

    operations: int = 0
    sequences: int = 0
    seconds: float = 0.0
    divergences: list[Divergence] = field(default_factory=list)
    signatures: Counter[str] = field(default_factory=Counter)
    kernel_faults: list[Divergence] = field(default_factory=list)
    kernel_signatures: Counter[str] = field(default_factory=Counter)
    once: list[Divergence] = field(default_factory=list)
    once_signatures: Counter[str] = field(default_factory=Counter)
    late: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unsettled: Counter[str] = field(default_factory=Counter)
    set_aside: int = 0
    coverage: Counter[Key] = field(default_factory=Counter)

    def merge(self, other: Report) -> None:
        """Add another slice's findings."""
        self.operations += other.operations
        self.sequences += other.sequences
        self.seconds += other.seconds
        _add_new(self.divergences, other.divergences)
        _add_new(self.kernel_faults, other.kernel_faults)
        self.signatures.update(other.signatures)
        self.kernel_signatures.update(other.kernel_signatures)
        _add_new(self.once, other.once)
        self.once_signatures.update(other.once_signatures)
        self.late += other.late
        self.lost += other.lost
        self.unsettled.update(other.unsettled)
        self.set_aside += other.set_aside
        self.coverage.update(other.coverage)

    def keep_once(self, found: Divergence) -> None:
        """Count a divergence that did not come again."""
        self.once_signatures[found.signature] += 1
        _add_new(self.once, [found])

    def put_aside(self, disturbed: str) -> None:
        """Count a sequence that went wrong while something disturbed it."""
        self.set_aside += 1
        self.unsettled[disturbed] += 0

    @property
    def agrees(self) -> bool:
        """Tell whether the sides never differed; the kernel's own faults are not counted here.

        They don't where all was set aside, since the machine's settings had changed.
        """
        nothing_counts = bool(self.unsettled) and not self.operations
        return not (self.signatures or self.once_signatures or self.lost or nothing_counts)


def _add_new(known: list[Divergence], found: list[Divergence]) -> None:
    for divergence in found:
        if all(divergence.signature != other.signature for other in known):
            known.append(divergence)
