"""What the HTML page is made of: columns of holds and waits, packed for a browser.

A million events are some 300,000 holds. As JSON they would fill the page; as columns of small
integers, written one after the other and deflated, they are a few bytes each. Times are
nanoseconds since the recording began, written as differences, each as a low and a high half of 32
bits (`assets/data.js` reads them back).
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zaplock.trace.analysis import Analysis
from zaplock.trace.blame import VMA, Blame
from zaplock.trace.stacks import CallStack
from zaplock.trace.summary import QUEUED_NS, Summary
from zaplock.views.report_json import longest
from zaplock.views.sentences import blame_sentence, chain, owner
from zaplock.views.slow_holds import why_slow
from zaplock.views.stacks import telling

Array = NDArray[Any]

LIMIT = 400_000
"""So many holds and so many waits, the longest, are in the page."""

EXCLUSIVE, DOWNGRADED, COMPLETE = 1, 2, 4
NO_HOLD = -1
STACKS = 20_000
CHAINS = 2_000
"""So many of the longest waits have their whole chain in the page; the others their culprit."""


def page_data(summary: Summary) -> dict[str, Any]:
    """Return the page's header: names and sentences, and `columns`, to be packed by `packed`."""
    analysis = summary.analysis
    holds = np.sort(_longest_rows(analysis.holds["hold_ns"], LIMIT))
    queued = np.flatnonzero(analysis.waits["wait_ns"] >= QUEUED_NS)
    chosen = _longest_rows(analysis.waits["wait_ns"][queued], LIMIT)
    waits = np.sort(queued[chosen])
    lanes = _lanes(summary, holds, waits)
    mms, mm_of_hold, mm_of_wait = _mms(analysis, holds, waits)
    told, hold_stack, wait_stack = _stacks(analysis, holds, waits)
    columns = {
        "hold_stack": hold_stack,
        "wait_stack": wait_stack,
        **_hold_columns(analysis, holds, lanes, mm_of_hold),
        **_wait_columns(summary, waits, holds, lanes, mm_of_wait),
    }
    return {
        "duration": analysis.duration_ns,
        "lanes": [_lane(analysis, tid) for tid in lanes],
        "operations": list(analysis.calls.operations),
        "mms": [owner(analysis, mm) for mm in mms],
        "gaps": [_gap(analysis, gap.start_ns, gap.end_ns) for gap in analysis.segments.gaps],
        "chains": _chains(summary, waits),
        "stacks": told,
        "times": _times_of(analysis, holds),
        "left_out": [len(analysis.holds) - len(holds), len(queued) - len(waits)],
        "columns": columns,
    }


def _longest_rows(span_ns: Array, count: int) -> Array:
    return np.array(longest(span_ns, count), np.int64)


def _gap(analysis: Analysis, start_ns: int, end_ns: int) -> list[int]:
    return [start_ns - analysis.begin_ns, end_ns - analysis.begin_ns]


def _lanes(summary: Summary, holds: Array, waits: Array) -> list[int]:
    """Order the threads: a process's threads together, and first those that matter most."""
    analysis = summary.analysis
    tids = np.union1d(analysis.holds["tid"][holds], analysis.waits["tid"][waits]).tolist()
    weight: dict[int, int] = dict.fromkeys(tids, 0)
    for found in summary.explained:
        weight[int(analysis.waits["tid"][found.wait])] += int(analysis.waits["wait_ns"][found.wait])
        shares = found.shares
        for tid, share_ns in zip(shares.tid.tolist(), shares.share_ns.tolist()):
            if tid in weight:
                weight[tid] += share_ns
    process = {tid: _pid(analysis, tid) for tid in tids}
    heavy: dict[int, int] = {}
    for tid in tids:
        heavy[process[tid]] = heavy.get(process[tid], 0) + weight[tid]
    return sorted(tids, key=lambda tid: (-heavy[process[tid]], process[tid], -weight[tid], tid))


def _pid(analysis: Analysis, tid: int) -> int:
    task = analysis.events.tasks.get(tid)
    return task.pid if task else tid


def _lane(analysis: Analysis, tid: int) -> dict[str, str | int]:
    task = analysis.events.tasks.get(tid)
    if task is None:
        return {"tid": tid, "comm": "", "pid": tid, "process": ""}
    process = task.process or task.comm
    return {"tid": tid, "comm": task.comm, "pid": task.pid, "process": process}


def _mms(analysis: Analysis, holds: Array, waits: Array) -> tuple[list[int], Array, Array]:
    of_hold, of_wait = analysis.holds["mm"][holds], analysis.waits["mm"][waits]
    distinct = np.union1d(of_hold, of_wait)
    numbers = [np.searchsorted(distinct, mm).astype(np.int32) for mm in (of_hold, of_wait)]
    return [int(mm) for mm in distinct], numbers[0], numbers[1]


def _lane_numbers(lanes: list[int], tid: Array) -> Array:
    tids = np.array(lanes, np.int64)
    order = np.argsort(tids)
    numbers: Array = order[np.searchsorted(tids[order], tid)].astype(np.int32)
    return numbers


