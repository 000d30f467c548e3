"""A recording as a Perfetto trace: one track per thread, flow arrows from culprit to victim.

Each thread has its system calls on its own track and, on a track below, its waits for and holds of
mmap_locks. Where a wait of interest ends, an arrow leads to it from the hold that made it long,
from the moment when that hold stopped being in the way. Stacks are samples (`perfetto_samples`).
Open the file at ui.perfetto.dev or with Perfetto's trace processor; needs the `perfetto` package
(`pip install zaplock[perfetto]`).

Not everything is drawn of a huge recording: the longest `LIMIT` calls, holds and waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zaplock import outputs
from zaplock.extras import needed
from zaplock.trace.analysis import Analysis
from zaplock.trace.blame import Explained
from zaplock.trace.events import NO_OP
from zaplock.trace.stacks import CallStack
from zaplock.trace.summary import QUEUED_NS, Summary
from zaplock.trace.waits import WaitOutcome
from zaplock.views.perfetto_samples import samples
from zaplock.views.report_json import longest
from zaplock.views.sentences import blame_sentence

LIMIT = 200_000
"""So many of each kind; a packet costs about 10 us to write."""

Notes = dict[str, str | int]

SEQUENCE = 1
OURS = 1
"""The track on which zaplock says what is to be known of the whole recording."""
BEGIN, END, INSTANT = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Mark:
    """One packet: a slice's begin or end, or the end of an arrow, on a track.

    `order` sorts marks of one instant, so that slices nest: ends before begins, arrows inside.
    """

    time_ns: int
    order: int
    track: int
    kind: int
    name: str = ""
    notes: Notes = field(default_factory=dict)
    flow: int = 0
    last: bool = False


def write_perfetto(summary: Summary, path: Path) -> Path:
    """Write the trace; raise UserError without the perfetto package or a place to write."""
    with needed("a trace for Perfetto"):
        from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder
    with outputs.writing(path) as file:
        builder = StreamingTraceProtoBuilder(file)
        for packet in _packets(summary, builder):
            builder.write_packet(packet)
    return path


def call_track(tid: int) -> int:
    """Return the track of a thread's system calls."""
    return 2 * tid + 2


def lock_track(tid: int) -> int:
    """Return the track of a thread's waits and holds."""
    return 2 * tid + 3


def marks(summary: Summary) -> list[Mark]:
    """List all that is drawn, in order of time."""
    analysis = summary.analysis
    found = [*_calls(analysis), *_holds(analysis), *_waits(analysis), *_arrows(summary)]
    begin_ns = analysis.begin_ns
    found += [Mark(begin_ns, 0, OURS, INSTANT, caveat) for caveat in analysis.caveats]
    return sorted(found, key=lambda mark: (mark.time_ns, mark.order))


def _slice(track: int, start_ns: int, span_ns: int, name: str, notes: Notes) -> Iterator[Mark]:
    """Draw a span; one of no length would end before it begins."""
    if span_ns > 0:
        yield Mark(start_ns, 2, track, BEGIN, name, notes)
        yield Mark(start_ns + span_ns, 1, track, END)


def _calls(analysis: Analysis) -> Iterator[Mark]:
    calls = analysis.calls
    for row in longest(calls.end_ns - calls.begin_ns, LIMIT):
        notes: Notes = {
            "address": f"{int(calls.address[row]):#x}",
            "length": int(calls.length[row]),
        }
        begin = int(calls.begin_ns[row])
        span = int(calls.end_ns[row]) - begin
        name = calls.operations[calls.op[row]]
        yield from _slice(call_track(int(calls.tid[row])), begin, span, name, notes)


def _operation(analysis: Analysis, op: int) -> str:
    return "" if op == NO_OP else analysis.calls.operations[op]


def _holds(analysis: Analysis) -> Iterator[Mark]:
    holds = analysis.holds
    for row in longest(holds["hold_ns"], LIMIT):
        mode = "exclusive" if holds["exclusive"][row] else "shared"
        notes: Notes = {
            "mm": f"{int(holds['mm'][row]):#x}",
            "operation": _operation(analysis, int(holds["op"][row])),
            "length": int(holds["length"][row]),
            "downgraded": int(holds["downgraded"][row]),
            "complete": int(holds["complete"][row]),
            **_stack_notes(analysis.hold_stack(row)),
        }
        track, start = lock_track(int(holds["tid"][row])), int(holds["start_ns"][row])
        yield from _slice(track, start, int(holds["hold_ns"][row]), f"hold {mode}", notes)


