"""What the text of one trace event says, in zaplock's columns.

The kernel's own printing is taken, and where they differ that of trace-cmd's plugins and of perf.
A row is a mapping from columns to numbers; its time, cpu and thread are in the line around it
(`text`).

Every pattern is linear in the length of the text: a line of a hundred thousand blanks is as quick
to refuse as any other of that length.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from zaplock.system_calls import BY_NUMBER, TRACED, TRACED_NAMES
from zaplock.trace.events import EventKind

Row = dict[str, int]

TOLD_BY_ITS_END = -1
"""`result` of an exit that the task need not have called."""

_ARGUMENTS = {call.name: call.shown for call in TRACED}
_NAMED = re.compile(r"(?:\w++:(?=\w))?+(\w++): *+(.*+)$")
_CALL = re.compile(r"sys_(\w++)\((.*)\)$")
_RETURN = re.compile(r"sys_(\w++) -> (\S++)")
_VALUE = re.compile(r"(?<!\w)(\w++)(?:=|: ?)(\([^)]{0,200}+\)|[^\s,]++)")
_RAW_ENTER = re.compile(r"NR (-?\d{1,9}+) \(([^)]*+)\)")
_RAW_EXIT = re.compile(r"NR (-?\d{1,9}+) = (-?\w{1,20}+)")
_TASK = re.compile(r"(?<=:)(\d{1,10}+) \[-?\d{1,4}+\](?: (\S{1,4}+))?")


def rows_of(said: str) -> list[Row]:
    """Read what stands after the time of a line; nothing for an event that zaplock doesn't use.

    Raises KeyError, ValueError or IndexError where it is a known event and can't be read.
    """
    if call := _CALL.match(said):
        return _began(call[1], call[2])
    if back := _RETURN.match(said):
        return _returned(back[1], back[2])
    named = _NAMED.match(said)
    if named is None:
        return []
    event, text = named[1], named[2]
    if event in ("sys_enter", "sys_exit"):
        return _raw(event, text)
    if event.startswith("sys_enter_"):
        return _began(event.removeprefix("sys_enter_"), text)
    if event.startswith("sys_exit_"):
        return _returned(event.removeprefix("sys_exit_"), text)
    return _READERS[event](text) if event in _READERS else []


def operation_row(call: str, arguments: list[int]) -> list[Row]:
    """Make the row of a call's begin from its arguments, in the order of the call's own."""
    if call not in _ARGUMENTS:
        return []
    row = {"kind": int(EventKind.OP_BEGIN), "op": TRACED_NAMES.index(call)}
    for column, position in _ARGUMENTS[call].items():
        if position is not None and position < len(arguments):
            row[column] = arguments[position]
    return [row]


def result_row(call: str, result: int) -> list[Row]:
    """Make the row of a call's end."""
    if call not in _ARGUMENTS:
        return []
    return [{"kind": int(EventKind.OP_END), "op": TRACED_NAMES.index(call), "result": result}]


def _began(call: str, text: str) -> list[Row]:
    return operation_row(call, [_number(value, 16) for _, value in _VALUE.findall(text)])


def _returned(call: str, text: str) -> list[Row]:
    return result_row(call, _number(text.strip()))


def _raw(event: str, text: str) -> list[Row]:
    """Read raw_syscalls:*, whose numbers are taken for those of x86-64."""
    if event == "sys_enter" and (found := _RAW_ENTER.match(text)):
        arguments = [_number(value, 16) for value in found[2].split(",")]
        return operation_row(BY_NUMBER.get(int(found[1]), ""), arguments)
    if event == "sys_exit" and (found := _RAW_EXIT.match(text)):
        return result_row(BY_NUMBER.get(int(found[1]), ""), _number(found[2]))
    return []


def _lock(kind: EventKind) -> Callable[[str], list[Row]]:
    def read(text: str) -> list[Row]:
        values = dict(_VALUE.findall(text))
        row = {"kind": int(kind), "mm": int(values["mm"], 16), "write": _flag(values["write"])}
        if kind == EventKind.ACQUIRED:
            row["success"] = _flag(values["success"])
        return [row]

    return read


def _flag(text: str) -> int:
    return int(text in ("true", "1"))


def _switch(text: str) -> list[Row]:
    before, arrow, after = text.partition(" ==> ")
    if not arrow:
        return []
    leaves, comes = before.rpartition("prev_pid=")[2], after.rpartition("next_pid=")[2]
    if leaves != before:
        tid, state = leaves.split()[0], before.rpartition("prev_state=")[2].split()[0]
        return switch_rows(int(tid), state, int(comes.split()[0]))
    out, into = _TASK.search(before), _TASK.search(after)  # trace-cmd: "bash:12 [120] S ==> ..."
    if out is None or into is None:
        raise ValueError(text)
    return switch_rows(int(out[1]), out[2] or "R", int(into[1]))


def switch_rows(leaves: int, state: str, comes: int) -> list[Row]:
    """Make the two rows of a sched_switch; state "R" is still runnable."""
    detail = 0 if state.startswith("R") else 1
    out = {"kind": int(EventKind.SCHED_OUT), "tid": leaves, "detail": detail}
    return [out, {"kind": int(EventKind.SCHED_IN), "tid": comes}]


def _wakeup(text: str) -> list[Row]:
    values = dict(_VALUE.findall(text))
    task = None if "pid" in values else _TASK.search(text)
    tid = task[1] if task else values["pid"]
    return [{"kind": int(EventKind.WAKEUP), "tid": int(tid)}]


def _fault(text: str) -> list[Row]:
    values = dict(_VALUE.findall(text))
    where = {"address": _number(values["address"]), "detail": _number(values["error_code"])}
    return [{"kind": int(EventKind.FAULT_BEGIN), **where}]


def _contention(kind: EventKind) -> Callable[[str], list[Row]]:
    def read(text: str) -> list[Row]:
        row = {"kind": int(kind), "address": int(text.split()[0], 16)}
        if kind == EventKind.CONTENTION_END:
            row["result"] = _number(dict(_VALUE.findall(text)).get("ret", "0"))
        return [row]

    return read


def exit_rows(tid: int) -> list[Row]:
    """Make the row of a task's end (sched_process_exit): an exit, unless it has called one."""
    return [{**operation_row("exit", [])[0], "tid": tid, "result": TOLD_BY_ITS_END}]


def _process_exit(text: str) -> list[Row]:
    values = dict(_VALUE.findall(text))
    task = None if "pid" in values else _TASK.search(text)
    return exit_rows(int(task[1] if task else values["pid"]))


_READERS: dict[str, Callable[[str], list[Row]]] = {
    "mmap_lock_start_locking": _lock(EventKind.ASKED),
    "mmap_lock_acquire_returned": _lock(EventKind.ACQUIRED),
    "mmap_lock_released": _lock(EventKind.RELEASED),
    "sched_switch": _switch,
    "sched_waking": _wakeup,
    "sched_wakeup": _wakeup,
    "sched_process_exit": _process_exit,
    "page_fault_user": _fault,
    "contention_begin": _contention(EventKind.CONTENTION_BEGIN),
    "contention_end": _contention(EventKind.CONTENTION_END),
}


def _number(text: str, base: int = 0) -> int:
    """Read a printed number. An argument of a system call is hexadecimal also without its 0x."""
    if len(text) > 24:  # longer than any 64-bit number
        return 0
    try:
        return int(text, base)
    except ValueError:
        return 0