def halves(name: str, values: Array) -> dict[str, Array]:
    """Cut a column of times or lengths into its low and its high 32 bits."""
    unsigned = values.astype(np.uint64)
    low, high = unsigned & np.uint64(0xFFFFFFFF), unsigned >> np.uint64(32)
    return {f"{name}_low": low.astype(np.uint32), f"{name}_high": high.astype(np.uint32)}


def _times(name: str, analysis: Analysis, start_ns: Array, span_ns: Array) -> dict[str, Array]:
    starts = np.diff(start_ns - analysis.begin_ns, prepend=0)
    return {**halves(f"{name}_start", starts), **halves(f"{name}_span", span_ns)}


def _hold_columns(analysis: Analysis, rows: Array, lanes: list[int], mm: Array) -> dict[str, Array]:
    holds = analysis.holds
    flags = (
        holds["exclusive"][rows] * EXCLUSIVE
        + holds["downgraded"][rows] * DOWNGRADED
        + holds["complete"][rows] * COMPLETE
    )
    return {
        **_times("hold", analysis, holds["start_ns"][rows], holds["hold_ns"][rows]),
        **halves("hold_length", np.maximum(holds["length"][rows], 0)),
        "hold_lane": _lane_numbers(lanes, holds["tid"][rows]),
        "hold_op": holds["op"][rows].astype(np.int32),
        "hold_mm": mm,
        "hold_flags": flags.astype(np.uint32),
    }


def _wait_columns(
    summary: Summary, rows: Array, holds: Array, lanes: list[int], mm: Array
) -> dict[str, Array]:
    analysis = summary.analysis
    waits = analysis.waits
    flags = waits["exclusive"][rows] * EXCLUSIVE + ~waits["partial"][rows] * COMPLETE
    return {
        **_times("wait", analysis, waits["start_ns"][rows], waits["wait_ns"][rows]),
        **halves("wait_length", np.maximum(waits["length"][rows], 0)),
        "wait_lane": _lane_numbers(lanes, waits["tid"][rows]),
        "wait_op": waits["op"][rows].astype(np.int32),
        "wait_mm": mm,
        "wait_flags": flags.astype(np.uint32),
        "wait_outcome": waits["outcome"][rows].astype(np.uint32),
        "wait_culprit": _culprits(summary, rows, holds),
    }


def _culprits(summary: Summary, rows: Array, holds: Array) -> Array:
    """Return the place (among the page's holds) of the hold that each wait is due to."""
    place = {int(row): number for number, row in enumerate(holds)}
    wait_place = {int(row): number for number, row in enumerate(rows)}
    culprit = np.full(len(rows), NO_HOLD, np.int32)
    for found in summary.explained:
        held = found.shares.row[found.shares.why <= VMA]
        hold = int(held[0]) if len(held) else NO_HOLD
        if found.wait in wait_place:
            culprit[wait_place[found.wait]] = place.get(hold, NO_HOLD)
    return culprit


def _times_of(analysis: Analysis, rows: Array) -> dict[str, list[str]]:
    """Say of the longest holds why they were slow, by their place in the page."""
    spans = analysis.holds["hold_ns"][rows]
    said = {}
    for place in longest(spans, CHAINS) if analysis.has_sched else ():
        if lines := list(why_slow(analysis, int(rows[place]))):
            said[str(place)] = lines
    return said


def _stacks(
    analysis: Analysis, holds: Array, waits: Array
) -> tuple[list[list[list[str]]], Array, Array]:
    """Return the stacks ([user, kernel], innermost first) and which one each hold and wait has.

    Only the longest `STACKS` of each have theirs in the page.
    """
    known: dict[CallStack, int] = {}
    columns = []
    for rows, table, find in (
        (holds, analysis.holds["hold_ns"], analysis.hold_stack),
        (waits, analysis.waits["wait_ns"], analysis.wait_stack),
    ):
        column = np.full(len(rows), NO_HOLD, np.int32)
        for place in longest(table[rows], STACKS) if analysis.stacks else ():
            if stack := find(int(rows[place])):
                column[place] = known.setdefault(stack, len(known))
        columns.append(column)
    said = [[list(stack.user), list(telling(stack.kernel))] for stack in known]
    return said, columns[0], columns[1]


def _chains(summary: Summary, rows: Array) -> dict[str, list[str]]:
    """Tell the chains of the longest waits, and of the others who was worst."""
    place = {int(row): number for number, row in enumerate(rows)}
    analysis = summary.analysis
    said: dict[str, list[str]] = {}
    for number, found in enumerate(summary.explained):
        if found.wait not in place:
            continue
        if number < CHAINS:
            said[str(place[found.wait])] = chain(analysis, found)
        elif found.culprit is not None:
            said[str(place[found.wait])] = [_behind(analysis, found.culprit)]
    return said


def _behind(analysis: Analysis, blame: Blame) -> str:
    return f"mostly behind {blame_sentence(analysis, blame)}"


def packed(columns: Mapping[str, Array]) -> tuple[list[list[Any]], str]:
    """Return [name, kind, length] of each column, and all their bytes as base64 of gzip."""
    kinds = {np.dtype(np.int32): "int32", np.dtype(np.uint32): "uint32"}
    layout = [[name, kinds[column.dtype], len(column)] for name, column in columns.items()]
    raw = b"".join(np.ascontiguousarray(column).tobytes() for column in columns.values())
    return layout, base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode()