def _waits(analysis: Analysis) -> Iterator[Mark]:
    waits = analysis.waits
    for row in longest(waits["wait_ns"], LIMIT):
        if waits["wait_ns"][row] < QUEUED_NS:
            return
        mode = "exclusive" if waits["exclusive"][row] else "shared"
        notes: Notes = {
            "mm": f"{int(waits['mm'][row]):#x}",
            "operation": _operation(analysis, int(waits["op"][row])),
            "outcome": WaitOutcome(int(waits["outcome"][row])).name.lower(),
            **_stack_notes(analysis.wait_stack(row)),
        }
        track, start = lock_track(int(waits["tid"][row])), int(waits["start_ns"][row])
        yield from _slice(track, start, int(waits["wait_ns"][row]), f"wait {mode}", notes)


def _stack_notes(stack: CallStack) -> Notes:
    """Give a slice's stack as its arguments, innermost function first."""
    parts = {"user stack": stack.user, "kernel stack": stack.kernel}
    return {name: " < ".join(frames) for name, frames in parts.items() if frames}


def _arrows(summary: Summary) -> Iterator[Mark]:
    for number, found in enumerate(summary.explained, 1):
        if found.culprit is not None:
            yield from _arrow(summary.analysis, found, number)


def _arrow(analysis: Analysis, found: Explained, number: int) -> Iterator[Mark]:
    """Draw one arrow: out of the culprit while it was still in the way, to the end of the wait."""
    culprit = found.blame[0]
    wait_end = int(analysis.waits.end_ns[found.wait])
    table: Any = analysis.waits if culprit.waited else analysis.holds
    span = table["wait_ns" if culprit.waited else "hold_ns"]
    culprit_end = int(table["start_ns"][culprit.row] + span[culprit.row])
    victim = lock_track(int(analysis.waits["tid"][found.wait]))
    leaves = min(culprit_end, wait_end)
    said: Notes = {"because": blame_sentence(analysis, culprit), "share_ns": culprit.share_ns}
    source = call_track(culprit.tid) if culprit.vma else lock_track(culprit.tid)
    yield Mark(leaves, 0, source, INSTANT, "in the way until here", {}, number)
    yield Mark(wait_end, 0, victim, INSTANT, "waited for", said, number, last=True)


def _packets(summary: Summary, builder: Any) -> Iterator[Any]:
    analysis = summary.analysis
    drawn = marks(summary)
    yield from _descriptors(analysis, {mark.track for mark in drawn}, builder)
    for mark in drawn:
        packet = _packet(builder)
        packet.timestamp = mark.time_ns
        event = packet.track_event
        event.type = mark.kind
        event.track_uuid = mark.track
        if mark.name:
            event.name = mark.name
        if mark.flow:
            (event.terminating_flow_ids if mark.last else event.flow_ids).append(mark.flow)
        for key, value in mark.notes.items():
            note = event.debug_annotations.add()
            note.name = key
            if isinstance(value, str):
                note.string_value = value
            else:
                note.int_value = value
        yield packet
    yield from samples(analysis, builder)


def _packet(builder: Any) -> Any:
    packet = builder.create_packet()
    packet.trusted_packet_sequence_id = SEQUENCE
    return packet


def _descriptors(analysis: Analysis, tracks: set[int], builder: Any) -> Iterator[Any]:
    """Describe each thread's two tracks."""
    if OURS in tracks:
        packet = _packet(builder)
        packet.track_descriptor.uuid = OURS
        packet.track_descriptor.name = "zaplock"
        yield packet
    for tid in sorted({(track - 2) // 2 for track in tracks - {OURS}}):
        task = analysis.events.tasks.get(tid)
        packet = _packet(builder)
        descriptor = packet.track_descriptor
        descriptor.uuid = call_track(tid)
        descriptor.thread.tid = tid
        descriptor.thread.pid = task.pid if task else tid
        descriptor.thread.thread_name = task.comm if task else f"tid {tid}"
        yield packet
        below = _packet(builder)
        below.track_descriptor.uuid = lock_track(tid)
        below.track_descriptor.parent_uuid = call_track(tid)
        below.track_descriptor.name = "mmap_lock"
        yield below
    for pid, name in _processes(analysis):
        packet = _packet(builder)
        packet.track_descriptor.uuid = (1 << 48) + pid
        packet.track_descriptor.process.pid = pid
        packet.track_descriptor.process.process_name = name
        yield packet


def _processes(analysis: Analysis) -> list[tuple[int, str]]:
    names = {task.pid: task.process or task.comm for task in analysis.events.tasks.values()}
    return sorted(names.items())
