"""Two recordings beside each other in words: the verdict, how sure it is, then the figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from zaplock.trace.difference import (
    LEAST_SLICES,
    SECOND,
    MeasureChange,
    RecordingDifference,
    longest_hold,
    longest_wait,
)
from zaplock.trace.summary import Group, Summary
from zaplock.units import duration, number
from zaplock.views.grid import Grid, beyond, figure, words
from zaplock.views.sentences import heading

SAID = {
    "waited": "tasks waited for the lock",
    "held exclusively": "it was held exclusively",
    "held shared": "it was held shared",
}


def sentences(found: RecordingDifference) -> Iterator[str]:
    """Say what changed and how sure that is, the waiting first; then what speaks against it."""
    waited, *others = found.changes
    yield f"{_verdict(found, waited)}"
    for one in others:
        if one.verdict in ("better", "worse"):
            yield f"{one.verdict.capitalize()}: {_amount(one)}{_sure(one)}."
    yield from (f"Take it with care: {doubt}." for doubt in found.doubts)


def _verdict(found: RecordingDifference, waited: MeasureChange) -> str:
    if not found.before.queued and not found.after.queued:
        if not (found.before.analysis.is_whole and found.after.analysis.is_whole):
            return "No wait for an mmap_lock was recorded in either, and not all was recorded."
        return "Nobody waited for an mmap_lock in either recording."
    if waited.verdict == "not known":
        return (
            f"Not known: slices longer than the longest wait are {duration(found.slice_ns)} long, "
            f"and of these the recordings have {found.slices[0]} and {found.slices[1]}, fewer than "
            f"{LEAST_SLICES}: record for longer."
        )
    if waited.verdict == "alike":
        return (
            f"No difference that can be told: {_amount(waited)}, and chance alone parts slices of "
            f"{duration(found.slice_ns)} as far in {_often(waited)}."
        )
    return f"{waited.verdict.capitalize()}: {_amount(waited)}{_sure(waited)}."


def _amount(one: MeasureChange) -> str:
    before, after = (duration(round(span)) if span else "never" for span in (one.before, one.after))
    return f"{SAID[one.measure]} {_a_second(before)} before, {_a_second(after)} after"


def _a_second(span: str) -> str:
    return span if span == "never" else f"{span} in each second"


def _sure(one: MeasureChange) -> str:
    parts = []
    if one.factor_low is not None and one.factor_high is not None and one.before:
        parts.append(f"95 % sure: {_between(one.factor_low, one.factor_high)}")
    parts.append(f"chance alone does that in {_often(one)}")
    return f" ({'; '.join(parts)})"


def _between(low: float, high: float) -> str:
    if high <= 1:
        return f"{_from(_percent(1 - high), _percent(1 - low))} less"
    if low >= 1:
        return f"{_from(number(low), number(high))} times as much"
    return f"between {_percent(1 - low)} less and {number(high)} times as much"


def _from(low: str, high: str) -> str:
    """Write a range; one figure where both ends are written alike."""
    return low if low == high else f"{low} to {high}"


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %" if part < 0.99 or part == 1 else f"{number(100 * part, 4)} %"


def _often(one: MeasureChange) -> str:
    assert one.chance is not None
    share = number(100 * one.chance, 2)
    return f"{share} % of cases" if one.chance > 0.0005 else "under 0.05 % of cases"


def sides(found: RecordingDifference) -> Iterator[str]:
    """Say what was compared."""
    for name, one in (("before", found.before), ("after", found.after)):
        yield f"{name + ':':<8}{heading(one.analysis)}"


def figures(found: RecordingDifference) -> Grid:
    """Draw each measure before and after."""
    rows = [
        (f"{one.measure}, a second", *map(_figure(one), (one.before, one.after)), one.verdict)
        for one in found.changes
    ]
    for name, of in _LONGEST:
        spans = [of(one) for one in (found.before, found.after)]
        rows.append((name, *(duration(round(span)) if span else "-" for span in spans), ""))
    columns = (words("measure"), figure("before"), figure("after"), words("verdict"))
    return Grid(columns, rows)


_LONGEST: tuple[tuple[str, Callable[[Summary], int]], ...] = (
    ("longest wait", longest_wait),
    ("longest exclusive hold", lambda one: longest_hold(one, exclusive=True)),
    ("longest shared hold", lambda one: longest_hold(one, exclusive=False)),
)


def _figure(one: MeasureChange) -> Callable[[float], str]:
    if one.measure in SAID:
        return lambda value: duration(round(value)) if value else "-"
    return lambda value: f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def operations(found: RecordingDifference, top: int) -> Grid:
    """Draw who made others wait in which operation, per second of each recording."""
    seconds = [one.analysis.duration_ns / SECOND for one in (found.before, found.after)]
    rows = []
    for pair in found.operations[:top]:
        row = [pair.name]
        for field in ("caused_ns", "longest_wait_ns", "longest_exclusive_ns"):
            for one, span_s in zip((pair.before, pair.after), seconds):
                row.append(_cell(one, field, span_s))
        rows.append(row)
    heads = (("made others wait, a second", 0), ("longest wait", 1), ("longest exclusive", 2))
    columns = [words("operation")]
    for head, rank in heads:
        columns += [figure(f"{head}, {side}", rank) for side in ("before", "after")]
    return Grid(columns, rows, "By operation", beyond(len(found.operations) - top))


def _cell(one: Group, field: str, span_s: float) -> str:
    value = getattr(one, field) / (span_s if field == "caused_ns" else 1)
    return duration(value) if value else "-"
