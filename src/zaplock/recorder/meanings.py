"""What each trace event means in zaplock's columns, whatever its layout in this kernel.

Sources: include/trace/events/{mmap_lock,lock,sched,task}.h, kernel/trace/trace_syscalls.c and
arch/x86/include/asm/trace/exceptions.h. An event whose fields are missing from this kernel's
layout keeps 0 in their columns.

Not covered: the end of a page fault. No kernel has an event for it, so FAULT_END never comes from
a recorder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zaplock.recorder.layouts import EventField, EventLayout
from zaplock.recorder.rwsem_probes import number_of, probed
from zaplock.system_calls import FOREIGN, TRACED, TRACED_NAMES, SystemCall
from zaplock.trace.event_kinds import NO_OP, EventKind

MMAP_LOCK = (
    "mmap_lock:mmap_lock_start_locking",
    "mmap_lock:mmap_lock_acquire_returned",
    "mmap_lock:mmap_lock_released",
)


def _events_of(calls: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"syscalls:sys_{side}_{name}" for name in calls for side in ("enter", "exit"))


SYSCALLS = _events_of(TRACED_NAMES)
FOREIGN_CALLS = _events_of(FOREIGN)
"""System calls that work on another process: a target's lock is taken by whoever makes them."""
FAULTS = ("exceptions:page_fault_user",)
CONTENTION = ("lock:contention_begin", "lock:contention_end")
SCHED = ("sched:sched_switch", "sched:sched_waking", "sched:sched_wakeup")
"""Only sched_waking runs in whoever wakes: the task is put on an idle CPU's queue, and sched_wakeup
written, by that CPU's own interrupt (TTWU_QUEUE). sched_wakeup is the time from which it is ready.
"""
RENAMED = "task:task_rename"
"""By a process for itself, and by each exec."""
NAMING = ("task:task_newtask", RENAMED, "sched:sched_process_exit")

FUNCTION_GRAPH = ("ftrace:funcgraph_entry", "ftrace:funcgraph_exit")
"""A function is entered, and left; `mm` holds its address until `graph_calls` makes sense of it."""

GROUPS = {
    "mmap_lock": MMAP_LOCK,
    "syscalls": SYSCALLS,
    "faults": FAULTS,
    "contention": CONTENTION,
    "sched": SCHED,
}
"""What can be asked for, by one word."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """One event's kind and the field that each column comes from."""

    layout: EventLayout
    kind: EventKind
    columns: dict[str, EventField]
    op: int = NO_OP
    function: int | None = None
    """The place in `rwsem_probes.FUNCTIONS`, of a probe's event."""


_PLAIN: dict[str, tuple[EventKind, dict[str, str]]] = {
    MMAP_LOCK[0]: (EventKind.ASKED, {"mm": "mm", "write": "write"}),
    MMAP_LOCK[1]: (EventKind.ACQUIRED, {"mm": "mm", "write": "write", "success": "success"}),
    MMAP_LOCK[2]: (EventKind.RELEASED, {"mm": "mm", "write": "write"}),
    FAULTS[0]: (EventKind.FAULT_BEGIN, {"address": "address", "detail": "error_code"}),
    CONTENTION[0]: (EventKind.CONTENTION_BEGIN, {"address": "lock_addr", "detail": "flags"}),
    CONTENTION[1]: (EventKind.CONTENTION_END, {"address": "lock_addr", "result": "ret"}),
    FUNCTION_GRAPH[0]: (EventKind.ASKED, {"mm": "func"}),
    FUNCTION_GRAPH[1]: (EventKind.ACQUIRED, {"mm": "func"}),
    SCHED[0]: (EventKind.SCHED_OUT, {"tid": "prev_pid", "detail": "prev_state"}),
    SCHED[1]: (EventKind.WAKEUP, {"tid": "pid", "detail": "common_pid"}),
    SCHED[2]: (EventKind.WAKEUP, {"tid": "pid"}),
}


def meanings(layouts: Iterable[EventLayout]) -> list[Meaning]:
    """Say what each of these events means; those without a kind (names) are left out."""
    found = [_meaning(layout) for layout in layouts]
    return [meaning for meaning in found if meaning is not None]


def _meaning(layout: EventLayout) -> Meaning | None:
    if layout.event in _PLAIN:
        kind, names = _PLAIN[layout.event]
        running = _field(layout, "common_pid")
        return Meaning(layout, kind, {"tid": running, **_named(layout, names)})
    if probe := probed(layout.event):
        function, returned = probe
        kind = EventKind.ACQUIRED if returned else function.kind
        columns = _named(layout, {"tid": "common_pid", "mm": "sem", "result": "ret"})
        return Meaning(layout, kind, columns, function=number_of(function))
    for index, operation in enumerate(TRACED):
        if layout.event == f"syscalls:sys_enter_{operation.name}":
            return Meaning(layout, EventKind.OP_BEGIN, _arguments(layout, operation), index)
        if layout.event == f"syscalls:sys_exit_{operation.name}":
            columns = {"tid": _field(layout, "common_pid"), **_named(layout, {"result": "ret"})}
            return Meaning(layout, EventKind.OP_END, columns, index)
    return None


def _field(layout: EventLayout, name: str) -> EventField:
    field = layout.field(name)
    assert field is not None, f"{layout.event} has no field {name}"
    return field


def _named(layout: EventLayout, names: dict[str, str]) -> dict[str, EventField]:
    found = {column: layout.field(name) for column, name in names.items()}
    return {column: field for column, field in found.items() if field is not None}


def _arguments(layout: EventLayout, operation: SystemCall) -> dict[str, EventField]:
    columns = {"tid": _field(layout, "common_pid")}
    for column, position in operation.shown.items():
        if position is not None and position < len(layout.arguments):
            columns[column] = layout.arguments[position]
    return columns
