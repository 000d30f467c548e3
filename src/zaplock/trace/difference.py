"""Two recordings laid beside each other: is it better now, is it worse, and how sure is that?

Waits come in bursts, so they are no independent draws: the same burst recorded once more is no more
proof. What is compared are slices of time, each longer than the longest wait: how much was waited
in each, per second. Shuffling the slices between the two recordings (a permutation test) says how
often chance alone parts them as far; drawing slices again (a bootstrap) says how much better or
worse it is. Both have a fixed seed, so the same two recordings give the same answer.

What it can't tell is whether the load was the same: a machine that had less to do waits less, too.
Operations per second are laid beside the rest for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.analysis import Analysis
from zaplock.trace.summary import QUEUED_NS, Group, Summary
from zaplock.units import number

Array = NDArray[Any]
Verdict = Literal["better", "worse", "fewer", "more", "alike", "not known"]

SHUFFLES = 10_000
_AT_ONCE = 500
SLICES = 50
"""So many slices a recording is cut into, if its waits are short enough."""

LEAST_SLICES = 6
"""With fewer in either recording no order of them is rarer than one in hundreds."""

SHORTEST_SLICE_NS = 20_000_000
SURE = 0.01
"""What chance alone would show more often than this is no difference."""

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class MeasureChange:
    """One measure in both recordings, in nanoseconds (or operations) per second of recording.

    chance: how often shuffled slices differ as much, 0 to 1. factor_low and factor_high: between
    which factors of `before` what is now lies, with 95 % confidence. All three are None where
    nothing can be concluded.
    """

    measure: str
    before: float
    after: float
    verdict: Verdict
    chance: float | None
    factor_low: float | None
    factor_high: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """What an operation did in both recordings: `caused_ns` and `waited_ns` per second."""

    name: str
    before: Group
    after: Group


@dataclass(frozen=True, slots=True)
class RecordingDifference:
    """Two recordings compared. `slices` is how many of `slice_ns` each was cut into."""

    before: Summary
    after: Summary
    slice_ns: int
    slices: tuple[int, int]
    changes: tuple[MeasureChange, ...]
    operations: tuple[Pair, ...]
    doubts: tuple[str, ...]
    """Why the comparison is to be taken with care: a sentence each, without its full stop."""

    @property
    def verdict(self) -> Verdict:
        """Say whether there is less waiting."""
        return self.changes[0].verdict

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values; times are nanoseconds, rates per second."""
        return {
            "verdict": self.verdict,
            "slice_ns": self.slice_ns,
            "slices": list(self.slices),
            "before": _side(self.before),
            "after": _side(self.after),
            "changes": [asdict(one) for one in self.changes],
            "operations": [asdict(one) for one in self.operations],
            "doubts": list(self.doubts),
        }


def _side(one: Summary) -> dict[str, Any]:
    return {
        "kernel": one.analysis.kernel,
        "duration_ns": one.analysis.duration_ns,
        "waits": one.queued,
        "waited_ns": one.waited_ns,
        "longest_wait_ns": longest_wait(one),
        "longest_exclusive_ns": longest_hold(one, exclusive=True),
        "longest_shared_ns": longest_hold(one, exclusive=False),
    }


def longest_wait(one: Summary) -> int:
    """Return the longest wait of a recording, 0 where nobody waited."""
    return int(one.analysis.waits["wait_ns"].max(initial=0)) if one.queued else 0


def longest_hold(one: Summary, *, exclusive: bool) -> int:
    """Return the longest hold of a kind, 0 where there is none."""
    holds = one.analysis.holds
    return int(holds["hold_ns"][holds["exclusive"] == exclusive].max(initial=0))


