"""Read the ftrace packets of a Perfetto trace (perfetto/trace/trace.proto).

Perfetto has no messages of its own for mmap_lock events and for single system calls: it records
them as generic events, by name and fields or (since v51) as fields of a number that the trace
itself describes, and sys_enter and sys_exit with their number. Those, its sched_switch,
sched_waking and sched_wakeup, its compact form, what each bundle says it lost and the process trees
are read; the rest is passed over. Needs the `perfetto` package, whose message
classes decode the packets (`pip install zaplock[perfetto]`).

System calls are told by number without the machine: those of x86-64 are assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from zaplock.errors import UserError
from zaplock.extras import needed
from zaplock.system_calls import BY_NUMBER
from zaplock.trace.events import IN_INTERRUPT, EventKind
from zaplock.trace.imported import ImportedTrace, TraceBuilder
from zaplock.trace.text_events import (
    Row,
    exit_rows,
    operation_row,
    result_row,
    rows_of,
    switch_rows,
)
from zaplock.untrusted_names import name_of

_PACKET: Final = 0x0A
"""A trace is a list of field 1 (packet), each with its length: this is how each begins."""
_LARGEST: Final = 16 << 20
"""Of a packet: what one read of a CPU's buffer gave."""


def looks_like(start: bytes) -> bool:
    """Say whether a file that starts so may be a Perfetto trace: a packet, and no text."""
    return len(start) > 2 and start[0] == _PACKET and not start.decode("latin-1").isprintable()


def read(path: Path, file: IO[bytes]) -> ImportedTrace:
    """Read the events of a trace. Raises UserError without the package, or where it is damaged."""
    with needed(f"{path} looks like a Perfetto trace, which"):
        from google.protobuf.message import DecodeError
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TracePacket
    found, described = TraceBuilder(), Described()
    try:
        for content in _contents(file):
            _packet(TracePacket.FromString(content), found, described)
    except (DecodeError, KeyError, ValueError, IndexError, OverflowError, TypeError):
        raise UserError(
            f"{path} is neither a text nor a whole Perfetto trace: give a text trace, trace.dat, "
            "perf.data or .pftrace"
        ) from None
    return found.finished()


def _contents(file: IO[bytes]) -> Iterator[bytes]:
    """Take the packets apart, one in memory at a time. Raises ValueError where they are none."""
    while tag := file.read(1):
        size = _varint(file)
        if tag[0] != _PACKET or size > _LARGEST:
            raise ValueError(f"field {tag[0]} of {size} bytes")
        content = file.read(size)
        if len(content) < size:
            raise ValueError("a packet is cut off")
        yield content


def _varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 35, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a length without an end")


class Described:
    """The events that a trace describes itself: each is a field of an event, by its number."""

    def __init__(self) -> None:
        self._classes: dict[int, tuple[str, Any]] = {}

    def learn(self, descriptors: Any) -> None:
        """Learn from a bundle. Raises DecodeError or TypeError where one describes nothing."""
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

        for one in descriptors:
            if one.field_id in self._classes:
                continue
            event = descriptor_pb2.DescriptorProto.FromString(one.event_descriptor)
            name, event.name = event.name, "Event"
            file = descriptor_pb2.FileDescriptorProto(name="event.proto", message_type=[event])
            pool = descriptor_pool.DescriptorPool()
            pool.Add(file)
            found = message_factory.GetMessageClass(pool.FindMessageTypeByName("Event"))
            self._classes[one.field_id] = name, found

    def printed(self, event: Any) -> str:
        """Print what an event is, "" where it is none of these."""
        from google.protobuf.unknown_fields import UnknownFieldSet

        if not self._classes:
            return ""
        for field in UnknownFieldSet(event):
            if field.field_number in self._classes and isinstance(field.data, bytes):
                name, kind = self._classes[field.field_number]
                fields = kind.FromString(field.data).ListFields()
                return _printed(name, [(one.name, value) for one, value in fields])
        return ""


def _packet(packet: Any, found: TraceBuilder, described: Described) -> None:
    if packet.HasField("process_tree"):
        for process in packet.process_tree.processes:
            name = _text(process.cmdline[0]).rpartition("/")[2][:15] if process.cmdline else ""
            found.name(process.pid, name)
            found.own(process.pid, process.pid)
        for thread in packet.process_tree.threads:
            found.own(thread.tid, thread.tgid)
            if thread.name:
                found.name(thread.tid, _text(thread.name))
    if packet.HasField("system_info"):
        found.kernel = _text(packet.system_info.utsname.release) or found.kernel
    if packet.HasField("ftrace_events"):
        _bundle(packet.ftrace_events, found, described)


