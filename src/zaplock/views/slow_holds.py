"""Why a hold took so long, in words: where its time went, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zaplock.trace.analysis import Analysis
from zaplock.trace.blame import Explained
from zaplock.trace.hold_time import HoldTime
from zaplock.units import duration, share

WORTH_NS = 1_000_000
"""Of a hold shorter than this nobody asks why."""
_MOST = 5
"""A part follows with advice where it is a fifth of the hold or more."""


def parts(spent: HoldTime) -> list[tuple[str, int]]:
    """Name the parts of a hold that are not nothing; they add up to it."""
    found = [
        ("on a CPU", spent.on_cpu_ns),
        ("throttled by its cgroup's quota", spent.throttled_ns),
        ("ready, but without a CPU", spent.preempted_ns),
        *((f"asleep on {what}", span_ns) for what, span_ns in spent.asleep),
        ("not known", spent.unknown_ns),
    ]
    return [(name, span_ns) for name, span_ns in found if span_ns]


def split(spent: HoldTime) -> str:
    """Say the parts in one line, the greatest first."""
    ordered = sorted(parts(spent), key=lambda part: -part[1])
    return ", ".join(f"{duration(ns)} ({share(ns, spent.whole_ns)}) {name}" for name, ns in ordered)


def why_slow(analysis: Analysis, row: int) -> Iterator[str]:
    """Say where a long hold's time went and what follows; nothing where nothing is known."""
    spent = analysis.hold_time(row)
    if spent.whole_ns < WORTH_NS or spent.unknown_ns == spent.whole_ns:
        return
    yield f"of that hold {split(spent)}"
    yield from _follows(analysis, spent)


def of_culprit(analysis: Analysis, found: Explained) -> Iterator[str]:
    """Say why the hold was slow that made a wait long."""
    culprit = found.culprit
    if culprit is not None and not culprit.waited:
        yield from (f"    {line}" for line in why_slow(analysis, culprit.row))


def _follows(analysis: Analysis, spent: HoldTime) -> Iterator[str]:
    whole = duration(spent.whole_ns)
    if spent.throttled_ns * _MOST >= spent.whole_ns and analysis.quotas:
        account = analysis.quotas.accounts[spent.group]
        limit = f"{account.quota_ns // 1000} {account.period_ns // 1000}"
        yield (
            f"{duration(spent.throttled_ns)} of {whole} its container had no CPU left: raise "
            f"cpu.max of {spent.group} (now {limit}), or move to Linux 6.18, where a task is "
            "throttled only on its way to user mode"
        )
    if spent.preempted_ns * _MOST >= spent.whole_ns:
        yield (
            f"{duration(spent.preempted_ns)} of {whole} it was ready and others had the CPUs: give "
            "it more CPUs or weight (cpu.weight, nice), or the others less"
        )
    for what, span_ns in spent.asleep[:1]:
        if span_ns * _MOST >= spent.whole_ns:
            yield f"{duration(span_ns)} of {whole} it slept on {what}, with the lock in hand"


def plain_time(analysis: Analysis, row: int) -> dict[str, Any]:
    """Return "time" for JSON: the parts in ns, which add up to the hold; "why_slow": what follows.

    None of it where the scheduling of the holder was not recorded; "why_slow" of a long hold only.
    """
    spent = analysis.hold_time(row)
    if spent.unknown_ns == spent.whole_ns:
        return {}
    follows = list(_follows(analysis, spent)) if spent.whole_ns >= WORTH_NS else []
    return {
        "time": {
            "on_cpu_ns": spent.on_cpu_ns,
            "preempted_ns": spent.preempted_ns,
            "throttled_ns": spent.throttled_ns,
            "asleep_ns": dict(spent.asleep),
            "unknown_ns": spent.unknown_ns,
        },
        **({"why_slow": follows} if follows else {}),
    }
