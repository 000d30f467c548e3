"""The stacks of a recording as samples of a Perfetto trace: a flame graph for any span of time.

Each reason for which a stack is taken (`trace.stacks.StackReason`) is a sequence of samples of its
own, under its own name, since samples of a clock may be counted and the others may not. Texts,
functions and stacks are written once for each sequence, before the first sample that needs them
(InternedData of perfetto/trace/interned_data/interned_data.proto).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zaplock.trace.analysis import Analysis
from zaplock.trace.stack_reasons import StackReason
from zaplock.trace.stacks import CallStack
from zaplock.views.stacks import placed, telling

LIMIT = 200_000
"""So many of each reason, the earliest; a packet costs about 10 us to write."""

FIRST_SEQUENCE = 2
"""The samples of the first reason; that before it is the tracks'."""

NAMES = {
    StackReason.LOCKED: "got an mmap_lock",
    StackReason.SAMPLED: "on a CPU, with an mmap_lock or waiting for one",
    StackReason.QUEUED: "queued for an mmap_lock",
    StackReason.SLEEPS: "slept, with an mmap_lock or waiting for one",
    StackReason.READY: "lost its CPU, with an mmap_lock or waiting for one",
}

_CLEARED, _NEEDED = 1, 2
"""SequenceFlags of a packet: what was interned before it is forgotten, or is needed."""
_CPU_CLOCK = 1
"""PerfEvents.Counter: SW_CPU_CLOCK."""
_KERNEL_MODE, _USER_MODE = 1, 2


def samples(analysis: Analysis, builder: Any) -> Iterator[Any]:
    """Yield the packets of all samples."""
    stacks = analysis.stacks
    if stacks is None:
        return
    for reason in StackReason:
        sequence = _Sequence(builder, reason)
        for row in stacks.taken(reason)[:LIMIT]:
            tid = int(stacks.tid[row])
            task = analysis.events.tasks.get(tid)
            pid = task.pid if task else tid
            stack = stacks.stack(row, pid)
            yield sequence.packet(int(stacks.time_ns[row]), pid, tid, stack)


class _Sequence:
    """The samples of one reason."""

    def __init__(self, builder: Any, reason: StackReason) -> None:
        self._builder, self._reason = builder, reason
        self._known: dict[object, int] = {}
        self._begun = False

    def packet(self, time_ns: int, pid: int, tid: int, stack: CallStack) -> Any:
        """Make the packet of a sample, with what it needs that was not told yet."""
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = FIRST_SEQUENCE + int(self._reason)
        packet.timestamp = time_ns
        packet.sequence_flags = _NEEDED if self._begun else _CLEARED | _NEEDED
        if not self._begun:
            timebase = packet.trace_packet_defaults.perf_sample_defaults.timebase
            timebase.counter, timebase.name = _CPU_CLOCK, NAMES[self._reason]
            self._begun = True
        sample = packet.perf_sample
        sample.pid, sample.tid = pid, tid
        sample.cpu_mode = _KERNEL_MODE if stack.kernel else _USER_MODE
        sample.callstack_iid = self._callstack(packet, stack)
        return packet

    def _new(self, what: object) -> int:
        return self._known.setdefault(what, len(self._known) + 1)

    def _callstack(self, packet: Any, stack: CallStack) -> int:
        stack = CallStack(telling(stack.kernel), stack.user)
        if stack not in self._known:
            frames = [self._frame(packet, *frame) for frame in placed(stack)]
            told = packet.interned_data.callstacks.add(iid=self._new(stack))
            told.frame_ids.extend(reversed(frames))  # outermost first
        return self._known[stack]

    def _frame(self, packet: Any, function: str, file: str) -> int:
        key = ("frame", function, file)
        if key not in self._known:
            name, mapping = self._function(packet, function), self._mapping(packet, file)
            packet.interned_data.frames.add(
                iid=self._new(key), function_name_id=name, mapping_id=mapping
            )
        return self._known[key]

    def _mapping(self, packet: Any, file: str) -> int:
        key = ("mapping", file)
        if key not in self._known:
            path = ("path", file)
            packet.interned_data.mapping_paths.add(iid=self._new(path), str=file.encode())
            told = packet.interned_data.mappings.add(iid=self._new(key))
            told.path_string_ids.append(self._known[path])
        return self._known[key]

    def _function(self, packet: Any, name: str) -> int:
        key = ("function", name)
        if key not in self._known:
            packet.interned_data.function_names.add(iid=self._new(key), str=name.encode())
        return self._known[key]
