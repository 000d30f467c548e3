"""Read the ftrace packets of a Perfetto trace (perfetto/trace/trace.proto).

Perfetto has no messages of its own for mmap_lock events and for single system calls: it records
them as generic events, by name and fields, and sys_enter and sys_exit with their number. Those, its
sched_switch, sched_waking and sched_wakeup, its compact form, what each bundle says it lost and the
process trees are read; the rest is passed over. Needs the `perfetto` package, whose message
classes decode the packets (`pip install zaplock[perfetto]`).

System calls are told by number without the machine: those of x86-64 are assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from zaplock.errors import UserError
from zaplock.extras import needed
from zaplock.strangers import name_of
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
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TracePacket
    found = TraceBuilder()
    try:
        for content in _contents(file):
            _packet(TracePacket.FromString(content), found)
    except (DecodeError, KeyError, ValueError, IndexError, OverflowError):
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


def _packet(packet: Any, found: TraceBuilder) -> None:
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
        _bundle(packet.ftrace_events, found)


def _bundle(bundle: Any, found: TraceBuilder) -> None:
    if bundle.lost_events and (times := _times(bundle)):
        found.add({"time_ns": min(times), "kind": int(EventKind.LOST), "length": -1})
    for event in bundle.event:
        for row in _rows(event, found):
            found.add({"cpu": bundle.cpu, **row})
    for row in _compact(bundle.compact_sched):
        found.add({"cpu": bundle.cpu, **row})


def _times(bundle: Any) -> list[int]:
    """When the events of a bundle were; of the compact ones, which are in order, the first."""
    sched = bundle.compact_sched
    first = [*sched.switch_timestamp[:1], *sched.waking_timestamp[:1]]
    return [*(event.timestamp for event in bundle.event), *first]


def _rows(event: Any, found: TraceBuilder) -> Iterator[Row]:
    head = {"time_ns": event.timestamp, "tid": event.pid}
    for row in _meaning(event):
        yield {**head, **row}
    if event.HasField("sched_switch"):
        switch = event.sched_switch
        found.name(switch.next_pid, _text(switch.next_comm))
        found.name(switch.prev_pid, _text(switch.prev_comm))
    if event.HasField("task_rename"):
        found.name(event.task_rename.pid, _text(event.task_rename.newcomm))


def _meaning(event: Any) -> list[Row]:
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
    return rows_of(_printed(event.generic)) if event.HasField("generic") else []


def _printed(generic: Any) -> str:
    """Print a generic event as ftrace does: its fields in order, numbers in hexadecimal."""
    fields = (
        f"{_text(one.name)}: {_text(one.str_value) or hex(one.uint_value or one.int_value)}"
        for one in generic.field
        if one.name not in ("__syscall_nr", "nr")
    )
    said = ", ".join(fields).replace("write: 0x", "write: ").replace("success: 0x", "success: ")
    name = _text(generic.event_name)
    if name.startswith("sys_exit_"):
        said = next((hex(one.int_value) for one in generic.field if one.name == "ret"), "0")
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
