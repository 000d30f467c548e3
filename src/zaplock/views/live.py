"""What goes on at this moment: who holds, who waits behind whom. For `zaplock why` and `top`.

"Now" is the end of the recording: a hold whose release and a wait whose end were not seen by then
is still going on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.analysis import Analysis
from zaplock.trace.summary import QUEUED_NS, Summary
from zaplock.trace.waits import WaitOutcome
from zaplock.units import duration
from zaplock.views.headlines import headlines
from zaplock.views.initial_state import found_lines
from zaplock.views.report_json import longest
from zaplock.views.sentences import answer, chain, doing, hold_sentence, wait_sentence, who
from zaplock.views.slow_holds import of_culprit, plain_time, why_slow
from zaplock.views.stacks import of_wait, plain, sentence
from zaplock.views.standing import asleep_with_it

Array = NDArray[Any]


def waiting_now(analysis: Analysis) -> list[int]:
    """Return the waits that go on, the longest first."""
    waits = analysis.waits
    going_on = (waits["outcome"] == WaitOutcome.WAITING) & (waits["wait_ns"] >= QUEUED_NS)
    rows = np.flatnonzero(going_on)
    return [int(rows[place]) for place in longest(waits["wait_ns"][rows], len(rows))]


def holding_now(analysis: Analysis) -> list[int]:
    """Return the holds that go on, the longest first."""
    holds = analysis.holds
    end_ns = int(analysis.segments.end_ns[-1])
    rows = np.flatnonzero(~holds["complete"] & (holds.end_ns == end_ns))
    return [int(rows[place]) for place in longest(holds["hold_ns"][rows], len(rows))]


def now(analysis: Analysis, *, limit: int = 5, of_all: bool = False) -> Iterator[str]:
    """Say in sentences who waits and who holds at this moment; `of_all`: more than one lock's."""
    lock = "an mmap_lock" if of_all else "this lock"
    waiting, holding = waiting_now(analysis), holding_now(analysis)
    if not analysis.sees_locks:
        yield f"Who waits for {lock} is not known: no lock events are seen."
    elif not waiting:
        yield f"Right now nobody waits for {lock}."
    else:
        tasks = "1 task waits" if len(waiting) == 1 else f"{len(waiting)} tasks wait"
        yield f"Right now {tasks} for {lock}:"
        for row in waiting[:limit]:
            yield f"    {wait_sentence(analysis, row)}"
            found = analysis.explain(row)
            yield from (f"        {line}" for line in chain(analysis, found))
            yield from (f"    {line}" for line in of_culprit(analysis, found))
            yield from (f"    {line}" for line in of_wait(analysis, found))
    for row in holding[:limit]:
        yield f"Held now: {hold_sentence(analysis, row, so_far=True)}."
        yield from (f"    {line}" for line in why_slow(analysis, row))
        yield from (f"    {line}" for line in _found_asleep(analysis, row))
        if stack := analysis.hold_stack(row):
            yield f"    it is {sentence(stack)}"


def _found_asleep(analysis: Analysis, row: int) -> Iterator[str]:
    """Say what a holder slept on when it was looked at, if it has had the lock since before."""
    holds = analysis.holds
    tid, mm = int(holds["tid"][row]), int(holds["mm"][row])
    for task in analysis.events.found:
        if (task.tid, task.mm) == (tid, mm) and int(holds["start_ns"][row]) <= task.time_ns:
            yield from asleep_with_it(analysis, task)


def why_lines(summary: Summary, *, seconds: float) -> Iterator[str]:
    """Answer in one screen: is anything waiting now, behind whom, and what was worst before."""
    analysis = summary.analysis
    yield from now(analysis, of_all=len(analysis.events.mms) > 1)
    yield from found_lines(analysis)
    yield ""
    yield f"In these {duration(round(seconds * 1e9))}:"
    yield from answer(summary)
    yield from headlines(analysis)


def why_json(analysis: Analysis) -> dict[str, Any]:
    """Return what goes on now as plain values."""
    waits, holds = analysis.waits, analysis.holds
    return {
        "waiting": [
            {
                "tid": int(waits["tid"][row]),
                "task": who(analysis, int(waits["tid"][row])),
                "mode": "exclusive" if waits["exclusive"][row] else "shared",
                "wait_ns": int(waits["wait_ns"][row]),
                "behind": chain(analysis, analysis.explain(row)),
                **plain(analysis.wait_stack(row)),
            }
            for row in waiting_now(analysis)
        ],
        "holding": [
            {
                "tid": int(holds["tid"][row]),
                "task": who(analysis, int(holds["tid"][row])),
                "mode": "exclusive" if holds["exclusive"][row] else "shared",
                "hold_ns": int(holds["hold_ns"][row]),
                "doing": doing(holds, row),
                **plain_time(analysis, row),
                **plain(analysis.hold_stack(row)),
            }
            for row in holding_now(analysis)
        ],
    }