def difference(before: Summary, after: Summary) -> RecordingDifference:
    """Compare two recordings. Raises UserError where one of them has no lock events."""
    for one in (before, after):
        one.analysis.require_locks()
    sides = (before, after)
    slice_ns = _slice_ns(sides)
    counts = tuple(one.analysis.duration_ns // slice_ns for one in sides)
    changes = [
        _change(measure, *(_sliced(one.analysis, measure, slice_ns) for one in sides))
        for measure in MEASURES
    ]
    return RecordingDifference(
        before,
        after,
        slice_ns,
        (counts[0], counts[1]),
        tuple(changes),
        _pairs(before.by_operation, after.by_operation),
        tuple(_doubts(sides, changes)),
    )


MEASURES = ("waited", "held exclusively", "held shared", "operations")
"""What is compared: the first decides. Less is better; of operations, the load, it is fewer."""


def _slice_ns(sides: Sequence[Summary]) -> int:
    """Choose the length of a slice: longer than any wait, a fiftieth of the shorter recording."""
    shorter = min(one.analysis.duration_ns for one in sides)
    longest = max(longest_wait(one) for one in sides)
    return max(1, shorter // SLICES, longest, min(SHORTEST_SLICE_NS, shorter // LEAST_SLICES))


def _sliced(analysis: Analysis, measure: str, slice_ns: int) -> Array:
    """Return a measure for each whole slice of a recording, per second."""
    count = analysis.duration_ns // slice_ns
    if measure == "operations":
        begins = analysis.calls.begin_ns - analysis.begin_ns
        inside = begins[(begins >= 0) & (begins < count * slice_ns)] // slice_ns
        counted: Array = np.bincount(inside, minlength=count) * (SECOND / slice_ns)
        return counted
    if measure == "waited":
        waits = analysis.waits
        rows = waits["wait_ns"] >= QUEUED_NS
        begin, span = waits["start_ns"][rows], waits["wait_ns"][rows]
    else:
        holds = analysis.holds
        rows = holds["exclusive"] == (measure == "held exclusively")
        begin, span = holds["start_ns"][rows], holds["hold_ns"][rows]
    return spread(begin - analysis.begin_ns, span, slice_ns, count) * (SECOND / slice_ns)


def spread(begin_ns: Array, span_ns: Array, slice_ns: int, count: int) -> Array:
    """Sum spans up by slices: each slice has the part of a span that lies in it.

    >>> spread(np.array([5]), np.array([10]), 10, 3)
    array([5., 5., 0.])
    """
    # What lies before each edge is whole spans, and of those that are not over the part so far.
    edges = np.arange(count + 1, dtype=np.float64) * slice_ns
    ends = begin_ns + span_ns

    def up_to(points: Array) -> Array:
        """Sum the distances from each edge back to the points that lie before it."""
        ordered = np.sort(points).astype(np.float64)
        sums = np.concatenate(([0.0], np.cumsum(ordered)))
        before = np.searchsorted(ordered, edges)
        passed: Array = edges * before - sums[before]
        return passed

    parts: Array = np.diff(up_to(begin_ns) - up_to(ends))
    return parts


def _change(measure: str, before: Array, after: Array) -> MeasureChange:
    """Judge one measure by its slices."""
    low, high = (float(one.mean()) if len(one) else 0.0 for one in (before, after))
    if min(len(before), len(after)) < LEAST_SLICES:
        return MeasureChange(measure, low, high, "not known", None, None, None)
    chance = _chance(before, after)
    factors = _factors(before, after)
    verdict: Verdict = "alike"
    if chance <= SURE and measure == "operations":
        verdict = "fewer" if high < low else "more"
    elif chance <= SURE:
        verdict = "better" if high < low else "worse"
    return MeasureChange(measure, low, high, verdict, chance, *factors)


def _chance(before: Array, after: Array) -> float:
    """Return how often shuffled slices have means at least as far apart; never 0."""
    rng = np.random.default_rng(1)
    both = np.concatenate([before, after])
    seen = abs(after.mean() - before.mean()) * (1 - 1e-12)
    found = 0
    for _ in range(SHUFFLES // _AT_ONCE):
        shuffled = rng.permuted(np.tile(both, (_AT_ONCE, 1)), axis=1)
        first, second = np.split(shuffled, [len(before)], axis=1)
        found += int((abs(first.mean(axis=1) - second.mean(axis=1)) >= seen).sum())
    return (found + 1) / (SHUFFLES + 1)


def _factors(before: Array, after: Array) -> tuple[float | None, float | None]:
    """Return between which factors of `before` what is now lies, in 95 of 100 redrawings."""
    rng = np.random.default_rng(2)
    drawn = [
        one[rng.integers(0, len(one), (2_000, len(one)))].mean(axis=1) for one in (before, after)
    ]
    if not drawn[0].all():
        return None, None
    low, high = np.percentile(drawn[1] / drawn[0], [2.5, 97.5])
    return float(low), float(high)


def _pairs(before: Sequence[Group], after: Sequence[Group]) -> tuple[Pair, ...]:
    """Pair the operations of both, who made others wait longest first; idle ones are left out."""
    sides = [{one.name: one for one in groups} for groups in (before, after)]
    names = dict.fromkeys(one.name for one in (*before, *after) if one.caused_ns or one.waited_ns)
    pairs = [Pair(name, *(side.get(name, Group(name)) for side in sides)) for name in names]
    return tuple(sorted(pairs, key=lambda one: -max(one.before.caused_ns, one.after.caused_ns)))


def _doubts(sides: Sequence[Summary], changes: Sequence[MeasureChange]) -> list[str]:
    """List what a reader must know before believing the verdict."""
    said = []
    for name, one in zip(("before", "after"), sides):
        if lost := one.analysis.segments.lost_events:
            said.append(f"{name}: at least {lost:,} events are missing, so there was more of all")
        said += [f"{name}: {caveat.removesuffix('.')}" for caveat in one.analysis.caveats]
    load = changes[-1]
    if load.verdict in ("fewer", "more") and load.before and load.after:
        times = load.after / load.before
        more = f"{number(times)} times as many" if times >= 1 else f"{100 * times:.0f} % of the"
        said.append(f"the load was not the same: {more} recorded calls a second afterwards")
    return said