def _bundle(bundle: Any, found: TraceBuilder, described: Described) -> None:
    described.learn(bundle.generic_event_descriptors)
    if bundle.lost_events and (times := _times(bundle)):
        found.add({"time_ns": min(times), "kind": int(EventKind.LOST), "length": -1})
    for event in bundle.event:
        for row in _rows(event, found, described):
            found.add({"cpu": bundle.cpu, **row})
    for row in _compact(bundle.compact_sched):
        found.add({"cpu": bundle.cpu, **row})


def _times(bundle: Any) -> list[int]:
    """When the events of a bundle were; of the compact ones, which are in order, the first."""
    sched = bundle.compact_sched
    first = [*sched.switch_timestamp[:1], *sched.waking_timestamp[:1]]
    return [*(event.timestamp for event in bundle.event), *first]


def _rows(event: Any, found: TraceBuilder, described: Described) -> Iterator[Row]:
    head = {"time_ns": event.timestamp, "tid": event.pid}
    for row in _meaning(event, described):
        yield {**head, **row}
    if event.HasField("sched_switch"):
        switch = event.sched_switch
        found.name(switch.next_pid, _text(switch.next_comm))
        found.name(switch.prev_pid, _text(switch.prev_comm))
    if event.HasField("task_rename"):
        found.name(event.task_rename.pid, _text(event.task_rename.newcomm))


def _meaning(event: Any, described: Described) -> list[Row]:
    if event.HasField("sched_switch"):
        switch = event.sched_switch
        state = "R" if switch.prev_state & 0xFF == 0 else "S"
        return switch_rows(switch.prev_pid, state, switch.next_pid)
    if event.HasField("sched_waking"):
        told = event.HasField("common_flags") and not event.common_flags & IN_INTERRUPT
        waker = event.pid if told else 0
        return [{"kind": int(EventKind.WAKEUP), "tid": event.sched_waking.pid, "detail": waker}]
    if event.HasField("sched_wakeup"):
        return [{"kind": int(EventKind.WAKEUP), "tid": event.sched_wakeup.pid}]
    if event.HasField("sched_process_exit"):
        return exit_rows(event.sched_process_exit.pid)
    if event.HasField("sys_enter"):
        return operation_row(BY_NUMBER.get(event.sys_enter.id, ""), list(event.sys_enter.args))
    if event.HasField("sys_exit"):
        return result_row(BY_NUMBER.get(event.sys_exit.id, ""), event.sys_exit.ret)
    if event.HasField("generic"):
        fields = [(one.name, _value(one)) for one in event.generic.field]
        return rows_of(_printed(_text(event.generic.event_name), fields))
    return rows_of(described.printed(event))


def _value(field: Any) -> str | int:
    """Return the value of a generic event's field."""
    value: str | int = field.uint_value or field.int_value
    return _text(field.str_value) or value


def _printed(name: str, fields: list[tuple[str, Any]]) -> str:
    """Print a generic event as ftrace does: its fields in order, numbers in hexadecimal."""
    if name.startswith("sys_exit_"):
        said = next((hex(value) for field, value in fields if field == "ret"), "0")
        return f"{name}: {said}"
    texts = (
        f"{_text(field)}: {hex(value) if isinstance(value, int) else _text(value)}"
        for field, value in fields
        if field not in ("__syscall_nr", "nr")
    )
    said = ", ".join(texts).replace("write: 0x", "write: ").replace("success: 0x", "success: ")
    return f"{name}: {said}"


def _text(raw: str | bytes) -> str:
    """Read a string field; protobuf gives one that is no UTF-8 as it is."""
    return raw if isinstance(raw, str) else name_of(raw)


def _compact(sched: Any) -> Iterator[Row]:
    """Undo the compact form: switches by the next task, time stamps as differences."""
    time_ns, running = 0, None
    for delta, state, tid in zip(
        sched.switch_timestamp, sched.switch_prev_state, sched.switch_next_pid
    ):
        time_ns += delta
        if running is not None:
            letter = "R" if state & 0xFF == 0 else "S"
            for row in switch_rows(running, letter, tid):
                yield {"time_ns": time_ns, **row}
        else:
            yield {"time_ns": time_ns, "kind": int(EventKind.SCHED_IN), "tid": tid}
        running = tid
    time_ns = 0
    for delta, tid in zip(sched.waking_timestamp, sched.waking_pid):
        time_ns += delta
        yield {"time_ns": time_ns, "kind": int(EventKind.WAKEUP), "tid": tid}
