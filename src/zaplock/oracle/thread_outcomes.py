"""Outcomes of threads in words: what one is, and what parts it from the nearest allowed one."""

from __future__ import annotations

from collections.abc import Collection

from zaplock.oracle import compare, ops
from zaplock.oracle.ops import COUNTERS, OracleStep
from zaplock.oracle.threaded import ThreadedOutcome


def results_text(outcome: ThreadedOutcome) -> str:
    """Write what each thread's operations returned: threads with a bar between them."""
    return " | ".join(", ".join(map(_result, thread)) for thread in outcome.results)


def _result(result: int) -> str:
    return compare.result_text(result).removesuffix(" (code 0)")  # which code is not compared


def outcome_text(outcome: ThreadedOutcome) -> str:
    """Write an outcome on a line: results, mappings, and the counters that are not 0."""
    maps = "; ".join(map(compare.vma_text, outcome.after.vmas))
    counted = zip(COUNTERS, outcome.after.counters, strict=True)
    counters = ", ".join(f"{name} {value} kB" for name, value in counted if value)
    return f"{results_text(outcome)} and leaves [{maps}], {counters or 'all counters 0'}"


def from_nearest(outcome: ThreadedOutcome, allowed: Collection[ThreadedOutcome]) -> tuple[str, ...]:
    """Say what differs between an outcome and the nearest of those that are allowed.

    The nearest has the same results, as far as one has, and differs in the fewest lines.
    """
    alike = [one for one in allowed if one.results == outcome.results]
    if not alike:
        known = sorted({results_text(one) for one in allowed})
        return (f"results {results_text(outcome)}, allowed {' or '.join(known)}",)
    shown = OracleStep(ops.returned(0), outcome.after)
    told = (
        tuple(compare.differences(shown, OracleStep(ops.returned(0), one.after))) for one in alike
    )
    return min(told, key=lambda lines: (len(lines), lines))
